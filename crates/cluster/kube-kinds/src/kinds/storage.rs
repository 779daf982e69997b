//! Volumes, claims, storage classes; and the records of CSI drivers, which are only kept.

use serde_json::{Value, json};

use crate::columns::{AGE, Columns, NAME, column, count, created, wide, words};
use crate::defaults::{set, set_initial_status, spec_of};
use crate::table::Scope::{Cluster, Namespaced};
use crate::table::row;
use crate::validation::Causes;
use crate::{Cause, Kind, Tier, is_deleting, list, quantity, text};

const GROUP: &str = "storage.k8s.io";
/// The class that claims without one get.
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

pub(super) fn rows() -> Vec<Kind> {
    vec![
        Kind {
            default: volume_defaults,
            validate: volume_rules,
            columns: VOLUME,
            has_status: true,
            ..row("", "v1", "PersistentVolume", "persistentvolumes", Cluster, &["pv"])
        },
        Kind {
            default: claim_defaults,
            validate: claim_rules,
            columns: CLAIM,
            has_status: true,
            ..row("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", Namespaced, &["pvc"])
        },
        Kind {
            default: |object| {
                if let Some(class) = object.as_object_mut() {
                    set(class, "reclaimPolicy", "Delete");
                    set(class, "volumeBindingMode", "Immediate");
                }
            },
            validate: class_rules,
            columns: CLASS,
            ..row(GROUP, "v1", "StorageClass", "storageclasses", Cluster, &["sc"])
        },
        Kind {
            default: driver_defaults,
            columns: DRIVER,
            tier: Tier::Stored,
            ..row(GROUP, "v1", "CSIDriver", "csidrivers", Cluster, &[])
        },
        Kind {
            columns: const {
                Columns::BuiltIn(&[NAME, column("Drivers", "integer", 0), AGE], |it, now| {
                    vec![json!(crate::name(it)), json!(list(it, "/spec/drivers").len()), created(it, now)]
                })
            },
            tier: Tier::Stored,
            ..row(GROUP, "v1", "CSINode", "csinodes", Cluster, &[])
        },
        Kind {
            validate: |object, old, causes| {
                if text(object, "/storageClassName").is_empty() {
                    causes.push(Cause::required("storageClassName", ""));
                }
                for field in ["nodeTopology", "storageClassName"] {
                    if old.is_some_and(|it| it[field] != object[field]) {
                        causes.push(Cause::invalid(field, &object[field], "field is immutable"));
                    }
                }
            },
            columns: const {
                Columns::BuiltIn(&[NAME, words("StorageClass"), words("Capacity"), AGE], |it, now| {
                    vec![
                        json!(crate::name(it)),
                        json!(text(it, "/storageClassName")),
                        json!(text(it, "/capacity")),
                        created(it, now),
                    ]
                })
            },
            tier: Tier::Stored,
            ..row(GROUP, "v1", "CSIStorageCapacity", "csistoragecapacities", Namespaced, &[])
        },
        Kind {
            default: |object| set_initial_status(object, json!({"attached": false})),
            validate: attachment_rules,
            columns: ATTACHMENT,
            has_status: true,
            tier: Tier::Stored,
            ..row(GROUP, "v1", "VolumeAttachment", "volumeattachments", Cluster, &[])
        },
        Kind {
            validate: |object, old, causes| {
                if text(object, "/driverName").is_empty() {
                    causes.push(Cause::required("driverName", ""));
                }
                for field in ["driverName", "parameters"] {
                    if old.is_some_and(|it| it[field] != object[field]) {
                        causes.push(Cause::invalid(field, &object[field], "field is immutable"));
                    }
                }
            },
            columns: const {
                Columns::BuiltIn(&[NAME, words("DriverName"), AGE], |it, now| {
                    vec![json!(crate::name(it)), json!(text(it, "/driverName")), created(it, now)]
                })
            },
            tier: Tier::Stored,
            ..row(GROUP, "v1", "VolumeAttributesClass", "volumeattributesclasses", Cluster, &["vac"])
        },
    ]
}

fn volume_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "persistentVolumeReclaimPolicy", "Retain");
    set(spec, "volumeMode", "Filesystem");
    if let Some(source) = spec.get_mut("hostPath").and_then(Value::as_object_mut) {
        set(source, "type", "");
    }
    set_initial_status(object, json!({"phase": "Pending"}));
}

/// The fields of a volume's specification that are not its source.
const NOT_SOURCES: [&str; 9] = [
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
];

fn sources(spec: &Value) -> Vec<(&String, &Value)> {
    spec.as_object().into_iter().flatten().filter(|(name, _)| !NOT_SOURCES.contains(&name.as_str())).collect()
}

fn volume_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    if list(spec, "/accessModes").is_empty() {
        causes.push(Cause::required("spec.accessModes", ""));
    }
    modes(spec, causes);
    match spec["capacity"].as_object() {
        Some(capacity) if !capacity.is_empty() => amounts(&spec["capacity"], "spec.capacity", causes),
        _ => causes.push(Cause::required("spec.capacity", "")),
    }
    match sources(spec).len() {
        0 => causes.push(Cause::required("spec", "must specify a volume type")),
        1 => {}
        _ => causes.push(Cause {
            reason: "FieldValueForbidden",
            message: "Forbidden: may not specify more than 1 volume type".into(),
            field: "spec".into(),
        }),
    }
    let policies = ["Delete", "Recycle", "Retain"];
    if !policies.iter().any(|it| spec["persistentVolumeReclaimPolicy"] == *it) {
        let value = &spec["persistentVolumeReclaimPolicy"];
        causes.push(Cause::unsupported("spec.persistentVolumeReclaimPolicy", value, &policies));
    }
    if let Some(old) = old {
        if sources(&old["spec"]) != sources(spec) {
            causes.push(Cause {
                reason: "FieldValueForbidden",
                message: "Forbidden: spec.persistentvolumesource is immutable after creation".into(),
                field: "spec.persistentvolumesource".into(),
            });
        }
        if old["spec"]["volumeMode"] != spec["volumeMode"] {
            causes.push(Cause::invalid("spec.volumeMode", &spec["volumeMode"], "field is immutable"));
        }
    }
}

fn modes(spec: &Value, causes: &mut Causes) {
    const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    for (index, mode) in list(spec, "/accessModes").iter().enumerate() {
        if !MODES.iter().any(|it| mode == it) {
            causes.push(Cause::unsupported(&format!("spec.accessModes[{index}]"), mode, &MODES));
        }
    }
}

fn amounts(amounts: &Value, at: &str, causes: &mut Causes) {
    for (resource, amount) in amounts.as_object().into_iter().flatten() {
        let written = amount.as_str().map_or_else(|| amount.to_string(), String::from);
        if quantity::parse_milli(&written).is_none_or(|it| it <= 0) {
            causes.push(Cause::invalid(&format!("{at}[{resource}]"), amount, "must be greater than zero"));
        }
    }
}

fn claim_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "volumeMode", "Filesystem");
    set_initial_status(object, json!({"phase": "Pending"}));
}

fn claim_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    if list(spec, "/accessModes").is_empty() {
        causes.push(Cause::required("spec.accessModes", "at least 1 access mode is required"));
    }
    modes(spec, causes);
    if spec["resources"]["requests"]["storage"].is_null() {
        causes.push(Cause::required("spec.resources[storage]", ""));
    } else {
        amounts(&spec["resources"]["requests"], "spec.resources.requests", causes);
    }
    if let Some(old) = old.filter(|it| it["spec"].is_object() && spec.is_object()) {
        // The volume is bound once, the class may be filled in, the size may grow.
        let mut before = old["spec"].clone();
        if text(&before, "/volumeName").is_empty() {
            before["volumeName"] = spec["volumeName"].clone();
        }
        if before["storageClassName"].is_null() {
            before["storageClassName"] = spec["storageClassName"].clone();
        }
        before["volumeAttributesClassName"] = spec["volumeAttributesClassName"].clone();
        let milli = |spec: &Value| quantity::parse_milli(text(spec, "/resources/requests/storage"));
        let grows = old["status"]["phase"] == "Bound" && milli(spec) >= milli(&before);
        if grows && before.pointer("/resources/requests").is_some_and(Value::is_object) {
            before["resources"]["requests"]["storage"] = spec["resources"]["requests"]["storage"].clone();
        }
        let clean = |spec: &Value| {
            let mut fields = spec.as_object().cloned().unwrap_or_default();
            fields.retain(|_, value| !value.is_null());
            fields
        };
        if clean(&before) != clean(spec) {
            causes.push(Cause {
                reason: "FieldValueForbidden",
                message: "Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims".into(),
                field: "spec".into(),
            });
        }
    }
}

fn class_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    if text(object, "/provisioner").is_empty() {
        causes.push(Cause::required("provisioner", ""));
    }
    for (field, allowed) in [
        ("reclaimPolicy", ["Delete", "Retain"]),
        ("volumeBindingMode", ["Immediate", "WaitForFirstConsumer"]),
    ] {
        if !allowed.iter().any(|it| object[field] == *it) {
            causes.push(Cause::unsupported(field, &object[field], &allowed));
        }
    }
    for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        if old.is_some_and(|it| it[field] != object[field]) {
            causes.push(Cause {
                reason: "FieldValueForbidden",
                message: format!("Forbidden: updates to {field} are forbidden."),
                field: field.into(),
            });
        }
    }
}

fn driver_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "attachRequired", true);
    set(spec, "podInfoOnMount", false);
    set(spec, "storageCapacity", false);
    set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    set(spec, "volumeLifecycleModes", json!(["Persistent"]));
    set(spec, "requiresRepublish", false);
    set(spec, "seLinuxMount", false);
}

fn attachment_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    for field in ["attacher", "nodeName"] {
        if text(object, &format!("/spec/{field}")).is_empty() {
            causes.push(Cause::required(&format!("spec.{field}"), ""));
        }
    }
    if old.is_some_and(|it| it["spec"] != object["spec"]) {
        causes.push(Cause::invalid("spec", &object["spec"], "field is immutable"));
    }
}

/// `RWO,ROX`.
fn short_modes(modes: &Value) -> String {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    };
    modes.as_array().into_iter().flatten().map(short).collect::<Vec<_>>().join(",")
}

fn or_unset(text: &str) -> Value {
    json!(if text.is_empty() { "<unset>" } else { text })
}

const VOLUME: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Capacity"),
        words("Access Modes"),
        words("Reclaim Policy"),
        words("Status"),
        words("Claim"),
        words("StorageClass"),
        words("VolumeAttributesClass"),
        words("Reason"),
        AGE,
        wide("VolumeMode"),
    ],
    |it, now| {
        let spec = &it["spec"];
        let claim = match spec["claimRef"].is_object() {
            true => format!("{}/{}", text(spec, "/claimRef/namespace"), text(spec, "/claimRef/name")),
            false => String::new(),
        };
        let phase = if is_deleting(it) { "Terminating" } else { text(it, "/status/phase") };
        vec![
            json!(crate::name(it)),
            json!(text(spec, "/capacity/storage")),
            json!(short_modes(&spec["accessModes"])),
            json!(text(spec, "/persistentVolumeReclaimPolicy")),
            json!(phase),
            json!(claim),
            json!(text(spec, "/storageClassName")),
            or_unset(text(spec, "/volumeAttributesClassName")),
            json!(text(it, "/status/reason")),
            created(it, now),
            or_unset(text(spec, "/volumeMode")),
        ]
    },
);

const CLAIM: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Status"),
        words("Volume"),
        words("Capacity"),
        words("Access Modes"),
        words("StorageClass"),
        words("VolumeAttributesClass"),
        AGE,
        wide("VolumeMode"),
    ],
    |it, now| {
        let spec = &it["spec"];
        let bound = !text(spec, "/volumeName").is_empty();
        let phase = if is_deleting(it) { "Terminating" } else { text(it, "/status/phase") };
        vec![
            json!(crate::name(it)),
            json!(phase),
            json!(text(spec, "/volumeName")),
            json!(if bound { text(it, "/status/capacity/storage") } else { "" }),
            json!(if bound { short_modes(&it["status"]["accessModes"]) } else { String::new() }),
            json!(text(spec, "/storageClassName")),
            or_unset(text(spec, "/volumeAttributesClassName")),
            created(it, now),
            or_unset(text(spec, "/volumeMode")),
        ]
    },
);

const CLASS: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Provisioner"),
        words("ReclaimPolicy"),
        words("VolumeBindingMode"),
        column("AllowVolumeExpansion", "boolean", 0),
        AGE,
    ],
    |it, now| {
        let default = it["metadata"]["annotations"][DEFAULT_CLASS] == "true";
        vec![
            json!(format!("{}{}", crate::name(it), if default { " (default)" } else { "" })),
            json!(text(it, "/provisioner")),
            json!(text(it, "/reclaimPolicy")),
            json!(text(it, "/volumeBindingMode")),
            json!(it["allowVolumeExpansion"] == true),
            created(it, now),
        ]
    },
);

const DRIVER: Columns = Columns::BuiltIn(
    &[
        NAME,
        column("AttachRequired", "boolean", 0),
        column("PodInfoOnMount", "boolean", 0),
        column("StorageCapacity", "boolean", 0),
        words("TokenRequests"),
        column("RequiresRepublish", "boolean", 0),
        words("Modes"),
        AGE,
    ],
    |it, now| {
        let spec = &it["spec"];
        let audiences: Vec<&str> =
            list(spec, "/tokenRequests").iter().map(|it| text(it, "/audience")).collect();
        let modes: Vec<&str> = list(spec, "/volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
        vec![
            json!(crate::name(it)),
            json!(spec["attachRequired"] != false),
            json!(spec["podInfoOnMount"] == true),
            json!(spec["storageCapacity"] == true),
            or_unset(&audiences.join(",")),
            json!(spec["requiresRepublish"] == true),
            json!(if count(&spec["volumeLifecycleModes"]) == 0 { "<none>".into() } else { modes.join(",") }),
            created(it, now),
        ]
    },
);

const ATTACHMENT: Columns = Columns::BuiltIn(
    &[NAME, words("Attacher"), words("PV"), words("Node"), column("Attached", "boolean", 0), AGE],
    |it, now| {
        vec![
            json!(crate::name(it)),
            json!(text(it, "/spec/attacher")),
            json!(text(it, "/spec/source/persistentVolumeName")),
            json!(text(it, "/spec/nodeName")),
            json!(it["status"]["attached"] == true),
            created(it, now),
        ]
    },
);
