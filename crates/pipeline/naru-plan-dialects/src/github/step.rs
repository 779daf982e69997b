//! `steps`: scripts with the command line of their shell, and packaged steps.

use super::action::shell_line;
use super::place;
use super::reader::{Key, Reader, key, refused};
use naru_plan::{Action, Step};
use naru_text::yaml::{Data, Node};

const BACKGROUND: &str = "write the steps one after the other; GitHub has this behind a flag only";

const STEP_KEYS: &[Key] = &[
    key("id"),
    key("name"),
    key("if"),
    key("run"),
    key("shell"),
    key("env"),
    key("working-directory"),
    key("uses"),
    key("with"),
    key("continue-on-error"),
    key("timeout-minutes"),
    refused("background", BACKGROUND),
    refused("wait", BACKGROUND),
    refused("wait-all", BACKGROUND),
    refused("cancel", BACKGROUND),
    refused("parallel", BACKGROUND),
];

/// Keys that make a step of a kind that is refused; nothing more is said about it then.
const OTHER_KINDS: &[&str] = &["wait", "wait-all", "cancel", "parallel"];

/// What our own checkout does without the packaged one.
const CHECKOUT_KEYS: &[&str] = &["fetch-depth", "path", "clean", "persist-credentials"];

/// Shells that Linux machines do not have.
const WINDOWS_SHELLS: &[&str] = &["cmd", "powershell"];

/// GitHub's own limit on an id.
pub const ID_LENGTH_MAX: usize = 100;

/// What `defaults.run` says, from the outside in.
#[derive(Clone, Default)]
pub struct Defaults {
    pub shell: Option<String>,
    pub working_directory: Option<String>,
}

impl Reader<'_> {
    pub fn steps(&mut self, steps: &Node, defaults: &Defaults) -> Vec<Step> {
        let mut all: Vec<Step> = Vec::new();
        let mut ids: Vec<String> = Vec::new();
        self.names.steps = Some(Vec::new());
        for node in steps.items() {
            let Some(step) = self.step(node, defaults) else { continue };
            if let Some(id) = node.get("id").filter(|_| !step.id.is_empty()) {
                if let Err(why) = check_id(&step.id) {
                    self.error(id, format!("`{}` cannot be a step's id: {why}", step.id));
                }
                // GitHub's names of steps are compared without regard to case.
                if ids.contains(&step.id.to_lowercase()) {
                    self.error(id, format!("two steps have the id `{}`", step.id));
                }
                ids.push(step.id.to_lowercase());
                self.names.steps.get_or_insert_default().push(step.id.clone());
            }
            all.push(step);
        }
        all
    }

    fn step(&mut self, node: &Node, defaults: &Defaults) -> Option<Step> {
        if !self.keys("the step", node, STEP_KEYS) || OTHER_KINDS.iter().any(|it| node.get(it).is_some()) {
            return None;
        }
        let mut step = Step {
            id: node.get("id").and_then(|it| self.scalar("`id`", it)).unwrap_or_default(),
            condition: node.get("if").and_then(|it| self.condition(it, &place::STEP_IF)),
            env: node.get("env").map(|it| self.env(it, &place::STEP)).unwrap_or_default(),
            line: node.place.line,
            ..Step::default()
        };
        if let Some(it) = node.get("continue-on-error") {
            let text = self.text(it, &place::STEP);
            match text.as_str() {
                _ if text.contains("${{") => step.continue_on_error_text = text,
                "true" | "false" => step.continue_on_error = text == "true",
                _ => self.error(it, "`continue-on-error` must be true or false"),
            }
        }
        if let Some(it) = node.get("timeout-minutes") {
            let text = self.text(it, &place::STEP);
            match text.parse::<f64>() {
                _ if text.contains("${{") => step.timeout_minutes_text = text,
                Ok(minutes) if minutes > 0.0 => step.timeout_minutes = minutes.ceil() as u64,
                _ => self.error(it, "`timeout-minutes` must be a number above 0"),
            }
        }
        match (node.get("run"), node.get("uses")) {
            (Some(_), Some(uses)) => {
                self.error(uses, "a step cannot have both `run` and `uses`");
                return None;
            }
            (None, None) => {
                self.error_hint(node, "a step needs `run` or `uses`", "write `run: <command>`");
                return None;
            }
            (Some(run), None) => {
                let script = self.text(run, &place::STEP);
                self.warn_of_injection(run, &script, "a script");
                if let Some(it) = node.get("with") {
                    self.error(it, "`with` belongs to `uses`");
                }
                step.name = first_line("Run ", &script);
                let shell_node = node.get("shell");
                let shell = shell_node.map(|it| self.text(it, &place::NONE)).or(defaults.shell.clone());
                step.action = self.shell(shell_node.unwrap_or(run), shell.as_deref(), script);
                step.working_directory = node
                    .get("working-directory")
                    .map(|it| self.text(it, &place::STEP))
                    .or(defaults.working_directory.clone())
                    .unwrap_or_default();
            }
            (None, Some(uses)) => {
                let action = self.text(uses, &place::NONE);
                step.name = format!("Run {action}");
                if let Some(it) = node.get("shell").or(node.get("working-directory")) {
                    self.error(it, "this key belongs to `run`");
                }
                step.action = self.uses(uses, &action, node.get("with"))?;
            }
        }
        if let Some(it) = node.get("name") {
            step.name = self.text(it, &place::STEP);
        }
        Some(step)
    }

    fn shell(&mut self, at: &Node, shell: Option<&str>, script: String) -> Action {
        // A shell of `defaults` may be computed; it is looked at when the job is made.
        if let Some(shell) = shell.filter(|it| it.contains("${{")) {
            return Action::Run { script, shell: vec![shell.to_owned()], extension: String::new() };
        }
        match run(shell, script) {
            Ok(action) => action,
            Err((message, hint)) => {
                self.error_hint(at, message, hint);
                Action::default()
            }
        }
    }

    fn uses(&mut self, at: &Node, uses: &str, with: Option<&Node>) -> Option<Action> {
        if let Err(why) = check_uses(uses) {
            self.error_hint(
                at,
                format!("`{uses}` names no action: {why}"),
                "write `owner/name@ref`, `./path` or `docker://image`",
            );
            return None;
        }
        self.survey.actions.insert(uses.to_owned());
        self.warn_of_unpinned(at, uses);
        self.warn_of_foreign_checkout(uses, with);
        let given = with.map(|it| self.texts("`with`", it, &place::STEP)).unwrap_or_default();
        let name = uses.split('@').next().unwrap_or_default();
        if name.eq_ignore_ascii_case("actions/github-script")
            && let Some(script) = with.and_then(|it| it.get("script"))
        {
            let text = script.as_str().unwrap_or_default().to_owned();
            self.warn_of_injection(script, &text, "a script");
        }
        if name.eq_ignore_ascii_case("actions/checkout")
            && let Some(checkout) = checkout(&given)
        {
            return Some(checkout);
        }
        Some(Action::Uses { uses: uses.to_owned(), with: given })
    }
}

/// Our own checkout, if it can do all that is asked for.
pub fn checkout(with: &[(String, String)]) -> Option<Action> {
    let (mut path, mut depth) = (String::new(), 1);
    for (name, value) in with {
        if !CHECKOUT_KEYS.contains(&name.as_str()) || value.contains("${{") {
            return None;
        }
        match name.as_str() {
            "fetch-depth" => depth = value.parse().ok()?,
            "path" => path.clone_from(value),
            _ => {}
        }
    }
    let stays = !path.starts_with('/') && !path.split('/').any(|part| part == "..");
    stays.then_some(Action::Checkout { path, depth })
}

/// A script with its shell. Without a word about the shell it is plain `bash -e`, no pipefail.
pub fn run(shell: Option<&str>, script: String) -> Result<Action, (String, String)> {
    let words = |it: &str| it.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let Some(shell) = shell else {
        return Ok(Action::Run { script, shell: words("bash -e {0}"), extension: "sh".into() });
    };
    if let Some((line, extension)) = shell_line(shell) {
        // What GitHub's runner puts around scripts of PowerShell, so that they end at the first error and with
        // the exit code of the last program.
        let script = match shell {
            "pwsh" => format!(
                "$ErrorActionPreference = 'stop'\n{script}\nif ((Test-Path -LiteralPath variable:\\LASTEXITCODE)) {{ exit $LASTEXITCODE }}"
            ),
            _ => script,
        };
        return Ok(Action::Run { script, shell: words(line), extension: extension.to_owned() });
    }
    if WINDOWS_SHELLS.contains(&shell) {
        let hint = if shell == "powershell" {
            "use `pwsh`"
        } else {
            "write the script for `bash`, `sh`, `pwsh` or `python`"
        };
        return Err((
            format!("the shell `{shell}` is one of Windows, which no machine here runs"),
            hint.into(),
        ));
    }
    if !shell.contains("{0}") {
        return Err((
            format!("the shell `{shell}` is not known"),
            "use bash, sh, pwsh, python, or a command line with `{0}` for the script's file".into(),
        ));
    }
    Ok(Action::Run { script, shell: words(shell), extension: "sh".into() })
}

fn check_uses(uses: &str) -> Result<(), &'static str> {
    if let Some(image) = uses.strip_prefix("docker://") {
        return if image.is_empty() { Err("the image is missing") } else { Ok(()) };
    }
    if uses.starts_with("./") {
        return Ok(());
    }
    if uses.starts_with('.') || uses.starts_with('/') {
        return Err("a path begins with `./` and is relative to the repository");
    }
    if uses.starts_with("$/") {
        return Err("references into the workflow's own repository are not supported");
    }
    let Some((name, git_ref)) = uses.split_once('@') else { return Err("the version after `@` is missing") };
    let mut parts = name.split('/');
    let named =
        parts.next().is_some_and(|it| !it.is_empty()) && parts.next().is_some_and(|it| !it.is_empty());
    match (named, git_ref) {
        (false, _) => Err("it must have an owner and a name"),
        (_, "") => Err("the version after `@` is missing"),
        _ => Ok(()),
    }
}

/// GitHub's rules for ids of jobs and steps.
pub fn check_id(id: &str) -> Result<(), String> {
    if !super::expression::is_name(id) {
        return Err("it must begin with a letter or `_` and hold letters, digits, `-` and `_` only".into());
    }
    if id.len() >= ID_LENGTH_MAX {
        return Err(format!("it must be shorter than {ID_LENGTH_MAX} characters"));
    }
    if id.starts_with("__") {
        return Err("`__` is reserved".into());
    }
    Ok(())
}

fn first_line(prefix: &str, script: &str) -> String {
    let line = script.trim_start().lines().next().unwrap_or_default();
    format!("{prefix}{}", line.chars().take(80).collect::<String>())
}

/// Whether steps are there as they must be.
pub fn has_steps(node: &Node) -> bool {
    matches!(&node.data, Data::Sequence(items) if !items.is_empty())
}
