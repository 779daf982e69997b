//! helm 3 and helm 4 with one chart, written here: a deployment, a service, a config map and a job as a hook.

use naru_kube_tests::Case;

use crate::{run, try_run};
use naru_loop_tests::harness::text;

pub fn all() -> Vec<(&'static str, fn(&Case))> {
    vec![
        ("helm 3 installs, upgrades, rolls back and uninstalls", |it| whole_life(it, "helm-3")),
        ("helm 4 installs, upgrades, rolls back and uninstalls", |it| whole_life(it, "helm-4")),
    ]
}

const TEMPLATES: [(&str, &str); 4] = [
    (
        "config.yaml",
        "apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-config}
data: {index.html: {{ .Values.text | quote }}}
",
    ),
    (
        "deployment.yaml",
        "apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}, labels: {app: {{ .Release.Name }}}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata:
      labels: {app: {{ .Release.Name }}}
      annotations: {text: {{ .Values.text | quote }}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: {{ .Values.image }}
        command: [httpd, -f, -p, '8080', -h, /page]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /index.html, port: http}, periodSeconds: 1}
        volumeMounts: [{name: page, mountPath: /page}]
      volumes: [{name: page, configMap: {name: {{ .Release.Name }}-config}}]
",
    ),
    (
        "service.yaml",
        "apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}}
spec: {selector: {app: {{ .Release.Name }}}, ports: [{port: 80, targetPort: http}]}
",
    ),
    (
        "hook.yaml",
        "apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-before
  annotations: {helm.sh/hook: 'pre-install,pre-upgrade', helm.sh/hook-delete-policy: before-hook-creation}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: once, image: {{ .Values.image }}, command: ['true']}]
",
    ),
];

fn whole_life(it: &Case, helm: &str) {
    let chart = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(chart.path().join("Chart.yaml"), "apiVersion: v2\nname: page\nversion: 1.0.0\n")
        .expect("a file");
    let values = format!("image: {}\nreplicas: 1\ntext: one\n", it.cluster.image);
    std::fs::write(chart.path().join("values.yaml"), values).expect("a file");
    std::fs::create_dir(chart.path().join("templates")).expect("a directory");
    for (name, content) in TEMPLATES {
        std::fs::write(chart.path().join("templates").join(name), content).expect("a file");
    }
    let chart = chart.path().display().to_string();
    let text_of = || it.get(&it.path("v1", "configmaps/page-config"))["data"]["index.html"].clone();
    run(it, helm, &["install", "page", &chart, "--wait", "--timeout=90s"]);
    assert_eq!(text_of(), "one");
    let ready = it.get(&it.path("apps/v1", "deployments/page"));
    assert_eq!(ready["status"]["readyReplicas"], 1, "--wait waits until it is ready");
    run(it, helm, &["upgrade", "page", &chart, "--set", "text=two,replicas=2", "--wait", "--timeout=90s"]);
    assert_eq!(text_of(), "two");
    assert_eq!(it.get(&it.path("apps/v1", "deployments/page"))["spec"]["replicas"], 2);
    run(it, helm, &["rollback", "page", "1", "--wait", "--timeout=90s"]);
    assert_eq!(text_of(), "one");
    assert_eq!(it.get(&it.path("apps/v1", "deployments/page"))["spec"]["replicas"], 1);
    let listed = run(it, helm, &["list"]);
    assert!(listed.contains("page") && listed.contains("deployed"), "{listed}");
    let history = run(it, helm, &["history", "page"]);
    assert!(history.contains("superseded") && history.contains("Rollback to 1"), "{history}");
    let unknown = try_run(it, helm, &["upgrade", "page", &chart, "--set", "image="], "");
    assert!(!unknown.status.success(), "an image that is missing is refused: {}", text(&unknown));
    run(it, helm, &["uninstall", "page", "--wait", "--timeout=90s"]);
    assert!(it.find(&it.path("apps/v1", "deployments/page")).is_none());
}
