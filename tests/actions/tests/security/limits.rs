//! What jobs may reach, by their repository's settings, and what they may become.

use naru_actions_tests::ended;
use naru_actions_tests::harness::{Daemon, Repository, text};
use std::net::TcpListener;

/// Looks where it gets to: another program on the machine, another pod, and the server by checking out.
fn workflow(host: &str, port: u16, pod: &str) -> String {
    let reach = |address: &str, port: u16, name: &str| {
        format!(
            "if timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{port}' 2>/dev/null; then echo {name} is open; else \
             echo {name} is closed; fi"
        )
    };
    format!(
        "on: push
jobs:
  look:
    runs-on: ubuntu-latest
    steps:
      - run: |
          {}
          {}
      - uses: actions/checkout@v4
      - run: test -f .github/workflows/ci.yml && echo the server is open
      - run: |
          grep NoNewPrivs /proc/self/status
          sudo -n mkdir /etc/of-this-job && echo \"sudo is $(sudo id -u)\"
      - run: echo \"docker says $(curl -s --unix-socket /var/run/docker.sock http://d/_ping)\"
",
        reach(host, port, "the machine"),
        reach(pod, 8080, "the pod"),
    )
}

fn settings(daemon: &Daemon, spec: &str) -> std::process::Output {
    let object = format!(
        "apiVersion: naru.dev/v1\nkind: RepositorySettings\nmetadata: {{name: page}}\nspec: {spec}\n"
    );
    daemon.kubectl_with_input(&["apply", "-f", "-"], &object)
}

#[test]
fn jobs_reach_what_their_repository_may_reach_and_gain_no_privileges() {
    let daemon = Daemon::start();
    let page = Repository::empty(&daemon, "page");
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let web = daemon.kubectl(&[
        "run",
        "web",
        "--image=rust:1",
        "--command",
        "--",
        "/bin/busybox",
        "httpd",
        "-f",
        "-p",
        "8080",
    ]);
    assert!(web.status.success(), "{}", text(&web));
    let pod = daemon.wait_for("the other pod", "pods", |all| {
        let pod =
            all.iter().find(|it| it["metadata"]["name"] == "web" && it["status"]["phase"] == "Running")?;
        Some(pod["status"]["podIP"].as_str()?.to_owned())
    });
    page.write(".github/workflows/ci.yml", &workflow(&daemon.pod_host(), port, &pod));
    let look = |number: u32| {
        page.commit("look");
        page.push();
        let run = ended(&daemon, &format!("page-main-{number}"));
        assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
        let shown = text(&daemon.naru(&["logs", &format!("run/page-main-{number}")]));
        assert!(shown.contains("the server is open"), "{shown}");
        assert!(shown.contains("NoNewPrivs:\t1") && shown.contains("sudo is 0"), "{shown}");
        shown
    };
    let shown = look(1);
    assert!(shown.contains("the machine is open") && shown.contains("the pod is open"), "{shown}");
    assert!(shown.contains("docker says OK"), "{shown}");

    let applied = settings(&daemon, "{egress: server}");
    assert!(applied.status.success(), "{}", text(&applied));
    let shown = look(2);
    assert!(
        shown.contains("docker says") && shown.contains("which would fetch and push for them"),
        "{shown}"
    );
    assert!(shown.contains("the machine is closed") && shown.contains("the pod is closed"), "{shown}");

    let allow = format!("{{egress: server, allow: [{{cidr: {}, ports: [{port}]}}]}}", daemon.pod_host());
    let applied = settings(&daemon, &allow);
    assert!(applied.status.success(), "{}", text(&applied));
    let shown = look(3);
    assert!(shown.contains("the machine is open") && shown.contains("the pod is closed"), "{shown}");

    // What is not understood is not kept, or nothing runs.
    for (spec, why) in [
        ("{egress: none}", "supported values"),
        ("{egres: server}", "unknown field"),
        ("{egress: all, allow: [{cidr: 10.0.0.0/8}]}", "only with egress: server"),
    ] {
        let refused = settings(&daemon, spec);
        assert!(!refused.status.success() && text(&refused).contains(why), "{spec}: {}", text(&refused));
    }
    let applied = settings(&daemon, "{egress: server, allow: [{cidr: example.com}]}");
    assert!(applied.status.success(), "{}", text(&applied));
    page.commit("look");
    page.push();
    let run = ended(&daemon, "page-main-4");
    let message = run["status"]["jobs"][0]["message"].as_str().unwrap_or_default();
    assert!(run["status"]["phase"] == "Failed" && message.contains("instead of `example.com`"), "{run:#}");

    assert!(daemon.kubectl(&["delete", "repositorysettings", "page"]).status.success());
    let shown = look(5);
    assert!(shown.contains("the machine is open") && shown.contains("the pod is open"), "{shown}");
    daemon.destroy();
}
