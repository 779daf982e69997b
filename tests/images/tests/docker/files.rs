//! Files in and out, execs, events, logs, figures, images.

use crate::client::Docker;
use naru_image_tests::harness::{text, tool};

#[test]
fn files_go_in_and_out_and_never_past_the_root() {
    let docker = Docker::start();
    let here = tempfile::tempdir().unwrap();
    let path = |it: &str| here.path().join(it).display().to_string();
    std::fs::create_dir(path("tree")).unwrap();
    std::fs::write(path("tree/file"), "content").unwrap();
    std::fs::write(path("marker"), "harmless").unwrap();
    docker.ok(&["run", "-d", "--name", "box", "-v", "kept:/volume", "busybox", "sleep", "1000"]);
    docker.ok(&["cp", &path("tree"), "box:/root/"]);
    assert_eq!(docker.ok(&["exec", "box", "cat", "/root/tree/file"]), "content");
    docker.ok(&["cp", &path("tree/file"), "box:/volume/named"]);
    // Links that a container makes lead nowhere else.
    let evil = format!("ln -s {} /out; ln -s / /root/tree/up; echo inner > /marker", here.path().display());
    docker.ok(&["exec", "box", "sh", "-c", &evil]);
    docker.fails(&["cp", "box:/out/marker", &path("got")]);
    docker.fails(&["cp", &path("tree/file"), "box:/out/marker"]);
    assert_eq!(std::fs::read_to_string(path("marker")).unwrap(), "harmless");
    docker.ok(&["cp", "box:/root/tree/up/marker", &path("inner")]);
    assert_eq!(std::fs::read_to_string(path("inner")).unwrap(), "inner\n");

    let changes = docker.ok(&["diff", "box"]);
    assert!(changes.contains("A /root/tree/file") && changes.contains("C /root"), "{changes}");
    assert!(
        !changes.contains("/etc/hosts") && !changes.contains("/volume"),
        "mounts are no changes: {changes}"
    );

    // The same while it is stopped.
    docker.ok(&["kill", "box"]);
    docker.ok(&["cp", &path("tree/file"), "box:/root/late"]);
    docker.ok(&["cp", "box:/volume/named", &path("from-volume")]);
    assert_eq!(std::fs::read_to_string(path("from-volume")).unwrap(), "content");
    docker.ok(&["start", "box"]);
    assert_eq!(docker.ok(&["exec", "box", "cat", "/root/late", "/root/tree/file"]), "contentcontent");
    docker.fails(&["cp", "box:/nosuch", &path("x")]);

    docker.ok(&["commit", "-m", "words", "--change", "CMD [\"cat\", \"/root/late\"]", "box", "mine:1"]);
    assert_eq!(docker.ok(&["run", "--rm", "mine:1"]), "content");
    docker.ok(&["export", "-o", &path("all.tar"), "box"]);
    let listed = std::process::Command::new("tar").args(["-tf", &path("all.tar")]).output().unwrap();
    let listed = text(&listed);
    assert!(listed.lines().any(|it| it == "root/late") && !listed.contains("\nproc/1"));
    docker.ok(&["rm", "-f", "box"]);
    docker.ok(&["volume", "rm", "kept"]);
    docker.daemon.destroy();
}

#[test]
fn commands_events_and_figures_of_a_running_container() {
    let docker = Docker::start();
    docker.ok(&[
        "run",
        "-d",
        "--name",
        "box",
        "-e",
        "OF=container",
        "-m",
        "64m",
        "busybox",
        "sh",
        "-c",
        "echo one; echo two >&2; exec sleep 1000",
    ]);
    let output = docker.run(&[
        "exec",
        "-u",
        "app",
        "-w",
        "/tmp",
        "-e",
        "X=y",
        "box",
        "sh",
        "-c",
        "echo $(id -un) $PWD $X $OF; exit 7",
    ]);
    assert_eq!((output.status.code(), text(&output).trim()), (Some(7), "app /tmp y container"));
    let output = docker.run(&["exec", "box", "nosuch"]);
    assert_eq!(output.status.code(), Some(127), "{}", text(&output));
    let output = docker.with_input(&["exec", "-i", "box", "cat"], "typed");
    assert_eq!(text(&output), "typed");
    let capabilities = |more: &[&str]| {
        docker.ok(&[&["exec"][..], more, &["box", "grep", "CapEff", "/proc/self/status"][..]].concat())
    };
    assert_ne!(capabilities(&["--privileged"]), capabilities(&[]));
    docker.ok(&["exec", "-d", "box", "touch", "/detached"]);
    docker.until("the detached command", || {
        docker.run(&["exec", "box", "ls", "/detached"]).status.success().then_some(())
    });

    let logs = docker.run(&["logs", "-t", "box"]);
    assert!(String::from_utf8_lossy(&logs.stdout).ends_with(" one\n"), "{}", text(&logs));
    assert!(String::from_utf8_lossy(&logs.stderr).ends_with(" two\n"));
    assert_eq!(docker.ok(&["logs", "--since", "2999-01-01T00:00:00Z", "box"]), "");
    assert!(docker.ok(&["top", "box"]).contains("sleep 1000"));
    let stats = docker.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "box"]);
    assert!(stats.contains("/ 64MiB") && stats.ends_with(" 1"), "{stats}");
    let events = docker.ok(&[
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "container=box",
        "--format",
        "{{.Action}}",
    ]);
    let actions: Vec<&str> = events.lines().collect();
    let at = |wanted: &str| {
        actions.iter().position(|it| it.starts_with(wanted)).unwrap_or_else(|| panic!("{wanted}: {events}"))
    };
    assert!(
        at("create") < at("start") && at("start") < at("exec_create") && at("exec_create") < at("exec_die")
    );
    assert!(docker.ok(&["system", "df"]).contains("Containers      1         1"));
    assert!(docker.ok(&["info", "--format", "{{.ContainersRunning}} {{.ServerVersion}}"]).starts_with("1 "));
    docker.daemon.destroy();
}

#[test]
fn images_go_in_and_out() {
    let docker = Docker::start();
    let here = tempfile::tempdir().unwrap();
    let archive = here.path().join("saved.tar").display().to_string();
    docker.ok(&["tag", "busybox", "shop/web:1"]);
    docker.ok(&["save", "-o", &archive, "shop/web:1", "busybox"]);
    let copied = here.path().join("layout").display().to_string();
    let skopeo = std::process::Command::new("skopeo")
        .args(["copy", "-q", &format!("docker-archive:{archive}:shop/web:1"), &format!("oci:{copied}:1")])
        .output()
        .unwrap();
    assert!(skopeo.status.success(), "{}", text(&skopeo));
    let id = docker.inspect("busybox", "{{.Id}}");
    docker.ok(&["rmi", "shop/web:1", "busybox"]);
    assert_eq!(docker.ok(&["images", "-q"]), "");
    assert!(docker.ok(&["load", "-i", &archive]).contains("Loaded image: shop/web:1"));
    assert_eq!(docker.inspect("shop/web:1", "{{.Id}}"), id);
    assert_eq!(docker.ok(&["run", "--rm", "shop/web:1", "echo", "again"]), "again");
    // As skopeo writes it, from its own store.
    let other = here.path().join("other.tar").display().to_string();
    let skopeo = std::process::Command::new("skopeo")
        .args(["copy", "-q", &format!("oci:{copied}:1"), &format!("docker-archive:{other}:other/name:2")])
        .output()
        .unwrap();
    assert!(skopeo.status.success(), "{}", text(&skopeo));
    docker.ok(&["load", "-i", &other]);
    assert_eq!(docker.ok(&["run", "--rm", "other/name:2", "echo", "third"]), "third");
    assert!(docker.ok(&["history", "shop/web:1"]).contains("Imported"));

    // Our own registry, with the push token as the password.
    let registry = docker.daemon.http().trim_start_matches("http://").to_owned();
    let name = format!("{registry}/team/web:1");
    docker.ok(&["tag", "shop/web:1", &name]);
    let mut login = docker.command("docker", &["login", "-u", "naru", "--password-stdin", &registry]);
    login.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut login = login.spawn().unwrap();
    use std::io::Write;
    login.stdin.take().unwrap().write_all(docker.daemon.push_token().as_bytes()).unwrap();
    assert!(login.wait().unwrap().success());
    docker.ok(&["push", &name]);
    docker.ok(&["rmi", &name]);
    docker.ok(&["pull", &name]);
    assert_eq!(docker.ok(&["run", "--rm", &name, "echo", "pulled"]), "pulled");
    assert!(docker.fails(&["pull", &format!("{registry}/team/nosuch:1")]).contains("nosuch"));
    let _ = tool("docker");
    docker.daemon.destroy();
}
