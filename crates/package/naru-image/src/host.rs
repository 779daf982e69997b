//! The *host image*: a root file system that is this machine's own, with every tool that is installed,
//! and without its secrets. Homes, keys, shadow files, temporary directories and our own data are
//! masked; tool chains that live under a home come back read-only.

use crate::digest::Digest;
use crate::images::HostRoot;
use crate::oci::{ImageConfig, RunConfig, architecture};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the application knows about the machine; this crate reads no environment.
#[derive(Debug, Clone, Default)]
pub struct HostImageConfig {
    /// Our own data, never visible inside.
    pub data_dir: PathBuf,
    /// The home of the user that Naru runs as: its tool chains are shown.
    pub home: PathBuf,
    /// `PATH` of the process, from which the image's own is made.
    pub path: String,
    /// More to hide.
    pub masks: Vec<PathBuf>,
}

/// Hidden wherever they exist. Directories appear empty, files empty.
const MASKS: &[&str] = &[
    "/root",
    "/home",
    "/tmp",
    "/var/tmp",
    "/run",
    "/mnt",
    "/media",
    "/lost+found",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/ssl/private",
    "/etc/ssh",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/krb5.keytab",
    "/etc/kubernetes",
    "/etc/rancher",
    "/etc/docker",
    "/etc/containers",
    "/etc/wireguard",
    "/etc/openvpn",
    "/etc/letsencrypt",
    "/var/lib/kubelet",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/rancher",
    "/var/spool",
    "/var/mail",
    "/var/log",
    "/var/backups",
    "/proc",
    "/sys",
    "/dev",
    "/boot",
];

/// Tool chains under a home. Only programs and libraries: the credentials beside them stay hidden.
const TOOLCHAINS: &[&str] =
    &[".cargo/bin", ".rustup", ".nvm", ".pyenv", ".sdkman", "go/bin", ".bun/bin", ".deno/bin"];

/// The image's root, found by looking at the machine.
pub fn root(config: &HostImageConfig) -> HostRoot {
    let mut wanted: Vec<PathBuf> = MASKS.iter().map(PathBuf::from).collect();
    wanted.extend(config.masks.iter().cloned());
    wanted.extend([config.home.clone(), config.data_dir.clone()]);
    // Mounted by the runtime itself: a mask there would be in its way.
    let runtime_mounts = ["/proc", "/sys", "/dev"].map(Path::new);
    let mut masks: Vec<PathBuf> = Vec::new();
    wanted.sort();
    for path in wanted {
        let is_real = path.symlink_metadata().is_ok_and(|it| it.is_dir() || it.is_file());
        let is_nested = masks.iter().any(|it| path.starts_with(it));
        if path.is_absolute()
            && path != Path::new("/")
            && is_real
            && !is_nested
            && !runtime_mounts.contains(&&*path)
        {
            masks.push(path);
        }
    }

    let homes = [config.home.as_path(), Path::new("/root"), Path::new("/home")];
    let under_home = |path: &Path| {
        homes.iter().any(|it| !it.as_os_str().is_empty() && path.starts_with(it) && path != *it)
    };
    let mut shown: Vec<PathBuf> = TOOLCHAINS.iter().map(|it| config.home.join(it)).collect();
    shown.extend(config.path.split(':').map(PathBuf::from).filter(|it| under_home(it)));
    shown.sort();
    let mut read_only: Vec<PathBuf> = Vec::new();
    for path in shown {
        let is_directory = path.is_absolute() && path.symlink_metadata().is_ok_and(|it| it.is_dir());
        let is_hidden = masks.iter().any(|it| path.starts_with(it));
        if is_directory && is_hidden && !read_only.iter().any(|it| path.starts_with(it)) {
            read_only.push(path);
        }
    }
    HostRoot { masks, read_only }
}

/// The image's configuration: `PATH` as it is outside, as far as it is visible inside.
pub fn image_config(config: &HostImageConfig, root: &HostRoot) -> ImageConfig {
    let visible = |path: &Path| {
        let hidden = root.masks.iter().any(|it| path.starts_with(it));
        path.is_absolute()
            && path.is_dir()
            && (!hidden || root.read_only.iter().any(|it| path.starts_with(it)))
    };
    let mut path: Vec<&str> = Vec::new();
    for entry in config.path.split(':').chain([
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]) {
        if !path.contains(&entry) && visible(Path::new(entry)) {
            path.push(entry);
        }
    }
    let mut run = RunConfig { working_dir: "/".into(), user: "0:0".into(), ..Default::default() };
    run.cmd = vec!["/bin/sh".into()];
    run.set_env("PATH", &path.join(":"));
    run.set_env("HOME", "/root");
    for (name, directory) in [("RUSTUP_HOME", ".rustup"), ("NVM_DIR", ".nvm"), ("PYENV_ROOT", ".pyenv")] {
        let directory = config.home.join(directory);
        if root.read_only.contains(&directory) {
            run.set_env(name, &directory.to_string_lossy());
        }
    }
    ImageConfig { architecture: architecture().into(), os: "linux".into(), config: run, ..Default::default() }
}

/// Changes when the machine's tools change: what is built on the host image is built again after an
/// upgrade. Looks at the package databases and at the tool chains' directories, not at every file.
pub fn fingerprint(config: &HostImageConfig, root: &HostRoot) -> Digest {
    let mut text = serde_json::to_string(&image_config(config, root)).expect("an image config is plain data");
    let mut stamp = |path: &Path| {
        if let Ok(meta) = path.metadata() {
            text.push_str(&format!("\n{} {} {}", path.display(), meta.len(), meta.mtime()));
        }
    };
    for path in [
        "/etc/os-release",
        "/var/lib/dpkg/status",
        "/var/lib/rpm/rpmdb.sqlite",
        "/lib/apk/db/installed",
        "/usr/local/bin",
        "/usr/local/lib",
    ] {
        stamp(Path::new(path));
    }
    for path in &root.read_only {
        stamp(path);
        stamp(&path.join("toolchains"));
        stamp(&path.join("versions"));
    }
    Digest::of(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_hidden_and_their_tool_chains_come_back() {
        let home = tempfile::tempdir_in("/var/lib").unwrap();
        let at = |it: &str| home.path().join(it);
        for it in [".cargo/bin", ".rustup/toolchains", ".ssh"] {
            std::fs::create_dir_all(at(it)).unwrap();
        }
        let config = HostImageConfig {
            data_dir: at("data"),
            home: home.path().to_owned(),
            path: format!("{}:/usr/bin:/tmp", at(".cargo/bin").display()),
            masks: vec![],
        };
        let root = root(&config);
        assert!(root.masks.contains(&home.path().to_owned()));
        assert!(!root.masks.contains(&at("data")), "already hidden with its parent");
        assert_eq!(root.read_only, [at(".cargo/bin"), at(".rustup")]);
        let image = image_config(&config, &root).config;
        let path = image.env_of("PATH").unwrap();
        assert!(path.starts_with(&format!("{}:/usr/bin", at(".cargo/bin").display())), "{path}");
        assert!(!path.contains("/tmp"));
        assert_eq!(image.env_of("RUSTUP_HOME"), at(".rustup").to_str());

        let before = fingerprint(&config, &root);
        assert_eq!(before, fingerprint(&config, &root));
        std::fs::create_dir(at(".rustup/toolchains/1.95")).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::open(at(".rustup/toolchains")).unwrap().set_modified(later).unwrap();
        assert_ne!(before, fingerprint(&config, &root));

        let view = crate::View::new(vec!["/".into()], Some(&root));
        let seen = |it: &str| view.entry(at(it).strip_prefix("/").unwrap()).unwrap().is_some();
        assert!(seen(".cargo/bin") && seen(".rustup/toolchains") && seen(".cargo"));
        assert!(!seen(".ssh"));
        assert!(view.entry(Path::new("etc/shadow")).unwrap().is_none());
        assert!(
            view.entry(Path::new("bin/sh")).unwrap().is_some()
                || view.entry(Path::new("bin")).unwrap().is_some()
        );
    }
}
