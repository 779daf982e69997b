//! How many pods per second the scheduler binds: `cargo run --release -p kube-controllers --example
//! scheduling -- [PODS] [NODES]`. Every binding is on the disk when it counts.

use std::time::Instant;

use kube_controllers::{Settings, simulate};
use kube_kinds::table;
use kube_objects::{Objects, Writer};
use kube_store::{Options, Store};
use serde_json::json;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|it| it.parse::<usize>().expect("a number"));
    let (pods, nodes) = (arguments.next().unwrap_or(10_000), arguments.next().unwrap_or(1_000));
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("objects.db"), Options::default()).expect("a store");
    let objects = Objects::new(store.clone());
    let writer = Writer::new("bench");
    let shutdown = CancellationToken::new();
    let namespaces = table::of("", "Namespace").expect("built in");
    let object = json!({"metadata": {"name": "default"}});
    objects.create(namespaces, "", object, &writer).await.expect("a namespace");
    // The nodes stay silent: what is measured is the binding, not what follows from it.
    let silent = CancellationToken::new();
    let registered = simulate::start(store.clone(), nodes, silent.clone()).await.expect("nodes");
    silent.cancel();
    registered.await.expect("a clean end");
    let kind = table::of("", "Pod").expect("built in");
    let made = futures::future::join_all((0..pods).map(|number| {
        let pod = json!({"metadata": {"name": format!("p{number}")}, "spec": {"containers": [{"name": "c", "image": "i",
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]}});
        objects.create(kind, "default", pod, &writer)
    }))
    .await;
    assert!(made.iter().all(Result::is_ok));
    let (_, mut watcher) = store.list_and_watch("core/pods/");
    let begun = Instant::now();
    let controllers = kube_controllers::start(store.clone(), Settings::default(), shutdown.clone());
    let mut bound = 0;
    while bound < pods {
        match watcher.next().await {
            Ok(batch) => {
                bound += batch.changes.iter().filter(|it| it.value["spec"]["nodeName"].is_string()).count()
            }
            Err(_) => {
                let (snapshot, new) = store.list_and_watch("core/pods/");
                bound = snapshot.items.iter().filter(|it| it.value["spec"]["nodeName"].is_string()).count();
                watcher = new;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{pods} pods on {nodes} nodes in {seconds:.2} s: {:.0} pods/s", pods as f64 / seconds);
    shutdown.cancel();
    controllers.await.expect("a clean end");
    store.close().await;
}
