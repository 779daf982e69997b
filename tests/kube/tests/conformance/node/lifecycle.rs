//! Hooks, init containers, ends and their messages, ephemeral containers, changes of resources.

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

use super::{main_of, node, pod_with_volume};

const SERVER: &str = "httpd -f -vv -p 8080 -h /www";

/// A pod that writes down who asked it; returns its address.
fn handler(case: &Case) -> String {
    case.create(&case.path("v1", "pods"), &case.pod("handler", SERVER));
    case.wait_running("handler")["status"]["podIP"].as_str().unwrap().to_owned()
}

fn heard(case: &Case, what: &str) {
    case.wait("the handler to be asked", || case.logs("handler").contains(what).then_some(()));
}

#[derive(Clone, Copy)]
enum How {
    Exec,
    Http,
}

fn hook(kind: &'static str, how: How) -> impl Fn(&Case) {
    move |case| {
        let address = handler(case);
        let path = format!("/{kind}");
        let hook = match how {
            How::Exec => {
                json!({"exec": {"command": ["sh", "-c", format!("wget -q -O- http://{address}:8080{path}; true")]}})
            }
            How::Http => json!({"httpGet": {"host": address, "port": 8080, "path": path}}),
        };
        let mut pod = case.pod("hooked", "sleep 1000");
        pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
        main_of(&mut pod)["lifecycle"] = json!({kind: hook});
        case.create(&case.path("v1", "pods"), &pod);
        case.wait_running("hooked");
        if kind == "preStop" {
            assert!(!case.logs("handler").contains(&path));
            case.ask("DELETE", &case.path("v1", "pods/hooked"), &json!({"gracePeriodSeconds": 3}));
        }
        heard(case, &format!("url:{path}"));
    }
}

fn pre_stop(case: &Case) {
    let address = handler(case);
    let mut pod = case.pod("tester", "sleep 1000");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
    let ask = format!("wget -q -O- http://{address}:8080/prestop-was-here; true");
    main_of(&mut pod)["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", ask]}}});
    case.create(&case.path("v1", "pods"), &pod);
    case.wait_running("tester");
    case.ask("DELETE", &case.path("v1", "pods/tester"), &json!({"gracePeriodSeconds": 3}));
    heard(case, "url:/prestop-was-here");
    case.wait_gone(&case.path("v1", "pods/tester"));
}

/// Runs a script to its end and returns how the container ended.
fn end_of(case: &Case, script: &str, fields: Value, context: Value) -> Value {
    let mut pod = case.pod("ends", script);
    pod["spec"]["securityContext"] = context;
    for (key, value) in fields.as_object().unwrap() {
        main_of(&mut pod)[key] = value.clone();
    }
    case.create(&case.path("v1", "pods"), &pod);
    let ended = case.wait_for("the end", &case.path("v1", "pods/ends"), |it| {
        matches!(it["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
    });
    ended["status"]["containerStatuses"][0]["state"]["terminated"].clone()
}

fn message(script: &'static str, fields: Value, user: u32, expect: Value) -> impl Fn(&Case) {
    move |case| {
        let end = end_of(case, script, fields.clone(), json!({"runAsUser": user}));
        assert_eq!(end["message"], expect, "{end:#}");
    }
}

/// Three restart policies over programs that count how often they ran.
fn policies(case: &Case) {
    let count = "echo x >> /v/count; n=$(wc -l < /v/count);";
    for (name, policy, script, phase, restarts, ready) in [
        ("always", "Always", "test $n -lt 3 && exit 1; sleep 1000", "Running", 2, true),
        ("on-failure", "OnFailure", "test $n -lt 2 && exit 1; exit 0", "Succeeded", 1, false),
        ("never", "Never", "exit 1", "Failed", 0, false),
    ] {
        let mut pod = pod_with_volume(case, name, &format!("{count} {script}"), json!({"emptyDir": {}}));
        pod["spec"]["restartPolicy"] = json!(policy);
        case.create(&case.path("v1", "pods"), &pod);
        case.wait_for(
            &format!("{name} to be as expected"),
            &case.path("v1", &format!("pods/{name}")),
            |it| {
                let status = &it["status"]["containerStatuses"][0];
                it["status"]["phase"] == phase
                    && status["restartCount"] == restarts
                    && status["ready"] == ready
            },
        );
    }
}

fn with_init(case: &Case, policy: &str, first: &str) -> Value {
    let mut pod = case.pod("initial", if policy == "Never" { "true" } else { "sleep 1000" });
    pod["spec"]["restartPolicy"] = json!(policy);
    let image = pod["spec"]["containers"][0]["image"].clone();
    pod["spec"]["initContainers"] = json!([
        {"name": "init1", "image": image, "command": ["sh", "-c", first]},
        {"name": "init2", "image": image, "command": ["true"]}]);
    case.create(&case.path("v1", "pods"), &pod)
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|it| it["type"] == kind).and_then(|it| it["status"].as_str()).unwrap_or_default()
}

fn init(policy: &'static str, phase: &'static str) -> impl Fn(&Case) {
    move |case| {
        with_init(case, policy, "true");
        let pod = case.wait_for("the pod to get there", &case.path("v1", "pods/initial"), |it| {
            it["status"]["phase"] == phase
        });
        assert_eq!(condition(&pod, "Initialized"), "True");
        for status in pod["status"]["initContainerStatuses"].as_array().unwrap() {
            assert_eq!(
                (&status["ready"], &status["state"]["terminated"]["exitCode"]),
                (&json!(true), &json!(0))
            );
        }
    }
}

fn failing_init_never(case: &Case) {
    with_init(case, "Never", "false");
    let at = case.path("v1", "pods/initial");
    let pod = case.wait_for("the pod to fail", &at, |it| it["status"]["phase"] == "Failed");
    assert_eq!(condition(&pod, "Initialized"), "False");
    let statuses = &pod["status"]["initContainerStatuses"];
    assert_eq!(statuses[0]["state"]["terminated"]["exitCode"], 1);
    assert!(statuses[1]["state"]["waiting"].is_object(), "{pod:#}");
    assert!(pod["status"]["containerStatuses"][0]["state"]["waiting"].is_object());
}

fn failing_init_always(case: &Case) {
    with_init(case, "Always", "false");
    let pod = case.wait_for("init1 to be tried again", &case.path("v1", "pods/initial"), |it| {
        it["status"]["initContainerStatuses"][0]["restartCount"].as_u64().is_some_and(|it| it >= 2)
    });
    assert_eq!((pod["status"]["phase"].as_str(), condition(&pod, "Initialized")), (Some("Pending"), "False"));
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
}

fn ephemeral(name: &str, case: &Case) -> Value {
    json!({"name": name, "image": case.cluster.image, "command": ["sleep", "999"], "stdin": true, "tty": true,
        "targetContainerName": "main"})
}

fn add_ephemeral(case: &Case) {
    case.create(&case.path("v1", "pods"), &case.pod("seen", "sleep 1000"));
    case.wait_running("seen");
    let at = case.path("v1", "pods/seen");
    let change = json!({"spec": {"ephemeralContainers": [ephemeral("debugger", case)]}});
    case.patch("strategic-merge-patch", &format!("{at}/ephemeralcontainers"), &change);
    case.wait_for("the ephemeral container to run", &at, |it| {
        it["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_object()
    });
    let seen = case.kubectl(&["exec", "-c", "debugger", "seen", "--", "cat", "/proc/1/cmdline"]);
    assert_eq!(String::from_utf8_lossy(&seen.stdout), "sleep\x001000\0", "the target's first process");
    let args = ["exec", "-c", "debugger", "seen", "--", "echo", "marco"];
    let said = case.kubectl(&args);
    assert_eq!(String::from_utf8_lossy(&said.stdout), "marco\n");
}

fn update_ephemeral(case: &Case) {
    add_ephemeral(case);
    let at = case.path("v1", "pods/seen");
    let mut pod = case.get(&format!("{at}/ephemeralcontainers"));
    pod["spec"]["ephemeralContainers"].as_array_mut().unwrap().push(ephemeral("debugger2", case));
    case.replace(&format!("{at}/ephemeralcontainers"), &pod);
    let pod = case.wait_for("both to run", &at, |it| {
        let statuses = it["status"]["ephemeralContainerStatuses"].as_array();
        statuses.is_some_and(|all| all.len() == 2 && all.iter().all(|it| it["state"]["running"].is_object()))
    });
    assert_eq!(pod["spec"]["ephemeralContainers"][1]["name"], "debugger2");
    let args = ["exec", "-c", "debugger2", "seen", "--", "echo", "polo"];
    assert_eq!(String::from_utf8_lossy(&case.kubectl(&args).stdout), "polo\n");
}

fn failing_is_deletable(case: &Case) {
    let mut pod = case.pod("bad", "false");
    pod["spec"]["restartPolicy"] = json!("Always");
    case.create(&case.path("v1", "pods"), &pod);
    let at = case.path("v1", "pods/bad");
    case.wait_for("a restart", &at, |it| {
        it["status"]["containerStatuses"][0]["restartCount"].as_u64().is_some_and(|it| it > 0)
    });
    case.delete(&at);
    case.wait_gone(&at);
}

fn failing_has_a_reason(case: &Case) {
    let end = end_of(case, "false", json!({}), json!({}));
    assert_eq!((&end["reason"], &end["exitCode"]), (&json!("Error"), &json!(1)));
}

pub fn all() -> Vec<Scenario> {
    let fallback = || json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let own_path = json!({"terminationMessagePath": "/dev/termination-custom-log"});
    vec![
        node(
            "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute poststart exec hook properly [NodeConformance] [Conformance]",
            hook("postStart", How::Exec),
        ),
        node(
            "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute poststart http hook properly [NodeConformance] [Conformance]",
            hook("postStart", How::Http),
        ),
        node(
            "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute prestop exec hook properly [NodeConformance] [Conformance]",
            hook("preStop", How::Exec),
        ),
        node(
            "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute prestop http hook properly [NodeConformance] [Conformance]",
            hook("preStop", How::Http),
        ),
        node(
            "[sig-node] Container Runtime blackbox test on terminated container should report termination message as empty when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance] [Conformance]",
            message("echo DONE", fallback(), 0, Value::Null),
        ),
        node(
            "[sig-node] Container Runtime blackbox test on terminated container should report termination message from file when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance] [Conformance]",
            message("printf OK > /dev/termination-log; echo DONE", fallback(), 0, json!("OK")),
        ),
        node(
            "[sig-node] Container Runtime blackbox test on terminated container should report termination message from log output if TerminationMessagePolicy FallbackToLogsOnError is set [NodeConformance] [Conformance]",
            message("echo DONE; exit 1", fallback(), 0, json!("DONE\n")),
        ),
        node(
            "[sig-node] Container Runtime blackbox test on terminated container should report termination message if TerminationMessagePath is set as non-root user and at a non-default path [NodeConformance] [Conformance]",
            message("printf DONE > /dev/termination-custom-log", own_path, 1000, json!("DONE")),
        ),
        node(
            "[sig-node] Container Runtime blackbox test when starting a container that exits should run with the expected status [NodeConformance] [Conformance]",
            policies,
        ),
        node(
            "[sig-node] Ephemeral Containers [NodeConformance] should update the ephemeral containers in an existing pod [Conformance]",
            update_ephemeral,
        ),
        node(
            "[sig-node] Ephemeral Containers [NodeConformance] will start an ephemeral container in an existing pod [Conformance]",
            add_ephemeral,
        ),
        node(
            "[sig-node] InitContainer [NodeConformance] should invoke init containers on a RestartAlways pod [Conformance]",
            init("Always", "Running"),
        ),
        node(
            "[sig-node] InitContainer [NodeConformance] should invoke init containers on a RestartNever pod [Conformance]",
            init("Never", "Succeeded"),
        ),
        node(
            "[sig-node] InitContainer [NodeConformance] should not start app containers and fail the pod if init containers fail on a RestartNever pod [Conformance]",
            failing_init_never,
        ),
        node(
            "[sig-node] InitContainer [NodeConformance] should not start app containers if init containers fail on a RestartAlways pod [Conformance]",
            failing_init_always,
        ),
        node(
            "[sig-node] Kubelet when scheduling a busybox command that always fails in a pod should be possible to delete [NodeConformance] [Conformance]",
            failing_is_deletable,
        ),
        node(
            "[sig-node] Kubelet when scheduling a busybox command that always fails in a pod should have an terminated reason [NodeConformance] [Conformance]",
            failing_has_a_reason,
        ),
        node("[sig-node] PreStop should call prestop when killing a pod [Conformance]", pre_stop),
    ]
}
