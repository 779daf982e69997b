use serde_json::json;

use super::*;
use crate::image::PullPolicy;
use crate::probe::Check;

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})
}

fn problems(spec: Value) -> Vec<String> {
    lower_pod(&pod(spec)).problems.into_iter().map(|problem| problem.message).collect()
}

#[test]
fn what_would_be_done_by_half_is_refused_with_its_place() {
    assert_eq!(
        problems(json!({
            "hostUsers": false,
            "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]},
            "volumes": [{"name": "d", "nfs": {"server": "x"}}],
            "containers": [
                {"name": "a", "image": "x", "volumeDevices": [{"name": "d"}]},
                {"name": "b", "image": "x", "lifecycle": {"preStop": {"other": {}}}},
                {"name": "c", "image": "x", "volumeMounts": [{"name": "d", "mountPropagation": "Bidirectional"}]},
                {"name": "d", "image": "x", "livenessProbe": {"httpGet": {"port": "none"}}},
            ],
        })),
        [
            "spec.hostUsers: false is not supported by this node",
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted",
            "volume d: the type nfs is not supported by this node",
            "volumeDevices of container a is not supported by this node",
            "lifecycle.preStop of container b: only exec, httpGet, tcpSocket and sleep are known",
            "volumeMounts d of container c: mountPropagation Bidirectional is not supported by this node",
            "livenessProbe of container d: there is no port \"none\"",
        ]
    );
}

#[test]
fn an_ordinary_pod_has_no_problems() {
    let pod = lower_pod(&pod(json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 5,
        "hostNetwork": false, "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
        "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
        "volumes": [{"name": "c", "configMap": {"name": "m", "items": [{"key": "k", "path": "d/f"}]}}],
        "containers": [{
            "name": "a", "image": "shop:1", "ports": [{"name": "http", "containerPort": 8080}],
            "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
            "securityContext": {"runAsUser": 7, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 2},
        }],
    })));
    assert_eq!(pod.problems, []);
    let container = &pod.containers[0];
    assert_eq!(container.capabilities, Some(vec!["NET_BIND_SERVICE".to_owned()]));
    assert_eq!((container.user, container.supplementary_groups.as_slice()), (Some(7), &[2000][..]));
    let resources = &container.resources;
    assert_eq!((resources.memory_bytes_max, resources.cpu_millis_request), (Some(64 << 20), Some(500)));
    let probe = container.readiness.as_ref().expect("a probe");
    assert!(matches!(&probe.check, Check::Http { port: 8080, path, .. } if path == "/healthz"));
    assert_eq!((probe.period_seconds, probe.timeout_seconds, probe.failure_threshold), (2, 1, 3));
    assert_eq!(container.pull_policy, PullPolicy::IfNotPresent);
}

#[test]
fn moving_tags_are_pulled_always() {
    for (image, moving) in [
        ("shop", true),
        ("shop:latest", true),
        ("host:5000/shop", true),
        ("shop:1", false),
        ("shop@sha256:0", false),
    ] {
        assert_eq!(super::container::has_moving_tag(image), moving, "{image}");
    }
}

#[test]
fn an_init_container_that_always_restarts_is_a_sidecar() {
    let pod = lower_pod(&pod(json!({
        "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}], "ephemeralContainers": [{"name": "e", "targetContainerName": "a"}],
    })));
    let roles: Vec<_> = pod.all().map(|it| (it.name.as_str(), it.role)).collect();
    assert_eq!(roles, [("i", Role::Init), ("s", Role::Sidecar), ("a", Role::Main), ("e", Role::Ephemeral)]);
}

#[test]
fn capabilities_are_added_to_and_taken_from_the_usual_ones() {
    let kept = |value: Value| {
        let spec = json!({"containers": [{"name": "a", "securityContext": {"capabilities": value}}]});
        lower_pod(&pod(spec)).containers[0].capabilities.clone().expect("a set")
    };
    assert!(!kept(json!({"drop": ["NET_RAW"]})).contains(&"NET_RAW".to_owned()));
    assert!(kept(json!({"add": ["CAP_NET_ADMIN"]})).contains(&"NET_ADMIN".to_owned()));
    assert!(kept(json!({"add": ["ALL"], "drop": ["KILL"]})).contains(&"SYS_ADMIN".to_owned()));
    assert_eq!(kept(json!({"drop": ["all"]})), Vec::<String>::new());
}

#[test]
fn a_host_name_is_short_or_full_as_the_pod_says() {
    let names = |spec: Value| {
        let pod = lower_pod(&pod(spec));
        (pod.hostname, pod.full_name)
    };
    assert_eq!(names(json!({})), ("p".into(), None));
    let full = "h.s.n.svc.cluster.local".to_owned();
    assert_eq!(names(json!({"hostname": "h", "subdomain": "s"})), ("h".into(), Some(full.clone())));
    assert_eq!(
        names(json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true})),
        (full.clone(), Some(full))
    );
}
