//! The files that a pod's containers share or are given: volumes, `/etc/hosts`, `resolv.conf`.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use naru_runtime::Mount;

use crate::environment::{Sources, key_of, keys_of};
use crate::pod::{DesiredContainer, DesiredPod, FileSource, Volume};

/// Where a pod's volumes are.
#[derive(Debug, Clone)]
pub struct Places {
    /// On disk, with the pod's other files.
    pub disk: PathBuf,
    /// In memory: secrets never touch the disk.
    pub memory: PathBuf,
}

impl Places {
    fn of(&self, name: &str, volume: &Volume) -> PathBuf {
        match volume {
            Volume::EmptyDir { memory: false } => self.disk.join(name),
            Volume::EmptyDir { memory: true } | Volume::Files { .. } => self.memory.join(name),
            Volume::HostPath { path, .. } => PathBuf::from(path),
        }
    }
}

/// Names of the ConfigMaps and Secrets that [`prepare`] will look up.
pub fn needed_sources(pod: &DesiredPod) -> Vec<(bool, String)> {
    pod.volumes
        .values()
        .flat_map(|volume| match volume {
            Volume::Files { sources, .. } => sources.as_slice(),
            _ => &[],
        })
        .map(|source| (source.secret, source.name.clone()))
        .collect()
}

/// Makes every volume of the pod. Made again after a restart of the daemon it changes nothing.
pub fn prepare(pod: &DesiredPod, sources: &Sources, places: &Places) -> Result<(), String> {
    for (name, volume) in &pod.volumes {
        let path = places.of(name, volume);
        let failed = |error: io::Error| format!("volume {name}: {error}");
        match volume {
            Volume::EmptyDir { .. } => {
                // World-writable as everywhere: the containers' users are unknown here.
                make_directory(&path, 0o777).map_err(failed)?;
                if let Some(group) = pod.fs_group {
                    std::os::unix::fs::chown(&path, None, Some(group)).map_err(failed)?;
                    fs::set_permissions(&path, Permissions::from_mode(0o2777)).map_err(failed)?;
                }
            }
            Volume::HostPath { kind, .. } => {
                prepare_host_path(&path, kind).map_err(|error| format!("volume {name}: {error}"))?
            }
            Volume::Files { sources: wanted, mode } => {
                make_directory(&path, 0o755).map_err(failed)?;
                for source in wanted {
                    write_source(&path, source, *mode, pod.fs_group, sources)
                        .map_err(|error| format!("volume {name}: {error}"))?;
                }
            }
        }
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn prepare_host_path(path: &Path, kind: &str) -> Result<(), String> {
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("hostPath {} is not an absolute path without `..`", path.display()));
    }
    use std::os::unix::fs::FileTypeExt;
    let found = path.metadata().ok().map(|metadata| metadata.file_type());
    let missing = || format!("hostPath {} is not a {kind}", path.display());
    let io = |error: io::Error| format!("hostPath {}: {error}", path.display());
    match kind {
        "" => found.map(drop).ok_or_else(|| format!("hostPath {} does not exist", path.display())),
        "DirectoryOrCreate" if found.is_none() => {
            DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(io)
        }
        "FileOrCreate" if found.is_none() => {
            File::options().create_new(true).write(true).mode(0o644).open(path).map(drop).map_err(io)
        }
        "Directory" | "DirectoryOrCreate" => found.filter(fs::FileType::is_dir).map(drop).ok_or_else(missing),
        "File" | "FileOrCreate" => found.filter(fs::FileType::is_file).map(drop).ok_or_else(missing),
        "Socket" => found.filter(FileTypeExt::is_socket).map(drop).ok_or_else(missing),
        "CharDevice" => found.filter(FileTypeExt::is_char_device).map(drop).ok_or_else(missing),
        "BlockDevice" => found.filter(FileTypeExt::is_block_device).map(drop).ok_or_else(missing),
        _ => Err(format!("hostPath type {kind} is not supported by this node")),
    }
}

fn write_source(
    directory: &Path,
    source: &FileSource,
    mode: u32,
    group: Option<u32>,
    sources: &Sources,
) -> Result<(), String> {
    let kind = if source.secret { "secret" } else { "configmap" };
    let Some(object) = sources.get(&(source.secret, source.name.clone())).and_then(Option::as_ref) else {
        return if source.optional { Ok(()) } else { Err(format!("{kind} \"{}\" not found", source.name)) };
    };
    let items: Vec<(String, String, Option<u32>)> = if source.items.is_empty() {
        keys_of(object).into_iter().map(|key| (key.clone(), key, None)).collect()
    } else {
        source.items.clone()
    };
    for (key, path, own_mode) in items {
        let relative = Path::new(&path);
        if path.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!("`{path}` is not a relative path without `..`"));
        }
        let Some(value) = key_of(source.secret, object, &key) else {
            if source.optional {
                continue;
            }
            return Err(format!("{kind} {} has no key {key}", source.name));
        };
        let target = directory.join(relative);
        let write = || -> io::Result<()> {
            if let Some(parent) = target.parent() {
                DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
            }
            let temporary = target.with_extension("naru-new");
            let mut file =
                File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
            file.write_all(&value)?;
            let mut mode = own_mode.unwrap_or(mode);
            if let Some(group) = group {
                std::os::unix::fs::fchown(&file, None, Some(group))?;
                mode |= (mode & 0o400) >> 3;
            }
            file.set_permissions(Permissions::from_mode(mode & 0o777))?;
            fs::rename(&temporary, &target)
        };
        write().map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}

/// The binds of one container. Volumes of files are read-only whatever the pod says, as everywhere.
pub fn mounts(pod: &DesiredPod, container: &DesiredContainer, places: &Places) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for mount in &container.mounts {
        let volume = pod.volumes.get(&mount.volume).ok_or_else(|| {
            format!(
                "container {} mounts the volume {}, which the pod does not have",
                container.name, mount.volume
            )
        })?;
        let mut source = places.of(&mount.volume, volume);
        let files = matches!(volume, Volume::Files { .. });
        if !mount.sub_path.is_empty() {
            // In a volume that containers write, a link could lead the mount out of it.
            let relative = Path::new(&mount.sub_path);
            if !files || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(format!(
                    "subPath {} of container {}: this node supports it for configMap and secret volumes",
                    mount.sub_path, container.name
                ));
            }
            source = source.join(relative);
        }
        mounts.push(Mount {
            source,
            destination: PathBuf::from(&mount.path),
            read_only: mount.read_only || files,
        });
    }
    Ok(mounts)
}

/// Writes the pod's own `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
pub fn write_network_files(directory: &Path, pod: &DesiredPod, address: &str) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut hosts = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    hosts.push_str(&format!("{address}\t{}\n", pod.hostname));
    for (ip, names) in &pod.host_aliases {
        hosts.push_str(&format!("{ip}\t{}\n", names.join("\t")));
    }
    fs::write(directory.join("hosts"), hosts)?;
    fs::write(directory.join("hostname"), format!("{}\n", pod.hostname))?;
    let stub = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let upstream = fs::read_to_string("/run/systemd/resolve/resolv.conf").ok();
    fs::write(directory.join("resolv.conf"), resolv_conf(&stub, upstream.as_deref()))
}

/// A resolver on the machine's loopback is out of a pod's reach; systemd keeps the real ones beside.
fn resolv_conf(own: &str, upstream: Option<&str>) -> String {
    let reachable = |text: &str| {
        text.lines().any(|line| {
            line.trim().strip_prefix("nameserver").is_some_and(|rest| {
                rest.split_whitespace()
                    .next()
                    .and_then(|it| it.parse::<IpAddr>().ok())
                    .is_some_and(|it| !it.is_loopback())
            })
        })
    };
    let chosen = match upstream {
        Some(upstream) if !reachable(own) && reachable(upstream) => upstream,
        _ => own,
    };
    chosen
        .lines()
        .filter(|line| {
            let name_server =
                line.trim().strip_prefix("nameserver").and_then(|rest| rest.split_whitespace().next());
            !name_server.and_then(|it| it.parse::<IpAddr>().ok()).is_some_and(|it| it.is_loopback())
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

/// What every container gets over its image's own files.
pub fn network_mounts(directory: &Path) -> Vec<Mount> {
    ["hosts", "hostname", "resolv.conf"]
        .into_iter()
        .map(|name| Mount {
            source: directory.join(name),
            destination: Path::new("/etc").join(name),
            read_only: false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::lower_pod;

    fn pod(volumes: Value, mounts: Value) -> DesiredPod {
        lower_pod(&json!({"metadata": {"name": "p"}, "spec": {"volumes": volumes, "containers": [
            {"name": "a", "image": "i", "volumeMounts": mounts}]}}))
    }

    fn places(directory: &tempfile::TempDir) -> Places {
        Places { disk: directory.path().join("disk"), memory: directory.path().join("memory") }
    }

    #[test]
    fn files_carry_their_modes_and_stay_in_their_volume() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(&directory);
        let secret = json!({"data": {"key": "c2VjcmV0"}});
        let sources: Sources = [((true, "s".to_owned()), Some(secret))].into();
        let good = pod(
            json!([{"name": "v", "secret": {"secretName": "s", "defaultMode": 256, "items": [{"key": "key", "path": "d/f"}]}}]),
            json!([{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/one", "subPath": "d/f"}]),
        );
        prepare(&good, &sources, &places).unwrap();
        prepare(&good, &sources, &places).unwrap();
        let file = places.memory.join("v/d/f");
        assert_eq!(fs::read(&file).unwrap(), b"secret");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o400);
        let mounts = mounts(&good, &good.containers[0], &places).unwrap();
        assert!(mounts.iter().all(|mount| mount.read_only));
        assert_eq!(mounts[1].source, file);

        let escaping = pod(
            json!([{"name": "v", "secret": {"secretName": "s", "items": [{"key": "key", "path": "../x"}]}}]),
            json!([]),
        );
        assert_eq!(
            prepare(&escaping, &sources, &places).unwrap_err(),
            "volume v: `../x` is not a relative path without `..`"
        );
        let missing = pod(json!([{"name": "v", "configMap": {"name": "m"}}]), json!([]));
        assert_eq!(prepare(&missing, &sources, &places).unwrap_err(), "volume v: configmap \"m\" not found");
        let optional = pod(json!([{"name": "v", "configMap": {"name": "m", "optional": true}}]), json!([]));
        prepare(&optional, &sources, &places).unwrap();
    }

    #[test]
    fn a_link_in_a_writable_volume_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let pod = pod(
            json!([{"name": "v", "emptyDir": {}}]),
            json!([{"name": "v", "mountPath": "/v", "subPath": "x"}]),
        );
        assert!(mounts(&pod, &pod.containers[0], &places(&directory)).unwrap_err().starts_with("subPath x"));
    }

    #[test]
    fn loopback_resolvers_are_replaced() {
        let stub = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n";
        let upstream = "nameserver 192.168.1.1\nsearch lan\n";
        assert_eq!(resolv_conf(stub, Some(upstream)), upstream);
        assert_eq!(resolv_conf(stub, None), "options edns0\nsearch lan\n");
        assert_eq!(resolv_conf(upstream, Some("nameserver 9.9.9.9\n")), upstream);
    }
}
