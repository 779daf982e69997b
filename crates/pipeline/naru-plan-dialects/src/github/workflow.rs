//! A workflow file to the form. Every key is in a table; a key that is in no table is a typo, a key that we do
//! not honour stops the file. Either way the place is named.

use super::job::Outer;
use super::names::Names;
use super::place;
use super::reader::{Key, Reader, key, line_starts};
use super::settle;
use crate::{Lowered, Survey, Trigger};
use naru_plan::{Concurrency, JOBS_MAX, Job, Plan, needs_cycle};
use naru_text::yaml::{self, Data, Node};
use naru_text::{Finding, Place, suggest_hint};

const WORKFLOW_KEYS: &[Key] = &[
    key("name"),
    key("run-name"),
    key("on"),
    key("env"),
    key("defaults"),
    key("concurrency"),
    key("permissions"),
    key("jobs"),
];

/// GitHub's own limit on a file.
const SOURCE_BYTES_MAX: usize = 1024 * 1024;

/// So many findings are told of one file: more are not read, and they are kept in the run's object.
const FINDINGS_MAX: usize = 100;

pub fn lower(path: &str, source: &str, trigger: &Trigger) -> Lowered {
    // Of a file that cannot be read nobody knows what it asks for.
    let meant = trigger.workflow.as_ref().is_none_or(|it| it == path);
    if source.len() > SOURCE_BYTES_MAX {
        let message = format!("the file has {} bytes; a workflow may have {SOURCE_BYTES_MAX}", source.len());
        let finding = Finding::error(Place::new(1, 1), message);
        return Lowered { findings: vec![finding], applies: meant, ..Lowered::default() };
    }
    let (node, findings) = yaml::parse(source);
    let known = trigger.contexts.clone();
    let mut reader = Reader {
        findings,
        trigger,
        source,
        lines: line_starts(source),
        path: path.to_owned(),
        callers: Vec::new(),
        known,
        missing: Vec::new(),
        called: Vec::new(),
        calls: 0,
        survey: Survey::default(),
        names: Names::default(),
        applies: None,
    };
    let Some(root) = node else {
        return Lowered { findings: reader.findings, applies: meant, ..Lowered::default() };
    };
    let read = reader.workflow(&root);
    let Reader { mut findings, missing, mut survey, applies, .. } = reader;
    findings.sort_by_key(|it| it.place);
    shorten(&mut findings);
    let mut lowered = Lowered { findings, missing, applies: applies.unwrap_or(meant), ..Lowered::default() };
    if let Some(read) = read {
        lowered.name.clone_from(&read.plan.name);
        lowered.events.clone_from(&survey.events);
        lowered.schedules = read.on.schedules;
        lowered.follows = read.on.follows;
        if lowered.missing.is_empty() {
            lowered.plan = read.on.applies.then(|| read.plan.clone());
        }
        survey.plan = Some(read.plan);
    }
    lowered.survey = survey;
    lowered
}

/// Keeps the list readable: errors before warnings, and how many more there are.
fn shorten(findings: &mut Vec<Finding>) {
    if findings.len() <= FINDINGS_MAX {
        return;
    }
    let all = findings.len();
    let errors = findings.iter().filter(|it| it.is_error()).count();
    let mut warnings = FINDINGS_MAX.saturating_sub(errors);
    findings.retain(|it| {
        let kept = it.is_error() || warnings > 0;
        warnings = warnings.saturating_sub(usize::from(!it.is_error()));
        kept
    });
    findings.truncate(FINDINGS_MAX);
    let last = findings.last().map(|it| it.place).unwrap_or_default();
    let message = format!("{} more findings are not told", all - findings.len());
    findings.push(if errors > 0 { Finding::error(last, message) } else { Finding::warning(last, message) });
}

/// A workflow that was read.
pub struct Workflow {
    pub plan: Plan,
    pub on: super::events::On,
}

impl Reader<'_> {
    pub fn workflow(&mut self, root: &Node) -> Option<Workflow> {
        if !self.keys("the workflow", root, WORKFLOW_KEYS) {
            return None;
        }
        self.refuse_merge_keys(root);
        let Some(on) = root.get("on") else {
            self.error_hint(root, "the workflow has no `on`", "write `on: push`");
            return None;
        };
        let ids = root.get("jobs").map(Node::entries).unwrap_or_default().iter();
        self.names.jobs = Some(ids.filter_map(|(id, _)| id.as_str().map(str::to_owned)).collect());
        let before = self.findings.iter().filter(|it| it.is_error()).count();
        let on = self.on(on);
        if self.findings.iter().filter(|it| it.is_error()).count() == before || on.applies {
            self.applies = Some(on.applies);
        }
        self.names.inputs = Some(on.input_names.clone());
        // A file that is called in gets its inputs later, and so does one that is only looked at.
        if self.callers.is_empty() && (on.applies || !on.inputs.is_empty()) {
            self.known.insert("inputs".into(), serde_json::Value::Object(on.inputs.clone()));
        }
        let mut plan = Plan {
            name: root
                .get("name")
                .and_then(|it| self.scalar("`name`", it))
                .filter(|it| !it.is_empty())
                .unwrap_or_else(|| self.path.clone()),
            file: self.path.clone(),
            run_name: root.get("run-name").map(|it| self.text(it, &place::RUN_NAME)).unwrap_or_default(),
            concurrency: root.get("concurrency").and_then(|it| self.concurrency(it)),
            jobs: Vec::new(),
        };
        let outer = Outer {
            permissions: root.get("permissions").and_then(|it| self.permissions(it)),
            env: root.get("env").map(|it| self.env(it, &place::WORKFLOW_ENV)).unwrap_or_default(),
            defaults: root.get("defaults").map(|it| self.defaults(it, &place::NONE)).unwrap_or_default(),
            inputs: on.inputs.clone(),
        };
        let Some(jobs) = root.get("jobs") else {
            self.error(root, "the workflow has no `jobs`");
            return None;
        };
        if jobs.entries().is_empty() {
            self.error(jobs, "`jobs` must name at least one job");
            return None;
        }
        let mut count = 0;
        for (id, job) in jobs.entries() {
            let before = plan.jobs.len();
            self.job(id, job, &outer, &mut plan.jobs);
            count += plan.jobs[before..].iter().map(Job::count).sum::<usize>();
            // Before the rest is spread out: a file can come to millions.
            if count > JOBS_MAX {
                self.error(
                    id,
                    format!("with this job the workflow has more than the {JOBS_MAX} that can be run"),
                );
                return None;
            }
        }
        self.needs(jobs, &plan.jobs);
        Some(Workflow { plan, on })
    }

    fn concurrency(&mut self, node: &Node) -> Option<Concurrency> {
        self.check_all(node, &place::WORKFLOW_CONCURRENCY);
        match settle::concurrency(node) {
            Ok((it, warning)) => {
                self.findings.extend(warning);
                it
            }
            Err(finding) => {
                self.findings.push(finding);
                None
            }
        }
    }

    /// `needs` must name jobs and must not go in circles.
    fn needs(&mut self, jobs_node: &Node, jobs: &[Job]) {
        let ids: Vec<&str> = jobs_node.entries().iter().filter_map(|(id, _)| id.as_str()).collect();
        for (id, job) in jobs_node.entries() {
            let Some(needs) = job.get("needs") else { continue };
            let items = match &needs.data {
                Data::Sequence(items) => items.as_slice(),
                _ => std::slice::from_ref(needs),
            };
            for need in items {
                let name = need.as_str().unwrap_or_default();
                if !ids.contains(&name) {
                    let id = id.as_str().unwrap_or_default();
                    let message = format!("job `{id}` needs `{name}`, which does not exist");
                    self.error_hint(need, message, suggest_hint(name, &ids));
                }
            }
        }
        if let Some(circle) = needs_cycle(jobs) {
            let place = jobs_node
                .entries()
                .iter()
                .find(|(id, _)| id.as_str() == circle.first().map(String::as_str))
                .and_then(|(_, job)| job.get("needs"))
                .unwrap_or(jobs_node);
            let way = circle.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(" needs ");
            let finding = Finding::error(place.place, format!("the jobs wait for each other: {way}"));
            self.findings.push(finding.hint("take one of the `needs` out"));
        }
    }
}

#[cfg(test)]
mod tests;
