//! The Pod Security Standards: what a pod may not do at the levels `baseline` and `restricted`. Pure.

use serde_json::Value;

use crate::{list, text};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub fn parse(word: &str) -> Option<Level> {
        match word {
            "privileged" => Some(Level::Privileged),
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            _ => None,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// Capabilities that a container of the baseline may add: those that it has anyway.
const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SAFE_SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
];
const RESTRICTED_VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
];

/// What the pod does that the level forbids, in words.
pub fn violations(level: Level, metadata: &Value, spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if level == Level::Privileged {
        return found;
    }
    baseline(metadata, spec, &mut found);
    if level == Level::Restricted {
        restricted(spec, &mut found);
    }
    found
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(move |it| spec[it].as_array().into_iter().flatten())
}

fn offenders(spec: &Value, offends: impl Fn(&Value) -> bool) -> Option<String> {
    let names: Vec<String> =
        containers(spec).filter(|it| offends(it)).map(|it| format!("{:?}", text(it, "/name"))).collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(format!("container {one}")),
        many => Some(format!("containers {}", many.join(", "))),
    }
}

fn baseline(metadata: &Value, spec: &Value, found: &mut Vec<String>) {
    let hosts: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|it| spec[**it] == true)
        .map(|it| format!("{it}=true"))
        .collect();
    if !hosts.is_empty() {
        found.push(format!("host namespaces ({})", hosts.join(", ")));
    }
    if let Some(who) = offenders(spec, |it| it["securityContext"]["privileged"] == true) {
        found.push(format!("privileged ({who} must not set securityContext.privileged=true)"));
    }
    let adds = |it: &Value| {
        list(it, "/securityContext/capabilities/add")
            .iter()
            .filter_map(Value::as_str)
            .any(|it| !DEFAULT_CAPABILITIES.contains(&it))
    };
    if let Some(who) = offenders(spec, adds) {
        found.push(format!(
            "non-default capabilities ({who} must not include added capabilities in securityContext.capabilities.add)"
        ));
    }
    let volumes: Vec<String> = list(spec, "/volumes")
        .iter()
        .filter(|it| it["hostPath"].is_object())
        .map(|it| format!("{:?}", text(it, "/name")))
        .collect();
    if !volumes.is_empty() {
        found.push(format!("hostPath volumes (volume {})", volumes.join(", ")));
    }
    let has_host_port = |it: &Value| list(it, "/ports").iter().any(|it| crate::int(it, "/hostPort") != 0);
    if let Some(who) = offenders(spec, has_host_port) {
        found.push(format!("hostPort ({who} uses hostPorts)"));
    }
    let unconfined = |context: &Value, field: &str| context[field]["type"] == "Unconfined";
    for (field, name) in
        [("seccompProfile", "seccompProfile"), ("appArmorProfile", "forbidden AppArmor profiles")]
    {
        if unconfined(&spec["securityContext"], field) {
            found.push(format!("{name} (pod must not set securityContext.{field}.type to \"Unconfined\")"));
        }
        if let Some(who) = offenders(spec, |it| unconfined(&it["securityContext"], field)) {
            found.push(format!("{name} ({who} must not set securityContext.{field}.type to \"Unconfined\")"));
        }
    }
    let annotated = metadata["annotations"].as_object().into_iter().flatten().any(|(name, value)| {
        name.starts_with("container.apparmor.security.beta.kubernetes.io/") && value == "unconfined"
    });
    if annotated {
        found.push("forbidden AppArmor profiles (annotation)".into());
    }
    let proc = |it: &Value| !["", "Default"].contains(&text(it, "/securityContext/procMount"));
    if let Some(who) = offenders(spec, proc) {
        found.push(format!("procMount ({who} must not set securityContext.procMount)"));
    }
    let selinux = |context: &Value| {
        let options = &context["seLinuxOptions"];
        !text(options, "/user").is_empty()
            || !text(options, "/role").is_empty()
            || !["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"]
                .contains(&text(options, "/type"))
    };
    if selinux(&spec["securityContext"]) {
        found.push("seLinuxOptions (pod set forbidden securityContext.seLinuxOptions)".into());
    }
    if let Some(who) = offenders(spec, |it| selinux(&it["securityContext"])) {
        found.push(format!("seLinuxOptions ({who} set forbidden securityContext.seLinuxOptions)"));
    }
    let sysctls: Vec<&str> = list(spec, "/securityContext/sysctls")
        .iter()
        .map(|it| text(it, "/name"))
        .filter(|it| !SAFE_SYSCTLS.contains(it))
        .collect();
    if !sysctls.is_empty() {
        found.push(format!("forbidden sysctls ({})", sysctls.join(", ")));
    }
}

fn restricted(spec: &Value, found: &mut Vec<String>) {
    let pod = &spec["securityContext"];
    if let Some(who) = offenders(spec, |it| it["securityContext"]["allowPrivilegeEscalation"] != false) {
        found.push(format!(
            "allowPrivilegeEscalation != false ({who} must set securityContext.allowPrivilegeEscalation=false)"
        ));
    }
    let keeps = |it: &Value| {
        let capabilities = &it["securityContext"]["capabilities"];
        !list(capabilities, "/drop").iter().any(|it| it == "ALL")
            || list(capabilities, "/add").iter().any(|it| it != "NET_BIND_SERVICE")
    };
    if let Some(who) = offenders(spec, keeps) {
        found.push(format!(
            "unrestricted capabilities ({who} must set securityContext.capabilities.drop=[\"ALL\"])"
        ));
    }
    let volumes: Vec<String> = list(spec, "/volumes")
        .iter()
        .filter(|it| {
            let sources = it.as_object().into_iter().flatten().filter(|(field, _)| *field != "name");
            sources.map(|(field, _)| field.as_str()).any(|it| !RESTRICTED_VOLUMES.contains(&it))
        })
        .map(|it| format!("{:?}", text(it, "/name")))
        .collect();
    if !volumes.is_empty() {
        found.push(format!(
            "restricted volume types (volume {} uses a restricted volume type)",
            volumes.join(", ")
        ));
    }
    let as_root = |it: &Value| match it["securityContext"]["runAsNonRoot"].as_bool() {
        Some(truth) => !truth,
        None => pod["runAsNonRoot"] != true,
    };
    if let Some(who) = offenders(spec, as_root) {
        found.push(format!("runAsNonRoot != true (pod or {who} must set securityContext.runAsNonRoot=true)"));
    }
    if pod["runAsUser"] == 0 {
        found.push("runAsUser=0 (pod must not set runAsUser=0)".into());
    }
    if let Some(who) = offenders(spec, |it| it["securityContext"]["runAsUser"] == 0) {
        found.push(format!("runAsUser=0 ({who} must not set runAsUser=0)"));
    }
    let profiled =
        |context: &Value| ["RuntimeDefault", "Localhost"].contains(&text(context, "/seccompProfile/type"));
    let unprofiled = |it: &Value| match it["securityContext"]["seccompProfile"].is_object() {
        true => !profiled(&it["securityContext"]),
        false => !profiled(pod),
    };
    if let Some(who) = offenders(spec, unprofiled) {
        found.push(format!(
            "seccompProfile (pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn levels_forbid_what_their_standard_says() {
        let plain = json!({"containers": [{"name": "a"}]});
        let bold = json!({"hostNetwork": true, "volumes": [{"name": "v", "hostPath": {}}],
            "containers": [{"name": "a", "securityContext": {"privileged": true, "capabilities": {"add": ["SYS_ADMIN"]}}, "ports": [{"hostPort": 80}]}]});
        let careful = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
        let count = |level, spec: &Value| violations(level, &json!({}), spec).len();
        assert_eq!(count(Level::Privileged, &bold), 0);
        assert_eq!(count(Level::Baseline, &plain), 0);
        assert_eq!(count(Level::Baseline, &bold), 5);
        assert_eq!(count(Level::Restricted, &plain), 4);
        assert_eq!(count(Level::Restricted, &careful), 0);
    }
}
