//! Verdicts back to the host: each run of a repository that has an upstream is a commit status there.
//!
//! What was last written stands in an annotation of the run, so that a daemon that comes back writes only
//! what is new.

use crate::Config;
use crate::upstream::{Host, LABEL, Upstream};
use naru_objects::{Run, RunPhase, kinds, label_of, percent_encode};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// The state that the host was told last, or `refused` if it did not want to hear it.
const TOLD: &str = "naru.dev/upstream-status";

/// GitHub's limit for a description.
const DESCRIPTION_CHARS_MAX: usize = 140;

/// A host that does not answer is asked again after this, then after twice as long, up to the second.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_mins(5);

const TIMEOUT: Duration = Duration::from_secs(20);

/// Watches runs and tells until the task is aborted.
pub fn start(config: Config) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .user_agent(concat!("naru/", env!("CARGO_PKG_VERSION")));
        let http = match client.redirect(reqwest::redirect::Policy::none()).build() {
            Ok(it) => it,
            Err(error) => return tracing::error!(%error, "no statuses are written back"),
        };
        let mut runs = config.client.cache(&kinds::RUN, Some(&config.namespace), "");
        let mut secrets = config.client.cache(&kinds::SECRET, Some(&config.namespace), LABEL);
        runs.synced().await;
        secrets.synced().await;
        // Per run: not before, and the pause after the next failure.
        let mut later = HashMap::<String, (Instant, Duration)>::new();
        // What this process has told: the copy of a run shows its annotation only a moment later.
        let mut told = HashMap::<String, &'static str>::new();
        loop {
            let now = Instant::now();
            let upstreams: HashMap<String, Upstream> = (secrets.list().iter())
                .filter_map(|it| Some((label_of(it, LABEL).to_owned(), Upstream::of_secret(it)?)))
                .filter(|(_, it)| !it.token.is_empty())
                .collect();
            let all = if upstreams.is_empty() { Vec::new() } else { runs.list() };
            later.retain(|uid, _| all.iter().any(|it| it["metadata"]["uid"] == uid.as_str()));
            told.retain(|uid, _| all.iter().any(|it| it["metadata"]["uid"] == uid.as_str()));
            for object in all {
                // Most runs are of other repositories, or have been told: those are not even read.
                let Some(upstream) = object["spec"]["repository"].as_str().and_then(|it| upstreams.get(it))
                else {
                    continue;
                };
                let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                let noted = object["metadata"]["annotations"][TOLD].as_str();
                let is_told =
                    [noted, told.get(&uid).copied()].into_iter().flatten().any(|it| is_told(it, &object));
                if is_told || later.get(&uid).is_some_and(|(until, _)| *until > now) {
                    continue;
                }
                let Ok(run) = serde_json::from_value::<Run>((*object).clone()) else { continue };
                match tell(&config, &http, upstream, &run).await {
                    Ok(word) => {
                        later.remove(&uid);
                        told.insert(uid, word);
                    }
                    Err(error) => {
                        let pause = later.get(&uid).map_or(PAUSE, |(_, it)| (*it * 2).min(PAUSE_MAX));
                        tracing::warn!(run = run.metadata.name, error, ?pause, "the host is not told yet");
                        later.insert(uid, (Instant::now() + pause, pause));
                    }
                }
            }
            // What was due and is still here belongs to a repository that has no upstream any more.
            let next = later.values().map(|(until, _)| *until).filter(|it| *it > now).min();
            let wait = async {
                match next {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = runs.changed() => {}
                () = secrets.changed() => {}
                () = wait => {}
            }
        }
    })
}

const REFUSED: &str = "refused";

fn is_told(word: &str, run: &Value) -> bool {
    let phase = serde_json::from_value(run["status"]["phase"].clone()).unwrap_or_default();
    word == state_of(phase).word() || word == REFUSED
}

/// Tells the host a run's state; returns what was noted.
async fn tell(
    config: &Config,
    http: &reqwest::Client,
    upstream: &Upstream,
    run: &Run,
) -> Result<&'static str, String> {
    let state = state_of(run.status.phase);
    let (url, header, body) = request(upstream, run, state);
    let sent = http
        .post(&url)
        .header(header.0, header.1)
        .header("accept", "application/json")
        .json(&body)
        .send()
        .await;
    let answer = sent.map_err(|it| naru_client::chain(&it))?;
    let status = answer.status().as_u16();
    let word = match status {
        200..=299 => state.word(),
        // A commit that the host does not have, or a token that may not: asking again changes nothing.
        400 | 401 | 403 | 404 | 422 => {
            let text: String = answer.text().await.unwrap_or_default().chars().take(200).collect();
            tracing::warn!(
                run = run.metadata.name,
                status,
                text,
                "the host does not take the status of this run"
            );
            REFUSED
        }
        it => return Err(format!("{} answered {it}", upstream.api)),
    };
    let note = json!({"metadata": {"annotations": {TOLD: word}}});
    let noted = config.client.patch_merge(&kinds::RUN, &config.namespace, &run.metadata.name, &note).await;
    match noted {
        Err(error) if !error.is_not_found() => Err(naru_client::chain(&error)),
        _ => Ok(word),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    Success,
    Failure,
    /// It is not the change's fault.
    Error,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Error => "error",
        }
    }
}

fn state_of(phase: RunPhase) -> State {
    match phase {
        RunPhase::Pending | RunPhase::Running => State::Pending,
        RunPhase::Succeeded => State::Success,
        RunPhase::Failed | RunPhase::Refused => State::Failure,
        RunPhase::Cancelled | RunPhase::Interrupted => State::Error,
    }
}

/// URL, header with the token, and body of the call that tells a host a state. Pure.
fn request(upstream: &Upstream, run: &Run, state: State) -> (String, (&'static str, String), Value) {
    // Of a pull request its head: the merge is only ours.
    let head = run.spec.payload.pointer("/pull_request/head/sha").and_then(Value::as_str);
    let sha = head.unwrap_or(&run.spec.sha);
    let context = format!("naru/{}", run.spec.event);
    let said = match (run.status.message.as_str(), state) {
        ("", State::Pending) => "runs".to_owned(),
        ("", it) => it.word().to_owned(),
        (it, _) => it.to_owned(),
    };
    let description: String =
        format!("{}: {said}", run.metadata.name).chars().take(DESCRIPTION_CHARS_MAX).collect();
    let (api, path) = (&upstream.api, upstream.path());
    match upstream.host {
        Host::Gitlab => {
            let word = match state {
                State::Failure => "failed",
                State::Error => "canceled",
                State::Pending if run.status.phase == RunPhase::Running => "running",
                it => it.word(),
            };
            let url = format!("{api}/projects/{}/statuses/{sha}", percent_encode(&path));
            let body = json!({"state": word, "name": context, "description": description});
            (url, ("private-token", upstream.token.clone()), body)
        }
        host => {
            let url = format!("{api}/repos/{path}/statuses/{sha}");
            let scheme = if host == Host::Github { "Bearer" } else { "token" };
            let body = json!({"state": state.word(), "context": context, "description": description});
            (url, ("authorization", format!("{scheme} {}", upstream.token)), body)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_is_told_in_its_own_way() {
        let run: Run = serde_json::from_value(json!({
            "apiVersion": "", "kind": "", "metadata": {"name": "shop-pr-1"},
            "spec": {"repository": "shop", "gitRef": "refs/pull/1/merge", "sha": "merge", "change": "", "event": "pull_request",
                     "pushedAt": "", "payload": {"pull_request": {"head": {"sha": "head"}}}},
            "status": {"phase": "Failed", "message": "x".repeat(200)},
        }))
        .unwrap();
        let of = |host, url: &str| {
            request(&Upstream::new(host, url, None, "t", "s").unwrap(), &run, state_of(run.status.phase))
        };
        let (url, header, body) = of(Host::Github, "https://github.com/acme/shop.git");
        assert_eq!(url, "https://api.github.com/repos/acme/shop/statuses/head");
        assert_eq!(header, ("authorization", "Bearer t".into()));
        assert_eq!((&body["state"], &body["context"]), (&json!("failure"), &json!("naru/pull_request")));
        assert_eq!(body["description"].as_str().unwrap().chars().count(), DESCRIPTION_CHARS_MAX);
        let (url, header, body) = of(Host::Gitlab, "https://gitlab.com/a/b/shop");
        assert_eq!(url, "https://gitlab.com/api/v4/projects/a%2Fb%2Fshop/statuses/head");
        assert_eq!((header.0, &body["state"]), ("private-token", &json!("failed")));
        let (url, header, _) = of(Host::Gitea, "https://git.example.com/a/shop");
        assert_eq!(
            (url.as_str(), header.1.as_str()),
            ("https://git.example.com/api/v1/repos/a/shop/statuses/head", "token t")
        );
    }
}
