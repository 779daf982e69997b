//! `on`: which events start a workflow. The table is that of GitHub's page "Events that trigger workflows" and of
//! its schema; filters decide as its page "Workflow syntax" says.

use super::cron;
use super::pattern::Pattern;
use super::place;
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

const INPUT: &[Key] = &[key("description"), key("type"), key("required"), key("default")];
const DISPATCH_INPUT: &[Key] =
    &[key("description"), key("type"), key("required"), key("default"), key("options")];
const SECRET: &[Key] = &[key("description"), key("required")];
const OUTPUT: &[Key] = &[key("description"), key("value")];
const SCHEDULE: &[Key] = &[key("cron"), key("timezone")];

/// What a workflow asks to be given.
#[derive(Debug, Clone)]
pub struct Input {
    pub name: String,
    pub kind: InputKind,
    pub required: bool,
    pub default: Option<Node>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    String,
    Boolean,
    Number,
    Choice,
    Environment,
}

impl InputKind {
    pub const ALL: [(&'static str, Self); 5] = [
        ("string", Self::String),
        ("boolean", Self::Boolean),
        ("number", Self::Number),
        ("choice", Self::Choice),
        ("environment", Self::Environment),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|it| it.1 == self).expect("the table has every kind").0
    }

    /// What stands for an input that nobody gave.
    pub fn nothing(self) -> Value {
        match self {
            Self::Boolean => Value::Bool(false),
            Self::Number => Value::from(0),
            _ => Value::String(String::new()),
        }
    }
}

/// What `workflow_call` says.
#[derive(Debug, Clone, Default)]
pub struct Callable {
    pub inputs: Vec<Input>,
    /// Names, and whether the caller must give them.
    pub secrets: Vec<(String, bool)>,
    pub outputs: Vec<(String, String)>,
}

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

    fn inputs(&mut self, node: Option<&Node>, table: &[Key]) -> Vec<Input> {
        let Some(node) = node.filter(|it| !it.is_null()) else { return Vec::new() };
        if !self.mapping("`inputs`", node) {
            return Vec::new();
        }
        let is_dispatch = table.len() == DISPATCH_INPUT.len();
        let mut inputs: Vec<Input> = Vec::new();
        for (name_node, value) in node.entries() {
            let name = name_node.as_str().unwrap_or_default().to_owned();
            let what = format!("the input `{name}`");
            if inputs.iter().any(|it| it.name.eq_ignore_ascii_case(&name)) {
                self.error(name_node, format!("there are two inputs `{name}`; case does not count"));
            }
            let nothing = Node { place: value.place, data: Data::Mapping(Vec::new()) };
            let value = if value.is_null() && is_dispatch { &nothing } else { value };
            if !self.keys(&what, value, table) {
                continue;
            }
            let kinds: Vec<&str> =
                InputKind::ALL.iter().take(if is_dispatch { 5 } else { 3 }).map(|it| it.0).collect();
            let kind = match value.get("type") {
                None if is_dispatch => InputKind::String,
                None => {
                    self.error_hint(
                        name_node,
                        format!("{what} has no `type`"),
                        format!("known here: {}", kinds.join(", ")),
                    );
                    InputKind::String
                }
                Some(it) => {
                    let word = it.as_str().unwrap_or_default();
                    match InputKind::ALL.iter().find(|kind| kind.0 == word && kinds.contains(&word)) {
                        Some(kind) => kind.1,
                        None => {
                            self.error_hint(
                                it,
                                format!("{what} cannot be of the type `{word}`"),
                                suggest_hint(word, &kinds),
                            );
                            InputKind::String
                        }
                    }
                }
            };
            let options: Vec<String> = match value.get("options") {
                Some(it) => self.words("an option", it).into_iter().map(|it| it.0).collect(),
                None => Vec::new(),
            };
            match (kind, value.get("options")) {
                (InputKind::Choice, _) if options.is_empty() => {
                    self.error_hint(name_node, format!("{what} offers no choice"), "list them in `options`");
                }
                (InputKind::Choice, _) | (_, None) => {}
                (_, Some(it)) => self.error_hint(it, "`options` belong to a choice", "write `type: choice`"),
            }
            let default = value.get("default").filter(|it| !it.is_null()).cloned();
            if let Some(it) = &default {
                let allowed = if is_dispatch { &place::NONE } else { &place::INPUT_DEFAULT };
                let text = self.text(it, allowed);
                if !text.contains("${{")
                    && let Err(why) = typed(&it.to_json(), kind, &options)
                {
                    self.error(it, format!("the default of {what} {why}"));
                }
            }
            let required = value.get("required").is_some_and(|it| self.bool_of("required", it));
            inputs.push(Input { name, kind, required, default, options });
        }
        inputs
    }

    fn callable(&mut self, inputs: Vec<Input>, node: Option<&Node>) -> Callable {
        let mut callable = Callable { inputs, ..Callable::default() };
        let under = |key: &str| node.and_then(|it| it.get(key)).filter(|it| !it.is_null());
        if let Some(secrets) = under("secrets").filter(|it| self.mapping("`secrets`", it)) {
            for (name, value) in secrets.entries() {
                let has = !value.is_null() && self.keys("a secret", value, SECRET);
                let required = has && value.get("required").is_some_and(|it| self.bool_of("required", it));
                callable.secrets.push((name.as_str().unwrap_or_default().to_owned(), required));
            }
        }
        if let Some(outputs) = under("outputs").filter(|it| self.mapping("`outputs`", it)) {
            for (name, value) in outputs.entries() {
                if !self.keys("an output", value, OUTPUT) {
                    continue;
                }
                let Some(it) = value.get("value") else {
                    self.error_hint(
                        name,
                        "the output has no `value`",
                        "write `value: ${{ jobs.<id>.outputs.<name> }}`",
                    );
                    continue;
                };
                let text = self.text(it, &place::CALL_OUTPUT);
                callable.outputs.push((name.as_str().unwrap_or_default().to_owned(), text));
            }
        }
        callable
    }

    /// What a dispatch gave, checked against what the workflow asks for.
    fn given(&mut self, at: &Node, inputs: &[Input]) -> Map<String, Value> {
        let mut given = Map::new();
        let trigger = self.trigger;
        let names: Vec<&str> = inputs.iter().map(|it| it.name.as_str()).collect();
        for name in trigger.inputs.keys() {
            if !inputs.iter().any(|it| it.name.eq_ignore_ascii_case(name)) {
                self.error_hint(
                    at,
                    format!("the workflow takes no input `{name}`"),
                    suggest_hint(name, &names),
                );
            }
        }
        for input in inputs {
            let found = trigger.inputs.iter().find(|(name, _)| name.eq_ignore_ascii_case(&input.name));
            let value = match (found, &input.default) {
                (Some((_, it)), _) => it.clone(),
                (None, Some(default)) => default.to_json(),
                (None, None) if input.required => {
                    let name = &input.name;
                    self.error_hint(
                        at,
                        format!("the input `{name}` must be given"),
                        format!("add `-f {name}=...`"),
                    );
                    continue;
                }
                (None, None) => input.kind.nothing(),
            };
            match typed(&value, input.kind, &input.options) {
                Ok(it) => {
                    given.insert(input.name.clone(), it);
                }
                Err(why) => self.error(at, format!("the input `{}` {why}", input.name)),
            }
        }
        given
    }
}

/// A value as its input's type wants it; texts are read.
pub fn typed(value: &Value, kind: InputKind, options: &[String]) -> Result<Value, String> {
    let text = super::expression::to_text(value);
    match (kind, value) {
        (_, Value::Array(_) | Value::Object(_)) => {
            Err(format!("must be a {}, this is a collection", kind.name()))
        }
        (InputKind::Boolean, Value::Bool(_)) | (InputKind::Number, Value::Number(_)) => Ok(value.clone()),
        (InputKind::Boolean, _) => match text.as_str() {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(format!("must be true or false, this is `{text}`")),
        },
        (InputKind::Number, _) => match text.trim().parse::<f64>() {
            Ok(it) if it.is_finite() => {
                Ok(serde_json::from_str(text.trim()).unwrap_or_else(|_| Value::from(it)))
            }
            _ => Err(format!("must be a number, this is `{text}`")),
        },
        (InputKind::Choice, _) if !options.is_empty() && !options.contains(&text) => {
            Err(format!("must be one of {}, this is `{text}`", options.join(", ")))
        }
        _ => Ok(Value::String(text)),
    }
}

/// Patterns in order; a later `!pattern` takes out again, and one after that puts in again.
fn matches(patterns: &[(Pattern, bool)], name: &str) -> bool {
    patterns
        .iter()
        .fold(false, |matched, (pattern, negative)| if pattern.matches(name) { !negative } else { matched })
}
