//! `naru.yaml`: an app in ten lines, and the pure function that makes Kubernetes objects of it.
//!
//! ```
//! let (app, findings) = naru_spec::parse("app: shop\nservices:\n  web:\n    build: .\n    port: 8080\n");
//! assert!(findings.is_empty());
//! assert_eq!(app.unwrap().services[0].port, Some(8080));
//! ```

pub mod compose;
mod render;
pub mod yaml_text;

pub use render::{RenderInput, Rendered, render, renumber};

use naru_text::yaml::{self, Data, Node};
use naru_text::{Finding, Place, suggest_hint};
use std::collections::BTreeMap;

/// The name of the file in a repository's root.
pub const FILE: &str = "naru.yaml";

/// How long each canary step is watched when the file does not say.
const WINDOW_SECONDS_DEFAULT: u32 = 30;

#[derive(Debug, Clone, PartialEq)]
pub struct App {
    pub name: String,
    pub services: Vec<Service>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    pub name: String,
    pub source: ImageSource,
    pub port: Option<u16>,
    pub host: Option<String>,
    pub replicas: u32,
    /// Path that answers 200 when the service can take requests.
    pub health: Option<String>,
    pub env: Vec<(String, EnvValue)>,
    pub command: Vec<String>,
    pub memory: Option<String>,
    pub cpu: Option<String>,
    pub rollout: Rollout,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ImageSource {
    Build { context: String, dockerfile: String, target: Option<String>, args: BTreeMap<String, String> },
    Image(String),
}

#[derive(Debug, Clone, PartialEq)]
pub enum EnvValue {
    Text(String),
    /// `secret/<name>` or `secret/<name>/<key>`; the key is the variable's name unless said.
    Secret {
        name: String,
        key: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Rollout {
    Rolling,
    Canary { steps: Vec<u32>, window_seconds: u32 },
}

const APP_KEYS: &[&str] = &["app", "services"];
const SERVICE_KEYS: &[&str] = &[
    "build", "image", "port", "host", "replicas", "health", "env", "command", "memory", "cpu", "rollout",
    "window",
];
const BUILD_KEYS: &[&str] = &["context", "dockerfile", "target", "args"];

/// Reads the file. The app is `None` if any finding is an error.
pub fn parse(source: &str) -> (Option<App>, Vec<Finding>) {
    let (node, findings) = yaml::parse(source);
    let mut reader = Reader { findings };
    let app = node.and_then(|it| reader.app(&it));
    let broken = reader.findings.iter().any(Finding::is_error);
    (app.filter(|_| !broken), reader.findings)
}

struct Reader {
    findings: Vec<Finding>,
}

impl Reader {
    fn error(&mut self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.findings.push(Finding::error(place, message).hint(hint));
    }

    fn keys(&mut self, what: &str, node: &Node, known: &[&str]) -> bool {
        if !matches!(node.data, Data::Mapping(_)) {
            self.error(node.place, format!("{what} must be a mapping, this is {}", node.describe()), "");
            return false;
        }
        for (key, _) in node.entries() {
            let name = key.as_str().unwrap_or_default();
            if !known.contains(&name) {
                self.error(key.place, format!("unknown key `{name}` in {what}"), suggest_hint(name, known));
            }
        }
        true
    }

    fn app(&mut self, node: &Node) -> Option<App> {
        if !self.keys("naru.yaml", node, APP_KEYS) {
            return None;
        }
        let name = match node.get("app") {
            Some(it) => self.name("app", it),
            None => {
                self.error(node.place, "there is no `app`", "write `app: <name>` on the first line");
                return None;
            }
        };
        let Some(services) = node.get("services").filter(|it| !it.entries().is_empty()) else {
            self.error(
                node.place,
                "there are no `services`",
                "write `services:` with at least one service below",
            );
            return None;
        };
        let services = services
            .entries()
            .iter()
            .filter_map(|(key, value)| {
                let name = self.name("a service", key);
                self.service(name, key.place, value)
            })
            .collect::<Vec<_>>();
        self.one_rollout(&services, node);
        Some(App { name, services })
    }

    /// The services of one release move together, so their steps must agree.
    fn one_rollout(&mut self, services: &[Service], node: &Node) {
        let mut canaries = services.iter().filter(|it| matches!(it.rollout, Rollout::Canary { .. }));
        if let Some(first) = canaries.next()
            && let Some(other) = canaries.find(|it| it.rollout != first.rollout)
        {
            let place =
                node.get("services").and_then(|it| it.get(&other.name)).map_or(node.place, |it| it.place);
            let message = format!("`{}` and `{}` have different canary steps", first.name, other.name);
            self.error(
                place,
                message,
                "the services of a release move together: give them the same `rollout`",
            );
        }
    }

    fn name(&mut self, what: &str, node: &Node) -> String {
        let name = node.as_str().unwrap_or_default().to_owned();
        let valid = !name.is_empty()
            && name.len() <= 40
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && !name.ends_with('-');
        if !valid {
            let hint = format!("try `{}`", name.to_lowercase().replace(['_', ' ', '.'], "-"));
            self.error(
                node.place,
                format!("`{name}` cannot name {what}: lower-case letters, digits and dashes, at most 40"),
                hint,
            );
        }
        name
    }

    fn service(&mut self, name: String, place: Place, node: &Node) -> Option<Service> {
        let what = format!("the service `{name}`");
        if !self.keys(&what, node, SERVICE_KEYS) {
            return None;
        }
        let source = match (node.get("build"), node.get("image")) {
            (Some(build), None) => self.build(build)?,
            (None, Some(image)) => ImageSource::Image(self.text("image", image)),
            (Some(_), Some(image)) => {
                self.error(image.place, format!("{what} has both `build` and `image`"), "keep one of them");
                return None;
            }
            (None, None) => {
                self.error(place, format!("{what} needs `build` or `image`"), "write `build: .`");
                return None;
            }
        };
        let port = node.get("port").and_then(|it| self.port(it));
        let host = node.get("host").map(|it| self.text("host", it));
        if let (Some(it), None) = (node.get("host"), port) {
            self.error(it.place, format!("{what} has a `host` but no `port`"), "write `port: <number>`");
        }
        let health = node.get("health").map(|it| {
            let path = self.text("health", it);
            if !path.starts_with('/') {
                self.error(it.place, format!("`{path}` is not a path"), format!("write `health: /{path}`"));
            }
            path
        });
        if let (Some(it), None) = (node.get("health"), port) {
            self.error(it.place, format!("{what} has `health` but no `port`"), "write `port: <number>`");
        }
        Some(Service {
            source,
            port,
            host,
            replicas: node.get("replicas").map_or(1, |it| self.number("replicas", it, 1, 100)),
            health,
            env: node.get("env").map(|it| self.env(it)).unwrap_or_default(),
            command: node.get("command").map(|it| self.command(it)).unwrap_or_default(),
            memory: node.get("memory").map(|it| self.quantity("memory", it, "256Mi")),
            cpu: node.get("cpu").map(|it| self.quantity("cpu", it, "500m")),
            rollout: self.rollout(node),
            name,
        })
    }

    fn text(&mut self, key: &str, node: &Node) -> String {
        match node.as_str() {
            Some(it) if !it.is_empty() => it.to_owned(),
            _ => {
                self.error(node.place, format!("`{key}` must be text, this is {}", node.describe()), "");
                String::new()
            }
        }
    }

    fn number(&mut self, key: &str, node: &Node, min: u32, max: u32) -> u32 {
        match node.as_u64() {
            Some(it) if (u64::from(min)..=u64::from(max)).contains(&it) => it as u32,
            _ => {
                self.error(node.place, format!("`{key}` must be a whole number from {min} to {max}"), "");
                min
            }
        }
    }

    fn port(&mut self, node: &Node) -> Option<u16> {
        Some(self.number("port", node, 1, 65535) as u16)
    }

    fn quantity(&mut self, key: &str, node: &Node, example: &str) -> String {
        let text = self.text(key, node);
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[digits.len()..];
        let known = matches!(unit, "" | "m" | "k" | "M" | "G" | "Ki" | "Mi" | "Gi");
        if digits.parse::<f64>().is_err() || !known {
            self.error(
                node.place,
                format!("`{text}` is not a quantity"),
                format!("write it like `{key}: {example}`"),
            );
        }
        text
    }

    fn build(&mut self, node: &Node) -> Option<ImageSource> {
        let (mut context, mut dockerfile) = (".".to_owned(), "Dockerfile".to_owned());
        let (mut target, mut args) = (None, BTreeMap::new());
        match &node.data {
            Data::Scalar { text, .. } => context.clone_from(text),
            _ => {
                if !self.keys("`build`", node, BUILD_KEYS) {
                    return None;
                }
                if let Some(it) = node.get("context") {
                    context = self.text("context", it);
                }
                if let Some(it) = node.get("dockerfile") {
                    dockerfile = self.text("dockerfile", it);
                }
                target = node.get("target").map(|it| self.text("target", it));
                for (key, value) in node.get("args").map(Node::entries).unwrap_or_default() {
                    args.insert(key.as_str().unwrap_or_default().to_owned(), self.text("args", value));
                }
            }
        }
        if context.starts_with('/') || context.split('/').any(|it| it == "..") {
            self.error(
                node.place,
                format!("the build context `{context}` lies outside the repository"),
                "write `build: .`",
            );
        }
        Some(ImageSource::Build { context, dockerfile, target, args })
    }

    fn env(&mut self, node: &Node) -> Vec<(String, EnvValue)> {
        if !matches!(node.data, Data::Mapping(_)) {
            self.error(
                node.place,
                format!("`env` must be a mapping, this is {}", node.describe()),
                "write `NAME: value`",
            );
        }
        node.entries()
            .iter()
            .map(|(key, value)| {
                let name = key.as_str().unwrap_or_default().to_owned();
                let text = value.as_str().unwrap_or_default();
                let value = match text.strip_prefix("secret/") {
                    Some(secret) => match secret.split_once('/') {
                        Some((secret, key)) => EnvValue::Secret { name: secret.into(), key: key.into() },
                        None => EnvValue::Secret { name: secret.into(), key: name.clone() },
                    },
                    None => EnvValue::Text(text.to_owned()),
                };
                (name, value)
            })
            .collect()
    }

    fn command(&mut self, node: &Node) -> Vec<String> {
        match &node.data {
            Data::Sequence(items) => items.iter().map(|it| self.text("command", it)).collect(),
            _ => ["sh".to_owned(), "-c".to_owned(), self.text("command", node)].to_vec(),
        }
    }

    /// `rolling`, `canary`, or `canary 10% 50% 100%`.
    fn rollout(&mut self, service: &Node) -> Rollout {
        let window = service.get("window").map(|it| {
            let text = it.as_str().unwrap_or_default();
            let seconds = match text.strip_suffix('m') {
                Some(minutes) => minutes.parse::<u32>().ok().and_then(|it| it.checked_mul(60)),
                None => text.trim_end_matches('s').parse::<u32>().ok(),
            };
            seconds.filter(|it| (1..=86_400).contains(it)).unwrap_or_else(|| {
                self.error(it.place, format!("`{text}` is not a time"), "write it like `window: 30s`");
                WINDOW_SECONDS_DEFAULT
            })
        });
        let Some(node) = service.get("rollout") else { return Rollout::Rolling };
        let text = node.as_str().unwrap_or_default();
        let mut words = text.split_whitespace();
        match words.next() {
            Some("rolling") => {
                if let Some(extra) = words.next() {
                    self.error(
                        node.place,
                        format!("`rolling` takes no steps, this has `{extra}`"),
                        "write `canary` for steps",
                    );
                }
                Rollout::Rolling
            }
            Some("canary") => {
                let mut steps = Vec::new();
                for word in words {
                    match word.trim_end_matches('%').parse::<u32>() {
                        Ok(it) if (1..=100).contains(&it) && steps.last().is_none_or(|last| *last < it) => steps.push(it),
                        _ => self.error(
                            node.place,
                            format!("`{word}` cannot be the next canary step: per cents from 1 to 100, each larger than the one before"),
                            "write `rollout: canary 10% 50% 100%`",
                        ),
                    }
                }
                if steps.is_empty() {
                    steps = vec![10, 50];
                }
                if steps.last() != Some(&100) {
                    steps.push(100);
                }
                if service.get("host").is_none() {
                    self.error(
                        node.place,
                        "a canary needs a `host`: without one there is no traffic to judge",
                        "write `rollout: rolling`, or add a `host`",
                    );
                }
                Rollout::Canary { steps, window_seconds: window.unwrap_or(WINDOW_SECONDS_DEFAULT) }
            }
            other => {
                let word = other.unwrap_or_default();
                self.error(
                    node.place,
                    format!("unknown rollout `{word}`"),
                    suggest_hint(word, &["rolling", "canary"]),
                );
                Rollout::Rolling
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(line: &str) -> String {
        format!("app: shop\nservices:\n  web:\n    build: .\n    port: 80\n    host: a.b\n    {line}\n")
    }

    #[test]
    fn typos_are_named_with_place_and_way_out() {
        let cases = [
            (
                service("prot: 1"),
                "unknown key `prot` in the service `web`\n  --> naru.yaml:7:5\nhint: did you mean `port`?",
            ),
            (
                service("replicas: many"),
                "`replicas` must be a whole number from 1 to 100\n  --> naru.yaml:7:15",
            ),
            (
                service("rollout: canari 10%"),
                "unknown rollout `canari`\n  --> naru.yaml:7:14\nhint: did you mean `canary`?",
            ),
            (service("rollout: canary 50% 10%"), "`10%` cannot be the next canary step"),
            (service("memory: lots"), "`lots` is not a quantity"),
            ("app: Shop\nservices: {web: {image: x}}\n".into(), "`Shop` cannot name app"),
            ("services: {}\n".into(), "there is no `app`"),
            ("app: a\nservices:\n  web: {}\n".into(), "needs `build` or `image`"),
            ("app: a\nservices:\n  web: {build: ../x}\n".into(), "lies outside the repository"),
        ];
        for (source, want) in cases {
            let (app, findings) = parse(&source);
            let got = findings.iter().map(|it| it.render(FILE)).collect::<Vec<_>>().join("\n");
            assert!(got.contains(want), "want {want}\ngot {got}");
            assert!(app.is_none());
        }
    }

    #[test]
    fn a_canary_ends_at_all_traffic() {
        let (app, findings) = parse(&service("rollout: canary 5% 20%"));
        assert!(findings.is_empty(), "{findings:?}");
        let want = Rollout::Canary { steps: vec![5, 20, 100], window_seconds: 30 };
        assert_eq!(app.unwrap().services[0].rollout, want);
    }
}
