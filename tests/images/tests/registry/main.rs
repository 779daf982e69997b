//! The registry as its clients see it: the distribution specification's own conformance suite, skopeo and crane,
//! users of the cluster, the reference registry as the other side, and kill -9 in the middle of pushes.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use naru_image_tests::harness::{Daemon, PATIENCE, busybox, text, tool};
use naru_image_tests::layout::{done, hello, layout, push_args, run};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn host_of(daemon: &Daemon) -> String {
    daemon.http().trim_start_matches("http://").to_owned()
}

#[test]
fn the_specifications_own_suite_finds_nothing_missing() {
    let daemon = Daemon::start();
    let output = Command::new(tool("oci-conformance"))
        .current_dir(daemon.dir.path())
        .env("OCI_REGISTRY", host_of(&daemon))
        .env("OCI_TLS", "disabled")
        .env("OCI_USERNAME", "naru")
        .env("OCI_PASSWORD", daemon.push_token())
        .env("OCI_API_BLOBS_UPLOAD_CANCEL", "true")
        .env("OCI_API_BLOBS_DIGEST_HEADER", "true")
        .env("OCI_API_MANIFESTS_DIGEST_HEADER", "true")
        .output()
        .unwrap();
    let report = text(&output);
    let figure = |name: &str| {
        let line = report.lines().find(|it| it.trim_start().starts_with(&format!("{name}.")));
        line.and_then(|it| it.rsplit(' ').next()?.parse::<u32>().ok()).unwrap_or_else(|| panic!("{report}"))
    };
    assert!(output.status.success() && figure("FAIL") == 0 && figure("Error") == 0, "{report}");
    assert!(figure("Total") > 800, "{report}");
    daemon.destroy();
}

#[test]
fn users_of_the_cluster_do_what_rbac_lets_them() {
    let daemon = Daemon::start_in(
        tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap(),
        &["--registry-private"],
    );
    let scratch = tempfile::tempdir().unwrap();
    let (image, host) = (hello(scratch.path()), host_of(&daemon));
    let objects = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: ci, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pusher, namespace: default}
rules:
- {apiGroups: [naru.dev], resources: [repositories], resourceNames: [shop/web], verbs: [get, create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: ci, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: pusher}
subjects: [{kind: ServiceAccount, name: ci, namespace: default}]
"#;
    done(daemon.kubectl_with_input(&["apply", "-f", "-"], objects));
    let token = done(daemon.kubectl(&["create", "token", "ci"]));
    let credentials = format!("ci:{}", token.trim());
    let layout = format!("oci:{}:1", image.display());
    let target = |name: &str| format!("docker://{host}/{name}:1");
    done(run("skopeo", &push_args(&layout, &target("shop/web"), &credentials)));
    let elsewhere = run("skopeo", &push_args(&layout, &target("shop/other"), &credentials));
    assert!(!elsewhere.status.success() && text(&elsewhere).contains("denied"), "{}", text(&elsewhere));
    let inspect = |credentials: Option<&str>| {
        let (own, target) = (credentials.map(|it| ["--creds", it]), target("shop/web"));
        let mut args = vec!["inspect", "--tls-verify=false"];
        args.extend(own.iter().flatten());
        args.push(&target);
        run("skopeo", &args)
    };
    assert!(done(inspect(Some(&credentials))).contains("RepoTags"));
    assert!(!inspect(None).status.success(), "a private registry shows strangers nothing");
    assert!(!inspect(Some("ci:wrong")).status.success());
    let delete =
        run("skopeo", &["delete", "--tls-verify=false", "--creds", &credentials, &target("shop/web")]);
    assert!(!delete.status.success(), "the role lets it push, not delete");
    daemon.destroy();
}

#[test]
fn crane_and_skopeo_find_their_commands_working() {
    let daemon = Daemon::start();
    let scratch = tempfile::tempdir().unwrap();
    let (image, host) = (hello(&scratch.path().join("layout")), host_of(&daemon));
    let credentials = format!("naru:{}", daemon.push_token());
    let layout = format!("oci:{}:1", image.display());
    done(run("skopeo", &push_args(&layout, &format!("docker://{host}/a/hello:1"), &credentials)));
    let crane = |args: &[&str]| {
        let output =
            Command::new(tool("crane")).args(args).env("DOCKER_CONFIG", scratch.path()).output().unwrap();
        done(output).trim().to_owned()
    };
    crane(&["auth", "login", &host, "-u", "naru", "-p", &daemon.push_token()]);
    let name = |it: &str| format!("{host}/a/hello:{it}");
    let digest = crane(&["digest", &name("1")]);
    crane(&["validate", "--remote", &name("1")]);
    crane(&["tag", &name("1"), "stable"]);
    crane(&["copy", &name("1"), &format!("{host}/b/copy:2")]);
    let page = scratch.path().join("page.tar");
    let mut tar = tar::Builder::new(fs::File::create(&page).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    tar.append_data(&mut header, "page", &b"more"[..]).unwrap();
    tar.finish().unwrap();
    crane(&["append", "-b", &name("1"), "-f", &page.display().to_string(), "-t", &name("2")]);
    crane(&["mutate", &name("2"), "--label", "team=shop", "-t", &name("3")]);
    crane(&["index", "append", "-m", &name("1"), "-m", &name("2"), "-t", &name("all")]);
    assert_eq!(crane(&["ls", &format!("{host}/a/hello")]), "1\n2\n3\nall\nstable");
    assert!(crane(&["catalog", &host]).contains("b/copy"));
    assert!(crane(&["config", &name("3")]).contains(r#""team":"shop""#));
    let out = scratch.path().join("out.tar");
    crane(&["export", &name("2"), &out.display().to_string()]);
    let listed = done(run("tar", &["-tf", &out.display().to_string()]));
    assert!(listed.contains("hello") && listed.contains("page"), "{listed}");
    assert_eq!(crane(&["digest", &format!("{host}/b/copy:2")]), digest);

    let tags = done(run("skopeo", &["list-tags", "--tls-verify=false", &format!("docker://{host}/a/hello")]));
    assert!(tags.contains("stable"), "{tags}");
    let synced = scratch.path().join("synced");
    fs::create_dir(&synced).unwrap();
    let sync = [
        "sync",
        "--src-tls-verify=false",
        "--src",
        "docker",
        "--dest",
        "dir",
        &name("1"),
        &synced.display().to_string(),
    ];
    done(run("skopeo", &[&["--insecure-policy"], &sync[..]].concat()));
    let delete =
        ["delete", "--tls-verify=false", "--creds", &credentials, &format!("docker://{}", name("1"))];
    done(run("skopeo", &delete));
    let left = crane(&["ls", &format!("{host}/a/hello")]);
    assert_eq!(left, "2\n3\nall", "skopeo deletes the manifest, with every tag of it");
    daemon.destroy();
}

/// Debian's registry with a password, on a port of its own.
struct Peer {
    child: Child,
    host: String,
}

impl Peer {
    fn start(dir: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // `me` with the password `secret` (bcrypt).
        let hash = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";
        fs::write(dir.join("htpasswd"), hash).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {0}/peer}}\n  delete: {{enabled: true}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\nauth:\n  htpasswd: {{realm: peer, path: {0}/htpasswd}}\n",
            dir.display()
        );
        fs::write(dir.join("peer.yml"), config).unwrap();
        let child = Command::new(tool("docker-registry"))
            .args(["serve", &dir.join("peer.yml").display().to_string()])
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("peer.log")).unwrap())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < PATIENCE, "{}", fs::read_to_string(dir.join("peer.log")).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, host: format!("127.0.0.1:{port}") }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn images_come_from_the_reference_registry_with_a_helpers_password_and_through_a_mirror() {
    let scratch = tempfile::tempdir().unwrap();
    let peer = Peer::start(scratch.path());
    let layout = format!("oci:{}:1", hello(&scratch.path().join("layout")).display());
    done(run("skopeo", &push_args(&layout, &format!("docker://{}/a/hello:1", peer.host), "me:secret")));
    done(run("skopeo", &push_args(&layout, &format!("docker://{}/library/far:1", peer.host), "me:secret")));

    // A credential helper, as Docker's are.
    let helper = scratch.path().join("docker-credential-naru-test");
    fs::write(
        &helper,
        "#!/bin/sh\nread server\necho \"{\\\"Username\\\":\\\"me\\\",\\\"Secret\\\":\\\"secret\\\"}\"\n",
    )
    .unwrap();
    done(run("chmod", &["755", &helper.display().to_string()]));
    let config = scratch.path().join("config.json");
    fs::write(&config, json!({"credHelpers": {&peer.host: "naru-test"}}).to_string()).unwrap();
    let path = format!("{}:{}", scratch.path().display(), std::env::var("PATH").unwrap());
    // The daemon inherits it; no other test of this binary looks for such a helper.
    #[expect(unsafe_code, reason = "the only way to hand a daemon of the harness a PATH")]
    unsafe {
        std::env::set_var("PATH", path);
    }
    let mirror = format!("far.example=http://{}", peer.host);
    let daemon = Daemon::start_in(
        tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap(),
        &["--docker-config", &config.display().to_string(), "--registry-mirror", &mirror],
    );
    for (pod, image) in
        [("near", format!("{}/a/hello:1", peer.host)), ("far", "far.example/library/far:1".into())]
    {
        done(daemon.kubectl(&["run", pod, "--image", &image, "--restart=Never"]));
        let wait =
            ["wait", &format!("pod/{pod}"), "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"];
        let waited = daemon.kubectl(&wait);
        assert!(
            waited.status.success(),
            "{}{}",
            text(&waited),
            text(&daemon.kubectl(&["describe", "pod", pod]))
        );
        assert_eq!(done(daemon.kubectl(&["logs", pod])), "hello\n");
    }
    daemon.destroy();
}

#[test]
fn the_disk_budget_takes_what_can_be_had_again_and_never_what_runs() {
    let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let daemon = Daemon::start_in(dir, &["--disk-budget", "1Mi"]);
    let scratch = tempfile::tempdir().unwrap();
    let peer = Peer::start(scratch.path());
    let own = format!("oci:{}:1", hello(&scratch.path().join("layout")).display());
    let credentials = format!("naru:{}", daemon.push_token());
    let pushed = format!("docker://{}/own/hello:1", host_of(&daemon));
    done(run("skopeo", &push_args(&own, &pushed, &credentials)));
    let secret =
        ["create", "secret", "docker-registry", "peer", "--docker-username=me", "--docker-password=secret"];
    done(daemon.kubectl(&[&secret[..], &[&format!("--docker-server={}", peer.host)]].concat()));
    // Two images that a registry has: one runs, one has run.
    for (name, command) in [("runs", "sleep 600"), ("ran", "true")] {
        let content = name.as_bytes();
        let program = fs::read(busybox()).unwrap();
        let files: &[(&str, &[u8])] = &[("bin/busybox", &program), ("name", content)];
        let layout = layout(&scratch.path().join(name), &[files], json!({}));
        let target = format!("docker://{}/test/{name}:1", peer.host);
        done(run("skopeo", &push_args(&format!("oci:{}:1", layout.display()), &target, "me:secret")));
        let mut command: Vec<&str> = command.split(' ').collect();
        command.insert(0, "/bin/busybox");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "restartPolicy": "Never", "imagePullSecrets": [{"name": "peer"}], "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": format!("{}/test/{name}:1", peer.host), "command": command}]}});
        done(daemon.kubectl_with_input(&["apply", "-f", "-"], &pod.to_string()));
    }
    let wait = |args: &[&str]| done(daemon.kubectl(&[&["wait", "--timeout=60s"], args].concat()));
    wait(&["pod/ran", "--for=jsonpath={.status.phase}=Succeeded"]);
    wait(&["pod/runs", "--for=condition=Ready"]);
    done(daemon.kubectl(&["delete", "pod", "ran"]));
    let report = |args: &[&str]| -> Value {
        serde_json::from_str(&done(daemon.naru(&[&["df", "--json"], args].concat()))).unwrap()
    };
    let has = |report: &Value, name: &str| {
        report["images"].as_array().unwrap().iter().any(|it| it["name"].as_str().unwrap().contains(name))
    };
    assert!(has(&report(&["--tidy"]), "test/ran"), "what was used a moment ago stays");
    // Two days later.
    let old = ["-d", "2 days ago"];
    let store = daemon.data_dir().join("images");
    for entry in
        ["blobs/sha256", "layers"].iter().flat_map(|it| fs::read_dir(store.join(it)).unwrap().flatten())
    {
        done(run("touch", &[&old[..], &[&entry.path().display().to_string()]].concat()));
    }
    let after = report(&["--tidy"]);
    assert!(!has(&after, "test/ran"), "{after:#}");
    assert!(has(&after, "test/runs"), "it runs: {after:#}");
    assert!(has(&after, "own/hello"), "it was pushed: {after:#}");
    assert!(after["usedBytes"].as_u64() > after["budgetBytes"].as_u64());
    let refused =
        run("skopeo", &push_args(&own, &format!("docker://{}/own/more:1", host_of(&daemon)), &credentials));
    assert!(!refused.status.success() && text(&refused).contains("disk budget"), "{}", text(&refused));
    let shown = done(daemon.naru(&["df"]));
    assert!(
        shown.contains("image layers, unpacked") && shown.contains("goes when room is needed"),
        "{shown}"
    );
    assert_eq!(done(daemon.kubectl(&["get", "pod", "runs", "-o", "jsonpath={.status.phase}"])), "Running");
    daemon.destroy();
}

#[test]
fn a_quota_holds_for_its_repositories_and_deleting_makes_room() {
    let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let daemon =
        Daemon::start_in(dir, &["--registry-quota", "shop/*=3M", "--registry-quota", "shop/web=10M,tags=2"]);
    let host = host_of(&daemon);
    let credentials = format!("naru:{}", daemon.push_token());
    let scratch = tempfile::tempdir().unwrap();
    let push = |name: &str, fill: u8, bytes: usize| {
        // Nothing that could be packed smaller.
        let content: Vec<u8> = (0..bytes / 32)
            .flat_map(|it| Sha256::digest([&[fill][..], &it.to_le_bytes()].concat()))
            .collect();
        let dir = scratch.path().join(format!("{fill}-{bytes}"));
        let image = layout(&dir, &[&[("data", &content)]], json!({}));
        let source = format!("oci:{}:1", image.display());
        let target = format!("docker://{host}/{name}");
        run("skopeo", &push_args(&source, &target, &credentials))
    };
    done(push("shop/web:1", 1, 2_000_000));
    done(push("shop/web:2", 1, 2_000_000)); // the same content takes no more
    let over = push("shop/api:1", 2, 2_000_000);
    let said = text(&over);
    assert!(!over.status.success() && said.contains("denied") && said.contains("`shop/*`"), "{said}");
    assert!(said.contains("of 3000000 bytes") && said.contains("--registry-quota"), "{said}");
    let many = push("shop/web:3", 1, 2_000_000);
    assert!(!many.status.success() && text(&many).contains("3 of 2 tags"), "{}", text(&many));
    done(push("shop/web:2", 3, 500_000)); // a name that is there may move
    done(push("else/where:1", 2, 2_000_000));
    let shown = done(daemon.naru(&["df"]));
    assert!(shown.contains("shop/*") && shown.contains("2 of 2"), "{shown}");

    // A config for crane, which deletes.
    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(&credentials);
    let config = format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#);
    fs::write(scratch.path().join("config.json"), config).unwrap();
    let deleted = Command::new(tool("crane"))
        .args(["delete", "--insecure", &format!("{host}/shop/web:1")])
        .env("DOCKER_CONFIG", scratch.path())
        .output()
        .unwrap();
    done(deleted);
    done(push("shop/api:1", 2, 2_000_000));
    daemon.destroy();
}
