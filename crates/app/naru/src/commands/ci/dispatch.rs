//! `naru ci dispatch`: runs a workflow by hand, or sends a `repository_dispatch`.

use crate::cli::Global;
use crate::connection;
use crate::error::{Context, Error, Result};
use naru_objects::{ChangeId, NAMESPACE, RunSpec, Workflow, kinds, labels, timestamp};
use naru_source::Source;
use serde_json::{Map, Value, json};
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct DispatchArgs {
    repository: String,
    /// The file, its name, or the workflow's name. Left out with --event.
    workflow: Option<String>,
    /// The branch or tag whose commit and workflow is meant; the default branch if left out.
    #[arg(long = "ref", value_name = "REF")]
    git_ref: Option<String>,
    /// What the workflow asks for: `-f version=1.2`.
    #[arg(short = 'f', long = "field", value_name = "NAME=VALUE")]
    fields: Vec<String>,
    /// Send `repository_dispatch` with this type to every workflow that asks for it.
    #[arg(long, value_name = "TYPE", conflicts_with = "workflow")]
    event: Option<String>,
    /// JSON that goes with --event.
    #[arg(long, value_name = "JSON", requires = "event")]
    payload: Option<String>,
}

/// The full name of a branch or tag and the commit that it names now.
async fn resolve(global: &Global, repository: &str, name: &str) -> Result<(String, String)> {
    let endpoints = connection::endpoints(global)?;
    let path = connection::push_token_path(&global.data_dir);
    let token = std::fs::read_to_string(&path).context(|| format!("cannot read {}", path.display()))?;
    let source = Source::new(format!("{}/git", endpoints.http), token.trim());
    let refs =
        source.refs(repository).await.context(|| format!("cannot ask for the refs of {repository}"))?;
    let full = [name.to_owned(), format!("refs/heads/{name}"), format!("refs/tags/{name}")];
    full.iter()
        .find_map(|it| refs.get(it).map(|sha| (it.clone(), sha.clone())))
        .ok_or_else(|| Error::new(format!("`{repository}` has no branch or tag `{name}`")))
}

pub async fn run(global: &Global, args: &DispatchArgs) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let objects = client.list(&kinds::WORKFLOW, Some(NAMESPACE), "").await?;
    let workflows: Vec<Workflow> = (objects.into_iter())
        .filter_map(|it| serde_json::from_value::<Workflow>(it).ok())
        .filter(|it| it.spec.repository == args.repository)
        .collect();
    if workflows.is_empty() {
        return Err(Error::new(format!("no workflow of a repository `{}` is known", args.repository))
            .hint("push its default branch once; `kubectl get workflows` shows what is known"));
    }
    let event = if args.event.is_some() { "repository_dispatch" } else { "workflow_dispatch" };
    let meant = match (&args.workflow, &args.event) {
        (Some(name), _) => {
            let same = |it: &&Workflow| {
                let file = &it.spec.file;
                file == name || it.spec.name == *name || file.rsplit('/').next() == Some(name)
            };
            let known = || workflows.iter().map(|it| it.spec.file.as_str()).collect::<Vec<_>>().join(", ");
            Some(workflows.iter().find(same).ok_or_else(|| {
                Error::new(format!("`{}` has no workflow `{name}`", args.repository))
                    .hint(format!("it has {}", known()))
            })?)
        }
        (None, Some(_)) => None,
        (None, None) => {
            return Err(
                Error::new("which workflow?").hint("name its file, or send an event with --event TYPE")
            );
        }
    };
    if let Some(it) = meant
        && !it.spec.events.iter().any(|it| it == event)
    {
        return Err(Error::new(format!("{} cannot be run by hand", it.spec.file))
            .hint("add `workflow_dispatch:` to its `on:`"));
    }
    let from = meant.unwrap_or(&workflows[0]);
    let (git_ref, sha) = match &args.git_ref {
        None => (from.spec.git_ref.clone(), from.spec.sha.clone()),
        Some(git_ref) => resolve(global, &args.repository, git_ref).await?,
    };
    let mut inputs = Map::new();
    for field in &args.fields {
        let (name, value) =
            field.split_once('=').ok_or_else(|| Error::new(format!("`-f {field}` is not NAME=VALUE")))?;
        inputs.insert(name.to_owned(), json!(value));
    }
    let mut payload = Value::Null;
    if let Some(action) = &args.event {
        let client_payload = match &args.payload {
            Some(it) => {
                serde_json::from_str(it).map_err(|it| Error::new(format!("--payload is not JSON: {it}")))?
            }
            None => json!({}),
        };
        payload = json!({"action": action, "client_payload": client_payload});
    }
    let change = ChangeId::mint();
    let spec = RunSpec {
        repository: args.repository.clone(),
        git_ref,
        sha,
        change: change.to_string(),
        event: event.into(),
        author: super::who(),
        message: meant
            .map_or_else(|| args.event.clone().unwrap_or_default(), |it| format!("{} by hand", it.spec.name)),
        pushed_at: timestamp(jiff::Timestamp::now()),
        payload,
        workflow: meant.map(|it| it.spec.file.clone()).unwrap_or_default(),
        inputs,
        ..RunSpec::default()
    };
    let name = format!("{}-{}", args.repository, change.as_str());
    let object = json!({
        "apiVersion": kinds::RUN.api_version(), "kind": kinds::RUN.kind,
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": {labels::CHANGE: change.as_str(), labels::APP: args.repository}},
        "spec": spec,
    });
    client.create(&kinds::RUN, &object).await?;
    println!("{name}: `naru logs -f run/{name}` follows it");
    Ok(ExitCode::SUCCESS)
}
