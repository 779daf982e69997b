//! Real containers: namespaces, limits, output, exit statuses, and that nothing is left behind.
//!
//! Needs root and busybox-static. Without the test harness, because the helpers re-execute this very
//! program and must be its first lines; `cargo test -p naru-runtime containers` runs it whole, an
//! argument picks cases by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use naru_runtime::{
    ContainerConfig, ContainerStatus, ExecConfig, Exit, HelperProgram, HostRoot, Mount, RootFs, Sandbox,
    SandboxConfig, StartFailureKind, User, cgroup,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type CaseResult = std::pin::Pin<Box<dyn Future<Output = ()>>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[(&str, fn() -> CaseResult)] = &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

cases![
    output_and_exit_code_are_kept_on_disk,
    limits_and_fences_hold,
    memory_limit_ends_only_the_container,
    containers_of_a_pod_share_the_network_and_nothing_else,
    a_program_that_cannot_start_is_explained,
    the_host_image_hides_secrets_and_keeps_tools,
    mounts_stay_inside_the_root,
    exec_with_pipes_and_with_a_terminal,
    an_exec_that_ends_at_once_keeps_its_code,
    an_attachment_sees_output_and_gives_input,
    the_pods_own_ports_can_be_dialled,
    a_path_below_a_volume_never_leads_out_of_it,
    a_pod_can_share_its_processes_and_set_its_own_settings,
    a_privileged_container_has_the_machine,
    a_program_may_gain_privileges_where_it_is_allowed,
    a_new_daemon_finds_what_happened,
    users_and_working_directories_are_the_images,
    a_bundle_runs_from_start_to_end,
    both_ways_of_starting_look_the_same_inside,
    nothing_is_left_behind,
];

fn main() {
    naru_runtime::maybe_run_helper();
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: containers need root");
        return;
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut failed = 0;
    for (name, case) in CASES {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let since = Instant::now();
        let outcome = std::panic::catch_unwind(|| runtime.block_on(case()));
        println!("test {name} ... {} ({:?})", if outcome.is_ok() { "ok" } else { "FAILED" }, since.elapsed());
        failed += usize::from(outcome.is_err());
    }
    std::process::exit(i32::from(failed > 0));
}

/// One pod on a scratch directory; everything is removed when it goes.
struct Pod {
    sandbox: Sandbox,
    config: SandboxConfig,
    program: HelperProgram,
    ended: bool,
    _directory: tempfile::TempDir,
}

impl Drop for Pod {
    /// A failed case leaves nothing either.
    fn drop(&mut self) {
        if !self.ended {
            let _ = Sandbox::destroy_remains(&self.config.directory);
        }
        cgroup::remove_if_empty(&self.config.shim_cgroup);
    }
}

impl Pod {
    async fn new() -> Pod {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut SandboxConfig)) -> Pod {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory = tempfile::tempdir().expect("a directory");
        let id = format!("test-{}-{number}", std::process::id());
        let mut config = SandboxConfig::new(&id, directory.path().join("pod"), directory.path().join("run"));
        config.hostname = "pod-name".into();
        config.shim_cgroup = format!("/naru/platform/test-{}", std::process::id());
        change(&mut config);
        let program = HelperProgram::new("/proc/self/exe".as_ref()).expect("own program");
        let sandbox = Sandbox::create(&program, &config).await.expect("a sandbox");
        Pod { sandbox, config, program, ended: false, _directory: directory }
    }

    /// A container of busybox that runs a shell script.
    fn shell(&self, id: &str, script: &str) -> ContainerConfig {
        let mut config = ContainerConfig::new(id, RootFs::layers([busybox()]), ["/bin/sh", "-c", script]);
        config.log = Some(self.config.directory.join(format!("logs/{id}.log")));
        config
    }

    async fn run(&self, config: &ContainerConfig) -> (Exit, String) {
        self.sandbox
            .start(config)
            .await
            .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        let exit = self.wait(&config.id).await;
        (exit, self.log(&config.id))
    }

    async fn wait(&self, id: &str) -> Exit {
        let mut watch = self.sandbox.watch().await.expect("a watch");
        loop {
            let state = watch.next().await.expect("an answer").expect("the shim lives");
            if let Some(ContainerStatus::Exited(exit)) = state.get(id) {
                return *exit;
            }
        }
    }

    /// Messages of the log, without time and stream.
    fn log(&self, id: &str) -> String {
        let text =
            fs::read_to_string(self.config.directory.join(format!("logs/{id}.log"))).unwrap_or_default();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
    }

    async fn end(mut self) {
        self.ended = true;
        self.sandbox.shutdown().await.expect("a clean end");
    }
}

fn busybox() -> PathBuf {
    let root = std::env::temp_dir().join("naru-test-busybox");
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        fs::create_dir_all(root.join("bin")).expect("bin");
        fs::create_dir_all(root.join("etc")).expect("etc");
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
            .expect("passwd");
        fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\nweb:x:2000:app\n").expect("group");
        fs::copy("/usr/bin/busybox", root.join("bin/busybox.new")).expect("busybox-static is installed");
        fs::rename(root.join("bin/busybox.new"), root.join("bin/busybox")).expect("busybox");
        for name in [
            "sh", "cat", "ls", "echo", "sleep", "true", "id", "hostname", "ip", "dd", "mkdir", "mount",
            "unshare", "touch", "stat", "mknod", "yes", "head", "tail", "env", "ps", "wc", "httpd", "nc",
            "grep", "stty", "kill", "ln", "pwd", "sed", "sort",
        ] {
            let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(name));
        }
    });
    root
}

async fn output_and_exit_code_are_kept_on_disk() {
    let pod = Pod::new().await;
    let (exit, log) = pod.run(&pod.shell("a-0", "echo out; echo err >&2; printf tail; exit 7")).await;
    assert_eq!((exit.code, exit.signal, exit.out_of_memory), (7, None, false));
    assert!(log.contains("out\n") && log.contains("err\n") && log.contains("tail\n"), "{log}");
    assert!(exit.finished_at_nanoseconds > exit.started_at_nanoseconds);
    let exits = Sandbox::recorded_exits(&pod.config.directory);
    assert_eq!(exits.get("a-0"), Some(&exit));
    // A name is used once: a daemon that forgot cannot run a container twice.
    let again = pod.sandbox.start(&pod.shell("a-0", "true")).await.expect_err("used");
    assert!(
        matches!(again, naru_runtime::Error::Start { source, .. } if source.kind == StartFailureKind::Exists)
    );
    pod.end().await;
}

async fn limits_and_fences_hold() {
    let pod = Pod::new().await;
    let mut config = pod.shell(
        "a-0",
        "grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; hostname; ps | wc -l; ulimit -n
         mount -t tmpfs x /mnt 2>&1; unshare -U true 2>&1; mknod /tmp-disk b 8 0 2>&1; touch /sys/x 2>&1
         cat /proc/kcore | head -c 4 | wc -c; cat /proc/sys/kernel/hostname; echo 1 2>&1 > /proc/sys/kernel/panic
         ls /dev; yes | head -n 1; ls -l /proc/self/fd | wc -l",
    );
    config.memory_bytes_max = Some(64 << 20);
    config.pids_max = 32;
    config.cpu_millis_max = Some(500);
    let (exit, log) = pod.run(&config).await;
    assert_eq!(exit.code, 0, "{log}");
    assert!(log.contains("CapBnd:\t00000000a00425fb"), "Docker's set without MKNOD: {log}");
    assert!(log.contains("NoNewPrivs:\t1") && log.contains("Seccomp:\t2"), "{log}");
    assert!(log.contains("pod-name\n"), "{log}");
    assert!(log.contains("mount: ") && log.contains("unshare: ") && log.contains("mknod: "), "{log}");
    assert!(log.contains("can't create /proc/sys/kernel/panic"), "{log}");
    assert!(log.contains("Read-only file system"), "{log}");
    assert!(log.contains("null\n") && !log.contains("kmsg") && !log.contains("vda"), "{log}");
    pod.end().await;
}

async fn memory_limit_ends_only_the_container() {
    let pod = Pod::new().await;
    let mut config =
        pod.shell("a-0", "dd if=/dev/zero of=/dev/null bs=200M count=1; echo not reached; exec true");
    config.arguments = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"].map(str::to_owned).into();
    config.memory_bytes_max = Some(32 << 20);
    pod.sandbox.start(&pod.shell("b-0", "sleep 100")).await.expect("a neighbour");
    let (exit, log) = pod.run(&config).await;
    assert_eq!((exit.code, exit.signal, exit.out_of_memory), (137, Some(9), true), "{log}");
    let neighbours = pod.sandbox.containers().await.expect("state");
    assert!(matches!(neighbours["b-0"], ContainerStatus::Running(_)));
    let usage = cgroup::usage(&format!("{}/b-0", pod.config.pod_cgroup)).expect("its group");
    assert!(usage.processes >= 1 && usage.memory_bytes > 0, "{usage:?}");
    pod.end().await;
}

async fn containers_of_a_pod_share_the_network_and_nothing_else() {
    let pod = Pod::new().await;
    let sees = "ip link | grep -c lo; ps; cat /dev/shm/note; touch /mine; ls /";
    pod.sandbox
        .start(&pod.shell("a-0", "echo hello > /dev/shm/note; touch /theirs; sleep 100"))
        .await
        .expect("a");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !Path::new(&pod.sandbox.container_directory("a-0").join("upper/theirs")).exists() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (_, log) = pod.run(&pod.shell("b-0", sees)).await;
    assert!(log.contains("hello"), "shared memory is the pod's: {log}");
    assert!(!log.contains("sleep") && !log.contains("theirs"), "processes and files are not: {log}");
    let host = fs::read_link("/proc/self/ns/net").expect("net");
    let theirs = fs::read_link(format!("/proc/{}/ns/net", pod.sandbox.pid())).expect("net");
    assert_ne!(host, theirs);
    pod.end().await;
}

async fn a_program_that_cannot_start_is_explained() {
    let pod = Pod::new().await;
    let kind = |error: naru_runtime::Error| match error {
        naru_runtime::Error::Start { source, .. } => (source.kind, source.message),
        other => panic!("{other}"),
    };
    let mut config = pod.shell("a-0", "");
    config.arguments = vec!["no-such-program".into()];
    let (what, message) = kind(pod.sandbox.start(&config).await.expect_err("missing"));
    assert_eq!(what, StartFailureKind::NotFound);
    assert_eq!(
        message,
        "program not found: `no-such-program` is not in $PATH (/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)"
    );
    config.arguments = vec!["/etc/passwd".into()];
    assert_eq!(kind(pod.sandbox.start(&config).await.expect_err("no x")).0, StartFailureKind::NotExecutable);
    config.user.name = "nobody-here".into();
    let (what, message) = kind(pod.sandbox.start(&config).await.expect_err("no user"));
    assert_eq!((what, message.as_str()), (StartFailureKind::User, "the image has no user `nobody-here`"));
    // A refused start leaves the name free and nothing behind.
    let (exit, _) = pod.run(&pod.shell("a-0", "exit 3")).await;
    assert_eq!(exit.code, 3);
    pod.end().await;
}

async fn the_host_image_hides_secrets_and_keeps_tools() {
    let pod = Pod::new().await;
    let secrets = tempfile::tempdir_in("/var/lib").expect("a directory");
    fs::create_dir_all(secrets.path().join("tools")).expect("tools");
    fs::write(secrets.path().join("key"), "secret").expect("key");
    fs::write(secrets.path().join("tools/compiler"), "tool").expect("tool");
    let place = secrets.path().display();
    let script = format!(
        "cat /etc/shadow | wc -c; ls {place}; cat {place}/tools/compiler; touch {place}/tools/x 2>&1
         touch {place}/mine /usr/mine && echo writable; git --version; ls /tmp | wc -l; stat -c %a /tmp /etc"
    );
    let mut config = pod.shell("a-0", &script);
    config.root = RootFs {
        lower_directories: vec!["/".into()],
        host: Some(HostRoot {
            masks: vec!["/etc/shadow".into(), secrets.path().into(), "/root".into()],
            read_only: vec![secrets.path().join("tools")],
        }),
        read_only: false,
    };
    let (exit, log) = pod.run(&config).await;
    assert_eq!(exit.code, 0, "{log}");
    assert!(log.starts_with("0\ntools\ntool"), "{log}");
    assert!(!log.contains("secret") && log.contains("Read-only file system"), "{log}");
    assert!(
        log.contains("writable\n") && log.contains("git version") && log.ends_with("0\n1777\n755\n"),
        "{log}"
    );
    assert!(!Path::new("/usr/mine").exists() && !secrets.path().join("mine").exists());
    let mut written: Vec<_> = walk(&pod.sandbox.container_directory("a-0").join("upper"));
    written.retain(|path| !path.starts_with("proc") && !path.starts_with("dev"));
    assert!(written.iter().any(|path| path == "usr/mine"), "{written:?}");
    assert!(!written.iter().any(|path| path.contains("shadow") || path.ends_with("tools")), "{written:?}");
    pod.end().await;
}

fn walk(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).expect("readable").flatten() {
            if entry.file_type().expect("a type").is_dir() {
                todo.push(entry.path());
            }
            found.push(entry.path().strip_prefix(root).expect("below").display().to_string());
        }
    }
    found
}

async fn mounts_stay_inside_the_root() {
    let pod = Pod::new().await;
    let trap = tempfile::tempdir().expect("a directory");
    let outside = tempfile::tempdir().expect("a directory");
    // The image says that /data is a place on the host.
    std::os::unix::fs::symlink(outside.path(), trap.path().join("data")).expect("a link");
    let volume = tempfile::tempdir().expect("a directory");
    fs::write(volume.path().join("file"), "volume").expect("a file");
    let mut config =
        pod.shell("a-0", "cat /data/sub/file; touch /data/sub/new && echo wrote; touch /ro/x 2>&1");
    config.root = RootFs::layers([trap.path().to_owned(), busybox()]);
    for (destination, read_only) in [("/data/sub", false), ("/ro", true)] {
        config.mounts.push(Mount::new(volume.path(), destination, read_only));
    }
    let (_, log) = pod.run(&config).await;
    assert!(log.contains("volume") && log.contains("wrote") && log.contains("Read-only"), "{log}");
    assert_eq!(fs::read_dir(outside.path()).expect("readable").count(), 0, "the host was not touched");
    // What was made only to mount on does not become part of an image.
    let directory = pod.sandbox.container_directory("a-0");
    naru_runtime::remove_mount_stubs(&directory);
    assert!(!directory.join("upper/ro").exists());
    // `/proc` as a link is the oldest trick.
    let trap = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::symlink("/tmp", trap.path().join("proc")).expect("a link");
    let mut config = pod.shell("b-0", "true");
    config.root = RootFs::layers([trap.path().to_owned(), busybox()]);
    pod.sandbox.start(&config).await.expect_err("refused");
    pod.end().await;
}

async fn exec_with_pipes_and_with_a_terminal() {
    let pod = Pod::new().await;
    pod.sandbox.start(&pod.shell("a-0", "touch /here; sleep 100")).await.expect("a");
    let config = |script: &str| ExecConfig {
        container: "a-0".into(),
        arguments: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        environment: vec![("GREETING".into(), "hi".into())],
        working_directory: None,
        user: None,
        privileged: false,
        stdin: true,
        terminal: false,
    };
    let mut exec = pod
        .sandbox
        .exec(
            &pod.program,
            &config("cat; echo $GREETING; hostname; grep Seccomp: /proc/self/status; echo bad >&2; exit 5"),
        )
        .await
        .expect("an exec");
    let mut stdio = std::mem::take(&mut exec.stdio);
    stdio.stdin.take().expect("stdin").write_all(b"typed\n").await.expect("written");
    let (mut out, mut errors) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (stdio.stdout.expect("out"), stdio.stderr.expect("err"));
    let (a, b) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut errors));
    a.and(b).expect("output");
    assert_eq!(exec.wait().await.expect("a code"), 5);
    assert_eq!((out.as_str(), errors.as_str()), ("typed\nhi\npod-name\nSeccomp:\t2\n", "bad\n"));

    let mut with_terminal = config("stty size; read line; echo got $line; exit 3");
    with_terminal.terminal = true;
    let mut exec = pod.sandbox.exec(&pod.program, &with_terminal).await.expect("an exec");
    exec.resize(132, 43).await.expect("resized");
    let mut stdio = std::mem::take(&mut exec.stdio);
    let mut stdin = stdio.stdin.take().expect("stdin");
    stdin.write_all(b"abc\n").await.expect("written");
    let mut out = String::new();
    stdio.stdout.expect("out").read_to_string(&mut out).await.expect("output");
    assert_eq!(exec.wait().await.expect("a code"), 3);
    assert!(out.contains("got abc"), "{out:?}");

    let mut missing = config("");
    missing.arguments = vec!["nothing-like-it".into()];
    let error = pod.sandbox.exec(&pod.program, &missing).await.expect_err("not found");
    assert!(
        matches!(error, naru_runtime::Error::Start { source, .. } if source.kind == StartFailureKind::NotFound)
    );
    pod.end().await;
}

async fn an_exec_that_ends_at_once_keeps_its_code() {
    let pod = Pod::new().await;
    pod.sandbox.start(&pod.shell("a-0", "sleep 100")).await.expect("started");
    let config = ExecConfig {
        container: "a-0".into(),
        arguments: ["sh", "-c", "exit 7"].map(str::to_owned).into(),
        environment: Vec::new(),
        working_directory: None,
        user: None,
        privileged: false,
        stdin: false,
        terminal: false,
    };
    for _ in 0..10 {
        let mut exec = pod.sandbox.exec(&pod.program, &config).await.expect("exec");
        // Whoever waits may turn to something else in between, at any moment.
        let code = loop {
            tokio::select! {
                biased;
                code = exec.wait() => break code,
                () = tokio::task::yield_now() => {}
            }
        };
        assert_eq!(code.expect("a code"), 7);
    }
    pod.end().await;
}

async fn an_attachment_sees_output_and_gives_input() {
    let pod = Pod::new().await;
    let mut config = pod.shell("a-0", "read line; echo got $line; echo bad >&2; cat; echo end");
    (config.stdin, config.stdin_once) = (true, true);
    pod.sandbox.start(&config).await.expect("started");
    let mut attached = pod.sandbox.attach("a-0", true).await.expect("attached");
    let mut stdin = attached.stdin.take().expect("stdin");
    stdin.write_all(b"one\ntwo\n").await.expect("written");
    drop(stdin);
    let (mut out, mut error) = (String::new(), String::new());
    let (a, b) =
        tokio::join!(attached.stdout.read_to_string(&mut out), attached.stderr.read_to_string(&mut error));
    a.and(b).expect("both end with the container");
    assert_eq!((out.as_str(), error.as_str()), ("got one\ntwo\nend\n", "bad\n"));
    assert_eq!(pod.wait("a-0").await.code, 0);

    let mut config = pod.shell("t-0", "tty; read line; stty size; exit 5");
    (config.stdin, config.terminal) = (true, true);
    pod.sandbox.start(&config).await.expect("started");
    let mut attached = pod.sandbox.attach("t-0", true).await.expect("attached");
    attached.resize.send((120, 40)).await.expect("resized");
    let mut stdin = attached.stdin.take().expect("stdin");
    stdin.write_all(b"go\n").await.expect("written");
    let mut out = String::new();
    attached.stdout.read_to_string(&mut out).await.expect("ends with the container");
    assert!(out.contains("40 120"), "{out:?}");
    assert_eq!(pod.wait("t-0").await.code, 5);
    assert!(pod.log("t-0").contains("/dev/pts/0"), "{}", pod.log("t-0"));
    assert!(pod.sandbox.attach("t-0", false).await.is_err(), "it has ended");
    pod.end().await;
}

async fn the_pods_own_ports_can_be_dialled() {
    let pod = Pod::new().await;
    let script = "ip link set lo up; echo hello | nc -l -p 8080 127.0.0.1";
    let mut config = pod.shell("a-0", script);
    config.capabilities = Some(vec!["NET_ADMIN".into()]);
    pod.sandbox.start(&config).await.expect("started");
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut stream = loop {
        match pod.sandbox.dial(8080, Duration::from_secs(1)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).expect("read");
    assert_eq!(text, "hello\n");
    assert!(pod.sandbox.dial(8081, Duration::from_secs(1)).is_err());
    pod.end().await;
}

async fn a_path_below_a_volume_never_leads_out_of_it() {
    let pod = Pod::new().await;
    let volume = tempfile::tempdir().expect("a directory");
    fs::create_dir(volume.path().join("inner")).expect("made");
    fs::write(volume.path().join("inner/file"), "mine").expect("written");
    std::os::unix::fs::symlink("inner", volume.path().join("link")).expect("a link");
    std::os::unix::fs::symlink("/etc", volume.path().join("escape")).expect("a link");
    let mut config = pod.shell("a-0", "cat /f /d/file; echo; touch /n/new; echo $?");
    for (path, destination) in [("inner/file", "/f"), ("link", "/d"), ("made/here", "/n")] {
        let mount = Mount::new(volume.path(), destination, false);
        config.mounts.push(Mount { sub_path: Some(path.into()), ..mount });
    }
    let (_, log) = pod.run(&config).await;
    assert_eq!(log, "minemine\n0\n");
    let mut config = pod.shell("b-0", "ls /e");
    config.mounts.push(Mount { sub_path: Some("escape".into()), ..Mount::new(volume.path(), "/e", false) });
    let error = pod.sandbox.start(&config).await.expect_err("`/etc` means the volume's, and there is none");
    assert!(std::error::Error::source(&error).is_some_and(|it| it.to_string().contains("subPath")));
    assert!(volume.path().join("made/here/new").exists());
    pod.end().await;
}

async fn a_pod_can_share_its_processes_and_set_its_own_settings() {
    let pod = Pod::with(|config| {
        config.share_pids = true;
        config.sysctls = vec![("kernel.shm_rmid_forced".into(), "1".into())];
    })
    .await;
    pod.sandbox.start(&pod.shell("a-0", "sleep 4711")).await.expect("started");
    let script = "until grep -qx sleep /proc/*/comm; do :; done; cat /proc/sys/kernel/shm_rmid_forced /proc/1/comm; \
                  for p in /proc/[0-9]*; do grep -qx sleep $p/comm && kill ${p#/proc/} 2>/dev/null; done; true";
    let (exit, log) = pod.run(&pod.shell("b-0", script)).await;
    assert_eq!((exit.code, log.as_str()), (0, "1\npause\n"));
    assert_eq!(pod.wait("a-0").await.code, 143);
    pod.end().await;
}

async fn a_program_may_gain_privileges_where_it_is_allowed() {
    let pod = Pod::new().await;
    let script = "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; mount -t tmpfs x /tmp || echo refused";
    let mut config = pod.shell("a-0", &format!("{script}; sleep 100"));
    config.no_new_privileges = false;
    config.user.uid = Some(1000);
    config.capabilities = Some(vec!["CHOWN".into(), "SETUID".into()]);
    pod.sandbox.start(&config).await.expect("started");
    let expect = "CapEff:\t0000000000000000\nCapBnd:\t0000000000000081\nNoNewPrivs:\t0\nSeccomp:\t2\n";
    let deadline = Instant::now() + Duration::from_secs(10);
    while !pod.log("a-0").contains("refused") {
        assert!(Instant::now() < deadline, "{}", pod.log("a-0"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(pod.log("a-0").starts_with(expect), "{}", pod.log("a-0"));
    let exec = ExecConfig {
        container: "a-0".into(),
        arguments: ["sh", "-c", script].map(str::to_owned).into(),
        environment: Vec::new(),
        working_directory: None,
        user: None,
        privileged: false,
        stdin: false,
        terminal: false,
    };
    let mut exec = pod.sandbox.exec(&pod.program, &exec).await.expect("exec");
    let mut out = String::new();
    exec.stdio.stdout.take().expect("stdout").read_to_string(&mut out).await.expect("read");
    assert_eq!(exec.wait().await.expect("a code"), 0);
    assert!(out.starts_with(expect), "{out}");
    pod.end().await;
}

async fn a_privileged_container_has_the_machine() {
    let pod = Pod::new().await;
    let script = "grep CapEff /proc/self/status; mkdir -p /m; mount -t tmpfs x /m && echo mounted; test -w /sys && \
                  echo writable; grep Seccomp: /proc/self/status; test -c /dev/kmsg && echo devices";
    let mut config = pod.shell("a-0", script);
    config.privileged = true;
    config.no_new_privileges = false;
    let (_, log) = pod.run(&config).await;
    assert!(!log.contains("CapEff:\t00000000a80"), "{log}");
    assert!(log.contains("mounted\n") && log.contains("Seccomp:\t0") && log.contains("devices"), "{log}");
    pod.end().await;
}

async fn a_new_daemon_finds_what_happened() {
    let pod = Pod::new().await;
    pod.sandbox.start(&pod.shell("stays-0", "echo started; sleep 100")).await.expect("a");
    pod.sandbox.start(&pod.shell("ends-0", "sleep 0.3; exit 9")).await.expect("b");
    // The daemon is away: nobody listens while `ends-0` ends.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !Sandbox::recorded_exits(&pod.config.directory).contains_key("ends-0") {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let found = Sandbox::adopt(&pod.config.directory).expect("readable").expect("alive");
    let state: BTreeMap<_, _> = found.containers().await.expect("state");
    assert!(matches!(state["stays-0"], ContainerStatus::Running(_)));
    assert!(matches!(state["ends-0"], ContainerStatus::Exited(exit) if exit.code == 9));
    // Stray signals do not end a shim; its death ends the pod, and that is noticed.
    for signal in ["-TERM", "-INT", "-HUP"] {
        std::process::Command::new("kill").args([signal, &found.pid().to_string()]).status().expect("kill");
    }
    assert!(found.containers().await.is_ok());
    Sandbox::destroy_remains(&pod.config.directory).expect("destroyed");
    assert!(Sandbox::adopt(&pod.config.directory).expect("readable").is_none());
    assert!(cgroup::usage(&pod.config.pod_cgroup).is_none());
    cgroup::remove_if_empty(&pod.config.shim_cgroup);
}

async fn users_and_working_directories_are_the_images() {
    let pod = Pod::new().await;
    let mut config = pod.shell("a-0", "id; pwd; echo $HOME");
    config.user.name = "app".into();
    config.working_directory = "/work/deep".into();
    let (_, log) = pod.run(&config).await;
    assert_eq!(log, "uid=1000(app) gid=1000(app) groups=2000(web)\n/work/deep\n/home/app\n");
    let mut config = pod.shell("b-0", "true");
    config.user = User { must_not_be_root: true, ..User::default() };
    pod.sandbox.start(&config).await.expect_err("root is refused");
    let mut config = pod.shell("c-0", "touch /x 2>&1; touch /dev/shm/x && echo shm");
    config.root.read_only = true;
    let (_, log) = pod.run(&config).await;
    assert!(log.contains("Read-only file system") && log.contains("shm"), "{log}");
    pod.end().await;
}

async fn a_bundle_runs_from_start_to_end() {
    let bundle = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::symlink(busybox(), bundle.path().join("rootfs")).expect("a link");
    let spec = serde_json::json!({
        "ociVersion": "1.0.2", "root": {"path": busybox()},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", "exit 4"], "cwd": "/",
                    "env": ["PATH=/bin"], "noNewPrivileges": true},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                   {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}],
        "linux": {"cgroupsPath": format!("/naru/apps/bundle-{}", std::process::id()),
                  "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}]},
    });
    fs::write(bundle.path().join("config.json"), spec.to_string()).expect("written");
    let status = std::process::Command::new("/proc/self/exe")
        .args(["__run".as_ref(), bundle.path().as_os_str(), "bundle-test".as_ref()])
        .status()
        .expect("run");
    assert_eq!(status.code(), Some(4));
}

/// We start the usual ourselves and leave the rest to libcontainer; an empty list of hooks is the rest.
async fn both_ways_of_starting_look_the_same_inside() {
    let script = r#"
        id; pwd; hostname; env | sort; umask; ulimit -a; cat /proc/self/oom_score_adj
        grep -E '^(Cap|NoNew|Seccomp|Groups|Uid|Gid|Sig[BIC])' /proc/self/status
        sed 's/^[0-9]* [0-9]* [0-9]*:[0-9]* //; s/ master:[0-9]*//' /proc/self/mountinfo
        for it in /dev/* /dev/net/*; do [ "$it" = /dev/net ] || stat -c '%n %F %a %u %g %t %T' "$it"; done
        ls /proc/acpi /proc/scsi /sys/firmware; cat /proc/keys /proc/timer_list
        ls /proc/self/fd | wc -l
        echo > /x; echo > /volume/x; mknod /dev/disk b 8 0; mount -t tmpfs tmpfs /tmp; unshare -m true
        ls /sys/class/net; ps
        exit 7"#;
    let volume = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(busybox().join("tmp")).expect("tmp");
    let run = |user: u32, change: fn(&mut serde_json::Value)| {
        let bundle = tempfile::tempdir().expect("a directory");
        let mut spec = naru_runtime::oci::default_spec(false);
        spec["root"] = serde_json::json!({"path": busybox(), "readonly": true});
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = serde_json::json!(["sh", "-c", script]);
        spec["process"]["cwd"] = "/tmp".into();
        spec["process"]["oomScoreAdj"] = 500.into();
        spec["process"]["user"] =
            serde_json::json!({"uid": user, "gid": user, "additionalGids": [5, 6], "umask": 0o27});
        let capabilities = serde_json::json!(["CAP_KILL", "CAP_NET_RAW", "CAP_MKNOD"]);
        spec["process"]["capabilities"] = serde_json::json!({"bounding": capabilities, "effective": capabilities,
            "permitted": capabilities, "inheritable": capabilities, "ambient": ["CAP_KILL"]});
        let mounts = spec["mounts"].as_array_mut().expect("a list");
        // libcontainer mounts v1 groups writable whatever it is told.
        mounts.retain(|it| it["type"] != "cgroup");
        mounts.push(serde_json::json!({"destination": "/volume", "type": "bind", "source": volume.path(),
            "options": ["rbind", "nosuid", "nodev", "rro", "noatime"]}));
        mounts
            .push(serde_json::json!({"destination": "/bin/name", "type": "bind", "source": "/etc/hostname",
            "options": ["bind", "ro", "noexec"]}));
        spec["linux"]["devices"] = serde_json::json!([
            {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o620, "uid": 7, "gid": 8},
        ]);
        spec["linux"]["resources"]["pids"] = serde_json::json!({"limit": 50});
        spec["linux"]["resources"]["memory"] = serde_json::json!({"limit": 64 << 20});
        spec["linux"]["cgroupsPath"] = format!("/naru/apps/both-{}", std::process::id()).into();
        change(&mut spec);
        fs::write(bundle.path().join("config.json"), spec.to_string()).expect("written");
        let output = std::process::Command::new("/proc/self/exe")
            .args(["__run".as_ref(), bundle.path().as_os_str(), "both".as_ref()])
            .output()
            .expect("run");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    for user in [0, 1000] {
        let ours = run(user, |_| {});
        let theirs = run(user, |it| it["hooks"] = serde_json::json!({}));
        assert_eq!(ours.0, Some(7), "{ours:?}");
        for (ours, theirs) in [(&ours.1, &theirs.1), (&ours.2, &theirs.2)] {
            let differ: Vec<_> =
                ours.lines().zip(theirs.lines()).filter(|(ours, theirs)| ours != theirs).collect();
            assert!(differ.is_empty() && ours.len() == theirs.len(), "user {user}: {differ:#?}\n{ours}");
        }
    }
    let missing = run(0, |it| it["process"]["args"] = serde_json::json!(["nothing-like-it"]));
    assert_eq!(missing.0, Some(127), "{missing:?}");
    assert!(missing.2.contains("nothing-like-it"), "{missing:?}");
}

async fn nothing_is_left_behind() {
    let before = mounts();
    let pod = Pod::new().await;
    let id = pod.config.id.clone();
    for number in 0..3 {
        pod.sandbox.start(&pod.shell(&format!("a-{number}"), "sleep 100 & sleep 100")).await.expect("a");
    }
    let (shim, directory) = (pod.sandbox.pid(), pod.config.directory.clone());
    assert_eq!(mounts(), before, "mounts live in the shim's namespace");
    pod.end().await;
    let deadline = Instant::now() + Duration::from_secs(5);
    // A zombie is gone too; when it vanishes is up to the machine's init.
    while fs::read_to_string(format!("/proc/{shim}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "the shim is gone");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(mounts(), before);
    let output =
        std::process::Command::new("find").args(["/sys/fs/cgroup", "-name", &id]).output().expect("find");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert!(!directory.exists(), "nothing was busy");
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").lines().count()
}
