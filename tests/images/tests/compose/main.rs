//! Compose projects on a real daemon: up, used, killed, changed, exported, down.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use naru_image_tests::harness::{Daemon, naru_binary, text};
use naru_image_tests::make_busybox_image;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A project's directory, and the variables that it is used with.
struct Project {
    dir: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Project {
    /// The example that people see.
    fn example() -> Self {
        let dir = tempfile::Builder::new().prefix("naru-compose-").tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/compose/.");
        let copied = Command::new("cp").arg("-a").arg(from).arg(dir.path()).output().unwrap();
        assert!(copied.status.success(), "{}", text(&copied));
        Self { dir, variables: Vec::new() }
    }

    fn of(source: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("naru-compose-").tempdir().unwrap();
        std::fs::write(dir.path().join("compose.yaml"), source).unwrap();
        Self { dir, variables: Vec::new() }
    }

    /// One of naru's commands, as somebody in the project's directory types it.
    fn naru(&self, daemon: &Daemon, args: &[&str]) -> Output {
        let mut command = Command::new(naru_binary());
        command.args(["--data-dir", &daemon.data_dir().display().to_string()]).args(args);
        command
            .current_dir(self.dir.path())
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn up(&self, daemon: &Daemon, args: &[&str]) -> String {
        let output = self.naru(daemon, &[&["up"], args].concat());
        assert!(
            output.status.success(),
            "{}\n{}",
            text(&output),
            text(&daemon.kubectl(&["get", "pods,events"]))
        );
        text(&output)
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn curl(address: &str, more: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sS", "-m", "10", "--noproxy", "*"])
        .args(more)
        .arg(address)
        .output()
        .unwrap();
    text(&output)
}

/// Asks until the answer is as wanted.
fn curl_until(address: &str, wanted: &str) -> String {
    let began = Instant::now();
    loop {
        let answer = curl(address, &[]);
        if answer.contains(wanted) {
            return answer;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{address} says {answer}, not {wanted}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The pods that stay, by service: their uid and how often a container was started again.
fn pods(daemon: &Daemon) -> BTreeMap<String, String> {
    let all = daemon.get("pods");
    let live = all.iter().filter(|it| it["metadata"]["deletionTimestamp"].is_null());
    live.map(|it| {
        let service =
            it["metadata"]["labels"]["app.kubernetes.io/name"].as_str().unwrap_or_default().to_owned();
        let restarts = &it["status"]["containerStatuses"][0]["restartCount"];
        (service, format!("{} {restarts}", it["metadata"]["uid"]))
    })
    .collect()
}

fn generations(daemon: &Daemon) -> Vec<(Value, Value)> {
    let all = daemon.get(
        "deployments,jobs,services,configmaps,secrets,persistentvolumeclaims,networkpolicies,httproutes",
    );
    all.iter().map(|it| (it["metadata"]["name"].clone(), it["metadata"]["resourceVersion"].clone())).collect()
}

fn diff(daemon: &Daemon, yaml: &str) {
    let output = daemon.kubectl_with_input(&["diff", "-f", "-"], yaml);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output));
}

fn exported(project: &Project, daemon: &Daemon) -> String {
    let output = project.naru(daemon, &["export"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("are Secrets"), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_project_lives_as_compose_promises_and_moves_to_another_cluster() {
    let mut daemon = Daemon::start();
    make_busybox_image(&daemon);
    let mut project = Project::example();
    let port = free_port();
    project.variables.push(("PROXY_PORT", port.to_string()));
    let address = format!("http://127.0.0.1:{port}/");

    // Up: in the order of the dependencies, and reachable as soon as it says so.
    let shown = project.up(&daemon, &[]);
    assert!(
        shown.contains(&format!("proxy at localhost:{port}")) && shown.contains("web at http://shop.test:"),
        "{shown}"
    );
    let answer = curl(&address, &[]);
    assert!(answer.contains("welcome to the shop") && answer.contains("visits: 1"), "{answer}\n{shown}");
    assert!(answer.contains("token: 17 bytes"), "{answer}");
    let (code, page) = daemon.curl("shop.test", "/cgi-bin/page");
    assert!(code == 200 && page.contains("visits: 2"), "{code} {page}");
    let started = |name: &str| {
        let all = daemon.get("pods");
        let pod = all.iter().find(|it| it["metadata"]["labels"]["app.kubernetes.io/name"] == name).unwrap();
        pod["metadata"]["creationTimestamp"].as_str().unwrap().to_owned()
    };
    assert!(started("db") <= started("migrate") && started("migrate") <= started("web"));

    // Networks keep apart: the proxy cannot reach the database, the web service can.
    let ask = |service: &str| {
        let ask = "echo ping | timeout 3 nc -w 1 db 6000";
        text(&daemon.kubectl(&["exec", &format!("deploy/{service}"), "--", "sh", "-c", ask]))
    };
    assert!(ask("web").contains("pong"), "{}", ask("web"));
    assert!(!ask("proxy").contains("pong"));

    // Again: nothing changes. What runs is what the file says.
    let (before, objects) = (pods(&daemon), generations(&daemon));
    project.up(&daemon, &["--wait"]);
    assert_eq!(pods(&daemon), before);
    assert_eq!(generations(&daemon), objects);
    diff(&daemon, &exported(&project, &daemon));

    // The daemon is killed: what runs goes on, also by its published port, and is found again. (Names are
    // the daemon's, so the page itself waits for it.)
    daemon.kill();
    let code = curl(&address, &["-o", "/dev/null", "-w", "%{http_code}"]);
    assert_eq!(code, "200");
    daemon.start_again();
    project.up(&daemon, &[]);
    assert_eq!(pods(&daemon), before);
    curl_until(&address, "visits: 3");

    // One service changes, and nothing else.
    project.variables.push(("TITLE", "the new shop".into()));
    project.up(&daemon, &[]);
    let after = pods(&daemon);
    let changed: Vec<&String> =
        after.iter().filter(|(name, pod)| before[*name] != **pod).map(|it| it.0).collect();
    assert_eq!(changed, ["web"]);
    let answer = curl_until(&address, "welcome to the new shop");
    assert!(answer.contains("title: the new shop"), "{answer}");

    // A service leaves the file.
    let file = project.dir.path().join("compose.yaml");
    let source = std::fs::read_to_string(&file).unwrap();
    let (head, tail) = source.split_once("  worker:").unwrap();
    std::fs::write(&file, format!("{head}{}", &tail[tail.find("  migrate:").unwrap()..])).unwrap();
    let shown = project.up(&daemon, &[]);
    assert!(shown.contains("Deployment worker is no longer in the file: removed"), "{shown}");
    std::fs::write(&file, source).unwrap();

    moves(&project, &daemon);

    // Down: the volume stays until it is said.
    let shown = text(&project.naru(&daemon, &["down"]));
    assert!(shown.contains("1 volume kept"), "{shown}");
    assert!(!curl(&address, &[]).contains("visits"));
    let shown = text(&project.naru(&daemon, &["down", "--volumes"]));
    assert!(shown.contains("volume shop-data removed"), "{shown}");
    let left = daemon.kubectl(&[
        "get",
        "all,cm,secret,pvc,netpol,httproute",
        "-l",
        "naru.dev/compose-project",
        "-o",
        "name",
    ]);
    assert_eq!(text(&left), "");
    daemon
        .wait_for("the volume's directory is gone", "persistentvolumes", |all| all.is_empty().then_some(()));
    daemon.destroy();
}

/// The exported objects run elsewhere, once the images are there.
fn moves(project: &Project, daemon: &Daemon) {
    let other = Daemon::start();
    let here = daemon.http().replace("http://", "");
    let there = other.http().replace("http://", "");
    let yaml = exported(project, daemon);
    let mut images: Vec<&str> =
        yaml.lines().filter_map(|it| it.trim_start_matches([' ', '-']).strip_prefix("image: ")).collect();
    images.sort_unstable();
    images.dedup();
    for image in images {
        let image = image.trim_matches('"').trim_start_matches("naru.local/");
        let output = Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                "--preserve-digests",
            ])
            .args([
                "--src-creds",
                &format!("naru:{}", daemon.push_token()),
                "--dest-creds",
                &format!("naru:{}", other.push_token()),
            ])
            .args([format!("docker://{here}/{image}"), format!("docker://{there}/{image}")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{image}: {}", text(&output));
    }
    // Both run on one machine here, so the ports must differ.
    let port = free_port();
    let mut project = Project { variables: project.variables.clone(), ..Project::example() };
    project.variables.retain(|it| it.0 != "PROXY_PORT");
    project.variables.push(("PROXY_PORT", port.to_string()));
    let yaml = exported(&project, daemon);
    let output = other.kubectl_with_input(&["apply", "-f", "-"], &yaml);
    assert!(output.status.success(), "{}", text(&output));
    let output =
        other.kubectl(&["wait", "--for=condition=Available", "deployment", "--all", "--timeout=60s"]);
    assert!(output.status.success(), "{}", text(&output));
    curl_until(&format!("http://127.0.0.1:{port}/"), "visits: 1");
    diff(&other, &yaml);
    other.destroy();
}

#[test]
fn what_cannot_run_is_said_before_anything_does() {
    let daemon = Daemon::start();
    make_busybox_image(&daemon);
    let refused = |source: &str, args: &[&str], wanted: &[&str]| {
        let project = Project::of(source);
        let output = project.naru(&daemon, args);
        let shown = text(&output);
        assert!(!output.status.success(), "{source}: {shown}");
        for words in wanted {
            assert!(shown.contains(words), "{source}: want {words}\n{shown}");
        }
    };
    refused(
        "services:\n  web:\n    image: busybox\n    devices: [/dev/kvm]\n",
        &["up"],
        &[
            "`devices` of the service `web` cannot be kept",
            "compose.yaml:4:5",
            "the project cannot be run: 1 error",
        ],
    );
    refused(
        "services:\n  web: {image: busybox}\n",
        &["up", "wbe"],
        &["there is no service `wbe`", "did you mean `web`?"],
    );
    refused("services: {web: {image: busybox}}\n", &["up", "-f", "gone.yaml"], &["cannot read", "gone.yaml"]);
    assert!(daemon.get("deployments").is_empty(), "nothing was begun");

    // What ends badly ends the waiting, with the program's own words.
    let failing = "name: p\nservices:\n  job:\n    image: busybox\n    command: [sh, -c, 'echo no luck; exit 3']\n    restart: 'no'\n";
    refused(failing, &["up"], &["the service `job` does not run", "no luck"]);
    refused(
        "name: p\nservices: {a: {image: 'naru.local/none:1'}}\n",
        &["up"],
        &["the service `a` does not run", "ImagePull"],
    );

    // A port that another program has stays that program's.
    let other = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let publishing = format!(
        "name: p\nservices: {{a: {{image: busybox, command: sleep 1000, ports: ['{port}:80'], stop_grace_period: 0s}}}}\n"
    );
    refused(&publishing, &["up"], &[&format!("port {port} of the machine is taken")]);
    drop(other);
    let project = Project::of(&publishing);
    let began = Instant::now();
    while !project.naru(&daemon, &["up"]).status.success() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{}",
            text(&daemon.kubectl(&["get", "services", "-o", "yaml"]))
        );
    }

    // What was made by hand is not taken over.
    let output = daemon.kubectl(&["create", "deployment", "mine", "--image=busybox"]);
    assert!(output.status.success(), "{}", text(&output));
    refused(
        "name: q\nservices: {mine: {image: busybox}}\n",
        &["up"],
        &["the Deployment mine is there already", "--namespace"],
    );
    let elsewhere = Project::of(
        "name: q\nservices: {mine: {image: busybox, command: sleep 1000, stop_grace_period: 0s}}\n",
    );
    elsewhere.up(&daemon, &["-n", "elsewhere"]);
    assert!(elsewhere.naru(&daemon, &["down", "-n", "elsewhere"]).status.success());
    daemon.destroy();
}

#[test]
fn ports_are_published_where_the_file_says() {
    let daemon = Daemon::start();
    make_busybox_image(&daemon);
    let (everywhere, local) = (free_port(), free_port());
    let project = Project::of(&format!(
        "name: p\nservices:\n  a:\n    image: busybox\n    stop_grace_period: 0s\n    command: [httpd, -f, -p, '80', -h, /etc]\n    \
         healthcheck: {{test: [CMD, nc, -w, '1', 127.0.0.1, '80', -e, 'true']}}\n    ports: ['{everywhere}:80', '127.0.0.1:{local}:80', '80']\n"
    ));
    let shown = project.up(&daemon, &[]);
    let answers = |host: &str, port: u16| {
        curl(&format!("http://{host}:{port}/"), &["-o", "/dev/null", "-w", "%{http_code}"]).contains("404")
    };
    let machine = daemon.wait_for("the service has an address", "services", |all| {
        let it = all.iter().find(|it| it["metadata"]["name"] == "a-published")?;
        it["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned)
    });
    assert!(answers("127.0.0.1", everywhere) && answers(&machine, everywhere), "{shown}");
    assert!(answers("127.0.0.1", local), "{shown}");
    assert!(!answers(&machine, local), "only the machine itself reaches this one");
    let chosen: u16 = shown
        .lines()
        .filter_map(|it| it.trim().strip_prefix("a at localhost:"))
        .filter_map(|it| it.parse().ok())
        .find(|it| (30000..32768).contains(it))
        .unwrap_or_else(|| panic!("{shown}"));
    assert!(answers("127.0.0.1", chosen), "{shown}");
    assert!(project.naru(&daemon, &["down"]).status.success());
    assert!(!answers("127.0.0.1", everywhere));
    daemon.destroy();
}

#[test]
fn a_build_sees_its_secret_and_its_dockerfile_in_the_file() {
    let daemon = Daemon::start();
    make_busybox_image(&daemon);
    let mut project = Project::of(
        "name: p
services:
  job:
    build:
      dockerfile_inline: |
        FROM busybox
        ARG WHO
        RUN --mount=type=secret,id=token echo \"$$WHO $$(wc -c < /run/secrets/token)\" > /said
      args: [WHO=me]
      secrets: [token]
    command: [cat, /said]
    restart: 'no'
secrets: {token: {environment: TOKEN}}
",
    );
    project.variables.push(("TOKEN", "s3cret".into()));
    let shown = project.up(&daemon, &[]);
    assert!(shown.contains("completed"), "{shown}");
    assert_eq!(text(&daemon.kubectl(&["logs", "job/job"])), "me 6\n");
    assert!(daemon.get("secrets").is_empty(), "a build's secret is no object");
    assert!(project.naru(&daemon, &["down"]).status.success());
    daemon.destroy();
}
