//! `docker stats` and `docker top`.

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::time::Duration;

use crate::answer::{Query, json as answer, json_lines};
use crate::container::{Container, Status};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::node::Facts;

/// Docker's own period.
const PERIOD: Duration = Duration::from_secs(1);

/// Nanoseconds of processor time of the whole machine, and its processors.
fn machine() -> (u64, usize) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // Hundredths of a second; the guest's are part of the user's.
    let first = text.lines().next().unwrap_or_default();
    let ticks: u64 = first.split_whitespace().skip(1).take(8).filter_map(|it| it.parse::<u64>().ok()).sum();
    let processors = text.lines().filter(|it| it.starts_with("cpu") && !it.starts_with("cpu ")).count();
    (ticks * 10_000_000, processors.max(1))
}

/// One sample as Docker writes it. Pure.
fn sample(container: &Container, facts: &Facts, machine: (u64, usize), read: &str) -> (Value, Value, Value) {
    let figures = &facts.figures;
    let cpu = json!({
        "cpu_usage": {"total_usage": figures.cpu_nanoseconds, "usage_in_kernelmode": figures.cpu_system_nanoseconds,
            "usage_in_usermode": figures.cpu_user_nanoseconds},
        "system_cpu_usage": machine.0, "online_cpus": machine.1,
        "throttling_data": {"periods": figures.throttling[0], "throttled_periods": figures.throttling[1],
            "throttled_time": figures.throttling[2]},
    });
    let limit = figures.memory_bytes_max.unwrap_or_else(crate::system::memory_bytes);
    // The client subtracts what could be dropped, by the name that the layout has for it.
    let memory = json!({"usage": figures.memory_bytes, "max_usage": figures.memory_bytes_peak, "limit": limit,
        "stats": figures.memory});
    let networks: Map<String, Value> = facts
        .links
        .iter()
        .map(|(name, it)| {
            let shown = json!({"rx_bytes": it[0], "rx_packets": it[1], "rx_errors": it[2], "rx_dropped": it[3],
                "tx_bytes": it[4], "tx_packets": it[5], "tx_errors": it[6], "tx_dropped": it[7]});
            (name.clone(), shown)
        })
        .collect();
    let mut io = Vec::new();
    for (major, minor, read, written) in &figures.io_bytes {
        for (op, value) in [("read", read), ("write", written)] {
            io.push(json!({"major": major, "minor": minor, "op": op, "value": value}));
        }
    }
    let shown = json!({
        "id": container.id(), "name": format!("/{}", container.name), "read": read, "num_procs": 0,
        "storage_stats": {}, "memory_stats": memory, "networks": networks,
        "pids_stats": {"current": figures.processes, "limit": figures.processes_max},
        "blkio_stats": {"io_service_bytes_recursive": io, "io_serviced_recursive": null,
            "io_queue_recursive": null, "io_service_time_recursive": null, "io_wait_time_recursive": null,
            "io_merged_recursive": null, "io_time_recursive": null, "sectors_recursive": null},
    });
    (shown, cpu, json!(read))
}

/// A container that does not run uses nothing.
fn nothing_used(container: &Container) -> Value {
    json!({"id": container.id(), "name": format!("/{}", container.name), "read": crate::answer::NEVER,
        "preread": crate::answer::NEVER, "pids_stats": {}, "blkio_stats": {}, "num_procs": 0, "storage_stats": {},
        "cpu_stats": {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}},
        "precpu_stats": {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}},
        "memory_stats": {}})
}

async fn look(engine: &Engine, id: &str) -> Option<(Value, Value, Value)> {
    let container = engine.container(id).ok()?;
    let (namespace, pod) = (container.namespace(), container.pod_name());
    match engine.node.facts(namespace, pod).await {
        Ok(facts) => Some(sample(&container, &facts, machine(), &crate::answer::now())),
        Err(_) => Some((nothing_used(&container), Value::Null, Value::Null)),
    }
}

fn join(sample: (Value, Value, Value), before: &(Value, Value)) -> (Value, (Value, Value)) {
    let (mut shown, cpu, read) = sample;
    if cpu.is_null() {
        return (shown, (Value::Null, Value::Null));
    }
    shown["cpu_stats"] = cpu.clone();
    shown["precpu_stats"] = match before.0.is_null() {
        true => json!({"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}}),
        false => before.0.clone(),
    };
    shown["preread"] = if before.1.is_null() { json!(crate::answer::NEVER) } else { before.1.clone() };
    (shown, (cpu, read))
}

pub async fn stats(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let id = engine.container(&wanted)?.id().to_owned();
    let gone = || Error::no_container(&wanted);
    if !query.is_or("stream", true) {
        let mut before = (Value::Null, Value::Null);
        if !query.is("one-shot") {
            before = join(look(&engine, &id).await.ok_or_else(gone)?, &before).1;
            tokio::time::sleep(PERIOD).await;
        }
        return Ok(answer(join(look(&engine, &id).await.ok_or_else(gone)?, &before).0));
    }
    let stream = futures::stream::unfold((engine, id, (Value::Null, Value::Null), true), |it| async move {
        let (engine, id, before, first) = it;
        if !first {
            tokio::time::sleep(PERIOD).await;
        }
        let sample = look(&engine, &id).await?;
        let (shown, before) = join(sample, &before);
        Some((shown, (engine, id, before, false)))
    });
    Ok(json_lines(stream))
}

/// `ps` of the machine, without the processes of others.
pub async fn top(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let container = engine.container(&wanted)?;
    if !matches!(container.state().status, Status::Running | Status::Paused) {
        return Err(Error::conflict(format!("container {} is not running", container.id())));
    }
    let arguments: Vec<String> =
        query.get("ps_args").unwrap_or("-ef").split_whitespace().map(str::to_owned).collect();
    // What follows is a program of the machine: only options that print, as Docker checks them, too.
    let harmless = |it: &String| it.bytes().all(|it| it.is_ascii_alphanumeric() || b"-,_:%=+".contains(&it));
    if !arguments.iter().all(harmless) {
        return Err(Error::bad("invalid ps arguments"));
    }
    let processes = engine.node.processes(container.namespace(), container.pod_name()).await?;
    let output = tokio::process::Command::new("ps").args(&arguments).output().await;
    let output = output.map_err(|error| Error::server(format!("cannot run ps: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::bad(format!("error running ps: {said}")));
    }
    Ok(answer(parse_ps(&String::from_utf8_lossy(&output.stdout), &processes)?))
}

fn parse_ps(text: &str, processes: &[i32]) -> Result<Value> {
    let mut lines = text.lines();
    let titles: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let at = titles.iter().position(|it| *it == "PID");
    let at = at.ok_or_else(|| Error::bad("Couldn't find PID field in ps output"))?;
    let mut rows = Vec::new();
    for line in lines {
        let mut fields: Vec<String> = Vec::new();
        let mut rest = line.trim_start();
        while fields.len() + 1 < titles.len() && !rest.is_empty() {
            let (field, more) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            fields.push(field.to_owned());
            rest = more.trim_start();
        }
        // The last column is the command and has spaces.
        fields.push(rest.trim_end().to_owned());
        if fields.get(at).and_then(|it| it.parse::<i32>().ok()).is_some_and(|it| processes.contains(&it)) {
            rows.push(json!(fields));
        }
    }
    Ok(json!({"Titles": titles, "Processes": rows}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_processes_are_shown() {
        let text = "UID   PID  CMD\nroot    1  /sbin/init now\napp    42  /bin/sh -c sleep 9\n";
        let shown = parse_ps(text, &[42]).unwrap();
        assert_eq!(shown["Processes"], json!([["app", "42", "/bin/sh -c sleep 9"]]));
        assert!(parse_ps("UID CMD\n", &[]).is_err());
    }
}
