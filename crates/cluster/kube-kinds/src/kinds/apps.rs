//! StatefulSet, DaemonSet, ControllerRevision; and the older ReplicationController and PodTemplate.

use serde_json::{Map, Value, json};

use crate::columns::{
    AGE, Columns, NAME, REPLICATED, created, figure, images, or_none, replicated, selector, wide, words,
};
use crate::defaults::{items, set, set_initial_status, spec_of, template};
use crate::selector::LabelSelector;
use crate::table::Scope::Namespaced;
use crate::table::{apps_scale, row};
use crate::validation::{self, Causes};
use crate::{Cause, Kind, Scale, controller_of, int, text};

pub(super) fn rows() -> Vec<Kind> {
    vec![
        Kind {
            default: stateful_set_defaults,
            validate: stateful_set_rules,
            columns: STATEFUL_SET,
            has_status: true,
            has_generation: true,
            scale: Some(apps_scale()),
            categories: vec!["all".into()],
            ..row("apps", "v1", "StatefulSet", "statefulsets", Namespaced, &["sts"])
        },
        Kind {
            default: daemon_set_defaults,
            validate: daemon_set_rules,
            columns: DAEMON_SET,
            has_status: true,
            has_generation: true,
            categories: vec!["all".into()],
            ..row("apps", "v1", "DaemonSet", "daemonsets", Namespaced, &["ds"])
        },
        Kind {
            validate: revision_rules,
            columns: CONTROLLER_REVISION,
            ..row("apps", "v1", "ControllerRevision", "controllerrevisions", Namespaced, &[])
        },
        Kind {
            default: replication_controller_defaults,
            validate: replication_controller_rules,
            field: |object, field| {
                (field == "status.replicas").then(|| int(object, "/status/replicas").to_string())
            },
            columns: REPLICATION_CONTROLLER,
            has_status: true,
            has_generation: true,
            scale: Some(Scale {
                spec_replicas: "/spec/replicas".into(),
                status_replicas: "/status/replicas".into(),
                selector: Some("/spec/selector".into()),
            }),
            categories: vec!["all".into()],
            ..row("", "v1", "ReplicationController", "replicationcontrollers", Namespaced, &["rc"])
        },
        Kind {
            default: pod_template_defaults,
            validate: |object, _, causes| {
                validation::pod_spec(&object["template"]["spec"], "template.spec", causes);
            },
            columns: POD_TEMPLATE,
            has_generation: true,
            tier: crate::Tier::Stored,
            ..row("", "v1", "PodTemplate", "podtemplates", Namespaced, &[])
        },
    ]
}

fn stateful_set_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "podManagementPolicy", "OrderedReady");
    set(spec, "updateStrategy", json!({}));
    if let Some(strategy) = spec.get_mut("updateStrategy").and_then(Value::as_object_mut) {
        set(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            set(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = strategy.get_mut("rollingUpdate").and_then(Value::as_object_mut) {
                set(rolling, "partition", 0);
            }
        }
    }
    set(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
    if let Some(policy) = spec.get_mut("persistentVolumeClaimRetentionPolicy").and_then(Value::as_object_mut)
    {
        set(policy, "whenDeleted", "Retain");
        set(policy, "whenScaled", "Retain");
    }
    template(spec, "Always");
    for claim in items(spec, "volumeClaimTemplates") {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
        if let Some(spec) = claim.get_mut("spec").and_then(Value::as_object_mut) {
            set(spec, "volumeMode", "Filesystem");
        }
        set(claim, "status", json!({"phase": "Pending"}));
    }
    set_initial_status(object, json!({"replicas": 0, "availableReplicas": 0}));
}

fn stateful_set_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    validation::not_negative(object, "/spec/replicas", causes);
    validation::not_negative(object, "/spec/minReadySeconds", causes);
    validation::selector_and_template(object, None, causes);
    validation::always_restarts(object, causes);
    let spec = &object["spec"];
    let policies = ["OrderedReady", "Parallel"];
    if !policies.iter().any(|it| spec["podManagementPolicy"] == *it) {
        causes.push(Cause::unsupported("spec.podManagementPolicy", &spec["podManagementPolicy"], &policies));
    }
    let strategies = ["OnDelete", "RollingUpdate"];
    if !strategies.iter().any(|it| spec["updateStrategy"]["type"] == *it) {
        causes.push(Cause::unsupported(
            "spec.updateStrategy.type",
            &spec["updateStrategy"]["type"],
            &strategies,
        ));
    }
    if let Some(old) = old {
        const MUTABLE: [&str; 8] = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
            "status",
        ];
        if without(&old["spec"], &MUTABLE) != without(spec, &MUTABLE) {
            causes.push(Cause {
                reason: "FieldValueForbidden",
                message: "Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden".into(),
                field: "spec".into(),
            });
        }
    }
}

fn without(spec: &Value, fields: &[&str]) -> Map<String, Value> {
    let mut spec = spec.as_object().cloned().unwrap_or_default();
    spec.retain(|field, _| !fields.contains(&field.as_str()));
    spec
}

fn daemon_set_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "updateStrategy", json!({}));
    if let Some(strategy) = spec.get_mut("updateStrategy").and_then(Value::as_object_mut) {
        set(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            set(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = strategy.get_mut("rollingUpdate").and_then(Value::as_object_mut) {
                set(rolling, "maxUnavailable", 1);
                set(rolling, "maxSurge", 0);
            }
        }
    }
    template(spec, "Always");
    set_initial_status(
        object,
        json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0}),
    );
}

fn daemon_set_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    validation::not_negative(object, "/spec/minReadySeconds", causes);
    validation::not_negative(object, "/spec/revisionHistoryLimit", causes);
    validation::selector_and_template(object, old, causes);
    validation::always_restarts(object, causes);
    let strategy = &object["spec"]["updateStrategy"];
    let kinds = ["OnDelete", "RollingUpdate"];
    if !kinds.iter().any(|it| strategy["type"] == *it) {
        causes.push(Cause::unsupported("spec.updateStrategy.type", &strategy["type"], &kinds));
    }
}

fn revision_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    validation::not_negative(object, "/revision", causes);
    if let Some(old) = old
        && old["data"] != object["data"]
    {
        causes.push(Cause::invalid("data", &Value::Null, "field is immutable"));
    }
}

fn replication_controller_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "replicas", 1);
    let labels = spec.get("template").map_or(Value::Null, |it| it["metadata"]["labels"].clone());
    if spec.get("selector").is_none_or(|it| it.as_object().is_none_or(Map::is_empty)) && labels.is_object() {
        spec.insert("selector".into(), labels.clone());
    }
    template(spec, "Always");
    if object["metadata"]["labels"].as_object().is_none_or(Map::is_empty) && labels.is_object() {
        object["metadata"]["labels"] = labels;
    }
    set_initial_status(object, json!({"replicas": 0}));
}

fn replication_controller_rules(object: &Value, _: Option<&Value>, causes: &mut Causes) {
    validation::not_negative(object, "/spec/replicas", causes);
    validation::not_negative(object, "/spec/minReadySeconds", causes);
    let spec = &object["spec"];
    let selector = LabelSelector::from_map(&spec["selector"]);
    if selector.is_empty() {
        causes.push(Cause::required("spec.selector", ""));
    }
    if spec["template"].is_null() {
        causes.push(Cause::required("spec.template", ""));
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if !selector.matches_labels(labels) {
        causes.push(Cause::invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        ));
    }
    validation::labels(labels, "spec.template.metadata.labels", causes);
    validation::pod_spec(&spec["template"]["spec"], "spec.template.spec", causes);
    validation::always_restarts(object, causes);
}

fn pod_template_defaults(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        template(object, "Always");
    }
}

const STATEFUL_SET: Columns =
    Columns::BuiltIn(&[NAME, words("Ready"), AGE, wide("Containers"), wide("Images")], |it, now| {
        let (containers, images) = images(&it["spec"]["template"]);
        vec![
            json!(crate::name(it)),
            json!(format!("{}/{}", int(it, "/status/readyReplicas"), int(it, "/spec/replicas"))),
            created(it, now),
            containers,
            images,
        ]
    });

const DAEMON_SET: Columns = Columns::BuiltIn(
    &[
        NAME,
        figure("Desired"),
        figure("Current"),
        figure("Ready"),
        figure("Up-to-date"),
        figure("Available"),
        words("Node Selector"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    |it, now| {
        let (containers, images) = images(&it["spec"]["template"]);
        let node_selector = &it["spec"]["template"]["spec"]["nodeSelector"];
        vec![
            json!(crate::name(it)),
            json!(int(it, "/status/desiredNumberScheduled")),
            json!(int(it, "/status/currentNumberScheduled")),
            json!(int(it, "/status/numberReady")),
            json!(int(it, "/status/updatedNumberScheduled")),
            json!(int(it, "/status/numberAvailable")),
            or_none(&LabelSelector::from_map(node_selector).to_string()),
            created(it, now),
            containers,
            images,
            selector(&it["spec"]["selector"]),
        ]
    },
);

const CONTROLLER_REVISION: Columns =
    Columns::BuiltIn(&[NAME, words("Controller"), figure("Revision"), AGE], |it, now| {
        let owner = controller_of(it).map(|owner| {
            let group = text(owner, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
            let kind = text(owner, "/kind").to_lowercase();
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", text(owner, "/name"))
        });
        vec![
            json!(crate::name(it)),
            or_none(&owner.unwrap_or_default()),
            json!(int(it, "/revision")),
            created(it, now),
        ]
    });

const REPLICATION_CONTROLLER: Columns = Columns::BuiltIn(REPLICATED, |it, now| {
    replicated(it, now, or_none(&LabelSelector::from_map(&it["spec"]["selector"]).to_string()))
});

const POD_TEMPLATE: Columns =
    Columns::BuiltIn(&[NAME, words("Containers"), words("Images"), words("Pod Labels")], |it, _| {
        let (containers, images) = images(&it["template"]);
        let labels = LabelSelector::from_map(&it["template"]["metadata"]["labels"]).to_string();
        vec![json!(crate::name(it)), containers, images, or_none(&labels)]
    });
