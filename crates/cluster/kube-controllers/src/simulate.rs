//! Nodes without machines: they take pods and say that these run, so that controllers, schedulers and
//! manifests can be tried by the thousand on a laptop.
//!
//! A pod runs and is ready at once; one of a Job ends well after a second. Annotations of the pod (of its
//! template) choose otherwise:
//!
//! ```yaml
//! simulate.naru.dev/ready-after: "5"    # seconds, or "never"
//! simulate.naru.dev/exit-after: "10"    # seconds from the start
//! simulate.naru.dev/exit-code: "1"      # of all its containers; 0 without it
//! ```

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{Failure, controller_of, is_deleting, list, name, namespace, parse_key, text, time, uid};
use kube_objects::{Door, Objects, Writer};
use kube_store::Store;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::action::{Action, Plan, kind};
use crate::harness::{self, Controller, Touched, View};
use crate::pods;

/// The label by which simulated nodes are told from real ones.
pub const LABEL: &str = "simulate.naru.dev/node";
const READY_AFTER: &str = "simulate.naru.dev/ready-after";
const EXIT_AFTER: &str = "simulate.naru.dev/exit-after";
const EXIT_CODE: &str = "simulate.naru.dev/exit-code";

/// Registers `count` nodes (`sim-0`, `sim-1`, ...), each with 32 cores and 128 GiB, and lives for them
/// until `shutdown`.
pub async fn start(
    store: Store,
    count: usize,
    shutdown: CancellationToken,
) -> Result<JoinHandle<()>, Failure> {
    let objects = Objects::new(store);
    let writer = Writer::new("simulated-node");
    for number in 0..count {
        register(&objects, number, &writer).await?;
    }
    Ok(tokio::spawn(harness::run(Box::new(SimulatedNodes), objects, shutdown)))
}

async fn register(objects: &Objects, number: usize, writer: &Writer) -> Result<(), Failure> {
    let nodes = kind("", "Node");
    let node = format!("sim-{number}");
    let labels = json!({"kubernetes.io/hostname": node, "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64", LABEL: "true"});
    let object = json!({"metadata": {"name": node, "labels": labels}, "spec": {"podCIDR": ""}});
    match objects.create(&nodes, "", object, writer).await {
        Err(failure) if !failure.is_already_exists() => return Err(failure),
        _ => {}
    }
    let now = time::format(Timestamp::now());
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": "simulated",
            "lastHeartbeatTime": now, "lastTransitionTime": now})
    };
    let amounts = json!({"cpu": "32", "memory": "128Gi", "ephemeral-storage": "1Ti", "pods": "110"});
    let status = json!({
        "capacity": amounts, "allocatable": amounts,
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID"),
            condition("Ready", "True", "KubeletReady"),
        ],
        "addresses": [{"type": "InternalIP", "address": address(number)}, {"type": "Hostname", "address": node}],
        "nodeInfo": {"architecture": "amd64", "bootID": node, "containerRuntimeVersion": "naru://simulated",
            "kernelVersion": "simulated", "kubeProxyVersion": "", "kubeletVersion": "v1.35.0", "machineID": node,
            "operatingSystem": "linux", "osImage": "simulated", "systemUUID": node},
    });
    let write = objects.edit(&nodes, "", &node, Door::Status, writer, |live| live["status"] = status.clone());
    write.await.map(drop)
}

/// Addresses of the block that is reserved for examples of networks, so that nothing real is meant.
fn address(number: usize) -> String {
    format!("198.18.{}.{}", number / 250 % 256, number % 250 + 1)
}

struct SimulatedNodes;

impl Controller for SimulatedNodes {
    fn name(&self) -> &'static str {
        "simulated-node"
    }

    fn concerns(&self, change: &Touched<'_>, _: &View<'_>) -> Vec<String> {
        let bound = !text(change.object, "/spec/nodeName").is_empty();
        match change.is("core/pods/") && !change.deleted && bound {
            true => vec![change.key.to_string()],
            false => Vec::new(),
        }
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some((_, _, place, pod_name)) = parse_key(key) else { return plan };
        let Some(pod) = view.objects.find(&kind("", "Pod"), place, pod_name) else { return plan };
        let node = view.objects.find(&kind("", "Node"), "", text(&pod, "/spec/nodeName"));
        if node.is_some_and(|it| it["metadata"]["labels"][LABEL] == "true") {
            reconcile(&mut plan, &pod, now);
        }
        plan
    }
}

fn seconds(pod: &Value, annotation: &str) -> Option<i64> {
    pod["metadata"]["annotations"][annotation].as_str()?.parse().ok()
}

fn reconcile(plan: &mut Plan, pod: &Arc<Value>, now: Timestamp) {
    let pod_kind = kind("", "Pod");
    if is_deleting(pod) {
        if !pods::is_finished(pod) && !list(pod, "/metadata/finalizers").is_empty() {
            plan.status(&pod_kind, pod, status(pod, Phase::Ended(137), now));
        }
        plan.push(Action::Kill {
            namespace: namespace(pod).to_string(),
            pod: name(pod).to_string(),
            uid: uid(pod).to_string(),
        });
        return;
    }
    if pods::is_finished(pod) {
        return;
    }
    let started = time::seconds_since(&pod["status"]["startTime"], now);
    let of_job = controller_of(pod).is_some_and(|it| it["kind"] == "Job");
    let code = seconds(pod, EXIT_CODE);
    let ends_after = seconds(pod, EXIT_AFTER).or((of_job || code.is_some()).then_some(1));
    let running = started.unwrap_or(0);
    if let Some(after) = ends_after.filter(|_| started.is_some()) {
        if running >= after {
            return plan.status(&pod_kind, pod, status(pod, Phase::Ended(code.unwrap_or(0)), now));
        }
        plan.again_in(after - running);
    }
    let never = pod["metadata"]["annotations"][READY_AFTER] == "never";
    let ready_after = seconds(pod, READY_AFTER).unwrap_or(0);
    let ready = !never && running >= ready_after;
    if !ready && !never {
        plan.again_in(ready_after - running);
    }
    let phase = if ready { Phase::Ready } else { Phase::Running };
    let shown = text(pod, "/status/phase") == "Running" && pods::is_ready(pod) == ready;
    if !shown {
        plan.status(&pod_kind, pod, status(pod, phase, now));
    }
}

#[derive(Clone, Copy)]
enum Phase {
    Running,
    Ready,
    Ended(i64),
}

fn status(pod: &Value, phase: Phase, now: Timestamp) -> Value {
    let now = time::format(now);
    let started = pod["status"]["startTime"].as_str().unwrap_or(&now).to_string();
    let (word, ready) = match phase {
        Phase::Running => ("Running", false),
        Phase::Ready => ("Running", true),
        Phase::Ended(0) => ("Succeeded", false),
        Phase::Ended(_) => ("Failed", false),
    };
    let mut status = pod["status"].clone();
    status["phase"] = json!(word);
    status["startTime"] = json!(started);
    // An address that no network has; two pods may share one after a quarter of a million.
    let number =
        pod["metadata"]["resourceVersion"].as_str().and_then(|it| it.parse::<usize>().ok()).unwrap_or(0);
    if status["podIP"].is_null() {
        let address = format!("198.19.{}.{}", number / 250 % 256, number % 250 + 1);
        status["podIPs"] = json!([{"ip": address}]);
        status["podIP"] = json!(address);
        status["hostIP"] = json!("198.18.0.1");
    }
    let mut conditions: Vec<Value> = list(pod, "/status/conditions")
        .iter()
        .filter(|it| !OURS.contains(&text(it, "/type")))
        .cloned()
        .collect();
    for kind in OURS {
        let holds = ready || ["Initialized", "PodReadyToStartContainers"].contains(&kind);
        let mut condition = json!({"type": kind, "status": if holds { "True" } else { "False" },
            "lastProbeTime": null, "lastTransitionTime": now});
        if matches!(phase, Phase::Ended(0)) {
            condition["reason"] = json!("PodCompleted");
        }
        conditions.push(condition);
    }
    status["conditions"] = json!(conditions);
    let containers = list(pod, "/spec/containers").iter().map(|container| {
        let state = match phase {
            Phase::Ended(code) => {
                json!({"terminated": {"exitCode": code, "startedAt": started, "finishedAt": now,
                "reason": if code == 0 { "Completed" } else { "Error" }}})
            }
            _ => json!({"running": {"startedAt": started}}),
        };
        json!({"name": container["name"], "image": container["image"], "imageID": container["image"],
            "containerID": format!("naru://simulated-{}", uid(pod)), "ready": ready, "started": true,
            "restartCount": 0, "lastState": {}, "state": state})
    });
    status["containerStatuses"] = Value::Array(containers.collect());
    status
}

const OURS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];

/// How many pods run; for demonstrations and measurements.
pub fn running(store: &Store) -> usize {
    let pods = Objects::new(store.clone()).list(&kind("", "Pod"), None, &LabelSelector::default());
    pods.iter().filter(|it| text(it, "/status/phase") == "Running").count()
}
