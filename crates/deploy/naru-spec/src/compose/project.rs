//! The whole project: services, what they share, and whether it all fits together.

use super::interpolate::Variables;
use super::keys;
use super::load::Loader;
use super::mounts::Grant;
use super::service::{Condition, Mode, Restart, Service};
use super::tree::{At, Node};
use super::values::{dns_name, quantity};
use naru_text::suggest_hint;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// What a claim asks for when the file does not say: a number must stand there, and the machine's own class
/// does not hold anyone to it.
const VOLUME_BYTES_DEFAULT: u64 = 1 << 30;

#[derive(Debug, Clone)]
pub struct Project {
    pub name: String,
    pub namespace: String,
    /// Dependencies before those that depend on them; otherwise in the order of their names.
    pub services: Vec<Service>,
    pub volumes: BTreeMap<String, Volume>,
    /// Configs and secrets that services use.
    pub files: BTreeMap<(Grant, String), SharedFile>,
    /// Secrets that builds use, by their key; they become no objects.
    pub build_secrets: BTreeMap<String, Vec<u8>>,
    /// Networks that no outsider may be reached from.
    pub internal_networks: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    pub claim: String,
    /// Somebody else keeps it.
    pub external: bool,
    pub size: String,
    pub class: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SharedFile {
    pub object: String,
    /// `None` when somebody else keeps it.
    pub content: Option<Vec<u8>>,
    pub annotations: BTreeMap<String, String>,
}

/// What of the command line matters for which services take part.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    pub profiles: Vec<String>,
    /// Only these and what they depend on; none means all.
    pub services: Vec<String>,
}

impl Loader<'_> {
    pub fn whole(
        &mut self,
        root: &Node,
        name: &str,
        namespace: &str,
        choice: &Choice,
        variables: &Variables,
    ) -> Option<Project> {
        let services = root.get("services").filter(|it| !it.entries().is_empty());
        let Some(services) = services else {
            self.error(
                root.at,
                "there are no `services`",
                "write `services:` with at least one service below",
            );
            return None;
        };
        let mut all = Vec::new();
        for entry in services.entries() {
            all.extend(self.service(&entry.key, entry.at, &entry.value, variables));
        }
        let mut chosen = self.choose(all, choice, root.at);
        self.dependencies(&mut chosen);
        self.names(&mut chosen);
        let mut project = Project {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            services: Vec::new(),
            volumes: BTreeMap::new(),
            files: BTreeMap::new(),
            build_secrets: BTreeMap::new(),
            internal_networks: BTreeSet::new(),
        };
        self.networks(root, &chosen, &mut project);
        self.volumes(root, &chosen, &mut project);
        self.files_of(root, &chosen, variables, &mut project);
        self.build_secrets(root, &chosen, variables, &mut project);
        for service in &mut chosen {
            self.settle(service, &project);
        }
        project.services = self.ordered(chosen);
        Some(project)
    }

    /// The services that take part: by name and profile, with what they depend on.
    fn choose(&mut self, all: Vec<Service>, choice: &Choice, at: At) -> Vec<Service> {
        let everything = choice.profiles.iter().any(|it| it == "*");
        let known: Vec<String> = all.iter().map(|it| it.name.clone()).collect();
        for name in choice.services.iter().filter(|it| !known.contains(it)) {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            self.error(at, format!("there is no service `{name}`"), suggest_hint(name, &known));
        }
        // Naming a service switches its profiles on, as in compose.
        let mut profiles: BTreeSet<String> = choice.profiles.iter().cloned().collect();
        for service in all.iter().filter(|it| choice.services.contains(&it.name)) {
            profiles.extend(service.profiles.iter().cloned());
        }
        let is_on = |it: &Service| {
            everything || it.profiles.is_empty() || it.profiles.iter().any(|it| profiles.contains(it))
        };
        let off: BTreeMap<String, Vec<String>> =
            all.iter().filter(|it| !is_on(it)).map(|it| (it.name.clone(), it.profiles.clone())).collect();
        let mut on: Vec<Service> = all.into_iter().filter(|it| is_on(it)).collect();
        if !choice.services.is_empty() {
            let mut wanted: BTreeSet<String> = choice.services.iter().cloned().collect();
            loop {
                let more: Vec<String> = on
                    .iter()
                    .filter(|it| wanted.contains(&it.name))
                    .flat_map(|it| it.depends_on.iter().map(|it| it.service.clone()))
                    .filter(|it| !wanted.contains(it))
                    .collect();
                if more.is_empty() {
                    break;
                }
                wanted.extend(more);
            }
            on.retain(|it| wanted.contains(&it.name));
        }
        let present: BTreeSet<String> = on.iter().map(|it| it.name.clone()).collect();
        for service in &mut on {
            let mut kept = Vec::new();
            for it in std::mem::take(&mut service.depends_on) {
                if present.contains(&it.service) {
                    kept.push(it);
                } else if let Some(profiles) = off.get(&it.service).filter(|_| it.required) {
                    let message =
                        format!("`{}` depends on `{}`, whose profile is not on", service.name, it.service);
                    self.error(it.at, message, format!("add `--profile {}`", profiles.join(" --profile ")));
                } else if it.required {
                    let known: Vec<&str> = known.iter().map(String::as_str).collect();
                    let message =
                        format!("`{}` depends on `{}`, which does not exist", service.name, it.service);
                    self.error(it.at, message, suggest_hint(&it.service, &known));
                }
            }
            service.depends_on = kept;
        }
        on
    }

    /// What dependencies ask of the services that they name.
    fn dependencies(&mut self, services: &mut [Service]) {
        let asked: Vec<(String, Condition, At)> = services
            .iter()
            .flat_map(|it| it.depends_on.iter().map(|it| (it.service.clone(), it.condition, it.at)))
            .collect();
        for service in services {
            for (_, condition, at) in asked.iter().filter(|it| it.0 == service.name) {
                match condition {
                    Condition::Started => {}
                    Condition::Healthy if service.has_check => {}
                    Condition::Healthy => {
                        let message =
                            format!("`{}` is to be healthy, but has no `healthcheck`", service.name);
                        self.error(*at, message, "give it one, or write `condition: service_started`");
                    }
                    Condition::Completed if service.restart == Restart::Always => {
                        let message =
                            format!("`{}` is to complete, but is always started again", service.name);
                        self.error(*at, message, "write `restart: \"no\"` or `restart: on-failure` there");
                    }
                    Condition::Completed => service.mode = Mode::Job,
                }
            }
            if matches!(service.restart, Restart::No | Restart::OnFailure(_)) {
                if service.mode == Mode::Global {
                    self.error(
                        service.at,
                        format!("`{}` runs on every node and must always be started again", service.name),
                        "write `restart: always`",
                    );
                } else {
                    service.mode = Mode::Job;
                }
            }
        }
    }

    /// Names that the others call: each must mean one service.
    fn names(&mut self, services: &mut [Service]) {
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        for service in services.iter() {
            if let Some(other) = taken.insert(service.object.clone(), service.name.clone()) {
                let message =
                    format!("`{}` and `{other}` would both be called `{}`", service.name, service.object);
                self.error(service.at, message, "rename one of them");
            }
        }
        for service in services.iter_mut() {
            let mut kept: Vec<(String, At)> = Vec::new();
            for (alias, at) in std::mem::take(&mut service.aliases) {
                let name = alias.to_ascii_lowercase();
                if name == service.object || kept.iter().any(|it| it.0 == name) {
                    continue;
                }
                if dns_name(&name, 63) != name {
                    let hint = format!("write `{}`", dns_name(&name, 63));
                    self.error(
                        at,
                        format!("`{alias}` cannot be a name in the cluster: letters, digits and dashes"),
                        hint,
                    );
                    continue;
                }
                match taken.get(&name).filter(|it| **it != service.name) {
                    Some(other) => {
                        let message = format!("`{alias}` means both `{}` and `{other}`", service.name);
                        self.error(at, message, "a name leads to one service: rename one of them");
                    }
                    None => {
                        taken.insert(name.clone(), service.name.clone());
                        kept.push((name, at));
                    }
                }
            }
            service.aliases = kept;
        }
    }

    fn networks(&mut self, root: &Node, services: &[Service], project: &mut Project) {
        let declared = root.get("networks");
        let entries = declared.map(Node::entries).unwrap_or_default();
        for entry in entries {
            let node = &entry.value;
            if !self.keys(&format!("the network `{}`", entry.key), node, keys::NETWORK) {
                continue;
            }
            if let Some(driver) =
                node.get("driver").filter(|it| !matches!(it.as_str(), Some("bridge" | "default" | "overlay")))
            {
                let name = driver.as_str().unwrap_or_default();
                self.error(
                    driver.at,
                    format!("the network driver `{name}` cannot be kept: pods are on the node's own network"),
                    "remove it",
                );
            }
            if let Some(external) = node.get("external").filter(|it| it.as_bool() != Some(false)) {
                self.warn(external.at, "a network of others is the network of all pods: names of other projects are reached as <service>.<namespace>", "");
            }
            if node.get("internal").is_some_and(|it| self.flag("internal", it)) {
                project.internal_networks.insert(entry.key.clone());
            }
        }
        for (name, at) in services.iter().flat_map(|it| &it.networks) {
            if name != "default" && !entries.iter().any(|it| it.key == *name) {
                let known: Vec<&str> = entries.iter().map(|it| it.key.as_str()).collect();
                self.error(*at, format!("the network `{name}` is not declared"), suggest_hint(name, &known));
            }
        }
    }

    fn volumes(&mut self, root: &Node, services: &[Service], project: &mut Project) {
        let entries = root.get("volumes").map(Node::entries).unwrap_or_default();
        for entry in entries {
            let (key, node) = (&entry.key, &entry.value);
            self.keys(&format!("the volume `{key}`"), node, keys::VOLUME);
            if let Some(driver) =
                node.get("driver").filter(|it| !it.is_null() && it.as_str() != Some("local"))
            {
                let name = driver.as_str().unwrap_or_default();
                self.error(
                    driver.at,
                    format!("the volume driver `{name}` cannot be kept"),
                    "remove it, or name a StorageClass: `x-naru: {class: ...}`",
                );
            }
            let (external, given) = self.external(node);
            let ours = node.get("x-naru");
            if let Some(it) = ours {
                self.keys("`x-naru` of a volume", it, keys::NARU_VOLUME);
            }
            let size = ours.and_then(|it| it.get("size")).and_then(|it| self.size("size", it));
            let class = ours.and_then(|it| it.get("class")).and_then(|it| self.text("class", it));
            let claim = given.unwrap_or_else(|| format!("{}-{key}", project.name));
            let volume = Volume {
                claim: if external { claim } else { dns_name(&claim, 63) },
                external,
                size: size.unwrap_or_else(|| quantity(VOLUME_BYTES_DEFAULT)),
                class,
                annotations: self.annotations(node),
            };
            if let Some((other, _)) = project.volumes.iter().find(|(_, it)| it.claim == volume.claim) {
                self.error(
                    entry.at,
                    format!("the volumes `{key}` and `{other}` are the same claim `{}`", volume.claim),
                    "rename one of them",
                );
            }
            project.volumes.insert(key.clone(), volume);
        }
        for (name, _, at) in services.iter().flat_map(|it| &it.volumes) {
            if !project.volumes.contains_key(name) {
                let known: Vec<&str> = project.volumes.keys().map(String::as_str).collect();
                let hint = match known.is_empty() {
                    true => format!(
                        "add `{name}:` below `volumes:` at the top of the file, or write ./{name} for a directory"
                    ),
                    false => suggest_hint(name, &known),
                };
                self.error(*at, format!("the volume `{name}` is not declared"), hint);
            }
        }
        // Only what is used becomes a claim.
        let used: BTreeSet<&str> =
            services.iter().flat_map(|it| it.volumes.iter().map(|it| it.0.as_str())).collect();
        project.volumes.retain(|key, _| used.contains(key.as_str()));
    }

    fn annotations(&mut self, node: &Node) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (name, value, at) in node.get("labels").map(|it| self.pairs("labels", it)).unwrap_or_default() {
            if let Some(name) = self.annotation(at, &name) {
                all.insert(name, value.unwrap_or_default());
            }
        }
        all
    }

    /// Whether somebody else keeps it, and what it is called. `external: {name: x}` is the old way.
    fn external(&mut self, node: &Node) -> (bool, Option<String>) {
        let name = node.get("name").and_then(Node::as_str).map(str::to_owned);
        match node.get("external") {
            None => (false, name),
            Some(it) if it.is_map() => {
                (true, it.get("name").and_then(Node::as_str).map(str::to_owned).or(name))
            }
            Some(it) => (self.flag("external", it), name),
        }
    }

    fn files_of(&mut self, root: &Node, services: &[Service], variables: &Variables, project: &mut Project) {
        let used: BTreeSet<(Grant, String)> =
            services.iter().flat_map(|it| it.granted.iter().map(|it| (it.kind, it.source.clone()))).collect();
        for (kind, section, table) in
            [(Grant::Config, "configs", keys::CONFIG), (Grant::Secret, "secrets", keys::SECRET)]
        {
            let entries = root.get(section).map(Node::entries).unwrap_or_default();
            for entry in entries {
                let what = format!("the {} `{}`", kind.word(), entry.key);
                if !self.keys(&what, &entry.value, table) || !used.contains(&(kind, entry.key.clone())) {
                    continue;
                }
                let (external, name) = self.external(&entry.value);
                let content = if external {
                    Some(None)
                } else {
                    self.content(&what, entry.at, &entry.value, variables).map(Some)
                };
                let Some(content) = content else { continue };
                let object = match (external, name) {
                    (true, name) => name.unwrap_or_else(|| entry.key.clone()),
                    (false, Some(name)) => dns_name(&name, 200),
                    (false, None) => dns_name(&format!("{}-{}", project.name, entry.key), 200),
                };
                let file = SharedFile { object, content, annotations: self.annotations(&entry.value) };
                project.files.insert((kind, entry.key.clone()), file);
            }
            for granted in services.iter().flat_map(|it| &it.granted).filter(|it| it.kind == kind) {
                if !entries.iter().any(|it| it.key == granted.source) {
                    let known: Vec<&str> = entries.iter().map(|it| it.key.as_str()).collect();
                    let message = format!("the {} `{}` is not declared", kind.word(), granted.source);
                    self.error(granted.at, message, suggest_hint(&granted.source, &known));
                }
            }
        }
    }

    fn build_secrets(
        &mut self,
        root: &Node,
        services: &[Service],
        variables: &Variables,
        project: &mut Project,
    ) {
        let builds = services.iter().filter_map(|it| it.build.as_ref());
        for (_, source, at) in builds.flat_map(|it| &it.secrets) {
            let entries = root.get("secrets").map(Node::entries).unwrap_or_default();
            let Some(entry) = entries.iter().find(|it| it.key == *source) else {
                let known: Vec<&str> = entries.iter().map(|it| it.key.as_str()).collect();
                self.error(
                    *at,
                    format!("the secret `{source}` is not declared"),
                    suggest_hint(source, &known),
                );
                continue;
            };
            let what = format!("the secret `{source}`");
            if let Some(content) = self.content(&what, entry.at, &entry.value, variables) {
                project.build_secrets.insert(source.clone(), content);
            }
        }
    }

    fn content(&mut self, what: &str, at: At, node: &Node, variables: &Variables) -> Option<Vec<u8>> {
        let ways: Vec<&str> =
            ["file", "environment", "content"].into_iter().filter(|it| node.get(it).is_some()).collect();
        let [way] = ways[..] else {
            self.error(
                at,
                format!("{what} must have one of `file`, `environment` and `content`"),
                "write `file: ./path`",
            );
            return None;
        };
        let value = node.get(way)?;
        let text = self.text(way, value)?;
        match way {
            "file" => {
                let path = self.path(value.at, &text);
                match self.files.read(&path) {
                    Ok(it) => Some(it),
                    Err(why) => {
                        self.error(value.at, format!("cannot read {path}: {why}"), "");
                        None
                    }
                }
            }
            "environment" => match variables.get(&text) {
                Some(it) => Some(it.clone().into_bytes()),
                None => {
                    self.error(
                        value.at,
                        format!("the variable `{text}` is not set"),
                        format!("set {text}, or write it into .env"),
                    );
                    None
                }
            },
            _ => Some(text.into_bytes()),
        }
    }

    /// What of a service depends on the rest of the project.
    fn settle(&mut self, service: &mut Service, project: &Project) {
        for volume in service.pod["volumes"].as_array_mut().into_iter().flatten() {
            if let Some(name) = volume["persistentVolumeClaim"]["claimName"].as_str()
                && let Some(it) = project.volumes.get(name)
            {
                let claim = it.claim.clone();
                volume["persistentVolumeClaim"]["claimName"] = json!(claim);
            }
        }
        if service.pod["volumes"].is_null()
            && let Some(pod) = service.pod.as_object_mut()
        {
            pod.remove("volumes");
        }
        if service.pod["hostNetwork"] == true && !service.ports.is_empty() {
            self.warn(
                service.ports[0].at,
                "with `network_mode: host` every port is the machine's own; `ports` has no effect",
                "remove it",
            );
            service.ports.clear();
        }
        let ports = service.container_ports();
        if let Some(route) = &mut service.route {
            match (route.port, &ports[..]) {
                (Some(port), _) if ports.iter().any(|it| it.number == port) => {}
                (Some(port), _) => service.exposed.push(super::ports::Port {
                    number: port,
                    protocol: super::ports::Protocol::Tcp,
                    name: None,
                    app_protocol: None,
                }),
                (None, [only]) => route.port = Some(only.number),
                (None, _) => {
                    self.error(
                        route.at,
                        format!("which port of `{}` do the requests go to?", service.name),
                        "write `x-naru: {host: ..., port: 8080}`",
                    );
                }
            }
        }
    }

    /// Dependencies first. A circle is an error.
    fn ordered(&mut self, services: Vec<Service>) -> Vec<Service> {
        let mut left = services;
        left.sort_by(|a, b| a.object.cmp(&b.object));
        let mut done: Vec<Service> = Vec::new();
        while !left.is_empty() {
            let ready = left.iter().position(|it| {
                it.depends_on.iter().all(|it| done.iter().any(|done| done.name == it.service))
            });
            match ready {
                Some(index) => done.push(left.remove(index)),
                None => {
                    let names: Vec<&str> = left.iter().map(|it| it.name.as_str()).collect();
                    let at = left[0].depends_on.first().map_or(left[0].at, |it| it.at);
                    self.error(
                        at,
                        format!("these services wait for each other: {}", names.join(", ")),
                        "remove one of the dependencies",
                    );
                    done.append(&mut left);
                }
            }
        }
        done
    }
}
