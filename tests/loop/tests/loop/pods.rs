//! Pods as a kubelet runs them: what has no name in the conformance suite.

use crate::harness::{Daemon, Repository, text};
use serde_json::{Value, json};

/// A daemon with an image that has busybox in it, and the image's name.
fn prepared() -> (Daemon, String) {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.push();
    let image = daemon.get("images").remove(0)["status"]["reference"].as_str().unwrap().to_owned();
    (daemon, image)
}

/// A container that runs a script of busybox.
fn container(name: &str, image: &str, script: &str) -> Value {
    json!({"name": name, "image": image, "command": ["/bin/busybox", "sh", "-c", script]})
}

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    pod["spec"]["terminationGracePeriodSeconds"] = json!(5);
    pod
}

fn create(daemon: &Daemon, object: &Value) {
    let output = daemon.kubectl_with_input(&["create", "-f", "-"], &object.to_string());
    assert!(output.status.success(), "{}", text(&output));
}

fn wait(daemon: &Daemon, name: &str, what: &str, done: impl Fn(&Value) -> bool) -> Value {
    daemon.wait_for(what, "pods", |all| {
        let found = all.iter().find(|it| it["metadata"]["name"] == name);
        found.filter(|it| done(it)).cloned()
    })
}

fn events(daemon: &Daemon, name: &str, reason: &str) -> Vec<Value> {
    let of = |it: &Value| it["involvedObject"]["name"] == name && it["reason"] == reason;
    daemon.get("events").into_iter().filter(of).collect()
}

#[test]
fn a_sidecar_is_there_before_and_after_the_work() {
    let (daemon, image) = prepared();
    let note = |what: &str| format!("/bin/busybox echo {what} >> /notes/all");
    let mut sidecar = container(
        "sidecar",
        &image,
        &format!(
            "trap '{}; exit' TERM; {}; while :; do /bin/busybox sleep 0.1; done",
            note("sidecar-ends"),
            note("sidecar-begins")
        ),
    );
    sidecar["restartPolicy"] = json!("Always");
    sidecar["startupProbe"] = json!({"exec": {"command": ["/bin/busybox", "grep", "sidecar-begins", "/notes/all"]}, "periodSeconds": 1});
    let mut containers = [
        sidecar,
        container("init", &image, &note("init")),
        container(
            "work",
            &image,
            &format!("{}; /bin/busybox sleep 0.5; {}", note("work-begins"), note("work-ends")),
        ),
    ];
    for it in &mut containers {
        it["volumeMounts"] = json!([{"name": "notes", "mountPath": "/notes"}]);
    }
    let [sidecar, init, work] = containers;
    let directory = tempfile::tempdir().unwrap();
    let volume = json!({"name": "notes", "hostPath": {"path": directory.path(), "type": "Directory"}});
    create(
        &daemon,
        &pod(
            "paired",
            json!({"restartPolicy": "Never", "volumes": [volume],
            "initContainers": [sidecar, init], "containers": [work]}),
        ),
    );
    wait(&daemon, "paired", "the work to succeed", |it| it["status"]["phase"] == "Succeeded");
    let notes = std::fs::read_to_string(directory.path().join("all")).unwrap();
    assert_eq!(notes, "sidecar-begins\ninit\nwork-begins\nwork-ends\nsidecar-ends\n");
    daemon.destroy();
}

#[test]
fn a_pod_that_writes_more_than_it_may_is_evicted_and_says_why() {
    let (daemon, image) = prepared();
    let mut writer = container(
        "main",
        &image,
        "/bin/busybox dd if=/dev/zero of=/v/f bs=1M count=3; /bin/busybox sleep 1000",
    );
    writer["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let volume = json!({"name": "v", "emptyDir": {"sizeLimit": "1Mi"}});
    create(&daemon, &pod("greedy", json!({"volumes": [volume], "containers": [writer]})));
    let evicted = wait(&daemon, "greedy", "the eviction", |it| it["status"]["phase"] == "Failed");
    assert_eq!(evicted["status"]["reason"], "Evicted");
    assert!(evicted["status"]["message"].as_str().unwrap().contains("exceeds the limit \"1Mi\""));
    wait(&daemon, "greedy", "its container to end", |it| {
        it["status"]["containerStatuses"][0]["state"]["terminated"].is_object()
    });
    assert_eq!(events(&daemon, "greedy", "Evicted").len(), 1);
    daemon.destroy();
}

#[test]
fn what_cannot_start_says_so_in_the_words_that_people_search_for() {
    let (daemon, image) = prepared();
    let with = |name: &str, field: &str, value: Value| {
        let mut it = container("main", &image, "true");
        it[field] = value;
        create(&daemon, &pod(name, json!({"containers": [it]})));
    };
    with("root", "securityContext", json!({"runAsNonRoot": true}));
    with("unset", "env", json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}]));
    with("misnamed", "image", json!("Not An Image"));
    let mut never = container("main", "naru.local/none/none:1", "true");
    never["imagePullPolicy"] = json!("Never");
    create(&daemon, &pod("never", json!({"containers": [never]})));
    for (name, reason, message) in [
        ("root", "CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
        ("unset", "CreateContainerConfigError", "secret \"none\" not found"),
        ("misnamed", "InvalidImageName", "Not An Image"),
        ("never", "ErrImageNeverPull", "not present"),
    ] {
        let seen = wait(&daemon, name, reason, |it| {
            it["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
        });
        let told = seen["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
        assert!(told.replace('\\', "").contains(message), "{name}: {told}");
    }
    // The same again and again is one event that is counted.
    daemon.wait_for("a repeated event", "pods", |_| {
        let told = events(&daemon, "unset", "Failed");
        (told.len() == 1 && told[0]["count"].as_u64().is_some_and(|it| it > 1)).then_some(())
    });
    daemon.destroy();
}

#[test]
fn an_attachment_gives_input_and_sees_the_end() {
    let (daemon, image) = prepared();
    let mut shell = container("main", &image, "read line; echo got $line");
    (shell["stdin"], shell["stdinOnce"]) = (json!(true), json!(true));
    create(&daemon, &pod("asked", json!({"restartPolicy": "Never", "containers": [shell]})));
    wait(&daemon, "asked", "the pod to run", |it| it["status"]["phase"] == "Running");
    let attached = daemon.kubectl_with_input(&["attach", "-i", "asked"], "hello\n");
    assert!(text(&attached).contains("got hello"), "{}", text(&attached));
    wait(&daemon, "asked", "the pod to end", |it| it["status"]["phase"] == "Succeeded");
    daemon.destroy();
}
