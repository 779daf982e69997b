//! Files that cannot be honoured, and clients that may not: a message with place and next step, nothing run.

use crate::harness::{APP, DOCKERFILE, Daemon, Repository, WORKFLOW, text};

#[test]
fn workflows_that_cannot_be_honoured_are_refused_before_anything_runs() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    let cases = [
        (WORKFLOW.replace("steps:", "stepz:"), "ci.yml:5:5", "did you mean `steps`?"),
        (
            "on: push\njobs:\n  a: {runs-on: ubuntu-latest, needs: b, steps: [{run: x}]}\n  b: {runs-on: ubuntu-latest, needs: a, steps: [{run: x}]}\n".into(),
            "ci.yml:3:",
            "the jobs wait for each other",
        ),
        ("on: push\njobs: [\n".into(), "ci.yml:", "not valid YAML"),
        (WORKFLOW.replace("runs-on: ubuntu-latest", "runs-on: ubuntu-latest\n    snapshot: mine"), "ci.yml:5:5", "not supported"),
    ];
    for (workflow, place, words) in cases {
        page.write(".github/workflows/ci.yml", &workflow);
        page.commit("a bad workflow");
        let shown = page.push();
        assert!(shown.contains(place) && shown.contains(words), "want {place} {words} in\n{shown}");
        assert!(shown.contains("nothing was run"), "{shown}");
    }
    assert!(daemon.get("pods").is_empty());
    assert!(daemon.get("runs").iter().all(|it| it["status"]["phase"] == "Refused"));
    daemon.destroy();
}

#[test]
fn a_typo_in_naru_yaml_and_a_bad_dockerfile_name_their_line_and_the_old_version_serves_on() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.push();
    let dockerfile = |line: &str| DOCKERFILE.replace("EXPOSE 8080", line);
    let cases = [
        ("naru.yaml", APP.replace("port:", "prot:"), "naru.yaml:5:5", "did you mean `port`?"),
        ("Dockerfile", dockerfile("EXPOZE 8080"), "Dockerfile:4:1", "EXPOZE"),
        ("Dockerfile", dockerfile("COPY ../secret /x"), "Dockerfile:4:", "../secret"),
        ("Dockerfile", dockerfile("COPY --from=nowhere /a /b"), "Dockerfile:4:", "nowhere"),
        ("Dockerfile", dockerfile("COPY missing.txt /x"), "Dockerfile:4:", "missing.txt"),
    ];
    for (number, (file, content, place, words)) in cases.into_iter().enumerate() {
        let before = std::fs::read_to_string(page.dir.path().join(file)).unwrap();
        page.write(file, &content);
        page.commit("a bad file");
        let shown = page.push();
        assert!(shown.contains(place) && shown.contains(words), "want {place} {words} in\n{shown}");
        let release = daemon.wait_for_release(number as u64 + 2);
        assert_eq!(release["status"]["phase"], "Failed");
        assert_eq!(daemon.curl("page.test", "/index.html"), (200, "version 1\n".into()));
        page.write(file, &before);
    }
    daemon.destroy();
}

#[test]
fn an_image_that_does_not_start_fails_its_release_and_the_old_version_serves_on() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.push();
    page.write(
        "Dockerfile",
        &DOCKERFILE.replace("[\"/bin/busybox\", \"httpd\"", "[\"/bin/nothing\", \"httpd\""),
    );
    page.commit("starts nothing");
    let shown = page.push();
    assert!(shown.contains("page-r2: Failed"), "{shown}");
    assert_eq!(daemon.curl("page.test", "/index.html"), (200, "version 1\n".into()));
    let message = daemon.wait_for_release(2)["status"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("page-web-r2"), "{message}");
    daemon.wait_for("the new pods to go", "pods", |all| {
        all.iter()
            .all(|it| !it["metadata"]["name"].as_str().unwrap().starts_with("page-web-r2"))
            .then_some(())
    });
    daemon.destroy();
}

#[test]
fn a_wrong_token_pushes_nothing() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    for token in ["", "wrong"] {
        let url = daemon.git_url("page", token);
        let output = page.command(&["push", &url, "main"]).output().unwrap();
        assert!(!output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("Authentication failed"), "{}", text(&output));
    }
    assert!(daemon.get("runs").is_empty());
    assert!(!daemon.data_dir().join("git/page.git").exists());
    daemon.destroy();
}

#[test]
fn two_pushes_at_once_both_become_runs_and_one_of_them_wins_the_branch() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.push();
    page.git(&["branch", "a"]);
    page.git(&["branch", "b"]);
    let mut children: Vec<_> = ["a", "b"]
        .iter()
        .map(|it| {
            page.command(&["push", "--quiet", "naru", it])
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let mut refs: Vec<String> =
        daemon.get("runs").iter().filter_map(|it| it["spec"]["gitRef"].as_str().map(str::to_owned)).collect();
    refs.sort_unstable();
    assert_eq!(refs, ["refs/heads/a", "refs/heads/b", "refs/heads/main"]);
    // Whichever hook comes first records both, and follows one of them.
    daemon.wait_for("both runs to succeed", "runs", |all| {
        all.iter().all(|it| it["status"]["phase"] == "Succeeded").then_some(())
    });
    // Only the default branch is released.
    assert_eq!(daemon.get("releases").len(), 1);
    daemon.destroy();
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused_with_the_first_ones_pid() {
    let daemon = Daemon::start();
    let output = daemon.naru(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--api",
        "127.0.0.1:0",
        "--gateway",
        "127.0.0.1:0",
    ]);
    assert!(!output.status.success());
    let pid = daemon.endpoints["pid"].to_string();
    assert!(text(&output).contains(&format!("a naru with pid {pid} uses")), "{}", text(&output));
    daemon.destroy();
}
