//! Decisions of the scheduler on a store in a temporary directory, as a cluster would see them.

use std::time::Duration;

use super::*;
use kube_store::{Options, Store};

struct Cluster {
    _dir: tempfile::TempDir,
    objects: Objects,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Cluster {
    async fn start(nodes: &[Value]) -> Cluster {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("o.db"), Options::default()).expect("a store");
        let objects = Objects::new(store);
        let stop = CancellationToken::new();
        let cluster = Cluster {
            _dir: dir,
            objects: objects.clone(),
            stop: stop.clone(),
            running: tokio::spawn(run(objects, stop)),
        };
        cluster.make("", "Namespace", json!({"metadata": {"name": "default"}})).await;
        for node in nodes {
            cluster.make("", "Node", node.clone()).await;
            cluster.status("", "Node", node).await;
        }
        cluster
    }

    async fn make(&self, group: &str, of: &str, object: Value) {
        let writer = Writer::new("test");
        self.objects.create(&kind(group, of), "default", object, &writer).await.expect("made");
    }

    async fn status(&self, group: &str, of: &str, object: &Value) {
        let door = kube_objects::Door::Status;
        let writer = Writer::new("test");
        let edit = |live: &mut Value| live["status"] = object["status"].clone();
        self.objects
            .edit(&kind(group, of), "default", name(object), door, &writer, edit)
            .await
            .expect("written");
    }

    async fn pod(&self, pod_name: &str, spec: Value) {
        let mut pod = json!({"metadata": {"name": pod_name, "labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        pod["spec"] = kube_patch::merge(&pod["spec"], &spec);
        self.make("", "Pod", pod).await;
    }

    /// Waits for the pod's node, or for why it has none.
    async fn fate(&self, pod: &str) -> String {
        self.wait(pod, |pod| {
            let node = text(pod, "/spec/nodeName");
            let condition = kube_kinds::condition(pod, "PodScheduled").filter(|it| it["status"] == "False");
            match node.is_empty() {
                false => Some(node.to_string()),
                true => condition.map(|it| text(it, "/message").to_string()),
            }
        })
        .await
    }

    async fn node_of(&self, pod: &str) -> String {
        self.wait(pod, |pod| Some(text(pod, "/spec/nodeName").to_string()).filter(|it| !it.is_empty())).await
    }

    async fn wait(&self, pod: &str, of: impl Fn(&Value) -> Option<String>) -> String {
        let (_, mut watcher) = self.objects.store().list_and_watch("");
        let wait = async {
            loop {
                let found = self.objects.find(&kind("", "Pod"), "default", pod).and_then(|it| of(&it));
                if let Some(found) = found {
                    return found;
                }
                watcher.next().await.expect("history is long enough");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the pod's fate")
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.expect("a clean end");
        self.objects.store().close().await;
    }
}

fn node(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "disk": "ssd"}},
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn cpu(amount: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": amount}}}]})
}

#[tokio::test]
async fn a_pod_gets_a_node_with_room_or_is_told_why_not() {
    let mut broken = node("c", "4");
    broken["status"]["conditions"][0]["status"] = json!("False");
    let cluster = Cluster::start(&[node("a", "1"), node("b", "4"), broken]).await;
    cluster.pod("large", cpu("3")).await;
    assert_eq!(cluster.node_of("large").await, "b");
    cluster.pod("another", cpu("3")).await;
    let why = cluster.wait("another", |it| {
        let condition = kube_kinds::condition(it, "PodScheduled")?;
        Some(text(condition, "/message").to_string()).filter(|it| it.starts_with("0/3"))
    });
    let expected = "0/3 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }, \
        2 Insufficient cpu. preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, \
        2 Preemption is not helpful for scheduling.";
    assert_eq!(why.await, expected);
    let options = kube_kinds::strategy::DeleteOptions { grace_seconds: Some(0), ..Default::default() };
    let writer = Writer::new("test");
    cluster.objects.delete(&kind("", "Pod"), "default", "large", &options, &writer).await.expect("deleted");
    assert_eq!(cluster.node_of("another").await, "b", "room that is given back is used");
    cluster.pod("odd", json!({"nodeSelector": {"disk": "tape"}})).await;
    let why = cluster.fate("odd").await;
    assert!(why.contains("2 node(s) didn't match Pod's node affinity/selector"), "{why}");
    cluster.end().await;
}

#[tokio::test]
async fn pods_keep_away_from_each_other_and_spread() {
    let cluster = Cluster::start(&[node("a", "4"), node("b", "4")]).await;
    let away = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": "kubernetes.io/hostname"}]}}});
    cluster.pod("one", away.clone()).await;
    cluster.pod("two", away.clone()).await;
    assert_ne!(cluster.node_of("one").await, cluster.node_of("two").await);
    cluster.pod("three", away).await;
    let why = cluster.fate("three").await;
    assert!(why.contains("node(s) didn't satisfy existing pods anti-affinity rules"), "{why}");
    cluster.end().await;

    let cluster = Cluster::start(&[node("a", "4"), node("b", "4")]).await;
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]});
    let mut count = BTreeMap::new();
    for pod in ["1", "2", "3", "4"] {
        cluster.pod(pod, spread.clone()).await;
        *count.entry(cluster.node_of(pod).await).or_insert(0) += 1;
    }
    assert_eq!(count.into_values().collect::<Vec<_>>(), [2, 2]);
    cluster.end().await;
}

#[tokio::test]
async fn an_important_pod_takes_the_place_of_the_least_important() {
    let cluster = Cluster::start(&[node("a", "2")]).await;
    for value in [1, 5, 10] {
        let class = json!({"metadata": {"name": format!("class-{value}")}, "value": value});
        cluster.make("scheduling.k8s.io", "PriorityClass", class).await;
    }
    let with_priority = |priority: i64, amount: &str| {
        let mut spec = cpu(amount);
        spec["priorityClassName"] = json!(format!("class-{priority}"));
        spec["terminationGracePeriodSeconds"] = json!(0);
        spec
    };
    cluster.pod("low", with_priority(1, "1")).await;
    cluster.node_of("low").await;
    cluster.pod("middle", with_priority(5, "1")).await;
    cluster.node_of("middle").await;
    cluster.pod("high", with_priority(10, "1")).await;
    assert_eq!(cluster.node_of("high").await, "a");
    assert!(cluster.objects.find(&kind("", "Pod"), "default", "low").is_none());
    assert!(cluster.objects.find(&kind("", "Pod"), "default", "middle").is_some());
    cluster.end().await;
}

#[tokio::test]
async fn ports_of_the_node_are_given_once_and_gates_are_waited_for() {
    let cluster = Cluster::start(&[node("a", "4")]).await;
    let port = json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 8080}]}]});
    cluster.pod("one", port.clone()).await;
    assert_eq!(cluster.node_of("one").await, "a");
    cluster.pod("two", port).await;
    let why = cluster.fate("two").await;
    assert!(why.contains("1 node(s) didn't have free ports for the requested pod ports"), "{why}");
    cluster.pod("gated", json!({"schedulingGates": [{"name": "x"}]})).await;
    assert!(cluster.fate("gated").await.starts_with("Scheduling is blocked"));
    cluster.end().await;
}
