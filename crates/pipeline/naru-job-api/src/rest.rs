//! The part of GitHub's REST interface that actions use, below `/api/v3`: a repository's files and refs, its
//! runs with their checks, artifacts and caches, and the two ways to start a workflow. What is not served is
//! answered with what is.
//!
//! Each call needs a permission of the job's token; the push token may do everything.

mod answers;

use crate::artifacts::Artifact;
use crate::auth::{Caller, base_url};
use crate::azure::Link;
use crate::cache::Entry;
use crate::code::Content;
use crate::problem::{Kind, Problem, Result, problem};
use crate::{Inner, Shared};
use answers::Repository;
use axum::body::Bytes;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, header};
use jiff::Timestamp;
use naru_objects::{ChangeId, Run, RunSpec, Workflow, kinds, labels, timestamp};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

const BODY_BYTES_MAX: usize = 128 << 10; // GitHub's inputs have at most 65,535 characters
const PAGE_MAX: usize = 100;

const SERVED: &str = "below /repos/<owner>/<repo> there are git/ref/<ref>, contents/<path>, commits/<ref>, compare/<a>...<b>, \
     pulls/<number>, pulls/<number>/files, commits/<ref>/check-runs, commits/<ref>/status, actions/runs, actions/artifacts, actions/caches, actions/workflows, \
     actions/workflows/<file>/dispatches and dispatches";

/// One call on a repository: who asks for what.
struct Call {
    caller: Caller,
    repository: Repository,
    query: HashMap<String, String>,
    accept: String,
    body: Bytes,
}

pub async fn handle(
    State(inner): State<Shared>,
    Path(path): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    request: Request,
) -> Response {
    serve(&inner, &path, query, request).await.unwrap_or_else(|it| it.rest())
}

async fn serve(
    inner: &Inner,
    path: &str,
    query: HashMap<String, String>,
    request: Request,
) -> Result<Response> {
    let caller = inner.caller(request.headers()).await?;
    let segments: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
    let ["repos", owner, name, rest @ ..] = segments.as_slice() else { return Err(not_served(path)) };
    let base = base_url(request.headers(), request.uri());
    let repository = Repository { owner: inner.owner.clone(), name: (*name).to_owned(), base };
    let is_here = owner.eq_ignore_ascii_case(&inner.owner) && caller.sees(name);
    let default_branch = match is_here {
        true => inner.code.default_branch(name).await.map_err(failed)?,
        false => None,
    };
    // Whether there is one that the token does not open is nobody's business.
    let Some(default_branch) = default_branch else {
        return Err(problem(Kind::NotFound, format!("there is no repository {owner}/{name} for this token")));
    };
    let method = request.method().clone();
    let accept =
        request.headers().get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
    let body = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await;
    let body =
        body.map_err(|_| problem(Kind::TooLarge, format!("a request has at most {BODY_BYTES_MAX} bytes")))?;
    let call = Call { caller, repository, query, accept, body };
    match (&method, rest) {
        (&Method::GET, []) => {
            call.may("metadata", "read")?;
            Ok(json_of(call.repository.facts(&default_branch)))
        }
        (&Method::GET, ["git", "ref", git_ref @ ..]) => call.git_ref(inner, &git_ref.join("/")).await,
        (&Method::GET, ["contents", path @ ..]) => {
            call.contents(inner, &default_branch, &path.join("/")).await
        }
        (&Method::GET, ["commits", git_ref @ .., kind @ ("check-runs" | "status" | "statuses")]) => {
            call.checks(inner, &git_ref.join("/"), kind).await
        }
        (&Method::GET, ["commits", git_ref @ ..]) if !git_ref.is_empty() => {
            call.commit(inner, &git_ref.join("/")).await
        }
        (&Method::GET, ["compare", range @ ..]) => call.compare(inner, &range.join("/")).await,
        (&Method::GET, ["pulls", number]) => call.pull(inner, number).await.map(json_of),
        (&Method::GET, ["pulls", number, "files"]) => call.pull_files(inner, number).await,
        (_, ["actions", rest @ ..]) => call.actions(inner, &method, rest, &default_branch).await,
        (&Method::POST, ["dispatches"]) => call.repository_dispatch(inner, &default_branch).await,
        _ => Err(not_served(path)),
    }
}

fn not_served(path: &str) -> Problem {
    problem(Kind::NotFound, format!("/{path} is not served here: {SERVED}"))
}

fn failed(message: String) -> Problem {
    tracing::error!(error = message, "a repository or its runs cannot be looked at");
    problem(Kind::Internal, message)
}

fn json_of(value: Value) -> Response {
    axum::Json(value).into_response()
}

impl Call {
    fn may(&self, scope: &str, right: &str) -> Result<()> {
        self.caller.may(scope, right)
    }

    fn word(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|it| !it.is_empty())
    }

    /// One page of a list, as `per_page` and `page` ask for it.
    fn page<T>(&self, all: Vec<T>) -> (usize, Vec<T>) {
        let number =
            |name: &str, default: usize| self.word(name).and_then(|it| it.parse().ok()).unwrap_or(default);
        let (size, page) = (number("per_page", 30).clamp(1, PAGE_MAX), number("page", 1).max(1));
        let total = all.len();
        (total, all.into_iter().skip((page - 1).saturating_mul(size)).take(size).collect())
    }

    async fn git_ref(&self, inner: &Inner, git_ref: &str) -> Result<Response> {
        self.may("contents", "read")?;
        let full = format!("refs/{}", git_ref.strip_prefix("refs/").unwrap_or(git_ref));
        let sha = inner.code.resolve(&self.repository.name, &full).await.map_err(failed)?;
        let sha = sha.ok_or_else(|| problem(Kind::NotFound, format!("{full} does not exist")))?;
        Ok(json_of(self.repository.git_ref(&full, &sha)))
    }

    async fn contents(&self, inner: &Inner, default_branch: &str, path: &str) -> Result<Response> {
        self.may("contents", "read")?;
        let wanted = self.word("ref").unwrap_or(default_branch);
        let name = &self.repository.name;
        let commit = self.resolved(inner, wanted).await?;
        let found = inner.code.content(name, &commit, path).await.map_err(failed)?;
        match found.ok_or_else(|| problem(Kind::NotFound, format!("{path} does not exist at {wanted}")))? {
            Content::File { bytes, .. } if self.accept.contains("raw") => Ok((
                [
                    (header::CONTENT_TYPE, "application/octet-stream"),
                    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                ],
                bytes,
            )
                .into_response()),
            Content::File { sha, bytes } => Ok(json_of(self.repository.file(path, &sha, &bytes))),
            Content::Directory(rows) => {
                Ok(json_of(rows.iter().map(|it| self.repository.row(path, it)).collect::<Vec<_>>().into()))
            }
        }
    }

    /// The commit that a branch, a tag or a commit means.
    async fn resolved(&self, inner: &Inner, git_ref: &str) -> Result<String> {
        let commit = inner.code.resolve(&self.repository.name, git_ref).await.map_err(failed)?;
        commit.ok_or_else(|| problem(Kind::NotFound, format!("{git_ref} does not exist")))
    }

    async fn commit(&self, inner: &Inner, git_ref: &str) -> Result<Response> {
        self.may("contents", "read")?;
        let sha = self.resolved(inner, git_ref).await?;
        // `application/vnd.github.sha`: the commit's name and nothing else.
        if self.accept.contains("sha") {
            return Ok(sha.into_response());
        }
        let commit = inner.code.commit(&self.repository.name, &sha).await.map_err(failed)?;
        Ok(json_of(self.repository.commit(&sha, &commit)))
    }

    async fn compare(&self, inner: &Inner, range: &str) -> Result<Response> {
        self.may("contents", "read")?;
        let (base, head) = range
            .split_once("...")
            .ok_or_else(|| problem(Kind::Invalid, format!("`{range}` is not written `<base>...<head>`")))?;
        let (base, head) = (self.resolved(inner, base).await?, self.resolved(inner, head).await?);
        let found = inner.code.compare(&self.repository.name, &base, &head).await.map_err(failed)?;
        let status = match (found.ahead, found.behind) {
            (0, 0) => "identical",
            (_, 0) => "ahead",
            (0, _) => "behind",
            _ => "diverged",
        };
        let (_, files) = self.page(found.files);
        Ok(json_of(json!({
            "status": status, "ahead_by": found.ahead, "behind_by": found.behind, "total_commits": found.ahead,
            "files": files.iter().map(answers::changed).collect::<Vec<_>>(),
        })))
    }

    /// A pull request as the last event told of it.
    async fn pull(&self, inner: &Inner, number: &str) -> Result<Value> {
        self.may("pull-requests", "read")?;
        let wanted: Option<u64> = number.parse().ok();
        let of_run = |it: Run| {
            Some(it.spec.payload["pull_request"].clone()).filter(|it| it["number"].as_u64() == wanted)
        };
        let found = self.runs(inner).await?.into_iter().find_map(of_run);
        found
            .filter(|_| wanted.is_some())
            .ok_or_else(|| problem(Kind::NotFound, format!("no run tells of a pull request {number}")))
    }

    async fn pull_files(&self, inner: &Inner, number: &str) -> Result<Response> {
        let pull = self.pull(inner, number).await?;
        let base = self
            .resolved(inner, &format!("refs/heads/{}", pull["base"]["ref"].as_str().unwrap_or_default()))
            .await?;
        let head = self.resolved(inner, &format!("refs/pull/{number}/head")).await?;
        let found = inner.code.compare(&self.repository.name, &base, &head).await.map_err(failed)?;
        let (_, files) = self.page(found.files);
        Ok(json_of(files.iter().map(answers::changed).collect::<Vec<_>>().into()))
    }

    /// The repository's runs, newest first.
    async fn runs(&self, inner: &Inner) -> Result<Vec<Run>> {
        let all = inner.runs.list(&self.repository.name).await.map_err(failed)?;
        let mut runs: Vec<Run> = all.into_iter().filter_map(|it| serde_json::from_value(it).ok()).collect();
        runs.sort_by(|a, b| b.spec.pushed_at.cmp(&a.spec.pushed_at));
        Ok(runs)
    }

    async fn run(&self, inner: &Inner, id: &str) -> Result<Run> {
        let wanted: u64 =
            id.parse().map_err(|_| problem(Kind::Invalid, format!("`{id}` is no run's number")))?;
        let found =
            self.runs(inner).await?.into_iter().find(|it| naru_token::run_id(&it.metadata.uid) == wanted);
        found.ok_or_else(|| problem(Kind::NotFound, format!("there is no run {id} (any more)")))
    }

    async fn checks(&self, inner: &Inner, git_ref: &str, kind: &str) -> Result<Response> {
        self.may(if kind == "check-runs" { "checks" } else { "statuses" }, "read")?;
        let commit = self.resolved(inner, git_ref).await?;
        let mut runs = self.runs(inner).await?;
        runs.retain(|it| it.spec.sha == commit);
        Ok(json_of(match kind {
            "check-runs" => {
                let (total, page) = self.page(runs.iter().flat_map(answers::check_runs).collect());
                json!({"total_count": total, "check_runs": page})
            }
            "statuses" => runs.iter().map(answers::status).collect::<Vec<_>>().into(),
            _ => answers::combined_status(&commit, &runs),
        }))
    }

    async fn actions(
        &self,
        inner: &Inner,
        method: &Method,
        rest: &[&str],
        default_branch: &str,
    ) -> Result<Response> {
        let right = if *method == Method::GET { "read" } else { "write" };
        self.may("actions", right)?;
        match (method, rest) {
            (&Method::GET, ["runs"]) => {
                let (total, page) = self.page(self.runs(inner).await?);
                let page: Vec<Value> = page.iter().map(|it| self.repository.run(it)).collect();
                Ok(json_of(json!({"total_count": total, "workflow_runs": page})))
            }
            (&Method::GET, ["runs", id]) => Ok(json_of(self.repository.run(&self.run(inner, id).await?))),
            (&Method::GET, ["runs", id, "jobs"]) => {
                let run = self.run(inner, id).await?;
                let (total, page) = self.page(answers::jobs(&run));
                Ok(json_of(json!({"total_count": total, "jobs": page})))
            }
            (&Method::GET, ["runs", id, "artifacts"]) => {
                let id: u64 =
                    id.parse().map_err(|_| problem(Kind::Invalid, format!("`{id}` is no run's number")))?;
                self.artifacts(inner, Some(id)).await
            }
            (&Method::GET, ["artifacts"]) => self.artifacts(inner, None).await,
            (&Method::GET, ["artifacts", id]) => {
                let (id, artifact) = self.artifact(inner, id).await?;
                Ok(json_of(self.repository.artifact(id, &artifact)))
            }
            (&Method::GET, ["artifacts", id, "zip"]) => {
                let (_, artifact) = self.artifact(inner, id).await?;
                let url = inner.link(&self.repository.base, &Link::of_artifact(&artifact), Timestamp::now());
                Ok((StatusCode::FOUND, [(header::LOCATION, url)]).into_response())
            }
            (&Method::DELETE, ["artifacts", id]) => {
                let (id, _) = self.artifact(inner, id).await?;
                inner.artifacts.remove(&inner.blobs, id).await?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            (&Method::GET, ["caches"]) => {
                let (total, page) = self.page(self.caches(inner, None).await);
                let page: Vec<Value> = page.iter().map(|(id, it)| answers::cache(*id, it)).collect();
                Ok(json_of(json!({"total_count": total, "actions_caches": page})))
            }
            (&Method::DELETE, ["caches", rest @ ..]) => self.delete_caches(inner, rest).await,
            (&Method::GET, ["workflows"]) => {
                let (total, page) = self.page(self.workflows(inner).await?);
                let page: Vec<Value> = page.iter().map(answers::workflow).collect();
                Ok(json_of(json!({"total_count": total, "workflows": page})))
            }
            (&Method::POST, ["workflows", file, "dispatches"]) => {
                self.workflow_dispatch(inner, file, default_branch).await
            }
            _ => Err(not_served(&format!("repos/{}/actions/{}", self.repository.name, rest.join("/")))),
        }
    }

    async fn artifacts(&self, inner: &Inner, run: Option<u64>) -> Result<Response> {
        let name = self.word("name");
        let mut found = inner
            .artifacts
            .list(Timestamp::now(), |_, it| {
                it.repository == self.repository.name
                    && run.is_none_or(|run| naru_token::run_id(&it.run_uid) == run)
                    && name.is_none_or(|name| it.name == name)
            })
            .await;
        found.reverse();
        let (total, page) = self.page(found);
        let page: Vec<Value> = page.iter().map(|(id, it)| self.repository.artifact(*id, it)).collect();
        Ok(json_of(json!({"total_count": total, "artifacts": page})))
    }

    async fn artifact(&self, inner: &Inner, id: &str) -> Result<(u64, Artifact)> {
        let wanted: Option<u64> = id.parse().ok();
        let is_it = |id: u64, it: &Artifact| Some(id) == wanted && it.repository == self.repository.name;
        let found = inner.artifacts.list(Timestamp::now(), is_it).await.into_iter().next();
        found
            .ok_or_else(|| problem(Kind::NotFound, format!("there is no artifact {id}; it may have expired")))
    }

    async fn caches(&self, inner: &Inner, id: Option<u64>) -> Vec<(u64, Entry)> {
        let (key, git_ref) = (self.word("key").unwrap_or_default(), self.word("ref"));
        let is_it = |it_id: u64, it: &Entry| {
            it.repository == self.repository.name
                && id.is_none_or(|id| id == it_id)
                && it.key.starts_with(key)
                && git_ref.is_none_or(|git_ref| it.scope == git_ref)
        };
        inner.caches.list(is_it).await
    }

    async fn delete_caches(&self, inner: &Inner, rest: &[&str]) -> Result<Response> {
        let gone = match (rest, self.word("key")) {
            ([id], _) => {
                let id =
                    id.parse().map_err(|_| problem(Kind::Invalid, format!("`{id}` is no cache's number")))?;
                self.caches(inner, Some(id)).await
            }
            // Here a key is the whole key, not the beginning of one.
            ([], Some(key)) => {
                let mut all = self.caches(inner, None).await;
                all.retain(|(_, it)| it.key == key);
                all
            }
            _ => return Err(problem(Kind::Invalid, "which cache? Give its number, or `?key=`")),
        };
        if gone.is_empty() {
            return Err(problem(Kind::NotFound, "there is no such cache"));
        }
        for (id, _) in &gone {
            inner.caches.remove(&inner.blobs, *id).await?;
        }
        if let [_] = rest {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        let gone: Vec<Value> = gone.iter().map(|(id, it)| answers::cache(*id, it)).collect();
        Ok(json_of(json!({"total_count": gone.len(), "actions_caches": gone})))
    }

    async fn workflows(&self, inner: &Inner) -> Result<Vec<Workflow>> {
        let all = inner.runs.workflows(&self.repository.name).await.map_err(failed)?;
        Ok(all.into_iter().filter_map(|it| serde_json::from_value(it).ok()).collect())
    }

    fn message(&self) -> Result<Value> {
        let message: Value = serde_json::from_slice(&self.body)
            .map_err(|it| problem(Kind::Invalid, format!("the request is no JSON: {it}")))?;
        match message.is_object() {
            true => Ok(message),
            false => Err(problem(Kind::Invalid, "the request is no JSON object")),
        }
    }

    async fn workflow_dispatch(&self, inner: &Inner, file: &str, default_branch: &str) -> Result<Response> {
        let message = self.message()?;
        let workflows = self.workflows(inner).await?;
        let is_it = |it: &&Workflow| it.spec.file == file || it.spec.file.rsplit('/').next() == Some(file);
        let Some(workflow) = workflows.iter().find(is_it) else {
            let known: Vec<&str> = workflows.iter().map(|it| it.spec.file.as_str()).collect();
            let message = format!("{default_branch} has no workflow {file}; it has {}", known.join(", "));
            return Err(problem(Kind::NotFound, message));
        };
        if !workflow.spec.events.iter().any(|it| it == "workflow_dispatch") {
            let message =
                format!("Workflow does not have 'workflow_dispatch' trigger: {}", workflow.spec.file);
            return Err(problem(Kind::Unprocessable, message));
        }
        let wanted =
            message["ref"].as_str().ok_or_else(|| problem(Kind::Unprocessable, "`ref` is missing"))?;
        let (git_ref, sha) = self.full_ref(inner, wanted).await?;
        let inputs = match &message["inputs"] {
            Value::Null => Map::new(),
            Value::Object(it) => it.clone(),
            _ => return Err(problem(Kind::Unprocessable, "`inputs` is no object")),
        };
        let spec = RunSpec {
            git_ref,
            sha,
            event: "workflow_dispatch".into(),
            message: workflow.spec.name.clone(),
            workflow: workflow.spec.file.clone(),
            inputs,
            ..RunSpec::default()
        };
        self.start(inner, spec).await
    }

    async fn repository_dispatch(&self, inner: &Inner, default_branch: &str) -> Result<Response> {
        self.may("contents", "write")?;
        let message = self.message()?;
        let kind = message["event_type"].as_str().filter(|it| !it.is_empty() && it.len() <= 100);
        let kind =
            kind.ok_or_else(|| problem(Kind::Unprocessable, "`event_type` has 1 to 100 characters"))?;
        let payload = match &message["client_payload"] {
            Value::Null => json!({}),
            it @ Value::Object(_) => it.clone(),
            _ => return Err(problem(Kind::Unprocessable, "`client_payload` is no object")),
        };
        let (git_ref, sha) = self.full_ref(inner, default_branch).await?;
        let spec = RunSpec {
            git_ref,
            sha,
            event: "repository_dispatch".into(),
            message: kind.to_owned(),
            payload: json!({"action": kind, "branch": default_branch, "client_payload": payload}),
            ..RunSpec::default()
        };
        self.start(inner, spec).await
    }

    /// The full name of a branch or tag, and its commit.
    async fn full_ref(&self, inner: &Inner, name: &str) -> Result<(String, String)> {
        for full in [name.to_owned(), format!("refs/heads/{name}"), format!("refs/tags/{name}")] {
            if full.starts_with("refs/")
                && let Some(sha) = inner.code.resolve(&self.repository.name, &full).await.map_err(failed)?
            {
                return Ok((full, sha));
            }
        }
        Err(problem(Kind::Unprocessable, format!("No ref found for: {name}")))
    }

    async fn start(&self, inner: &Inner, mut spec: RunSpec) -> Result<Response> {
        let change = ChangeId::mint();
        spec.repository.clone_from(&self.repository.name);
        spec.change = change.to_string();
        spec.author = self.caller.name();
        spec.pushed_at = timestamp(Timestamp::now());
        let run = json!({
            "apiVersion": kinds::RUN.api_version(), "kind": kinds::RUN.kind,
            "metadata": {
                "name": format!("{}-{change}", self.repository.name),
                "labels": {labels::CHANGE: change.as_str(), labels::APP: self.repository.name}},
            "spec": spec,
        });
        inner.runs.create(&run).await.map_err(failed)?;
        Ok(StatusCode::NO_CONTENT.into_response())
    }
}
