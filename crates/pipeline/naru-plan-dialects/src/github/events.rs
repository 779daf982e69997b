//! `on`: which events start a workflow. The table is that of GitHub's page "Events that trigger workflows" and of
//! its schema; filters decide as its page "Workflow syntax" says.

use super::cron;
use super::inputs::{Callable, DISPATCH_INPUT, INPUT};
use super::pattern::Pattern;
use super::reader::{Key, Reader, key};
use crate::Schedule;
use naru_text::yaml::{Data, Node};
use naru_text::{suggest, suggest_hint};
use serde_json::{Map, Value};

struct Event {
    name: &'static str,
    /// What `types` may name; none if there is no `types`.
    types: &'static [&'static str],
    /// What counts if `types` is not given; empty is all.
    default: &'static [&'static str],
    keys: &'static [Key],
    /// Whether something here sends it.
    sent: bool,
}

const fn event(name: &'static str, types: &'static [&'static str]) -> Event {
    Event { name, types, default: &[], keys: TYPES, sent: false }
}

const fn plain(name: &'static str) -> Event {
    Event { name, types: &[], default: &[], keys: &[], sent: false }
}

const TYPES: &[Key] = &[key("types")];
const PUSH: &[Key] = &[
    key("branches"),
    key("branches-ignore"),
    key("tags"),
    key("tags-ignore"),
    key("paths"),
    key("paths-ignore"),
];
const PULL_REQUEST: &[Key] =
    &[key("types"), key("branches"), key("branches-ignore"), key("paths"), key("paths-ignore")];
const BRANCHES: &[Key] = &[key("types"), key("branches"), key("branches-ignore")];
const WORKFLOW_RUN: &[Key] = &[key("types"), key("workflows"), key("branches"), key("branches-ignore")];
const IMAGE_VERSION: &[Key] = &[key("types"), key("names"), key("versions")];

const PULL_REQUEST_TYPES: &[&str] = &[
    "assigned",
    "unassigned",
    "labeled",
    "unlabeled",
    "opened",
    "edited",
    "closed",
    "reopened",
    "synchronize",
    "converted_to_draft",
    "locked",
    "unlocked",
    "enqueued",
    "dequeued",
    "milestoned",
    "demilestoned",
    "ready_for_review",
    "review_requested",
    "review_request_removed",
    "auto_merge_enabled",
    "auto_merge_disabled",
    "stacked",
];
const PULL_REQUEST_DEFAULT: &[&str] = &["opened", "synchronize", "reopened"];
const EDITED: &[&str] = &["created", "edited", "deleted"];

const EVENTS: &[Event] = &[
    Event { name: "push", types: &[], default: &[], keys: PUSH, sent: true },
    Event {
        name: "pull_request",
        types: PULL_REQUEST_TYPES,
        default: PULL_REQUEST_DEFAULT,
        keys: PULL_REQUEST,
        sent: true,
    },
    Event {
        name: "pull_request_target",
        types: PULL_REQUEST_TYPES,
        default: PULL_REQUEST_DEFAULT,
        keys: PULL_REQUEST,
        sent: true,
    },
    Event { keys: &[key("inputs")], sent: true, ..plain("workflow_dispatch") },
    Event { keys: &[key("inputs"), key("outputs"), key("secrets")], sent: true, ..plain("workflow_call") },
    Event { sent: true, ..plain("schedule") },
    Event { keys: TYPES, sent: true, ..plain("repository_dispatch") },
    Event {
        keys: WORKFLOW_RUN,
        sent: true,
        ..event("workflow_run", &["requested", "completed", "in_progress"])
    },
    event("branch_protection_rule", EDITED),
    event("check_run", &["completed", "created", "rerequested", "requested_action"]),
    event("check_suite", &["completed"]),
    plain("create"),
    plain("delete"),
    plain("deployment"),
    plain("deployment_status"),
    event(
        "discussion",
        &[
            "created",
            "edited",
            "deleted",
            "transferred",
            "pinned",
            "unpinned",
            "labeled",
            "unlabeled",
            "locked",
            "unlocked",
            "category_changed",
            "answered",
            "unanswered",
        ],
    ),
    event("discussion_comment", EDITED),
    plain("fork"),
    plain("gollum"),
    Event { keys: IMAGE_VERSION, ..event("image_version", &["created", "ready", "deleted"]) },
    event("issue_comment", EDITED),
    event(
        "issues",
        &[
            "opened",
            "edited",
            "deleted",
            "transferred",
            "pinned",
            "unpinned",
            "closed",
            "reopened",
            "assigned",
            "unassigned",
            "labeled",
            "unlabeled",
            "locked",
            "unlocked",
            "milestoned",
            "demilestoned",
            "field_added",
            "field_removed",
            "typed",
            "untyped",
        ],
    ),
    event("label", EDITED),
    Event { keys: BRANCHES, ..event("merge_group", &["checks_requested"]) },
    event("milestone", &["created", "closed", "opened", "edited", "deleted"]),
    plain("page_build"),
    event("project", &["created", "closed", "reopened", "edited", "deleted"]),
    event("project_card", &["created", "moved", "converted", "edited", "deleted"]),
    event("project_column", &["created", "updated", "moved", "deleted"]),
    plain("public"),
    event("pull_request_comment", EDITED),
    event("pull_request_review", &["submitted", "edited", "dismissed"]),
    event("pull_request_review_comment", EDITED),
    event("registry_package", &["published", "updated"]),
    event(
        "release",
        &["published", "unpublished", "created", "edited", "deleted", "prereleased", "released"],
    ),
    plain("status"),
    event("watch", &["started"]),
];

const SCHEDULE: &[Key] = &[key("cron"), key("timezone")];

/// What `on` comes to.
#[derive(Debug, Default)]
pub struct On {
    /// Whether the trigger is one that the workflow asks for.
    pub applies: bool,
    pub schedules: Vec<Schedule>,
    /// The workflows after whose runs it runs.
    pub follows: Vec<String>,
    pub callable: Option<Callable>,
    /// The inputs of a dispatch, checked and with their types.
    pub inputs: Map<String, Value>,
    /// Every input that one of the events has.
    pub input_names: Vec<String>,
}

impl Reader<'_> {
    pub fn on(&mut self, on: &Node) -> On {
        let mut result = On::default();
        let events: Vec<(&Node, Option<&Node>)> = match &on.data {
            Data::Scalar { .. } => vec![(on, None)],
            Data::Sequence(items) => items.iter().map(|it| (it, None)).collect(),
            Data::Mapping(entries) => entries.iter().map(|(key, value)| (key, Some(value))).collect(),
        };
        if events.is_empty() {
            self.error_hint(on, "`on` names no event", "write `on: push`");
        }
        for (name_node, filter) in events {
            let name = name_node.as_str().unwrap_or_default();
            let Some(event) = EVENTS.iter().find(|it| it.name == name) else {
                let hint = suggest(name, EVENTS.iter().map(|it| it.name))
                    .map_or("write `on: push`".to_owned(), |it| format!("did you mean `{it}`?"));
                self.error_hint(name_node, format!("unknown event `{name}`"), hint);
                continue;
            };
            self.survey.events.push(name.to_owned());
            if name == "workflow_run"
                && let Some(names) = filter.and_then(|it| it.get("workflows"))
            {
                let all = if names.items().is_empty() { std::slice::from_ref(names) } else { names.items() };
                result.follows = all.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect();
            }
            if !event.sent {
                let message =
                    format!("nothing here sends the event `{name}`: this workflow does not run for it");
                self.warn(name_node.place, message, "");
            }
            if name == "schedule" {
                self.schedule(name_node, filter, &mut result);
                continue;
            }
            let filter = filter.filter(|it| !it.is_null());
            if let Some(filter) = filter {
                self.keys(&format!("`{name}`"), filter, event.keys);
                self.types(event, filter);
            }
            let inputs = || filter.and_then(|it| it.get("inputs"));
            match name {
                "workflow_dispatch" => {
                    let inputs = self.inputs(inputs(), DISPATCH_INPUT);
                    result.input_names.extend(inputs.iter().map(|it| it.name.clone()));
                    if self.is_meant(name) {
                        result.inputs = self.given(name_node, &inputs);
                        result.applies = true;
                    }
                }
                "workflow_call" => {
                    let inputs = self.inputs(inputs(), INPUT);
                    result.input_names.extend(inputs.iter().map(|it| it.name.clone()));
                    result.callable = Some(self.callable(inputs, filter));
                }
                _ => {
                    let passes = self.passes(event, on, filter);
                    result.applies |= passes && self.is_meant(name);
                }
            }
        }
        result
    }

    fn is_meant(&self, event: &str) -> bool {
        self.trigger.event == event && self.trigger.workflow.as_ref().is_none_or(|it| *it == self.path)
    }

    fn types(&mut self, event: &Event, filter: &Node) {
        let Some(types) = filter.get("types") else { return };
        for (word, node) in self.words("a type of activity", types) {
            if !event.types.is_empty() && !event.types.contains(&word.as_str()) {
                let message = format!("`{}` has no activity of the type `{word}`", event.name);
                self.error_hint(&node, message, suggest_hint(&word, event.types));
            }
        }
    }

    fn schedule(&mut self, name: &Node, list: Option<&Node>, result: &mut On) {
        let items = list.map(Node::items).unwrap_or_default();
        if items.is_empty() {
            self.error_hint(
                name,
                "`schedule` must be a list of times",
                "write `- cron: '30 5 * * 1'` under it",
            );
        }
        for item in items {
            if !self.keys("a schedule", item, SCHEDULE) {
                continue;
            }
            let Some(cron) = item.get("cron") else {
                self.error_hint(item, "a schedule needs `cron`", "write `- cron: '30 5 * * 1'`");
                continue;
            };
            let line = self.scalar("`cron`", cron).unwrap_or_default();
            if let Err(why) = cron::check(&line) {
                self.error_hint(cron, why, "for example '30 5 * * 1-5': at 5:30 on working days");
                continue;
            }
            if cron::minutes_apart(&line) < cron::MINUTES_APART_MIN {
                let message = "GitHub starts a workflow every five minutes at most".to_owned();
                self.warn(cron.place, message, "here it is started as written");
            }
            let timezone =
                item.get("timezone").and_then(|it| self.scalar("`timezone`", it)).unwrap_or_default();
            let due = self.trigger.schedule.as_ref().is_none_or(|it| *it == line);
            result.applies |= due && self.is_meant("schedule");
            result.schedules.push(Schedule { cron: line, timezone });
        }
    }

    /// Whether the filters of an event let the trigger pass. All filters are read even so, for what is wrong
    /// with them.
    fn passes(&mut self, event: &Event, on: &Node, filter: Option<&Node>) -> bool {
        let empty = Node { place: on.place, data: Data::Mapping(Vec::new()) };
        let filter = filter.unwrap_or(&empty);
        let payload = &self.trigger.payload;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let action = text(&payload["action"]);
        let types = filter.get("types").map(|it| self.words("a type of activity", it));
        let types_pass = match (&action, types) {
            (None, _) => true,
            (Some(action), Some(types)) => types.iter().any(|(it, _)| it == action),
            (Some(action), None) => event.default.is_empty() || event.default.contains(&action.as_str()),
        };
        let names_pass = match filter.get("workflows").map(|it| self.words("a workflow's name", it)) {
            None => true,
            Some(names) => {
                let named = [&payload["workflow_run"]["name"], &payload["workflow"]["name"]];
                names.iter().any(|(it, _)| named.iter().any(|name| name.as_str() == Some(it)))
            }
        };
        if event.name == "workflow_run" && filter.get("workflows").is_none() {
            self.error_hint(
                on,
                "`workflow_run` needs `workflows`",
                "name the workflows whose runs count: `workflows: [CI]`",
            );
        }
        let has = |key: &str| filter.get(key).is_some_and(|it| !it.is_null());
        let git_ref = self.trigger.git_ref.clone();
        let branch = match event.name {
            "pull_request" | "pull_request_target" => {
                text(&payload["pull_request"]["base"]["ref"]).or_else(|| {
                    text(self.trigger.contexts.get("github").map_or(&Value::Null, |it| &it["base_ref"]))
                })
            }
            "workflow_run" => text(&payload["workflow_run"]["head_branch"]),
            "merge_group" => text(&payload["merge_group"]["base_ref"])
                .map(|it| it.trim_start_matches("refs/heads/").to_owned()),
            _ => git_ref.strip_prefix("refs/heads/").map(str::to_owned),
        };
        let tag = git_ref.strip_prefix("refs/tags/").map(str::to_owned);
        let is_push = event.name == "push";
        let branches = self.selects(filter, "branches", &branch.clone().into_iter().collect::<Vec<_>>());
        let tags = self.selects(filter, "tags", &tag.clone().into_iter().collect::<Vec<_>>());
        // A filter on tags alone means that branches do not trigger, and the other way round.
        let refs_pass = if is_push && tag.is_some() {
            tags.unwrap_or(!has("branches") && !has("branches-ignore"))
        } else if is_push {
            branch.is_some() && branches.unwrap_or(!has("tags") && !has("tags-ignore"))
        } else {
            branch.is_none() || branches.unwrap_or(true)
        };
        let changed = self.trigger.changed.clone();
        let files = changed.clone().unwrap_or_default();
        let paths = self.selects(filter, "paths", &files);
        // Filters on paths say nothing about tags, and nothing when the files are not known.
        let paths_pass = changed.is_none() || tag.is_some() || paths.unwrap_or(true);
        types_pass && names_pass && refs_pass && paths_pass
    }

    /// Whether `<kind>` or `<kind>-ignore` lets at least one of the names pass; `None` without such a filter.
    fn selects(&mut self, filter: &Node, kind: &str, names: &[String]) -> Option<bool> {
        let ignore = format!("{kind}-ignore");
        if let (Some(_), Some(it)) = (filter.get(kind), filter.get(&ignore)) {
            self.error(it, format!("`{kind}` and `{ignore}` cannot stand together"));
        }
        for it in [filter.get(kind), filter.get(&ignore)].into_iter().flatten().filter(|it| it.is_null()) {
            self.warn(it.place, "this filter holds no pattern, and so is none", "take it out");
        }
        let patterns_of = |key: &str| filter.get(key).filter(|it| !it.is_null());
        if let Some(it) = patterns_of(kind) {
            let patterns = self.patterns(it);
            if !patterns.is_empty() && patterns.iter().all(|(_, negative)| *negative) {
                self.warn(
                    it.place,
                    format!("`{kind}` only takes away, so nothing is left"),
                    format!("write '**' before the patterns with `!`, or use `{ignore}`"),
                );
            }
            return Some(names.iter().any(|name| matches(&patterns, name)));
        }
        let it = patterns_of(&ignore)?;
        let patterns = self.patterns(it);
        Some(names.iter().any(|name| !matches(&patterns, name)))
    }

    fn patterns(&mut self, node: &Node) -> Vec<(Pattern, bool)> {
        let mut patterns = Vec::new();
        for (text, item) in self.words("a pattern", node) {
            let (negative, pattern) = text.strip_prefix('!').map_or((false, text.as_str()), |it| (true, it));
            match Pattern::parse(pattern) {
                Ok(it) => patterns.push((it, negative)),
                Err(error) => self.error(&item, format!("not a pattern: {error}")),
            }
        }
        patterns
    }
}

/// Patterns in order; a later `!pattern` takes out again, and one after that puts in again.
fn matches(patterns: &[(Pattern, bool)], name: &str) -> bool {
    patterns
        .iter()
        .fold(false, |matched, (pattern, negative)| if pattern.matches(name) { !negative } else { matched })
}
