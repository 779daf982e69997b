//! Git over SSH: Debian's sshd with the settings that `naru ssh config` prints, keys of ssh-keygen, the real git.

use naru_actions_tests::harness::{Daemon, Repository, naru_binary, text};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// sshd in a directory of root's own: what sshd runs may be in no directory that others write to.
struct Sshd {
    dir: tempfile::TempDir,
    process: Child,
    port: u16,
}

impl Sshd {
    fn start(daemon: &Daemon) -> Self {
        let dir = tempfile::Builder::new().prefix("naru-ssh-").tempdir_in("/run").unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir_all("/run/sshd").unwrap();
        let at = |name: &str| dir.path().join(name);
        keygen(&at("host"));
        let asks = format!("#!/bin/sh\nexec {} \"$@\"\n", naru_binary().display());
        std::fs::write(at("naru"), asks).unwrap();
        std::fs::set_permissions(at("naru"), PermissionsExt::from_mode(0o755)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = text(&daemon.naru(&["ssh", "config", "--port", &port.to_string()]));
        let config =
            config.replace("/etc/ssh/ssh_host_ed25519_key", &at("host").display().to_string()).replace(
                &format!("AuthorizedKeysCommand {}", naru_binary().canonicalize().unwrap().display()),
                &format!("AuthorizedKeysCommand {}", at("naru").display()),
            );
        std::fs::write(at("config"), format!("{config}ListenAddress 127.0.0.1\n")).unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(at("config")).stdin(Stdio::null()).stderr(log);
        let it = Self { process: command.spawn().unwrap(), dir, port };
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(30), "sshd does not listen: {}", it.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        it
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn ssh(&self, key: &Path) -> String {
        format!(
            "ssh -F none -i {} -o IdentitiesOnly=yes -o IdentityAgent=none -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes",
            key.display()
        )
    }

    /// git with a key.
    fn git(&self, repository: &Repository, key: &Path, args: &[&str]) -> Output {
        repository.command(args).env("GIT_SSH_COMMAND", self.ssh(key)).output().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("ssh://root@127.0.0.1:{}/{path}", self.port)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- sshd's log\n{}", self.log());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn keygen(at: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at).status();
    assert!(made.unwrap().success());
}

fn add(daemon: &Daemon, name: &str, key: &Path, more: &[&str]) {
    let key = std::fs::File::open(key.with_extension("pub")).unwrap();
    let mut command = Command::new(naru_binary());
    command.arg("--data-dir").arg(daemon.data_dir()).args(["ssh", "add", name]).args(more).stdin(key);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn who_has_a_key_pushes_and_fetches_over_ssh_and_does_nothing_else() {
    let daemon = Daemon::start();
    let sshd = Sshd::start(&daemon);
    let key = |name: &str| -> PathBuf {
        let at = sshd.dir.path().join(name);
        keygen(&at);
        at
    };
    let (ann, reader, stranger) = (key("ann"), key("reader"), key("stranger"));
    add(&daemon, "ann", &ann, &[]);
    add(&daemon, "reader", &reader, &["--read-only", "--repository", "shop"]);

    let shop = Repository::empty(&daemon, "shop");
    shop.write(
        ".github/workflows/ci.yml",
        "on: push\njobs: {a: {runs-on: ubuntu-latest, steps: [{run: echo came over ssh}]}}\n",
    );
    shop.commit("the start");
    let url = sshd.url("shop.git");
    // The hook's words come to the pusher, as over HTTP.
    let pushed = sshd.git(&shop, &ann, &["push", &url, "main"]);
    assert!(pushed.status.success() && text(&pushed).contains("came over ssh"), "{}", text(&pushed));
    assert_eq!(daemon.get("runs")[0]["status"]["phase"], "Succeeded");
    for (key, url) in [(&ann, sshd.url("naru/shop")), (&reader, url.clone())] {
        let listed = sshd.git(&shop, key, &["-c", "protocol.version=2", "ls-remote", &url]);
        assert!(listed.status.success() && text(&listed).contains(&shop.head()), "{}", text(&listed));
    }

    shop.commit("more");
    let refused = |key: &Path, url: &str, why: &str| {
        let output = sshd.git(&shop, key, &["push", url, "main"]);
        assert!(!output.status.success() && text(&output).contains(why), "{why}: {}", text(&output));
    };
    refused(&reader, &url, "the key `reader` only fetches");
    refused(&reader, &sshd.url("other.git"), "does not open `other`");
    refused(&stranger, &url, "Permission denied");
    refused(&ann, &sshd.url("../etc"), "a repository is named with");
    // No shell, no other program, no way through.
    for command in ["id", "git-upload-archive 'shop.git'", "git-upload-pack 'shop.git'; id", ""] {
        let mut ssh = Command::new("sh");
        ssh.args(["-c", &format!("{} -p {} root@127.0.0.1 \"$0\"", sshd.ssh(&ann), sshd.port), command]);
        let output = ssh.stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success() && !text(&output).contains("uid="), "{command}: {}", text(&output));
    }
    assert!(daemon.naru(&["ssh", "remove", "ann"]).status.success());
    refused(&ann, &url, "Permission denied");
    let listed = text(&daemon.naru(&["ssh", "list"]));
    assert!(
        listed.contains("reader") && listed.contains("fetches from shop") && !listed.contains("ann "),
        "{listed}"
    );
    drop(sshd);
    daemon.destroy();
}
