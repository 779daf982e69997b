//! An event carried out. Doing it again changes nothing: pushes are what git's log of a ref says, and the run
//! of a pull request is named after the delivery.

use crate::Config;
use crate::event::{Event, PullRequest};
use crate::upstream::Upstream;
use naru_git::{Noted, Remote};
use naru_objects::{ChangeId, RunSpec, Workflow, dns_label, kinds, labels, timestamp};
use serde_json::{Value, json};

/// What `pull_request` means when a workflow names no types.
const USUAL_ACTIONS: [&str; 3] = ["opened", "synchronize", "reopened"];

/// A payload beyond this is no event that a person has caused, and would fill the store of objects.
const PAYLOAD_BYTES_MAX: usize = 512 << 10;

/// Does what an event asks for; returns what was done, for the host's list of deliveries.
pub async fn execute(
    config: &Config,
    repository: &str,
    upstream: &Upstream,
    event: Event,
    digest: &str,
) -> Result<String, String> {
    let remote = Remote { url: upstream.url.clone(), token: upstream.token.clone() };
    match event {
        Event::Nothing(why) => Ok(why),
        Event::Push { git_ref, is_deleted: true, .. } => {
            naru_git::delete_ref(&config.git, repository, &git_ref).await.map_err(text)?;
            Ok(format!("{git_ref} is deleted"))
        }
        Event::Push { git_ref, default_branch, .. } => {
            prepare(config, repository, &remote, &default_branch, &git_ref).await?;
            let refs = [(git_ref.clone(), git_ref.clone())];
            naru_git::fetch(&config.git, repository, &remote, &refs, Noted::AsPush).await.map_err(text)?;
            let runs =
                naru_git::record(&config.client, &config.git.root, repository, &config.namespace).await;
            let runs = runs.map_err(text)?;
            let names: Vec<&str> = runs.iter().map(naru_objects::name_of).collect();
            Ok(match names.is_empty() {
                true => format!("{git_ref} is up to date"),
                false => format!("{git_ref} runs as {}", names.join(", ")),
            })
        }
        Event::PullRequest(it) => pull_request(config, repository, &remote, *it, digest).await,
    }
}

fn text(error: impl std::error::Error) -> String {
    naru_client::chain(&error)
}

/// Brings the default branch here, without a run, if another ref comes before it: workflows and caches look
/// at it.
async fn prepare(
    config: &Config,
    repository: &str,
    remote: &Remote,
    default_branch: &str,
    git_ref: &str,
) -> Result<(), String> {
    if default_branch.is_empty() {
        return Ok(());
    }
    let full = format!("refs/heads/{default_branch}");
    let there = naru_git::resolve(&config.git.root, repository, &full).await.map_err(text)?;
    if there.is_none() && full != git_ref {
        let refs = [(full.clone(), full)];
        naru_git::fetch(&config.git, repository, remote, &refs, Noted::Quietly).await.map_err(text)?;
    }
    let head = naru_git::default_branch(&config.git.root, repository).await.map_err(text)?;
    if head.as_deref().is_some_and(|it| it != default_branch) {
        naru_git::set_default_branch(&config.git, repository, default_branch).await.map_err(text)?;
    }
    Ok(())
}

async fn pull_request(
    config: &Config,
    repository: &str,
    remote: &Remote,
    it: PullRequest,
    digest: &str,
) -> Result<String, String> {
    let workflows = workflows(config, repository).await?;
    let asks = |event: &str| workflows.iter().any(|it| it.spec.events.iter().any(|it| it == event));
    if !USUAL_ACTIONS.contains(&it.action.as_str()) && !asks("pull_request") && !asks("pull_request_target") {
        return Ok(format!("no workflow asks for `{}` of a pull request", it.action));
    }
    if it.payload.to_string().len() > PAYLOAD_BYTES_MAX {
        return Err(format!("the event has more than {PAYLOAD_BYTES_MAX} bytes"));
    }
    let number = it.number;
    let (base, head) = (format!("refs/heads/{}", it.base_ref), format!("refs/pull/{number}/head"));
    prepare(config, repository, remote, &it.default_branch, &base).await?;
    // The base as it is now, unless a push of it is on its way and is to make a run.
    let refs = [(it.fetch_ref.clone(), head.clone()), (base.clone(), format!("refs/pull/{number}/base"))];
    naru_git::fetch(&config.git, repository, remote, &refs, Noted::Quietly).await.map_err(text)?;
    let commit = async |name: &str| {
        let found = naru_git::resolve(&config.git.root, repository, name).await.map_err(text)?;
        found.ok_or_else(|| format!("{name} is not there after it was fetched"))
    };
    let (base_sha, head_sha) = (commit(&refs[1].1).await?, commit(&head).await?);
    let mut made = Vec::new();
    if asks("pull_request_target") {
        // Runs what the base branch says, with all rights: the change itself is only spoken of.
        let spec = RunSpec {
            git_ref: base.clone(),
            sha: base_sha.clone(),
            event: "pull_request_target".into(),
            ..spec_of(repository, &it)
        };
        made.push(create(config, &format!("target-{digest}"), number, spec).await?);
    }
    let name = format!("refs/pull/{number}/merge");
    let was_merged = it.action == "closed" && it.payload["pull_request"]["merged"] == true;
    let merged = naru_git::merge(&config.git, repository, &base_sha, &head_sha, &name).await.map_err(text)?;
    let (git_ref, sha) = match merged {
        // What went into its branch runs there, as on GitHub.
        _ if was_merged => (base.clone(), base_sha.clone()),
        Some(sha) => (name, sha),
        // What is closed runs although it cannot be merged any more, as it was.
        None if it.action == "closed" => (head, head_sha),
        None => {
            made.push(format!("nothing, because it conflicts with {}", it.base_ref));
            return Ok(format!("#{number} runs as {}", made.join(", ")));
        }
    };
    let spec = RunSpec {
        git_ref,
        sha,
        before: base_sha,
        event: "pull_request".into(),
        untrusted: it.is_from_fork,
        ..spec_of(repository, &it)
    };
    made.push(create(config, digest, number, spec).await?);
    Ok(format!("#{number} runs as {}", made.join(", ")))
}

fn spec_of(repository: &str, it: &PullRequest) -> RunSpec {
    RunSpec {
        repository: repository.to_owned(),
        author: it.author.clone(),
        message: it.title.clone(),
        pushed_at: timestamp(jiff::Timestamp::now()),
        base_ref: it.base_ref.clone(),
        head_ref: it.head_ref.clone(),
        payload: it.payload.clone(),
        ..RunSpec::default()
    }
}

async fn workflows(config: &Config, repository: &str) -> Result<Vec<Workflow>, String> {
    let all = config.client.list(&kinds::WORKFLOW, Some(&config.namespace), "").await.map_err(text)?;
    let all = all.into_iter().filter_map(|it| serde_json::from_value::<Workflow>(it).ok());
    Ok(all.filter(|it| it.spec.repository == repository).collect())
}

/// Room for a run's name, which is also the value of a label.
const RUN_NAME_CHARS_MAX: usize = 56;

async fn create(config: &Config, suffix: &str, number: u64, mut spec: RunSpec) -> Result<String, String> {
    let change = ChangeId::mint();
    spec.change = change.to_string();
    let end = format!("-pr-{number}-{suffix}");
    let name = format!("{}{end}", dns_label(&spec.repository, RUN_NAME_CHARS_MAX - end.len()));
    let run: Value = json!({
        "apiVersion": kinds::RUN.api_version(), "kind": kinds::RUN.kind,
        "metadata": {
            "name": name, "namespace": config.namespace,
            "labels": {labels::CHANGE: change.as_str(), labels::APP: spec.repository}},
        "spec": spec,
    });
    match config.client.create(&kinds::RUN, &run).await {
        Ok(_) => Ok(name),
        // Delivered twice.
        Err(error) if error.is_already_exists() => Ok(name),
        Err(error) => Err(text(error)),
    }
}
