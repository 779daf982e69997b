//! The keys of a service that shape its pod: rights, names, health, hooks.

use super::keys;
use super::load::Loader;
use super::service::Service;
use super::tree::Node;
use super::values::dns_name;
use serde_json::{Value, json};

/// What compose takes when a health check does not say.
const INTERVAL_SECONDS: f64 = 30.0;
const TIMEOUT_SECONDS: f64 = 30.0;
const RETRIES: u64 = 3;
/// While a service starts it is asked this often, so that those that wait for it do not wait for nothing.
const START_INTERVAL_SECONDS: f64 = 1.0;

impl Loader<'_> {
    pub fn pod_key(&mut self, key: &str, node: &Node, it: &mut Service) {
        match key {
            "cpus" => self.processors(node, "limits", it),
            "mem_limit" | "mem_reservation" => {
                let to = if key == "mem_limit" { "limits" } else { "requests" };
                if let Some(size) = self.size(key, node) {
                    it.container["resources"][to]["memory"] = json!(size);
                }
            }
            "user" => self.user(node, it),
            "group_add" => {
                for text in self.texts(key, node) {
                    match text.parse::<u32>() {
                        Ok(id) => {
                            super::mounts::list(&mut it.pod["securityContext"], "supplementalGroups")
                                .push(json!(id));
                        }
                        Err(_) => self.error(
                            node.at,
                            format!("the group `{text}` is a name; pods know groups by number"),
                            "write its number",
                        ),
                    }
                }
            }
            "cap_add" | "cap_drop" => {
                let names: Vec<String> = self
                    .texts(key, node)
                    .iter()
                    .map(|it| it.to_ascii_uppercase().trim_start_matches("CAP_").to_owned())
                    .collect();
                if !names.is_empty() {
                    let to = if key == "cap_add" { "add" } else { "drop" };
                    it.security()["capabilities"][to] = json!(names);
                }
            }
            "privileged" if self.flag(key, node) => {
                it.security()["privileged"] = json!(true);
            }
            "read_only" if self.flag(key, node) => {
                it.security()["readOnlyRootFilesystem"] = json!(true);
            }
            "security_opt" => self.security_options(node, it),
            "sysctls" => {
                for (name, value, _) in self.pairs(key, node) {
                    let sysctl = json!({"name": name, "value": value.unwrap_or_default()});
                    super::mounts::list(&mut it.pod["securityContext"], "sysctls").push(sysctl);
                }
            }
            "hostname" => {
                if let Some(name) = self.text(key, node) {
                    if dns_name(&name, 63) == name {
                        it.pod["hostname"] = json!(name);
                    } else {
                        self.error(
                            node.at,
                            format!("`{name}` is no host name of a pod"),
                            format!("write `hostname: {}`", dns_name(&name, 63)),
                        );
                    }
                }
            }
            "extra_hosts" => self.extra_hosts(node, it),
            "dns" => {
                let servers = self.texts(key, node);
                self.warn(
                    node.at,
                    "these name servers are asked after the cluster's own, which knows the services",
                    "",
                );
                it.pod["dnsConfig"]["nameservers"] = json!(servers);
            }
            "dns_search" => it.pod["dnsConfig"]["searches"] = json!(self.texts(key, node)),
            "dns_opt" => {
                let options: Vec<Value> = self
                    .texts(key, node)
                    .iter()
                    .map(|it| match it.split_once(':') {
                        Some((name, value)) => json!({"name": name, "value": value}),
                        None => json!({"name": it}),
                    })
                    .collect();
                it.pod["dnsConfig"]["options"] = json!(options);
            }
            "stop_grace_period" => {
                if let Some(seconds) = self.time(key, node) {
                    it.pod["terminationGracePeriodSeconds"] = json!(seconds.ceil() as u64);
                }
            }
            "stop_signal" => {
                if let Some(signal) = self.text(key, node) {
                    let signal = signal.to_ascii_uppercase();
                    let name = if signal.starts_with("SIG") { signal } else { format!("SIG{signal}") };
                    it.container["lifecycle"]["stopSignal"] = json!(name);
                    it.pod["os"] = json!({"name": "linux"});
                }
            }
            "init" if self.flag(key, node) => {
                // The pod's own first process reaps what the program leaves behind.
                it.pod["shareProcessNamespace"] = json!(true);
            }
            "ipc" => match node.as_str().unwrap_or_default() {
                "private" | "shareable" => {}
                other => self.error(
                    node.at,
                    format!("`ipc: {other}` cannot be kept: a pod shares its memory with no other"),
                    "remove it, or put both programs into one service",
                ),
            },
            "network_mode" => match node.as_str().unwrap_or_default() {
                "bridge" => {}
                "host" => {
                    it.pod["hostNetwork"] = json!(true);
                    // Otherwise the machine's own resolver would be asked, which knows no services.
                    it.pod["dnsPolicy"] = json!("ClusterFirstWithHostNet");
                }
                other => {
                    let why = format!(
                        "`network_mode: {other}` cannot be kept: a pod has a network interface of its own, or the machine's"
                    );
                    self.error(node.at, why, "remove it, or write `network_mode: host`");
                }
            },
            "platform" => {
                if let Some(platform) = self.text(key, node) {
                    match platform.split('/').collect::<Vec<_>>()[..] {
                        ["linux", arch, ..] => it.pod["nodeSelector"] = json!({"kubernetes.io/arch": arch}),
                        _ => self.error(
                            node.at,
                            format!("the platform `{platform}` does not run here"),
                            "write `platform: linux/amd64`",
                        ),
                    }
                }
            }
            "post_start" => self.hook("postStart", node, it),
            "pre_stop" => self.hook("preStop", node, it),
            _ => {}
        }
    }

    fn user(&mut self, node: &Node, it: &mut Service) {
        let text = node.as_str().unwrap_or_default().to_owned();
        let (user, group) =
            text.split_once(':').map_or((text.as_str(), None), |(user, group)| (user, Some(group)));
        for (name, to) in [(Some(user), "runAsUser"), (group, "runAsGroup")] {
            match name.map(|it| (it, it.parse::<u32>())) {
                None | Some(("", _)) => {}
                Some(("root", _)) => it.security()[to] = json!(0),
                Some((_, Ok(id))) => it.security()[to] = json!(id),
                Some((name, Err(_))) => {
                    self.error(
                        node.at,
                        format!("`user: {text}`: `{name}` is a name; pods know users by number"),
                        "write its number, as `id` in the image says: `user: \"1000:1000\"`",
                    );
                }
            }
        }
    }

    fn security_options(&mut self, node: &Node, it: &mut Service) {
        for text in self.texts("security_opt", node) {
            match text.split_once([':', '=']).unwrap_or((&text, "true")) {
                ("no-new-privileges", "true") => it.security()["allowPrivilegeEscalation"] = json!(false),
                ("no-new-privileges", "false") => it.security()["allowPrivilegeEscalation"] = json!(true),
                ("seccomp", "unconfined") => it.security()["seccompProfile"] = json!({"type": "Unconfined"}),
                ("label", "disable") | ("apparmor", "unconfined") => {
                    self.warn(
                        node.at,
                        format!("`{text}` has no effect: containers have no such labels here"),
                        "",
                    );
                }
                _ => self.error(
                    node.at,
                    format!("the security option `{text}` cannot be kept"),
                    "no-new-privileges and seccomp:unconfined are understood",
                ),
            }
        }
    }

    fn extra_hosts(&mut self, node: &Node, it: &mut Service) {
        let mut by_address: Vec<(String, Vec<String>)> = Vec::new();
        for (name, address, at) in self.pairs("extra_hosts", node) {
            let address = address.unwrap_or_default();
            let address = address.trim_matches(['[', ']']);
            if address == "host-gateway" {
                self.error(
                    at,
                    format!("`{name}:host-gateway`: a pod's form has no name for the machine"),
                    "write the machine's address",
                );
            } else if address.parse::<std::net::IpAddr>().is_err() {
                self.error(
                    at,
                    format!("`{address}` is not an address"),
                    format!("write `{name}: 192.0.2.1`"),
                );
            } else {
                match by_address.iter_mut().find(|it| it.0 == address) {
                    Some((_, names)) => names.push(name),
                    None => by_address.push((address.to_owned(), vec![name])),
                }
            }
        }
        for (address, names) in by_address {
            it.add("hostAliases", json!({"ip": address, "hostnames": names}));
        }
    }

    /// Health as compose means it, acted upon: a service that is not well gets no requests, and is started
    /// again when it stays so.
    pub fn healthcheck(&mut self, node: &Node, it: &mut Service) {
        if !self.keys("`healthcheck`", node, keys::HEALTHCHECK)
            || node.get("disable").is_some_and(|it| self.flag("disable", it))
        {
            return;
        }
        let Some(test) = node.get("test") else {
            self.error(
                node.at,
                "a `healthcheck` without `test`: the image's own check is not known here",
                "write `test: [CMD, ...]`, or `disable: true`",
            );
            return;
        };
        let command: Vec<String> = match test.as_str() {
            Some(text) => ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
            None => {
                let mut words = self.texts("test", test).into_iter();
                match words.next().as_deref() {
                    Some("NONE") => return,
                    Some("CMD") => words.collect(),
                    Some("CMD-SHELL") => {
                        ["/bin/sh".to_owned(), "-c".to_owned()].into_iter().chain(words).collect()
                    }
                    _ => {
                        self.error(
                            test.at,
                            "the `test` of a health check begins with CMD, CMD-SHELL or NONE",
                            "write `test: [CMD, program, argument]`",
                        );
                        return;
                    }
                }
            }
        };
        if command.is_empty() {
            self.error(
                test.at,
                "the `test` of a health check names no program",
                "write `test: [CMD, program, argument]`",
            );
            return;
        }
        let mut time = |key: &str, default: f64| {
            node.get(key).map_or(Some(default), |it| self.time(key, it)).unwrap_or(default)
        };
        let interval = time("interval", INTERVAL_SECONDS).max(1.0);
        let timeout = time("timeout", TIMEOUT_SECONDS).max(1.0);
        let start_period = time("start_period", 0.0);
        let start_interval = time("start_interval", START_INTERVAL_SECONDS.min(interval)).max(1.0);
        let retries =
            node.get("retries").and_then(|it| self.number("retries", it, 1, 10_000)).unwrap_or(RETRIES);
        let probe = |period: f64, failures: u64| {
            json!({"exec": {"command": command}, "periodSeconds": period.ceil() as u64,
                   "timeoutSeconds": timeout.ceil() as u64, "failureThreshold": failures})
        };
        // Until it was well once, failures count only after the time that it may take to start.
        let patience = start_period + interval * retries as f64;
        it.container["startupProbe"] =
            probe(start_interval, (patience / start_interval.ceil()).ceil() as u64);
        it.container["readinessProbe"] = probe(interval, retries);
        it.container["livenessProbe"] = probe(interval, retries);
        it.has_check = true;
    }

    fn hook(&mut self, to: &str, node: &Node, it: &mut Service) {
        let items = node.items_or_one();
        let [hook] = items[..] else {
            self.error(
                node.at,
                "a pod has one hook of a kind, this is a list of several",
                "write one command that does all",
            );
            return;
        };
        if self.keys("a hook", hook, keys::HOOK)
            && let Some(command) = hook.get("command").and_then(|it| self.command("command", it))
        {
            it.container["lifecycle"][to] = json!({"exec": {"command": command}});
        }
    }
}
