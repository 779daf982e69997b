//! Dockerfile text to [`Dockerfile`]: pure, never fails. What is not supported is a finding at its place,
//! never something that the build would leave out.
//!
//! [`crate::syntax`] reads lines; here each instruction's words get their meaning. `copy` and `run` hold the
//! two that have many options, `check` the advice that BuildKit's linter would give.

mod check;
mod copy;
mod run;

use crate::expand::split_words;
use crate::form::{Action, Argument, Command, Dockerfile, Healthcheck, Instruction, Stage};
use crate::syntax::{self, Line};
use naru_text::{Finding, Place, suggest_hint};

pub(crate) use check::is_secret;

pub const SOURCE_BYTES_MAX: usize = 1 << 20; // a thousand times the largest that a person maintains
pub const INSTRUCTIONS_MAX: usize = 2_000; // an image holds at most 500 layers
const INSTRUCTIONS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Reads a Dockerfile.
pub fn parse(text: &str) -> Dockerfile {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = Dockerfile::default();
    let mut refuse = |message: String| out.findings.push(Finding::error(Place::new(1, 1), message));
    if text.len() > SOURCE_BYTES_MAX {
        refuse("the Dockerfile is larger than 1 MiB".into());
        return out;
    }
    let read = syntax::read(text);
    if read.lines.len() > INSTRUCTIONS_MAX {
        refuse(format!("the Dockerfile has more than {INSTRUCTIONS_MAX} instructions"));
        return out;
    }
    out.escape = read.directives.escape;
    let mut reader = Reader { escape: out.escape, findings: read.findings.clone() };
    for line in &read.lines {
        reader.line(line, &mut out);
    }
    if out.stages.is_empty() && !reader.findings.iter().any(Finding::is_error) {
        let finding = Finding::error(Place::new(1, 1), "the Dockerfile has no `FROM`");
        reader.findings.push(finding.hint("a Dockerfile starts with `FROM <image>`"));
    }
    if let Some((_, place)) = read.directives.syntax.as_ref().filter(|it| !is_known_frontend(&it.0)) {
        let finding = Finding::error(*place, "another frontend than docker/dockerfile cannot be used");
        reader.findings.push(finding.hint("Naru reads Dockerfiles itself; take the line away"));
    }
    out.findings = reader.findings;
    check::check(&read, &mut out);
    out.findings.sort_by_key(|it| it.place);
    out
}

/// The frontend that reads what we read, in any version, from any registry.
pub(crate) fn is_known_frontend(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or(image);
    let name = name.rsplit_once(':').filter(|it| !it.1.contains('/')).map_or(name, |it| it.0);
    name.ends_with("docker/dockerfile") || name.ends_with("docker/dockerfile-upstream")
}

/// One instruction of an image's `ONBUILD`, read when somebody builds on it.
pub fn parse_trigger(text: &str, before: &Dockerfile) -> (Option<Action>, Vec<Finding>) {
    let read = syntax::read(text);
    let mut reader = Reader { escape: '\\', findings: read.findings };
    let action = read.lines.first().and_then(|line| reader.action(line, before));
    (action, reader.findings)
}

struct Reader {
    escape: char,
    findings: Vec<Finding>,
}

/// `--name`, `--name=value`.
struct Flag {
    name: String,
    value: Option<String>,
    place: Place,
}

impl Flag {
    /// `--name`, `--name=true`, `--name=false`.
    fn boolean(&self) -> Option<bool> {
        match self.value.as_deref() {
            None | Some("true" | "1") => Some(true),
            Some("false" | "0") => Some(false),
            Some(_) => None,
        }
    }
}

impl Reader {
    fn error(&mut self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        let hint = hint.into();
        let finding = Finding::error(place, message);
        self.findings.push(if hint.is_empty() { finding } else { finding.hint(hint) });
    }

    fn line(&mut self, line: &Line, out: &mut Dockerfile) {
        if line.keyword == "FROM" {
            let stage = self.from(line, out);
            out.stages.extend(stage);
            return;
        }
        let Some(action) = self.action(line, out) else { return };
        if let Some(stage) = out.stages.last_mut() {
            stage.instructions.push(Instruction { place: line.place, text: line.text(), action });
            return;
        }
        match action {
            Action::Arg(arguments) => out.global_args.extend(arguments),
            _ => {
                let message = format!("`{}` stands before the first `FROM`", line.keyword);
                self.error(line.place, message, "a Dockerfile starts with `FROM <image>`");
            }
        }
    }

    /// The flags in front, and where the rest begins.
    fn flags(&self, line: &Line) -> (Vec<Flag>, usize) {
        let mut flags = Vec::new();
        let mut at = 0;
        loop {
            let rest = &line.rest[at..];
            let start = at + (rest.len() - rest.trim_start().len());
            let Some(word) = split_words(&line.rest[start..], self.escape).into_iter().next() else { break };
            let Some(text) = word.strip_prefix("--") else { return (flags, start) };
            at = start + word.len();
            if text.is_empty() {
                break;
            }
            // Quotes around a value, or a part of it, are not part of it.
            let unquote = |it: &str| it.replace(['"', '\''], "");
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(unquote(value))),
                None => (text, None),
            };
            flags.push(Flag { name: name.to_owned(), value, place: line.place_of(start) });
        }
        let rest = &line.rest[at..];
        (flags, at + (rest.len() - rest.trim_start().len()))
    }

    fn unknown_flag(&mut self, flag: &Flag, instruction: &str, known: &[&str]) {
        let hint = if known.is_empty() { String::new() } else { suggest_hint(&flag.name, known) };
        self.error(flag.place, format!("`{instruction}` has no flag `--{}`", flag.name), hint);
    }

    fn from(&mut self, line: &Line, before: &Dockerfile) -> Option<Stage> {
        let (flags, start) = self.flags(line);
        let mut platform = None;
        for flag in &flags {
            match flag.name.as_str() {
                "platform" => platform = flag.value.clone(),
                _ => self.unknown_flag(flag, "FROM", &["platform"]),
            }
        }
        let words: Vec<&str> = line.rest[start..].split_whitespace().collect();
        let (image, name) = match words[..] {
            [image] => (image, None),
            [image, r#as, name] if r#as.eq_ignore_ascii_case("as") => (image, Some(name)),
            [] => {
                self.error(line.place, "`FROM` names no image", "write `FROM alpine:3.20`");
                return None;
            }
            _ => {
                let message = "`FROM` takes an image and, after `AS`, a name for the stage";
                self.error(line.place_of(start), message, "write `FROM alpine:3.20 AS build`");
                return None;
            }
        };
        if let Some(name) = name {
            let is_name = |it: char| it.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&it);
            if !name.starts_with(|it: char| it.is_ascii_alphabetic()) || !name.chars().all(is_name) {
                let message = format!("`{name}` cannot name a stage");
                self.error(line.place, message, "letters first, then letters, digits, `-`, `_` and `.`");
            }
            if before.stages.iter().any(|it| it.name.as_deref() == Some(name)) {
                let finding = Finding::warning(line.place, format!("two stages are called `{name}`"));
                self.findings.push(finding.hint("`COPY --from` means the later one"));
            }
        }
        Some(Stage {
            name: name.map(str::to_owned),
            place: line.place,
            image: image.to_owned(),
            platform,
            instructions: Vec::new(),
        })
    }

    fn action(&mut self, line: &Line, before: &Dockerfile) -> Option<Action> {
        let keyword = line.keyword.as_str();
        if !INSTRUCTIONS.contains(&keyword) {
            let hint = suggest_hint(keyword, INSTRUCTIONS);
            self.error(line.place, format!("`{keyword}` is not an instruction"), hint);
            return None;
        }
        let (flags, start) = self.flags(line);
        let rest = line.rest[start..].trim_end();
        if rest.is_empty() && keyword != "CMD" && line.heredocs.is_empty() {
            let message = format!("`{keyword}` needs an argument");
            self.error(line.place, message, "");
            return None;
        }
        match keyword {
            "RUN" => return self.run(line, &flags, start),
            "COPY" | "ADD" => return self.copy(line, &flags, start, before),
            "HEALTHCHECK" => return self.healthcheck(line, &flags, rest).map(Action::Healthcheck),
            _ => flags.iter().for_each(|it| self.unknown_flag(it, keyword, &[])),
        }
        let here = line.place_of(start);
        Some(match keyword {
            "ARG" => Action::Arg(self.arguments(line, start)),
            "ENV" => Action::Env(self.pairs(line, start)?),
            "LABEL" => Action::Label(self.pairs(line, start)?),
            "WORKDIR" => Action::Workdir(rest.to_owned()),
            "USER" => Action::User(rest.to_owned()),
            "STOPSIGNAL" => Action::StopSignal(rest.to_owned()),
            "MAINTAINER" => Action::Maintainer(rest.to_owned()),
            "CMD" => Action::Cmd(command(rest)),
            "ENTRYPOINT" => Action::Entrypoint(command(rest)),
            "EXPOSE" => Action::Expose(rest.split_whitespace().map(str::to_owned).collect()),
            "VOLUME" => Action::Volume(match json_words(rest) {
                Some(words) => words,
                None => rest.split_whitespace().map(str::to_owned).collect(),
            }),
            "SHELL" => match json_words(rest) {
                Some(words) if !words.is_empty() => Action::Shell(words),
                _ => {
                    self.error(here, "`SHELL` needs a JSON list", "write `SHELL [\"/bin/bash\", \"-c\"]`");
                    return None;
                }
            },
            "ONBUILD" => self.on_build(line, before)?,
            _ => unreachable!("every name of INSTRUCTIONS is above; FROM is read by `from`"),
        })
    }

    fn on_build(&mut self, line: &Line, before: &Dockerfile) -> Option<Action> {
        let inner = line.inner()?;
        if matches!(inner.keyword.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
            let message = format!("`ONBUILD` cannot be followed by `{}`", inner.keyword);
            self.error(inner.place, message, "");
            return None;
        }
        // Its stages are those of whoever builds on this image, so `--from` is not looked up here.
        let errors = self.findings.len();
        let none = Dockerfile::default();
        let read = self.action(&inner, if inner.keyword == "COPY" { &none } else { before });
        if self.findings[errors..].iter().any(Finding::is_error) {
            return None;
        }
        read?;
        let mut text = format!("{} {}", inner.keyword, inner.rest);
        for heredoc in &inner.heredocs {
            text.push_str(&format!("\n{}{}", heredoc.raw, heredoc.name));
        }
        Some(Action::OnBuild(text))
    }

    fn arguments(&mut self, line: &Line, start: usize) -> Vec<Argument> {
        let mut out = Vec::new();
        for (word, offset) in words_at(line, start, self.escape) {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (word.as_str(), None),
            };
            if name.is_empty() || !name.chars().all(|it| it.is_alphanumeric() || it == '_') {
                let message = format!("`{name}` is not a name for an `ARG`");
                self.error(line.place_of(offset), message, "write `ARG NAME=default`");
                continue;
            }
            out.push(Argument { name: name.to_owned(), default });
        }
        out
    }

    /// `K=V K2="a b"`, or the old `K rest of the line`.
    fn pairs(&mut self, line: &Line, start: usize) -> Option<Vec<(String, String)>> {
        let keyword = &line.keyword;
        let words = words_at(line, start, self.escape);
        let (first, at) = words.first()?;
        if !first.contains('=') {
            let rest = line.rest[at + first.len()..].trim();
            if rest.is_empty() {
                let hint = format!("write `{keyword} {first}=value`");
                self.error(line.place_of(*at), format!("`{keyword} {first}` has no value"), hint);
                return None;
            }
            return Some(vec![(first.clone(), rest.to_owned())]);
        }
        let mut out = Vec::new();
        for (word, at) in &words {
            match word.split_once('=') {
                Some((name, value)) if !name.is_empty() => out.push((name.to_owned(), value.to_owned())),
                _ => {
                    let message = format!("`{word}` is not of the form `name=value`");
                    self.error(line.place_of(*at), message, "put quotes around a value with spaces");
                    return None;
                }
            }
        }
        Some(out)
    }

    fn healthcheck(&mut self, line: &Line, flags: &[Flag], rest: &str) -> Option<Option<Healthcheck>> {
        let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let mut out = match kind.to_ascii_uppercase().as_str() {
            "NONE" if rest.is_empty() && flags.is_empty() => return Some(None),
            "CMD" if !rest.trim().is_empty() => Healthcheck {
                command: command(rest.trim()),
                interval_ns: 0,
                timeout_ns: 0,
                start_period_ns: 0,
                start_interval_ns: 0,
                retries: 0,
            },
            _ => {
                let message = "`HEALTHCHECK` is followed by `NONE` or by `CMD` and a command";
                self.error(line.place, message, "write `HEALTHCHECK CMD curl -f http://localhost/`");
                return None;
            }
        };
        for flag in flags {
            let value = flag.value.as_deref().unwrap_or_default();
            let field = match flag.name.as_str() {
                "interval" => &mut out.interval_ns,
                "timeout" => &mut out.timeout_ns,
                "start-period" => &mut out.start_period_ns,
                "start-interval" => &mut out.start_interval_ns,
                "retries" => {
                    match value.parse() {
                        Ok(it) if it >= 0 => out.retries = it,
                        _ => self.error(flag.place, "`--retries` needs a number", ""),
                    }
                    continue;
                }
                _ => {
                    let known = ["interval", "timeout", "start-period", "start-interval", "retries"];
                    self.unknown_flag(flag, "HEALTHCHECK", &known);
                    continue;
                }
            };
            match duration_ns(value) {
                Some(0) => {}
                Some(it) if it >= 1_000_000 => *field = it,
                Some(_) => {
                    let message = format!("`{value}` is less than a millisecond");
                    self.error(flag.place, message, "write `30s`");
                }
                None => {
                    let message = format!("`{value}` is not a duration");
                    self.error(flag.place, message, "write `30s` or `1m30s`");
                }
            }
        }
        Some(Some(out))
    }
}

/// The words from an offset of the line on, each with its own.
fn words_at(line: &Line, start: usize, escape: char) -> Vec<(String, usize)> {
    let mut from = start;
    let mut out = Vec::new();
    for word in split_words(&line.rest[start..], escape) {
        let offset = line.rest[from..].find(&word).map_or(from, |it| it + from);
        from = offset + word.len();
        out.push((word, offset));
    }
    out
}

/// A JSON list is the program itself, anything else a line for the shell.
fn command(rest: &str) -> Command {
    match json_words(rest) {
        Some(words) => Command::Exec(words),
        None => Command::Shell(rest.to_owned()),
    }
}

/// `["a", "b"]`. What looks like it and is none is for the shell, which will say so.
fn json_words(rest: &str) -> Option<Vec<String>> {
    rest.starts_with('[').then(|| serde_json::from_str(rest).ok()).flatten()
}

/// `1h2m3.5s`, as Go writes durations.
fn duration_ns(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0f64;
    if text == "0" {
        return Some(0);
    }
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit() && it != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end =
            rest[digits..].find(|it: char| it.is_ascii_digit()).map_or(rest.len(), |it| it + digits);
        total += number
            * match &rest[digits..unit_end] {
                "h" => 3600e9,
                "m" => 60e9,
                "s" => 1e9,
                "ms" => 1e6,
                "us" | "µs" => 1e3,
                "ns" => 1.0,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total as i64)
}

/// Whether a path goes up beyond where it starts.
pub fn leaves_context(path: &str) -> bool {
    let mut depth = 0i32;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth -= 1,
            _ => depth += 1,
        }
        if depth < 0 {
            return true;
        }
    }
    false
}
