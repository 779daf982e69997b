//! Who a container is and what it may.

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

use super::{main_of, node};

/// Runs with these security contexts of the pod and of the container.
fn run(case: &Case, script: &str, pod_context: Value, context: Value) -> String {
    let mut pod = case.pod("guarded", script);
    pod["spec"]["securityContext"] = pod_context;
    main_of(&mut pod)["securityContext"] = context;
    case.output_of(&pod)
}

fn user(case: &Case) {
    assert_eq!(run(case, "id -u", json!({}), json!({"runAsUser": 65534})), "65534\n");
}

fn user_and_group(of_pod: bool) -> impl Fn(&Case) {
    move |case| {
        let context = json!({"runAsUser": 1001, "runAsGroup": 2002});
        let (pods, own) = if of_pod { (context, json!({})) } else { (json!({"runAsUser": 7}), context) };
        assert_eq!(run(case, "id -u; id -g", pods, own), "1001\n2002\n");
    }
}

fn unprivileged(case: &Case) {
    let script = "ip link add dummy0 type dummy 2>/dev/null || echo refused";
    assert_eq!(run(case, script, json!({}), json!({"privileged": false})), "refused\n");
}

fn writable_root(case: &Case) {
    let context = json!({"readOnlyRootFilesystem": false});
    assert_eq!(run(case, "echo x > /file && cat /file", json!({}), context), "x\n");
}

fn read_only_root(case: &Case) {
    let context = json!({"readOnlyRootFilesystem": true});
    let script = "(echo x > /file) 2>&1 | grep -c 'Read-only file system'; test ! -e /file && echo absent";
    assert_eq!(run(case, script, json!({}), context), "1\nabsent\n");
}

/// A program with the set-user-ID bit stays who started it.
fn no_escalation(case: &Case) {
    let script = "grep NoNewPrivs /proc/self/status | tr -d '\\t'; id -u";
    let context = json!({"allowPrivilegeEscalation": false, "runAsUser": 1000});
    assert_eq!(run(case, script, json!({}), context), "NoNewPrivs:1\n1000\n");
}

const SYSCTL: &str = "kernel.shm_rmid_forced";

fn sysctl(case: &Case) {
    let context = json!({"sysctls": [{"name": SYSCTL, "value": "1"}]});
    assert_eq!(run(case, "cat /proc/sys/kernel/shm_rmid_forced", context, json!({})), "1\n");
}

fn bad_sysctl(case: &Case) {
    let mut pod = case.pod("guarded", "true");
    pod["spec"]["securityContext"] = json!({"sysctls": [
        {"name": "foo-", "value": "bar"}, {"name": SYSCTL, "value": "100000000"},
        {"name": "safe-and-unsafe", "value": "100000000"}, {"name": "bar..", "value": "42"}]});
    let refused = case.expect("POST", &case.path("v1", "pods"), &pod, 422);
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("Invalid value: \"foo-\"") && message.contains("Invalid value: \"bar..\""),
        "{message}"
    );
    assert!(!message.contains("safe-and-unsafe") && !message.contains(SYSCTL), "{message}");
}

pub fn all() -> Vec<Scenario> {
    vec![
        node(
            "[sig-node] Kubelet when scheduling a read only busybox container should not write to root filesystem [LinuxOnly] [NodeConformance] [Conformance]",
            read_only_root,
        ),
        node(
            "[sig-node] Security Context When creating a container with runAsUser should run the container with uid 65534 [LinuxOnly] [NodeConformance] [Conformance]",
            user,
        ),
        node(
            "[sig-node] Security Context When creating a pod with privileged should run the container as unprivileged when false [LinuxOnly] [NodeConformance] [Conformance]",
            unprivileged,
        ),
        node(
            "[sig-node] Security Context When creating a pod with readOnlyRootFilesystem should run the container with writable rootfs when readOnlyRootFilesystem=false [NodeConformance] [Conformance]",
            writable_root,
        ),
        node(
            "[sig-node] Security Context should support container.SecurityContext.RunAsUser And container.SecurityContext.RunAsGroup [LinuxOnly] [Conformance]",
            user_and_group(false),
        ),
        node(
            "[sig-node] Security Context should support pod.Spec.SecurityContext.RunAsUser And pod.Spec.SecurityContext.RunAsGroup [LinuxOnly] [Conformance]",
            user_and_group(true),
        ),
        node(
            "[sig-node] Security Context when creating containers with AllowPrivilegeEscalation should not allow privilege escalation when false [LinuxOnly] [NodeConformance] [Conformance]",
            no_escalation,
        ),
        node(
            "[sig-node] Sysctls [LinuxOnly] [NodeConformance] should reject invalid sysctls [Conformance]",
            bad_sysctl,
        ),
        node(
            "[sig-node] Sysctls [LinuxOnly] [NodeConformance] should support sysctls [Environment:NotInUserNS] [Conformance]",
            sysctl,
        ),
    ]
}
