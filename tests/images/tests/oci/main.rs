//! `naru oci` as other tools use a runtime, beside runc on the same bundle; and the ways out of a container that
//! other runtimes have had, each with a harmless marker.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use naru_image_tests::harness::{PATIENCE, busybox, naru_binary, text};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

/// A bundle with a static busybox, and a state directory for each runtime.
struct Bundle {
    dir: tempfile::TempDir,
}

impl Bundle {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
        let bin = dir.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(busybox(), bin.join("busybox")).unwrap();
        for name in
            ["sh", "cat", "ls", "id", "echo", "sleep", "grep", "mkdir", "touch", "head", "tty", "stty", "pwd"]
        {
            symlink("busybox", bin.join(name)).unwrap();
        }
        let it = Self { dir };
        let output = it.naru(&["spec", "--bundle", &it.path("").display().to_string()]);
        assert!(output.status.success(), "{}", text(&output));
        it.change(|config| {
            config["process"]["terminal"] = false.into();
            config["process"]["env"] = json!(["PATH=/bin"]);
            config["root"]["readonly"] = false.into();
        });
        it
    }

    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.dir.path().to_owned() } else { self.dir.path().join(name) }
    }

    fn change(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.path("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        fs::write(&path, config.to_string()).unwrap();
    }

    fn command(&self, script: &str) {
        self.change(|config| config["process"]["args"] = json!(["sh", "-c", script]));
    }

    fn with(&self, program: &Path, more: &[&str], args: &[&str]) -> Command {
        let mut command = Command::new(program);
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        command.args(more).arg("--root").arg(self.path(&format!("state-{name}"))).args(args);
        command.current_dir(self.dir.path());
        command
    }

    fn naru_command(&self, args: &[&str]) -> Command {
        self.with(&naru_binary(), &["oci"], args)
    }

    fn naru(&self, args: &[&str]) -> Output {
        self.naru_command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// As [`Bundle::naru`], for a container that stays and would hold our pipes open: its output goes to a file.
    fn naru_leaving(&self, args: &[&str]) -> Output {
        let file = self.path("output");
        let out = fs::File::create(&file).unwrap();
        let mut command = self.naru_command(args);
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let status = command.status().unwrap();
        Output { status, stdout: fs::read(&file).unwrap(), stderr: Vec::new() }
    }

    fn runc(&self, args: &[&str]) -> Output {
        self.with(Path::new("runc"), &[], args).stdin(Stdio::null()).output().unwrap()
    }

    fn state(&self, id: &str) -> Value {
        let output = self.naru(&["state", id]);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Starts a container that stays, in the background.
    fn stay(&self, id: &str) -> Child {
        self.command("touch /up; exec sleep 600");
        let child =
            self.naru_command(&["run", id]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        self.wait("the container to be up", || self.path("rootfs/up").exists());
        child
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for line in text(&self.naru(&["list", "-q"])).lines() {
            self.naru(&["delete", "--force", line]);
        }
    }
}

#[track_caller]
fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_container_sees_what_runc_shows_it() {
    let bundle = Bundle::new();
    // Docker's kind of profile: a default error, permissions, one with a condition, another error for one call.
    let allowed = [
        "read",
        "write",
        "open",
        "openat",
        "close",
        "execve",
        "exit_group",
        "brk",
        "mmap",
        "munmap",
        "fork",
        "vfork",
        "clone",
        "wait4",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "ioctl",
        "fcntl",
        "dup",
        "dup2",
        "stat",
        "fstat",
        "lstat",
        "newfstatat",
        "getdents64",
        "getpid",
        "getppid",
        "getuid",
        "getgid",
        "geteuid",
        "getegid",
        "getgroups",
        "setuid",
        "setgid",
        "setgroups",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "mprotect",
        "getrandom",
        "readlink",
        "readlinkat",
        "uname",
        "getcwd",
        "chdir",
        "access",
        "pipe",
        "pipe2",
        "lseek",
        "capset",
        "capget",
        "prctl",
        "umask",
        "statfs",
        "faccessat",
        "faccessat2",
        "exit",
        "nanosleep",
        "clock_nanosleep",
        "futex",
        "kill",
        "tgkill",
        "gettid",
        "sysinfo",
        "sendfile",
        "poll",
        "close_range",
        "sigaltstack",
        "madvise",
        "getpgrp",
        "setpgid",
        "writev",
        "readv",
        "pread64",
        "mremap",
        "epoll_create1",
        "unlink",
        "seccomp",
        "setresuid",
        "setresgid",
        "setsid",
        "fchdir",
        "sched_getaffinity",
        "membarrier",
        "fstatfs",
        "openat2",
        "fadvise64",
        "tkill",
        "execveat",
        "restart_syscall",
        "rt_sigtimedwait",
        "epoll_ctl",
        "epoll_pwait",
        "eventfd2",
        "getdents",
        "getrlimit",
        "setrlimit",
        "time",
        "gettimeofday",
        "clock_gettime",
        "statx",
    ];
    bundle.change(|config| {
        config["process"]["noNewPrivileges"] = false.into();
        config["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 18});
        config["process"]["env"].as_array_mut().unwrap().push("WHO=a b".into());
        config["process"]["cwd"] = "/work".into();
        config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 256}]);
        config["hostname"] = "boat".into();
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"destination": "/work", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "mode=1777", "size=1m"]}));
        config["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "0"});
        config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [
                {"names": allowed.to_vec(), "action": "SCMP_ACT_ALLOW"},
                {"names": ["no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]});
    });
    bundle.command(
        "id; echo $WHO; pwd; cat /proc/sys/kernel/hostname; umask; ulimit -n; ulimit -Hn; \
         grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; \
         grep -E ' /(work|proc|dev|sys|dev/shm|dev/pts|dev/mqueue) ' /proc/self/mounts | grep -v cgroup; \
         cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /dev; ls /proc/self/fd; ls -d /proc/acpi; cat /proc/keys; \
         mkdir /work/x; touch /sys/x; exit 3",
    );
    let (ours, theirs) = (bundle.naru(&["run", "same"]), bundle.runc(&["run", "same"]));
    let lines = |output: &Output| -> Vec<String> {
        // Sizes and options of mounts are written in another order by other kernels' tools; what counts is the set.
        let sorted = |it: &str| match it.split(' ').collect::<Vec<_>>()[..] {
            [source, target, kind, options, _, _] if target.starts_with('/') => {
                let mut options: Vec<&str> = options.split(',').collect();
                options.sort_unstable();
                format!("{source} {target} {kind} {}", options.join(","))
            }
            _ => it.to_owned(),
        };
        text(output).lines().map(sorted).collect()
    };
    assert_eq!(lines(&ours), lines(&theirs));
    assert_eq!((ours.status.code(), theirs.status.code()), (Some(3), Some(3)));
    assert!(text(&ours).contains("Function not implemented"), "the profile's own errno: {}", text(&ours));
}

#[test]
fn the_life_of_a_container_is_that_of_the_specification() {
    let bundle = Bundle::new();
    bundle.command("touch /began; exec sleep 600");
    let log = bundle.path("hook.log");
    let hook = bundle.path("hook.sh");
    fs::write(
        &hook,
        format!("#!/bin/sh\necho $1 $(cat | grep -o '\"status\":\"[a-z]*\"') >> {}\n", log.display()),
    )
    .unwrap();
    done(Command::new("chmod").arg("755").arg(&hook).output().unwrap());
    bundle.change(|config| {
        let hook = |name: &str| json!([{"path": hook, "args": ["hook.sh", name]}]);
        config["hooks"] = json!({"createRuntime": hook("createRuntime"), "poststart": hook("poststart"),
                                 "poststop": hook("poststop")});
        config["annotations"] = json!({"who": "test"});
        config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    });
    let pid_file = bundle.path("pid");
    let create = ["create", "--pid-file", &pid_file.display().to_string(), "life"];
    done(bundle.naru_leaving(&create));
    let state = bundle.state("life");
    assert_eq!((&state["status"], &state["annotations"]["who"]), (&"created".into(), &"test".into()));
    assert_eq!(state["bundle"], bundle.path("").canonicalize().unwrap().display().to_string());
    assert_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file).unwrap());
    assert!(!bundle.path("rootfs/began").exists(), "it waits");
    let again = bundle.naru_leaving(&["create", "life"]);
    assert!(!again.status.success() && text(&again).contains("exists already"), "{}", text(&again));
    done(bundle.naru(&["start", "life"]));
    bundle.wait("the program to begin", || bundle.path("rootfs/began").exists());
    assert_eq!(bundle.state("life")["status"], "running");
    let twice = bundle.naru(&["start", "life"]);
    assert!(!twice.status.success() && text(&twice).contains("is running"), "{}", text(&twice));
    let early = bundle.naru(&["delete", "life"]);
    assert!(!early.status.success() && text(&early).contains("--force"), "{}", text(&early));

    let output = bundle.naru(&[
        "exec",
        "-e",
        "X=y",
        "--cwd",
        "/bin",
        "-u",
        "7:8",
        "life",
        "sh",
        "-c",
        "id; pwd; echo $X --log; exit 9",
    ]);
    assert_eq!(output.status.code(), Some(9));
    let said = text(&output);
    assert!(said.contains("uid=7 gid=8") && said.contains("/bin\ny --log"), "{said}");
    let pids: Vec<i32> =
        serde_json::from_str(&done(bundle.naru(&["ps", "--format", "json", "life"]))).unwrap();
    assert_eq!(json!(pids), json!([state["pid"]]));
    assert!(done(bundle.naru(&["ps", "life"])).contains("sleep 600"));
    let listed: Value = serde_json::from_str(&done(bundle.naru(&["list", "--format", "json"]))).unwrap();
    assert_eq!((&listed[0]["id"], &listed[0]["status"]), (&"life".into(), &"running".into()));

    done(bundle.naru(&["pause", "life"]));
    assert_eq!(bundle.state("life")["status"], "paused");
    done(bundle.naru(&["resume", "life"]));
    done(bundle.naru(&["kill", "life", "KILL"]));
    bundle.wait("its end", || bundle.state("life")["status"] == "stopped");
    assert_eq!(bundle.state("life")["pid"], 0);
    done(bundle.naru(&["delete", "life"]));
    let gone = bundle.naru(&["state", "life"]);
    assert!(
        !gone.status.success() && text(&gone).contains("there is no container `life`"),
        "{}",
        text(&gone)
    );
    done(bundle.naru(&["delete", "--force", "life"]));
    let hooks = fs::read_to_string(&log).unwrap();
    let order: Vec<&str> = hooks.lines().filter_map(|it| it.split(' ').next()).collect();
    assert_eq!(order, ["createRuntime", "poststart", "poststop"], "{hooks}");

    for (args, word) in
        [(&["checkpoint", "x"][..], "not checkpointed"), (&["--systemd-cgroup", "list"], "systemd")]
    {
        let refused = bundle.naru(args);
        assert!(!refused.status.success() && text(&refused).contains(word), "{}", text(&refused));
    }
    let log = bundle.path("log.json");
    let args = ["--log", &log.display().to_string(), "--log-format", "json", "start", "none"];
    assert!(!bundle.naru(&args).status.success());
    let line: Value = serde_json::from_str(fs::read_to_string(log).unwrap().trim()).unwrap();
    assert!(line["level"] == "error" && line["msg"].as_str().unwrap().contains("none"), "{line}");
    let features: Value = serde_json::from_str(&done(bundle.naru(&["features"]))).unwrap();
    assert!(features["linux"]["seccomp"]["enabled"] == true && features["ociVersionMax"].is_string());
}

#[test]
fn a_terminal_is_one() {
    let bundle = Bundle::new();
    bundle.change(|config| config["process"]["terminal"] = true.into());
    bundle.command("tty; stty size; exit 4");
    let binary = naru_binary();
    let line = format!(
        "stty cols 91 rows 17; {} oci --root {} run tty",
        binary.display(),
        bundle.path("state-naru").display()
    );
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .current_dir(bundle.dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = text(&output).replace('\r', "");
    assert!(said.contains("/dev/pts/0\n17 91\n") && output.status.code() == Some(4), "{said}");
}

#[test]
fn root_of_a_user_namespace_is_nobody_outside() {
    let bundle = Bundle::new();
    bundle.change(|config| {
        let linux = &mut config["linux"];
        linux["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        linux["uidMappings"] = json!([{"containerID": 0, "hostID": 300_000, "size": 65_536}]);
        linux["gidMappings"] = linux["uidMappings"].clone();
        // What belongs to the machine's root cannot be entered by the mapped one otherwise.
        config["mounts"].as_array_mut().unwrap().retain(|it| it["destination"] != "/dev/mqueue");
    });
    done(Command::new("chown").args(["-R", "300000:300000"]).arg(bundle.path("rootfs")).output().unwrap());
    done(Command::new("chmod").arg("755").arg(bundle.path("")).output().unwrap());
    bundle.command("id; cat /proc/self/uid_map; touch /made; cat /proc/self/setgroups");
    let said = done(bundle.naru(&["run", "user"]));
    assert!(said.contains("uid=0") && said.contains("300000"), "{said}");
    let owner = std::os::unix::fs::MetadataExt::uid(&bundle.path("rootfs/made").metadata().unwrap());
    assert_eq!(owner, 300_000);
}

// ---- ways out

#[test]
fn the_runtimes_program_cannot_be_overwritten() {
    let bundle = Bundle::new();
    symlink("/proc/self/exe", bundle.path("rootfs/self")).unwrap();
    // So that the runtime's own program can run inside, as the known attack has it.
    let libraries = text(&Command::new("ldd").arg(naru_binary()).output().unwrap());
    for path in libraries.split_whitespace().filter(|it| it.starts_with('/')) {
        let to = bundle.path("rootfs").join(&path[1..]);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
    let sum = || done(Command::new("sha256sum").arg(naru_binary()).output().unwrap());
    let before = sum();
    let mut container = bundle.stay("victim");
    // It becomes the runtime's program and stays in it, because nobody reads what it writes.
    let mut first = bundle
        .naru_command(&["exec", "victim", "/self", "completions", "bash"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let attack = r#"
        p=
        while [ -z "$p" ]; do
          for d in /proc/[0-9]*; do case "$(cat $d/cmdline)" in /self*) p=${d#/proc/};; esac; done
        done
        exec 3</proc/$p/exe
        touch /held
        while [ -d /proc/$p ]; do sleep 0.1; done
        if (echo marker > /proc/self/fd/3); then echo OVERWRITTEN; fi"#;
    let second = bundle
        .naru_command(&["exec", "victim", "sh", "-c", attack])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    bundle.wait("the attacker to hold the program", || bundle.path("rootfs/held").exists());
    let mut all = Vec::new();
    first.stdout.take().unwrap().read_to_end(&mut all).unwrap();
    first.wait().unwrap();
    let said = text(&second.wait_with_output().unwrap());
    assert!(!said.contains("OVERWRITTEN") && said.contains("Read-only"), "{said}");
    assert_eq!(sum(), before);
    bundle.naru(&["kill", "victim", "KILL"]);
    container.wait().unwrap();
}

#[test]
fn nothing_of_the_caller_leaks_in_and_no_link_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    let marker = outside.path().join("marker");
    // A descriptor that the caller left open (CVE-2024-21626).
    let bundle = Bundle::new();
    bundle.command("ls /proc/self/fd");
    let line = format!(
        "exec 9</; {} oci --root {} run fd",
        naru_binary().display(),
        bundle.path("state-naru").display()
    );
    let output = Command::new("sh").args(["-c", &line]).current_dir(bundle.dir.path()).output().unwrap();
    assert_eq!(
        done(output).split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"],
        "3 is the listing itself"
    );
    for number in 3..12 {
        let bundle = Bundle::new();
        bundle.change(|config| config["process"]["cwd"] = format!("/proc/self/fd/{number}").into());
        bundle.command("ls ../../../../../../etc/hostname ../../../../../../../root 2>&1; pwd");
        let output = bundle.naru(&["run", "cwd"]);
        let said = text(&output);
        assert!(!output.status.success() || !said.contains("hostname\n"), "{number}: {said}");
    }
    // /proc is a link (CVE-2019-19921), /dev is one (CVE-2026-41579), a mount's way is one (CVE-2021-30465).
    for (link, target) in
        [("proc", "/tmp"), ("dev", &*marker.display().to_string()), ("way", &*marker.display().to_string())]
    {
        let bundle = Bundle::new();
        symlink(target, bundle.path("rootfs").join(link)).unwrap();
        bundle.change(|config| {
            if link == "way" {
                config["mounts"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({"destination": "/way/in", "type": "tmpfs",
                    "source": "tmpfs", "options": ["nosuid"]}));
            }
        });
        bundle.command("echo ran");
        let output = bundle.naru(&["run", "link"]);
        assert!(link != "proc" || !output.status.success(), "a /proc that is a link: {}", text(&output));
        assert!(!marker.exists(), "{link}: something was made outside: {}", text(&output));
    }
    // What masks a path must be the real /dev/null (CVE-2025-31133).
    let bundle = Bundle::new();
    fs::create_dir_all(bundle.path("rootfs/dev")).unwrap();
    fs::write(&marker, "outside").unwrap();
    symlink(&marker, bundle.path("rootfs/dev/null")).unwrap();
    bundle.change(|config| {
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|it| !it["destination"].as_str().unwrap().starts_with("/dev"))
    });
    bundle.command("cat /proc/kcore 2>&1 | head -c 10; echo x > /dev/null; cat /proc/keys");
    let output = bundle.naru(&["run", "mask"]);
    assert_eq!(fs::read_to_string(&marker).unwrap(), "outside", "{}", text(&output));
}

#[test]
fn what_cannot_be_run_says_why_and_leaves_nothing() {
    let bundle = Bundle::new();
    let cases: [(fn(&mut Value), &str); 4] = [
        (|it| it["process"]["args"] = json!(["/bin/none"]), "/bin/none"),
        (|it| it["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY"),
        (|it| it["ociVersion"] = "9.0".into(), "version"),
        (|it| it["root"]["path"] = "none".into(), "none"),
    ];
    let path = bundle.path("config.json");
    let good = fs::read(&path).unwrap();
    for (edit, word) in cases {
        fs::write(&path, &good).unwrap();
        bundle.command("true");
        bundle.change(edit);
        let output = bundle.naru(&["run", "bad"]);
        assert!(!output.status.success() && text(&output).contains(word), "{word}: {}", text(&output));
        assert_eq!(text(&bundle.naru(&["list", "-q"])), "", "{word}");
    }
    fs::write(&path, "{").unwrap();
    let output = bundle.naru(&["run", "bad"]);
    assert!(!output.status.success() && text(&output).contains("config.json"), "{}", text(&output));
    for id in ["../x", "", "a/b"] {
        fs::write(&path, &good).unwrap();
        assert!(!bundle.naru(&["run", id]).status.success(), "{id}");
    }
}
