//! From a create request to a Pod. Pure: what must be looked up comes in.

use serde_json::{Map, Value, json};

use crate::answer::{is_set, text, texts};
use crate::container::{CONTAINER, ENDPOINTS, LABEL_ID, Life, NAME, RECORD, Record};
use crate::engine::Config;
use crate::error::{Error, Result};
use crate::names::short;
use crate::networks::Membership;
use crate::options;

/// `docker stop` waits so long unless told otherwise.
pub const STOP_SECONDS: i64 = 10;
/// The node's own shared memory; another size is a volume.
const SHARED_MEMORY_BYTES: i64 = 64 << 20;
const SHARES_OF_A_CORE: i64 = 1024;

/// Everything that a Pod is made of.
pub struct Parts<'a> {
    pub name: &'a str,
    pub record: &'a Record,
    pub memberships: &'a [Membership],
    pub endpoints: &'a Map<String, Value>,
    /// The variables of the image; the record's are laid over them.
    pub image_environment: &'a [String],
    /// What the pod calls the image.
    pub pod_image: &'a str,
    /// The claim of each volume, by the volume's name.
    pub claims: &'a Map<String, Value>,
    pub config: &'a Config,
    /// Search domains of the machine.
    pub searches: &'a [String],
}

/// The request's configuration laid over the image's.
pub fn merge_config(request: &Value, image: &Value) -> Value {
    let mut config = request.as_object().cloned().unwrap_or_default();
    config.remove("HostConfig");
    config.remove("NetworkingConfig");
    let own = |name: &str| is_set(&request[name]);
    if texts(&request["Entrypoint"]).is_empty() {
        if texts(&request["Cmd"]).is_empty() {
            config.insert("Cmd".into(), image["Cmd"].clone());
        }
        if request["Entrypoint"].is_null() {
            config.insert("Entrypoint".into(), image["Entrypoint"].clone());
        }
    }
    // `--entrypoint ""` takes it away.
    if texts(&config.get("Entrypoint").cloned().unwrap_or_default()) == [""] {
        config.insert("Entrypoint".into(), Value::Null);
    }
    for name in ["User", "WorkingDir", "StopSignal", "Shell", "StopTimeout", "OnBuild"] {
        if !own(name) && !image[name].is_null() {
            config.insert(name.into(), image[name].clone());
        }
    }
    for name in ["Labels", "ExposedPorts", "Volumes"] {
        let mut merged = image[name].as_object().cloned().unwrap_or_default();
        merged.extend(request[name].as_object().cloned().unwrap_or_default());
        let empty = merged.is_empty() && name != "Labels";
        config.insert(name.into(), if empty { Value::Null } else { Value::Object(merged) });
    }
    let mut environment = texts(&image["Env"]);
    for entry in texts(&request["Env"]) {
        let key = entry.split('=').next().unwrap_or_default().to_owned();
        environment.retain(|it| it.split('=').next() != Some(key.as_str()));
        // A name alone takes the image's variable away.
        if entry.contains('=') {
            environment.push(entry);
        }
    }
    config.insert("Env".into(), json!(environment));
    config.insert("Healthcheck".into(), merge_check(&request["Healthcheck"], &image["Healthcheck"]));
    Value::Object(config)
}

/// What the request leaves out of the check comes from the image.
fn merge_check(request: &Value, image: &Value) -> Value {
    let (Some(own), Some(base)) = (request.as_object(), image.as_object()) else {
        return if request.is_object() { request.clone() } else { image.clone() };
    };
    let mut merged = base.clone();
    merged.extend(
        own.iter().filter(|(_, value)| is_set(value)).map(|(key, value)| (key.clone(), value.clone())),
    );
    Value::Object(merged)
}

/// The program and its arguments.
pub fn command_line(config: &Value) -> Vec<String> {
    texts(&config["Entrypoint"]).into_iter().chain(texts(&config["Cmd"])).collect()
}

/// Kubernetes reads variables in commands; Docker does not.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

pub fn life_of(host: &Value) -> Life {
    let policy = &host["RestartPolicy"];
    let (restart, retries) = match text(policy, "/Name") {
        "always" | "unless-stopped" => ("always", None),
        "on-failure" => {
            ("on-failure", policy["MaximumRetryCount"].as_u64().filter(|it| *it > 0).map(|it| it as u32))
        }
        _ => ("no", None),
    };
    Life { restart: restart.into(), retries, ..Life::default() }
}

/// `resources` of the pod's container.
pub fn resources(host: &Value) -> Result<Value> {
    let number = |name: &str| host[name].as_i64().unwrap_or(0);
    let mut limits = Map::new();
    if number("Memory") > 0 {
        limits.insert("memory".into(), json!(number("Memory").to_string()));
    }
    let cpu = match (number("NanoCpus"), number("CpuQuota")) {
        (nano, quota) if nano > 0 && quota > 0 => {
            return Err(Error::bad("Conflicting options: Nano CPUs and CPU Quota cannot both be set."));
        }
        (nano, _) if nano > 0 => Some(nano / 1_000_000),
        (_, quota) if quota > 0 => {
            let period = if number("CpuPeriod") > 0 { number("CpuPeriod") } else { 100_000 };
            Some(quota * 1000 / period)
        }
        _ => None,
    };
    if let Some(millis) = cpu {
        limits.insert("cpu".into(), json!(format!("{}m", millis.max(1))));
    }
    // Docker reserves nothing; a pod that says nothing would reserve its limits.
    let reserved = number("MemoryReservation");
    if reserved > 0 && number("Memory") > 0 && reserved > number("Memory") {
        return Err(Error::bad("Minimum memory limit can not be less than memory reservation limit"));
    }
    let shares = number("CpuShares") * 1000 / SHARES_OF_A_CORE;
    let shares = cpu.map_or(shares, |most| shares.min(most));
    // A sliver of a core: limits that come later (`docker update`) then leave the pod in its class.
    let shares = shares.max(1);
    let requests = json!({"memory": reserved.to_string(), "cpu": format!("{shares}m")});
    Ok(json!({"limits": limits, "requests": requests}))
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`; `host-gateway` is the machine.
fn host_aliases(host: &Value, config: &Config) -> Result<Vec<Value>> {
    let mut aliases = Vec::new();
    for entry in texts(&host["ExtraHosts"]) {
        let (name, address) = entry
            .split_once(['=', ':'])
            .ok_or_else(|| Error::bad(format!("bad format for add-host: {entry:?}")))?;
        let address = match address.trim_matches(['[', ']']) {
            "host-gateway" => config.gateway.to_string(),
            given if given.parse::<std::net::IpAddr>().is_ok() => given.to_owned(),
            given => return Err(Error::bad(format!("invalid IP address in add-host: {given:?}"))),
        };
        aliases.push(json!({"ip": address, "hostnames": [name.to_ascii_lowercase()]}));
    }
    Ok(aliases)
}

fn dns(parts: &Parts<'_>, host: &Value) -> (Value, Value) {
    let (servers, searches, options) =
        (texts(&host["Dns"]), texts(&host["DnsSearch"]), texts(&host["DnsOptions"]));
    let on_host = text(host, "/NetworkMode") == "host";
    let ours = parts.config.name_server.filter(|_| !on_host);
    if ours.is_none() && servers.is_empty() && searches.is_empty() && options.is_empty() {
        return (json!("Default"), Value::Null);
    }
    // The cluster's own first where names of neighbours are to be found; it asks the machine's for the rest.
    let own = ours.filter(|_| servers.is_empty() || !parts.memberships.is_empty());
    let servers: Vec<String> = own.map(|it| it.to_string()).into_iter().chain(servers).take(3).collect();
    let searches = if searches.is_empty() { parts.searches.to_vec() } else { searches };
    let searches: Vec<&String> = searches.iter().filter(|it| *it != ".").collect();
    let mut list: Vec<Value> = options
        .iter()
        .map(|it| match it.split_once(':') {
            Some((name, value)) => json!({"name": name, "value": value}),
            None => json!({"name": it}),
        })
        .collect();
    if !options.iter().any(|it| it.starts_with("ndots")) {
        list.push(json!({"name": "ndots", "value": "0"}));
    }
    (json!("None"), json!({"nameservers": servers, "searches": searches, "options": list}))
}

/// Volumes of the pod and mounts of its container.
fn volumes(parts: &Parts<'_>, host: &Value) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    for (number, point) in parts.record.mounts.iter().enumerate() {
        let name = format!("m{number}");
        let mut volume = match point.kind.as_str() {
            "volume" => json!({"persistentVolumeClaim": {"claimName": parts.claims[&point.name]}}),
            "bind" => json!({"hostPath": {"path": point.source, "type": ""}}),
            _ => {
                let mut memory = json!({"medium": "Memory"});
                if !point.source.is_empty() {
                    memory["sizeLimit"] = json!(point.source);
                }
                json!({"emptyDir": memory})
            }
        };
        volume["name"] = json!(name);
        volumes.push(volume);
        mounts.push(json!({"name": name, "mountPath": point.destination, "readOnly": point.read_only}));
    }
    let shared = host["ShmSize"].as_i64().unwrap_or(0);
    if shared < 0 {
        return Err(Error::bad("SHM size can not be less than 0"));
    }
    let taken = parts.record.mounts.iter().any(|it| it.destination == "/dev/shm");
    if shared > 0 && shared != SHARED_MEMORY_BYTES && !taken {
        volumes
            .push(json!({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared.to_string()}}));
        mounts.push(json!({"name": "shm", "mountPath": "/dev/shm"}));
    }
    Ok((volumes, mounts))
}

fn ports(record: &Record) -> Vec<Value> {
    let chosen = crate::ports::chosen(&record.ports);
    chosen
        .into_iter()
        .map(|it| {
            let mut port = json!({"containerPort": it.port, "hostPort": it.host.0,
                "protocol": it.protocol.to_uppercase()});
            if let Some(address) = it.address {
                port["hostIP"] = json!(address);
            }
            port
        })
        .collect()
}

fn capabilities(host: &Value) -> Value {
    let names = |field: &str| -> Vec<String> {
        let list = texts(&host[field]).into_iter();
        list.map(|it| it.to_ascii_uppercase().trim_start_matches("CAP_").to_owned()).collect()
    };
    json!({"add": names("CapAdd"), "drop": names("CapDrop")})
}

/// What the node is told in [`naru_objects::labels::OPTIONS`].
fn node_options(record: &Record, image_environment: &[String]) -> Result<Value> {
    let (config, host) = (&record.config, &record.host_config);
    // Nothing of the cluster is a container's affair.
    let mut told = Map::from_iter([("plainEnvironment".to_owned(), json!(true))]);
    if is_set(&config["User"]) {
        told.insert("user".into(), config["User"].clone());
    }
    let processes = host["PidsLimit"].as_i64().unwrap_or(0);
    if processes > 0 {
        told.insert("pidsMax".into(), json!(processes));
    }
    let name = |it: &String| it.split('=').next().unwrap_or_default().to_owned();
    let kept: Vec<String> = texts(&config["Env"]).iter().map(name).collect();
    let gone: Vec<String> = image_environment.iter().map(name).filter(|it| !kept.contains(it)).collect();
    if !gone.is_empty() {
        told.insert("unset".into(), json!(gone));
    }
    let hostname = text(config, "/Hostname");
    if !hostname.is_empty() {
        let fine = hostname.len() <= 64
            && hostname.bytes().all(|it| it.is_ascii_alphanumeric() || b".-_".contains(&it))
            && !hostname.starts_with(['-', '.']);
        if !fine {
            return Err(Error::bad(format!("invalid hostname format: {hostname}")));
        }
        told.insert("hostname".into(), json!(hostname));
    }
    let mut limits = Vec::new();
    for limit in host["Ulimits"].as_array().into_iter().flatten() {
        let number = |name: &str| match limit[name].as_i64() {
            // "Without end" is the largest number.
            Some(-1) => Ok(u64::MAX),
            Some(it) if it >= 0 => Ok(it as u64),
            _ => Err(Error::bad(format!("invalid ulimit: {limit}"))),
        };
        let (soft, hard) = (number("Soft")?, number("Hard")?);
        if soft > hard {
            return Err(Error::bad(format!(
                "ulimit soft limit must be less than or equal to hard limit: {limit}"
            )));
        }
        limits.push(json!({"name": limit["Name"], "soft": soft, "hard": hard}));
    }
    if !limits.is_empty() {
        told.insert("limits".into(), json!(limits));
    }
    Ok(Value::Object(told))
}

fn security(host: &Value) -> Result<Value> {
    let security = options::security(&host["SecurityOpt"])?;
    let privileged = host["Privileged"] == true;
    let mut told = json!({
        "privileged": privileged,
        "capabilities": capabilities(host),
        "readOnlyRootFilesystem": host["ReadonlyRootfs"] == true,
    });
    // A privileged program may always become more.
    if !privileged {
        told["allowPrivilegeEscalation"] = json!(!security.no_new_privileges);
        told["seccompProfile"] =
            json!({"type": if security.unfiltered { "Unconfined" } else { "RuntimeDefault" }});
    }
    if security.unmasked {
        told["procMount"] = json!("Unmasked");
    }
    Ok(told)
}

/// `TERM`, `SIGTERM`, `15`: as a Pod names it.
pub fn signal_name(signal: &str) -> Result<String> {
    let number = signal_number(signal)?;
    let named = nix::sys::signal::Signal::try_from(number).map(|it| it.as_str().to_owned());
    Ok(named.unwrap_or_else(|_| match number - RT_MIN {
        0 => "SIGRTMIN".into(),
        more => format!("SIGRTMIN+{more}"),
    }))
}

const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

pub fn signal_number(signal: &str) -> Result<i32> {
    let wrong = || Error::bad(format!("invalid signal: {signal}"));
    if let Ok(number) = signal.parse::<i32>() {
        return (1..=RT_MAX).contains(&number).then_some(number).ok_or_else(wrong);
    }
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(found) = format!("SIG{name}").parse::<nix::sys::signal::Signal>() {
        return Ok(found as i32);
    }
    let more = |it: &str| if it.is_empty() { Some(0) } else { it[1..].parse::<i32>().ok() };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return more(rest).map(|it| RT_MIN + it).filter(|it| *it <= RT_MAX).ok_or_else(wrong);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return more(rest).map(|it| RT_MAX - it).filter(|it| *it >= RT_MIN).ok_or_else(wrong);
    }
    Err(wrong())
}

/// The Pod of a container that has not been started.
pub fn lower(parts: &Parts<'_>) -> Result<Value> {
    let (record, config, host) = (parts.record, &parts.record.config, &parts.record.host_config);
    let command = command_line(config);
    if command.is_empty() {
        return Err(Error::bad("no command specified"));
    }
    let environment: Vec<Value> = texts(&config["Env"])
        .iter()
        .filter_map(|it| it.split_once('='))
        .map(|(name, value)| json!({"name": name, "value": literal(value)}))
        .collect();
    let groups: Vec<u32> = texts(&host["GroupAdd"])
        .iter()
        .map(|it| {
            let named = || Error::refused(format!("--group-add {it}: write the group's number"));
            it.parse().map_err(|_| named())
        })
        .collect::<Result<_>>()?;
    let sysctls: Vec<Value> = host["Sysctls"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    let (volumes, mounts) = volumes(parts, host)?;
    let (dns_policy, dns_config) = dns(parts, host);
    let terminal = config["Tty"] == true;
    let mut container = json!({
        "name": CONTAINER,
        "image": parts.pod_image,
        "imagePullPolicy": "Never",
        "command": command.iter().map(|it| literal(it)).collect::<Vec<_>>(),
        "env": environment,
        "ports": ports(record),
        "resources": resources(host)?,
        "securityContext": security(host)?,
        "volumeMounts": mounts,
        "stdin": config["OpenStdin"] == true,
        // Who leaves a terminal leaves it as it is.
        "stdinOnce": config["StdinOnce"] == true && !terminal,
        "tty": terminal,
    });
    if is_set(&config["WorkingDir"]) {
        container["workingDir"] = config["WorkingDir"].clone();
    }
    if is_set(&config["StopSignal"]) {
        container["lifecycle"] = json!({"stopSignal": signal_name(text(config, "/StopSignal"))?});
    }
    let life = life_of(host);
    let mut labels = crate::networks::labels(parts.memberships);
    labels.insert(LABEL_ID.into(), json!(short(&record.id)));
    let stop = config["StopTimeout"].as_i64().unwrap_or(STOP_SECONDS);
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{}-{}", crate::names::object_name(parts.name), &record.id[..8]),
            "namespace": parts.config.namespace,
            "labels": labels,
            "annotations": {
                NAME: parts.name,
                RECORD: serde_json::to_string(record).expect("a record is plain data"),
                ENDPOINTS: Value::Object(parts.endpoints.clone()).to_string(),
                naru_objects::labels::LIFE: serde_json::to_string(&life).expect("plain data"),
                naru_objects::labels::OPTIONS: node_options(record, parts.image_environment)?.to_string(),
                naru_objects::labels::NETWORKS: crate::networks::annotation(parts.memberships).to_string(),
            },
        },
        "spec": {
            "nodeName": parts.config.node_name,
            "os": {"name": "linux"},
            "restartPolicy": match life.restart.as_str() {
                "always" => "Always",
                "on-failure" => "OnFailure",
                _ => "Never",
            },
            "terminationGracePeriodSeconds": stop.max(0),
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "hostname": short(&record.id),
            "hostNetwork": text(host, "/NetworkMode") == "host",
            "hostPID": text(host, "/PidMode") == "host",
            "hostIPC": text(host, "/IpcMode") == "host",
            "shareProcessNamespace": host["Init"] == true && text(host, "/PidMode") != "host",
            "dnsPolicy": dns_policy,
            "dnsConfig": dns_config,
            "hostAliases": host_aliases(host, parts.config)?,
            "securityContext": {"sysctls": sysctls, "supplementalGroups": groups},
            "containers": [container],
            "volumes": volumes,
        },
    }))
}

#[cfg(test)]
#[path = "create_test.rs"]
mod tests;
