//! Verdicts back to the host: each run of a repository that has an upstream is a commit status there, and each of
//! its jobs is one, with the address where people see the run.
//!
//! What was last written stands in an annotation of the run, so that a daemon that comes back writes only
//! what is new.

use crate::Config;
use crate::upstream::{Host, LABEL, Upstream};
use naru_objects::{JobPhase, Run, RunPhase, kinds, label_of, percent_encode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// What the host was told last, as JSON.
const TOLD: &str = "naru.dev/upstream-statuses";

/// Jobs of a run with a status of their own; a page of a commit with more is no help, and a host takes a thousand.
const JOBS_TOLD_MAX: usize = 50;

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
        let mut told = HashMap::<String, Told>::new();
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
                if later.get(&uid).is_some_and(|(until, _)| *until > now) {
                    continue;
                }
                let Ok(run) = serde_json::from_value::<Run>((*object).clone()) else { continue };
                let known = told.entry(uid.clone()).or_insert_with(|| noted(&object));
                if !statuses_of(&run).iter().any(|it| is_news(known, it)) {
                    continue;
                }
                match tell(&config, &http, upstream, &run, known).await {
                    Ok(()) => drop(later.remove(&uid)),
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

/// What was told of a run, by context: the state's word, or that the host does not want to hear it.
type Told = BTreeMap<String, String>;

/// One status on the host.
#[derive(Debug, Clone, PartialEq)]
struct Status {
    context: String,
    state: State,
    description: String,
}

/// The statuses of a run: its own, and one for each job. A job that a called workflow brought in is one, too;
/// the call itself says nothing more.
fn statuses_of(run: &Run) -> Vec<Status> {
    let context = format!("naru/{}", run.spec.event);
    let describe = |name: &str, message: &str, state: State, otherwise: &str| {
        let said = match (message, state) {
            ("", State::Pending) => "runs",
            ("", _) => otherwise,
            (it, _) => it,
        };
        format!("{name}: {said}").chars().take(DESCRIPTION_CHARS_MAX).collect::<String>()
    };
    let state = state_of(run.status.phase);
    let own = describe(&run.metadata.name, &run.status.message, state, state.word());
    let mut all = vec![Status { context: context.clone(), state, description: own }];
    let jobs = &run.status.jobs;
    let leads = |key: &str| jobs.iter().any(|it| it.behind == key);
    for job in jobs.iter().filter(|it| !leads(&it.key)).take(JOBS_TOLD_MAX) {
        let state = match job.phase {
            JobPhase::Pending | JobPhase::Running => State::Pending,
            JobPhase::Succeeded | JobPhase::Skipped => State::Success,
            JobPhase::Failed => State::Failure,
            JobPhase::Cancelled | JobPhase::Interrupted => State::Error,
        };
        let otherwise = if job.phase == JobPhase::Skipped { "skipped" } else { state.word() };
        let description = describe(&run.metadata.name, &job.message, state, otherwise);
        // A key and not a name: two jobs may be called the same.
        all.push(Status { context: format!("{context}/{}", job.key), state, description });
    }
    all
}

fn noted(run: &Value) -> Told {
    let text = run["metadata"]["annotations"][TOLD].as_str().unwrap_or_default();
    serde_json::from_str(text).unwrap_or_default()
}

fn is_news(told: &Told, status: &Status) -> bool {
    told.get(&status.context).is_none_or(|it| it != status.state.word() && it != REFUSED)
}

/// Tells the host what is new of a run, and notes it, also if it could not tell all.
async fn tell(
    config: &Config,
    http: &reqwest::Client,
    upstream: &Upstream,
    run: &Run,
    told: &mut Told,
) -> Result<(), String> {
    let before = told.clone();
    let mut done = Ok(());
    for status in statuses_of(run).iter().filter(|it| is_news(&before, it)) {
        match tell_one(config, http, upstream, run, status).await {
            Ok(word) => drop(told.insert(status.context.clone(), word.to_owned())),
            Err(error) => {
                done = Err(error);
                break;
            }
        }
    }
    if *told != before {
        let text = serde_json::to_string(told).expect("texts always serialise");
        let note = json!({"metadata": {"annotations": {TOLD: text}}});
        let noted =
            config.client.patch_merge(&kinds::RUN, &config.namespace, &run.metadata.name, &note).await;
        if let Err(error) = noted
            && !error.is_not_found()
        {
            return Err(naru_client::chain(&error));
        }
    }
    done
}

/// Tells the host one state; returns what is noted.
async fn tell_one(
    config: &Config,
    http: &reqwest::Client,
    upstream: &Upstream,
    run: &Run,
    status: &Status,
) -> Result<&'static str, String> {
    let target = format!("{}/runs/{}", config.public_url.trim_end_matches('/'), run.metadata.name);
    let (url, header, body) = request(upstream, run, status, &target);
    let sent = http
        .post(&url)
        .header(header.0, header.1)
        .header("accept", "application/json")
        .json(&body)
        .send()
        .await;
    let answer = sent.map_err(|it| naru_client::chain(&it))?;
    match answer.status().as_u16() {
        200..=299 => Ok(status.state.word()),
        // A commit that the host does not have, or a token that may not: asking again changes nothing.
        code @ (400 | 401 | 403 | 404 | 422) => {
            let text: String = answer.text().await.unwrap_or_default().chars().take(200).collect();
            let (run, context) = (&run.metadata.name, &status.context);
            tracing::warn!(%run, context, code, text, "the host does not take the status of this run");
            Ok(REFUSED)
        }
        it => Err(format!("{} answered {it}", upstream.api)),
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
fn request(
    upstream: &Upstream,
    run: &Run,
    status: &Status,
    target: &str,
) -> (String, (&'static str, String), Value) {
    // Of a pull request its head: the merge is only ours.
    let head = run.spec.payload.pointer("/pull_request/head/sha").and_then(Value::as_str);
    let sha = head.unwrap_or(&run.spec.sha);
    let Status { context, state, description } = status;
    let (api, path) = (&upstream.api, upstream.path());
    match upstream.host {
        Host::Gitlab => {
            let word = match state {
                State::Failure => "failed",
                State::Error => "canceled",
                State::Pending if run.status.phase == RunPhase::Running => "running",
                State::Pending | State::Success => state.word(),
            };
            let url = format!("{api}/projects/{}/statuses/{sha}", percent_encode(&path));
            let body =
                json!({"state": word, "name": context, "description": description, "target_url": target});
            (url, ("private-token", upstream.token.clone()), body)
        }
        host => {
            let url = format!("{api}/repos/{path}/statuses/{sha}");
            let scheme = if host == Host::Github { "Bearer" } else { "token" };
            let body = json!({
                "state": state.word(), "context": context, "description": description, "target_url": target});
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
            "status": {"phase": "Failed", "message": "x".repeat(200), "jobs": [
                {"key": "build", "name": "Build", "phase": "Succeeded"}, {"key": "call", "name": "c", "phase": "Failed"},
                {"key": "call-x", "name": "x", "behind": "call", "phase": "Failed", "message": "why"},
                {"key": "last", "name": "Last", "phase": "Skipped"}]},
        }))
        .unwrap();
        let of = |host, url: &str| {
            let upstream = Upstream::new(host, url, None, "t", "s").unwrap();
            request(&upstream, &run, &statuses_of(&run)[0], "http://naru/runs/shop-pr-1")
        };
        let all = statuses_of(&run);
        let shown: Vec<_> =
            all.iter().map(|it| (it.context.as_str(), it.state.word(), &*it.description)).collect();
        assert_eq!(
            shown[1..],
            [
                ("naru/pull_request/build", "success", "shop-pr-1: success"),
                ("naru/pull_request/call-x", "failure", "shop-pr-1: why"),
                ("naru/pull_request/last", "success", "shop-pr-1: skipped"),
            ]
        );
        let told = Told::from([
            ("naru/pull_request".into(), "failure".into()),
            (all[1].context.clone(), REFUSED.into()),
        ]);
        assert_eq!(all.iter().map(|it| is_news(&told, it)).collect::<Vec<_>>(), [false, false, true, true]);
        let (url, header, body) = of(Host::Github, "https://github.com/acme/shop.git");
        assert_eq!(url, "https://api.github.com/repos/acme/shop/statuses/head");
        assert_eq!(header, ("authorization", "Bearer t".into()));
        assert_eq!((&body["state"], &body["context"]), (&json!("failure"), &json!("naru/pull_request")));
        assert_eq!(body["target_url"], "http://naru/runs/shop-pr-1");
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
