//! Health checks: commands in the container, as its image or `--health-*` name them. A container that fails them
//! and has a restart policy is restarted.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::task::AbortHandle;

use crate::answer::{nanos, texts};
use crate::container::{Container, HEALTH, Status};
use crate::engine::Engine;
use crate::node::ExecSpec;

/// Docker's defaults and bounds.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u64 = 3;
const OUTPUT_BYTES_MAX: u64 = 4096;
const RESULTS_MAX: usize = 5;

#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub start_interval: Duration,
    pub retries: u64,
}

impl Check {
    /// `None` when there is none, or it was switched off.
    pub fn of(config: &Value) -> Option<Self> {
        let check = &config["Healthcheck"];
        let test = texts(&check["Test"]);
        let command = match test.split_first() {
            Some((kind, rest)) if kind == "CMD" && !rest.is_empty() => rest.to_vec(),
            Some((kind, rest)) if kind == "CMD-SHELL" && !rest.is_empty() => {
                let shell = texts(&config["Shell"]);
                let shell = if shell.is_empty() { vec!["/bin/sh".into(), "-c".into()] } else { shell };
                [shell, vec![rest.join(" ")]].concat()
            }
            _ => return None,
        };
        let time = |name: &str, default: Duration| match check[name].as_u64() {
            Some(nanoseconds) if nanoseconds > 0 => Duration::from_nanos(nanoseconds),
            _ => default,
        };
        Some(Self {
            command,
            interval: time("Interval", INTERVAL),
            timeout: time("Timeout", TIMEOUT),
            start_period: time("StartPeriod", Duration::ZERO),
            start_interval: time("StartInterval", START_INTERVAL),
            retries: check["Retries"].as_u64().filter(|it| *it > 0).unwrap_or(RETRIES),
        })
    }
}

/// The tasks that check, by the container's id.
#[derive(Default)]
pub struct Checks(Mutex<HashMap<String, (String, AbortHandle)>>);

/// One result laid over what was known. `in_start_period`: a failure does not count yet. Pure.
pub fn judge(before: &Value, result: Value, retries: u64, in_start_period: bool) -> Value {
    let failed = result["ExitCode"] != 0;
    let status = before["Status"].as_str().unwrap_or("starting");
    let streak = before["FailingStreak"].as_u64().unwrap_or(0);
    let counts = !(in_start_period && status == "starting");
    let streak = match failed {
        false => 0,
        true if counts => streak + 1,
        true => streak,
    };
    let status = match failed {
        false => "healthy",
        true if streak >= retries => "unhealthy",
        true => status,
    };
    let mut log = before["Log"].as_array().cloned().unwrap_or_default();
    log.push(result);
    log.drain(..log.len().saturating_sub(RESULTS_MAX));
    json!({"Status": status, "FailingStreak": streak, "Log": log})
}

/// Begins to check a container that has just begun, or that ran already when we came.
pub fn watch(engine: &Engine, container: &Container) {
    let Some(check) = Check::of(&container.record.config) else { return };
    let (id, attempt) = (container.id().to_owned(), container.state().attempt);
    let mut checks = engine.checks.0.lock().unwrap_or_else(PoisonError::into_inner);
    checks.retain(|_, (_, task)| !task.is_finished());
    if checks.get(&id).is_some_and(|(known, _)| *known == attempt) {
        return;
    }
    let task = tokio::spawn(run(engine.clone(), id.clone(), attempt.clone(), check)).abort_handle();
    if let Some((_, older)) = checks.insert(id, (attempt, task)) {
        older.abort();
    }
}

async fn run(engine: Engine, id: String, attempt: String, check: Check) {
    let current = || {
        let found = engine.container(&id).ok()?;
        let state = found.state();
        (state.status.is_up() && state.attempt == attempt).then_some((found, state))
    };
    let Some((container, state)) = current() else { return };
    let began = state.started_at.parse::<Timestamp>().unwrap_or_else(|_| Timestamp::now());
    let age = || Duration::try_from(Timestamp::now().duration_since(began)).unwrap_or_default();
    // What an earlier daemon knew of this very attempt goes on; anything else begins anew.
    let written = container.annotation(HEALTH).and_then(|it| serde_json::from_str::<Value>(it).ok());
    let mut health = written
        .filter(|it| it["attempt"] == attempt.as_str())
        .unwrap_or_else(|| json!({"Status": "starting", "FailingStreak": 0, "Log": []}));
    loop {
        let starting = health["Status"] == "starting" && age() < check.start_period;
        let pause = if starting { check.start_interval.min(check.interval) } else { check.interval };
        tokio::time::sleep(pause).await;
        let Some((container, state)) = current() else { return };
        if state.status != Status::Running {
            continue;
        }
        let result = ask(&engine, &container, &check).await;
        let Some((container, _)) = current() else { return };
        let before = health["Status"].clone();
        health = judge(&health, result, check.retries, age() < check.start_period);
        let mut written = health.clone();
        written["attempt"] = json!(attempt);
        if let Err(error) = engine.annotate(&container, json!({HEALTH: written.to_string()})).await {
            tracing::debug!(container = container.name, %error, "health is not written down");
        }
        if before != health["Status"] {
            let status = health["Status"].as_str().unwrap_or_default();
            engine.tell_container(&format!("health_status: {status}"), &container, json!({}));
            if status == "unhealthy" && container.life.restart != "no" {
                // On a task of its own: the new life's checks end the task that we are on.
                tokio::spawn(restart(engine, id, attempt));
                return;
            }
        }
    }
}

/// Docker only tells that a container is unhealthy; here its restart policy means that, too.
async fn restart(engine: Engine, id: String, attempt: String) {
    let _turn = engine.turn(&id).await;
    let Ok(container) = engine.container(&id) else { return };
    let state = container.state();
    if state.status != Status::Running || state.attempt != attempt || container.life.stopped {
        return;
    }
    tracing::info!(container = container.name, "unhealthy; it is restarted");
    match engine.begin_again(&container, None).await {
        Ok(()) => engine.tell_container("restart", &container, json!({"reason": "unhealthy"})),
        Err(error) => tracing::warn!(%error, "an unhealthy container cannot be restarted"),
    }
}

/// One look; its result as Docker writes it.
async fn ask(engine: &Engine, container: &Container, check: &Check) -> Value {
    let start = Timestamp::now();
    let spec = ExecSpec { command: check.command.clone(), ..ExecSpec::default() };
    let asked = async {
        let mut session = engine
            .node
            .exec(container.namespace(), container.pod_name(), spec)
            .await
            .map_err(|error| error.to_string())?;
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let mut stderr = session.stderr.take();
        let read_out = async {
            let _ = (&mut session.stdout).take(OUTPUT_BYTES_MAX).read_to_end(&mut out).await;
            let _ = tokio::io::copy(&mut session.stdout, &mut tokio::io::sink()).await;
        };
        let read_errors = async {
            if let Some(stderr) = &mut stderr {
                let _ = stderr.take(OUTPUT_BYTES_MAX).read_to_end(&mut errors).await;
                let _ = tokio::io::copy(stderr, &mut tokio::io::sink()).await;
            }
        };
        tokio::join!(read_out, read_errors);
        let code = session.exit.await.map_err(|_| "the check's end was not seen".to_owned())?;
        out.extend(errors);
        out.truncate(OUTPUT_BYTES_MAX as usize);
        Ok::<_, String>((code, String::from_utf8_lossy(&out).into_owned()))
    };
    let (code, output) = match tokio::time::timeout(check.timeout, asked).await {
        Ok(Ok(result)) => result,
        Ok(Err(message)) => (-1, message),
        Err(_) => (-1, format!("Health check exceeded timeout ({:?})", check.timeout)),
    };
    json!({"Start": nanos(start), "End": nanos(Timestamp::now()), "ExitCode": code, "Output": output})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_read_as_docker_reads_them() {
        let check = |value: Value| Check::of(&json!({"Healthcheck": value}));
        assert_eq!(check(json!({"Test": ["NONE"]})), None);
        assert_eq!(check(json!({"Test": []})), None);
        let shell =
            check(json!({"Test": ["CMD-SHELL", "true || false"], "Interval": 1_000_000_000_u64})).unwrap();
        assert_eq!(shell.command, ["/bin/sh", "-c", "true || false"]);
        assert_eq!((shell.interval, shell.retries), (Duration::from_secs(1), 3));
    }

    #[test]
    fn health_is_judged() {
        let result = |code: i32| json!({"ExitCode": code});
        let mut health = json!({"Status": "starting", "FailingStreak": 0, "Log": []});
        health = judge(&health, result(1), 2, true);
        assert_eq!((&health["Status"], &health["FailingStreak"]), (&json!("starting"), &json!(0)));
        health = judge(&health, result(0), 2, true);
        assert_eq!(health["Status"], "healthy");
        health = judge(&health, result(1), 2, true);
        assert_eq!((&health["Status"], &health["FailingStreak"]), (&json!("healthy"), &json!(1)));
        for _ in 0..6 {
            health = judge(&health, result(7), 2, false);
        }
        assert_eq!(health["Status"], "unhealthy");
        assert_eq!(health["Log"].as_array().map(Vec::len), Some(RESULTS_MAX));
    }
}
