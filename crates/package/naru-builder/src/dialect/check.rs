//! What BuildKit's linter would say, by the names that its rules have, as warnings. `# check=skip=Rule` and
//! `# check=skip=all` silence them, `# check=error=true` makes errors of them.

use crate::form::{Action, Command, Dockerfile};
use crate::syntax::Lines;
use naru_text::{Finding, Place};

/// Every rule that is looked at.
const RULES: &[&str] = &[
    "ConsistentInstructionCasing",
    "ExposeProtoCasing",
    "FromAsCasing",
    "FromPlatformFlagConstDisallowed",
    "JSONArgsRecommended",
    "LegacyKeyValueFormat",
    "MaintainerDeprecated",
    "MultipleInstructionsDisallowed",
    "NoEmptyContinuation",
    "RedundantTargetPlatform",
    "ReservedStageName",
    "SecretsUsedInArgOrEnv",
    "StageNameCasing",
    "UndefinedArgInFrom",
    "WorkdirRelativePath",
];
/// Rules of BuildKit that may be named although nothing here breaks them, or they are errors anyway.
const OTHERS: &[&str] = &[
    "CopyIgnoredFile",
    "DuplicateStageName",
    "ExposeInvalidFormat",
    "InvalidBaseImagePlatform",
    "InvalidDefaultArgInFrom",
    "InvalidDefinitionDescription",
    "UndefinedVar",
];

struct Options {
    skip: Vec<String>,
    is_error: bool,
}

pub(super) fn check(lines: &Lines, out: &mut Dockerfile) {
    let options = options(lines, out);
    if options.skip.iter().any(|it| it == "all") {
        return;
    }
    let mut found: Vec<(&str, Place, String, String)> = Vec::new();
    look(lines, out, &mut |rule, place, message, hint| found.push((rule, place, message, hint.to_owned())));
    for (rule, place, message, hint) in found {
        if options.skip.iter().any(|it| it == rule) {
            continue;
        }
        let message = format!("{message} ({rule})");
        let finding = match options.is_error {
            true => Finding::error(place, message),
            false => Finding::warning(place, message),
        };
        out.findings.push(finding.hint(hint));
    }
}

/// `skip=A,B;error=true;experimental=all`
fn options(lines: &Lines, out: &mut Dockerfile) -> Options {
    let mut options = Options { skip: Vec::new(), is_error: false };
    let Some((text, place)) = &lines.directives.check else { return options };
    for part in text.split(';').map(str::trim).filter(|it| !it.is_empty()) {
        match part.split_once('=') {
            Some(("skip", rules)) => options.skip.extend(rules.split(',').map(|it| it.trim().to_owned())),
            Some(("error", "true")) => options.is_error = true,
            Some(("error", "false")) | Some(("experimental", _)) => {}
            _ => {
                let message = format!("`{part}` is not understood by the check directive");
                out.findings
                    .push(Finding::error(*place, message).hint("write `# check=skip=Rule;error=true`"));
            }
        }
    }
    for rule in options.skip.iter().filter(|it| *it != "all") {
        if !RULES.contains(&rule.as_str()) && !OTHERS.contains(&rule.as_str()) {
            let message = format!("there is no rule `{rule}`");
            let finding = Finding::warning(*place, message);
            out.findings.push(finding.hint(naru_text::suggest_hint(rule, RULES)));
        }
    }
    options
}

fn look(lines: &Lines, file: &Dockerfile, say: &mut dyn FnMut(&'static str, Place, String, &str)) {
    for place in &lines.has_empty_continuation {
        let message = "an empty line inside an instruction".to_owned();
        say("NoEmptyContinuation", *place, message, "take it away, or make it a comment");
    }
    let is_upper = |it: &str| it.chars().all(|it| it.is_ascii_uppercase());
    let upper = lines.lines.iter().filter(|it| is_upper(&it.written)).count();
    for line in &lines.lines {
        let is_consistent = match upper * 2 >= lines.lines.len() {
            true => is_upper(&line.written),
            false => !line.written.chars().any(|it| it.is_ascii_uppercase()),
        };
        if !is_consistent {
            let message = format!("`{}` is written unlike the other instructions", line.written);
            say("ConsistentInstructionCasing", line.place, message, "write all in upper case");
        }
        if matches!(line.keyword.as_str(), "ENV" | "LABEL") {
            let first = line.rest.split_whitespace().next().unwrap_or_default();
            if !first.contains('=') {
                let message = format!("`{} {first} value` is the old form", line.keyword);
                say("LegacyKeyValueFormat", line.place, message, "write `name=value`");
            }
        }
        if line.keyword == "FROM" {
            let words: Vec<&str> = line.rest.split_whitespace().collect();
            let is_as = words.iter().find(|it| it.eq_ignore_ascii_case("as"));
            if is_as.is_some_and(|it| is_upper(it) != is_upper(&line.written)) {
                let message = "`AS` and `FROM` are written differently".to_owned();
                say("FromAsCasing", line.place, message, "write both in upper case");
            }
        }
    }
    let globals: Vec<&str> = file.global_args.iter().map(|it| it.name.as_str()).collect();
    for stage in &file.stages {
        if let Some(name) = &stage.name {
            if name.chars().any(|it| it.is_ascii_uppercase()) {
                let message = format!("the stage `{name}` is not in lower case");
                say("StageNameCasing", stage.place, message, "names of stages are compared in lower case");
            }
            if matches!(name.as_str(), "scratch" | "context") {
                let message = format!("`{name}` means something else as a stage's name");
                say("ReservedStageName", stage.place, message, "choose another name");
            }
        }
        match stage.platform.as_deref() {
            Some("$TARGETPLATFORM" | "${TARGETPLATFORM}") => {
                let message = "`--platform=$TARGETPLATFORM` is what happens anyway".to_owned();
                say("RedundantTargetPlatform", stage.place, message, "leave it out");
            }
            Some(it) if !it.contains('$') => {
                let message = format!("`--platform={it}` builds for one platform only");
                let hint = "leave it out, or write `--platform=$BUILDPLATFORM`";
                say("FromPlatformFlagConstDisallowed", stage.place, message, hint);
            }
            _ => {}
        }
        for name in variables(&stage.image) {
            let is_known =
                globals.contains(&name.as_str()) || crate::stage::PLATFORM_ARGS.contains(&name.as_str());
            if !is_known {
                let message = format!("`FROM` uses `{name}`, which no `ARG` before it declares");
                say(
                    "UndefinedArgInFrom",
                    stage.place,
                    message,
                    "declare it with `ARG` before the first `FROM`",
                );
            }
        }
        look_at_stage(stage, say);
    }
}

fn look_at_stage(stage: &crate::form::Stage, say: &mut dyn FnMut(&'static str, Place, String, &str)) {
    let mut has_directory = false;
    let mut seen: Vec<&str> = Vec::new();
    for it in &stage.instructions {
        let place = it.place;
        let keyword = it.text.split(' ').next().unwrap_or_default();
        if matches!(it.action, Action::Cmd(_) | Action::Entrypoint(_) | Action::Healthcheck(_)) {
            if seen.contains(&keyword) {
                let message = format!("of several `{keyword}` in a stage only the last one counts");
                say("MultipleInstructionsDisallowed", place, message, "take the others away");
            }
            seen.push(keyword);
        }
        match &it.action {
            Action::Cmd(Command::Shell(text)) | Action::Entrypoint(Command::Shell(text))
                if !text.is_empty() =>
            {
                let message = format!("`{keyword}` runs below a shell, which does not pass signals on");
                say(
                    "JSONArgsRecommended",
                    place,
                    message,
                    "write it as a JSON list: `[\"program\", \"arg\"]`",
                );
            }
            Action::Maintainer(_) => {
                let message = "`MAINTAINER` is deprecated".to_owned();
                say(
                    "MaintainerDeprecated",
                    place,
                    message,
                    "write `LABEL org.opencontainers.image.authors=...`",
                );
            }
            Action::Workdir(path) => {
                if !has_directory && !path.starts_with(['/', '$']) {
                    let message = format!("`WORKDIR {path}` depends on the base image's own directory");
                    say("WorkdirRelativePath", place, message, "write an absolute path");
                }
                has_directory = true;
            }
            Action::Expose(ports) => {
                for port in ports.iter().filter(|it| !it.contains('$')) {
                    if port.split_once('/').is_some_and(|it| it.1.chars().any(|c| c.is_ascii_uppercase())) {
                        let message = format!("the protocol of `{port}` is not in lower case");
                        say("ExposeProtoCasing", place, message, "write `80/tcp`");
                    }
                }
            }
            Action::Arg(arguments) => {
                for argument in arguments.iter().filter(|it| is_secret(&it.name)) {
                    secret(&argument.name, place, say);
                }
            }
            Action::Env(pairs) => {
                for (name, _) in pairs.iter().filter(|it| is_secret(&it.0)) {
                    secret(name, place, say);
                }
            }
            _ => {}
        }
    }
}

fn secret(name: &str, place: Place, say: &mut dyn FnMut(&'static str, Place, String, &str)) {
    let message = format!("`{name}` looks like a secret, and everybody who has the image can read it");
    say("SecretsUsedInArgOrEnv", place, message, "use `RUN --mount=type=secret`");
}

/// By the words of the name, as BuildKit tells.
pub(crate) fn is_secret(name: &str) -> bool {
    const WORDS: &[&str] = &[
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    let lower = name.to_ascii_lowercase();
    let mut words = lower.split('_');
    words.clone().any(|it| WORDS.contains(&it)) && !words.any(|it| it == "public")
}

/// Names of the variables in a text.
fn variables(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for part in text.split('$').skip(1) {
        // With a default it need not be declared.
        if part.starts_with('{') && part.contains([':', '-', '+']) {
            continue;
        }
        let part = part.trim_start_matches('{');
        let end = part.find(|it: char| !it.is_ascii_alphanumeric() && it != '_').unwrap_or(part.len());
        if end > 0 {
            out.push(part[..end].to_owned());
        }
    }
    out
}
