//! One service of a compose file, read into the parts of a pod.

use super::interpolate::Variables;
use super::keys;
use super::load::Loader;
use super::mounts::{Grant, Granted, list};
use super::ports::{Port, Published};
use super::tree::{At, Node};
use super::values::dns_name;
use naru_text::suggest_hint;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Replicas of a service may not be more: one machine does not run more.
const REPLICAS_MAX: u64 = 1000;

/// A service as understood. `pod` and `container` are in Kubernetes' words already; what depends on the
/// rest of the project is in fields of its own.
#[derive(Debug, Clone)]
pub struct Service {
    /// As the file says.
    pub name: String,
    /// As Kubernetes says.
    pub object: String,
    pub at: At,
    pub image: Option<(String, At)>,
    pub build: Option<Build>,
    pub container: Value,
    pub pod: Value,
    pub annotations: BTreeMap<String, String>,
    pub pod_annotations: BTreeMap<String, String>,
    pub replicas: Option<u64>,
    pub mode: Mode,
    pub restart: Restart,
    pub update: Update,
    pub ports: Vec<Published>,
    pub exposed: Vec<Port>,
    /// Its name means its pods, not an address of the service.
    pub headless: bool,
    pub depends_on: Vec<Dependency>,
    /// The names of networks; none means the project's own.
    pub networks: Vec<(String, At)>,
    pub aliases: Vec<(String, At)>,
    pub volumes: Vec<(String, bool, At)>,
    pub host_paths: Vec<(String, At)>,
    pub granted: Vec<Granted>,
    pub profiles: Vec<String>,
    pub route: Option<Route>,
    pub has_check: bool,
}

/// How an image is built. Paths are whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Build {
    pub context: String,
    pub dockerfile: String,
    pub dockerfile_inline: Option<String>,
    pub target: Option<String>,
    pub args: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub additional_contexts: BTreeMap<String, String>,
    pub no_cache: bool,
    pub pull: bool,
    pub tags: Vec<String>,
    pub cache_from: Vec<String>,
    pub cache_to: Vec<String>,
    /// `ID` or `ID=KEYFILE`.
    pub ssh: Vec<String>,
    /// Id in the Dockerfile, and the key in the project's `secrets`.
    pub secrets: Vec<(String, String, At)>,
    pub at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Replicated,
    /// One on every node.
    Global,
    /// Runs to its end.
    Job,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Nothing was said.
    Unsaid,
    No,
    OnFailure(Option<u64>),
    Always,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Update {
    pub start_first: Option<bool>,
    pub parallelism: Option<u64>,
    pub delay_seconds: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Dependency {
    pub service: String,
    pub condition: Condition,
    pub required: bool,
    pub at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    Started,
    Healthy,
    Completed,
}

/// Where requests from outside come in.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    pub hosts: Vec<String>,
    pub path: String,
    pub port: Option<u16>,
    pub at: At,
}

impl Loader<'_> {
    pub fn service(&mut self, name: &str, at: At, node: &Node, variables: &Variables) -> Option<Service> {
        let what = format!("the service `{name}`");
        if !self.keys(&what, node, keys::SERVICE) {
            if node.is_null() {
                self.error(at, format!("{what} needs `image` or `build`"), "write `image: <name>`");
            }
            return None;
        }
        let object = dns_name(name, 50);
        if object != name.to_ascii_lowercase() {
            let message = format!(
                "{what} is known to the others as `{object}`: names in the cluster have letters, digits and dashes"
            );
            self.warn(at, message, format!("rename it to `{object}`"));
        }
        let mut it = Service {
            name: name.to_owned(),
            object: object.clone(),
            at,
            image: None,
            build: None,
            container: json!({"name": object}),
            pod: json!({}),
            annotations: BTreeMap::new(),
            pod_annotations: BTreeMap::new(),
            replicas: None,
            mode: Mode::Replicated,
            restart: Restart::Unsaid,
            update: Update::default(),
            ports: Vec::new(),
            exposed: Vec::new(),
            headless: false,
            depends_on: Vec::new(),
            networks: Vec::new(),
            aliases: Vec::new(),
            volumes: Vec::new(),
            host_paths: Vec::new(),
            granted: Vec::new(),
            profiles: Vec::new(),
            route: None,
            has_check: false,
        };
        self.environment(node, variables, &mut it);
        for entry in node.entries() {
            if !entry.value.is_null() {
                self.key(&entry.key, &entry.value, &mut it);
            }
        }
        if it.image.is_none() && it.build.is_none() {
            self.error(at, format!("{what} needs `image` or `build`"), "write `image: <name>`");
        }
        if it.mode == Mode::Global && it.replicas.is_some() {
            self.error(
                at,
                format!("{what} runs once on every node and has a number of replicas"),
                "keep one of them",
            );
        }
        Some(it)
    }

    fn key(&mut self, key: &str, node: &Node, it: &mut Service) {
        match key {
            "image" => it.image = self.text(key, node).map(|text| (text, node.at)),
            "build" => it.build = self.build(node),
            "command" => it.put("args", self.command(key, node)),
            "entrypoint" => it.put("command", self.command(key, node)),
            "working_dir" => it.put("workingDir", self.text(key, node)),
            "tty" => it.put_true("tty", self.flag(key, node)),
            "stdin_open" => it.put_true("stdin", self.flag(key, node)),
            "ports" => it.ports = self.ports(node),
            "expose" => it.exposed = self.exposed(node),
            "volumes" => self.mounts(node, it),
            "tmpfs" => self.memory_mounts(node, it),
            "shm_size" => {
                if let Some(size) = self.size(key, node) {
                    self.scratch(node.at, "/dev/shm", Some("Memory"), Some(size), it);
                }
            }
            "configs" => self.grants(Grant::Config, node, it),
            "secrets" => self.grants(Grant::Secret, node, it),
            "labels" | "annotations" => self.annotate(key, node, it),
            "label_file" => {
                for path in self.texts(key, node) {
                    let path = self.path(node.at, &path);
                    for (name, value) in self.env_file(&path, node.at, true, &Variables::new()) {
                        it.pod_annotations.entry(name).or_insert(value);
                    }
                }
            }
            "depends_on" => it.depends_on = self.depends_on(node),
            "networks" => self.service_networks(node, it),
            "container_name" => {
                if let Some(name) = self.text(key, node) {
                    it.aliases.push((name, node.at));
                }
            }
            "profiles" => it.profiles = self.texts(key, node),
            "scale" => it.replicas = self.number(key, node, 0, REPLICAS_MAX),
            "deploy" => self.deploy(node, it),
            "restart" => it.restart = self.restart(node),
            "healthcheck" => self.healthcheck(node, it),
            "pull_policy" => it.put("imagePullPolicy", self.pull_policy(node)),
            "x-naru" => it.route = self.route(node),
            _ => self.pod_key(key, node, it),
        }
    }

    fn environment(&mut self, node: &Node, variables: &Variables, it: &mut Service) {
        let mut all: Vec<(String, String)> = Vec::new();
        let mut set = |name: String, value: Option<String>| {
            all.retain(|it| it.0 != name);
            all.extend(value.map(|value| (name, value)));
        };
        for file in node.get("env_file").map(Node::items_or_one).unwrap_or_default() {
            let (path, required, raw) = match file.as_str() {
                Some(path) => (path.to_owned(), true, false),
                None => {
                    self.keys(
                        "an `env_file`",
                        file,
                        &[
                            ("path", keys::Fate::Kept),
                            ("required", keys::Fate::Kept),
                            ("format", keys::Fate::Kept),
                        ],
                    );
                    let Some(path) = file.get("path").and_then(|it| self.text("path", it)) else { continue };
                    let required = file.get("required").is_none_or(|it| self.flag("required", it));
                    (path, required, file.get("format").and_then(Node::as_str) == Some("raw"))
                }
            };
            let path = self.path(file.at, &path);
            if raw {
                self.warn(file.at, "variables are filled in, also in a raw env_file", "");
            }
            for (name, value) in self.env_file(&path, file.at, required, variables) {
                set(name, Some(value));
            }
        }
        // One map in two shapes: `env_file` may also be given as a mapping.
        if let Some(file) = node.get("env_file").filter(|it| it.is_map()) {
            self.error(file.at, "`env_file` must be a path or a list", "write `env_file: [.env]`");
        }
        for (name, value, _) in
            node.get("environment").map(|it| self.pairs("environment", it)).unwrap_or_default()
        {
            // A name alone takes the value of whoever runs `naru up`, and is left out if there is none.
            let value = value.or_else(|| variables.get(&name).cloned());
            set(name, value);
        }
        if !all.is_empty() {
            // `$(X)` would mean another variable to Kubernetes; compose knows no such thing.
            let env: Vec<Value> = all
                .into_iter()
                .map(|(name, value)| json!({"name": name, "value": value.replace("$(", "$$(")}))
                .collect();
            it.container["env"] = json!(env);
        }
    }

    fn build(&mut self, node: &Node) -> Option<Build> {
        let mut build = Build { dockerfile: "Dockerfile".into(), at: node.at, ..Build::default() };
        if let Some(context) = node.as_str() {
            build.context = self.context(node.at, context)?;
            return Some(build);
        }
        if !self.keys("`build`", node, keys::BUILD) {
            return None;
        }
        let context = node.get("context").map_or(Some(".".to_owned()), |it| self.text("context", it))?;
        build.context = self.context(node.get("context").unwrap_or(node).at, &context)?;
        for entry in node.entries() {
            let (key, value) = (entry.key.as_str(), &entry.value);
            let named = |pairs: Vec<(String, Option<String>, At)>, outer: &dyn Fn(&str) -> Option<String>| {
                pairs
                    .into_iter()
                    .filter_map(|(name, value, _)| Some((name.clone(), value.or_else(|| outer(&name))?)))
                    .collect()
            };
            match key {
                "dockerfile" => build.dockerfile = self.text(key, value)?,
                "dockerfile_inline" => build.dockerfile_inline = self.text(key, value),
                "target" => build.target = self.text(key, value),
                "args" => build.args = named(self.pairs(key, value), &|_| None),
                "labels" => build.labels = named(self.pairs(key, value), &|_| Some(String::new())),
                "additional_contexts" => {
                    for (name, context, at) in self.pairs(key, value) {
                        let context = context.unwrap_or_default();
                        let whole = match context.contains("://") {
                            true => context,
                            false => self.path(at, &context),
                        };
                        build.additional_contexts.insert(name, whole);
                    }
                }
                "cache_from" | "cache_to" => {
                    // A name alone is an image in a registry.
                    let whole =
                        |it: String| if it.contains('=') { it } else { format!("type=registry,ref={it}") };
                    let all = self.texts(key, value).into_iter().map(whole).collect();
                    if key == "cache_from" { build.cache_from = all } else { build.cache_to = all }
                }
                "ssh" => {
                    for (id, keys, at) in self.pairs(key, value) {
                        build.ssh.push(match keys {
                            Some(keys) => format!("{id}={}", self.path(at, &keys)),
                            None => id,
                        });
                    }
                }
                "secrets" => {
                    for item in value.items_or_one() {
                        let source = item.get("source").unwrap_or(item);
                        let Some(source) = self.text("source", source) else { continue };
                        let id = item.get("target").and_then(Node::as_str).unwrap_or(&source).to_owned();
                        build.secrets.push((id, source, item.at));
                    }
                }
                "no_cache" => build.no_cache = self.flag(key, value),
                "pull" => build.pull = self.flag(key, value),
                "tags" => build.tags = self.texts(key, value),
                _ => {}
            }
        }
        Some(build)
    }

    fn context(&mut self, at: At, context: &str) -> Option<String> {
        if context.contains("://") || context.starts_with("git@") {
            self.error(
                at,
                format!("the build context `{context}` is not on this machine"),
                "clone it, and name the directory",
            );
            return None;
        }
        Some(self.path(at, context))
    }

    /// Labels of containers are free text; what is free text in Kubernetes is called an annotation.
    fn annotate(&mut self, key: &str, node: &Node, it: &mut Service) {
        for (name, value, at) in self.pairs(key, node) {
            if let Some(name) = self.annotation(at, &name) {
                it.pod_annotations.insert(name, value.unwrap_or_default());
            }
        }
    }

    pub fn annotation(&mut self, at: At, name: &str) -> Option<String> {
        let (prefix, rest) = name.split_once('/').map_or((None, name), |(prefix, rest)| (Some(prefix), rest));
        let fits = |text: &str, max: usize| {
            !text.is_empty()
                && text.len() <= max
                && text.chars().all(|it| it.is_ascii_alphanumeric() || "-_.".contains(it))
                && text.starts_with(|it: char| it.is_ascii_alphanumeric())
                && text.ends_with(|it: char| it.is_ascii_alphanumeric())
        };
        if fits(rest, 63) && prefix.is_none_or(|it| fits(it, 253) && it == it.to_ascii_lowercase()) {
            return Some(name.to_owned());
        }
        self.error(at, format!("the label `{name}` cannot be kept as an annotation: at most 63 letters, digits, `-`, `_` and `.`, after an optional `domain/`"), "rename it");
        None
    }

    fn depends_on(&mut self, node: &Node) -> Vec<Dependency> {
        let mut all = Vec::new();
        let node = super::merge::names(node.clone());
        for entry in node.entries() {
            let (mut condition, mut required) = (Condition::Started, true);
            if !entry.value.is_null() && self.keys("a dependency", &entry.value, keys::DEPENDENCY) {
                if let Some(it) = entry.value.get("condition") {
                    condition = match it.as_str().unwrap_or_default() {
                        "service_started" => Condition::Started,
                        "service_healthy" => Condition::Healthy,
                        "service_completed_successfully" => Condition::Completed,
                        other => {
                            let known =
                                ["service_started", "service_healthy", "service_completed_successfully"];
                            self.error(
                                it.at,
                                format!("unknown condition `{other}`"),
                                suggest_hint(other, &known),
                            );
                            Condition::Started
                        }
                    };
                }
                required = entry.value.get("required").is_none_or(|it| self.flag("required", it));
            }
            all.push(Dependency { service: entry.key.clone(), condition, required, at: entry.at });
        }
        all
    }

    fn service_networks(&mut self, node: &Node, it: &mut Service) {
        let node = super::merge::names(node.clone());
        for entry in node.entries() {
            it.networks.push((entry.key.clone(), entry.at));
            if self.keys("a network of a service", &entry.value, keys::SERVICE_NETWORK)
                && let Some(aliases) = entry.value.get("aliases")
            {
                for alias in self.texts("aliases", aliases) {
                    it.aliases.push((alias, aliases.at));
                }
            }
        }
    }

    fn deploy(&mut self, node: &Node, it: &mut Service) {
        if !self.keys("`deploy`", node, keys::DEPLOY) {
            return;
        }
        if let Some(replicas) = node.get("replicas") {
            it.replicas = self.number("replicas", replicas, 0, REPLICAS_MAX);
        }
        if let Some(mode) = node.get("mode") {
            it.mode = match mode.as_str().unwrap_or_default() {
                "replicated" => Mode::Replicated,
                "global" => Mode::Global,
                "replicated-job" => Mode::Job,
                other => {
                    self.error(
                        mode.at,
                        format!("the mode `{other}` cannot be kept"),
                        "the modes are replicated, global and replicated-job",
                    );
                    Mode::Replicated
                }
            };
        }
        it.headless |= node.get("endpoint_mode").and_then(Node::as_str) == Some("dnsrr");
        for (name, value, at) in node.get("labels").map(|it| self.pairs("labels", it)).unwrap_or_default() {
            if let Some(name) = self.annotation(at, &name) {
                it.annotations.insert(name, value.unwrap_or_default());
            }
        }
        if let Some(policy) = node.get("restart_policy")
            && self.keys("`restart_policy`", policy, keys::RESTART_POLICY)
        {
            let attempts =
                policy.get("max_attempts").and_then(|it| self.number("max_attempts", it, 0, 1_000_000));
            it.restart = match policy.get("condition").and_then(Node::as_str).unwrap_or("any") {
                "none" => Restart::No,
                "on-failure" => Restart::OnFailure(attempts),
                "any" => Restart::Always,
                other => {
                    self.error(
                        policy.at,
                        format!("unknown restart condition `{other}`"),
                        suggest_hint(other, &["none", "on-failure", "any"]),
                    );
                    Restart::Unsaid
                }
            };
        }
        if let Some(update) = node.get("update_config")
            && self.keys("`update_config`", update, keys::UPDATE_CONFIG)
        {
            it.update.start_first = update.get("order").and_then(Node::as_str).map(|it| it == "start-first");
            it.update.parallelism =
                update.get("parallelism").and_then(|it| self.number("parallelism", it, 0, REPLICAS_MAX));
            it.update.delay_seconds =
                update.get("delay").and_then(|it| self.time("delay", it)).map(|it| it.ceil() as u64);
        }
        if let Some(resources) = node.get("resources")
            && self.keys("`resources`", resources, keys::RESOURCES)
        {
            for (key, to) in [("limits", "limits"), ("reservations", "requests")] {
                let Some(amounts) = resources.get(key) else { continue };
                if !self.keys(&format!("`{key}`"), amounts, keys::AMOUNTS) {
                    continue;
                }
                if let Some(cpus) = amounts.get("cpus") {
                    self.processors(cpus, to, it);
                }
                if let Some(memory) = amounts.get("memory").and_then(|it| self.size("memory", it)) {
                    it.container["resources"][to]["memory"] = json!(memory);
                }
            }
        }
    }

    pub fn processors(&mut self, node: &Node, to: &str, it: &mut Service) {
        match node.as_str().and_then(super::values::processors) {
            // None at all means no limit.
            Some(amount) if amount == "0" => {}
            Some(amount) => it.container["resources"][to]["cpu"] = json!(amount),
            None => self.error(node.at, "`cpus` is not a number of processors", "write it like `cpus: 0.5`"),
        }
    }

    fn restart(&mut self, node: &Node) -> Restart {
        let text = node.as_str().unwrap_or_default();
        match text.split_once(':').unwrap_or((text, "")) {
            // Without quotes YAML may take `no` for false.
            ("no" | "false", "") => Restart::No,
            ("always" | "unless-stopped", "") => Restart::Always,
            ("on-failure", "") => Restart::OnFailure(None),
            ("on-failure", count) if count.parse::<u64>().is_ok() => Restart::OnFailure(count.parse().ok()),
            _ => {
                let known = ["no", "always", "unless-stopped", "on-failure"];
                self.error(node.at, format!("unknown restart policy `{text}`"), suggest_hint(text, &known));
                Restart::Unsaid
            }
        }
    }

    fn pull_policy(&mut self, node: &Node) -> Option<&'static str> {
        match node.as_str().unwrap_or_default() {
            "always" => Some("Always"),
            "never" => Some("Never"),
            "missing" | "if_not_present" => Some("IfNotPresent"),
            "build" => None,
            other => {
                self.error(
                    node.at,
                    format!("the pull policy `{other}` cannot be kept"),
                    "the policies are always, missing, never and build",
                );
                None
            }
        }
    }

    fn route(&mut self, node: &Node) -> Option<Route> {
        if !self.keys("`x-naru`", node, keys::NARU_SERVICE) {
            return None;
        }
        let hosts = node.get("host").map(|it| self.texts("host", it)).unwrap_or_default();
        let path = node.get("path").and_then(|it| self.text("path", it)).unwrap_or_else(|| "/".to_owned());
        if !path.starts_with('/') {
            self.error(node.at, format!("`{path}` is not a path"), format!("write `path: /{path}`"));
        }
        let port = node.get("port").and_then(|it| self.number("port", it, 1, 65535)).map(|it| it as u16);
        if hosts.is_empty() {
            self.error(node.at, "`x-naru` names no `host`", "write `x-naru: {host: shop.example.com}`");
            return None;
        }
        Some(Route { hosts, path, port, at: node.at })
    }
}

impl Service {
    fn put(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.container[key] = value.into();
        }
    }

    fn put_true(&mut self, key: &str, value: bool) {
        if value {
            self.container[key] = json!(true);
        }
    }

    pub fn security(&mut self) -> &mut Value {
        &mut self.container["securityContext"]
    }

    /// The ports of the container, in order, each once.
    pub fn container_ports(&self) -> Vec<Port> {
        let mut all: Vec<Port> =
            self.ports.iter().map(|it| it.port.clone()).chain(self.exposed.iter().cloned()).collect();
        all.sort_by_key(|it| (it.number, it.protocol, it.name.is_none()));
        all.dedup_by_key(|it| (it.number, it.protocol));
        all
    }

    pub fn add(&mut self, key: &str, value: Value) {
        list(&mut self.pod, key).push(value);
    }
}
