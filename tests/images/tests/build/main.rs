//! `naru build` as people use it, against a real daemon, with skopeo, kubectl and tar as the other side.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use naru_image_tests::harness::{Daemon, text};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// A context with a busybox, which needs no registry.
fn context() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy("/bin/busybox", dir.path().join("busybox")).expect("busybox-static is installed");
    dir
}

const BASE: &str = "FROM scratch AS base\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\n";

fn write(dir: &Path, name: &str, content: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn build(daemon: &Daemon, dir: &Path, args: &[&str]) -> Output {
    daemon.naru(&[&["build"], args, &[&dir.display().to_string()]].concat())
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_uploaded_context_becomes_an_image_that_pods_run() {
    let daemon = Daemon::start();
    let dir = context();
    let at = |it: &str| dir.path().join("out").join(it).display().to_string();
    fs::create_dir(dir.path().join("out")).unwrap();
    write(
        dir.path(),
        "Dockerfile",
        &format!(
            "{BASE}ARG WHO=nobody\nCOPY src /srv\nRUN echo \"hello $WHO\" > /srv/greeting; cat /srv/greeting\nCMD [\"/bin/busybox\", \"cat\", \"/srv/greeting\"]\n"
        ),
    );
    write(dir.path(), ".dockerignore", "out\n**/*.md\n");
    write(dir.path(), "src/a.txt", "a");
    write(dir.path(), "src/notes.md", "no");
    fs::set_permissions(dir.path().join("src/a.txt"), fs::Permissions::from_mode(0o640)).unwrap();

    let oci = format!("type=oci,dest={}", at("web.oci"));
    let docker = format!("type=docker,dest={}", at("web.docker"));
    let tar = format!("type=tar,dest={}", at("web.tar"));
    let args = [
        "-t",
        "web:1",
        "--build-arg",
        "WHO=world",
        "--label",
        "team=shop",
        "-o",
        &oci,
        "-o",
        &docker,
        "-o",
        &tar,
        "-o",
        &at("files"),
        "--iidfile",
        &at("iid"),
    ];
    let output = build(&daemon, dir.path(), &args);
    assert!(output.status.success(), "{}", text(&output));
    let shown = String::from_utf8_lossy(&output.stderr);
    assert!(shown.contains("hello world") && shown.contains("RUN echo"), "{shown}");
    let digest = fs::read_to_string(at("iid")).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("web:1 {digest}\n"));

    // Other tools read what came out, and it is the same image.
    let inspect = run("skopeo", &["inspect", "--config", &format!("oci-archive:{}", at("web.oci"))]);
    assert!(inspect.contains(r#""team": "shop""#) || inspect.contains(r#""team":"shop""#), "{inspect}");
    let of_oci =
        run("skopeo", &["inspect", "--format", "{{.Digest}}", &format!("oci-archive:{}", at("web.oci"))]);
    assert_eq!(of_oci.trim(), digest);
    run(
        "skopeo",
        &["copy", &format!("docker-archive:{}", at("web.docker")), &format!("dir:{}", at("copied"))],
    );
    let listed = run("tar", &["-tvf", &at("web.tar")]);
    assert!(listed.contains("srv/greeting") && listed.contains("-rw-r----- 0/0"), "{listed}");
    assert!(!listed.contains("notes.md"), "{listed}");
    assert_eq!(fs::read_to_string(at("files/srv/greeting")).unwrap(), "hello world\n");

    // Nothing changed but a time: nothing is done again.
    write(dir.path(), "src/a.txt", "a");
    let again = build(&daemon, dir.path(), &["-q", "--build-arg", "WHO=world", "--label", "team=shop"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout).trim(), digest, "{}", text(&again));

    // A pod runs it by the name that it was given.
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"greeter"},"spec":{"restartPolicy":"Never",
        "containers":[{"name":"web","image":"web:1","imagePullPolicy":"IfNotPresent"}]}}"#;
    let applied = daemon.kubectl_with_input(&["apply", "-f", "-"], pod);
    assert!(applied.status.success(), "{}", text(&applied));
    daemon.wait_for("the pod", "pods", |all| {
        all.iter()
            .any(|it| it["metadata"]["name"] == "greeter" && it["status"]["phase"] == "Succeeded")
            .then_some(())
    });
    assert_eq!(String::from_utf8_lossy(&daemon.kubectl(&["logs", "greeter"]).stdout), "hello world\n");

    // A build that fails says where, and is a failure to scripts.
    write(dir.path(), "Bad", &format!("{BASE}RUN echo before && exit 7\n"));
    let bad = build(&daemon, dir.path(), &["-f", &dir.path().join("Bad").display().to_string()]);
    let shown = String::from_utf8_lossy(&bad.stderr);
    assert_eq!(bad.status.code(), Some(1), "{shown}");
    assert!(
        shown.contains("Bad:4:1") && shown.contains("exit code 7") && shown.contains("| before"),
        "{shown}"
    );
    daemon.destroy();
}
