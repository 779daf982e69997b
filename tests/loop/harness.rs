//! A daemon, a repository and the clients that people have, for tests.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The longest that anything may take before a test gives up. Generous: nothing here measures time.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// By then whatever only had to finish has finished.
const LEFT_WITHIN: Duration = Duration::from_secs(10);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// How many seeds a test of faults tries: as many as `NARU_SEEDS` says, or its own.
pub fn seeds(own: u64) -> u64 {
    std::env::var("NARU_SEEDS").ok().and_then(|it| it.parse().ok()).unwrap_or(own)
}

/// A small generator of our own, so that a seed means the same moment everywhere.
pub fn random(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    for _ in 0..4 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    x
}

/// The binary under test, which stands beside the test's own directory.
pub fn naru_binary() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    let binary = exe.parent().and_then(Path::parent).expect("target/debug/deps/..").join("naru");
    assert!(binary.exists(), "{} is missing: run `cargo build -p naru` first", binary.display());
    binary
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository is there")
}

pub struct Daemon {
    child: Child,
    args: Vec<String>,
    pub dir: tempfile::TempDir,
    pub endpoints: Value,
    bridge: String,
    destroyed: bool,
}

impl Daemon {
    pub fn start() -> Self {
        Self::start_in(tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap(), &[])
    }

    /// Starts with a directory of the caller's choice, such as a small file system.
    pub fn start_in(dir: tempfile::TempDir, more: &[&str]) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::SeqCst) + 1;
        // Two test processes on one machine must not share a bridge, so the pid is part of it.
        let unique = (std::process::id() * 31 + number * 7) % 10_000;
        let bridge = format!("nt{unique}");
        let [http, api, gateway, gateway_tls] = free_ports();
        let mut args: Vec<String> = [
            "--data-dir",
            &dir.path().join("data").display().to_string(),
            "--log",
            "info",
            "serve",
            "--listen",
            &format!("127.0.0.1:{http}"),
            "--api",
            &format!("127.0.0.1:{api}"),
            "--gateway",
            &format!("127.0.0.1:{gateway}"),
            "--gateway-tls",
            &format!("127.0.0.1:{gateway_tls}"),
            "--bridge",
            &bridge,
            "--subnet",
            &format!("10.{}.{}.0/24", 100 + unique / 256, unique % 256),
            "--image",
            "rust:1=host",
            "--backend-header",
            "--print-endpoints",
        ]
        .map(str::to_owned)
        .to_vec();
        args.extend(more.iter().map(|it| (*it).to_owned()));
        let (child, endpoints) = spawn(&args, dir.path());
        Self { child, args, dir, endpoints, bridge, destroyed: false }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn http(&self) -> String {
        self.endpoints["http"].as_str().unwrap().to_owned()
    }

    /// The machine as pods see it.
    pub fn pod_host(&self) -> String {
        let subnet = self.args.iter().skip_while(|it| *it != "--subnet").nth(1).unwrap();
        format!("{}1", subnet.split_once("0/").unwrap().0)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("naru.log")).unwrap_or_default()
    }

    pub fn push_token(&self) -> String {
        std::fs::read_to_string(self.data_dir().join("push-token")).unwrap().trim().to_owned()
    }

    pub fn git_url(&self, repository: &str, token: &str) -> String {
        format!("{}/git/{repository}.git", self.http().replace("http://", &format!("http://naru:{token}@")))
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        (self.child, self.endpoints) = spawn(&self.args, self.dir.path());
    }

    /// SIGTERM, as a service manager stops it; returns how long it took.
    pub fn stop(&mut self) -> Duration {
        let began = Instant::now();
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
        began.elapsed()
    }

    /// Stops and removes everything, and checks that nothing is left on the machine.
    pub fn destroy(mut self) {
        self.remove();
        // A program that a killed daemon had just asked (git, say) ends by itself.
        let began = Instant::now();
        let mut left = leftovers(&self.bridge, &self.dir.path().display().to_string());
        while !left.is_empty() && began.elapsed() < LEFT_WITHIN {
            std::thread::sleep(Duration::from_millis(50));
            left = leftovers(&self.bridge, &self.dir.path().display().to_string());
        }
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    fn remove(&mut self) {
        if std::mem::replace(&mut self.destroyed, true) {
            return;
        }
        if self.child.try_wait().ok().flatten().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let output = Command::new(naru_binary())
            .args(["--data-dir", &self.data_dir().display().to_string(), "destroy"])
            .output()
            .unwrap();
        if !output.status.success() {
            eprintln!("destroy: {}", text(&output));
        }
    }

    /// Runs one of naru's own commands as a client of this daemon.
    pub fn naru(&self, args: &[&str]) -> Output {
        Command::new(naru_binary())
            .args(["--data-dir", &self.data_dir().display().to_string()])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs the stock kubectl.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        self.kubectl_with_input(args, "")
    }

    pub fn kubectl_with_input(&self, args: &[&str], input: &str) -> Output {
        kubectl(self.endpoints["kubeconfig"].as_str().unwrap(), args, input)
    }

    /// The objects of a kind, as kubectl prints them.
    pub fn get(&self, kind: &str) -> Vec<Value> {
        let output = self.kubectl(&["get", kind, "-o", "json"]);
        assert!(output.status.success(), "{}", text(&output));
        let mut list: Value = serde_json::from_slice(&output.stdout).unwrap();
        match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        }
    }

    /// Waits until the objects of a kind are as wanted.
    pub fn wait_for<T>(&self, what: &str, kind: &str, done: impl Fn(&[Value]) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            let objects = self.get(kind);
            if let Some(it) = done(&objects) {
                return it;
            }
            if began.elapsed() > PATIENCE {
                panic!("{what} did not come true; {kind}: {objects:#?}\nlog: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The release of a number, once it has come to an end.
    pub fn wait_for_release(&self, number: u64) -> Value {
        self.wait_for(&format!("the end of release {number}"), "releases", |all| {
            all.iter()
                .find(|it| {
                    let phase = it["status"]["phase"].as_str().unwrap_or("Pending");
                    it["spec"]["number"] == number && !matches!(phase, "Pending" | "Progressing")
                })
                .cloned()
        })
    }

    /// One request through the gateway with curl: status and body.
    pub fn curl(&self, host: &str, path: &str) -> (u16, String) {
        let output = Command::new("curl")
            .args([
                "-s",
                "--noproxy",
                "*",
                "-m",
                "10",
                "-w",
                "\n%{http_code}",
                "-H",
                &format!("Host: {host}"),
            ])
            .arg(format!("{}{path}", self.endpoints["gateway"].as_str().unwrap()))
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = out.rsplit_once('\n').unwrap_or(("", "0"));
        (code.trim().parse().unwrap_or(0), body.to_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- naru's log\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        self.remove();
    }
}

/// A program that scripts/setup.sh installs for the tests.
pub fn tool(name: &str) -> PathBuf {
    let program = root().join(".tools/bin").join(name);
    assert!(program.exists(), "{} is missing: run scripts/setup.sh", program.display());
    program
}

/// The stock kubectl, the one of scripts/setup.sh if it is there.
pub fn kubectl(kubeconfig: &str, args: &[&str], input: &str) -> Output {
    use std::io::Write;
    let ours = root().join(".tools/bin/kubectl");
    let program = if ours.exists() { ours } else { "kubectl".into() };
    let home = Path::new(kubeconfig).parent().unwrap();
    let mut child = Command::new(program)
        .args(args)
        .env("KUBECONFIG", kubeconfig)
        .env("HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is installed by scripts/setup.sh");
    // A client that refuses its arguments does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn spawn(args: &[String], dir: &Path) -> (Child, Value) {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("naru.log")).unwrap();
    let mut child = Command::new(naru_binary())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let endpoints = serde_json::from_str(&line).unwrap_or_else(|_| {
        let log = std::fs::read_to_string(dir.join("naru.log")).unwrap_or_default();
        panic!("naru did not start: {log}")
    });
    (child, endpoints)
}

fn free_ports() -> [u16; 4] {
    [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").unwrap()).map(|it| it.local_addr().unwrap().port())
}

/// Everything on the machine that still speaks of a daemon: mounts, links, processes, nftables tables.
pub fn leftovers(bridge: &str, dir: &str) -> Vec<String> {
    let mut left = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    left.extend(
        mounts.lines().filter(|it| it.contains(&format!("{dir}/data/"))).map(|it| format!("mount {it}")),
    );
    let links = Command::new("ip").args(["-o", "link"]).output().unwrap();
    left.extend(text(&links).lines().filter(|it| it.contains(bridge)).map(|it| format!("link {it}")));
    let tables = Command::new("nft").args(["list", "tables"]).output();
    if let Ok(tables) = tables {
        left.extend(
            text(&tables).lines().filter(|it| it.ends_with(&format!("_{bridge}"))).map(str::to_owned),
        );
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&format!("{dir}/data")) {
            left.push(format!("process {command}"));
        }
    }
    left
}

/// Standard output and error together.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A git repository with a small app: busybox's web server on a page.
pub struct Repository {
    pub dir: tempfile::TempDir,
}

pub const WORKFLOW: &str = "on: push
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: grep -q version index.html
";

pub const DOCKERFILE: &str = "FROM scratch
COPY busybox /bin/busybox
COPY index.html /www/index.html
EXPOSE 8080
CMD [\"/bin/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]
";

pub const APP: &str = "app: page
services:
  web:
    build: .
    port: 8080
    host: page.test
    replicas: 1
    health: /index.html
";

impl Repository {
    /// The app, committed, with the daemon as its remote `naru`.
    pub fn page(daemon: &Daemon) -> Self {
        let it = Self { dir: tempfile::Builder::new().prefix("naru-repo-").tempdir().unwrap() };
        it.git(&["init", "--quiet", "--initial-branch=main"]);
        it.write(".github/workflows/ci.yml", WORKFLOW);
        it.write("Dockerfile", DOCKERFILE);
        it.write("naru.yaml", APP);
        it.write("index.html", "version 1\n");
        std::fs::copy(busybox(), it.dir.path().join("busybox")).unwrap();
        it.commit("the first version");
        it.git(&["remote", "add", "naru", &daemon.git_url("page", &daemon.push_token())]);
        it
    }

    /// A repository with nothing in it yet, and the daemon as its remote `naru`.
    pub fn empty(daemon: &Daemon, name: &str) -> Self {
        let it = Self { dir: tempfile::Builder::new().prefix("naru-repo-").tempdir().unwrap() };
        it.git(&["init", "--quiet", "--initial-branch=main"]);
        it.git(&["remote", "add", "naru", &daemon.git_url(name, &daemon.push_token())]);
        it
    }

    pub fn write(&self, path: &str, content: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn commit(&self, message: &str) {
        self.git(&["add", "--all"]);
        self.git(&[
            "-c",
            "user.name=T",
            "-c",
            "user.email=t@example.org",
            "commit",
            "--quiet",
            "--allow-empty",
            "-m",
            message,
        ]);
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(args).current_dir(self.dir.path()).env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null());
        command
    }

    pub fn git(&self, args: &[&str]) {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", text(&output));
    }

    /// Pushes main and returns what the terminal showed. A push that never ends fails the test with what
    /// it showed until then.
    pub fn push(&self) -> String {
        let mut command = Command::new("timeout");
        command.args([&PATIENCE.as_secs().to_string(), "git", "push", "naru", "main"]);
        let output = command.current_dir(self.dir.path()).env("GIT_TERMINAL_PROMPT", "0").output().unwrap();
        let shown = text(&output);
        assert!(output.status.success(), "git push: {shown}");
        shown
    }

    pub fn head(&self) -> String {
        text(&self.command(&["rev-parse", "HEAD"]).output().unwrap()).trim().to_owned()
    }
}

/// The static busybox of Debian's busybox-static.
pub fn busybox() -> PathBuf {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(PathBuf::from)
        .find(|it| it.exists())
        .expect("busybox-static is installed by scripts/setup.sh")
}
