//! What is mounted into a service: volumes, directories of the machine, memory, configs and secrets.

use super::PathKind;
use super::keys;
use super::load::{Loader, join};
use super::service::Service;
use super::tree::{At, Data, Node};
use super::values::dns_name;
use serde_json::{Value, json};

/// What a service uses of the project's configs and secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    Config,
    Secret,
}

impl Grant {
    pub fn word(self) -> &'static str {
        match self {
            Grant::Config => "config",
            Grant::Secret => "secret",
        }
    }
}

/// A file that a config or secret is mounted as.
#[derive(Debug, Clone, PartialEq)]
pub struct Granted {
    pub kind: Grant,
    /// The key in `configs` or `secrets`.
    pub source: String,
    pub target: String,
    pub mode: Option<u32>,
    pub at: At,
}

impl Loader<'_> {
    pub fn mounts(&mut self, node: &Node, service: &mut Service) {
        for item in node.items_or_one() {
            match item.as_str() {
                Some(text) => self.short_mount(item, text, service),
                None => self.long_mount(item, service),
            }
        }
    }

    /// `[source:]target[:options]`.
    fn short_mount(&mut self, node: &Node, text: &str, service: &mut Service) {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => ("", target, ""),
            [source, target] if target.starts_with('/') => (source, target, ""),
            [source, target, options] => (source, target, options),
            _ => {
                let hint = "write it like `data:/var/lib/data` or `./conf:/etc/conf:ro`";
                return self.error(node.at, format!("`{text}` is not a mount"), hint);
            }
        };
        let mut read_only = false;
        for option in options.split(',').filter(|it| !it.is_empty()) {
            match option {
                "ro" => read_only = true,
                "rw" | "z" | "Z" | "nocopy" | "cached" | "delegated" | "consistent" => {}
                other => self.error(
                    node.at,
                    format!("the mount option `{other}` cannot be kept"),
                    "the options are ro and rw",
                ),
            }
        }
        if source.is_empty() {
            self.scratch(node.at, target, None, None, service);
        } else if source.starts_with(['.', '/', '~']) {
            self.bind(node.at, source, target, read_only, None, service);
        } else {
            self.volume(node.at, source, target, read_only, None, service);
        }
    }

    fn long_mount(&mut self, node: &Node, service: &mut Service) {
        if !self.keys("a mount", node, keys::MOUNT) {
            return;
        }
        let part = |key: &str| node.get(key).and_then(Node::as_str).unwrap_or_default().to_owned();
        let (source, target) = (part("source"), part("target"));
        if target.is_empty() {
            return self.error(node.at, "a mount without `target`", "write `target: /path/in/the/container`");
        }
        let read_only = node.get("read_only").is_some_and(|it| self.flag("read_only", it));
        for (key, table) in
            [("bind", keys::MOUNT_BIND), ("volume", keys::MOUNT_VOLUME), ("tmpfs", keys::MOUNT_TMPFS)]
        {
            if let Some(it) = node.get(key) {
                self.keys(&format!("`{key}` of a mount"), it, table);
            }
        }
        let inner = |key: &str, name: &str| node.get(key).and_then(|it| it.get(name)).cloned();
        match part("type").as_str() {
            "volume" | "" if source.is_empty() => self.scratch(node.at, &target, None, None, service),
            "volume" | "" => {
                let sub = inner("volume", "subpath").and_then(|it| self.text("subpath", &it));
                self.volume(node.at, &source, &target, read_only, sub, service);
            }
            "bind" => {
                let create = inner("bind", "create_host_path").map(|it| self.flag("create_host_path", &it));
                self.bind(node.at, &source, &target, read_only, create, service);
            }
            "tmpfs" => {
                let size = inner("tmpfs", "size").and_then(|it| self.size("size", &it));
                self.scratch(node.at, &target, Some("Memory"), size, service);
            }
            other => self.error(
                node.at,
                format!("mounts of the type `{other}` cannot be kept"),
                "the types are volume, bind and tmpfs",
            ),
        }
    }

    /// `tmpfs: /run` or `tmpfs: /run:size=64m,mode=1777`.
    pub fn memory_mounts(&mut self, node: &Node, service: &mut Service) {
        for item in node.items_or_one() {
            let Some(text) = self.text("tmpfs", item) else { continue };
            let (target, options) = text.split_once(':').unwrap_or((&text, ""));
            let mut size = None;
            for option in options.split(',').filter(|it| !it.is_empty()) {
                match option.split_once('=') {
                    Some(("size", value)) => size = self.size("size", &Node::text(item.at, value)),
                    Some(("mode", "1777" | "01777")) | None
                        if matches!(option, "rw" | "mode=1777" | "mode=01777" | "nosuid" | "nodev") => {}
                    _ => self.warn(
                        item.at,
                        format!("the option `{option}` of tmpfs has no effect"),
                        "the option that counts is size",
                    ),
                }
            }
            self.scratch(item.at, target, Some("Memory"), size, service);
        }
    }

    /// A directory that lives as long as the pod.
    pub fn scratch(
        &mut self,
        at: At,
        target: &str,
        medium: Option<&str>,
        size: Option<String>,
        service: &mut Service,
    ) {
        let mut volume = json!({});
        if let Some(it) = medium {
            volume["medium"] = json!(it);
        }
        if let Some(it) = size {
            volume["sizeLimit"] = json!(it);
        }
        let name = unique(service, "scratch");
        self.mount(
            at,
            service,
            json!({"name": name, "emptyDir": volume}),
            json!({"name": name, "mountPath": target}),
        );
    }

    fn bind(
        &mut self,
        at: At,
        source: &str,
        target: &str,
        read_only: bool,
        create: Option<bool>,
        service: &mut Service,
    ) {
        let path = match source.strip_prefix('~') {
            Some(rest) => match self.files.home() {
                Some(home) => join(&home, &format!("./{rest}")),
                None => {
                    return self.error(
                        at,
                        format!("`{source}`: there is no home directory"),
                        "write the whole path",
                    );
                }
            },
            None => self.path(at, source),
        };
        let kind = match (self.files.kind(&path), create) {
            (PathKind::File, _) => "File",
            (PathKind::Missing, Some(false)) => {
                return self.error(
                    at,
                    format!("there is no {path} on this machine"),
                    "make it, or write `create_host_path: true`",
                );
            }
            (_, Some(false)) => "Directory",
            _ => "DirectoryOrCreate",
        };
        let name = unique(service, "host");
        let mut mount = json!({"name": name, "mountPath": target});
        if read_only {
            mount["readOnly"] = json!(true);
        }
        service.host_paths.push((path.clone(), at));
        self.mount(at, service, json!({"name": name, "hostPath": {"path": path, "type": kind}}), mount);
    }

    fn volume(
        &mut self,
        at: At,
        source: &str,
        target: &str,
        read_only: bool,
        sub: Option<String>,
        service: &mut Service,
    ) {
        let name = dns_name(source, 50);
        let mut mount = json!({"name": name, "mountPath": target});
        if read_only {
            mount["readOnly"] = json!(true);
        }
        if let Some(it) = sub {
            mount["subPath"] = json!(it);
        }
        service.volumes.push((source.to_owned(), read_only, at));
        // The claim's name is known once the volumes of the project are.
        let volume = json!({"name": name, "persistentVolumeClaim": {"claimName": source}});
        self.mount(at, service, volume, mount);
    }

    /// Adds a volume, unless the same is there already, and its mount.
    fn mount(&mut self, at: At, service: &mut Service, volume: Value, mount: Value) {
        let target = mount["mountPath"].as_str().unwrap_or_default().to_owned();
        if !target.starts_with('/') {
            return self.error(
                at,
                format!("`{target}` is not a whole path in the container"),
                format!("write /{target}"),
            );
        }
        if mount_points(service).any(|it| it == target) {
            return self.error(at, format!("two things are mounted at {target}"), "remove one of them");
        }
        let volumes = list(&mut service.pod, "volumes");
        match volumes.iter().find(|it| it["name"] == volume["name"]) {
            None => volumes.push(volume),
            Some(it) if *it == volume => {}
            Some(it) => {
                let message = format!("two volumes are both named {} in the pod", it["name"]);
                return self.error(at, message, "rename one of them");
            }
        }
        list(&mut service.container, "volumeMounts").push(mount);
    }

    /// The items of a service's `configs` or `secrets`.
    pub fn grants(&mut self, kind: Grant, node: &Node, service: &mut Service) {
        let word = kind.word();
        for item in node.items_or_one() {
            let (source, target, mode) = match &item.data {
                Data::Scalar { text, .. } => (text.clone(), None, None),
                _ => {
                    if !self.keys(&format!("a {word} of a service"), item, keys::GRANT) {
                        continue;
                    }
                    let Some(source) = item.get("source").and_then(|it| self.text("source", it)) else {
                        self.error(
                            item.at,
                            format!("a {word} without `source`"),
                            format!("write `source: <the name of a {word}>`"),
                        );
                        continue;
                    };
                    let mode = item.get("mode").and_then(|it| {
                        let text = it.as_str().unwrap_or_default();
                        let digits = text.trim_start_matches("0o");
                        // YAML 1.1 reads 0440 as octal, and so does everybody who writes modes.
                        let mode = u32::from_str_radix(digits, 8).ok().filter(|it| *it <= 0o777);
                        if mode.is_none() {
                            self.error(
                                it.at,
                                format!("`{text}` is no file mode"),
                                "write it like `mode: 0440`",
                            );
                        }
                        mode
                    });
                    (source, item.get("target").and_then(|it| self.text("target", it)), mode)
                }
            };
            let base = if kind == Grant::Secret { "/run/secrets" } else { "/" };
            let target = join(base, target.as_deref().unwrap_or(&source));
            if mount_points(service).any(|it| it == target)
                || service.granted.iter().any(|it| it.target == target)
            {
                self.error(
                    item.at,
                    format!("two things are mounted at {target}"),
                    "give one of them another `target`",
                );
                continue;
            }
            service.granted.push(Granted { kind, source, target, mode, at: item.at });
        }
    }
}

fn mount_points(service: &Service) -> impl Iterator<Item = &str> {
    let mounts = service.container["volumeMounts"].as_array().map_or(&[][..], Vec::as_slice);
    mounts.iter().filter_map(|it| it["mountPath"].as_str())
}

/// A name for one more volume of the pod.
fn unique(service: &Service, word: &str) -> String {
    let count = service.pod["volumes"].as_array().map_or(0, Vec::len);
    format!("{word}-{}", count + 1)
}

/// The list at a key, made if it is not there.
pub fn list<'v>(object: &'v mut Value, key: &str) -> &'v mut Vec<Value> {
    if !object[key].is_array() {
        object[key] = json!([]);
    }
    object[key].as_array_mut().expect("it was made above")
}
