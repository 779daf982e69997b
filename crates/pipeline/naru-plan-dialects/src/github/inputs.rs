//! What a workflow asks to be given: `inputs` of a dispatch and of a call, a call's secrets and outputs.

use super::place;
use super::reader::{Key, Reader, key};
use naru_text::suggest_hint;
use naru_text::yaml::{Data, Node};
use serde_json::{Map, Value};

pub const INPUT: &[Key] = &[key("description"), key("type"), key("required"), key("default")];
pub const DISPATCH_INPUT: &[Key] =
    &[key("description"), key("type"), key("required"), key("default"), key("options")];
const SECRET: &[Key] = &[key("description"), key("required")];
const OUTPUT: &[Key] = &[key("description"), key("value")];

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

impl Reader<'_> {
    pub fn inputs(&mut self, node: Option<&Node>, table: &[Key]) -> Vec<Input> {
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

    pub fn callable(&mut self, inputs: Vec<Input>, node: Option<&Node>) -> Callable {
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
    pub fn given(&mut self, at: &Node, inputs: &[Input]) -> Map<String, Value> {
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
