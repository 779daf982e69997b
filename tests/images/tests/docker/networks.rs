//! Networks, names, ports and volumes.

use crate::client::Docker;

#[test]
fn members_of_a_network_find_and_reach_each_other_and_nobody_else() {
    let docker = Docker::start();
    let serve = "mkdir -p /w; hostname > /w/index.html; exec httpd -f -p 80 -h /w";
    for network in ["front", "back"] {
        docker.ok(&["network", "create", network]);
    }
    docker.ok(&["network", "create", "--internal", "inside"]);
    docker.ok(&[
        "run",
        "-d",
        "--name",
        "db",
        "--hostname",
        "db-host",
        "--network",
        "back",
        "--network-alias",
        "store",
        "busybox",
        "sh",
        "-c",
        serve,
    ]);
    docker.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "front",
        "-p",
        "127.0.0.1::80",
        "busybox",
        "sh",
        "-c",
        serve,
    ]);
    docker.ok(&["run", "-d", "--name", "other", "busybox", "sh", "-c", serve]);
    let get = |from: &str, to: &str| {
        let output =
            docker.run(&["exec", from, "timeout", "3", "wget", "-q", "-O-", &format!("http://{to}/")]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    assert_eq!(get("web", "db"), None, "not in its network");
    docker.ok(&["network", "connect", "--alias", "also", "back", "web"]);
    docker.until("db by its name", || get("web", "db"));
    for name in ["db", "store", "db-host"] {
        assert_eq!(get("web", name).as_deref(), Some("db-host"), "{name}");
    }
    assert!(get("db", "also").is_some(), "names that came later are found as well");
    let address = docker.inspect("db", "{{(index .NetworkSettings.Networks \"back\").IPAddress}}");
    assert_eq!(get("other", &address), None, "nor by its address from elsewhere");
    assert!(get("web", &address).is_some());
    let inspected =
        docker.ok(&["network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", "back"]);
    assert!(inspected.contains("db") && inspected.contains("web"), "{inspected}");
    docker.ok(&["network", "disconnect", "back", "web"]);
    docker.until("the end of its membership", || get("web", "db").is_none().then_some(()));

    let port = docker.port("web", "80");
    assert!(
        docker.until("its port", || docker.curl(&port)).trim().len() == 12,
        "the short id is its host name"
    );
    assert!(
        docker
            .fails(&["run", "--rm", "-p", &format!("127.0.0.1:{port}:80"), "busybox", "true"])
            .contains("port is already allocated")
    );
    assert!(docker.fails(&["network", "rm", "front"]).contains("has active endpoints"));
    docker.ok(&["rm", "-f", "web", "db", "other"]);
    docker.ok(&["network", "rm", "front", "inside"]);
    assert!(docker.ok(&["network", "prune", "-f"]).contains("back"));
    assert_eq!(
        docker.ok(&["run", "--rm", "--network", "host", "busybox", "hostname"]),
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim()
    );
    docker.daemon.destroy();
}

#[test]
fn volumes_outlive_containers() {
    let docker = Docker::start();
    let here = tempfile::tempdir().unwrap();
    let bind = format!("{}:/bind:ro", here.path().display());
    std::fs::write(here.path().join("f"), "of the machine").unwrap();
    docker.ok(&["volume", "create", "--label", "a=b", "data_1"]);
    docker.ok(&["run", "--rm", "-v", "data_1:/data", "busybox", "sh", "-c", "echo kept > /data/f"]);
    let shown = docker.ok(&[
        "run",
        "--rm",
        "-v",
        "data_1:/data:ro",
        "-v",
        &bind,
        "busybox",
        "sh",
        "-c",
        "cat /data/f /bind/f; touch /data/g /bind/g 2>&1 | grep -c Read-only",
    ]);
    assert_eq!(shown, "kept\nof the machine2");
    // What the image has there comes first, with its owner.
    docker.ok(&["create", "--name", "filled", "-v", "from-image:/etc", "busybox"]);
    let place = docker.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", "from-image"]);
    assert!(std::fs::read_to_string(format!("{place}/passwd")).unwrap().contains("app"));
    assert!(docker.fails(&["volume", "rm", "from-image"]).contains("volume is in use"));
    docker.ok(&["run", "--name", "nameless", "-v", "/nameless", "busybox", "touch", "/nameless/f"]);
    let anonymous = docker.inspect("nameless", "{{(index .Mounts 0).Name}}");
    assert_eq!(anonymous.len(), 64);
    docker.ok(&["run", "--rm", "--volumes-from", "nameless", "busybox", "ls", "/nameless/f"]);
    docker.ok(&["rm", "-v", "nameless", "filled"]);
    let left = docker.ok(&["volume", "ls", "-q"]);
    assert_eq!(left, "data_1\nfrom-image");
    assert_eq!(docker.ok(&["volume", "ls", "-q", "--filter", "label=a=b"]), "data_1");
    assert!(docker.ok(&["volume", "prune", "-af"]).contains("data_1"));
    assert_eq!(docker.ok(&["volume", "ls", "-q"]), "");
    docker.until("its files to go", || (!std::path::Path::new(&place).exists()).then_some(()));
    docker.until("its claim to go", || {
        let claims = docker.daemon.kubectl(&["get", "pvc", "-n", "docker", "-o", "name"]);
        claims.stdout.is_empty().then_some(())
    });
    docker.daemon.destroy();
}
