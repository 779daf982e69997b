//! Containers as Docker shows them: the list and `inspect`. Pure but for the clock that says how long ago.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::answer::{NEVER, is_set, text};
use crate::container::{Container, MountPoint, State, Status};
use crate::create::command_line;
use crate::networks::{Network, endpoint_id};

/// What must be looked up to show a container.
pub struct Around<'a> {
    pub networks: &'a [Network],
    /// The pods' gateway and the length of their prefix.
    pub gateway: String,
    pub prefix: u64,
    pub now: Timestamp,
}

/// `About a minute`, as Docker counts.
pub fn human_duration(seconds: i64) -> String {
    let minutes = seconds / 60;
    let hours = ((seconds as f64 / 3600.0) + 0.5) as i64;
    match () {
        _ if seconds < 1 => "Less than a second".into(),
        _ if seconds == 1 => "1 second".into(),
        _ if seconds < 60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// `Up 2 minutes (healthy)`.
pub fn status_text(container: &Container, state: &State, now: Timestamp) -> String {
    let since = |text: &str| {
        let at = text.parse::<Timestamp>().unwrap_or(now);
        human_duration(now.duration_since(at).as_secs().max(0))
    };
    match state.status {
        Status::Created => "Created".into(),
        Status::Removing => "Removal In Progress".into(),
        Status::Restarting => {
            format!("Restarting ({}) {} ago", state.exit_code, since(&state.finished_at))
        }
        Status::Paused => format!("Up {} (Paused)", since(&state.started_at)),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, since(&state.finished_at)),
        Status::Running => {
            let health = container.health();
            let health = health.as_ref().map(|it| match text(it, "/Status") {
                "starting" => " (health: starting)".to_owned(),
                other => format!(" ({other})"),
            });
            format!("Up {}{}", since(&state.started_at), health.unwrap_or_default())
        }
    }
}

/// Ports in the list: published ones, and those that are exposed only.
fn port_list(container: &Container, up: bool) -> Vec<Value> {
    let mut list = Vec::new();
    for (port, bindings) in &container.record.ports {
        let Ok((number, protocol)) = crate::ports::parse_port(port) else { continue };
        for binding in bindings.as_array().into_iter().flatten().filter(|_| up) {
            let public = text(binding, "/HostPort").parse::<u16>().unwrap_or(0);
            list.push(json!({"IP": binding["HostIp"], "PrivatePort": number, "PublicPort": public, "Type": protocol}));
        }
    }
    let exposed = container.record.config["ExposedPorts"].as_object().into_iter().flatten();
    for (port, _) in exposed.filter(|(port, _)| up && !container.record.ports.contains_key(*port)) {
        if let Ok((number, protocol)) = crate::ports::parse_port(port) {
            list.push(json!({"PrivatePort": number, "Type": protocol}));
        }
    }
    list
}

fn endpoints(container: &Container, up: bool, around: &Around<'_>) -> Map<String, Value> {
    let address = text(&container.pod, "/status/podIP");
    let mut shown = Map::new();
    for (name, endpoint) in container.endpoints() {
        let network = around.networks.iter().find(|it| it.name == name);
        let id = network.map(|it| it.id.clone()).unwrap_or_default();
        let addressed = up && !address.is_empty() && name != "host" && name != "none";
        let hostname = text(&container.record.config, "/Hostname");
        let names = crate::networks::names(&container.name, container.id(), hostname, &endpoint);
        let aliases = &endpoint["Aliases"];
        shown.insert(
            name.clone(),
            json!({
                "IPAMConfig": null, "Links": null, "Aliases": aliases, "MacAddress": "", "DriverOpts": null,
                "GwPriority": 0, "NetworkID": id,
                "EndpointID": if up { endpoint_id(container.id(), &id) } else { String::new() },
                "Gateway": if addressed { around.gateway.as_str() } else { "" },
                "IPAddress": if addressed { address } else { "" },
                "IPPrefixLen": if addressed { around.prefix } else { 0 },
                "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
                "DNSNames": if network.is_some_and(Network::is_predefined) { Value::Null } else { json!(names) },
            }),
        );
    }
    shown
}

fn mount(point: &MountPoint) -> Value {
    let mut shown = json!({
        "Type": point.kind, "Source": point.source, "Destination": point.destination,
        "Mode": if point.read_only { "ro" } else { "" }, "RW": !point.read_only, "Propagation": "",
    });
    match point.kind.as_str() {
        "volume" => {
            shown["Name"] = json!(point.name);
            shown["Driver"] = json!("local");
        }
        "bind" => shown["Propagation"] = json!("rprivate"),
        _ => shown["Source"] = json!(""),
    }
    shown
}

/// One line of `docker ps`.
pub fn summary(container: &Container, around: &Around<'_>) -> Value {
    let (record, state) = (&container.record, container.state());
    let created = record.created.parse::<Timestamp>().map_or(0, Timestamp::as_second);
    let up = state.status.is_up();
    json!({
        "Id": record.id, "Names": [format!("/{}", container.name)], "Image": record.image,
        "ImageID": record.image_id, "Command": command_line(&record.config).join(" "), "Created": created,
        "Ports": port_list(container, up), "Labels": container.labels(),
        "State": state.status.name(), "Status": status_text(container, &state, around.now),
        "HostConfig": {"NetworkMode": network_mode(&record.host_config)},
        "NetworkSettings": {"Networks": endpoints(container, up, around)},
        "Mounts": record.mounts.iter().map(mount).collect::<Vec<_>>(),
    })
}

fn network_mode(host: &Value) -> &str {
    match text(host, "/NetworkMode") {
        "" | "default" => "bridge",
        other => other,
    }
}

/// `State` of `docker inspect`.
pub fn state(container: &Container, state: &State, pid: i32) -> Value {
    let mut shown = json!({
        "Status": state.status.name(),
        "Running": state.status.is_up(),
        "Paused": state.status == Status::Paused,
        "Restarting": state.status == Status::Restarting,
        "OOMKilled": state.out_of_memory,
        "Dead": false,
        "Pid": pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": state.started_at,
        "FinishedAt": if state.finished_at.is_empty() { NEVER } else { &state.finished_at },
    });
    if let Some(health) = container.health() {
        shown["Health"] = health;
    }
    shown
}

/// Everything.
pub fn inspect(container: &Container, around: &Around<'_>, pid: i32, execs: &[String]) -> Value {
    let (record, how) = (&container.record, container.state());
    let up = how.status.is_up();
    let mut command = command_line(&record.config).into_iter();
    let program = command.next().unwrap_or_default();
    let mut config = record.config.clone();
    if !is_set(&config["Hostname"]) {
        config["Hostname"] = json!(crate::names::short(&record.id));
    }
    config["Image"] = json!(record.image);
    for (name, value) in [("Domainname", json!("")), ("User", json!("")), ("WorkingDir", json!(""))] {
        if config[name].is_null() {
            config[name] = value;
        }
    }
    let mut host = record.host_config.clone();
    host["NetworkMode"] = json!(network_mode(&record.host_config));
    if host["RestartPolicy"].is_null() || text(&host, "/RestartPolicy/Name").is_empty() {
        host["RestartPolicy"] = json!({"Name": "no", "MaximumRetryCount": 0});
    }
    host["LogConfig"] = json!({"Type": "json-file", "Config": host["LogConfig"]["Config"].as_object().cloned()
        .unwrap_or_default()});
    for name in ["AutoRemove", "Privileged", "ReadonlyRootfs", "PublishAllPorts"] {
        if host[name].is_null() {
            host[name] = json!(false);
        }
    }
    for name in
        ["Memory", "NanoCpus", "CpuShares", "MemoryReservation", "CpuPeriod", "CpuQuota", "MemorySwap"]
    {
        if host[name].is_null() {
            host[name] = json!(0);
        }
    }
    if host["ShmSize"].as_i64().unwrap_or(0) == 0 {
        host["ShmSize"] = json!(64 << 20);
    }
    for (name, value) in [("IpcMode", "private"), ("CgroupnsMode", "private"), ("Runtime", "naru")] {
        if text(&host, &format!("/{name}")).is_empty() {
            host[name] = json!(value);
        }
    }
    let mut ports: Map<String, Value> = Map::new();
    if up {
        for port in config["ExposedPorts"].as_object().into_iter().flatten().map(|(port, _)| port) {
            ports.insert(port.clone(), Value::Null);
        }
        ports.extend(record.ports.clone());
    }
    let networks = endpoints(container, up, around);
    let bridge = networks.get("bridge").cloned().unwrap_or_default();
    let of_bridge = |name: &str| bridge[name].as_str().unwrap_or_default().to_owned();
    json!({
        "Id": record.id, "Created": record.created, "Path": program, "Args": command.collect::<Vec<_>>(),
        "State": state(container, &how, pid), "Image": record.image_id, "ResolvConfPath": "", "HostnamePath": "",
        "HostsPath": "", "LogPath": "", "Name": format!("/{}", container.name), "RestartCount": how.restarts,
        "Driver": "overlay2", "Platform": "linux", "MountLabel": "", "ProcessLabel": "", "AppArmorProfile": "",
        "ExecIDs": if execs.is_empty() { Value::Null } else { json!(execs) },
        "HostConfig": host, "GraphDriver": {"Name": "overlay2", "Data": {}},
        "Mounts": record.mounts.iter().map(mount).collect::<Vec<_>>(),
        "Config": config,
        "NetworkSettings": {
            "Bridge": "", "SandboxID": if up { text(&container.pod, "/metadata/uid") } else { "" }, "SandboxKey": "",
            "HairpinMode": false, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
            "SecondaryIPAddresses": null, "SecondaryIPv6Addresses": null, "Ports": ports,
            "EndpointID": of_bridge("EndpointID"), "Gateway": of_bridge("Gateway"),
            "IPAddress": of_bridge("IPAddress"), "IPPrefixLen": bridge["IPPrefixLen"].as_u64().unwrap_or(0),
            "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "MacAddress": "",
            "Networks": networks,
        },
    })
}

/// A mount or a network of a container has this name.
pub fn has_volume(container: &Container, wanted: &str) -> bool {
    container
        .record
        .mounts
        .iter()
        .any(|it| it.name == wanted || it.destination == wanted || it.source == wanted)
}

/// A port is exposed: `80`, `80/tcp`, `8000-8010/udp`.
pub fn exposes(container: &Container, wanted: &str) -> bool {
    let (range, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else { return false };
    let all = container.record.config["ExposedPorts"].as_object().into_iter().flatten().map(|(port, _)| port);
    all.chain(container.record.ports.keys())
        .filter_map(|it| crate::ports::parse_port(it).ok())
        .any(|(number, its)| (first..=last).contains(&number) && its == protocol)
}

/// Names in `texts` that are images of a container, for the filter `ancestor`.
pub fn is_of_image(container: &Container, wanted: &str) -> bool {
    let record = &container.record;
    let bare = |it: &str| it.strip_prefix("sha256:").unwrap_or(it).to_owned();
    let with_tag = |it: &str| if it.contains(':') { it.to_owned() } else { format!("{it}:latest") };
    record.image == wanted
        || with_tag(&record.image) == with_tag(wanted)
        || (wanted.len() >= 4 && bare(&record.image_id).starts_with(&bare(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_people_know_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (3000, "50 minutes"),
            (3700, "About an hour"),
            (200_000, "2 days"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
