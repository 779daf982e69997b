//! The turns of containers: begin, stop, go; and what follows from what is seen of them.

use std::collections::HashMap;
use std::time::Duration;

use naru_objects::{kinds, labels};
use serde_json::{Value, json};

use crate::container::{Container, Life, PAUSED, STOPPED, State, Status};
use crate::engine::{Engine, PATIENCE};
use crate::error::{Error, Result};

/// `docker stop -t -1`: as good as for ever.
const FOR_EVER_SECONDS: i64 = 10 * 365 * 24 * 3600;

/// Patience of those who end a container by force.
const KILL_TIME_MAX: Duration = Duration::from_secs(30);

fn annotations(life: &Life) -> Value {
    json!({labels::LIFE: serde_json::to_string(life).expect("a life is plain data")})
}

impl Engine {
    /// Begins a life of the container; returns when its program runs, or has run. The caller has the turn.
    pub async fn begin(&self, container: &Container) -> Result<()> {
        let begun = self.try_to_begin(container).await;
        if begun.is_err()
            && let Ok(now) = self.container(container.id())
        {
            // What could not begin is not tried again behind everybody's back.
            let mut life = now.life.clone();
            life.stopped = true;
            life.grace = Some(0);
            self.annotate(&now, annotations(&life)).await?;
            if now.removes_itself() {
                self.remove(&now, true).await?;
            }
        }
        begun
    }

    async fn try_to_begin(&self, container: &Container) -> Result<()> {
        crate::ports::check_free(&container.record.ports, &self.ports_taken(container.id()))?;
        let before = container.state();
        let mut life = container.life.clone();
        life.run += 1;
        life.stopped = false;
        life.grace = None;
        let mut changed = annotations(&life);
        changed[PAUSED] = Value::Null;
        changed[STOPPED] = Value::Null;
        changed[crate::container::HEALTH] = Value::Null;
        self.annotate(container, changed).await?;
        let begun = self.wait_for(container.id(), |now| {
            let Some(now) = now else {
                return Some(Err(Error::no_container(&container.name)));
            };
            let state = now.state();
            // Whatever happened since is told of another attempt.
            if state.attempt != before.attempt {
                return Some(started(&state));
            }
            now.trouble().map(|why| Err(Error::server(why)))
        });
        tokio::time::timeout(PATIENCE, begun)
            .await
            .unwrap_or_else(|_| Err(Error::server("the container did not begin in time")))
    }

    /// Ports of the machine that other running containers have.
    pub fn ports_taken(&self, but: &str) -> crate::ports::Taken {
        let up = |it: &Container| it.id() != but && it.state().status.is_up();
        let containers = self.containers();
        let ports =
            containers.iter().filter(|it| up(it)).flat_map(|it| crate::ports::chosen(&it.record.ports));
        ports.map(|it| (it.address, it.host.0, it.protocol)).collect()
    }

    /// Ends the container's life and waits until it has ended. The caller has the turn.
    pub async fn end(&self, container: &Container, grace: Option<i64>) -> Result<()> {
        if container.annotation(PAUSED).is_some() {
            // What is frozen hears no signal.
            self.thaw(container).await?;
        }
        let mut life = container.life.clone();
        life.stopped = true;
        life.grace = grace.map(|it| if it < 0 { FOR_EVER_SECONDS } else { it });
        let mut changed = annotations(&life);
        changed[STOPPED] = json!("true");
        self.annotate(container, changed).await?;
        self.wait_for(container.id(), |now| match now {
            Some(now) if now.state().status.is_up() => None,
            _ => Some(()),
        })
        .await;
        Ok(())
    }

    /// Ends the present life, if there is one, and begins another. The caller has the turn.
    pub async fn begin_again(&self, container: &Container, grace: Option<i64>) -> Result<()> {
        if container.state().status.is_up() {
            self.end(container, grace).await?;
        }
        self.begin(&self.container(container.id())?).await
    }

    pub async fn thaw(&self, container: &Container) -> Result<()> {
        self.node.freeze(container.namespace(), container.pod_name(), false).await?;
        self.annotate(container, json!({PAUSED: null})).await
    }

    /// A signal; the one that nobody survives also keeps a restart from following.
    pub async fn kill(&self, container: &Container, signal: i32) -> Result<()> {
        if signal == nix::libc::SIGKILL {
            let ended = self.end(container, Some(0));
            return tokio::time::timeout(KILL_TIME_MAX, ended).await.unwrap_or_else(|_| {
                Err(Error::server(format!("cannot kill container {}: it does not end", container.name)))
            });
        }
        Ok(self.node.signal(container.namespace(), container.pod_name(), signal).await?)
    }

    /// The container, its pod and its files go; returns when they are gone. The caller has the turn.
    pub async fn remove(&self, container: &Container, volumes: bool) -> Result<()> {
        if container.state().status.is_up() {
            self.kill(container, nix::libc::SIGKILL).await?;
        }
        let (namespace, name) = (container.namespace(), container.pod_name());
        // Nothing is asked to end in peace that is being removed; a pod that ended has no grace to wait for.
        self.client.delete(&kinds::POD, namespace, name, Some(1)).await?;
        let gone = self.wait_for(container.id(), |now| now.is_none().then_some(()));
        tokio::time::timeout(PATIENCE, gone)
            .await
            .map_err(|_| Error::server(format!("container {} is not gone yet", container.name)))?;
        crate::networks::close_ports(self, name).await;
        if volumes {
            self.remove_anonymous(&container.record.mounts).await;
        }
        Ok(())
    }

    pub fn tell_container(&self, action: &str, container: &Container, more: Value) {
        let mut attributes = container.event_attributes();
        for (key, value) in more.as_object().into_iter().flatten() {
            attributes[key] = value.clone();
        }
        self.events.tell("container", action, container.id(), attributes);
    }
}

/// How the first moment of an attempt went.
fn started(state: &State) -> Result<()> {
    if state.error.is_empty() {
        return Ok(());
    }
    let message = format!("failed to create task for container: {}", explain(&state.error, state.exit_code));
    Err(Error::bad(message))
}

/// The client makes its exit code of these words.
fn explain(error: &str, code: i64) -> String {
    match code {
        127 if !error.contains("executable file not found") => {
            format!("{error}: executable file not found in $PATH")
        }
        126 if !error.contains("permission denied") => format!("{error}: permission denied"),
        _ => error.to_owned(),
    }
}

/// What is told of a container between two looks at it. Pure.
fn events_between(before: Option<&State>, now: Option<&State>) -> Vec<(&'static str, Value)> {
    let mut told = Vec::new();
    let up = |it: &State| matches!(it.status, Status::Running | Status::Paused);
    let Some(now) = now else {
        if before.is_some_and(up) {
            told.push(("die", json!({"exitCode": "137"})));
        }
        told.push(("destroy", json!({})));
        return told;
    };
    let Some(before) = before else { return told };
    let another = before.attempt != now.attempt;
    let die = |it: &State| ("die", json!({"exitCode": it.exit_code.to_string()}));
    if up(before) && (another || !up(now)) {
        if now.out_of_memory && !up(now) {
            told.push(("oom", json!({})));
        }
        told.push(die(now));
    }
    if another && now.error.is_empty() {
        told.push(("start", json!({})));
        // It began and ended between two looks.
        if matches!(now.status, Status::Exited | Status::Restarting) {
            told.push(die(now));
        }
    }
    told
}

/// Follows the containers for as long as the engine serves.
pub(crate) async fn follow(engine: Engine) {
    let mut changes = engine.pods.changes();
    let mut known: HashMap<String, (Container, State)> = HashMap::new();
    let mut first = true;
    loop {
        let present: HashMap<String, (Container, State)> = engine
            .containers()
            .into_iter()
            .map(|it| {
                let state = it.state();
                (it.id().to_owned(), (it, state))
            })
            .collect();
        for (id, (container, state)) in &present {
            let before = known.get(id).map(|it| &it.1);
            // What was there when we came is no news; what ends now is.
            for (action, more) in events_between(before, Some(state)) {
                engine.tell_container(action, container, more);
            }
            let begun = before.is_none_or(|it| it.attempt != state.attempt || !it.status.is_up());
            if state.status == Status::Running && begun {
                crate::health::watch(&engine, container);
            }
            let ended = state.status == Status::Exited && container.life.run > 0;
            if ended
                && container.removes_itself()
                && (first || before.is_none_or(|it| it.status != state.status))
            {
                remove_later(&engine, container.clone());
            }
            if let Some((older, _)) = known.get(id)
                && !state.status.is_up()
                && older.state().status.is_up()
            {
                crate::attach::forget_terminal(&engine, id);
            }
        }
        for (id, (container, state)) in &known {
            if !present.contains_key(id) {
                for (action, more) in events_between(Some(state), None) {
                    engine.tell_container(action, container, more);
                }
                crate::attach::forget_terminal(&engine, id);
            }
        }
        known = present;
        first = false;
        changes.wait().await;
    }
}

/// `--rm`.
fn remove_later(engine: &Engine, container: Container) {
    let engine = engine.clone();
    tokio::spawn(async move {
        let _turn = engine.turn(container.id()).await;
        let Ok(now) = engine.container(container.id()) else { return };
        if now.state().status != Status::Exited {
            return;
        }
        if let Err(error) = engine.remove(&now, true).await {
            tracing::warn!(container = now.name, %error, "a container that should remove itself stays");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(status: Status, attempt: &str) -> State {
        State {
            status,
            exit_code: 3,
            out_of_memory: false,
            error: String::new(),
            started_at: String::new(),
            finished_at: String::new(),
            attempt: attempt.into(),
            restarts: 0,
        }
    }

    #[test]
    fn events_follow_from_what_is_seen() {
        let told = |before: Option<&State>, now: Option<&State>| -> Vec<&'static str> {
            events_between(before, now).into_iter().map(|it| it.0).collect()
        };
        let (fresh, runs) = (state(Status::Created, ""), state(Status::Running, "a"));
        let (ended, again) = (state(Status::Exited, "a"), state(Status::Running, "b"));
        assert_eq!(told(Some(&fresh), Some(&runs)), ["start"]);
        assert_eq!(told(Some(&fresh), Some(&ended)), ["start", "die"], "a short life is told whole");
        assert_eq!(told(Some(&runs), Some(&ended)), ["die"]);
        assert_eq!(told(Some(&runs), Some(&again)), ["die", "start"]);
        assert_eq!(told(Some(&ended), None), ["destroy"]);
        assert_eq!(told(Some(&runs), None), ["die", "destroy"]);
        assert_eq!(told(None, Some(&runs)), [""; 0]);
    }

    #[test]
    fn clients_recognise_a_program_that_is_not_there() {
        assert!(explain("program not found: `x`", 127).contains("executable file not found"));
        assert!(explain("program cannot be executed: `x`", 126).contains("permission denied"));
    }
}
