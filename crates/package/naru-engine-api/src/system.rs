//! `_ping`, `version`, `info`, `system df`, `auth`, and what a single machine is no part of.

use std::path::Path;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::answer::{json as answer, json_body, parse_time, text};
use crate::container::Status;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// The API's versions that are spoken.
pub const API_MAX: (u32, u32) = (1, 47);
pub const API_MIN: (u32, u32) = (1, 24);

pub fn version_text((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

pub async fn ping() -> Response {
    let mut response = "OK".into_response();
    let headers = response.headers_mut();
    headers.insert("builder-version", HeaderValue::from_static("2"));
    headers.insert("docker-experimental", HeaderValue::from_static("false"));
    headers.insert("swarm", HeaderValue::from_static("inactive"));
    headers.insert("cache-control", HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert("pragma", HeaderValue::from_static("no-cache"));
    response
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// As Go names it.
fn architecture() -> &'static str {
    naru_image::oci::architecture()
}

pub async fn version(State(engine): State<Engine>) -> Response {
    let (kernel, own) = (read("/proc/sys/kernel/osrelease"), engine.config.version.clone());
    let (max, min) = (version_text(API_MAX), version_text(API_MIN));
    answer(json!({
        "Platform": {"Name": "Naru"},
        "Components": [{"Name": "Engine", "Version": own, "Details": {"ApiVersion": max, "MinAPIVersion": min,
            "Os": "linux", "Arch": architecture(), "KernelVersion": kernel, "GitCommit": "", "GoVersion": "",
            "BuildTime": "", "Experimental": "false"}}],
        "Version": own, "ApiVersion": max, "MinAPIVersion": min, "GitCommit": "", "GoVersion": "", "Os": "linux",
        "Arch": architecture(), "KernelVersion": kernel, "BuildTime": "",
    }))
}

/// Of the whole machine.
pub fn memory_bytes() -> u64 {
    let text = read("/proc/meminfo");
    let total = text
        .lines()
        .find_map(|it| it.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    total.unwrap_or(0) * 1024
}

fn os_name() -> String {
    let text = read("/etc/os-release");
    let name = text.lines().find_map(|it| it.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

pub async fn info(State(engine): State<Engine>) -> Result<Response> {
    let states: Vec<Status> = engine.containers().iter().map(|it| it.state().status).collect();
    let count = |wanted: &[Status]| states.iter().filter(|it| wanted.contains(it)).count();
    let (images, _) = crate::images::usage(&engine)?;
    let machine = match architecture() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    let cgroup = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" };
    let processors = std::thread::available_parallelism().map_or(1, |it| it.get());
    let mut told = json!({
        "ID": crate::names::id_of(&read("/etc/machine-id")), "Name": engine.config.node_name,
        "Containers": states.len(), "ContainersRunning": count(&[Status::Running, Status::Restarting]),
        "ContainersPaused": count(&[Status::Paused]),
        "ContainersStopped": count(&[Status::Created, Status::Exited, Status::Removing]),
        "Images": images.len(), "Driver": "overlay2", "DriverStatus": [["Backing Store", "naru"]],
        "Plugins": {"Volume": ["local"], "Network": ["bridge", "host", "null"], "Authorization": null,
            "Log": ["json-file", "local"]},
        "MemoryLimit": true, "SwapLimit": false, "CpuCfsPeriod": true, "CpuCfsQuota": true, "CPUShares": true,
        "CPUSet": false, "PidsLimit": true, "IPv4Forwarding": true, "Debug": false, "NFd": 0,
        "OomKillDisable": false, "NGoroutines": 0, "SystemTime": crate::answer::now(), "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs", "CgroupVersion": cgroup, "NEventsListener": 0,
    });
    let more = json!({
        "KernelVersion": read("/proc/sys/kernel/osrelease"), "OperatingSystem": os_name(), "OSVersion": "",
        "OSType": "linux", "Architecture": machine, "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": ["127.0.0.0/8"], "Mirrors": []},
        "NCPU": processors, "MemTotal": memory_bytes(), "GenericResources": null,
        "DockerRootDir": engine.config.data_dir, "HttpProxy": "", "HttpsProxy": "", "NoProxy": "",
        "Labels": [], "ExperimentalBuild": false, "ServerVersion": engine.config.version,
        "Runtimes": {"naru": {"path": "naru"}}, "DefaultRuntime": "naru",
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false,
            "Error": "", "RemoteManagers": null},
        "LiveRestoreEnabled": true, "Isolation": "", "InitBinary": "naru", "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""}, "InitCommit": {"ID": ""},
        "SecurityOptions": ["name=seccomp,profile=builtin"], "Warnings": [],
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        told[name] = value.clone();
    }
    Ok(answer(told))
}

pub async fn df(State(engine): State<Engine>) -> Result<Response> {
    let collected = tokio::task::spawn_blocking(move || {
        let (images, layers) = crate::images::usage(&engine)?;
        let networks = engine.networks();
        let around = engine.around(&networks);
        let containers: Vec<Value> = engine
            .containers()
            .iter()
            .map(|it| {
                let mut shown = crate::view::summary(it, &around);
                let files = engine.node.files(it.namespace(), it.pod_name()).ok().flatten();
                shown["SizeRw"] = json!(files.map_or(0, |it| bytes_below(&it.upper)));
                shown["SizeRootFs"] = shown["SizeRw"].clone();
                shown
            })
            .collect();
        Ok::<_, Error>(json!({"LayersSize": layers, "Images": images, "Containers": containers,
            "Volumes": crate::volumes::usage(&engine), "BuildCache": []}))
    });
    Ok(answer(collected.await.map_err(|it| Error::server(it.to_string()))??))
}

/// `docker login`: whether a registry takes a password is seen when it is used.
pub async fn auth(body: Body) -> Result<Response> {
    let login = json_body(body).await?;
    if text(&login, "/username").is_empty() && text(&login, "/identitytoken").is_empty() {
        return Err(Error::bad("no username and password given"));
    }
    Ok(answer(json!({"Status": "Login Succeeded", "IdentityToken": ""})))
}

/// Swarm, services, secrets of a swarm: Docker's own words.
pub async fn no_swarm() -> Result<Response> {
    Err(Error::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. Naru runs Deployments instead: see kubectl",
    ))
}

pub async fn no_plugins() -> Response {
    answer(json!([]))
}

pub async fn not_found() -> Result<Response> {
    Err(Error::missing("page not found"))
}

/// Only this machine's.
pub fn check_platform(platform: Option<&str>) -> Result<()> {
    let Some(platform) = platform else { return Ok(()) };
    // In later versions it is a JSON object.
    let plain = match serde_json::from_str::<Value>(platform) {
        Ok(it) if it.is_object() => format!("{}/{}", text(&it, "/os"), text(&it, "/architecture")),
        _ => platform.to_owned(),
    };
    let ours = format!("linux/{}", architecture());
    if plain == "linux" || plain == ours || plain.starts_with(&format!("{ours}/")) {
        return Ok(());
    }
    Err(Error::refused(format!("--platform {plain} is not supported: this machine is {ours}")))
}

/// `until` of a prune: a time, or how long ago (`24h`).
pub fn until(given: &str) -> Result<Timestamp> {
    if let Ok(at) = parse_time(given) {
        return Ok(at);
    }
    let span: jiff::SignedDuration =
        given.parse().map_err(|_| Error::bad(format!("invalid filter 'until={given}'")))?;
    Ok(Timestamp::now() - span)
}

/// What the files below a directory take.
pub fn bytes_below(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                waiting.push(entry.path());
            } else {
                bytes += meta.blocks() * 512;
            }
        }
    }
    bytes
}

/// Where the machine looks up short names; containers do the same.
pub fn search_domains() -> Vec<String> {
    let text = read("/etc/resolv.conf");
    let last = text.lines().filter_map(|it| it.trim().strip_prefix("search ")).next_back();
    last.into_iter().flat_map(str::split_whitespace).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_platform_is_taken() {
        let ours = format!("linux/{}", architecture());
        assert!(check_platform(None).is_ok() && check_platform(Some(&ours)).is_ok());
        assert!(check_platform(Some("linux/s390x")).is_err());
        assert!(check_platform(Some(r#"{"os":"windows","architecture":"amd64"}"#)).is_err());
        assert!(until("24h").unwrap() < Timestamp::now());
        assert!(until("soon").is_err());
    }
}
