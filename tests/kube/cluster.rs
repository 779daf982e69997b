//! The one daemon, and what a scenario does with it.

use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use naru_loop_tests::harness::{Daemon, PATIENCE, text};
use serde_json::{Value, json};

use crate::http::{Answer, Http, Watch};
use crate::image;

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(30);

pub struct Cluster {
    daemon: Mutex<Option<Daemon>>,
    http: Http,
    /// Where git, the registry and metrics are: `http://127.0.0.1:7070`.
    pub base: String,
    pub kubeconfig: String,
    /// A busybox with a link for each program in /bin and a page in /www.
    pub image: String,
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Cluster {
    /// Where routes are served: `http://127.0.0.1:8080`.
    pub fn gateway(&self) -> String {
        let daemon = self.daemon.lock().unwrap_or_else(|it| it.into_inner());
        daemon.as_ref().unwrap().endpoints["gateway"].as_str().unwrap().to_string()
    }
}

/// The daemon that all scenarios share; the first to ask starts it.
pub fn cluster() -> &'static Cluster {
    CLUSTER.get_or_init(|| {
        let daemon = Daemon::start();
        let base = daemon.http();
        let registry = base.trim_start_matches("http://").to_string();
        image::push(&registry, &daemon.push_token());
        let token = std::fs::read_to_string(daemon.data_dir().join("api/pki/admin.token")).unwrap();
        let endpoint = |name: &str| daemon.endpoints[name].as_str().unwrap().to_string();
        Cluster {
            http: Http::new(&endpoint("api"), token.trim()),
            kubeconfig: endpoint("kubeconfig"),
            image: format!("{registry}/test/busybox:1"),
            base,
            daemon: Mutex::new(Some(daemon)),
        }
    })
}

/// Ends the daemon, and checks that it left nothing on the machine.
pub(crate) fn shut_down(failed: bool) {
    let Some(cluster) = CLUSTER.get() else { return };
    let Some(daemon) = cluster.daemon.lock().unwrap_or_else(|it| it.into_inner()).take() else { return };
    if failed {
        let log = daemon.log();
        let tail: Vec<&str> = log.lines().rev().take(40).collect();
        eprintln!("--- naru's log\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    daemon.destroy();
}

/// One scenario's own corner: a namespace and ways to ask.
pub struct Case {
    pub cluster: &'static Cluster,
    /// The scenario's namespace, which is there from the start and goes away at its end.
    pub namespace: String,
}

impl Case {
    pub(crate) fn new(_name: &str) -> Case {
        let number = NUMBER.fetch_add(1, Ordering::SeqCst) + 1;
        let case = Case { cluster: cluster(), namespace: format!("mirror-{number}") };
        case.create("/api/v1/namespaces", &json!({"metadata": {"name": case.namespace}}));
        case
    }

    /// A name that no other scenario uses, for objects outside of namespaces.
    pub fn unique(&self, base: &str) -> String {
        format!("{base}-{}", self.namespace)
    }

    /// The path of objects in the scenario's namespace: `path("apps/v1", "deployments")`,
    /// `path("v1", "pods/web/log")`.
    pub fn path(&self, api_version: &str, rest: &str) -> String {
        format!("{}/namespaces/{}/{rest}", root(api_version), self.namespace)
    }

    /// One request with a JSON body; any code is an answer.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let kind = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        self.send(method, path, &[("content-type", kind)], body)
    }

    /// One request with headers and a body of the caller's.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        self.cluster.http.send(method, path, headers, body)
    }

    pub fn get(&self, path: &str) -> Value {
        self.expect("GET", path, &Value::Null, 200)
    }

    /// The object, or `None` if it is not there.
    pub fn find(&self, path: &str) -> Option<Value> {
        let answer = self.ask("GET", path, &Value::Null);
        match answer.code {
            200 => Some(answer.body),
            404 => None,
            _ => panic!("GET {path}: {} {}", answer.code, answer.text),
        }
    }

    /// An answer that is no JSON.
    pub fn get_text(&self, path: &str) -> String {
        let answer = self.ask("GET", path, &Value::Null);
        assert_eq!(answer.code, 200, "GET {path}: {}", answer.text);
        answer.text
    }

    pub fn list(&self, path: &str) -> Vec<Value> {
        match self.get(path)["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        }
    }

    pub fn create(&self, path: &str, body: &Value) -> Value {
        self.expect("POST", path, body, 201)
    }

    pub fn replace(&self, path: &str, body: &Value) -> Value {
        self.expect("PUT", path, body, 200)
    }

    pub fn merge(&self, path: &str, body: &Value) -> Value {
        self.expect("PATCH", path, body, 200)
    }

    /// A patch of another kind: `patch("strategic-merge-patch", ..)`, `patch("json-patch", ..)`.
    pub fn patch(&self, kind: &str, path: &str, body: &Value) -> Value {
        let kind = format!("application/{kind}+json");
        let answer = self.send("PATCH", path, &[("content-type", &kind)], body.to_string().into_bytes());
        assert!(answer.code == 200, "PATCH {path}: {} {}", answer.code, answer.text);
        answer.body
    }

    /// Server-side apply.
    pub fn apply(&self, path: &str, manager: &str, force: bool, body: &Value) -> Answer {
        let path = format!("{path}?fieldManager={manager}&force={force}");
        let kind = [("content-type", "application/apply-patch+yaml")];
        self.send("PATCH", &path, &kind, body.to_string().into_bytes())
    }

    pub fn delete(&self, path: &str) -> Value {
        let answer = self.ask("DELETE", path, &Value::Null);
        assert!(matches!(answer.code, 200 | 202), "DELETE {path}: {} {}", answer.code, answer.text);
        answer.body
    }

    /// A request whose code is known.
    pub fn expect(&self, method: &str, path: &str, body: &Value, code: u16) -> Value {
        let answer = self.ask(method, path, body);
        assert_eq!(answer.code, code, "{method} {path}: {}", answer.text);
        answer.body
    }

    pub fn watch(&self, path: &str) -> Watch<'_> {
        let mark = if path.contains('?') { '&' } else { '?' };
        self.cluster.http.watch(&format!("{path}{mark}watch=true"))
    }

    /// Waits until the closure has an answer.
    pub fn wait<T>(&self, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(it) = done() {
                return it;
            }
            if began.elapsed() > PATIENCE {
                panic!("{what} did not come true");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the object at the path is as wanted, and returns it.
    pub fn wait_for(&self, what: &str, path: &str, done: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let began = Instant::now();
        loop {
            if let Some(object) = self.find(path) {
                if done(&object) {
                    return object;
                }
                last = object;
            }
            if began.elapsed() > PATIENCE {
                panic!("{what} did not come true: {last:#}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub fn wait_gone(&self, path: &str) {
        self.wait(&format!("{path} to be gone"), || self.find(path).is_none().then_some(()));
    }

    /// A pod of the test's image that runs a shell script, not yet created.
    pub fn pod(&self, name: &str, script: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"name": name}},
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": self.cluster.image, "command": ["sh", "-c", script]}],
            },
        })
    }

    /// Runs the pod to its end and returns what its first container said. Fails if the pod fails.
    pub fn output_of(&self, pod: &Value) -> String {
        let name = pod["metadata"]["name"].as_str().unwrap().to_string();
        self.create(&self.path("v1", "pods"), pod);
        let at = self.path("v1", &format!("pods/{name}"));
        let ended = self.wait_for(&format!("the end of pod {name}"), &at, |it| {
            matches!(it["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
        });
        let log = self.logs(&name);
        assert_eq!(ended["status"]["phase"], "Succeeded", "{log}\n{ended:#}");
        log
    }

    pub fn wait_running(&self, pod: &str) -> Value {
        self.wait_for(&format!("pod {pod} to be ready"), &self.path("v1", &format!("pods/{pod}")), |it| {
            let conditions = it["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|it| it["type"] == "Ready" && it["status"] == "True"))
        })
    }

    pub fn logs(&self, pod: &str) -> String {
        self.ask("GET", &self.path("v1", &format!("pods/{pod}/log")), &Value::Null).text
    }

    /// Runs a command in a pod with kubectl and returns what it said.
    pub fn exec(&self, pod: &str, command: &[&str]) -> String {
        let mut args = vec!["exec", pod, "--"];
        args.extend(command);
        let output = self.kubectl(&args);
        assert!(output.status.success(), "{command:?} in {pod}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The stock kubectl in the scenario's namespace.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        self.kubectl_with_input(args, "")
    }

    pub fn kubectl_with_input(&self, args: &[&str], input: &str) -> Output {
        let mut all = vec!["--namespace", self.namespace.as_str()];
        all.extend(args);
        naru_loop_tests::harness::kubectl(&self.cluster.kubeconfig, &all, input)
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        // A scenario that failed has said enough; the daemon goes away with everything in it.
        let gone = std::panic::AssertUnwindSafe(|| self.ask("DELETE", &path, &Value::Null));
        let _ = std::panic::catch_unwind(gone);
    }
}

fn root(api_version: &str) -> String {
    match api_version.contains('/') {
        true => format!("/apis/{api_version}"),
        false => format!("/api/{api_version}"),
    }
}
