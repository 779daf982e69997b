//! A pod from its creation to its end, seen from outside.

use std::time::Duration;

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

use super::{main_of, node};

const PATIENCE: Duration = Duration::from_secs(30);

fn at(case: &Case, name: &str) -> String {
    case.path("v1", &format!("pods/{name}"))
}

fn logs(case: &Case) {
    assert_eq!(case.output_of(&case.pod("talker", "echo 'Hello World'")), "Hello World\n");
}

fn host_aliases(case: &Case) {
    let mut pod = case.pod("named", "cat /etc/hosts");
    pod["spec"]["hostAliases"] = json!([{"ip": "123.45.67.89", "hostnames": ["foo", "bar"]}]);
    assert!(case.output_of(&pod).contains("123.45.67.89\tfoo\tbar"));
}

/// The file is the node's, unless a container brings its own or the pod is on the machine's network.
fn etc_hosts(case: &Case) {
    const MARK: &str = "# Kubernetes-managed hosts file.";
    let mut pod = case.pod("managed", "sleep 1000");
    pod["spec"]["volumes"] = json!([{"name": "own", "hostPath": {"path": "/etc/hosts", "type": "File"}}]);
    let mut other = main_of(&mut pod).clone();
    other["name"] = json!("own");
    other["volumeMounts"] = json!([{"name": "own", "mountPath": "/etc/hosts"}]);
    pod["spec"]["containers"].as_array_mut().unwrap().push(other);
    let mut on_host = case.pod("on-host", "sleep 1000");
    on_host["spec"]["hostNetwork"] = json!(true);
    for pod in [pod, on_host] {
        case.create(&case.path("v1", "pods"), &pod);
    }
    for (name, container, managed) in
        [("managed", "main", true), ("managed", "own", false), ("on-host", "main", false)]
    {
        case.wait_running(name);
        let shown = case.kubectl(&["exec", name, "-c", container, "--", "cat", "/etc/hosts"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(!shown.is_empty());
        assert_eq!(shown.starts_with(MARK), managed, "{name}/{container}: {shown}");
    }
}

fn generation_of(pod: &Value) -> i64 {
    pod["metadata"]["generation"].as_i64().unwrap_or(0)
}

fn observed(case: &Case, name: &str, generation: i64) {
    case.wait_for("the generation to be observed", &at(case, name), |it| {
        it["status"]["observedGeneration"] == generation
    });
}

fn generation(case: &Case) {
    let pod = case.create(&case.path("v1", "pods"), &case.pod("counted", "sleep 1000"));
    assert_eq!(generation_of(&pod), 1);
    observed(case, "counted", 1);
    let mut expect = 1;
    for (change, counts) in [
        (json!({"spec": {"activeDeadlineSeconds": 1000}}), true),
        (json!({"metadata": {"labels": {"a": "b"}}}), false),
        (json!({"spec": {"tolerations": [{"key": "x", "operator": "Exists"}]}}), true),
        (json!({"metadata": {"annotations": {"a": "b"}}}), false),
    ] {
        expect += i64::from(counts);
        let changed = match change["spec"]["tolerations"].is_array() {
            // Only more may be tolerated, so what is there stays.
            true => {
                let mut pod = case.get(&at(case, "counted"));
                // The node writes the status at the same time.
                pod["metadata"]["resourceVersion"] = Value::Null;
                let tolerations = pod["spec"]["tolerations"].as_array_mut();
                match tolerations {
                    Some(all) => all.push(change["spec"]["tolerations"][0].clone()),
                    None => pod["spec"]["tolerations"] = change["spec"]["tolerations"].clone(),
                }
                case.replace(&at(case, "counted"), &pod)
            }
            false => case.merge(&at(case, "counted"), &change),
        };
        assert_eq!(generation_of(&changed), expect, "{change}");
        observed(case, "counted", expect);
    }
}

/// A generation that a client writes counts for nothing; a graceful deletion is a change.
fn custom_generation(case: &Case) {
    let mut pod = case.pod("counted", "trap '' TERM; sleep 1000");
    pod["metadata"]["generation"] = json!(100);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(2);
    let made = case.create(&case.path("v1", "pods"), &pod);
    assert_eq!(generation_of(&made), 1);
    case.wait_running("counted");
    case.delete(&at(case, "counted"));
    let going = case.get(&at(case, "counted"));
    assert_eq!(generation_of(&going), 2);
    case.wait_gone(&at(case, "counted"));
}

fn many_updates(case: &Case) {
    case.create(&case.path("v1", "pods"), &case.pod("counted", "sleep 1000"));
    let mut deadline = 20_000;
    for _ in 0..500 {
        deadline -= 1;
        case.merge(&at(case, "counted"), &json!({"spec": {"activeDeadlineSeconds": deadline}}));
    }
    assert_eq!(generation_of(&case.get(&at(case, "counted"))), 501);
    observed(case, "counted", 501);
}

fn quality(case: &Case) {
    let mut pod = case.pod("sorted", "sleep 1000");
    let resources = json!({"cpu": "100m", "memory": "100Mi"});
    main_of(&mut pod)["resources"] = json!({"limits": resources, "requests": resources});
    let made = case.create(&case.path("v1", "pods"), &pod);
    assert_eq!(made["status"]["qosClass"], "Guaranteed");
    assert_eq!(case.wait_running("sorted")["status"]["qosClass"], "Guaranteed");
}

fn deadline(case: &Case) {
    let mut pod = case.pod("bounded", "sleep 1000");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    case.create(&case.path("v1", "pods"), &pod);
    case.wait_running("bounded");
    case.merge(&at(case, "bounded"), &json!({"spec": {"activeDeadlineSeconds": 1}}));
    let ended = case.wait_for("the deadline", &at(case, "bounded"), |it| it["status"]["phase"] == "Failed");
    assert_eq!(ended["status"]["reason"], "DeadlineExceeded");
}

fn submitted_and_removed(case: &Case) {
    let mut watch = case.watch(&format!("{}?labelSelector=name=short", case.path("v1", "pods")));
    case.create(&case.path("v1", "pods"), &case.pod("short", "sleep 1000"));
    watch.until("ADDED", PATIENCE);
    case.wait_running("short");
    case.ask("DELETE", &at(case, "short"), &json!({"gracePeriodSeconds": 1}));
    let gone = watch.until("DELETED", PATIENCE);
    assert!(gone["object"]["metadata"]["deletionTimestamp"].is_string());
    assert!(case.list(&format!("{}?labelSelector=name=short", case.path("v1", "pods"))).is_empty());
}

fn updated(case: &Case) {
    case.create(&case.path("v1", "pods"), &case.pod("changing", "sleep 1000"));
    let mut pod = case.wait_running("changing");
    pod["metadata"]["labels"]["time"] = json!("now");
    case.wait("the update to find nobody in between", || {
        let mut newest = case.get(&at(case, "changing"));
        newest["metadata"]["labels"]["time"] = json!("now");
        (case.ask("PUT", &at(case, "changing"), &newest).code == 200).then_some(())
    });
    let found = case.list(&format!("{}?labelSelector=time=now", case.path("v1", "pods")));
    assert_eq!(found.len(), 1);
}

fn collection(case: &Case) {
    for name in ["test-1", "test-2", "test-3"] {
        let mut pod = case.pod(name, "sleep 1000");
        pod["metadata"]["labels"] = json!({"type": "Testing"});
        pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
        case.create(&case.path("v1", "pods"), &pod);
    }
    let selected = format!("{}?labelSelector=type=Testing", case.path("v1", "pods"));
    assert_eq!(case.list(&selected).len(), 3);
    case.delete(&selected);
    case.wait("all to be gone", || case.list(&selected).is_empty().then_some(()));
}

fn host_ip(case: &Case) {
    case.create(&case.path("v1", "pods"), &case.pod("placed", "sleep 1000"));
    let pod = case.wait_for("a host address", &at(case, "placed"), |it| it["status"]["hostIP"].is_string());
    let node = case.list("/api/v1/nodes").remove(0);
    assert_eq!(pod["status"]["hostIP"], node["status"]["addresses"][0]["address"]);
}

fn patch_status(case: &Case) {
    case.create(&case.path("v1", "pods"), &case.pod("told", "sleep 1000"));
    case.wait_running("told");
    let change = json!({"status": {"message": "Patched by a test", "reason": "Test"}});
    let told = case.patch("strategic-merge-patch", &format!("{}/status", at(case, "told")), &change);
    assert_eq!(
        (&told["status"]["message"], &told["status"]["reason"]),
        (&change["status"]["message"], &change["status"]["reason"])
    );
    assert_eq!(told["status"]["phase"], "Running");
}

fn life(case: &Case) {
    let mut watch = case.watch(&format!("{}?labelSelector=test-pod-static=true", case.path("v1", "pods")));
    let mut pod = case.pod("lived", "sleep 1000");
    pod["metadata"]["labels"] = json!({"test-pod-static": "true"});
    case.create(&case.path("v1", "pods"), &pod);
    watch.until("ADDED", PATIENCE);
    case.wait_running("lived");
    let image = case.cluster.image.clone();
    let change = json!({"metadata": {"labels": {"test-pod": "patched"}}, "spec": {"terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": image}]}});
    let patched = case.patch("strategic-merge-patch", &at(case, "lived"), &change);
    assert_eq!(patched["metadata"]["labels"]["test-pod"], "patched");
    // A status that somebody else writes is kept until its owner knows better.
    let ready = json!({"status": {"conditions": [{"type": "example.com/seen", "status": "True"}]}});
    case.patch("strategic-merge-patch", &format!("{}/status", at(case, "lived")), &ready);
    let seen = case.get(&at(case, "lived"));
    let conditions = seen["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|it| it["type"] == "example.com/seen"));
    assert!(conditions.iter().any(|it| it["type"] == "Ready"));
    case.delete(&format!("{}?labelSelector=test-pod-static=true", case.path("v1", "pods")));
    watch.until("DELETED", PATIENCE);
    case.wait_gone(&at(case, "lived"));
}

fn exec_over_websockets(case: &Case) {
    case.create(&case.path("v1", "pods"), &case.pod("asked", "sleep 1000"));
    case.wait_running("asked");
    assert_eq!(case.exec("asked", &["cat", "/etc/hostname"]), "asked\n");
    let failed = case.kubectl(&["exec", "asked", "--", "sh", "-c", "echo bad >&2; exit 7"]);
    assert_eq!((failed.status.code(), failed.stderr.starts_with(b"bad\n")), (Some(7), true));
}

fn runtime_class(case: &Case, overhead: Option<Value>) -> String {
    let name = case.unique("class");
    let mut class = json!({"metadata": {"name": name}, "handler": "runc"});
    if let Some(overhead) = overhead {
        class["overhead"] = json!({"podFixed": overhead});
    }
    case.create(CLASSES, &class);
    name
}

const CLASSES: &str = "/apis/node.k8s.io/v1/runtimeclasses";

fn of_class(case: &Case, class: &str) -> Value {
    let mut pod = case.pod("classy", "echo ran");
    pod["spec"]["runtimeClassName"] = json!(class);
    pod
}

fn class(overhead: Option<Value>) -> impl Fn(&Case) {
    move |case| {
        let class = runtime_class(case, overhead.clone());
        assert_eq!(case.output_of(&of_class(case, &class)), "ran\n");
        let pod = case.get(&at(case, "classy"));
        assert_eq!(pod["spec"]["overhead"], json!(overhead));
        case.delete(&format!("{CLASSES}/{class}"));
    }
}

fn config_map_update(case: &Case) {
    let path = case.path("v1", "configmaps");
    case.create(&path, &json!({"metadata": {"name": "it"}, "data": {"data": "value"}}));
    let changed = json!({"metadata": {"name": "it"}, "data": {"data": "changed", "more": "x"}});
    case.replace(&format!("{path}/it"), &changed);
    assert_eq!(case.get(&format!("{path}/it"))["data"], changed["data"]);
}

pub fn all() -> Vec<Scenario> {
    vec![
        node(
            "[sig-node] ConfigMap should update ConfigMap successfully [NodeConformance] [Conformance]",
            config_map_update,
        ),
        node(
            "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass and initialize its Overhead [NodeConformance] [Conformance]",
            class(Some(json!({"cpu": "10m", "memory": "1Mi"}))),
        ),
        node(
            "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass without PodOverhead [NodeConformance] [Conformance]",
            class(None),
        ),
        node(
            "[sig-node] Kubelet when scheduling a busybox command in a pod should print the output to logs [NodeConformance] [Conformance]",
            logs,
        ),
        node(
            "[sig-node] Kubelet when scheduling an agnhost Pod with hostAliases should write entries to /etc/hosts [NodeConformance] [Conformance]",
            host_aliases,
        ),
        node(
            "[sig-node] KubeletManagedEtcHosts should test kubelet managed /etc/hosts file [NodeConformance] [Conformance]",
            etc_hosts,
        ),
        node(
            "[sig-node] Pods Extended (pod generation) Pod Generation custom-set generation on new pods and graceful delete [Conformance]",
            custom_generation,
        ),
        node(
            "[sig-node] Pods Extended (pod generation) Pod Generation issue 500 podspec updates and verify generation and observedGeneration eventually converge [MinimumKubeletVersion:1.34] [Conformance]",
            many_updates,
        ),
        node(
            "[sig-node] Pods Extended (pod generation) Pod Generation pod generation should start at 1 and increment per update [MinimumKubeletVersion:1.34] [Conformance]",
            generation,
        ),
        node(
            "[sig-node] Pods Extended Pods Set QOS Class should be set on Pods with matching resource requests and limits for memory and cpu [Conformance]",
            quality,
        ),
        node(
            "[sig-node] Pods should allow activeDeadlineSeconds to be updated [NodeConformance] [Conformance]",
            deadline,
        ),
        node(
            "[sig-node] Pods should be submitted and removed [NodeConformance] [Conformance]",
            submitted_and_removed,
        ),
        node("[sig-node] Pods should be updated [NodeConformance] [Conformance]", updated),
        node("[sig-node] Pods should delete a collection of pods [Conformance]", collection),
        node("[sig-node] Pods should get a host IP [NodeConformance] [Conformance]", host_ip),
        node("[sig-node] Pods should patch a pod status [Conformance]", patch_status),
        node("[sig-node] Pods should run through the lifecycle of Pods and PodStatus [Conformance]", life),
        node(
            "[sig-node] Pods should support remote command execution over websockets [NodeConformance] [Conformance]",
            exec_over_websockets,
        ),
    ]
}
