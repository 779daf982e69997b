//! The official Python client, whose models refuse answers without what the schema requires.

use std::process::Command;

use naru_kube_tests::Case;
use naru_loop_tests::harness::{text, tool};

pub fn all() -> Vec<(&'static str, fn(&Case))> {
    vec![("the Python client reads, writes, watches, runs commands and finds declared kinds", whole)]
}

const SCRIPT: &str = r#"
import sys
from kubernetes import client, config, dynamic, watch
from kubernetes.stream import stream

namespace, image = sys.argv[1:]
config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()
nodes = core.list_node().items
assert nodes and nodes[0].status.node_info.architecture, nodes
labels = {"app": "py"}
container = client.V1Container(name="web", image=image, command=["httpd", "-f", "-p", "8080", "-h", "/www"],
    readiness_probe=client.V1Probe(http_get=client.V1HTTPGetAction(path="/index.html", port=8080), period_seconds=1))
template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels),
    spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0))
apps.create_namespaced_deployment(namespace, client.V1Deployment(metadata=client.V1ObjectMeta(name="py"),
    spec=client.V1DeploymentSpec(replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=template)))
for event in watch.Watch().stream(apps.list_namespaced_deployment, namespace, timeout_seconds=90):
    if event["object"].status.ready_replicas == 1:
        break
else:
    sys.exit("the deployment did not become ready")
pod = core.list_namespaced_pod(namespace, label_selector="app=py").items[0].metadata.name
said = stream(core.connect_get_namespaced_pod_exec, pod, namespace, command=["cat", "/www/index.html"],
    stdout=True, stderr=True, stdin=False, tty=False)
assert said == "hello\n", said
scale = apps.patch_namespaced_deployment_scale("py", namespace, {"spec": {"replicas": 0}})
assert scale.spec.replicas == 0
try:
    core.read_namespaced_secret("none", namespace)
    sys.exit("what is not there was read")
except client.ApiException as error:
    assert error.status == 404
maps = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="v1", kind="ConfigMap")
maps.create(namespace=namespace, body={"metadata": {"name": "dynamic"}, "data": {"a": "b"}})
assert maps.get(name="dynamic", namespace=namespace).data.a == "b"
print("done")
"#;

fn whole(it: &Case) {
    let output = Command::new("python3")
        .args(["-c", SCRIPT, &it.namespace, &it.cluster.image])
        .env("PYTHONPATH", tool("../python"))
        .env("KUBECONFIG", &it.cluster.kubeconfig)
        .env("NO_PROXY", "*")
        .env("no_proxy", "*")
        .output()
        .expect("python3 is installed");
    assert!(text(&output).ends_with("done\n"), "{}", text(&output));
}
