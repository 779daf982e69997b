//! `/containers`: from `create` to `prune`.

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use naru_objects::kinds;
use serde_json::{Map, Value, json};

use crate::answer::{Query, created, is_set, json as answer, json_body, nothing, streamed, text, texts};
use crate::container::{Container, Record, State as How, Status};
use crate::create::{self, Parts};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::names::{is_name, random_id, random_name};
use crate::view::{self, Around};

const FILTERS: &[&str] = &[
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "label!", "name",
    "network", "publish", "since", "status", "volume",
];
/// Names are drawn this often before a number is added.
const NAMES_TRIED_MAX: u32 = 10;

impl Engine {
    pub(crate) fn around<'a>(&self, networks: &'a [crate::networks::Network]) -> Around<'a> {
        let prefix = self.config.subnet.rsplit_once('/').and_then(|it| it.1.parse().ok()).unwrap_or(16);
        Around { networks, gateway: self.config.gateway.to_string(), prefix, now: Timestamp::now() }
    }
}

pub async fn list(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let filters = Filters::parse(query.get("filters"), FILTERS)?;
    let limit = query.number::<i64>("limit")?.filter(|it| *it > 0);
    let all = query.is("all") || limit.is_some() || filters.has("status") || filters.has("exited");
    let mut found = engine.containers();
    found.sort_by(|a, b| b.record.created.cmp(&a.record.created));
    let created_of = |name: &str| engine.container(name).map(|it| it.record.created);
    let before = filters.of("before").next().map(created_of).transpose()?;
    let since = filters.of("since").next().map(created_of).transpose()?;
    let fits = |it: &Container, state: &How| {
        let health = || it.health().map_or("none".to_owned(), |it| text(&it, "/Status").to_owned());
        filters.any("id", |id| it.id().starts_with(id))
            && filters.any("name", |name| matches_name(&it.name, name))
            && filters.labels(it.labels())
            && filters.any("status", |status| status == state.status.name())
            && filters
                .any("exited", |code| code.parse() == Ok(state.exit_code) && state.status == Status::Exited)
            && filters.any("health", |wanted| wanted == health())
            && filters.any("network", |wanted| {
                let names = it.endpoints();
                engine.network(wanted).map_or(names.contains_key(wanted), |it| names.contains_key(&it.name))
            })
            && filters.any("volume", |wanted| view::has_volume(it, wanted))
            && filters.any("ancestor", |wanted| view::is_of_image(it, wanted))
            && filters.any("expose", |wanted| view::exposes(it, wanted))
            && filters.any("publish", |wanted| {
                let number = wanted.split('/').next().unwrap_or_default();
                crate::ports::chosen(&it.record.ports).iter().any(|it| it.host.0.to_string() == number)
            })
            && filters.any("is-task", |wanted| matches!(wanted, "0" | "false"))
            && before.as_ref().is_none_or(|before| it.record.created < *before)
            && since.as_ref().is_none_or(|since| it.record.created > *since)
    };
    let networks = engine.networks();
    let around = engine.around(&networks);
    let shown = found
        .iter()
        .map(|it| (it, it.state()))
        .filter(|(_, state)| all || state.status.is_up())
        .filter(|(it, state)| fits(it, state))
        .take(limit.map_or(usize::MAX, |it| it as usize));
    let mut list: Vec<Value> = Vec::new();
    for (container, _) in shown {
        let mut summary = view::summary(container, &around);
        if query.is("size") {
            add_size(&engine, container, &mut summary);
        }
        list.push(summary);
    }
    Ok(answer(json!(list)))
}

/// Docker's `name` is a pattern; the anchors are what people use of it.
fn matches_name(name: &str, wanted: &str) -> bool {
    let (anchored, rest) = match wanted.strip_prefix("^/").or(wanted.strip_prefix('^')) {
        Some(rest) => (true, rest),
        None => (false, wanted.strip_prefix('/').unwrap_or(wanted)),
    };
    match (anchored, rest.strip_suffix('$')) {
        (true, Some(rest)) => name == rest,
        (true, None) => name.starts_with(rest),
        (false, Some(rest)) => name.ends_with(rest),
        (false, None) => name.contains(rest),
    }
}

fn add_size(engine: &Engine, container: &Container, shown: &mut Value) {
    let files = engine.node.files(container.namespace(), container.pod_name()).ok().flatten();
    let written = files.map_or(0, |it| crate::system::bytes_below(&it.upper));
    let image = engine.images.local(container.pod_image()).ok().flatten();
    let image: u64 = image.map_or(0, |it| it.layers.iter().map(|it| it.size).sum());
    shown["SizeRw"] = json!(written);
    shown["SizeRootFs"] = json!(image + written);
}

pub async fn inspect(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let container = engine.container(&wanted)?;
    let pid = match container.state().status {
        Status::Running | Status::Paused => {
            let facts = engine.node.facts(container.namespace(), container.pod_name()).await;
            facts.map_or(0, |it| it.pid)
        }
        _ => 0,
    };
    let networks = engine.networks();
    let execs = engine.execs.of(container.id());
    let mut shown = view::inspect(&container, &engine.around(&networks), pid, &execs);
    if query.is("size") {
        add_size(&engine, &container, &mut shown);
    }
    Ok(answer(shown))
}

pub async fn create(State(engine): State<Engine>, RawQuery(query): RawQuery, body: Body) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let request = json_body(body).await?;
    if !request.is_object() {
        return Err(Error::bad("config cannot be empty in order to create a container"));
    }
    let warnings = crate::options::check(&request)?;
    crate::system::check_platform(query.get("platform"))?;
    let wanted = text(&request, "/Image").to_owned();
    if wanted.is_empty() {
        return Err(Error::bad("no image specified"));
    }
    let found = engine.find_image(&wanted)?;
    let image = engine.load_image(&found).await?;
    let image_config =
        serde_json::to_value(&image.config.config).map_err(|it| Error::server(it.to_string()))?;
    let config = create::merge_config(&request, &image_config);
    let host = if request["HostConfig"].is_object() { request["HostConfig"].clone() } else { json!({}) };

    // From here on one after the other: names and ports are chosen.
    let _turn = engine.creating.lock().await;
    let name = choose_name(&engine, query.get("name"))?;
    let id = random_id();
    let (endpoints, memberships) = engine.memberships_of(&request, &name, &id)?;
    let on_host = text(&host, "/NetworkMode") == "host";
    let ports = match on_host {
        // The machine's ports are its own.
        true => Map::new(),
        false => {
            let wanted = crate::ports::wanted(
                &host["PortBindings"],
                &config["ExposedPorts"],
                host["PublishAllPorts"] == true,
            )?;
            crate::ports::choose(&wanted, &engine.ports_taken(""))?
        }
    };
    let mut mounts = crate::mounts::mount_points(&config, &host)?;
    mounts_of_others(&engine, &host, &mut mounts)?;
    let claims = engine.prepare_mounts(&mut mounts, &image).await?;
    let record = Record {
        id: id.clone(),
        created: crate::answer::now(),
        image: wanted,
        image_id: found.digest.to_string(),
        digest: found.digest.to_string(),
        config,
        host_config: host,
        mounts,
        ports,
    };
    let pod_image = match image.host.is_some() && image.layers.is_empty() {
        // The machine's own root has a name and no manifest.
        true => image.reference.clone(),
        false => format!("{}@{}", found.bare_name(), found.digest),
    };
    let pod = create::lower(&Parts {
        name: &name,
        record: &record,
        memberships: &memberships,
        endpoints: &endpoints,
        image_environment: &texts(&image_config["Env"]),
        pod_image: &pod_image,
        claims: &claims,
        config: &engine.config,
        searches: &crate::system::search_domains(),
    })?;
    let written = engine.client.create(&kinds::POD, &pod).await?;
    engine.caught_up(&engine.pods, &written).await;
    engine.open_ports(&written).await?;
    let container = engine.container(&id)?;
    engine.tell_container("create", &container, json!({}));
    for membership in &memberships {
        engine.tell_network("connect", &membership.network, Some(&container));
    }
    Ok(created(json!({"Id": id, "Warnings": warnings})))
}

fn choose_name(engine: &Engine, wanted: Option<&str>) -> Result<String> {
    let taken = engine.containers();
    let owner = |name: &str| taken.iter().find(|it| it.name == name);
    let Some(wanted) = wanted else {
        let drawn = (0..NAMES_TRIED_MAX).map(|_| random_name()).find(|it| owner(it).is_none());
        return Ok(drawn.unwrap_or_else(|| format!("{}_{}", random_name(), &random_id()[..6])));
    };
    let name = wanted.strip_prefix('/').unwrap_or(wanted);
    if !is_name(name) {
        return Err(Error::bad(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )));
    }
    match owner(name) {
        None => Ok(name.to_owned()),
        Some(owner) => Err(Error::conflict(format!(
            "Conflict. The container name \"/{name}\" is already in use by container {:?}. You have to remove (or \
             rename) that container to be able to reuse that name.",
            owner.id()
        ))),
    }
}

/// `--volumes-from`.
fn mounts_of_others(
    engine: &Engine,
    host: &Value,
    mounts: &mut Vec<crate::container::MountPoint>,
) -> Result<()> {
    for wanted in texts(&host["VolumesFrom"]) {
        let (name, mode) = wanted.split_once(':').unwrap_or((wanted.as_str(), ""));
        if !["", "ro", "rw", "z", "Z"].contains(&mode) {
            return Err(Error::bad(format!("invalid mode for volumes-from: {mode}")));
        }
        for mut point in engine.container(name).map_err(|error| Error::bad(error.message))?.record.mounts {
            if point.kind == "tmpfs" || mounts.iter().any(|it| it.destination == point.destination) {
                continue;
            }
            point.read_only |= mode == "ro";
            // They stay the other's.
            point.anonymous = false;
            mounts.push(point);
        }
    }
    Ok(())
}

pub async fn start(State(engine): State<Engine>, Path(wanted): Path<String>) -> Result<Response> {
    let found = engine.container(&wanted)?;
    let _turn = engine.turn(found.id()).await;
    let container = engine.container(found.id())?;
    match container.state().status {
        Status::Running | Status::Restarting => return Ok(StatusCode::NOT_MODIFIED.into_response()),
        Status::Paused => {
            return Err(Error::conflict("cannot start a paused container, try unpause instead"));
        }
        Status::Removing => {
            return Err(Error::conflict("container is marked for removal and cannot be started"));
        }
        Status::Created | Status::Exited => {}
    }
    engine.begin(&container).await?;
    Ok(nothing())
}

fn grace_of(container: &Container, query: &Query) -> Result<Option<i64>> {
    if let Some(signal) = query.get("signal") {
        let own = text(&container.record.config, "/StopSignal");
        let own = create::signal_number(if own.is_empty() { "TERM" } else { own })?;
        if create::signal_number(signal)? != own {
            return Err(Error::refused(
                "--signal other than the container's stop signal is not supported by stop and restart; use \
                 docker kill --signal, and then docker stop",
            ));
        }
    }
    query.number::<i64>("t")
}

pub async fn stop(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let found = engine.container(&wanted)?;
    let grace = grace_of(&found, &Query::parse(query.as_deref()))?;
    let _turn = engine.turn(found.id()).await;
    let container = engine.container(found.id())?;
    if !container.state().status.is_up() {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    engine.end(&container, grace).await?;
    engine.tell_container("stop", &container, json!({}));
    Ok(nothing())
}

pub async fn restart(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let found = engine.container(&wanted)?;
    let grace = grace_of(&found, &Query::parse(query.as_deref()))?;
    let _turn = engine.turn(found.id()).await;
    let container = engine.container(found.id())?;
    engine.begin_again(&container, grace).await?;
    engine.tell_container("restart", &container, json!({}));
    Ok(nothing())
}

pub async fn kill(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let signal = create::signal_number(query.get("signal").unwrap_or("KILL"))?;
    let container = engine.container(&wanted)?;
    if !container.state().status.is_up() {
        return Err(Error::conflict(format!(
            "cannot kill container: {wanted}: container {} is not running",
            container.id()
        )));
    }
    engine.tell_container("kill", &container, json!({"signal": signal.to_string()}));
    engine.kill(&container, signal).await?;
    Ok(nothing())
}

pub async fn pause(State(engine): State<Engine>, Path(wanted): Path<String>) -> Result<Response> {
    let found = engine.container(&wanted)?;
    let _turn = engine.turn(found.id()).await;
    let container = engine.container(found.id())?;
    match container.state().status {
        Status::Running => {}
        Status::Paused => {
            return Err(Error::conflict(format!("container {} is already paused", container.id())));
        }
        _ => return Err(Error::conflict(format!("container {} is not running", container.id()))),
    }
    engine.node.freeze(container.namespace(), container.pod_name(), true).await?;
    engine.annotate(&container, json!({crate::container::PAUSED: "true"})).await?;
    engine.tell_container("pause", &container, json!({}));
    Ok(nothing())
}

pub async fn unpause(State(engine): State<Engine>, Path(wanted): Path<String>) -> Result<Response> {
    let found = engine.container(&wanted)?;
    let _turn = engine.turn(found.id()).await;
    let container = engine.container(found.id())?;
    if container.state().status != Status::Paused {
        return Err(Error::conflict(format!("container {} is not paused", container.id())));
    }
    engine.thaw(&container).await?;
    engine.tell_container("unpause", &container, json!({}));
    Ok(nothing())
}

/// The head of the answer says that somebody waits; the body comes with the end.
pub async fn wait(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let condition = query.get("condition").unwrap_or("not-running").to_owned();
    if !["not-running", "next-exit", "removed"].contains(&condition.as_str()) {
        return Err(Error::bad(format!("invalid condition: {condition:?}")));
    }
    let container = engine.container(&wanted)?;
    let body = async move {
        let mut last = container.state();
        let begun_with = last.attempt.clone();
        let was_up = last.status.is_up();
        engine
            .wait_for(container.id(), |now| {
                let Some(now) = now else { return Some(()) };
                last = now.state();
                let ended = !last.status.is_up();
                match condition.as_str() {
                    "removed" => None,
                    // A life that begins and ends between two looks counts as well.
                    "next-exit" => (ended && (was_up || last.attempt != begun_with)).then_some(()),
                    _ => ended.then_some(()),
                }
            })
            .await;
        Ok(Bytes::from(json!({"StatusCode": last.exit_code}).to_string()))
    };
    Ok(streamed("application/json", futures::stream::once(body)))
}

pub async fn remove(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    if query.is("link") {
        return Err(Error::refused("--link is not supported: containers have no links"));
    }
    let found = engine.container(&wanted)?;
    let _turn = engine.turn(found.id()).await;
    let container = engine.container(found.id())?;
    let state = container.state().status;
    if state.is_up() && !query.is("force") {
        let hint = if state == Status::Paused { "unpause and then stop" } else { "stop" };
        return Err(Error::conflict(format!(
            "cannot remove container {:?}: container is {}: {hint} the container before removing or force remove",
            format!("/{}", container.name),
            state.name()
        )));
    }
    engine.remove(&container, query.is("v")).await?;
    Ok(nothing())
}

pub async fn rename(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let name = query.get("name").ok_or_else(|| Error::bad("Neither old nor new names may be empty"))?;
    let _creating = engine.creating.lock().await;
    let container = engine.container(&wanted)?;
    if name.strip_prefix('/').unwrap_or(name) == container.name {
        return Err(Error::bad("Renaming a container with the same name as its current name"));
    }
    let name = choose_name(&engine, Some(name))?;
    let _turn = engine.turn(container.id()).await;
    engine.write_endpoints(&container, &name, &container.endpoints()).await?;
    let renamed = engine.container(container.id())?;
    engine.tell_container("rename", &renamed, json!({"oldName": format!("/{}", container.name)}));
    Ok(nothing())
}

/// Fields of a container that can change.
const UPDATABLE: &[&str] = &[
    "CpuPeriod",
    "CpuQuota",
    "CpuShares",
    "Memory",
    "MemoryReservation",
    "MemorySwap",
    "NanoCpus",
    "RestartPolicy",
];

pub async fn update(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    body: Body,
) -> Result<Response> {
    let request = json_body(body).await?;
    let found = engine.container(&wanted)?;
    let _turn = engine.turn(found.id()).await;
    let container = engine.container(found.id())?;
    let mut host = container.record.host_config.clone();
    let mut changed = Map::new();
    for (field, value) in request.as_object().into_iter().flatten() {
        if !is_set(value) || (field == "RestartPolicy" && text(value, "/Name").is_empty()) {
            continue;
        }
        if !UPDATABLE.contains(&field.as_str()) {
            return Err(Error::refused(format!("{field} of a container cannot be changed later")));
        }
        host[field] = value.clone();
        changed.insert(field.clone(), value.clone());
    }
    let warnings = crate::options::check(&json!({"Image": "", "HostConfig": host}))?;
    let resources = create::resources(&host)?;
    let before = create::resources(&container.record.host_config)?;
    if resources != before {
        let body =
            json!({"spec": {"containers": [{"name": crate::container::CONTAINER, "resources": resources}]}});
        let (namespace, name) = (container.namespace(), container.pod_name());
        engine.client.patch_below(&kinds::POD, namespace, name, "resize", &body).await?;
    }
    let policy = create::life_of(&host);
    let life =
        crate::container::Life { restart: policy.restart, retries: policy.retries, ..container.life.clone() };
    let mut updated: Map<String, Value> = container
        .annotation(crate::container::UPDATED)
        .and_then(|it| serde_json::from_str(it).ok())
        .unwrap_or_default();
    updated.extend(changed);
    engine
        .annotate(
            &container,
            json!({crate::container::UPDATED: Value::Object(updated).to_string(),
                naru_objects::labels::LIFE: serde_json::to_string(&life).expect("plain data")}),
        )
        .await?;
    engine.tell_container("update", &container, json!({}));
    Ok(answer(json!({"Warnings": warnings})))
}

pub async fn prune(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let filters = Filters::parse(query.get("filters"), &["label", "label!", "until"])?;
    let until = filters.of("until").next().map(crate::system::until).transpose()?;
    let (mut removed, mut bytes) = (Vec::new(), 0);
    for found in engine.containers() {
        let _turn = engine.turn(found.id()).await;
        let Ok(container) = engine.container(found.id()) else { continue };
        let created = container.record.created.parse::<Timestamp>().unwrap_or(Timestamp::MAX);
        let old = until.is_none_or(|until| created < until);
        if container.state().status.is_up() || !filters.labels(container.labels()) || !old {
            continue;
        }
        let files = engine.node.files(container.namespace(), container.pod_name()).ok().flatten();
        bytes += files.map_or(0, |it| crate::system::bytes_below(&it.upper));
        engine.remove(&container, false).await?;
        removed.push(container.id().to_owned());
    }
    engine.events.tell("container", "prune", "", json!({"reclaimed": bytes.to_string()}));
    Ok(answer(json!({"ContainersDeleted": removed, "SpaceReclaimed": bytes})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filtered_with_and_without_anchors() {
        for (wanted, fits) in [
            ("web", true),
            ("^web$", false),
            ("^/web-1$", true),
            ("1$", true),
            ("^eb", false),
            ("/web", true),
        ] {
            assert_eq!(matches_name("web-1", wanted), fits, "{wanted}");
        }
    }
}
