//! The stock `docker` with a daemon of its own.

use naru_image_tests::harness::{Daemon, PATIENCE, busybox, text, tool};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

pub struct Docker {
    pub daemon: Daemon,
}

impl Docker {
    /// A daemon, and an image called `busybox` in it.
    pub fn start() -> Self {
        let docker = Self { daemon: Daemon::start() };
        let root = tempfile::tempdir().unwrap();
        let path = |it: &str| root.path().join(it);
        for directory in ["bin", "etc", "tmp", "root"] {
            std::fs::create_dir(path(directory)).unwrap();
        }
        std::fs::copy(busybox(), path("bin/busybox")).unwrap();
        let list = Command::new(busybox()).arg("--list").output().unwrap();
        for name in text(&list).lines().filter(|it| *it != "busybox") {
            std::os::unix::fs::symlink("busybox", path("bin").join(name)).unwrap();
        }
        std::fs::write(path("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
            .unwrap();
        std::fs::write(path("etc/group"), "root:x:0:\napp:x:1000:\n").unwrap();
        // Beside the tree, not in it.
        let place = tempfile::tempdir().unwrap();
        let archive = place.path().join("root.tar");
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(root.path()).arg("-cf").arg(&archive).arg(".");
        assert!(pack.status().unwrap().success());
        docker.ok(&["import", "--change", "CMD [\"sh\"]", &archive.display().to_string(), "busybox"]);
        docker
    }

    pub fn socket(&self) -> PathBuf {
        self.daemon.data_dir().join("docker.sock")
    }

    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        // A client that hangs fails the test with what it showed until then.
        let mut command = Command::new("timeout");
        command
            .args(["-k", "5", &PATIENCE.as_secs().to_string()])
            .arg(tool(program))
            .args(args)
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.daemon.dir.path().join("docker-config"))
            .env("DOCKER_BUILDKIT", "0")
            .env_remove("DOCKER_CONTEXT")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command("docker", args).output().unwrap()
    }

    /// What it printed; the test fails when it failed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "docker {args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// What it said when it failed.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(!output.status.success(), "docker {args:?} should fail: {}", text(&output));
        text(&output)
    }

    pub fn with_input(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.command("docker", args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub fn inspect(&self, name: &str, format: &str) -> String {
        self.ok(&["inspect", "-f", format, name])
    }

    /// Waits for something to come true.
    pub fn until<T>(&self, what: &str, done: impl Fn() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(it) = done() {
                return it;
            }
            assert!(began.elapsed() < PATIENCE, "{what} did not come true: {}", self.ok(&["ps", "-a"]));
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Waits until a container's state is as wanted.
    pub fn until_state(&self, name: &str, format: &str, wanted: &str) {
        self.until(&format!("{format} of {name} = {wanted}"), || {
            (self.inspect(name, format) == wanted).then_some(())
        });
    }

    pub fn curl(&self, port: &str) -> Option<String> {
        let output = Command::new("curl")
            .args(["-s", "--noproxy", "*", "-m", "5", &format!("http://127.0.0.1:{port}/")])
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The port of the machine that leads to one of the container.
    pub fn port(&self, name: &str, inside: &str) -> String {
        self.ok(&["port", name, inside]).lines().next().unwrap().rsplit(':').next().unwrap().to_owned()
    }
}
