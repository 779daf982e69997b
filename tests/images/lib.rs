//! What the tests of images and containers share: the daemon of `naru_loop_tests` and small images made of
//! Debian's static busybox, because no public registry is asked.

pub mod hostile;
pub mod layout;

pub use naru_loop_tests::*;

use harness::{Daemon, busybox, text};

/// Makes the image `busybox` in a daemon's store: Debian's static busybox with a link for each of its programs.
pub fn make_busybox_image(daemon: &Daemon) {
    let context =
        tempfile::Builder::new().prefix("naru-busybox-").tempdir().expect("a directory can be made");
    let bin = context.path().join("root/bin");
    for dir in ["root/bin", "root/etc", "root/tmp"] {
        std::fs::create_dir_all(context.path().join(dir)).expect("a directory can be made");
    }
    std::fs::copy(busybox(), bin.join("busybox")).expect("busybox can be copied");
    let programs = std::process::Command::new(busybox()).arg("--list").output().expect("busybox runs");
    for program in text(&programs).lines().filter(|it| *it != "busybox") {
        std::os::unix::fs::symlink("busybox", bin.join(program)).expect("a link can be made");
    }
    let dockerfile = "FROM scratch\nCOPY root /\nENV PATH=/bin\nCMD [\"sh\"]\n";
    std::fs::write(context.path().join("Dockerfile"), dockerfile).expect("a file can be written");
    let built = daemon.naru(&["build", "-q", "-t", "busybox", &context.path().display().to_string()]);
    assert!(built.status.success(), "{}", text(&built));
}

/// A daemon that may push to its own registry, and that registry's `host:port`.
pub fn daemon_with_registry() -> (Daemon, String) {
    use base64::Engine as _;
    let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().expect("a directory can be made");
    let config = dir.path().join("docker.json");
    let daemon = Daemon::start_in(dir, &["--docker-config", &config.display().to_string()]);
    let host = daemon.http().trim_start_matches("http://").to_owned();
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("naru:{}", daemon.push_token()));
    let text = format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#);
    std::fs::write(config, text).expect("a file can be written");
    (daemon, host)
}

/// A generator that gives the same numbers for the same seed (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    #[expect(clippy::should_implement_trait, reason = "it never ends, and nobody collects it")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        it ^ (it >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}
