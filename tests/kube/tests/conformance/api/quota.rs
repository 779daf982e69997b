//! Quotas: what is counted, when it is refused, and when it is free again.

use naru_kube_tests::{Case, Group, Scenario, scenario};
use serde_json::{Value, json};

pub fn all() -> Vec<Scenario> {
    let of = |name, run: fn(&Case)| scenario(Group::A, name, run);
    vec![
        of(
            "[sig-api-machinery] ResourceQuota should create a ResourceQuota and ensure its status is promptly calculated. [Conformance]",
            prompt,
        ),
        of(
            "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a configMap. [Conformance]",
            |it| captures(it, "v1", "configmaps", json!({"metadata": {"name": "one"}})),
        ),
        of(
            "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a secret. [Conformance]",
            |it| {
                captures(it, "v1", "secrets", json!({"metadata": {"name": "one"}, "stringData": {"a": "b"}}))
            },
        ),
        of(
            "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a service. [Conformance]",
            service,
        ),
        of(
            "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a replica set. [Conformance]",
            |it| captures(it, "apps/v1", "replicasets", workload(json!({"matchLabels": {"a": "b"}}))),
        ),
        of(
            "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a replication controller. [Conformance]",
            |it| captures(it, "v1", "replicationcontrollers", workload(json!({"a": "b"}))),
        ),
        of(
            "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a pod. [Conformance]",
            pod_life,
        ),
        of(
            "[sig-api-machinery] ResourceQuota should be able to update and delete ResourceQuota. [Conformance]",
            update_and_delete,
        ),
        of(
            "[sig-api-machinery] ResourceQuota should manage the lifecycle of a ResourceQuota [Conformance]",
            lifecycle,
        ),
        of(
            "[sig-api-machinery] ResourceQuota should apply changes to a resourcequota status [Conformance]",
            status,
        ),
        of(
            "[sig-api-machinery] ResourceQuota should verify ResourceQuota with best effort scope. [Conformance]",
            |it| {
                scopes(
                    it,
                    "BestEffort",
                    "NotBestEffort",
                    best_effort(),
                    pod("other", json!({"requests": {"cpu": "10m"}})),
                )
            },
        ),
        of(
            "[sig-api-machinery] ResourceQuota should verify ResourceQuota with terminating scopes. [Conformance]",
            |it| {
                let mut ends = best_effort();
                ends["spec"]["activeDeadlineSeconds"] = json!(3600);
                scopes(it, "Terminating", "NotTerminating", ends, pod("other", json!({})));
            },
        ),
    ]
}

fn pod(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
        "schedulingGates": [{"name": "example.com/never"}],
        "containers": [{"name": "c", "image": "none", "resources": resources}]}})
}

fn best_effort() -> Value {
    pod("one", json!({}))
}

fn workload(selector: Value) -> Value {
    json!({"metadata": {"name": "one"}, "spec": {"replicas": 0, "selector": selector, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "none"}]}}}})
}

fn quota(it: &Case, hard: Value) -> String {
    it.create(
        &it.path("v1", "resourcequotas"),
        &json!({"metadata": {"name": "quota"}, "spec": {"hard": hard}}),
    );
    let path = it.path("v1", "resourcequotas/quota");
    it.wait_for("the quota to be counted", &path, |it| {
        it["status"]["hard"].is_object() && it["status"]["used"].is_object()
    });
    path
}

fn used(it: &Case, path: &str, resource: &str, wanted: &str) {
    it.wait_for(&format!("{resource} to be {wanted}"), path, |it| it["status"]["used"][resource] == wanted);
}

fn prompt(it: &Case) {
    let path = quota(
        it,
        json!({"pods": "5", "services": "3", "configmaps": "10", "requests.cpu": "1", "requests.memory": "1Gi"}),
    );
    let counted = it.get(&path);
    assert_eq!(counted["status"]["hard"]["pods"], "5");
    assert_eq!(counted["status"]["used"]["pods"], "0");
    assert_eq!(counted["status"]["used"]["requests.cpu"], "0");
}

/// One object of the kind counts while it lives; a second one is too many.
fn captures(it: &Case, api_version: &str, plural: &str, object: Value) {
    let resource = match api_version {
        "v1" => plural.to_string(),
        _ => format!("count/{plural}.{}", api_version.split('/').next().unwrap()),
    };
    let objects = it.path(api_version, plural);
    // Every namespace has one from the start.
    it.wait_for("the API's certificate", &it.path("v1", "configmaps/kube-root-ca.crt"), |_| true);
    let hard = it.list(&objects).len() + 1;
    let path = quota(it, json!({resource.clone(): hard.to_string()}));
    used(it, &path, &resource, &(hard - 1).to_string());
    it.create(&objects, &object);
    used(it, &path, &resource, &hard.to_string());
    let mut second = object.clone();
    second["metadata"]["name"] = json!("two");
    let refused = it.ask("POST", &objects, &second);
    assert_eq!(refused.code, 403, "{}", refused.text);
    assert!(refused.text.contains("exceeded quota: quota"), "{}", refused.text);
    it.delete(&format!("{objects}/one"));
    used(it, &path, &resource, &(hard - 1).to_string());
    it.create(&objects, &second);
}

fn service(it: &Case) {
    let path = quota(it, json!({"services": "2", "services.nodeports": "1", "services.loadbalancers": "0"}));
    let services = it.path("v1", "services");
    let service = |name: &str, kind: &str| json!({"metadata": {"name": name}, "spec": {"type": kind, "ports": [{"port": 80}]}});
    it.create(&services, &service("plain", "ClusterIP"));
    it.create(&services, &service("node", "NodePort"));
    used(it, &path, "services", "2");
    used(it, &path, "services.nodeports", "1");
    assert_eq!(it.ask("POST", &services, &service("third", "ClusterIP")).code, 403);
    it.delete(&format!("{services}/plain"));
    used(it, &path, "services", "1");
    assert_eq!(it.ask("POST", &services, &service("balanced", "LoadBalancer")).code, 403);
    assert_eq!(it.ask("POST", &services, &service("second", "NodePort")).code, 403);
    it.delete(&format!("{services}/node"));
    used(it, &path, "services.nodeports", "0");
}

fn pod_life(it: &Case) {
    let path = quota(it, json!({"pods": "5", "requests.cpu": "1", "requests.memory": "500Mi"}));
    let pods = it.path("v1", "pods");
    let sized = |name: &str, cpu: &str| {
        pod(
            name,
            json!({"requests": {"cpu": cpu, "memory": "200Mi"}, "limits": {"cpu": cpu, "memory": "200Mi"}}),
        )
    };
    it.create(&pods, &sized("one", "500m"));
    used(it, &path, "pods", "1");
    used(it, &path, "requests.cpu", "500m");
    used(it, &path, "requests.memory", "200Mi");
    let large = it.ask("POST", &pods, &sized("large", "600m"));
    assert_eq!(large.code, 403, "{}", large.text);
    let silent = it.ask("POST", &pods, &pod("silent", json!({})));
    assert_eq!(silent.code, 403, "a pod must say what it needs: {}", silent.text);
    it.delete(&format!("{pods}/one"));
    used(it, &path, "pods", "0");
    used(it, &path, "requests.cpu", "0");
}

fn update_and_delete(it: &Case) {
    let path = quota(it, json!({"cpu": "1", "memory": "500Mi"}));
    let mut object = it.get(&path);
    object["spec"]["hard"] = json!({"cpu": "2", "memory": "1Gi"});
    let object = it.replace(&path, &object);
    assert_eq!(object["spec"]["hard"]["cpu"], "2");
    used(it, &path, "cpu", "0");
    it.delete(&path);
    it.wait_gone(&path);
}

fn lifecycle(it: &Case) {
    let path = quota(it, json!({"pods": "5"}));
    let everywhere = "/api/v1/resourcequotas";
    it.merge(
        &path,
        &json!({"metadata": {"labels": {"case": it.namespace}}, "spec": {"hard": {"pods": "10"}}}),
    );
    let own = format!("labelSelector=case%3D{}", it.namespace);
    let listed = it.list(&format!("{everywhere}?{own}"));
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["spec"]["hard"]["pods"], "10");
    it.delete(&format!("{}?{own}", it.path("v1", "resourcequotas")));
    it.wait_gone(&path);
}

fn status(it: &Case) {
    let path = quota(it, json!({"pods": "5"}));
    let door = format!("{path}/status");
    let mut whole = it.get(&door);
    assert_eq!(whole["status"]["hard"]["pods"], "5");
    whole["status"]["hard"] = json!({"pods": "5", "memory": "1Gi"});
    assert_eq!(it.replace(&door, &whole)["status"]["hard"]["memory"], "1Gi");
    let patched = it.merge(&door, &json!({"status": {"hard": {"cpu": "1"}}}));
    assert_eq!(patched["status"]["hard"]["cpu"], "1");
    it.wait_for("the status to be counted anew", &path, |it| it["status"]["hard"] == json!({"pods": "5"}));
}

/// Two quotas with opposite scopes: each counts only its own pods.
fn scopes(it: &Case, scope: &str, opposite: &str, own: Value, other: Value) {
    let quotas = it.path("v1", "resourcequotas");
    for (name, scope) in [("own", scope), ("other", opposite)] {
        it.create(
            &quotas,
            &json!({"metadata": {"name": name}, "spec": {"hard": {"pods": "5"}, "scopes": [scope]}}),
        );
        used(it, &format!("{quotas}/{name}"), "pods", "0");
    }
    let pods = it.path("v1", "pods");
    it.create(&pods, &own);
    used(it, &format!("{quotas}/own"), "pods", "1");
    used(it, &format!("{quotas}/other"), "pods", "0");
    it.create(&pods, &other);
    used(it, &format!("{quotas}/other"), "pods", "1");
    used(it, &format!("{quotas}/own"), "pods", "1");
    it.delete(&format!("{pods}/one"));
    used(it, &format!("{quotas}/own"), "pods", "0");
}
