//! The API and the controllers as a user of the stock `kubectl` sees them, over TLS, with a
//! simulated node that makes pods run.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use kube_api::{
    Api, AttachRequest, Config, Connection, ExecRequest, ExecSession, LogRequest, LogStream, NodeStreams,
    StreamError, Usage,
};
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::DeleteOptions;
use kube_kinds::{is_deleting, name, namespace, table, text};
use kube_objects::{Door, Objects, Writer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio_util::sync::CancellationToken;

/// Nothing that a test waits for takes this long, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

struct Cluster {
    _dir: tempfile::TempDir,
    kubeconfig: PathBuf,
    api: Api,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Cluster {
    async fn start() -> Cluster {
        let dir = tempfile::tempdir().expect("a directory");
        let api = Api::open(Config::new(dir.path().into(), "test")).expect("the API opens");
        api.prepare().await.expect("the first objects are written");
        api.set_streams(Arc::new(Streams));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let kubeconfig = api.write_kubeconfig(&url).expect("a kubeconfig");
        let stop = CancellationToken::new();
        let tasks = vec![
            tokio::spawn({
                let (api, stop) = (api.clone(), stop.clone());
                async move { api.serve(listener, stop).await }
            }),
            kube_controllers::start(api.store(), kube_controllers::Settings::default(), stop.clone()),
            tokio::spawn(simulate_node(api.objects().clone(), stop.clone())),
        ];
        Cluster { _dir: dir, kubeconfig, api, stop, tasks }
    }

    async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("a clean end");
        }
        self.api.close().await;
    }

    fn command(&self, arguments: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("kubectl");
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self._dir.path().join("cache"))
            .args(arguments.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs kubectl with a file on its standard input; answers with success, output and errors.
    async fn run(&self, arguments: &str, input: &str) -> (bool, String) {
        let mut child = self.command(arguments).spawn().expect("kubectl is installed");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).await.expect("kubectl reads");
        drop(stdin);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
            .await
            .unwrap_or_else(|_| panic!("kubectl {arguments} does not end"))
            .expect("kubectl runs");
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    #[track_caller]
    fn expect_success(arguments: &str, (success, text): (bool, String)) -> String {
        assert!(success, "kubectl {arguments}: {text}");
        text
    }

    async fn kubectl(&self, arguments: &str) -> String {
        Self::expect_success(arguments, self.run(arguments, "").await)
    }

    async fn apply(&self, file: &str) -> String {
        let arguments = "apply --validate=false -f -";
        Self::expect_success(arguments, self.run(arguments, file).await)
    }

    /// Waits until the objects satisfy the condition.
    async fn until(&self, what: &str, condition: impl Fn(&Objects) -> bool) {
        let (_, mut watcher) = self.api.store().list_and_watch("");
        let wait = async {
            while !condition(self.api.objects()) {
                watcher.next().await.expect("history is long enough");
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }
}

fn pods(objects: &Objects) -> Vec<Arc<Value>> {
    objects.list(table::of("", "Pod").expect("built in"), None, &LabelSelector::default())
}

/// A node that runs every pod at once, and stops it when asked to. Images named `broken` never get
/// ready, images named `task` end well, images named `crash` end badly.
async fn simulate_node(objects: Objects, stop: CancellationToken) {
    let writer = Writer::new("node");
    let nodes = table::of("", "Node").expect("built in");
    let pod_kind = table::of("", "Pod").expect("built in");
    objects.create(nodes, "", json!({"metadata": {"name": "n1"}}), &writer).await.expect("a node");
    let ready = json!({"conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        "nodeInfo": {"kubeletVersion": "v1.35.0", "osImage": "Simulated"}});
    let status = objects.edit(nodes, "", "n1", Door::Status, &writer, |it| it["status"] = ready.clone());
    status.await.expect("a node");
    let (snapshot, mut watcher) = objects.store().list_and_watch("core/pods/");
    assert!(snapshot.items.is_empty());
    let mut address = 1;
    loop {
        let batch = tokio::select! {
            batch = watcher.next() => batch.expect("history is long enough"),
            () = stop.cancelled() => return,
        };
        for change in &batch.changes {
            let pod = &change.value;
            if change.deleted || text(pod, "/spec/nodeName") != "n1" {
                continue;
            }
            if is_deleting(pod) {
                let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
                let gone = objects.delete(pod_kind, namespace(pod), name(pod), &now, &writer).await;
                gone.map(|_| ())
                    .or_else(|it| if it.is_not_found() { Ok(()) } else { Err(it) })
                    .expect("a deletion");
                continue;
            }
            if text(pod, "/status/phase") != "Pending" {
                continue;
            }
            address += 1;
            let image = text(pod, "/spec/containers/0/image");
            let (phase, ready) = match image.split(':').next() {
                Some("broken") => ("Running", false),
                Some("task") => ("Succeeded", false),
                Some("crash") => ("Failed", false),
                _ => ("Running", true),
            };
            let now = kube_kinds::time::format(jiff::Timestamp::now());
            let status = json!({"phase": phase, "podIP": format!("10.1.0.{address}"), "startTime": now,
                "containerStatuses": [{"name": "c", "ready": ready, "restartCount": 0, "image": image, "state": {"running": {"startedAt": now}}}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": now}]});
            let write = objects.edit(pod_kind, namespace(pod), name(pod), Door::Status, &writer, |it| {
                for (field, value) in status.as_object().expect("fields") {
                    it["status"][field] = value.clone();
                }
            });
            // It may be gone already.
            let _ = write.await;
        }
    }
}

/// Logs that say what was asked, commands that are run on this machine.
struct Streams;

#[async_trait::async_trait]
impl NodeStreams for Streams {
    async fn logs(&self, request: LogRequest) -> Result<LogStream, StreamError> {
        let text =
            format!("{}/{} tail={:?}\nsecond line\n", request.pod, request.container, request.tail_lines);
        let parts: Vec<Result<Bytes, std::io::Error>> =
            text.split_inclusive('\n').map(|it| Ok(Bytes::from(it.to_string()))).collect();
        Ok(futures::stream::iter(parts).boxed())
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, StreamError> {
        let mut child = tokio::process::Command::new(&request.command[0])
            .args(&request.command[1..])
            .stdin(if request.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| StreamError::Failed(error.to_string()))?;
        let stdin = child.stdin.take().map(|it| Box::new(it) as _);
        let stdout = Box::new(child.stdout.take().expect("a pipe"));
        let stderr = child.stderr.take().map(|it| Box::new(it) as _);
        let (done, exit) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let code = child.wait().await.ok().and_then(|it| it.code()).unwrap_or(-1);
            let _ = done.send(code);
        });
        Ok(ExecSession { stdin, stdout, stderr, resize: None, exit })
    }

    async fn attach(&self, _: AttachRequest) -> Result<ExecSession, StreamError> {
        Err(StreamError::Failed("there is nothing to attach to".into()))
    }

    async fn port_forward(&self, _: &str, _: &str, _: &str, _: u16) -> Result<Connection, StreamError> {
        Err(StreamError::Failed("there is nothing to connect to".into()))
    }

    async fn usage(&self) -> Vec<Usage> {
        Vec::new()
    }
}

fn web(image: &str, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - {{name: c, image: '{image}', ports: [{{name: http, containerPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}]}}
"
    )
}

fn ready_endpoints(objects: &Objects) -> usize {
    let kind = table::of("discovery.k8s.io", "EndpointSlice").expect("built in");
    let slices = objects.list(kind, None, &LabelSelector::default());
    let endpoints = slices.iter().flat_map(|it| kube_kinds::list(it, "/endpoints"));
    endpoints.filter(|it| it["conditions"]["ready"] == true).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_lives_its_life() {
    let cluster = Cluster::start().await;
    assert!(cluster.apply(&web("shop:1", 3)).await.contains("deployment.apps/web created"));
    let status = cluster.kubectl("rollout status deployment/web --timeout=50s").await;
    assert!(status.contains("successfully rolled out"), "{status}");
    assert!(cluster.apply(&web("shop:1", 3)).await.contains("deployment.apps/web unchanged"));
    cluster.until("three endpoints", |it| ready_endpoints(it) == 3).await;
    let table = cluster.kubectl("get deployments,rs,pods,svc,endpointslices,nodes -o wide").await;
    for expected in ["3/3", "shop:1", "app=web", "Running", "n1", "8080", "10.0.0.1", "Simulated"] {
        assert!(table.contains(expected), "{expected} is not in\n{table}");
    }

    // A new version, never with fewer than three ready pods (25 % of three rounds down to none).
    let (snapshot, mut watcher) = cluster.api.store().list_and_watch("core/pods/");
    let mut serving: BTreeSet<String> = snapshot.items.iter().map(|it| it.key.to_string()).collect();
    cluster.kubectl("set image deployment/web c=shop:2").await;
    cluster.kubectl("rollout status deployment/web --timeout=50s").await;
    cluster
        .until("only new pods", |it| {
            pods(it).len() == 3 && pods(it).iter().all(|it| text(it, "/spec/containers/0/image") == "shop:2")
        })
        .await;
    let end = cluster.api.store().revision();
    while watcher.revision() < end {
        for change in watcher.next().await.expect("history is long enough").changes {
            let serves = !change.deleted
                && !is_deleting(&change.value)
                && kube_kinds::condition_is_true(&change.value, "Ready");
            match serves {
                true => serving.insert(change.key.to_string()),
                false => serving.remove(&*change.key),
            };
            assert!(serving.len() >= 3, "only {serving:?} serve");
        }
    }
    let history = cluster.kubectl("rollout history deployment/web").await;
    assert!(history.contains("1 ") && history.contains("2 "), "{history}");

    cluster.kubectl("rollout undo deployment/web").await;
    cluster.kubectl("rollout status deployment/web --timeout=50s").await;
    cluster
        .until("only old pods", |it| {
            pods(it).len() == 3 && pods(it).iter().all(|it| text(it, "/spec/containers/0/image") == "shop:1")
        })
        .await;

    // A pod that goes is replaced.
    let victim = name(&pods(cluster.api.objects())[0]).to_string();
    cluster.kubectl(&format!("delete pod {victim}")).await;
    cluster
        .until("a replacement", |it| ready_endpoints(it) == 3 && pods(it).iter().all(|it| name(it) != victim))
        .await;

    cluster.kubectl("scale deployment/web --replicas=1").await;
    cluster.until("one pod", |it| pods(it).len() == 1).await;
    cluster
        .until("the last event", |it| {
            let events = it.list(table::of("", "Event").expect("built in"), None, &LabelSelector::default());
            events.iter().any(|it| text(it, "/message").contains("from 3 to 1"))
        })
        .await;
    let described = cluster.kubectl("describe deployment web").await;
    for expected in
        ["ScalingReplicaSet", "NewReplicaSetAvailable", "1 desired | 1 updated | 1 total | 1 available"]
    {
        assert!(described.contains(expected), "{expected} is not in\n{described}");
    }
    let described = cluster.kubectl("describe pod -l app=web").await;
    assert!(described.contains("Scheduled"), "{described}");

    cluster.kubectl("delete deployment web --cascade=foreground").await;
    cluster.until("nothing left", |it| pods(it).is_empty()).await;
    cluster.kubectl("delete service web").await;
    cluster.until("no slices", |it| it.store().list("discovery.k8s.io/").items.is_empty()).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_does_not_get_ready_leaves_the_old_one_serving() {
    let cluster = Cluster::start().await;
    cluster.apply(&web("shop:1", 2)).await;
    cluster.kubectl("rollout status deployment/web --timeout=50s").await;
    cluster.kubectl("patch deployment web -p {\"spec\":{\"progressDeadlineSeconds\":1}}").await;
    cluster.kubectl("set image deployment/web c=broken:2").await;
    let (success, text) = cluster.run("rollout status deployment/web --timeout=50s", "").await;
    assert!(!success && text.contains("exceeded its progress deadline"), "{text}");
    assert_eq!(ready_endpoints(cluster.api.objects()), 2);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_are_adopted_by_the_next_deployment_of_the_same_form() {
    let cluster = Cluster::start().await;
    cluster.apply(&web("shop:1", 2)).await;
    cluster.kubectl("rollout status deployment/web --timeout=50s").await;
    let names = |it: &Objects| pods(it).iter().map(|it| name(it).to_string()).collect::<Vec<_>>();
    let before = names(cluster.api.objects());
    cluster.kubectl("delete deployment web --cascade=orphan").await;
    assert_eq!(names(cluster.api.objects()), before, "let go, not removed");
    cluster.apply(&web("shop:1", 2)).await;
    cluster.kubectl("rollout status deployment/web --timeout=50s").await;
    assert_eq!(names(cluster.api.objects()), before, "taken over, not replaced");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreate_starts_the_new_version_only_when_the_old_one_is_gone() {
    let cluster = Cluster::start().await;
    let file = |image: &str| {
        web(image, 2).replace("spec:\n  replicas", "spec:\n  strategy: {type: Recreate}\n  replicas")
    };
    cluster.apply(&file("shop:1")).await;
    cluster.kubectl("rollout status deployment/web --timeout=50s").await;
    let (_, mut watcher) = cluster.api.store().list_and_watch("core/pods/");
    cluster.apply(&file("shop:2")).await;
    cluster.kubectl("rollout status deployment/web --timeout=50s").await;
    let mut old = 2;
    let end = cluster.api.store().revision();
    while watcher.revision() < end {
        for change in watcher.next().await.expect("history is long enough").changes {
            let is_new = text(&change.value, "/spec/containers/0/image") == "shop:2";
            old -= usize::from(change.deleted && !is_new);
            assert!(!is_new || old == 0, "a new pod beside an old one");
        }
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_end_well_or_badly() {
    let cluster = Cluster::start().await;
    let job = |name: &str, image: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec: {{backoffLimit: 0, template: {{spec: {{restartPolicy: Never, containers: [{{name: c, image: '{image}'}}]}}}}}}\n"
        )
    };
    cluster.apply(&job("good", "task:1")).await;
    cluster.apply(&job("bad", "crash:1")).await;
    cluster.kubectl("wait --for=condition=complete job/good --timeout=50s").await;
    cluster.kubectl("wait --for=condition=failed job/bad --timeout=50s").await;
    let table = cluster.kubectl("get jobs").await;
    assert!(table.contains("Complete") && table.contains("1/1") && table.contains("Failed"), "{table}");
    cluster.kubectl("delete jobs --all").await;
    cluster.until("no pods", |it| pods(it).is_empty()).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn declared_kinds_work_like_built_in_ones() {
    let cluster = Cluster::start().await;
    let definition = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: runs.naru.dev}
spec:
  group: naru.dev
  scope: Namespaced
  names: {plural: runs, kind: Run, shortNames: [rn]}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Phase, type: string, jsonPath: .status.phase}
    schema: {openAPIV3Schema: {type: object, properties: {
      spec: {type: object, required: [repo], properties: {repo: {type: string}, tries: {type: integer, default: 2}}},
      status: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
";
    cluster.apply(definition).await;
    cluster.kubectl("wait --for=condition=established crd/runs.naru.dev --timeout=50s").await;
    let run = |spec: &str| {
        format!("apiVersion: naru.dev/v1alpha1\nkind: Run\nmetadata: {{name: r1}}\nspec: {spec}\n")
    };
    let (success, text) = cluster.run("apply --validate=false -f -", &run("{repo: 7}")).await;
    assert!(!success && text.contains("spec.repo") && text.contains("must be of type string"), "{text}");
    cluster.apply(&run("{repo: shop}")).await;
    cluster
        .kubectl("patch run r1 --subresource=status --type=merge -p {\"status\":{\"phase\":\"Ready\"}}")
        .await;
    assert!(cluster.kubectl("get rn").await.contains("Ready"));
    assert_eq!(cluster.kubectl("get run r1 -o jsonpath={.spec.tries}").await, "2");
    cluster.kubectl("delete crd runs.naru.dev").await;
    cluster.until("its objects are gone", |it| it.store().list("naru.dev/").items.is_empty()).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_everything_in_it() {
    let cluster = Cluster::start().await;
    cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}").await;
    let (success, text) = cluster.run("-n nowhere apply --validate=false -f -", &web("shop:1", 1)).await;
    assert!(!success && text.contains("namespaces \"nowhere\" not found"), "{text}");
    let arguments = "-n shop apply --validate=false -f -";
    Cluster::expect_success(arguments, cluster.run(arguments, &web("shop:1", 2)).await);
    cluster.kubectl("-n shop rollout status deployment/web --timeout=50s").await;
    cluster.kubectl("delete namespace shop").await;
    let left = cluster.api.store().list("").items;
    let left: Vec<&str> = left.iter().map(|it| &*it.key).filter(|it| it.contains("/shop/")).collect();
    assert!(left.is_empty(), "{left:?}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_exec_and_watch_stream() {
    let cluster = Cluster::start().await;
    cluster.apply(&web("shop:1", 1)).await;
    cluster.kubectl("rollout status deployment/web --timeout=50s").await;
    let pod = name(&pods(cluster.api.objects())[0]).to_string();
    let logs = cluster.kubectl("logs -f --tail=5 deployment/web").await;
    assert_eq!(logs, format!("{pod}/c tail=Some(5)\nsecond line\n"));

    let (success, text) = cluster
        .run(&format!("exec -i {pod} -- sh -c cat;echo${{IFS}}problem>&2;exit${{IFS}}3"), "hello\n")
        .await;
    assert!(
        !success && text.contains("hello\n") && text.contains("problem") && text.contains("exit code 3"),
        "{text}"
    );
    let echoed = cluster.kubectl(&format!("exec {pod} -- echo over websocket")).await;
    assert_eq!(echoed, "over websocket\n");

    let mut watch = cluster.command("get configmaps -w").spawn().expect("kubectl is installed");
    let mut lines = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    cluster.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\ndata: {a: b}").await;
    let mut seen = String::new();
    while !seen.contains("one") {
        let line =
            tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("readable");
        seen.push_str(&line.expect("the watch goes on"));
    }
    watch.kill().await.expect("it ends");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_stay_outside() {
    let cluster = Cluster::start().await;
    let url = cluster.kubectl("config view -o jsonpath={.clusters[0].cluster.server}").await;
    let (success, text) =
        cluster.run(&format!("get pods --kubeconfig=/dev/null --server={url} --insecure-skip-tls-verify --username=x --password=y"), "").await;
    assert!(
        !success && ["Unauthorized", "Forbidden", "logged in"].iter().any(|it| text.contains(it)),
        "{text}"
    );
    let token = cluster.api.admin_token();
    cluster
        .kubectl(&format!(
            "get pods --kubeconfig=/dev/null --server={url} --insecure-skip-tls-verify --token={token}"
        ))
        .await;
    cluster.end().await;
}
