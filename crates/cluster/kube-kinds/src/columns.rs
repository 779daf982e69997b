//! Table columns: what `kubectl get` prints for each kind.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{Kind, condition, condition_is_true, int, jsonpath, list, text, time};

/// How the rows of a kind are made.
pub enum Columns {
    BuiltIn(&'static [Column], fn(&Value, Timestamp) -> Vec<Value>),
    /// A user's `additionalPrinterColumns`.
    Declared(Vec<DeclaredColumn>),
}

pub struct Column {
    pub name: &'static str,
    pub kind: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: u8,
}

pub struct DeclaredColumn {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    pub path: String,
}

pub(crate) const fn column(name: &'static str, kind: &'static str, priority: u8) -> Column {
    Column { name, kind, priority }
}
pub(crate) const fn words(name: &'static str) -> Column {
    column(name, "string", 0)
}
pub(crate) const fn figure(name: &'static str) -> Column {
    column(name, "integer", 0)
}
pub(crate) const fn wide(name: &'static str) -> Column {
    column(name, "string", 1)
}
pub(crate) const NAME: Column = words("Name");
pub(crate) const AGE: Column = words("Age");

impl Columns {
    pub const NAME_AND_AGE: Columns =
        Columns::BuiltIn(&[NAME, AGE], |it, now| vec![json!(crate::name(it)), created(it, now)]);

    pub fn definitions(&self) -> Value {
        let definition = |name: &str, kind: &str, format: &str, description: &str, priority: i64| {
            let format = if name == "Name" { "name" } else { format };
            json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority})
        };
        match self {
            Columns::BuiltIn(columns, _) => columns
                .iter()
                .map(|it| definition(it.name, it.kind, "", "", i64::from(it.priority)))
                .collect(),
            Columns::Declared(columns) => std::iter::once(definition("Name", "string", "name", "", 0))
                .chain(
                    columns
                        .iter()
                        .map(|it| definition(&it.name, &it.kind, &it.format, &it.description, it.priority)),
                )
                .collect(),
        }
    }

    pub(crate) fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match self {
            Columns::BuiltIn(_, cells) => cells(object, now),
            Columns::Declared(columns) => std::iter::once(json!(crate::name(object)))
                .chain(columns.iter().map(|it| declared_cell(it, object, now)))
                .collect(),
        }
    }
}

fn declared_cell(column: &DeclaredColumn, object: &Value, now: Timestamp) -> Value {
    let found = jsonpath::find(object, &column.path);
    let Some(first) = found.first().filter(|it| !it.is_null()) else { return Value::Null };
    match column.kind.as_str() {
        "date" => json!(time::age(first, now)),
        "integer" | "number" | "boolean" if found.len() == 1 => (*first).clone(),
        _ => json!(found.iter().map(|it| jsonpath::text(it)).collect::<Vec<_>>().join(",")),
    }
}

/// What of each object goes beside its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

/// A `Table` of these objects. Rows of a watch come without `columnDefinitions` after the first.
pub fn table(
    kind: &Kind,
    objects: &[&Value],
    list_metadata: Value,
    include: Include,
    with_definitions: bool,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row = Map::new();
            row.insert("cells".into(), Value::Array(kind.columns.cells(object, now)));
            match include {
                Include::None => {}
                Include::Metadata => {
                    row.insert("object".into(), partial_metadata(object));
                }
                Include::Object => {
                    row.insert("object".into(), (*object).clone());
                }
            }
            Value::Object(row)
        })
        .collect();
    let definitions = if with_definitions { kind.columns.definitions() } else { Value::Null };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

/// The object reduced to its metadata.
pub fn partial_metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

pub(crate) fn created(object: &Value, now: Timestamp) -> Value {
    json!(time::age(&object["metadata"]["creationTimestamp"], now))
}

/// The text, or what kubectl shows when there is none.
pub(crate) fn or_none(text: &str) -> Value {
    json!(if text.is_empty() { "<none>" } else { text })
}

pub(crate) fn count(value: &Value) -> usize {
    value.as_array().map(Vec::len).or_else(|| value.as_object().map(Map::len)).unwrap_or(0)
}

pub const NAMESPACE: Columns = Columns::BuiltIn(&[NAME, words("Status"), AGE], |it, now| {
    vec![json!(crate::name(it)), json!(text(it, "/status/phase")), created(it, now)]
});

pub const CONFIG_MAP: Columns = Columns::BuiltIn(&[NAME, figure("Data"), AGE], |it, now| {
    vec![json!(crate::name(it)), json!(count(&it["data"]) + count(&it["binaryData"])), created(it, now)]
});

pub const SECRET: Columns = Columns::BuiltIn(&[NAME, words("Type"), figure("Data"), AGE], |it, now| {
    vec![json!(crate::name(it)), json!(text(it, "/type")), json!(count(&it["data"])), created(it, now)]
});

pub const SERVICE_ACCOUNT: Columns = Columns::BuiltIn(&[NAME, figure("Secrets"), AGE], |it, now| {
    vec![json!(crate::name(it)), json!(count(&it["secrets"])), created(it, now)]
});

pub const LEASE: Columns = Columns::BuiltIn(&[NAME, words("Holder"), AGE], |it, now| {
    vec![json!(crate::name(it)), json!(text(it, "/spec/holderIdentity")), created(it, now)]
});

pub const NODE: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Status"),
        words("Roles"),
        AGE,
        words("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    |it, now| {
        let mut status = match condition(it, "Ready").map(|ready| ready["status"] == "True") {
            Some(true) => "Ready".to_string(),
            Some(false) => "NotReady".to_string(),
            None => "Unknown".to_string(),
        };
        if it["spec"]["unschedulable"] == true {
            status.push_str(",SchedulingDisabled");
        }
        let roles: Vec<&str> = it["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(label, _)| label.strip_prefix("node-role.kubernetes.io/"))
            .collect();
        let address = |kind: &str| {
            let found = list(it, "/status/addresses").iter().find(|it| it["type"] == kind);
            or_none(found.map_or("", |it| text(it, "/address")))
        };
        let info = |field: &str| json!(text(it, &format!("/status/nodeInfo/{field}")));
        vec![
            json!(crate::name(it)),
            json!(status),
            or_none(&roles.join(",")),
            created(it, now),
            info("kubeletVersion"),
            address("InternalIP"),
            address("ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    },
);

pub const POD: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Ready"),
        words("Status"),
        words("Restarts"),
        AGE,
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    |it, now| {
        let statuses = list(it, "/status/containerStatuses");
        let ready = statuses.iter().filter(|it| it["ready"] == true).count();
        let total = list(it, "/spec/containers").len();
        vec![
            json!(crate::name(it)),
            json!(format!("{ready}/{total}")),
            json!(pod_status(it)),
            json!(restarts(it, now)),
            created(it, now),
            or_none(text(it, "/status/podIP")),
            or_none(text(it, "/spec/nodeName")),
            or_none(text(it, "/status/nominatedNodeName")),
            json!("<none>"),
        ]
    },
);

/// The word under STATUS: the most telling reason that the pod's containers give.
fn pod_status(pod: &Value) -> String {
    let mut reason = text(pod, "/status/phase").to_string();
    if !text(pod, "/status/reason").is_empty() {
        reason = text(pod, "/status/reason").to_string();
    }
    let mut initializing = false;
    let inits = list(pod, "/status/initContainerStatuses");
    let total = list(pod, "/spec/initContainers").len();
    for (index, status) in inits.iter().enumerate() {
        let state = &status["state"];
        if state["terminated"].is_object() && state["terminated"]["exitCode"] == 0 {
            continue;
        }
        reason = if state["terminated"].is_object() {
            format!("Init:{}", ended_reason(&state["terminated"]))
        } else {
            match text(state, "/waiting/reason") {
                "" | "PodInitializing" => format!("Init:{index}/{total}"),
                waiting => format!("Init:{waiting}"),
            }
        };
        initializing = true;
        break;
    }
    if !initializing {
        let mut running = false;
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            let state = &status["state"];
            if !text(state, "/waiting/reason").is_empty() {
                reason = text(state, "/waiting/reason").to_string();
            } else if state["terminated"].is_object() {
                reason = ended_reason(&state["terminated"]);
            } else if status["ready"] == true && state["running"].is_object() {
                running = true;
            }
        }
        if reason == "Completed" && running {
            reason = if condition_is_true(pod, "Ready") { "Running" } else { "NotReady" }.into();
        }
    }
    if crate::is_deleting(pod) {
        reason = "Terminating".into();
    }
    reason
}

fn ended_reason(terminated: &Value) -> String {
    match (text(terminated, "/reason"), int(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_string(),
    }
}

fn restarts(pod: &Value, now: Timestamp) -> String {
    let statuses = list(pod, "/status/containerStatuses");
    let total: i64 = statuses.iter().map(|it| int(it, "/restartCount")).sum();
    let last =
        statuses.iter().filter_map(|it| time::parse(&it["lastState"]["terminated"]["finishedAt"])).max();
    match last {
        Some(last) if total > 0 => {
            format!("{total} ({} ago)", time::duration(now.as_second() - last.as_second()))
        }
        _ => total.to_string(),
    }
}

pub(crate) fn images(template: &Value) -> (Value, Value) {
    let of = |field: &str| {
        let names: Vec<&str> = list(template, "/spec/containers").iter().map(|it| text(it, field)).collect();
        or_none(&names.join(","))
    };
    (of("/name"), of("/image"))
}

pub(crate) fn selector(selector: &Value) -> Value {
    let text = crate::selector::LabelSelector::from_object(selector).map(|it| it.to_string());
    or_none(&text.unwrap_or_default())
}

pub const DEPLOYMENT: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Ready"),
        figure("Up-to-date"),
        figure("Available"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    |it, now| {
        let (containers, images) = images(&it["spec"]["template"]);
        vec![
            json!(crate::name(it)),
            json!(format!("{}/{}", int(it, "/status/readyReplicas"), int(it, "/spec/replicas"))),
            json!(int(it, "/status/updatedReplicas")),
            json!(int(it, "/status/availableReplicas")),
            created(it, now),
            containers,
            images,
            selector(&it["spec"]["selector"]),
        ]
    },
);

pub const REPLICA_SET: Columns =
    Columns::BuiltIn(REPLICATED, |it, now| replicated(it, now, selector(&it["spec"]["selector"])));

/// Of whatever keeps a number of equal pods.
pub(crate) const REPLICATED: &[Column] = &[
    NAME,
    figure("Desired"),
    figure("Current"),
    figure("Ready"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

/// A row of [`REPLICATED`]; selectors have different forms.
pub(crate) fn replicated(it: &Value, now: Timestamp, selector: Value) -> Vec<Value> {
    let (containers, images) = images(&it["spec"]["template"]);
    vec![
        json!(crate::name(it)),
        json!(int(it, "/spec/replicas")),
        json!(int(it, "/status/replicas")),
        json!(int(it, "/status/readyReplicas")),
        created(it, now),
        containers,
        images,
        selector,
    ]
}

pub const JOB: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Status"),
        words("Completions"),
        words("Duration"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    |it, now| {
        let status = if condition_is_true(it, "Complete") {
            "Complete"
        } else if condition_is_true(it, "Failed") {
            "Failed"
        } else if crate::is_deleting(it) {
            "Terminating"
        } else if condition_is_true(it, "Suspended") {
            "Suspended"
        } else {
            "Running"
        };
        let succeeded = int(it, "/status/succeeded");
        let completions = match it["spec"]["completions"].as_i64() {
            Some(completions) => format!("{succeeded}/{completions}"),
            None => format!("{succeeded}/1 of {}", int(it, "/spec/parallelism")),
        };
        let started = time::parse(&it["status"]["startTime"]);
        let ended = time::parse(&it["status"]["completionTime"]).unwrap_or(now);
        let duration =
            started.map(|it| time::duration(ended.as_second() - it.as_second())).unwrap_or_default();
        let (containers, images) = images(&it["spec"]["template"]);
        vec![
            json!(crate::name(it)),
            json!(status),
            json!(completions),
            json!(duration),
            created(it, now),
            containers,
            images,
            selector(&it["spec"]["selector"]),
        ]
    },
);

pub const SERVICE: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Type"),
        words("Cluster-IP"),
        words("External-IP"),
        words("Port(s)"),
        AGE,
        wide("Selector"),
    ],
    |it, now| {
        let ports: Vec<String> = list(it, "/spec/ports")
            .iter()
            .map(|port| {
                let node = match int(port, "/nodePort") {
                    0 => String::new(),
                    node => format!(":{node}"),
                };
                format!("{}{node}/{}", int(port, "/port"), text(port, "/protocol"))
            })
            .collect();
        let external = match text(it, "/spec/type") {
            "ExternalName" => text(it, "/spec/externalName").to_string(),
            _ => list(it, "/spec/externalIPs").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        };
        let selector = crate::selector::LabelSelector::from_map(&it["spec"]["selector"]).to_string();
        vec![
            json!(crate::name(it)),
            json!(text(it, "/spec/type")),
            or_none(text(it, "/spec/clusterIP")),
            or_none(&external),
            or_none(&ports.join(",")),
            created(it, now),
            or_none(&selector),
        ]
    },
);

pub const ENDPOINT_SLICE: Columns =
    Columns::BuiltIn(&[NAME, words("AddressType"), words("Ports"), words("Endpoints"), AGE], |it, now| {
        let ports: Vec<String> = list(it, "/ports").iter().map(|it| int(it, "/port").to_string()).collect();
        let addresses: Vec<&str> = list(it, "/endpoints")
            .iter()
            .flat_map(|it| list(it, "/addresses"))
            .filter_map(Value::as_str)
            .collect();
        let shown = match addresses.len() {
            0..=3 => addresses.join(","),
            more => format!("{} + {} more...", addresses[..3].join(","), more - 3),
        };
        let unset = |text: String| json!(if text.is_empty() { "<unset>".to_string() } else { text });
        vec![
            json!(crate::name(it)),
            json!(text(it, "/addressType")),
            unset(ports.join(",")),
            unset(shown),
            created(it, now),
        ]
    });

pub const EVENT: Columns = Columns::BuiltIn(
    &[
        words("Last Seen"),
        words("Type"),
        words("Reason"),
        words("Object"),
        wide("Subobject"),
        wide("Source"),
        words("Message"),
        wide("First Seen"),
        column("Count", "integer", 1),
        wide("Name"),
    ],
    |it, now| {
        let first_set = |fields: &[&str]| -> Value {
            fields.iter().map(|field| it[*field].clone()).find(|it| !it.is_null()).unwrap_or(Value::Null)
        };
        let kind = text(it, "/involvedObject/kind").to_lowercase();
        vec![
            json!(time::age(&first_set(&["lastTimestamp", "eventTime", "firstTimestamp"]), now)),
            json!(text(it, "/type")),
            json!(text(it, "/reason")),
            json!(format!("{kind}/{}", text(it, "/involvedObject/name"))),
            json!(text(it, "/involvedObject/fieldPath")),
            json!(text(it, "/source/component")),
            json!(text(it, "/message").trim()),
            json!(time::age(&first_set(&["firstTimestamp", "eventTime"]), now)),
            json!(int(it, "/count").max(1)),
            json!(crate::name(it)),
        ]
    },
);

pub const CUSTOM_RESOURCE_DEFINITION: Columns = Columns::BuiltIn(&[NAME, words("Created At")], |it, _| {
    vec![json!(crate::name(it)), json!(text(it, "/metadata/creationTimestamp"))]
});

pub const GATEWAY_CLASS: Columns =
    Columns::BuiltIn(&[NAME, words("Controller"), words("Accepted"), AGE], |it, now| {
        vec![
            json!(crate::name(it)),
            json!(text(it, "/spec/controllerName")),
            json!(condition(it, "Accepted").map_or("Unknown", |it| text(it, "/status"))),
            created(it, now),
        ]
    });

pub const GATEWAY: Columns =
    Columns::BuiltIn(&[NAME, words("Class"), words("Address"), words("Programmed"), AGE], |it, now| {
        let addresses: Vec<&str> =
            list(it, "/status/addresses").iter().map(|it| text(it, "/value")).collect();
        vec![
            json!(crate::name(it)),
            json!(text(it, "/spec/gatewayClassName")),
            json!(addresses.join(",")),
            json!(condition(it, "Programmed").map_or("Unknown", |it| text(it, "/status"))),
            created(it, now),
        ]
    });

pub const HTTP_ROUTE: Columns = Columns::BuiltIn(&[NAME, words("Hostnames"), AGE], |it, now| {
    vec![
        json!(crate::name(it)),
        json!(
            it["spec"]["hostnames"]
                .as_array()
                .map(|_| it["spec"]["hostnames"].to_string())
                .unwrap_or_default()
        ),
        created(it, now),
    ]
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_row_says_what_is_wrong_with_the_pod() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        let pods = crate::table::find("", "v1", "pods").expect("built in");
        let pod = |status: Value| {
            json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": status})
        };
        let shown = |status: Value| {
            let cells = pods.columns.cells(&pod(status), now);
            cells[1..5].iter().map(|it| it.as_str().expect("text").to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(json!({"phase": "Pending"})), "0/2 Pending 0 10m");
        assert_eq!(
            shown(json!({"phase": "Running", "containerStatuses": [
                {"ready": true, "state": {"running": {}}},
                {"ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-01T00:09:30Z"}}}]})),
            "1/2 CrashLoopBackOff 3 (30s ago) 10m"
        );
        assert_eq!(
            shown(
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 2}}}]})
            ),
            "0/2 ExitCode:2 0 10m"
        );
    }
}
