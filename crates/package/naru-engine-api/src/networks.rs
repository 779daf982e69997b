//! Networks: NetworkPolicies that let the members of a network reach each other and nobody else, and an
//! annotation on each member by which the cluster's name server finds its neighbours.

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use naru_objects::name_of;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::answer::{Query, created, is_set, json as answer, json_body, nothing, text, texts};
use crate::container::{Container, ENDPOINTS};
use crate::engine::{Engine, NETWORK_POLICY};
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::names::{id_of, is_name, object_name, random_id, short};

/// On a policy that is a network: its record as JSON.
const RECORD: &str = "docker.naru.dev/network";
/// On a pod that has no way out: all its networks are internal.
const INSIDE: &str = "docker.naru.dev/inside";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    pub name: String,
    pub id: String,
    pub created: String,
    pub internal: bool,
    #[serde(default)]
    pub attachable: bool,
    pub labels: Value,
}

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Membership {
    pub network: Network,
    /// Names by which its neighbours find it.
    pub names: Vec<String>,
}

const PREDEFINED: &[&str] = &["bridge", "host", "none"];

impl Network {
    fn predefined(name: &str, created: &str) -> Self {
        Self {
            name: name.into(),
            id: id_of(&format!("naru docker network {name}")),
            created: created.into(),
            internal: false,
            attachable: false,
            labels: json!({}),
        }
    }

    pub fn is_predefined(&self) -> bool {
        PREDEFINED.contains(&self.name.as_str())
    }

    fn label(&self) -> String {
        format!("networks.docker.naru.dev/{}", short(&self.id))
    }

    /// The objects that make it true. Pure.
    fn objects(&self, namespace: &str) -> Vec<Value> {
        let label = self.label();
        let members = json!({"matchLabels": {label.as_str(): "member"}});
        let name = format!("network-{}", object_name(&self.name));
        let policy = |name: &str, selector: Value, rules: Value| {
            let mut spec = rules;
            spec["podSelector"] = selector;
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"name": name, "namespace": namespace}, "spec": spec})
        };
        let rules = match self.name.as_str() {
            "host" => json!({"policyTypes": ["Ingress"]}),
            "none" => json!({"policyTypes": ["Ingress", "Egress"]}),
            _ => json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": members}]}]}),
        };
        let mut own = policy(&name, members.clone(), rules);
        own["metadata"]["annotations"] =
            json!({RECORD: serde_json::to_string(self).expect("a network is plain data")});
        let mut objects = vec![own];
        if self.internal {
            let inside = json!({"matchLabels": {label.as_str(): "member", INSIDE: "true"}});
            let rules = json!({"policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": members}]}]});
            objects.push(policy(&format!("{name}-out"), inside, rules));
        }
        objects
    }

    fn show(&self, engine: &Engine, verbose: bool) -> Value {
        let driver = match self.name.as_str() {
            "host" => "host",
            "none" => "null",
            _ => "bridge",
        };
        let config = match driver {
            "bridge" => json!([{"Subnet": engine.config.subnet, "Gateway": engine.config.gateway}]),
            _ => json!([]),
        };
        let mut members = Map::new();
        for container in engine.containers().into_iter().filter(|_| verbose) {
            if container.endpoints().contains_key(&self.name) && container.state().status.is_up() {
                let address = text(&container.pod, "/status/podIP");
                members.insert(
                    container.id().to_owned(),
                    json!({"Name": container.name, "EndpointID": endpoint_id(container.id(), &self.id),
                        "MacAddress": "", "IPv4Address": with_prefix(engine, address), "IPv6Address": ""}),
                );
            }
        }
        json!({
            "Name": self.name, "Id": self.id, "Created": self.created, "Scope": "local", "Driver": driver,
            "EnableIPv4": true, "EnableIPv6": false,
            "IPAM": {"Driver": "default", "Options": null, "Config": config},
            "Internal": self.internal, "Attachable": self.attachable, "Ingress": false,
            "ConfigFrom": {"Network": ""}, "ConfigOnly": false,
            "Containers": members, "Options": {}, "Labels": self.labels,
        })
    }
}

fn with_prefix(engine: &Engine, address: &str) -> String {
    let prefix = engine.config.subnet.rsplit_once('/').map_or("16", |it| it.1);
    if address.is_empty() { String::new() } else { format!("{address}/{prefix}") }
}

pub fn endpoint_id(container: &str, network: &str) -> String {
    id_of(&format!("{container}{network}"))
}

/// Labels of a pod by which the policies find it. Pure.
pub fn labels(memberships: &[Membership]) -> Map<String, Value> {
    let mut labels: Map<String, Value> =
        memberships.iter().map(|it| (it.network.label(), json!("member"))).collect();
    if !memberships.is_empty() && memberships.iter().all(|it| it.network.internal) {
        labels.insert(INSIDE.into(), json!("true"));
    }
    labels
}

/// [`naru_objects::labels::NETWORKS`]: names are found in networks that somebody made, as in Docker. Pure.
pub fn annotation(memberships: &[Membership]) -> Value {
    let made = memberships.iter().filter(|it| !it.network.is_predefined());
    Value::Object(made.map(|it| (it.network.id.clone(), json!(it.names))).collect())
}

/// The names of a container in a network. Pure.
pub fn names(container: &str, id: &str, hostname: &str, endpoint: &Value) -> Vec<String> {
    let mut names = vec![container.to_owned(), short(id).to_owned()];
    names.extend(texts(&endpoint["Aliases"]));
    names.extend((!hostname.is_empty()).then(|| hostname.to_owned()));
    let mut seen = std::collections::HashSet::new();
    names.retain(|it| seen.insert(it.to_ascii_lowercase()));
    names
}

/// Refuses what an endpoint cannot have.
pub fn check_endpoint(endpoint: &Value) -> Result<()> {
    let addresses = &endpoint["IPAMConfig"];
    if is_set(&addresses["IPv4Address"]) || is_set(&addresses["IPv6Address"]) {
        return Err(Error::refused("--ip is not supported: addresses are chosen by the node; use names"));
    }
    for (field, flag) in
        [("MacAddress", "--mac-address"), ("DriverOpts", "--driver-opt"), ("Links", "--link")]
    {
        if is_set(&endpoint[field]) {
            return Err(Error::refused(format!("{flag} is not supported for a network's endpoints")));
        }
    }
    Ok(())
}

impl Engine {
    /// The networks that Docker always has.
    pub(crate) async fn ensure_networks(&self) -> Result<(), naru_client::Error> {
        for name in PREDEFINED {
            if self.networks().iter().any(|it| it.name == *name) {
                continue;
            }
            self.write_network(&Network::predefined(name, &crate::answer::now())).await?;
        }
        Ok(())
    }

    async fn write_network(&self, network: &Network) -> Result<(), naru_client::Error> {
        // What carries the record comes last: a network that is listed is whole.
        for object in network.objects(&self.config.namespace).iter().rev() {
            let written = self.client.apply(&NETWORK_POLICY, object, "naru").await?;
            self.caught_up(&self.policies, &written).await;
        }
        Ok(())
    }

    pub fn networks(&self) -> Vec<Network> {
        let read = |policy: &Value| {
            serde_json::from_str::<Network>(policy["metadata"]["annotations"][RECORD].as_str()?).ok()
        };
        self.policies.list().iter().filter_map(|it| read(it)).collect()
    }

    /// By name, id, or as much of its id as is unique.
    pub fn network(&self, wanted: &str) -> Result<Network> {
        let wanted = if wanted == "default" { "bridge" } else { wanted };
        let all = self.networks();
        if let Some(found) = all.iter().find(|it| it.name == wanted || it.id == wanted) {
            return Ok(found.clone());
        }
        let mut matching = all.into_iter().filter(|it| !wanted.is_empty() && it.id.starts_with(wanted));
        match (matching.next(), matching.next()) {
            (Some(found), None) => Ok(found),
            (Some(_), Some(_)) => Err(Error::bad(format!("network {wanted} is ambiguous"))),
            _ => Err(Error::missing(format!("network {wanted} not found"))),
        }
    }

    /// The endpoints of a new container and its places in their networks.
    pub fn memberships_of(
        &self,
        request: &Value,
        name: &str,
        id: &str,
    ) -> Result<(Map<String, Value>, Vec<Membership>)> {
        let mode = match text(request, "/HostConfig/NetworkMode") {
            "" | "default" => "bridge",
            other => other,
        };
        if mode.starts_with("container:") {
            return Err(Error::refused(format!(
                "--network {mode} is not supported: use a network of your own, and names"
            )));
        }
        let given = request["NetworkingConfig"]["EndpointsConfig"].as_object().cloned().unwrap_or_default();
        let mut endpoints = Map::new();
        for wanted in std::iter::once(mode).chain(given.keys().map(String::as_str)) {
            // A client takes 404 for an image that is to be pulled.
            let network = self.network(wanted).map_err(|error| Error::bad(error.message))?;
            let endpoint = given.get(wanted).cloned().unwrap_or_default();
            check_endpoint(&endpoint)?;
            if !is_set(&endpoint) && endpoints.contains_key(&network.name) {
                continue;
            }
            endpoints.insert(network.name, endpoint);
        }
        let several = endpoints.len() > 1;
        if several && endpoints.keys().any(|it| it == "host" || it == "none") {
            return Err(Error::bad("a container of the networks host and none cannot have others"));
        }
        let hostname = text(request, "/Hostname");
        let memberships = self.memberships(&endpoints, name, id, hostname)?;
        Ok((endpoints, memberships))
    }

    fn memberships(
        &self,
        endpoints: &Map<String, Value>,
        name: &str,
        id: &str,
        hostname: &str,
    ) -> Result<Vec<Membership>> {
        endpoints
            .iter()
            .map(|(network, endpoint)| {
                let network = self.network(network)?;
                if is_set(&endpoint["Aliases"]) && network.is_predefined() {
                    return Err(Error::bad(
                        "network-scoped aliases are only supported for user-defined networks".to_owned(),
                    ));
                }
                Ok(Membership { names: names(name, id, hostname, endpoint), network })
            })
            .collect()
    }

    /// Writes a container's endpoints and all that follows from them: after a change of them or of its name.
    pub async fn write_endpoints(
        &self,
        container: &Container,
        name: &str,
        endpoints: &Map<String, Value>,
    ) -> Result<()> {
        let hostname = text(&container.record.config, "/Hostname");
        let memberships = self.memberships(endpoints, name, container.id(), hostname)?;
        let mut changed = labels(&memberships);
        let before = container.pod["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        for gone in before.keys().filter(|it| it.starts_with("networks.docker.naru.dev/") || *it == INSIDE) {
            changed.entry(gone.clone()).or_insert(Value::Null);
        }
        self.patch(
            container,
            json!({"metadata": {"labels": changed, "annotations": {
                crate::container::NAME: name,
                ENDPOINTS: Value::Object(endpoints.clone()).to_string(),
                naru_objects::labels::NETWORKS: annotation(&memberships).to_string(),
            }}}),
        )
        .await
    }

    /// Lets the world reach the published ports of a container, whatever its networks say.
    pub(crate) async fn open_ports(&self, pod: &Value) -> Result<()> {
        let ports = pod["spec"]["containers"][0]["ports"].as_array().cloned().unwrap_or_default();
        if ports.is_empty() || pod["spec"]["hostNetwork"] == true {
            return Ok(());
        }
        let open: Vec<Value> =
            ports.iter().map(|it| json!({"port": it["containerPort"], "protocol": it["protocol"]})).collect();
        let id = &pod["metadata"]["labels"][crate::container::LABEL_ID];
        let owner =
            json!({"apiVersion": "v1", "kind": "Pod", "name": name_of(pod), "uid": pod["metadata"]["uid"]});
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("ports-{}", name_of(pod)), "namespace": self.config.namespace,
                "ownerReferences": [owner]},
            "spec": {"podSelector": {"matchLabels": {crate::container::LABEL_ID: id}},
                "policyTypes": ["Ingress"], "ingress": [{"ports": open}]},
        });
        self.client.apply(&NETWORK_POLICY, &policy, "naru").await?;
        Ok(())
    }
}

pub async fn list(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let known = ["dangling", "driver", "id", "label", "label!", "name", "scope", "type"];
    let filters = Filters::parse(query.get("filters"), &known)?;
    let dangling = filters.truth("dangling")?;
    let used = used(&engine);
    let fits = |it: &Network| {
        let driver = match it.name.as_str() {
            "host" => "host",
            "none" => "null",
            _ => "bridge",
        };
        filters.any("name", |name| it.name.contains(name))
            && filters.any("id", |id| it.id.contains(id))
            && filters.any("driver", |wanted| wanted == driver)
            && filters.any("scope", |wanted| wanted == "local")
            && filters.any("type", |wanted| (wanted == "builtin") == it.is_predefined())
            && filters.labels(&it.labels)
            && dangling.is_none_or(|wanted| wanted == (!it.is_predefined() && !used.contains(&it.name)))
    };
    let found = engine.networks();
    Ok(answer(found.iter().filter(|it| fits(it)).map(|it| it.show(&engine, false)).collect()))
}

/// Names of the networks that containers have, running or not.
fn used(engine: &Engine) -> std::collections::HashSet<String> {
    engine.containers().iter().flat_map(|it| it.endpoints().into_iter().map(|(name, _)| name)).collect()
}

pub async fn inspect(State(engine): State<Engine>, Path(wanted): Path<String>) -> Result<Response> {
    Ok(answer(engine.network(&wanted)?.show(&engine, true)))
}

pub async fn create(State(engine): State<Engine>, body: Body) -> Result<Response> {
    let request = json_body(body).await?;
    let name = text(&request, "/Name");
    if name.is_empty() || !(is_name(name) || name.len() == 1) {
        return Err(Error::bad(format!("invalid network name: {name:?}")));
    }
    let driver = text(&request, "/Driver");
    if !["", "bridge", "default"].contains(&driver) {
        return Err(Error::refused(format!("--driver {driver} is not supported: networks are bridges")));
    }
    let ipam = &request["IPAM"];
    let configured = ipam["Config"].as_array().into_iter().flatten().any(is_set);
    if configured || is_set(&ipam["Options"]) || !["", "default"].contains(&text(ipam, "/Driver")) {
        return Err(Error::refused(format!(
            "--subnet, --gateway and --ip-range are not supported: all containers have addresses of {}, and networks \
             are kept apart by policies",
            engine.config.subnet
        )));
    }
    for (field, flag) in [
        ("EnableIPv6", "--ipv6"),
        ("Ingress", "--ingress"),
        ("ConfigOnly", "--config-only"),
        ("ConfigFrom", "--config-from"),
        ("Options", "--opt"),
    ] {
        if is_set(&request[field]) && request[field] != json!({"Network": ""}) {
            return Err(Error::refused(format!("{flag} is not supported for networks")));
        }
    }
    if request["EnableIPv4"] == false {
        return Err(Error::refused("--ipv4=false is not supported for networks"));
    }
    if !["", "local"].contains(&text(&request, "/Scope")) {
        return Err(Error::refused("--scope other than local is not supported"));
    }
    let _turn = engine.creating.lock().await;
    if engine.networks().iter().any(|it| it.name == name) {
        return Err(Error::conflict(format!("network with name {name} already exists")));
    }
    let network = Network {
        name: name.into(),
        id: random_id(),
        created: crate::answer::now(),
        internal: request["Internal"] == true,
        attachable: request["Attachable"] == true,
        labels: if request["Labels"].is_object() { request["Labels"].clone() } else { json!({}) },
    };
    engine.write_network(&network).await?;
    engine.tell_network("create", &network, None);
    Ok(created(json!({"Id": network.id, "Warning": ""})))
}

impl Engine {
    pub(crate) fn tell_network(&self, action: &str, network: &Network, container: Option<&Container>) {
        let kind = if network.is_predefined() { network.name.as_str() } else { "bridge" };
        let mut attributes = json!({"name": network.name, "type": kind});
        if let Some(container) = container {
            attributes["container"] = json!(container.id());
        }
        self.events.tell("network", action, &network.id, attributes);
    }

    async fn remove_network(&self, network: &Network) -> Result<()> {
        for object in network.objects(&self.config.namespace) {
            let name = name_of(&object);
            self.client.delete(&NETWORK_POLICY, &self.config.namespace, name, None).await?;
        }
        let mut changes = self.policies.changes();
        while self.networks().iter().any(|it| it.id == network.id) {
            changes.wait().await;
        }
        self.tell_network("destroy", network, None);
        Ok(())
    }
}

pub async fn remove(State(engine): State<Engine>, Path(wanted): Path<String>) -> Result<Response> {
    let network = engine.network(&wanted)?;
    let forbidden = |message: String| Err(Error::new(http::StatusCode::FORBIDDEN, message));
    if network.is_predefined() {
        return forbidden(format!("{} is a pre-defined network and cannot be removed", network.name));
    }
    let _turn = engine.creating.lock().await;
    let active: Vec<String> = engine
        .containers()
        .iter()
        .filter(|it| it.endpoints().contains_key(&network.name) && it.state().status.is_up())
        .map(|it| format!("name:{:?} id:{:?}", it.name, short(it.id())))
        .collect();
    if !active.is_empty() {
        return forbidden(format!(
            "error while removing network: network {} has active endpoints ({})",
            network.name,
            active.join(", ")
        ));
    }
    engine.remove_network(&network).await?;
    Ok(nothing())
}

pub async fn connect(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    body: Body,
) -> Result<Response> {
    let request = json_body(body).await?;
    let network = engine.network(&wanted)?;
    let found = engine.container(text(&request, "/Container"))?;
    let _turn = engine.turn(found.id()).await;
    let container = engine.container(found.id())?;
    let endpoint = &request["EndpointConfig"];
    check_endpoint(endpoint)?;
    let mut endpoints = container.endpoints();
    if endpoints.keys().any(|it| it == "host") || network.name == "host" {
        return Err(Error::bad("container cannot be connected to host network or be disconnected from it"));
    }
    if endpoints.contains_key(&network.name) && container.state().status.is_up() {
        return Err(Error::new(
            http::StatusCode::FORBIDDEN,
            format!("endpoint with name {} already exists in network {}", container.name, network.name),
        ));
    }
    endpoints.remove("none");
    endpoints.insert(network.name.clone(), endpoint.clone());
    engine.write_endpoints(&container, &container.name, &endpoints).await?;
    engine.tell_network("connect", &network, Some(&container));
    Ok(answer(Value::Null))
}

pub async fn disconnect(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    body: Body,
) -> Result<Response> {
    let request = json_body(body).await?;
    let network = engine.network(&wanted)?;
    let found = match engine.container(text(&request, "/Container")) {
        Err(_) if request["Force"] == true => return Ok(answer(Value::Null)),
        found => found?,
    };
    let _turn = engine.turn(found.id()).await;
    let container = engine.container(found.id())?;
    let mut endpoints = container.endpoints();
    if network.name == "host" {
        return Err(Error::bad(
            "container cannot be disconnected from host network - container was created with it",
        ));
    }
    if endpoints.remove(&network.name).is_none() {
        return Err(Error::new(
            http::StatusCode::FORBIDDEN,
            format!("container {} is not connected to network {}", container.id(), network.name),
        ));
    }
    // Without any network nothing may be reached, and nobody reaches it.
    if endpoints.is_empty() {
        endpoints.insert("none".into(), Value::Null);
    }
    engine.write_endpoints(&container, &container.name, &endpoints).await?;
    engine.tell_network("disconnect", &network, Some(&container));
    Ok(answer(Value::Null))
}

pub async fn prune(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let filters = Filters::parse(query.get("filters"), &["label", "label!", "until"])?;
    let until = filters.of("until").next().map(crate::system::until).transpose()?;
    let _turn = engine.creating.lock().await;
    let used = used(&engine);
    let mut removed = Vec::new();
    for network in engine.networks() {
        let old =
            until.is_none_or(|until| network.created.parse().is_ok_and(|at: jiff::Timestamp| at < until));
        if network.is_predefined() || used.contains(&network.name) || !filters.labels(&network.labels) || !old
        {
            continue;
        }
        engine.remove_network(&network).await?;
        removed.push(network.name);
    }
    Ok(answer(json!({"NetworksDeleted": removed})))
}

/// Removes the policy of a container's ports at once; the garbage collector would do it later.
pub async fn close_ports(engine: &Engine, pod: &str) {
    let name = format!("ports-{pod}");
    if let Err(error) = engine.client.delete(&NETWORK_POLICY, &engine.config.namespace, &name, None).await {
        tracing::debug!(%error, "the policy of a container's ports stays for the garbage collector");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, internal: bool) -> Network {
        Network { internal, id: id_of(name), ..Network::predefined(name, "") }
    }

    #[test]
    fn members_of_internal_networks_alone_stay_inside() {
        let member = |name: &str, internal: bool| Membership {
            names: vec!["a".into()],
            network: network(name, internal),
        };
        let inside = labels(&[member("back", true)]);
        assert_eq!(inside[INSIDE], "true");
        let both = labels(&[member("back", true), member("front", false)]);
        assert!(!both.contains_key(INSIDE) && both.len() == 2);
        let told = annotation(&[member("front", false), member("bridge", false)]);
        assert_eq!(told.as_object().unwrap().len(), 1, "names are not found in the default network");
        assert_eq!(network("back", true).objects("docker").len(), 2);
        let id = "f".repeat(64);
        let endpoint = json!({"Aliases": ["db", "Web", "db"]});
        assert_eq!(names("web", &id, "", &endpoint), ["web", "ffffffffffff", "db"]);
    }
}
