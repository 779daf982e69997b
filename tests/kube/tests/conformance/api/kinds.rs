//! One life for every kind: made, found, watched, changed, removed alone and as a collection.

use std::time::Duration;

use naru_kube_tests::{Case, Group, Scenario, scenario};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// A kind and an object of it.
struct Life {
    name: &'static str,
    api_version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    object: Value,
    /// What a status of it may be; null when it has none.
    status: Value,
}

pub fn all() -> Vec<Scenario> {
    lives().into_iter().map(|life| scenario(Group::A, life.name, move |it| life.lead(it))).collect()
}

impl Life {
    fn collection(&self, it: &Case) -> String {
        match self.namespaced {
            true => it.path(self.api_version, self.plural),
            false => everywhere(self.api_version, self.plural),
        }
    }

    fn object(&self, it: &Case, number: usize) -> Value {
        let mut object = self.object.clone();
        let base = text(&object["metadata"]["name"]);
        // Some names have a form of their own.
        let name = match (base.starts_with("198."), base.contains('.')) {
            (true, _) => format!("{base}{}", number + 10 * (namespace_number(it) % 20)),
            (_, true) => format!("n{}-{number}.{base}", namespace_number(it)),
            _ => format!("{base}-{}-{number}", it.namespace),
        };
        object["metadata"]["name"] = json!(name);
        object["metadata"]["labels"] = json!({"case": it.namespace});
        object["apiVersion"] = json!(self.api_version);
        object["kind"] = json!(self.kind);
        object
    }

    fn lead(&self, it: &Case) {
        let collection = self.collection(it);
        let own = format!("labelSelector=case%3D{}", it.namespace);
        let (group_path, _) =
            collection.split_once(if self.namespaced { "/namespaces/" } else { self.plural }).unwrap();
        let served = it.get(group_path.trim_end_matches('/'));
        let found = served["resources"].as_array().unwrap().iter().any(|it| it["name"] == self.plural);
        assert!(found, "discovery names {}", self.plural);

        let start = text(&it.get(&format!("{collection}?{own}"))["metadata"]["resourceVersion"]);
        let mut watch = it.watch(&format!("{collection}?{own}&resourceVersion={start}"));
        let made: Vec<Value> =
            (0..3).map(|number| it.create(&collection, &self.object(it, number))).collect();
        for object in &made {
            assert!(!text(&object["metadata"]["uid"]).is_empty());
            assert!(!text(&object["metadata"]["creationTimestamp"]).is_empty());
            assert_eq!(
                watch.until("ADDED", PATIENCE)["object"]["metadata"]["name"],
                object["metadata"]["name"]
            );
        }
        let again = it.ask("POST", &collection, &self.object(it, 0));
        assert_eq!((again.code, text(&again.body["reason"]).as_str()), (409, "AlreadyExists"));
        assert_eq!(it.list(&format!("{collection}?{own}")).len(), 3);
        assert_eq!(it.list(&format!("{}?{own}", everywhere(self.api_version, self.plural))).len(), 3);

        let one = format!("{collection}/{}", text(&made[0]["metadata"]["name"]));
        let got = it.get(&one);
        assert_eq!(got["metadata"]["uid"], made[0]["metadata"]["uid"]);
        let patched = it.merge(&one, &json!({"metadata": {"annotations": {"patched": "true"}}}));
        assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
        // Controllers may have changed it before.
        while watch.until("MODIFIED", PATIENCE)["object"]["metadata"]["annotations"]["patched"] != "true" {}
        let mut updated = it.get(&one);
        updated["metadata"]["annotations"]["updated"] = json!("true");
        let updated = it.replace(&one, &updated);
        assert_eq!(updated["metadata"]["annotations"]["updated"], "true");
        assert_eq!(updated["metadata"]["annotations"]["patched"], "true");
        let mut stale = updated.clone();
        stale["metadata"]["resourceVersion"] = patched["metadata"]["resourceVersion"].clone();
        assert_eq!(it.ask("PUT", &one, &stale).code, 409, "a state that has passed cannot be replaced");
        if !self.status.is_null() {
            self.change_status(it, &one);
        }

        it.delete(&one);
        it.wait_gone(&one);
        assert_eq!(watch.until("DELETED", PATIENCE)["object"]["metadata"]["uid"], made[0]["metadata"]["uid"]);
        assert_eq!(it.list(&format!("{collection}?{own}")).len(), 2);
        it.delete(&format!("{collection}?{own}"));
        it.wait("the collection to be empty", || {
            it.list(&format!("{collection}?{own}")).is_empty().then_some(())
        });
    }

    /// The status is written by its own door, and only the status.
    fn change_status(&self, it: &Case, one: &str) {
        let door = format!("{one}/status");
        let before = it.get(&door);
        let changed =
            it.merge(&door, &json!({"status": self.status, "metadata": {"annotations": {"door": "status"}}}));
        for (field, value) in self.status.as_object().unwrap() {
            assert_eq!(changed["status"][field], *value, "{changed:#}");
        }
        assert_eq!(changed["spec"], before["spec"]);
        let mut whole = it.get(&door);
        whole["status"] = self.status.clone();
        let replaced = it.replace(&door, &whole);
        for (field, value) in self.status.as_object().unwrap() {
            assert_eq!(replaced["status"][field], *value);
        }
    }
}

fn everywhere(api_version: &str, plural: &str) -> String {
    match api_version.contains('/') {
        true => format!("/apis/{api_version}/{plural}"),
        false => format!("/api/{api_version}/{plural}"),
    }
}

fn namespace_number(it: &Case) -> usize {
    it.namespace.rsplit('-').next().unwrap().parse().unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn condition(kind: &str) -> Value {
    json!({"conditions": [{"type": kind, "status": "True", "reason": "Tested", "message": "by a test",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
}

fn lives() -> Vec<Life> {
    let life = |name, api_version, kind, plural, namespaced, object: Value, status| Life {
        name,
        api_version,
        kind,
        plural,
        namespaced,
        object,
        status,
    };
    let named = |name: &str, rest: Value| {
        let mut object = rest;
        object["metadata"] = json!({"name": name});
        object
    };
    let claim = json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "none"}}]}});
    let webhook = json!([{
        "name": "check.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": "Ignore",
        "rules": [{"apiGroups": ["none.example.com"], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["nothings"]}],
        "matchConditions": [{"name": "only-tests", "expression": "object.metadata.namespace == 'tests'"}],
    }]);
    let csr = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIRk1HMENBUUF3Q3pFSk1BY0dBMVVFQXd3QU1Ga3dFd1lIS29aSXpqMENBUVlJS29aSXpqMERBUWNEUWdBRQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";
    vec![
        life(
            "[sig-api-machinery] API priority and fairness should support FlowSchema API operations [Conformance]",
            "flowcontrol.apiserver.k8s.io/v1",
            "FlowSchema",
            "flowschemas",
            false,
            named(
                "flow",
                json!({"spec": {"matchingPrecedence": 10000, "priorityLevelConfiguration": {"name": "none"},
                    "rules": [{"subjects": [{"kind": "User", "user": {"name": "tester"}}], "nonResourceRules":
                        [{"verbs": ["get"], "nonResourceURLs": ["/none"]}]}]}}),
            ),
            condition("Dangling"),
        ),
        life(
            "[sig-api-machinery] API priority and fairness should support PriorityLevelConfiguration API operations [Conformance]",
            "flowcontrol.apiserver.k8s.io/v1",
            "PriorityLevelConfiguration",
            "prioritylevelconfigurations",
            false,
            named(
                "level",
                json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 2,
                    "limitResponse": {"type": "Reject"}}}}),
            ),
            condition("Tested"),
        ),
        life(
            "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should be able to create and update mutating webhook configurations with match conditions [Conformance]",
            "admissionregistration.k8s.io/v1",
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations",
            false,
            named("mutate", json!({"webhooks": webhook})),
            Value::Null,
        ),
        life(
            "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should be able to create and update validating webhook configurations with match conditions [Conformance]",
            "admissionregistration.k8s.io/v1",
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations",
            false,
            named("validate", json!({"webhooks": webhook})),
            Value::Null,
        ),
        life(
            "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should support ValidatingAdmissionPolicy API operations [Conformance]",
            "admissionregistration.k8s.io/v1",
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
            false,
            named(
                "policy",
                json!({"spec": {"failurePolicy": "Ignore", "matchConstraints": {"resourceRules": [{"apiGroups":
                    ["none.example.com"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nothings"]}]},
                    "validations": [{"expression": "object.spec.replicas <= 5"}]}}),
            ),
            condition("Tested"),
        ),
        life(
            "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should support ValidatingAdmissionPolicyBinding API operations [Conformance]",
            "admissionregistration.k8s.io/v1",
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
            false,
            named(
                "binding",
                json!({"spec": {"policyName": "none.example.com", "validationActions": ["Deny"]}}),
            ),
            Value::Null,
        ),
        life(
            "[sig-auth] Certificates API [Privileged:ClusterAdmin] should support CSR API operations [Conformance]",
            "certificates.k8s.io/v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            false,
            named(
                "request",
                json!({"spec": {"request": csr, "signerName": "example.com/tests", "usages": ["client auth"]}}),
            ),
            Value::Null,
        ),
        life(
            "[sig-network] Ingress API should support creating Ingress API operations [Conformance]",
            "networking.k8s.io/v1",
            "Ingress",
            "ingresses",
            true,
            named(
                "ingress",
                json!({"spec": {"ingressClassName": "none", "rules": [{"host": "a.example.com", "http": {"paths":
                    [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "none", "port": {"number": 80}}}}]}}]}}),
            ),
            json!({"loadBalancer": {"ingress": [{"ip": "169.1.1.1"}]}}),
        ),
        life(
            "[sig-network] IngressClass API should support creating IngressClass API operations [Conformance]",
            "networking.k8s.io/v1",
            "IngressClass",
            "ingressclasses",
            false,
            named("class", json!({"spec": {"controller": "example.com/controller"}})),
            Value::Null,
        ),
        life(
            "[sig-network] ServiceCIDR and IPAddress API should support ServiceCIDR API operations [Conformance]",
            "networking.k8s.io/v1",
            "ServiceCIDR",
            "servicecidrs",
            false,
            named("range", json!({"spec": {"cidrs": ["198.51.100.0/24"]}})),
            condition("Tested"),
        ),
        life(
            "[sig-network] ServiceCIDR and IPAddress API should support IPAddress API operations [Conformance]",
            "networking.k8s.io/v1",
            "IPAddress",
            "ipaddresses",
            false,
            named(
                "198.51.100.",
                json!({"spec": {"parentRef": {"resource": "services", "name": "none", "namespace": "none"}}}),
            ),
            Value::Null,
        ),
        life(
            "[sig-network] EndpointSlice should support creating EndpointSlice API operations [Conformance]",
            "discovery.k8s.io/v1",
            "EndpointSlice",
            "endpointslices",
            true,
            named("slice", json!({"addressType": "IPv4", "endpoints": [{"addresses": ["1.2.3.4"]}]})),
            Value::Null,
        ),
        life(
            "[sig-node] RuntimeClass should support RuntimeClasses API operations [Conformance]",
            "node.k8s.io/v1",
            "RuntimeClass",
            "runtimeclasses",
            false,
            named("runtime", json!({"handler": "special"})),
            Value::Null,
        ),
        life(
            "[sig-node] Lease lease API should be available [Conformance]",
            "coordination.k8s.io/v1",
            "Lease",
            "leases",
            true,
            named(
                "lease",
                json!({"spec": {"holderIdentity": "holder", "leaseDurationSeconds": 30, "leaseTransitions": 0,
                "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:05.000000Z"}}),
            ),
            Value::Null,
        ),
        life(
            "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 DeviceClass [Conformance]",
            "resource.k8s.io/v1",
            "DeviceClass",
            "deviceclasses",
            false,
            named("class", json!({"spec": {}})),
            Value::Null,
        ),
        life(
            "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceClaim [Conformance]",
            "resource.k8s.io/v1",
            "ResourceClaim",
            "resourceclaims",
            true,
            named("claim", json!({"spec": claim})),
            json!({"reservedFor": [{"resource": "pods", "name": "none", "uid": "1"}],
                "allocation": {"devices": {"results": [{"request": "r", "driver": "d.example.com", "pool": "p", "device": "x"}]}}}),
        ),
        life(
            "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceClaimTemplate [Conformance]",
            "resource.k8s.io/v1",
            "ResourceClaimTemplate",
            "resourceclaimtemplates",
            true,
            named("template", json!({"spec": {"spec": claim}})),
            Value::Null,
        ),
        life(
            "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceSlice [Conformance]",
            "resource.k8s.io/v1",
            "ResourceSlice",
            "resourceslices",
            false,
            named(
                "slice",
                json!({"spec": {"driver": "d.example.com", "nodeName": "none",
                "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}}),
            ),
            Value::Null,
        ),
        life(
            "[sig-scheduling] SchedulerPreemption [Serial] PriorityClass endpoints verify PriorityClass endpoints can be operated with different HTTP methods [Conformance]",
            "scheduling.k8s.io/v1",
            "PriorityClass",
            "priorityclasses",
            false,
            named("level", json!({"value": 10, "globalDefault": false, "description": "for a test"})),
            Value::Null,
        ),
        life(
            "[sig-storage] CSIInlineVolumes should run through the lifecycle of a CSIDriver [Conformance]",
            "storage.k8s.io/v1",
            "CSIDriver",
            "csidrivers",
            false,
            named("driver", json!({"spec": {"volumeLifecycleModes": ["Ephemeral"], "podInfoOnMount": true}})),
            Value::Null,
        ),
        life(
            "[sig-storage] CSINodes CSI Conformance should run through the lifecycle of a csinode [Conformance]",
            "storage.k8s.io/v1",
            "CSINode",
            "csinodes",
            false,
            named("node", json!({"spec": {"drivers": []}})),
            Value::Null,
        ),
        life(
            "[sig-storage] CSIStorageCapacity should support CSIStorageCapacities API operations [Conformance]",
            "storage.k8s.io/v1",
            "CSIStorageCapacity",
            "csistoragecapacities",
            true,
            named("capacity", json!({"storageClassName": "none", "capacity": "1Gi"})),
            Value::Null,
        ),
        life(
            "[sig-storage] StorageClasses CSI Conformance should run through the lifecycle of a StorageClass [Conformance]",
            "storage.k8s.io/v1",
            "StorageClass",
            "storageclasses",
            false,
            named("class", json!({"provisioner": "example.com/none"})),
            Value::Null,
        ),
        life(
            "[sig-storage] VolumeAttachment Conformance should run through the lifecycle of a VolumeAttachment [Conformance]",
            "storage.k8s.io/v1",
            "VolumeAttachment",
            "volumeattachments",
            false,
            named(
                "attachment",
                json!({"spec": {"attacher": "example.com", "nodeName": "none", "source": {"persistentVolumeName": "none"}}}),
            ),
            Value::Null,
        ),
        life(
            "[sig-storage] VolumeAttachment Conformance should apply changes to a volumeattachment status [Conformance]",
            "storage.k8s.io/v1",
            "VolumeAttachment",
            "volumeattachments",
            false,
            named(
                "attached",
                json!({"spec": {"attacher": "example.com", "nodeName": "none", "source": {"persistentVolumeName": "none"}}}),
            ),
            json!({"attached": true}),
        ),
        life(
            "[sig-storage] VolumeAttributesClass [FeatureGate:VolumeAttributesClass] should run through the lifecycle of a VolumeAttributesClass [Conformance]",
            "storage.k8s.io/v1",
            "VolumeAttributesClass",
            "volumeattributesclasses",
            false,
            named("attributes", json!({"driverName": "example.com", "parameters": {"speed": "10"}})),
            Value::Null,
        ),
        life(
            "[sig-apps] CronJob should support CronJob API operations [Conformance]",
            "batch/v1",
            "CronJob",
            "cronjobs",
            true,
            named(
                "cron",
                json!({"spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never",
                    "containers": [{"name": "c", "image": "none"}]}}}}}}),
            ),
            json!({"lastScheduleTime": "2026-01-01T00:00:00Z"}),
        ),
        life(
            "[sig-scheduling] LimitRange should list, patch and delete a LimitRange by collection [Conformance]",
            "v1",
            "LimitRange",
            "limitranges",
            true,
            named("limits", json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "100m"}}]}})),
            Value::Null,
        ),
        life(
            "[sig-node] PodTemplates should delete a collection of pod templates [Conformance]",
            "v1",
            "PodTemplate",
            "podtemplates",
            true,
            named(
                "template",
                json!({"template": {"spec": {"containers": [{"name": "c", "image": "none"}]}}}),
            ),
            Value::Null,
        ),
        life(
            "[sig-auth] ServiceAccounts should run through the lifecycle of a ServiceAccount [Conformance]",
            "v1",
            "ServiceAccount",
            "serviceaccounts",
            true,
            named("account", json!({"automountServiceAccountToken": false})),
            Value::Null,
        ),
        life(
            "[sig-node] ConfigMap should run through a ConfigMap lifecycle [Conformance]",
            "v1",
            "ConfigMap",
            "configmaps",
            true,
            named("map", json!({"data": {"key": "value"}})),
            Value::Null,
        ),
        life(
            "[sig-instrumentation] Events API should delete a collection of events [Conformance]",
            "events.k8s.io/v1",
            "Event",
            "events",
            true,
            named(
                "event",
                json!({"eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "example.com/test",
                "reportingInstance": "test-1", "action": "Testing", "reason": "Tested", "type": "Normal"}),
            ),
            Value::Null,
        ),
        life(
            "[sig-apps] DisruptionController Listing PodDisruptionBudgets for all namespaces should list and delete a collection of PodDisruptionBudgets [Conformance]",
            "policy/v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            true,
            named(
                "budget",
                json!({"spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "none"}}}}),
            ),
            Value::Null,
        ),
    ]
}
