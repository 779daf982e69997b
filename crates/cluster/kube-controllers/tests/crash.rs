//! Controllers that die at any moment and come back: what was asked for is there in the end, once.

use std::collections::BTreeSet;
use std::time::Duration;

use kube_controllers::{Settings, simulate, start};
use kube_kinds::selector::LabelSelector;
use kube_kinds::{int, is_deleting, name, table, text};
use kube_objects::{Door, Objects, Writer};
use kube_store::{Options, Store};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Nothing that a test waits for takes this long, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(120);
const DEATHS: u64 = 25;

struct World {
    objects: Objects,
    writer: Writer,
}

impl World {
    async fn make(&self, group: &str, kind: &str, object: Value) {
        let kind = table::of(group, kind).expect("built in");
        self.objects.create(kind, "default", object, &self.writer).await.expect("made");
    }

    fn pods(&self, app: &str) -> Vec<std::sync::Arc<Value>> {
        let selector = LabelSelector::parse(&format!("app={app}")).expect("a selector");
        let mut pods = self.objects.list(table::of("", "Pod").expect("built in"), None, &selector);
        pods.retain(|it| !is_deleting(it));
        pods
    }

    fn find(&self, group: &str, kind: &str, name: &str) -> Value {
        let found = self.objects.find(table::of(group, kind).expect("built in"), "default", name);
        found.map_or(Value::Null, |it| (*it).clone())
    }

    async fn until(&self, what: &str, done: impl Fn() -> bool) {
        let (_, mut watcher) = self.objects.store().list_and_watch("");
        let wait = async {
            while !done() {
                if watcher.next().await.is_err() {
                    (_, watcher) = self.objects.store().list_and_watch("");
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }
}

fn template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_for_is_there_once_however_often_controllers_die() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("objects.db"), Options::default()).expect("a store");
    let world = World { objects: Objects::new(store.clone()), writer: Writer::new("test") };
    world.make("", "Namespace", json!({"metadata": {"name": "default"}})).await;
    let stop = CancellationToken::new();
    let nodes = simulate::start(store.clone(), 3, stop.clone()).await.expect("nodes");

    let selector = |app: &str| json!({"matchLabels": {"app": app}});
    world
        .make(
            "apps",
            "Deployment",
            json!({"metadata": {"name": "web"}, "spec": {"replicas": 20,
        "selector": selector("web"), "template": template("web")}}),
        )
        .await;
    world
        .make(
            "apps",
            "StatefulSet",
            json!({"metadata": {"name": "db"}, "spec": {"replicas": 5, "serviceName": "db",
        "selector": selector("db"), "template": template("db")}}),
        )
        .await;
    world
        .make(
            "apps",
            "DaemonSet",
            json!({"metadata": {"name": "agent"}, "spec": {
        "selector": selector("agent"), "template": template("agent")}}),
        )
        .await;
    let mut work = template("work");
    work["spec"]["restartPolicy"] = json!("Never");
    world
        .make(
            "batch",
            "Job",
            json!({"metadata": {"name": "work"}, "spec": {"completions": 12, "parallelism": 4,
        "completionMode": "Indexed", "template": work}}),
        )
        .await;

    // Dying is losing all tasks wherever they are, in the middle of a plan too.
    for death in 0..DEATHS {
        let controllers = start_abortable(store.clone());
        tokio::time::sleep(Duration::from_millis(3 + death * 7 % 40)).await;
        let end = tokio::task::spawn_blocking(move || controllers.shutdown_timeout(Duration::from_secs(10)));
        end.await.expect("dead");
        // What was on its way to the disk has arrived or never will.
        world.make("", "ConfigMap", json!({"metadata": {"generateName": "barrier-"}})).await;
        if death == 8 {
            let deployments = table::of("apps", "Deployment").expect("built in");
            let edit =
                |it: &mut Value| it["spec"]["template"]["spec"]["containers"][0]["image"] = json!("v2");
            world
                .objects
                .edit(deployments, "default", "web", Door::Object, &world.writer, edit)
                .await
                .expect("edited");
        }
    }
    let last = CancellationToken::new();
    let controllers = start(store.clone(), Settings::default(), last.clone());
    world
        .until("the job's end", || {
            kube_kinds::condition_is_true(&world.find("batch", "Job", "work"), "Complete")
        })
        .await;
    world
        .until("the rollout's end", || {
            let web = world.find("apps", "Deployment", "web");
            int(&web, "/status/updatedReplicas") == 20
                && int(&web, "/status/availableReplicas") == 20
                && int(&web, "/status/replicas") == 20
        })
        .await;
    world
        .until("the others", || {
            int(&world.find("apps", "StatefulSet", "db"), "/status/readyReplicas") == 5
                && int(&world.find("apps", "DaemonSet", "agent"), "/status/numberReady") == 3
        })
        .await;

    let job = world.find("batch", "Job", "work");
    assert_eq!((int(&job, "/status/succeeded"), int(&job, "/status/failed")), (12, 0));
    assert_eq!(job["status"]["completedIndexes"], "0-11");
    let web = world.pods("web");
    assert_eq!(web.len(), 20, "no duplicates");
    assert!(web.iter().all(|it| text(it, "/spec/containers/0/image") == "v2"));
    let db: BTreeSet<String> = world.pods("db").iter().map(|it| name(it).to_string()).collect();
    assert_eq!(db.into_iter().collect::<Vec<_>>(), ["db-0", "db-1", "db-2", "db-3", "db-4"]);
    let places: BTreeSet<String> =
        world.pods("agent").iter().map(|it| text(it, "/spec/nodeName").to_string()).collect();
    assert_eq!((places.len(), world.pods("agent").len()), (3, 3));
    let sets = world.objects.list(
        table::of("apps", "ReplicaSet").expect("built in"),
        None,
        &LabelSelector::default(),
    );
    assert_eq!(sets.len(), 2, "one set per version");
    last.cancel();
    controllers.await.expect("a clean end");
    stop.cancel();
    nodes.await.expect("a clean end");
    store.close().await;
}

/// Controllers in a runtime of their own, which can be dropped at any moment.
fn start_abortable(store: Store) -> tokio::runtime::Runtime {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    runtime.spawn(async move {
        // Never ends: the runtime is dropped before.
        let _ = start(store, Settings::default(), CancellationToken::new()).await;
    });
    runtime
}
