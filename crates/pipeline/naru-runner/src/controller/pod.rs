//! A job's pod as an object: its container, the services beside it, and what they share. Pure.

use crate::launch::Launch;
use naru_plan::Container;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The volume that all steps share.
pub const WORKSPACE_VOLUME: &str = "workspace";

/// The container that runs the steps.
pub const JOB_CONTAINER: &str = "job";

/// The variable with which a pod that asks for its job proves who it is. Steps do not see it.
pub const WAIT_TOKEN: &str = "NARU_WAIT_TOKEN";

/// The name under which pods reach the daemon. GitHub's own clients take a server for one of GitHub's, and
/// not for an old GitHub Enterprise Server, by its name: `github.com`, `*.ghe.com` and `*.localhost` pass
/// (`isGhes` in actions/toolkit).
pub const SERVER_HOST: &str = "naru.localhost";

/// Memory that one job may use: enough for a Rust build, and the machine survives a leak.
const JOB_MEMORY: &str = "4Gi";

/// What one job may write, in its workspace and beside it, each: as much as GitHub's machines have.
pub const JOB_DISK: &str = "14Gi";

/// Beyond the time for `always()` steps: what the runner itself needs to end.
const GRACE_MORE_SECONDS: u64 = 10;

/// What a job's pod is made of; every expression is computed.
pub struct JobPod<'a> {
    pub metadata: Value,
    pub image: &'a str,
    pub container: Option<&'a Container>,
    pub services: &'a [(String, Container)],
    /// Where the pod asks for what it is to do, and with what it proves that it is itself. A job's file is in no
    /// object and on no disk.
    pub url: &'a str,
    pub token: &'a str,
    /// How our own program is started in any image.
    pub launch: &'a Launch,
    /// Where pods reach the daemon.
    pub server: IpAddr,
    pub cancel_timeout_minutes: u64,
    /// What it may write.
    pub disk: &'a str,
}

/// Something of a container that cannot be honoured; `line` is that in the workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub line: u32,
    pub message: String,
}

impl Refused {
    /// With the file that the line is of.
    pub fn at(&self, file: &str) -> String {
        format!("{file}:{}: {}", self.line, self.message)
    }
}

pub fn job_pod(job: &JobPod<'_>) -> Result<Value, Refused> {
    let mut volumes = vec![json!({"name": "workspace", "emptyDir": {"sizeLimit": job.disk}})];
    for (number, (path, _)) in job.launch.mounts.iter().enumerate() {
        volumes.push(json!({"name": format!("runner-{number}"), "hostPath": {"path": path, "type": "File"}}));
    }
    let mut aliases = vec![json!({"ip": job.server.to_string(), "hostnames": [SERVER_HOST]})];
    let mut services = Vec::new();
    let mut taken: BTreeMap<String, &str> = BTreeMap::new();
    for (name, service) in job.services {
        for port in &service.ports {
            let port = port_of(service, port)?;
            if let Some(other) = taken.insert(format!("{}/{}", port.container, port.protocol), name) {
                let message = format!(
                    "the services `{other}` and `{name}` both listen on port {}, and share one network; let one \
                     listen on another port",
                    port.container
                );
                return Err(Refused { line: service.line, message });
            }
        }
        services.push(service_container(name, service, &mut volumes)?);
    }
    if !job.services.is_empty() {
        let names: Vec<&str> = job.services.iter().map(|(name, _)| name.as_str()).collect();
        aliases.push(json!({"ip": "127.0.0.1", "hostnames": names}));
    }
    let mut container = match job.container {
        Some(it) => container_of(JOB_CONTAINER, it, &mut volumes)?,
        None => json!({"name": JOB_CONTAINER, "image": job.image}),
    };
    let mut command = job.launch.command.clone();
    command.extend(["__job", "--wait", job.url].map(str::to_owned));
    let mut env = container["env"].as_array().cloned().unwrap_or_default();
    env.push(json!({"name": WAIT_TOKEN, "value": job.token}));
    container["env"] = json!(env);
    let mut mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
    container["command"] = json!(command);
    container["workingDir"] = json!("/workspace");
    if container["resources"].is_null() {
        container["resources"] = json!({"limits": {"memory": JOB_MEMORY}, "requests": {"cpu": "100m"}});
    }
    // Nothing is set aside for it: most jobs write little.
    container["resources"]["limits"]["ephemeral-storage"] = json!(job.disk);
    container["resources"]["requests"]["ephemeral-storage"] = json!("0");
    mounts.push(json!({"name": "workspace", "mountPath": "/workspace"}));
    for (number, (_, inside)) in job.launch.mounts.iter().enumerate() {
        let name = format!("runner-{number}");
        mounts.push(json!({"name": name, "mountPath": inside, "readOnly": true}));
    }
    container["volumeMounts"] = json!(mounts);
    // No program of an image makes more of a step than it is: setuid means nothing, `sudo` neither needs it.
    for it in services.iter_mut().chain([&mut container]) {
        it["securityContext"]["allowPrivilegeEscalation"] = json!(false);
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": job.metadata,
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": job.cancel_timeout_minutes * 60 + GRACE_MORE_SECONDS,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "hostAliases": aliases,
            // Sidecars: the steps begin once each has come up, and end them with their own end.
            "initContainers": services,
            "containers": [container],
            "volumes": volumes,
        },
    }))
}

/// A service comes up before the steps: by its health command if it has one, else as soon as it runs.
fn service_container(name: &str, service: &Container, volumes: &mut Vec<Value>) -> Result<Value, Refused> {
    let mut container = container_of(name, service, volumes)?;
    container["restartPolicy"] = json!("Always");
    Ok(container)
}

/// What a container of a workflow is as one of a pod.
fn container_of(name: &str, it: &Container, volumes: &mut Vec<Value>) -> Result<Value, Refused> {
    let refuse = |message: String| Refused { line: it.line, message };
    if it.credentials.is_some() {
        return Err(refuse(format!(
            "the credentials of `{name}`: give them to the daemon instead (`naru serve --docker-config`), or make \
             an image pull secret of the namespace's default service account"
        )));
    }
    let mut env: Vec<Value> =
        it.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let mut mounts = Vec::new();
    let mut options = Options::default();
    options.read(&it.options).map_err(|message| refuse(format!("the options of `{name}`: {message}")))?;
    env.extend(options.env.iter().map(|(name, value)| json!({"name": name, "value": value})));
    for volume in it.volumes.iter().chain(&options.volumes) {
        let parts: Vec<&str> = volume.split(':').collect();
        let (source, target, read_only) = match parts.as_slice() {
            [target] => ("", *target, false),
            [source, target] => (*source, *target, false),
            [source, target, mode] => (*source, *target, mode.split(',').any(|it| it == "ro")),
            _ => return Err(refuse(format!("the volume `{volume}` of `{name}` is not SOURCE:TARGET[:ro]"))),
        };
        if !target.starts_with('/') {
            return Err(refuse(format!("the volume `{volume}` of `{name}` needs an absolute path inside")));
        }
        if source.starts_with('/') || source.starts_with('.') {
            // A workflow comes with every push; the machine's own files are not for it to take.
            return Err(refuse(format!(
                "the volume `{volume}` of `{name}` is a path of the machine, which workflows may not have; name a \
                 volume, or leave the source out"
            )));
        }
        let volume_name = if source.is_empty() {
            format!("{name}-{}", mounts.len())
        } else {
            format!("shared-{}", naru_objects::dns_label(source, 50))
        };
        let volume_name = naru_objects::dns_label(&volume_name, 60);
        if !volumes.iter().any(|it| it["name"] == volume_name.as_str()) {
            volumes.push(json!({"name": volume_name, "emptyDir": {}}));
        }
        mounts.push(json!({"name": volume_name, "mountPath": target, "readOnly": read_only}));
    }
    for (number, target) in options.tmpfs.iter().enumerate() {
        let volume = naru_objects::dns_label(&format!("{name}-tmpfs-{number}"), 60);
        volumes.push(json!({"name": volume, "emptyDir": {"medium": "Memory"}}));
        mounts.push(json!({"name": volume, "mountPath": target}));
    }
    let mut container = json!({
        "name": naru_objects::dns_label(name, 60), "image": it.image, "env": env, "volumeMounts": mounts,
        "imagePullPolicy": "IfNotPresent",
    });
    let entrypoint = if it.entrypoint.is_empty() { &options.entrypoint } else { &it.entrypoint };
    if !entrypoint.is_empty() {
        container["command"] = json!(words(entrypoint).map_err(&refuse)?);
    }
    if !it.command.is_empty() {
        container["args"] = json!(words(&it.command).map_err(&refuse)?);
    }
    if let Some(memory) = &options.memory {
        container["resources"]["limits"]["memory"] = json!(memory);
    }
    if let Some(cpus) = &options.cpus {
        container["resources"]["limits"]["cpu"] = json!(cpus);
    }
    if let Some(user) = &options.user {
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(u, g)| (u, Some(g)));
        let number = |it: &str| {
            it.parse::<u32>().map_err(|_| {
                refuse(format!("the user `{user}` of `{name}`: give numbers, names are the image's own"))
            })
        };
        container["securityContext"]["runAsUser"] = json!(number(uid)?);
        if let Some(gid) = gid {
            container["securityContext"]["runAsGroup"] = json!(number(gid)?);
        }
    }
    if let Some(command) = &options.health.command {
        let health = &options.health;
        container["startupProbe"] = json!({
            "exec": {"command": ["sh", "-c", command]},
            "periodSeconds": health.interval.max(1), "timeoutSeconds": health.timeout.max(1),
            "initialDelaySeconds": 0,
            // What Docker gives it before it counts failures, in tries, and its retries.
            "failureThreshold": (health.start_period / health.interval.max(1) + health.retries).max(1),
        });
    }
    Ok(container)
}

/// One of `ports`: `80`, `8080:80`, `8080:80/udp`, `127.0.0.1:8080:80`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Where steps on the runner's image look for it; 0 means any, which is then the container's own.
    pub host: u16,
    pub container: u16,
    pub protocol: String,
}

pub fn port_of(container: &Container, text: &str) -> Result<Port, Refused> {
    let refuse =
        || Refused { line: container.line, message: format!("`{text}` is not a port: write 8080:80") };
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp") {
        return Err(refuse());
    }
    let parts: Vec<&str> = ports.rsplitn(3, ':').collect();
    let number = |it: &str| it.parse::<u16>().map_err(|_| refuse());
    let inside = number(parts[0])?;
    if inside == 0 {
        return Err(refuse());
    }
    let host = match parts.get(1) {
        Some(&"") | None => inside,
        Some(it) => number(it)?,
    };
    Ok(Port { host: if host == 0 { inside } else { host }, container: inside, protocol: protocol.into() })
}

/// What the steps find of the services under other ports, as pairs of theirs and the service's; and the `job`
/// context, which says where each service is.
pub fn reached(
    services: &[(String, Container)],
    in_container: bool,
) -> Result<(Vec<(u16, u16)>, Value), Refused> {
    let mut forwards = Vec::new();
    let mut described = serde_json::Map::new();
    for (name, service) in services {
        let mut ports = serde_json::Map::new();
        for text in &service.ports {
            let port = port_of(service, text)?;
            // Steps in a container reach a service by its name and its own ports.
            let host = if in_container { port.container } else { port.host };
            if host != port.container {
                if port.protocol != "tcp" {
                    let message = format!("`{text}`: only TCP can be reached under another port");
                    return Err(Refused { line: service.line, message });
                }
                forwards.push((host, port.container));
            }
            ports.insert(port.container.to_string(), json!(host.to_string()));
        }
        described.insert(name.clone(), json!({"id": name, "ports": ports, "network": "pod"}));
    }
    let container = if in_container { json!({"id": JOB_CONTAINER, "network": "pod"}) } else { json!({}) };
    Ok((forwards, json!({"services": described, "container": container})))
}

/// What of `docker create`'s options a container of a workflow may have.
#[derive(Debug, Default, PartialEq)]
struct Options {
    env: Vec<(String, String)>,
    volumes: Vec<String>,
    tmpfs: Vec<String>,
    user: Option<String>,
    entrypoint: String,
    memory: Option<String>,
    cpus: Option<String>,
    health: Health,
}

#[derive(Debug, PartialEq)]
struct Health {
    command: Option<String>,
    interval: u64,
    timeout: u64,
    retries: u64,
    start_period: u64,
}

impl Default for Health {
    /// Docker's own.
    fn default() -> Self {
        Self { command: None, interval: 30, timeout: 30, retries: 3, start_period: 0 }
    }
}

impl Options {
    fn read(&mut self, text: &str) -> Result<(), String> {
        let words = words(text)?;
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(a, b)| (a, Some(b)));
            if name == "--no-healthcheck" {
                self.health.command = None;
                continue;
            }
            let value = match value {
                Some(it) => it,
                None => words.next().ok_or_else(|| format!("`{name}` needs a value"))?,
            };
            match name {
                "--health-cmd" => self.health.command = Some(value.to_owned()),
                "--health-interval" => self.health.interval = seconds(value)?,
                "--health-timeout" => self.health.timeout = seconds(value)?,
                "--health-start-period" => self.health.start_period = seconds(value)?,
                "--health-start-interval" => {
                    seconds(value)?;
                }
                "--health-retries" => {
                    self.health.retries = value.parse().map_err(|_| format!("`{value}` is not a number"))?;
                }
                "-e" | "--env" => {
                    let (name, value) = value.split_once('=').unwrap_or((value, ""));
                    self.env.push((name.to_owned(), value.to_owned()));
                }
                "-v" | "--volume" => self.volumes.push(value.to_owned()),
                "--tmpfs" => self.tmpfs.push(value.split(':').next().unwrap_or(value).to_owned()),
                "-u" | "--user" => self.user = Some(value.to_owned()),
                "--entrypoint" => value.clone_into(&mut self.entrypoint),
                "-m" | "--memory" => self.memory = Some(memory(value)?),
                "--cpus" => self.cpus = Some(value.to_owned()),
                // All of a job's containers share one network and one set of names anyway.
                "--name" | "--hostname" | "-h" | "--network-alias" | "--shm-size" | "--ulimit" => {
                    if matches!(name, "--shm-size" | "--ulimit") {
                        return Err(format!("`{name}` cannot be honoured; take it out"));
                    }
                }
                other => {
                    return Err(format!(
                        "`{other}` cannot be honoured; known are --health-*, --env, --volume, --tmpfs, --user, \
                         --entrypoint, --memory, --cpus, --name, --hostname and --network-alias"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A duration of Go's: `10s`, `1m30s`, `500ms`, in whole seconds, at least one if it is any.
fn seconds(text: &str) -> Result<u64, String> {
    let fail = || format!("`{text}` is not a duration: write 10s or 1m30s");
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|it: char| !it.is_ascii_digit() && it != '.').ok_or_else(fail)?;
        let number: f64 = rest[..end].parse().map_err(|_| fail())?;
        let (unit, length) = match &rest[end..] {
            it if it.starts_with("ms") => (0.001, 2),
            it if it.starts_with('s') => (1.0, 1),
            it if it.starts_with('m') => (60.0, 1),
            it if it.starts_with('h') => (3600.0, 1),
            _ => return Err(fail()),
        };
        total += number * unit;
        rest = &rest[end + length..];
    }
    Ok(total.ceil() as u64)
}

/// `512m`, `2g` in Docker's words to those of Kubernetes.
fn memory(text: &str) -> Result<String, String> {
    let lower = text.to_lowercase();
    let end = lower.find(|it: char| !it.is_ascii_digit()).unwrap_or(lower.len());
    let unit = match &lower[end..] {
        "" | "b" => "",
        "k" | "kb" => "Ki",
        "m" | "mb" => "Mi",
        "g" | "gb" => "Gi",
        _ => return Err(format!("`{text}` is not a size: write 512m or 2g")),
    };
    if end == 0 {
        return Err(format!("`{text}` is not a size: write 512m or 2g"));
    }
    Ok(format!("{}{unit}", &lower[..end]))
}

/// A command line's words as a shell would split them; nothing is expanded.
pub fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quotation mark is never closed".into());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ports: &[&str], options: &str) -> Container {
        Container {
            image: "postgres:16".into(),
            ports: ports.iter().map(|it| (*it).to_owned()).collect(),
            options: options.into(),
            line: 7,
            ..Container::default()
        }
    }

    fn pod(services: &[(String, Container)]) -> Result<Value, Refused> {
        job_pod(&JobPod {
            metadata: json!({"name": "p"}),
            image: "host",
            container: None,
            services,
            url: "http://naru.localhost:1/_apis/jobs/p",
            token: "t",
            launch: &Launch {
                mounts: vec![("/usr/bin/naru".into(), "/naru/bin/naru".into())],
                command: vec!["/naru/bin/naru".into()],
            },
            server: IpAddr::from([10, 88, 0, 1]),
            cancel_timeout_minutes: 5,
            disk: JOB_DISK,
        })
    }

    #[test]
    fn steps_wait_for_a_service_until_its_health_command_holds() {
        let options = "--health-cmd \"pg_isready -U 'me'\" --health-interval=10s --health-timeout 5s --health-retries 5";
        let pod = pod(&[("db".into(), service(&["5432:5432"], options))]).unwrap();
        let db = &pod["spec"]["initContainers"][0];
        assert_eq!(db["restartPolicy"], "Always");
        assert_eq!(db["startupProbe"]["exec"]["command"], json!(["sh", "-c", "pg_isready -U 'me'"]));
        assert_eq!(
            (&db["startupProbe"]["periodSeconds"], &db["startupProbe"]["failureThreshold"]),
            (&json!(10), &json!(5))
        );
        assert_eq!(pod["spec"]["hostAliases"][1], json!({"ip": "127.0.0.1", "hostnames": ["db"]}));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_its_line() {
        let of = |it: Container| pod(&[("db".into(), it)]).unwrap_err();
        assert!(of(service(&[], "--privileged x")).message.contains("`--privileged` cannot be honoured"));
        assert_eq!(
            of(service(&["x:1"], "")),
            Refused { line: 7, message: "`x:1` is not a port: write 8080:80".into() }
        );
        let host_path = Container { volumes: vec!["/var/run/docker.sock:/s".into()], ..service(&[], "") };
        assert!(of(host_path).message.contains("is a path of the machine"));
        let both = [("a".to_owned(), service(&["1:80"], "")), ("b".to_owned(), service(&["2:80"], ""))];
        assert!(pod(&both).unwrap_err().message.contains("both listen on port 80"));
    }

    #[test]
    fn durations_sizes_and_words_are_read_as_docker_reads_them() {
        assert_eq!((seconds("1m30s"), seconds("500ms")), (Ok(90), Ok(1)));
        assert_eq!((memory("512m").as_deref(), memory("2GB").as_deref()), (Ok("512Mi"), Ok("2Gi")));
        assert_eq!(words(r#"a "b c" 'd e'\ f ''"#).unwrap(), ["a", "b c", "d e f", ""]);
        assert_eq!(port_of(&service(&[], ""), "127.0.0.1:8080:80/udp").unwrap().host, 8080);
    }
}
