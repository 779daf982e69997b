//! Reusable workflows: a job that stands for the jobs of another file. Files are found by name in
//! [`crate::Trigger::files`]; what the call hands over is checked while the caller is read, and computed by
//! [`expand`] when the job's turn has come.

use super::expression::Evaluation;
use super::inputs::{Callable, Input, InputKind, typed};
use super::late::{Late, asks_for, decode, encode};
use super::names::Names;
use super::place;
use super::reader::{Reader, line_starts};
use super::settle::{settle, value};
use crate::Survey;
use naru_plan::{Call, Job};
use naru_text::yaml::{self, Node};
use naru_text::{Finding, Place, suggest_hint};
use serde_json::{Map, Value, json};

/// GitHub's own limits: how many files deep a call may lead, the first counted, and how many files in all.
const LEVELS_MAX: usize = 10;
const FILES_MAX: usize = 50;

/// So many calls are followed in all: files that each call the next several times would grow without end.
const CALLS_MAX: usize = 256;

/// Reads the called file; what is wrong with it is told where it is called. With the call comes the
/// `concurrency` of the called file, which counts for the call.
pub fn read(
    reader: &mut Reader<'_>,
    job: &Job,
    node: &Node,
    uses: &Node,
    name: &str,
) -> Option<(Call, Option<Node>)> {
    let file = match file_of(name, &reader.path) {
        Ok(it) => it,
        Err(why) => {
            let hint = "write `./.github/workflows/x.yml` or `owner/name/.github/workflows/x.yml@ref`";
            reader.error_hint(uses, format!("`{name}` names no workflow: {why}"), hint);
            return None;
        }
    };
    reader.survey.workflows.insert(name.to_owned());
    if !name.starts_with("./") {
        reader.warn_of_unpinned(uses, name);
    }
    let secrets = secrets(reader, node);
    let with = node.get("with").filter(|it| !it.is_null());
    if let Some(with) = with.filter(|it| reader.mapping("`with`", it)) {
        with.entries().iter().for_each(|(_, it)| reader.check_all(it, &place::JOB));
    }
    let mut way = reader.callers.clone();
    way.push(reader.path.clone());
    if way.contains(&file) {
        let way = way.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(" calls ");
        reader.error(uses, format!("the workflows call each other: {way} calls `{file}`"));
        return None;
    }
    if way.len() >= LEVELS_MAX {
        reader.error(uses, format!("a call may lead {LEVELS_MAX} files deep at most, this is one more"));
        return None;
    }
    if !reader.called.contains(&file) {
        reader.called.push(file.clone());
    }
    if reader.called.len() > FILES_MAX {
        reader.error(uses, format!("a workflow may call {FILES_MAX} files at most"));
        return None;
    }
    reader.calls += 1;
    if reader.calls > CALLS_MAX {
        if reader.calls == CALLS_MAX + 1 {
            reader.error(
                uses,
                format!("a workflow may come to {CALLS_MAX} calls at most, those of called files counted"),
            );
        }
        return None;
    }
    let trigger = reader.trigger;
    let Some(source) = trigger.files.get(&file) else {
        match trigger.absent.get(&file) {
            Some(why) => reader.error(uses, format!("the workflow `{name}` cannot be read: {why}")),
            None if !reader.missing.contains(&file) => reader.missing.push(file),
            None => {}
        }
        return None;
    };
    let (root, findings) = yaml::parse(source);
    let mut inner = Reader {
        findings,
        trigger,
        source,
        lines: line_starts(source),
        path: file.clone(),
        callers: way,
        known: trigger.contexts.clone(),
        missing: std::mem::take(&mut reader.missing),
        called: std::mem::take(&mut reader.called),
        calls: reader.calls,
        survey: Survey::default(),
        names: Names::default(),
        applies: None,
    };
    let workflow = root.as_ref().and_then(|it| inner.workflow(it));
    let Reader { findings, missing, called, calls, survey, .. } = inner;
    reader.calls = calls;
    reader.missing = missing;
    reader.called = called;
    reader.survey.labels.extend(survey.labels);
    reader.survey.actions.extend(survey.actions);
    reader.survey.environments.extend(survey.environments);
    reader.survey.workflows.extend(survey.workflows);
    reader.survey.variables.extend(survey.variables);
    if secrets == Handed::All {
        reader.survey.secrets.extend(survey.secrets);
    }
    for finding in findings.iter().filter(|it| it.is_error()) {
        let message = format!("in {file}:{}: {}", finding.place, finding.message);
        reader.error_hint(uses, message, finding.hint.clone());
    }
    let workflow = workflow?;
    let Some(callable) = workflow.on.callable else {
        let hint = "add `workflow_call:` to its `on`";
        reader.error_hint(uses, format!("the workflow `{name}` cannot be called"), hint);
        return None;
    };
    let concurrency =
        root.as_ref().and_then(|it| it.get("concurrency")).filter(|_| workflow.plan.concurrency.is_some());
    let asks_inputs = concurrency.is_some_and(|it| asks_for(it, "inputs"));
    if concurrency.is_some() && (asks_inputs || node.get("concurrency").is_some()) {
        let message = if asks_inputs {
            format!(
                "the `concurrency` of `{name}` asks for its inputs and is not looked at when it is called"
            )
        } else {
            format!("the `concurrency` of this job counts, and not that of `{name}`")
        };
        reader.warn(uses.place, message, "write one on this job that says all");
    }
    let concurrency = concurrency.filter(|_| !asks_inputs).cloned();
    check_inputs(reader, uses, name, with, &callable.inputs);
    check_secrets(reader, node, uses, name, &secrets, &callable);
    check_permissions(reader, job, uses, &workflow.plan.jobs);
    let inputs: Vec<Value> = callable.inputs.iter().map(input_json).collect();
    let with: Vec<Value> = with
        .map(Node::entries)
        .unwrap_or_default()
        .iter()
        .map(|(key, it)| json!([key.as_str().unwrap_or_default(), encode(it)]))
        .collect();
    let call = Call {
        uses: name.to_owned(),
        jobs: workflow.plan.jobs,
        outputs: callable.outputs,
        given: json!({
            "with": with, "inputs": inputs,
            "secrets": match secrets {
                Handed::All => Value::Null,
                Handed::Named(it) => json!(it),
            },
        }),
        expanded: false,
    };
    Some((call, concurrency))
}

/// What a call hands over of the caller's secrets.
#[derive(Debug, Clone, PartialEq)]
enum Handed {
    All,
    Named(Vec<(String, String)>),
}

fn secrets(reader: &mut Reader<'_>, node: &Node) -> Handed {
    match node.get("secrets") {
        Some(it) if it.as_str() == Some("inherit") => Handed::All,
        Some(it) if !it.is_null() => Handed::Named(reader.texts("`secrets`", it, &place::CALL_SECRETS)),
        _ => Handed::Named(Vec::new()),
    }
}

/// The name under which a called file is asked for. A file of another repository that calls one of its own
/// means the same commit of it.
fn file_of(uses: &str, caller: &str) -> Result<String, &'static str> {
    const FOLDER: &str = ".github/workflows/";
    if uses.contains("${{") {
        return Err("expressions cannot stand here");
    }
    let (path, git_ref) = match uses.split_once('@') {
        Some((path, git_ref)) => (path, Some(git_ref)),
        None => (uses, None),
    };
    let at = if path.starts_with("./") { 2 } else { path.find(FOLDER).unwrap_or(path.len()) };
    let file = path[at..].strip_prefix(FOLDER).ok_or("the file must be in `.github/workflows`")?;
    if file.contains('/') {
        return Err("the file must be in `.github/workflows` itself, not below it");
    }
    if !file.ends_with(".yml") && !file.ends_with(".yaml") {
        return Err("the file must end in `.yml` or `.yaml`");
    }
    if path.starts_with("./") {
        if git_ref.is_some() {
            return Err("a file of the same repository has no version");
        }
        return Ok(match (caller.split_once('@'), caller.split_once(FOLDER)) {
            (Some((_, git_ref)), Some((repository, _))) => format!("{repository}{FOLDER}{file}@{git_ref}"),
            _ => format!("{FOLDER}{file}"),
        });
    }
    let repository = path[..at].trim_end_matches('/');
    if repository.split('/').filter(|it| !it.is_empty()).count() != 2 {
        return Err("it must have an owner and a repository");
    }
    match git_ref {
        None | Some("") => Err("the version after `@` is missing"),
        Some(_) => Ok(uses.to_owned()),
    }
}

fn check_inputs(reader: &mut Reader<'_>, uses: &Node, name: &str, with: Option<&Node>, inputs: &[Input]) {
    let given = with.map(Node::entries).unwrap_or_default();
    let names: Vec<&str> = inputs.iter().map(|it| it.name.as_str()).collect();
    for (key, value) in given {
        let key_name = key.as_str().unwrap_or_default();
        let Some(input) = inputs.iter().find(|it| it.name.eq_ignore_ascii_case(key_name)) else {
            let message = format!("`{name}` takes no input `{key_name}`");
            reader.error_hint(key, message, known(key_name, &names));
            continue;
        };
        let text = value.as_str().unwrap_or_default();
        if !text.contains("${{")
            && let Err(why) = typed(&value.to_json(), input.kind, &input.options)
        {
            reader.error(value, format!("the input `{key_name}` {why}"));
        }
    }
    for input in inputs.iter().filter(|it| it.required && it.default.is_none()) {
        let is_given =
            given.iter().any(|(key, _)| key.as_str().is_some_and(|it| it.eq_ignore_ascii_case(&input.name)));
        if !is_given {
            let hint = format!("add it under `with`; it is a {}", input.kind.name());
            reader.error_hint(uses, format!("`{name}` must be given the input `{}`", input.name), hint);
        }
    }
}

fn check_secrets(
    reader: &mut Reader<'_>,
    node: &Node,
    uses: &Node,
    name: &str,
    handed: &Handed,
    callable: &Callable,
) {
    let Handed::Named(given) = handed else { return };
    let names: Vec<&str> = callable.secrets.iter().map(|it| it.0.as_str()).collect();
    for (secret, _) in given {
        if !names.iter().any(|it| it.eq_ignore_ascii_case(secret)) {
            let entries = node.get("secrets").map(Node::entries).unwrap_or_default();
            let at =
                entries.iter().find(|(key, _)| key.as_str() == Some(secret)).map_or(uses, |(key, _)| key);
            let message = format!("`{name}` takes no secret `{secret}`");
            reader.error_hint(at, message, known(secret, &names));
        }
    }
    for (secret, required) in &callable.secrets {
        if *required && !given.iter().any(|(it, _)| it.eq_ignore_ascii_case(secret)) {
            let hint = "add it under `secrets`, or write `secrets: inherit`";
            reader.error_hint(uses, format!("`{name}` must be given the secret `{secret}`"), hint);
        }
    }
}

fn known(typed: &str, names: &[&str]) -> String {
    if names.is_empty() { "it takes none".into() } else { suggest_hint(typed, names) }
}

/// A called job may not do more than its caller.
fn check_permissions(reader: &mut Reader<'_>, job: &Job, uses: &Node, inner: &[Job]) {
    let Some(given) = &job.permissions else { return };
    for called in inner {
        for (scope, level) in called.permissions.iter().flatten() {
            let has = given.get(scope).map_or("none", String::as_str);
            let enough = has == level || has == "write";
            if !enough {
                let message = format!(
                    "the called job `{}` asks for `{scope}: {level}`, this one has `{scope}: {has}`",
                    called.id
                );
                let hint = format!("write `{scope}: {level}` under this job's `permissions`");
                reader.error_hint(uses, message, hint);
            }
        }
    }
}

fn input_json(input: &Input) -> Value {
    json!({
        "name": input.name, "kind": input.kind.name(),
        "default": input.default.as_ref().map(encode),
    })
}

/// The called file's jobs, as those of this call.
pub fn expand(job: &Job, call: &Call, contexts: &Value) -> Result<Vec<Job>, Finding> {
    let inputs = inputs(call, contexts, job.line)?;
    let mut secrets = job.secrets.clone();
    // Without a list it is all of them, as the caller sees them.
    if let Some(pairs) = call.given["secrets"].as_array() {
        let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
        secrets.push(pairs.iter().map(|it| (text(&it[0]), text(&it[1]))).collect());
    }
    let mut known = Map::new();
    for name in ["github", "vars"] {
        known.insert(name.into(), contexts[name].clone());
    }
    known.insert("inputs".into(), Value::Object(inputs.clone()));
    let mut jobs = Vec::new();
    for inner in &call.jobs {
        let mut it = Job {
            scope: job.key.clone(),
            key: format!("{}/{}", job.key, inner.key),
            name: format!("{} / {}", job.name, inner.name),
            inputs: inputs.clone(),
            secrets: secrets.clone(),
            permissions: inner.permissions.clone().or_else(|| job.permissions.clone()),
            ..inner.clone()
        };
        let Some(mut late) = inner.deferred.as_ref().and_then(Late::of_json) else {
            jobs.push(it);
            continue;
        };
        late.prefix = format!("{} / ", job.name);
        if late.is_ready(&known) {
            it.deferred = None;
            jobs.extend(settle(&it, &late, &known).map_err(|mut it| it.remove(0))?.0);
        } else {
            it.deferred = Some(late.to_json());
            jobs.push(it);
        }
    }
    Ok(jobs)
}

/// The `inputs` of the called file.
fn inputs(call: &Call, contexts: &Value, line: u32) -> Result<Map<String, Value>, Finding> {
    let evaluation = Evaluation::new(contexts);
    let broken = || Finding::error(Place::new(line, 1), "the call was written by another version of naru");
    let mut inputs = Map::new();
    for definition in call.given["inputs"].as_array().ok_or_else(broken)? {
        let name = definition["name"].as_str().ok_or_else(broken)?;
        let kind = definition["kind"].as_str().ok_or_else(broken)?;
        let kind = InputKind::ALL.iter().find(|it| it.0 == kind).ok_or_else(broken)?.1;
        let with = call.given["with"].as_array().ok_or_else(broken)?;
        let given = with.iter().find(|it| it[0].as_str().is_some_and(|it| it.eq_ignore_ascii_case(name)));
        let node = match given {
            Some(pair) => Some(decode(&pair[1]).ok_or_else(broken)?),
            None if definition["default"].is_null() => None,
            None => Some(decode(&definition["default"]).ok_or_else(broken)?),
        };
        let value = match node {
            None => kind.nothing(),
            Some(node) => {
                let computed = value(&node, &evaluation)?.to_json();
                // What an expression leaves empty counts as not given.
                let computed = if computed.is_null() { kind.nothing() } else { computed };
                typed(&computed, kind, &[]).map_err(|why| {
                    Finding::error(node.place, format!("the input `{name}` of `{}` {why}", call.uses))
                })?
            }
        };
        inputs.insert(name.to_owned(), value);
    }
    Ok(inputs)
}
