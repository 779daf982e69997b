//! Empty directories: who may write them, where they are.

use naru_kube_tests::{Case, Scenario};
use serde_json::json;

use super::{main_of, node, pod_with_volume};

/// A file of this mode in a volume of this medium, written by root or by an ordinary user.
fn file(medium: &'static str, mode: &'static str, user: u32) -> impl Fn(&Case) {
    move |case| {
        let script = format!(
            "echo content > /v/file && chmod {mode} /v/file && cat /v/file && stat -c '%a %u' /v/file && \
             awk '$2 == \"/v\" {{print $3 == \"tmpfs\"}}' /proc/mounts"
        );
        let mut pod = pod_with_volume(case, "writer", &script, json!({"emptyDir": {"medium": medium}}));
        pod["spec"]["securityContext"] = json!({"runAsUser": user});
        let memory = u8::from(medium == "Memory");
        let mode = mode.trim_start_matches('0');
        assert_eq!(case.output_of(&pod), format!("content\n{mode} {user}\n{memory}\n"));
    }
}

fn mode(medium: &'static str) -> impl Fn(&Case) {
    move |case| {
        let pod = pod_with_volume(case, "looker", "stat -c %A /v", json!({"emptyDir": {"medium": medium}}));
        assert_eq!(case.output_of(&pod), "drwxrwxrwx\n");
    }
}

fn shared(case: &Case) {
    let mut pod = pod_with_volume(
        case,
        "two",
        "until test -s /v/from-the-other; do sleep 0.05; done; cat /v/from-the-other",
        json!({"emptyDir": {}}),
    );
    let mut other = main_of(&mut pod).clone();
    other["name"] = json!("other");
    other["command"] = json!(["sh", "-c", "echo hello from the other > /v/x && mv /v/x /v/from-the-other"]);
    pod["spec"]["containers"].as_array_mut().unwrap().push(other);
    case.create(&case.path("v1", "pods"), &pod);
    case.wait_for("both to end", &case.path("v1", "pods/two"), |it| it["status"]["phase"] == "Succeeded");
    let log = case.ask("GET", &case.path("v1", "pods/two/log?container=main"), &json!(null)).text;
    assert_eq!(log, "hello from the other\n");
}

pub fn all() -> Vec<Scenario> {
    const USER: u32 = 1001;
    vec![
        node(
            "[sig-storage] EmptyDir volumes pod should support shared volumes between containers [Conformance]",
            shared,
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (non-root,0644,default) [LinuxOnly] [NodeConformance] [Conformance]",
            file("", "0644", USER),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (non-root,0644,tmpfs) [LinuxOnly] [NodeConformance] [Conformance]",
            file("Memory", "0644", USER),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (non-root,0666,default) [LinuxOnly] [NodeConformance] [Conformance]",
            file("", "0666", USER),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (non-root,0666,tmpfs) [LinuxOnly] [NodeConformance] [Conformance]",
            file("Memory", "0666", USER),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (non-root,0777,default) [LinuxOnly] [NodeConformance] [Conformance]",
            file("", "0777", USER),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (non-root,0777,tmpfs) [LinuxOnly] [NodeConformance] [Conformance]",
            file("Memory", "0777", USER),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (root,0644,default) [LinuxOnly] [NodeConformance] [Conformance]",
            file("", "0644", 0),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (root,0644,tmpfs) [LinuxOnly] [NodeConformance] [Conformance]",
            file("Memory", "0644", 0),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (root,0666,default) [LinuxOnly] [NodeConformance] [Conformance]",
            file("", "0666", 0),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (root,0666,tmpfs) [LinuxOnly] [NodeConformance] [Conformance]",
            file("Memory", "0666", 0),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (root,0777,default) [LinuxOnly] [NodeConformance] [Conformance]",
            file("", "0777", 0),
        ),
        node(
            "[sig-storage] EmptyDir volumes should support (root,0777,tmpfs) [LinuxOnly] [NodeConformance] [Conformance]",
            file("Memory", "0777", 0),
        ),
        node(
            "[sig-storage] EmptyDir volumes volume on default medium should have the correct mode [LinuxOnly] [NodeConformance] [Conformance]",
            mode(""),
        ),
        node(
            "[sig-storage] EmptyDir volumes volume on tmpfs should have the correct mode [LinuxOnly] [NodeConformance] [Conformance]",
            mode("Memory"),
        ),
    ]
}
