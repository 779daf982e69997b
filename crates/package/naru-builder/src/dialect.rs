//! Dockerfile text to [`Dockerfile`]: pure, never fails. What is not supported is a finding at its place,
//! never something that the build would leave out.
//!
//! The syntax itself (continuations, heredocs, JSON forms, directives) is read by the crate
//! `parse-dockerfile`; what the words mean is decided here.

use crate::expand::split_words;
use crate::form::{
    Action, Argument, Command, Copy, Dockerfile, Healthcheck, Instruction, Mount, Run, Source, Stage,
};
use naru_text::{Finding, Place, suggest_hint};
use parse_dockerfile as syntax;
use syntax::Instruction as I;

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
    if text.len() > SOURCE_BYTES_MAX {
        out.findings.push(Finding::error(Place::new(1, 1), "the Dockerfile is larger than 1 MiB"));
        return out;
    }
    let parsed = match syntax::parse(text) {
        Ok(it) => it,
        Err(error) => {
            out.findings.push(syntax_finding(text, &error));
            return out;
        }
    };
    if parsed.instructions.len() > INSTRUCTIONS_MAX {
        let message = format!("the Dockerfile has more than {INSTRUCTIONS_MAX} instructions");
        out.findings.push(Finding::error(Place::new(1, 1), message));
        return out;
    }
    let escape = parsed.parser_directives.escape.as_ref().map_or('\\', |it| it.value.value);
    let mut reader = Reader { text, escape, findings: Vec::new() };
    for arg in parsed.global_args() {
        out.global_args.extend(reader.arguments(&arg.arguments));
    }
    for stage in parsed.stages() {
        let stage = reader.stage(&stage, &out);
        out.stages.push(stage);
    }
    out.findings = reader.findings;
    out.findings.sort_by_key(|it| it.place);
    out
}

fn syntax_finding(text: &str, error: &syntax::Error) -> Finding {
    let number = |it: usize| u32::try_from(it.max(1)).unwrap_or(u32::MAX);
    let place = Place::new(number(error.line()), number(error.column()));
    // The parser's text ends with the place, which a finding has already.
    let full = error.to_string();
    let message = full.rsplit_once(" at line ").map_or(full.as_str(), |it| it.0);
    let finding = Finding::error(place, message);
    let Some(word) = message.strip_prefix("unknown instruction '").and_then(|it| it.strip_suffix('\''))
    else {
        return match message.starts_with("expected at least one FROM") || message == "expected FROM" {
            true => finding.hint("a Dockerfile starts with `FROM <image>`"),
            false => finding,
        };
    };
    let above = text.lines().take(error.line().saturating_sub(1));
    let runs = above.filter(|it| it.trim_start().get(..4).is_some_and(|it| it.eq_ignore_ascii_case("RUN ")));
    if runs.last().is_some_and(|it| it.contains("<<") && !it[4..].trim_start().starts_with("<<")) {
        return finding
            .hint("a heredoc is understood right after `RUN`; write `RUN <<EOF` and the command inside");
    }
    finding.hint(suggest_hint(word, INSTRUCTIONS))
}

struct Reader<'a> {
    text: &'a str,
    escape: char,
    findings: Vec<Finding>,
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = &self.text[..offset.min(self.text.len())];
        let line = before.bytes().filter(|it| *it == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Place::new(line as u32, column as u32)
    }

    fn error(&mut self, offset: usize, message: impl Into<String>, hint: &str) {
        let place = self.place(offset);
        self.findings.push(Finding::error(place, message).hint(hint));
    }

    fn stage(&mut self, stage: &syntax::Stage<'_, '_>, before: &Dockerfile) -> Stage {
        let from = stage.from;
        let mut platform = None;
        for flag in &from.options {
            match flag.name.value.as_ref() {
                "platform" => platform = flag.value.as_ref().map(|it| it.value.to_string()),
                other => self.unknown_flag(flag, "FROM", other, &["platform"]),
            }
        }
        let name = from.as_.as_ref().map(|(_, it)| it.value.to_string());
        let mut out = Stage {
            name,
            platform,
            place: self.place(from.from.span.start),
            image: from.image.value.to_string(),
            instructions: Vec::new(),
        };
        for (index, instruction) in stage.instructions.iter().enumerate() {
            let (start, action) = self.action(instruction, before);
            let end = stage.instructions.get(index + 1).map(keyword_start);
            let Some(action) = action else { continue };
            out.instructions.push(Instruction {
                place: self.place(start),
                text: self.one_line(start, end),
                action,
            });
        }
        out
    }

    /// The instruction's source on one line, at most a few hundred characters.
    fn one_line(&self, start: usize, end: Option<usize>) -> String {
        const LENGTH_MAX: usize = 300; // longer ones are read in the Dockerfile
        let rest = &self.text[start..end.unwrap_or(self.text.len())];
        let mut line = String::new();
        for part in rest.lines() {
            let part = part.trim();
            if part.starts_with('#') && !line.is_empty() {
                if line.ends_with(' ') { continue } else { break }
            }
            let continued = part.strip_suffix(self.escape);
            line.push_str(continued.unwrap_or(part).trim_end());
            if continued.is_none() {
                break;
            }
            line.push(' ');
        }
        line.truncate(line.char_indices().nth(LENGTH_MAX).map_or(line.len(), |it| it.0));
        line.trim_end().to_owned()
    }

    fn action(&mut self, instruction: &I<'_>, before: &Dockerfile) -> (usize, Option<Action>) {
        let start = keyword_start(instruction);
        let action = match instruction {
            I::Arg(it) => Some(Action::Arg(self.arguments(&it.arguments))),
            I::Env(it) => self.pairs(&it.arguments, "ENV").map(Action::Env),
            I::Label(it) => self.pairs(&it.arguments, "LABEL").map(Action::Label),
            I::Run(it) => self.run(it),
            I::Copy(it) => self.copy(&it.options, &it.src, &it.dest, Kind::Copy, start, before),
            I::Add(it) => self.copy(&it.options, &it.src, &it.dest, Kind::Add, start, before),
            I::Workdir(it) => Some(Action::Workdir(it.arguments.value.to_string())),
            I::User(it) => Some(Action::User(it.arguments.value.to_string())),
            I::Cmd(it) => Some(Action::Cmd(self.command(&it.arguments))),
            I::Entrypoint(it) => Some(Action::Entrypoint(self.command(&it.arguments))),
            I::Expose(it) => {
                Some(Action::Expose(it.arguments.iter().map(|it| it.value.to_string()).collect()))
            }
            I::Volume(it) => {
                let list = match &it.arguments {
                    syntax::JsonOrStringArray::Json(it) => it.value.iter(),
                    syntax::JsonOrStringArray::String(it) => it.iter(),
                };
                Some(Action::Volume(list.map(|it| it.value.to_string()).collect()))
            }
            I::Stopsignal(it) => Some(Action::StopSignal(it.arguments.value.to_string())),
            I::Shell(it) => Some(Action::Shell(it.arguments.iter().map(|it| it.value.to_string()).collect())),
            I::Healthcheck(it) => self.healthcheck(it).map(Action::Healthcheck),
            I::Maintainer(it) => {
                let place = self.place(start);
                let finding = Finding::warning(place, "`MAINTAINER` is deprecated");
                self.findings.push(finding.hint("write `LABEL org.opencontainers.image.authors=...`"));
                Some(Action::Maintainer(it.name.value.to_string()))
            }
            I::Onbuild(_) => {
                let message = "`ONBUILD` is not supported: it would run in somebody else's build";
                self.error(
                    start,
                    message,
                    "move the instruction into the Dockerfiles that build on this image",
                );
                None
            }
            _ => {
                self.error(start, "this instruction is not supported", "");
                None
            }
        };
        (start, action)
    }

    fn unknown_flag(&mut self, flag: &syntax::Flag<'_>, instruction: &str, name: &str, known: &[&str]) {
        let hint = if known.is_empty() { String::new() } else { suggest_hint(name, known) };
        let message = format!("`--{name}` of `{instruction}` is not supported");
        self.error(flag.span().start, message, &hint);
    }

    fn arguments(&mut self, text: &syntax::UnescapedString<'_>) -> Vec<Argument> {
        let mut out = Vec::new();
        for word in split_words(&text.value, self.escape) {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (word.as_str(), None),
            };
            if name.is_empty() || !name.chars().all(|it| it.is_alphanumeric() || it == '_') {
                self.error(
                    text.span.start,
                    format!("`{name}` is not a name for an `ARG`"),
                    "write `ARG NAME=default`",
                );
                continue;
            }
            out.push(Argument { name: name.to_owned(), default });
        }
        out
    }

    /// `K=V K2="a b"`, or the old `K rest of the line`.
    fn pairs(
        &mut self,
        text: &syntax::UnescapedString<'_>,
        instruction: &str,
    ) -> Option<Vec<(String, String)>> {
        let words = split_words(&text.value, self.escape);
        let first = words.first()?;
        if !first.contains('=') {
            let rest = text.value.trim_start().strip_prefix(first.as_str()).unwrap_or("").trim();
            if rest.is_empty() {
                let hint = format!("write `{instruction} {first}=value`");
                self.error(text.span.start, format!("`{instruction} {first}` has no value"), &hint);
                return None;
            }
            return Some(vec![(first.clone(), rest.to_owned())]);
        }
        let mut out = Vec::new();
        for word in &words {
            match word.split_once('=') {
                Some((name, value)) if !name.is_empty() => out.push((name.to_owned(), value.to_owned())),
                _ => {
                    let message = format!("`{word}` is not of the form `name=value`");
                    self.error(text.span.start, message, "put quotes around a value with spaces");
                    return None;
                }
            }
        }
        Some(out)
    }

    fn command(&self, command: &syntax::Command<'_>) -> Command {
        match command {
            syntax::Command::Exec(it) => {
                Command::Exec(it.value.iter().map(|it| it.value.to_string()).collect())
            }
            syntax::Command::Shell(it) => Command::Shell(self.join_lines(it.value)),
            _ => Command::Shell(String::new()),
        }
    }

    /// What the shell gets: continued lines joined, comment lines and empty lines between them gone.
    fn join_lines(&self, source: &str) -> String {
        let mut out = String::with_capacity(source.len());
        let mut is_continued = false;
        for line in source.split('\n') {
            let line = line.strip_suffix('\r').unwrap_or(line);
            let trimmed = line.trim_start();
            if is_continued && (trimmed.starts_with('#') || trimmed.is_empty()) {
                continue;
            }
            match line.trim_end().strip_suffix(self.escape) {
                Some(head) => {
                    out.push_str(head);
                    is_continued = true;
                }
                None => {
                    out.push_str(line);
                    is_continued = false;
                }
            }
        }
        out.trim().to_owned()
    }

    fn run(&mut self, run: &syntax::RunInstruction<'_>) -> Option<Action> {
        let mut mounts = Vec::new();
        for flag in &run.options {
            let value = flag.value.as_ref().map(|it| it.value.to_string()).unwrap_or_default();
            match (flag.name.value.as_ref(), value.as_str()) {
                ("network", "default") | ("security", "sandbox") => {}
                ("network" | "security", other) => {
                    let message = format!("`--{}={other}` of `RUN` is not supported", flag.name.value);
                    self.error(
                        flag.span().start,
                        message,
                        "a step runs with the network of a pod and no privileges",
                    );
                }
                ("mount", _) => mounts.extend(self.mount(flag, &value)),
                (other, _) => self.unknown_flag(flag, "RUN", other, &["mount", "network", "security"]),
            }
        }
        let mut command = self.command(&run.arguments);
        if let Some(document) = run.here_docs.first() {
            if document.value.starts_with("#!") {
                self.error(
                    document.span.start,
                    "a heredoc with an interpreter line is not supported",
                    "`COPY` the script into the image with a heredoc, then `RUN` it",
                );
            }
            if run.here_docs.len() > 1 {
                self.error(
                    run.here_docs[1].span.start,
                    "more than one heredoc in a `RUN` is not supported",
                    "",
                );
            }
            command = Command::Shell(document.value.to_string());
        }
        Some(Action::Run(Run { command, mounts }))
    }

    fn mount(&mut self, flag: &syntax::Flag<'_>, value: &str) -> Option<Mount> {
        let at = flag.span().start;
        let (mut kind, mut target, mut id) = ("bind", None, None);
        for part in value.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match (key, value) {
                ("type", it) => kind = it,
                ("target" | "dst" | "destination", it) => target = Some(it.to_owned()),
                ("id", it) => id = Some(it.to_owned()),
                // One build's steps run one after the other, so both hold within it; builds side by side share.
                ("sharing", "shared" | "locked") => {}
                ("size", _) => {
                    let finding =
                        Finding::warning(self.place(at), "`size=` of `--mount=type=tmpfs` has no effect");
                    self.findings.push(finding.hint("the step's memory limit bounds it"));
                }
                (key, _) => {
                    let message = format!("`{part}` of `--mount` is not supported");
                    self.error(at, message, &suggest_hint(key, &["type", "target", "id", "sharing"]));
                    return None;
                }
            }
        }
        if !matches!(kind, "cache" | "tmpfs") {
            let hint = match kind {
                "bind" => "`COPY` the files in a stage of their own instead",
                "secret" | "ssh" => "fetch what needs a secret in the workflow, before the image is built",
                _ => "`type=cache` and `type=tmpfs` are",
            };
            self.error(at, format!("`--mount=type={kind}` is not supported"), hint);
            return None;
        }
        let Some(target) = target.filter(|it| it.starts_with('/') && !it.split('/').any(|it| it == ".."))
        else {
            self.error(at, "a mount needs an absolute `target`", "add `,target=/path`");
            return None;
        };
        Some(match kind {
            "cache" => Mount::Cache { id: id.unwrap_or_else(|| target.clone()), target },
            _ => Mount::Tmpfs { target },
        })
    }

    fn copy(
        &mut self,
        options: &[syntax::Flag<'_>],
        sources: &[syntax::Source<'_>],
        destination: &syntax::UnescapedString<'_>,
        kind: Kind,
        start: usize,
        before: &Dockerfile,
    ) -> Option<Action> {
        let mut out = Copy {
            sources: Vec::new(),
            destination: destination.value.to_string(),
            from: None,
            chown: None,
            chmod: None,
            unpack: kind == Kind::Add,
        };
        for flag in options {
            let value = flag.value.as_ref().map(|it| it.value.to_string());
            match (flag.name.value.as_ref(), value) {
                ("from", Some(it)) if kind == Kind::Copy => {
                    let is_number = it.parse::<usize>().is_ok();
                    if is_number && before.stage_index(&it, before.stages.len()).is_none() {
                        let message = format!("there is no stage number {it} before this one");
                        self.error(flag.span().start, message, "name stages with `FROM ... AS name`");
                    }
                    let names = before.stages.iter().filter_map(|it| it.name.as_deref());
                    let is_stage = before.stage_index(&it, before.stages.len()).is_some();
                    if !is_stage && let Some(near) = naru_text::suggest(&it, names) {
                        let message = format!("there is no stage `{it}` before this one");
                        self.error(flag.span().start, message, &format!("did you mean `{near}`?"));
                    }
                    out.from = Some(it);
                }
                ("chown", Some(it)) => out.chown = Some(it),
                ("chmod", Some(it)) => match u32::from_str_radix(&it, 8) {
                    Ok(mode) if mode <= 0o7777 => out.chmod = Some(mode),
                    _ => self.error(
                        flag.span().start,
                        format!("`--chmod={it}` is not an octal mode"),
                        "write `--chmod=755`",
                    ),
                },
                // Our layers are independent of what lies below them anyway.
                ("link", None) => {}
                ("link", Some(it)) if it == "true" || it == "false" => {}
                (other, _) => {
                    self.unknown_flag(flag, kind.name(), other, &["from", "chown", "chmod", "link"])
                }
            }
        }
        let mut names = heredoc_names(&self.text[start..]).into_iter();
        for source in sources {
            match source {
                syntax::Source::Path(path) => {
                    let is_url =
                        ["http://", "https://", "git://", "git@"].iter().any(|it| path.value.starts_with(it));
                    if is_url && kind == Kind::Add {
                        let message =
                            "`ADD` of a URL is not supported: what it fetches may change from build to build";
                        self.error(
                            path.span.start,
                            message,
                            "fetch it in a `RUN` and check its digest there",
                        );
                    } else if leaves_context(&path.value) {
                        let message = format!("`{}` lies outside the build context", path.value);
                        self.error(
                            path.span.start,
                            message,
                            "only files below the context's directory can be copied",
                        );
                    }
                    out.sources.push(Source::Path(path.value.to_string()));
                }
                syntax::Source::HereDoc(document) => out.sources.push(Source::Inline {
                    name: names.next().unwrap_or_else(|| "heredoc".into()),
                    content: document.value.to_string(),
                    expand: document.expand,
                }),
                _ => self.error(start, "this source is not supported", ""),
            }
        }
        let is_directory =
            out.destination.ends_with('/') || out.destination == "." || out.destination.ends_with("/.");
        if out.sources.len() > 1 && !is_directory {
            let hint = format!("write `{}/`", out.destination);
            self.error(
                destination.span.start,
                "several sources need a directory as their destination",
                &hint,
            );
        }
        Some(Action::Copy(out))
    }

    fn healthcheck(&mut self, check: &syntax::HealthcheckInstruction<'_>) -> Option<Option<Healthcheck>> {
        let syntax::HealthcheckArguments::Cmd { arguments, .. } = &check.arguments else { return Some(None) };
        let mut out = Healthcheck {
            command: self.command(arguments),
            interval_ns: 0,
            timeout_ns: 0,
            start_period_ns: 0,
            start_interval_ns: 0,
            retries: 0,
        };
        for flag in &check.options {
            let value = flag.value.as_ref().map(|it| it.value.to_string()).unwrap_or_default();
            let duration = duration_ns(&value);
            let field = match flag.name.value.as_ref() {
                "interval" => &mut out.interval_ns,
                "timeout" => &mut out.timeout_ns,
                "start-period" => &mut out.start_period_ns,
                "start-interval" => &mut out.start_interval_ns,
                "retries" => match value.parse() {
                    Ok(it) => {
                        out.retries = it;
                        continue;
                    }
                    Err(_) => {
                        self.error(flag.span().start, "`--retries` needs a number", "");
                        continue;
                    }
                },
                other => {
                    let known = ["interval", "timeout", "start-period", "start-interval", "retries"];
                    self.unknown_flag(flag, "HEALTHCHECK", other, &known);
                    continue;
                }
            };
            match duration {
                Some(it) => *field = it,
                None => self.error(
                    flag.span().start,
                    format!("`{value}` is not a duration"),
                    "write `30s` or `1m30s`",
                ),
            }
        }
        Some(Some(out))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Copy,
    Add,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Copy => "COPY",
            Self::Add => "ADD",
        }
    }
}

fn keyword_start(instruction: &I<'_>) -> usize {
    match instruction {
        I::Add(it) => it.add.span.start,
        I::Arg(it) => it.arg.span.start,
        I::Cmd(it) => it.cmd.span.start,
        I::Copy(it) => it.copy.span.start,
        I::Entrypoint(it) => it.entrypoint.span.start,
        I::Env(it) => it.env.span.start,
        I::Expose(it) => it.expose.span.start,
        I::From(it) => it.from.span.start,
        I::Healthcheck(it) => it.healthcheck.span.start,
        I::Label(it) => it.label.span.start,
        I::Maintainer(it) => it.maintainer.span.start,
        I::Onbuild(it) => it.onbuild.span.start,
        I::Run(it) => it.run.span.start,
        I::Shell(it) => it.shell.span.start,
        I::Stopsignal(it) => it.stopsignal.span.start,
        I::User(it) => it.user.span.start,
        I::Volume(it) => it.volume.span.start,
        I::Workdir(it) => it.workdir.span.start,
        _ => 0,
    }
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

/// The words after `<<` on the instruction's first line, which name the files.
fn heredoc_names(source: &str) -> Vec<String> {
    let line = source.lines().next().unwrap_or("");
    let name = |it: &str| {
        let it = it.trim_start_matches('-').trim_matches(['"', '\'']);
        it.to_owned()
    };
    line.split_whitespace().filter_map(|it| it.strip_prefix("<<")).map(name).collect()
}

/// `1h2m3.5s`, as Go writes durations.
fn duration_ns(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0f64;
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
