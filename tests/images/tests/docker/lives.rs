//! Containers that stop, start again, restart, are killed, and outlive the daemon.

use crate::client::Docker;

#[test]
fn a_container_keeps_its_files_its_log_and_its_name() {
    let docker = Docker::start();
    let script = "echo begun; [ -f /kept ] && echo found; echo x > /kept; trap 'echo asked; exit 4' TERM; \
                  while :; do sleep 0.1; done";
    docker.ok(&["run", "-d", "--name", "web", "busybox", "sh", "-c", script]);
    docker.until("its first word", || docker.ok(&["logs", "web"]).contains("begun").then_some(()));
    docker.ok(&["stop", "web"]);
    assert_eq!(docker.inspect("web", "{{.State.Status}} {{.State.ExitCode}}"), "exited 4");
    docker.ok(&["start", "web"]);
    docker.until("what it left", || docker.ok(&["logs", "web"]).contains("found").then_some(()));
    assert_eq!(docker.ok(&["logs", "web"]), "begun\nasked\nbegun\nfound");
    assert_eq!(docker.ok(&["logs", "--tail", "1", "web"]), "found");
    assert_eq!(docker.inspect("web", "{{.RestartCount}}"), "0", "a start by hand is no restart");
    docker.ok(&["restart", "-t", "1", "web"]);
    docker.ok(&["rename", "web", "shop"]);
    assert_eq!(docker.ok(&["ps", "--format", "{{.Names}}"]), "shop");

    docker.ok(&["pause", "shop"]);
    assert!(docker.ok(&["ps"]).contains("(Paused)"));
    assert!(docker.fails(&["exec", "shop", "true"]).contains("is paused"));
    docker.ok(&["unpause", "shop"]);
    assert_eq!(docker.ok(&["exec", "shop", "cat", "/kept"]), "x");
    docker.ok(&["update", "--restart", "always", "-m", "48m", "shop"]);
    assert!(docker.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "shop"]).ends_with("/ 48MiB"));
    assert_eq!(docker.inspect("shop", "{{.HostConfig.RestartPolicy.Name}}"), "always");

    // Stopped by hand it stays stopped, whatever its policy.
    docker.ok(&["kill", "shop"]);
    assert_eq!(docker.inspect("shop", "{{.State.Status}} {{.State.ExitCode}}"), "exited 137");
    let pods = docker.daemon.kubectl(&["get", "pods", "-n", "docker", "-o", "name"]);
    assert!(String::from_utf8_lossy(&pods.stdout).contains("pod/web-"), "what docker ran is a pod");
    docker.ok(&["rm", "shop"]);
    docker.daemon.destroy();
}

#[test]
fn restart_policies_and_health_are_acted_upon() {
    let docker = Docker::start();
    docker.ok(&[
        "run",
        "-d",
        "--name",
        "tries",
        "--restart",
        "on-failure:2",
        "busybox",
        "sh",
        "-c",
        "echo try; exit 6",
    ]);
    docker.until_state("tries", "{{.State.Status}} {{.RestartCount}}", "exited 2");
    docker.until("its three tries", || (docker.ok(&["logs", "tries"]) == "try\ntry\ntry").then_some(()));
    let check = |name: &str, policy: &str| {
        docker.ok(&[
            "run",
            "-d",
            "--name",
            name,
            "--restart",
            policy,
            "--health-cmd",
            "test ! -f /sick",
            "--health-interval",
            "200ms",
            "--health-retries",
            "2",
            "busybox",
            "sleep",
            "1000",
        ]);
        docker.until_state(name, "{{.State.Health.Status}}", "healthy");
        assert!(docker.ok(&["ps", "--filter", "health=healthy"]).contains("(healthy)"));
    };
    check("alone", "no");
    docker.ok(&["exec", "alone", "touch", "/sick"]);
    docker.until_state("alone", "{{.State.Health.Status}} {{.State.Running}}", "unhealthy true");
    check("minded", "unless-stopped");
    let before = docker.inspect("minded", "{{.State.StartedAt}}{{.State.Pid}}");
    docker.ok(&["exec", "minded", "touch", "/sick"]);
    docker.until("its restart", || {
        (docker.inspect("minded", "{{.State.StartedAt}}{{.State.Pid}}") != before).then_some(())
    });
    docker.until("the event of the restart", || {
        let events = docker.ok(&[
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "container=minded",
            "--format",
            "{{.Action}}",
        ]);
        (events.contains("health_status: unhealthy") && events.contains("restart")).then_some(())
    });
    docker.daemon.destroy();
}

#[test]
fn the_daemon_may_die() {
    let mut docker = Docker::start();
    docker.ok(&[
        "run",
        "-d",
        "--name",
        "goes-on",
        "-p",
        "80",
        "busybox",
        "sh",
        "-c",
        "mkdir /w; echo up > /w/index.html; exec httpd -f -p 80 -h /w",
    ]);
    docker.ok(&[
        "run",
        "-d",
        "--name",
        "ends",
        "busybox",
        "sh",
        "-c",
        "until [ -f /go ]; do sleep 0.05; done; exit 9",
    ]);
    docker.ok(&[
        "run",
        "-d",
        "--rm",
        "--name",
        "leaves",
        "busybox",
        "sh",
        "-c",
        "until [ -f /go ]; do sleep 0.05; done",
    ]);
    docker.ok(&["create", "--name", "waits", "busybox", "echo", "late"]);
    docker.ok(&["run", "-d", "--name", "frozen", "busybox", "sleep", "1000"]);
    docker.ok(&["pause", "frozen"]);
    let (pid, port) = (docker.inspect("goes-on", "{{.State.Pid}}"), docker.port("goes-on", "80"));
    let roots =
        ["ends", "leaves"].map(|it| format!("/proc/{}/root/go", docker.inspect(it, "{{.State.Pid}}")));
    docker.until("the web server", || docker.curl(&port));
    docker.daemon.kill();
    for go in &roots {
        std::fs::write(go, "").unwrap();
    }
    assert_eq!(docker.curl(&port).as_deref(), Some("up\n"), "nobody notices");
    docker.daemon.start_again();
    docker.until_state("ends", "{{.State.Status}} {{.State.ExitCode}}", "exited 9");
    docker.until("the one that removes itself", || {
        docker.ok(&["ps", "-aq", "--filter", "name=leaves"]).is_empty().then_some(())
    });
    assert_eq!(docker.inspect("goes-on", "{{.State.Status}} {{.State.Pid}}"), format!("running {pid}"));
    assert_eq!(docker.inspect("frozen", "{{.State.Status}}"), "paused");
    docker.ok(&["unpause", "frozen"]);
    assert_eq!(docker.ok(&["exec", "frozen", "echo", "alive"]), "alive");
    assert_eq!(docker.ok(&["start", "-a", "waits"]), "late");
    docker.daemon.destroy();
}

/// The daemon is killed at moments that are nobody's choice while containers are made, restarted and stopped.
#[test]
fn no_kill_leaves_a_container_that_cannot_be_used() {
    let mut docker = Docker::start();
    let mut moment = 1_u64;
    for round in 0..5 {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let name = |number: u32| format!("r{round}-{number}");
        let volume = format!("volume{round}:/v");
        let mut clients = Vec::new();
        for (number, policy) in [(1, "no"), (2, "always")] {
            let name = name(number);
            let args = [
                "run",
                "-d",
                "--name",
                &name,
                "--restart",
                policy,
                "-v",
                &volume,
                "-p",
                "80",
                "busybox",
                "sleep",
                "1000",
            ];
            let mut client = docker.command("docker", &args);
            client.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            clients.push(client.spawn().unwrap());
        }
        std::thread::sleep(std::time::Duration::from_millis(moment >> 55));
        docker.daemon.kill();
        for mut client in clients {
            // Whatever it heard.
            client.wait().unwrap();
        }
        docker.daemon.start_again();
        for name in docker.ok(&["ps", "-a", "--format", "{{.Names}}"]).lines() {
            docker.ok(&["restart", "-t", "0", name]);
            assert_eq!(docker.ok(&["exec", name, "echo", "alive"]), "alive");
        }
    }
    let all = docker.ok(&["ps", "-aq"]);
    if !all.is_empty() {
        docker.ok(&[&["rm", "-f"][..], &all.lines().collect::<Vec<_>>()].concat());
    }
    docker.ok(&["volume", "prune", "-af"]);
    assert_eq!(docker.ok(&["volume", "ls", "-q"]), "");
    docker.daemon.destroy();
}
