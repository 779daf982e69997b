//! `docker run`, its flags, its exit codes, and what is refused.

use crate::client::Docker;
use naru_image_tests::harness::text;

#[test]
fn a_program_runs_with_everything_that_it_was_told() {
    let docker = Docker::start();
    assert_eq!(docker.ok(&["run", "--rm", "busybox", "echo", "hi"]), "hi");
    assert_eq!(docker.ok(&["ps", "-aq"]), "", "--rm leaves nothing");

    // Exit codes: the program's own, not there, not executable.
    for (args, code, said) in [
        (&["sh", "-c", "exit 3"][..], 3, ""),
        (&["nosuch"][..], 127, "executable file not found"),
        (&["/etc/passwd"][..], 126, "permission denied"),
    ] {
        let output = docker.run(&[&["run", "--rm", "busybox"][..], args].concat());
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(text(&output).contains(said), "{}", text(&output));
    }
    assert_eq!(docker.ok(&["ps", "-aq"]), "");

    let output = docker.with_input(&["run", "--rm", "-i", "busybox", "wc", "-c"], &"x".repeat(300_000));
    assert_eq!(text(&output).trim(), "300000");
    let output = docker.run(&["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));

    let shown = docker.ok(&[
        "run", "--rm", "--name", "all", "-e", "A=$(HOME)$x", "-u", "app", "-w", "/tmp/new", "--hostname", "My_Host",
        "--ulimit", "nofile=100:200", "--tmpfs", "/t:size=1m", "--add-host", "there:10.1.2.3", "--read-only",
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--shm-size", "2m", "--pids-limit", "64", "-m",
        "64m", "--cpus", "0.5", "--init", "--label", "l=1", "--stop-signal", "QUIT", "busybox", "sh", "-c",
        "id -un; pwd; hostname; ulimit -n; echo \"$A\"; grep there /etc/hosts | cut -f1; df -k /t /dev/shm | \
         awk 'NR>1{print $2}'; grep CapBnd /proc/self/status; touch /x 2>&1; env | grep -c KUBERNETES || true",
    ]);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(&lines[..4], ["app", "/tmp/new", "My_Host", "100"]);
    assert_eq!(lines[4], "$(HOME)$x", "what Kubernetes would read as a variable is text here");
    assert_eq!(&lines[5..8], ["10.1.2.3", "1024", "2048"]);
    assert!(lines[8].ends_with("0000000000000000") && lines[9].contains("Read-only"), "{shown}");
    assert_eq!(lines[10], "0", "nothing of the cluster is told");

    // A terminal, through a pseudo terminal of the client's own.
    let command = format!("{} run --rm -it busybox sh", naru_image_tests::harness::tool("docker").display());
    let mut script = docker.command("docker", &[]);
    script = {
        let mut it = std::process::Command::new("script");
        it.args(["-qec", &command, "/dev/null"]);
        for (name, value) in script.get_envs() {
            if let Some(value) = value {
                it.env(name, value);
            }
        }
        it
    };
    use std::io::{Read, Write};
    script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = script.spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut read_until = |wanted: &str| {
        let mut buffer = [0; 1024];
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            let count = out.read(&mut buffer).unwrap();
            assert!(count > 0, "the terminal ended: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..count]);
        }
    };
    read_until("# ");
    child.stdin.as_mut().unwrap().write_all(b"tty; echo st$((1+1))uff; exit 5\n").unwrap();
    read_until("st2uff");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    docker.daemon.destroy();
}

#[test]
fn what_cannot_be_had_is_refused_by_its_name() {
    let docker = Docker::start();
    assert!(docker.fails(&["run", "--pull", "never", "nosuch"]).contains("No such image"));
    for (args, said) in [
        (&["--device", "/dev/null"][..], "--device is not supported"),
        (&["--log-driver", "syslog"][..], "--log-driver=syslog"),
        (&["--cpuset-cpus", "0"][..], "--cpuset-cpus"),
        (&["--network", "container:x"][..], "--network container:x"),
        (&["--network", "nosuch"][..], "network nosuch not found"),
        (&["-v", "/:/x:rshared"][..], "propagation"),
        (&["--restart", "always", "--rm"][..], ""),
        (&["--memory", "1m"][..], "Minimum memory limit"),
        (&["--name", "-x"][..], "Invalid container name"),
    ] {
        let all = [&["create"][..], args, &["busybox"][..]].concat();
        let told = docker.fails(&all);
        assert!(told.contains(said), "{args:?}: {told}");
    }
    assert!(docker.fails(&["network", "create", "--subnet", "10.1.0.0/24", "n"]).contains("--subnet"));
    assert!(docker.fails(&["network", "create", "-d", "overlay", "n"]).contains("overlay"));
    assert!(docker.fails(&["volume", "create", "-d", "nfs", "v"]).contains("nfs"));
    assert!(docker.fails(&["volume", "create", "-o", "type=nfs", "v"]).contains("--opt"));
    assert!(docker.fails(&["swarm", "init"]).contains("This node is not a swarm manager"));
    assert!(docker.fails(&["search", "x"]).contains("not supported"));
    docker.ok(&["create", "--name", "taken", "busybox"]);
    assert!(docker.fails(&["create", "--name", "taken", "busybox"]).contains("is already in use"));
    assert!(docker.fails(&["rmi", "busybox"]).contains("is using its referenced image"));
    let asked = |version: &str| {
        let socket = docker.socket().display().to_string();
        let url = format!("http://docker/v{version}/info");
        text(
            &std::process::Command::new("curl")
                .args(["-s", "--unix-socket", &socket, &url])
                .output()
                .unwrap(),
        )
    };
    assert!(asked("1.99").contains("is too new") && asked("1.12").contains("is too old"));
    assert!(asked("1.24").contains("ServerVersion"));
    docker.daemon.destroy();
}
