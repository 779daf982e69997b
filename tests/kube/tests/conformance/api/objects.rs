//! Objects with rules of their own.

use naru_kube_tests::{Case, Group, Scenario, scenario};
use serde_json::{Value, json};

pub fn all() -> Vec<Scenario> {
    let of = |name, run: fn(&Case)| scenario(Group::A, name, run);
    vec![
        of("[sig-node] ConfigMap should fail to create ConfigMap with empty key [Conformance]", |it| {
            empty_key(it, "configmaps", json!({"": "value"}))
        }),
        of("[sig-node] Secrets should fail to create secret due to empty secret key [Conformance]", |it| {
            empty_key(it, "secrets", json!({"": "dmFsdWU="}))
        }),
        of("[sig-node] Secrets should patch a secret [Conformance]", patched_secret),
        of("[sig-storage] ConfigMap should be immutable if `immutable` field is set [Conformance]", |it| {
            immutable(it, "configmaps", json!({"data": "value-2"}), json!({"data": "value-1"}))
        }),
        of("[sig-storage] Secrets should be immutable if `immutable` field is set [Conformance]", |it| {
            immutable(it, "secrets", json!({"data": "dmFsdWUtMg=="}), json!({"data": "dmFsdWUtMQ=="}))
        }),
        of("[sig-node] PodTemplates should replace a pod template [Conformance]", template_replaced),
        of("[sig-node] PodTemplates should run the lifecycle of PodTemplates [Conformance]", template_life),
        of(
            "[sig-scheduling] LimitRange should create a LimitRange with defaults and ensure pod has those defaults applied. [Conformance]",
            limit_range,
        ),
        of("[sig-network] Endpoints should test the lifecycle of an Endpoint [Conformance]", endpoints),
        of(
            "[sig-network] Services should find a service from listing all namespaces [Conformance]",
            service_everywhere,
        ),
        of("[sig-network] Services should complete a service status lifecycle [Conformance]", service_status),
        of("[sig-network] Services should delete a collection of services [Conformance]", service_collection),
        of(
            "[sig-api-machinery] Discovery should locate the groupVersion and a resource within each APIGroup [Conformance]",
            located,
        ),
        of(
            "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should include webhook resources in discovery documents [Conformance]",
            webhooks_found,
        ),
        of(
            "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should reject validating webhook configurations with invalid match conditions [Conformance]",
            |it| bad_condition(it, "validatingwebhookconfigurations"),
        ),
        of(
            "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should reject mutating webhook configurations with invalid match conditions [Conformance]",
            |it| bad_condition(it, "mutatingwebhookconfigurations"),
        ),
        of(
            "[sig-storage] PersistentVolumes CSI Conformance should run through the lifecycle of a PV and a PVC [Conformance]",
            volume_life,
        ),
        of(
            "[sig-storage] PersistentVolumes CSI Conformance should apply changes to a pv/pvc status [Conformance]",
            volume_status,
        ),
        of(
            "[sig-storage] CSIInlineVolumes should support CSIVolumeSource in Pod API [Conformance]",
            csi_in_pod,
        ),
        of(
            "[sig-node] RuntimeClass should reject a Pod requesting a non-existent RuntimeClass [NodeConformance] [Conformance]",
            no_runtime_class,
        ),
        of(
            "[sig-node] RuntimeClass should reject a Pod requesting a deleted RuntimeClass [NodeConformance] [Conformance]",
            deleted_runtime_class,
        ),
        of("[sig-node] Node Lifecycle should run through the lifecycle of a node [Conformance]", node),
    ]
}

/// A pod that is never started.
fn gated(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"schedulingGates": [{"name": "example.com/never"}],
        "containers": [{"name": "c", "image": "none"}]}})
}

fn empty_key(it: &Case, plural: &str, data: Value) {
    let answer =
        it.ask("POST", &it.path("v1", plural), &json!({"metadata": {"name": "empty"}, "data": data}));
    assert_eq!(answer.code, 422, "{}", answer.text);
    assert_eq!(answer.body["reason"], "Invalid");
}

fn patched_secret(it: &Case) {
    let secrets = it.path("v1", "secrets");
    it.create(
        &secrets,
        &json!({"metadata": {"name": "one", "labels": {"case": "patched"}}, "data": {"key": "dmFsdWU="}}),
    );
    let body = json!({"metadata": {"labels": {"secret": "true"}}, "data": {"key": "dmFsdWUx"}});
    it.patch("strategic-merge-patch", &format!("{secrets}/one"), &body);
    let found = it.list("/api/v1/secrets?labelSelector=secret%3Dtrue,case%3Dpatched");
    let found =
        found.iter().find(|one| one["metadata"]["namespace"] == it.namespace.as_str()).expect("it is found");
    assert_eq!(found["data"]["key"], "dmFsdWUx");
    it.delete(&format!("{secrets}?labelSelector=secret%3Dtrue"));
    assert!(it.list(&format!("{secrets}?labelSelector=secret%3Dtrue")).is_empty());
}

fn immutable(it: &Case, plural: &str, second: Value, first: Value) {
    let objects = it.path("v1", plural);
    it.create(&objects, &json!({"metadata": {"name": "one"}, "data": first}));
    it.merge(&format!("{objects}/one"), &json!({"data": second}));
    it.merge(&format!("{objects}/one"), &json!({"immutable": true}));
    for change in [json!({"data": first}), json!({"immutable": false}), json!({"immutable": null})] {
        let answer = it.ask("PATCH", &format!("{objects}/one"), &change);
        assert_eq!(answer.code, 422, "{change}: {}", answer.text);
    }
    it.merge(&format!("{objects}/one"), &json!({"metadata": {"labels": {"may": "change"}}}));
    it.delete(&format!("{objects}/one"));
    it.create(&objects, &json!({"metadata": {"name": "one"}, "data": first}));
}

fn template(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"case": "template"}},
        "template": {"spec": {"containers": [{"name": "c", "image": "none"}]}}})
}

fn template_replaced(it: &Case) {
    let templates = it.path("v1", "podtemplates");
    let mut made = it.create(&templates, &template("one"));
    made["metadata"]["annotations"]["updated"] = json!("true");
    let replaced = it.replace(&format!("{templates}/one"), &made);
    assert_eq!(replaced["metadata"]["annotations"]["updated"], "true");
    assert_eq!(replaced["template"]["spec"]["restartPolicy"], "Always", "defaults reach templates");
}

fn template_life(it: &Case) {
    let templates = it.path("v1", "podtemplates");
    it.create(&templates, &template("one"));
    assert!(!it.list("/api/v1/podtemplates?labelSelector=case%3Dtemplate").is_empty());
    it.patch(
        "strategic-merge-patch",
        &format!("{templates}/one"),
        &json!({"metadata": {"labels": {"podtemplate": "patched"}}}),
    );
    assert_eq!(it.get(&format!("{templates}/one"))["metadata"]["labels"]["podtemplate"], "patched");
    it.delete(&format!("{templates}/one"));
    assert!(it.list(&format!("{templates}?labelSelector=podtemplate%3Dpatched")).is_empty());
}

fn limit_range(it: &Case) {
    it.create(
        &it.path("v1", "limitranges"),
        &json!({"metadata": {"name": "limits"}, "spec": {"limits": [{"type": "Container",
            "min": {"cpu": "50m", "memory": "100Mi"}, "max": {"cpu": "500m", "memory": "500Mi"},
            "default": {"cpu": "500m", "memory": "500Mi"}, "defaultRequest": {"cpu": "100m", "memory": "200Mi"}}]}}),
    );
    let pods = it.path("v1", "pods");
    let plain = it.create(&pods, &gated("plain"));
    let resources = &plain["spec"]["containers"][0]["resources"];
    assert_eq!(resources["requests"], json!({"cpu": "100m", "memory": "200Mi"}));
    assert_eq!(resources["limits"], json!({"cpu": "500m", "memory": "500Mi"}));
    let mut own = gated("own");
    own["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "300m"}, "limits": {"cpu": "300m"}});
    let own = it.create(&pods, &own);
    assert_eq!(
        own["spec"]["containers"][0]["resources"]["requests"],
        json!({"cpu": "300m", "memory": "200Mi"})
    );
    for (name, resources) in
        [("small", json!({"requests": {"cpu": "10m"}})), ("large", json!({"limits": {"cpu": "600m"}}))]
    {
        let mut pod = gated(name);
        pod["spec"]["containers"][0]["resources"] = resources;
        let refused = it.ask("POST", &pods, &pod);
        assert_eq!(refused.code, 403, "{}", refused.text);
    }
}

fn endpoints(it: &Case) {
    let all = it.path("v1", "endpoints");
    let subsets = |ip: &str| json!([{"addresses": [{"ip": ip}], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}]);
    it.create(&all, &json!({"metadata": {"name": "one", "labels": {"case": "endpoints"}}, "subsets": subsets("10.0.0.24")}));
    assert!(!it.list("/api/v1/endpoints?labelSelector=case%3Dendpoints").is_empty());
    let mut object = it.get(&format!("{all}/one"));
    object["subsets"] = subsets("10.0.0.25");
    assert_eq!(it.replace(&format!("{all}/one"), &object)["subsets"][0]["addresses"][0]["ip"], "10.0.0.25");
    let patched = it.patch(
        "strategic-merge-patch",
        &format!("{all}/one"),
        &json!({"subsets": [{"addresses": [{"ip": "10.0.0.26"}], "ports": [{"port": 8080}]}]}),
    );
    assert_eq!(patched["subsets"][0]["addresses"][0]["ip"], "10.0.0.26");
    it.delete(&format!("{all}?labelSelector=case%3Dendpoints"));
    assert!(it.find(&format!("{all}/one")).is_none());
}

fn service_everywhere(it: &Case) {
    let all = it.list("/api/v1/services");
    let found = all.iter().find(|it| it["metadata"]["name"] == "kubernetes");
    assert_eq!(found.expect("the API's own service")["metadata"]["namespace"], "default");
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"case": "service"}}, "spec": {"selector": {"app": "none"}, "ports": [{"port": 80}]}})
}

fn service_status(it: &Case) {
    let services = it.path("v1", "services");
    let mut balanced = service("one");
    balanced["spec"]["type"] = json!("LoadBalancer");
    it.create(&services, &balanced);
    let door = format!("{services}/one/status");
    let patched = it.merge(&door, &json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}));
    assert_eq!(patched["status"]["loadBalancer"]["ingress"][0]["ip"], "203.0.113.1");
    // Whoever balances writes at the same time, so that a conflict is tried again.
    let replaced = loop {
        let mut whole = it.get(&door);
        whole["status"]["conditions"] = json!([{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "by a test",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let answer = it.ask("PUT", &door, &whole);
        if answer.code != 409 {
            break answer;
        }
    };
    assert_eq!(replaced.body["status"]["conditions"][0]["type"], "StatusUpdate");
    it.merge(&format!("{services}/one"), &json!({"metadata": {"labels": {"test-service": "patched"}}}));
    it.delete(&format!("{services}/one"));
    it.wait_gone(&format!("{services}/one"));
}

fn service_collection(it: &Case) {
    let services = it.path("v1", "services");
    for (name, label) in [("one", "yes"), ("two", "yes"), ("three", "no")] {
        let mut service = service(name);
        service["metadata"]["labels"]["e2e"] = json!(label);
        it.create(&services, &service);
    }
    it.delete(&format!("{services}?labelSelector=e2e%3Dyes"));
    let left: Vec<Value> = it.list(&services).iter().map(|it| it["metadata"]["name"].clone()).collect();
    assert_eq!(left, [json!("three")]);
}

fn located(it: &Case) {
    for group in it.get("/apis")["groups"].as_array().expect("there are groups") {
        for version in group["versions"].as_array().expect("a group has versions") {
            let path = version["groupVersion"].as_str().expect("a version has a name");
            let resources = it.find(&format!("/apis/{path}"));
            // A group of another scenario may have gone in between.
            let Some(resources) = resources else { continue };
            assert_eq!(resources["groupVersion"], path);
            assert!(!resources["resources"].as_array().expect("there are resources").is_empty());
        }
    }
}

fn webhooks_found(it: &Case) {
    let group = it.get("/apis/admissionregistration.k8s.io");
    assert_eq!(group["preferredVersion"]["groupVersion"], "admissionregistration.k8s.io/v1");
    let served = it.get("/apis/admissionregistration.k8s.io/v1");
    for name in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        assert!(served["resources"].as_array().unwrap().iter().any(|it| it["name"] == name), "{name}");
    }
}

fn bad_condition(it: &Case, plural: &str) {
    let object = json!({"metadata": {"name": it.unique("bad")}, "webhooks": [{
        "name": "bad.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": "Ignore",
        "matchConditions": [{"name": "invalid", "expression": "... [}"}]}]});
    let answer = it.ask("POST", &format!("/apis/admissionregistration.k8s.io/v1/{plural}"), &object);
    assert_eq!(answer.code, 422, "{}", answer.text);
    assert!(answer.text.contains("compilation failed"), "{}", answer.text);
}

fn volume(it: &Case, base: &str) -> Value {
    json!({"metadata": {"name": it.unique(base), "labels": {"case": it.namespace}}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "none", "csi": {"driver": "example.com", "volumeHandle": "handle"}}})
}

fn claim() -> Value {
    json!({"metadata": {"name": "claim"}, "spec": {"storageClassName": "none", "accessModes": ["ReadWriteOnce"],
        "volumeName": "does-not-exist", "resources": {"requests": {"storage": "1Gi"}}}})
}

fn volume_life(it: &Case) {
    let volumes = "/api/v1/persistentvolumes";
    let made = it.create(volumes, &volume(it, "life"));
    let one = format!("{volumes}/{}", made["metadata"]["name"].as_str().unwrap());
    let claims = it.path("v1", "persistentvolumeclaims");
    it.create(&claims, &claim());
    assert_eq!(it.list(&format!("{volumes}?labelSelector=case%3D{}", it.namespace)).len(), 1);
    assert_eq!(it.list(&claims).len(), 1);
    it.merge(&one, &json!({"metadata": {"labels": {"patched": "yes"}}}));
    it.merge(&format!("{claims}/claim"), &json!({"metadata": {"labels": {"patched": "yes"}}}));
    assert_eq!(it.get(&one)["metadata"]["labels"]["patched"], "yes");
    let mut object = it.get(&format!("{claims}/claim"));
    object["metadata"]["labels"]["updated"] = json!("yes");
    assert_eq!(it.replace(&format!("{claims}/claim"), &object)["metadata"]["labels"]["updated"], "yes");
    it.delete(&format!("{claims}?labelSelector=patched%3Dyes"));
    it.wait_gone(&format!("{claims}/claim"));
    it.delete(&format!("{volumes}?labelSelector=case%3D{}", it.namespace));
    it.wait_gone(&one);
}

fn volume_status(it: &Case) {
    let volumes = "/api/v1/persistentvolumes";
    let made = it.create(volumes, &volume(it, "status"));
    let one = format!("{volumes}/{}", made["metadata"]["name"].as_str().unwrap());
    let claims = it.path("v1", "persistentvolumeclaims");
    it.create(&claims, &claim());
    let door = format!("{claims}/claim/status");
    let condition =
        json!([{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "by a test"}]);
    let patched = it.merge(&door, &json!({"status": {"conditions": condition}}));
    assert_eq!(patched["status"]["conditions"][0]["type"], "StatusUpdate");
    let patched =
        it.merge(&format!("{one}/status"), &json!({"status": {"reason": "E2E", "message": "by a test"}}));
    assert_eq!(patched["status"]["reason"], "E2E");
    it.delete(&format!("{claims}/claim"));
    it.delete(&one);
    it.wait_gone(&one);
}

fn csi_in_pod(it: &Case) {
    let mut pod = gated("inline");
    pod["metadata"]["labels"] = json!({"case": "csi"});
    pod["spec"]["volumes"] =
        json!([{"name": "v", "csi": {"driver": "example.com", "volumeAttributes": {"a": "b"}}}]);
    let pods = it.path("v1", "pods");
    it.create(&pods, &pod);
    assert_eq!(it.get(&format!("{pods}/inline"))["spec"]["volumes"][0]["csi"]["driver"], "example.com");
    let patched = it.merge(&format!("{pods}/inline"), &json!({"metadata": {"labels": {"patched": "yes"}}}));
    assert_eq!(patched["metadata"]["labels"]["patched"], "yes");
    it.delete(&format!("{pods}?labelSelector=case%3Dcsi"));
    it.wait_gone(&format!("{pods}/inline"));
}

fn with_class(class: &str) -> Value {
    let mut pod = gated("classy");
    pod["spec"]["runtimeClassName"] = json!(class);
    pod
}

fn no_runtime_class(it: &Case) {
    let refused = it.ask("POST", &it.path("v1", "pods"), &with_class("does-not-exist"));
    assert_eq!(refused.code, 403, "{}", refused.text);
    assert!(refused.text.contains("RuntimeClass \\\"does-not-exist\\\" not found"), "{}", refused.text);
}

fn deleted_runtime_class(it: &Case) {
    let classes = "/apis/node.k8s.io/v1/runtimeclasses";
    let name = it.unique("deleted");
    it.create(classes, &json!({"metadata": {"name": name}, "handler": "none"}));
    it.delete(&format!("{classes}/{name}"));
    it.wait_gone(&format!("{classes}/{name}"));
    assert_eq!(it.ask("POST", &it.path("v1", "pods"), &with_class(&name)).code, 403);
}

fn node(it: &Case) {
    let nodes = "/api/v1/nodes";
    let name = it.unique("fake");
    // Unschedulable: no scenario's pod must land on it.
    it.create(nodes, &json!({"metadata": {"name": name}, "spec": {"unschedulable": true}, "status": {"capacity": {"cpu": "1"}}}));
    let one = format!("{nodes}/{name}");
    let patched = it.merge(&one, &json!({"metadata": {"labels": {"patched": "yes"}}}));
    assert_eq!(patched["metadata"]["labels"]["patched"], "yes");
    let mut object = it.get(&one);
    object["metadata"]["labels"]["updated"] = json!("yes");
    it.ask("PUT", &one, &object);
    let door = format!("{one}/status");
    let condition =
        json!([{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "by a test"}]);
    let patched = it.patch("strategic-merge-patch", &door, &json!({"status": {"conditions": condition}}));
    let conditions = patched["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|it| it["type"] == "StatusUpdate"));
    it.delete(&format!("{nodes}?labelSelector=patched%3Dyes"));
    it.wait_gone(&one);
}
