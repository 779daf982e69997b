//! From a project to Kubernetes objects, as a person would write them: nothing that is a default.
//!
//! A service becomes a Deployment, with a claim for each named volume: a volume of compose is one place that
//! all replicas and all services share, which a StatefulSet's claims per replica are not. Such a Deployment
//! replaces its pod in place (`Recreate`), so that two databases never write the same files. What is to run
//! to its end is a Job, what runs on every node a DaemonSet.
//!
//! The service's name resolves by a Service of that name. With known ports it has an address of its own;
//! without, it is headless: then every port of the pods is reached, as compose promises.

use super::mounts::Grant;
use super::ports::{Port, Where};
use super::project::Project;
use super::service::{Mode, Restart, Service};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// On every object of a project: its name.
pub const PROJECT_LABEL: &str = "naru.dev/compose-project";
const NAME_LABEL: &str = "app.kubernetes.io/name";
/// On a pod: changes when a file changes that is mounted into it, so that the pod is replaced.
const FILES_ANNOTATION: &str = "naru.dev/mounted-files";
const NETWORK_LABEL: &str = "network.naru.dev";

/// What compose gives a container to end.
const GRACE_SECONDS: u64 = 10;
/// How often Kubernetes tries a Job when nothing is said; compose has no end to `on-failure`.
const ATTEMPTS: u64 = 6;

#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// Before all services: files, claims, who may talk to whom.
    pub shared: Vec<Value>,
    /// Dependencies first.
    pub services: Vec<RenderedService>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RenderedService {
    pub name: String,
    /// The name of its objects.
    pub object: String,
    /// The first is the workload.
    pub objects: Vec<Value>,
    pub depends_on: Vec<(String, super::service::Condition)>,
}

impl Rendered {
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.shared.iter().chain(self.services.iter().flat_map(|it| &it.objects))
    }
}

/// The objects. `images` are those of services that are built.
pub fn render(project: &Project, images: &BTreeMap<String, String>) -> Rendered {
    let mut shared = Vec::new();
    for ((kind, key), file) in &project.files {
        let Some(content) = &file.content else { continue };
        let metadata = metadata(project, &file.object, &file.annotations);
        shared.push(match (kind, std::str::from_utf8(content)) {
            (Grant::Config, Ok(text)) => {
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {key: text}})
            }
            (Grant::Config, Err(_)) => {
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": {key: STANDARD.encode(content)}})
            }
            (Grant::Secret, _) => {
                json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {key: STANDARD.encode(content)}})
            }
        });
    }
    for volume in project.volumes.values().filter(|it| !it.external) {
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": volume.size}}});
        if let Some(class) = &volume.class {
            spec["storageClassName"] = json!(class);
        }
        let metadata = metadata(project, &volume.claim, &volume.annotations);
        shared.push(
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}),
        );
    }
    let networks = separating_networks(project);
    shared.extend(policies(project, &networks));
    let services = project.services.iter().map(|it| service(project, it, &networks, images)).collect();
    Rendered { shared, services }
}

fn metadata(project: &Project, name: &str, annotations: &BTreeMap<String, String>) -> Value {
    let mut metadata = json!({"name": name, "labels": {PROJECT_LABEL: project.name}});
    if project.namespace != "default" {
        metadata["namespace"] = json!(project.namespace);
    }
    if !annotations.is_empty() {
        metadata["annotations"] = json!(annotations);
    }
    metadata
}

fn own_labels(project: &Project, service: &Service) -> Value {
    json!({NAME_LABEL: service.object, PROJECT_LABEL: project.name})
}

fn service(
    project: &Project,
    service: &Service,
    networks: &BTreeSet<String>,
    images: &BTreeMap<String, String>,
) -> RenderedService {
    let selector = own_labels(project, service);
    let mut labels = selector.clone();
    for network in networks_of(service).filter(|it| networks.contains(*it)) {
        labels[format!("{NETWORK_LABEL}/{}", super::values::dns_name(network, 63))] = json!("true");
    }
    let mut template = json!({"metadata": {"labels": labels}, "spec": pod(project, service, images)});
    let mut annotations = service.pod_annotations.clone();
    if let Some(sum) = files_sum(project, service) {
        annotations.insert(FILES_ANNOTATION.to_owned(), sum);
    }
    if !annotations.is_empty() {
        template["metadata"]["annotations"] = json!(annotations);
    }
    let mut meta = metadata(project, &service.object, &service.annotations);
    meta["labels"] = selector.clone();
    let replicas = service.replicas.unwrap_or(1);
    let workload = match service.mode {
        Mode::Replicated => {
            let mut spec =
                json!({"replicas": replicas, "selector": {"matchLabels": selector}, "template": template});
            if let Some(it) = strategy(service) {
                spec["strategy"] = it;
            }
            if let Some(it) = service.update.delay_seconds.filter(|it| *it > 0) {
                spec["minReadySeconds"] = json!(it);
            }
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
        }
        Mode::Global => {
            let spec = json!({"selector": {"matchLabels": selector}, "template": template});
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta, "spec": spec})
        }
        Mode::Job => {
            let (policy, attempts) = match service.restart {
                Restart::OnFailure(count) => ("OnFailure", count.unwrap_or(ATTEMPTS)),
                _ => ("Never", 0),
            };
            template["spec"]["restartPolicy"] = json!(policy);
            let mut spec = json!({"backoffLimit": attempts, "template": template});
            if replicas > 1 {
                spec["parallelism"] = json!(replicas);
                spec["completions"] = json!(replicas);
            }
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})
        }
    };
    let mut objects = vec![workload];
    objects.extend(names(project, service, &selector));
    objects.extend(published(project, service, &selector));
    objects.extend(route(project, service));
    RenderedService {
        name: service.name.clone(),
        object: service.object.clone(),
        objects,
        depends_on: service.depends_on.iter().map(|it| (it.service.clone(), it.condition)).collect(),
    }
}

fn strategy(service: &Service) -> Option<Value> {
    let writes = service.volumes.iter().any(|(_, read_only, _)| !read_only);
    let parallel = service.update.parallelism.filter(|it| *it > 0);
    match service.update.start_first {
        Some(true) => {
            let surge = parallel.unwrap_or(1);
            Some(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 0}}))
        }
        // Two pods must neither write one volume nor want the same ports of the machine.
        _ if writes || service.pod["hostNetwork"] == true => Some(json!({"type": "Recreate"})),
        Some(false) => {
            let most = parallel.unwrap_or(1);
            Some(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": most}}))
        }
        None => parallel.map(
            |it| json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": it, "maxUnavailable": 0}}),
        ),
    }
}

fn pod(project: &Project, service: &Service, images: &BTreeMap<String, String>) -> Value {
    let mut container = service.container.clone();
    let built = images.get(&service.name).cloned();
    let image = built.or_else(|| service.image.as_ref().map(|it| it.0.clone()));
    container["image"] = json!(image.unwrap_or_else(|| default_image(&project.name, &service.name)));
    // A limit of compose reserves nothing; without a request Kubernetes would take the limit for one.
    let limits = container["resources"]["limits"].as_object().cloned().unwrap_or_default();
    for amount in limits.keys() {
        if container["resources"]["requests"][amount].is_null() {
            container["resources"]["requests"][amount] = json!("0");
        }
    }
    // Compose asks a registry for what is missing; Kubernetes would ask for `latest` at each start.
    if container["imagePullPolicy"].is_null() && is_latest(container["image"].as_str().unwrap_or_default()) {
        container["imagePullPolicy"] = json!("IfNotPresent");
    }
    // Kubernetes fills in `$(X)` in commands and variables if it knows X; compose does not.
    let names: Vec<String> = container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["name"].as_str().map(str::to_owned))
        .collect();
    for key in ["command", "args"] {
        for word in container[key].as_array_mut().into_iter().flatten() {
            *word = json!(escaped(word.as_str().unwrap_or_default(), &names));
        }
    }
    for variable in container["env"].as_array_mut().into_iter().flatten() {
        variable["value"] = json!(escaped(variable["value"].as_str().unwrap_or_default(), &names));
    }
    let ports: Vec<Value> = service
        .container_ports()
        .iter()
        .map(|it| match it.protocol.upper() {
            "TCP" => json!({"containerPort": it.number}),
            protocol => json!({"containerPort": it.number, "protocol": protocol}),
        })
        .collect();
    if !ports.is_empty() {
        container["ports"] = json!(ports);
    }
    let mut pod = service.pod.clone();
    for granted in &service.granted {
        let Some(file) = project.files.get(&(granted.kind, granted.source.clone())) else { continue };
        let mut name = format!("{}-{}", granted.kind.word(), super::values::dns_name(&granted.source, 48));
        let mut source = match granted.kind {
            Grant::Config => json!({"name": file.object}),
            Grant::Secret => json!({"secretName": file.object}),
        };
        if let Some(mode) = granted.mode {
            name.push_str(&format!("-{mode:o}"));
            source["defaultMode"] = json!(mode);
        }
        let volume = match granted.kind {
            Grant::Config => json!({"name": name, "configMap": source}),
            Grant::Secret => json!({"name": name, "secret": source}),
        };
        let volumes = super::mounts::list(&mut pod, "volumes");
        if !volumes.contains(&volume) {
            volumes.push(volume);
        }
        super::mounts::list(&mut container, "volumeMounts").push(
            json!({"name": name, "mountPath": granted.target, "subPath": granted.source, "readOnly": true}),
        );
    }
    without_nulls(&mut container);
    pod["containers"] = json!([container]);
    if pod["terminationGracePeriodSeconds"].is_null() {
        pod["terminationGracePeriodSeconds"] = json!(GRACE_SECONDS);
    }
    // A container of compose knows neither the cluster nor, by its variables, all services of a namespace.
    pod["automountServiceAccountToken"] = json!(false);
    pod["enableServiceLinks"] = json!(false);
    without_nulls(&mut pod);
    pod
}

fn is_latest(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or(image);
    !last.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn without_nulls(value: &mut Value) {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, it| !it.is_null());
    }
}

/// What a service is called that is built and does not say.
pub fn default_image(project: &str, service: &str) -> String {
    format!("naru.local/{project}/{}", super::values::dns_name(service, 100))
}

/// `$(NAME)` of a known name means the text itself.
fn escaped(text: &str, names: &[String]) -> String {
    let mut out = text.to_owned();
    for name in names {
        let reference = format!("$({name})");
        if out.contains(&reference) {
            out = out.replace(&reference, &format!("${reference}"));
        }
    }
    out
}

fn files_sum(project: &Project, service: &Service) -> Option<String> {
    let mut hash = Sha256::new();
    let mut any = false;
    for granted in &service.granted {
        let file = project.files.get(&(granted.kind, granted.source.clone()))?;
        if let Some(content) = &file.content {
            any = true;
            hash.update(granted.target.as_bytes());
            hash.update([0]);
            hash.update(Sha256::digest(content));
        }
    }
    any.then(|| hash.finalize().iter().take(8).map(|it| format!("{it:02x}")).collect())
}

fn service_port(port: &Port, number: u16) -> Value {
    let name = port.name.as_deref().map(|it| super::values::dns_name(it, 15));
    let name = name.unwrap_or_else(|| format!("{}-{number}", port.protocol.upper().to_ascii_lowercase()));
    let mut out = json!({"name": name, "port": number});
    if number != port.number {
        out["targetPort"] = json!(port.number);
    }
    if port.protocol.upper() != "TCP" {
        out["protocol"] = json!(port.protocol.upper());
    }
    if let Some(it) = &port.app_protocol {
        out["appProtocol"] = json!(it);
    }
    out
}

/// The names by which the others know the service.
fn names(project: &Project, service: &Service, selector: &Value) -> Vec<Value> {
    let ports = service.container_ports();
    let mut spec = json!({"selector": selector});
    if !ports.is_empty() {
        spec["ports"] = ports.iter().map(|it| service_port(it, it.number)).collect();
    }
    if ports.is_empty() || service.headless {
        spec["clusterIP"] = json!("None");
    }
    let object = |name: &str| {
        let mut metadata = metadata(project, name, &BTreeMap::new());
        metadata["labels"] = selector.clone();
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    };
    std::iter::once(service.object.as_str())
        .chain(service.aliases.iter().map(|it| it.0.as_str()))
        .map(object)
        .collect()
}

/// The ports of the machine that lead to the service.
fn published(project: &Project, service: &Service, selector: &Value) -> Vec<Value> {
    let mut groups: BTreeMap<(Where, bool), Vec<Value>> = BTreeMap::new();
    for it in &service.ports {
        let number = it.number.unwrap_or(it.port.number);
        groups.entry((it.on, it.number.is_some())).or_default().push(service_port(&it.port, number));
    }
    groups
        .into_iter()
        .map(|((on, is_fixed), ports)| {
            let mut spec = json!({"selector": selector, "ports": ports});
            let mut name = format!("{}-published", service.object);
            match (on, is_fixed) {
                (Where::Everywhere, true) => spec["type"] = json!("LoadBalancer"),
                // The cluster chooses the port.
                (_, false) => {
                    name = format!("{}-any-port", service.object);
                    spec["type"] = json!("NodePort");
                }
                (Where::Loopback, true) => {
                    name = format!("{}-local", service.object);
                    spec["type"] = json!("LoadBalancer");
                    spec["loadBalancerSourceRanges"] = json!(["127.0.0.0/8"]);
                }
                (Where::Address(address), true) => {
                    name = format!("{}-at-{}", service.object, address.to_string().replace('.', "-"));
                    spec["externalIPs"] = json!([address]);
                }
            }
            let mut metadata = metadata(project, &name, &BTreeMap::new());
            metadata["labels"] = selector.clone();
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
        })
        .collect()
}

fn route(project: &Project, service: &Service) -> Option<Value> {
    let route = service.route.as_ref()?;
    let mut parent = json!({"name": crate::render::GATEWAY});
    if project.namespace != "default" {
        parent["namespace"] = json!("default");
    }
    let mut metadata = metadata(project, &service.object, &BTreeMap::new());
    metadata["labels"] = own_labels(project, service);
    Some(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata,
        "spec": {
            "parentRefs": [parent],
            "hostnames": route.hosts,
            "rules": [{
                "matches": [{"path": {"type": "PathPrefix", "value": route.path}}],
                "backendRefs": [{"name": service.object, "port": route.port}]}],
        },
    }))
}

fn networks_of(service: &Service) -> impl Iterator<Item = &str> {
    let own = service.networks.iter().map(|it| it.0.as_str());
    own.chain(service.networks.is_empty().then_some("default"))
}

/// The networks of the project, if they keep some services apart; otherwise there is nothing to enforce.
fn separating_networks(project: &Project) -> BTreeSet<String> {
    let apart = project.services.iter().any(|one| {
        project
            .services
            .iter()
            .any(|other| !networks_of(one).any(|it| networks_of(other).any(|its| its == it)))
    });
    let all = project.services.iter().flat_map(networks_of);
    all.filter(|it| apart || project.internal_networks.contains(*it)).map(str::to_owned).collect()
}

/// Who may talk to whom: those of one network with each other, and everybody with published ports.
fn policies(project: &Project, networks: &BTreeSet<String>) -> Vec<Value> {
    let mut all = Vec::new();
    let label = |network: &str| json!({format!("{NETWORK_LABEL}/{}", super::values::dns_name(network, 63)): "true", PROJECT_LABEL: project.name});
    let policy = |name: String, spec: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
               "metadata": metadata(project, &name, &BTreeMap::new()), "spec": spec})
    };
    for network in networks {
        let peers = json!([{"podSelector": {"matchLabels": label(network)}}]);
        let mut spec = json!({"podSelector": {"matchLabels": label(network)}, "ingress": [{"from": peers}], "policyTypes": ["Ingress"]});
        let is_inside = |it: &&Service| networks_of(it).all(|it| project.internal_networks.contains(it));
        if project.internal_networks.contains(network)
            && project.services.iter().filter(is_inside).any(|it| networks_of(it).any(|it| it == network))
        {
            spec["policyTypes"] = json!(["Ingress", "Egress"]);
            // Names are asked for outside of the network, too.
            let names = json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]);
            spec["egress"] = json!([{"to": peers}, {"ports": names}]);
        }
        all.push(policy(super::values::dns_name(&format!("{}-network-{network}", project.name), 200), spec));
    }
    for service in &project.services {
        let mut open: Vec<Value> = service
            .ports
            .iter()
            .map(|it| json!({"port": it.port.number, "protocol": it.port.protocol.upper()}))
            .collect();
        open.extend(
            service.route.iter().filter_map(|it| it.port).map(|it| json!({"port": it, "protocol": "TCP"})),
        );
        open.sort_by_key(Value::to_string);
        open.dedup();
        if !open.is_empty() && networks_of(service).any(|it| networks.contains(it)) {
            let spec = json!({"podSelector": {"matchLabels": own_labels(project, service)}, "ingress": [{"ports": open}], "policyTypes": ["Ingress"]});
            all.push(policy(format!("{}-published", service.object), spec));
        }
    }
    all
}

/// Every kind that a project may become, for those who look for what is left of one.
pub const KINDS: &[(&str, &str)] = &[
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
    ("batch/v1", "Job"),
    ("v1", "Service"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("v1", "PersistentVolumeClaim"),
];

/// A Map keeps the order of its keys as they are written; objects are read more easily as people order them.
pub fn in_reading_order(object: &Value) -> Vec<(String, Value)> {
    let empty = Map::new();
    let map = object.as_object().unwrap_or(&empty);
    let first = ["apiVersion", "kind", "metadata", "name", "namespace", "image"];
    let rank = |key: &str| first.iter().position(|it| *it == key).unwrap_or(first.len());
    let mut all: Vec<(String, Value)> = map.iter().map(|(key, it)| (key.clone(), it.clone())).collect();
    all.sort_by(|a, b| (rank(&a.0), &a.0).cmp(&(rank(&b.0), &b.0)));
    all
}
