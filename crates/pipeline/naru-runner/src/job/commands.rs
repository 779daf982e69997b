//! What a step says to its runner within its output: `::name key=value,key=value::data`, and the older
//! `##[name key=value;key=value]data`. After GitHub's page "Workflow commands for GitHub Actions" and its
//! runner's way of reading them. Text in, meaning out; the job does what is meant.

use naru_objects::Diagnostic;

/// What a line asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    Annotate(Diagnostic),
    Debug(String),
    Group(String),
    EndGroup,
    AddMask(String),
    SetOutput { name: String, value: String },
    SaveState { name: String, value: String },
    SetEnv { name: String, value: String },
    AddPath(String),
    StopCommands { token: String },
    Echo(bool),
    AddMatcher { file: String },
    RemoveMatcher { owner: String, file: String },
}

const NAMES: &[&str] = &[
    "notice",
    "warning",
    "error",
    "debug",
    "group",
    "endgroup",
    "add-mask",
    "set-output",
    "save-state",
    "set-env",
    "add-path",
    "stop-commands",
    "echo",
    "add-matcher",
    "remove-matcher",
];

/// A command that was meant as one but cannot be done, with what is wrong.
pub type Misused = String;

/// A line's command; `None` if it is plain output.
pub fn parse(line: &str) -> Option<Result<Command, Misused>> {
    let (name, properties, data) = split(line)?;
    let name = NAMES.iter().find(|it| it.eq_ignore_ascii_case(name))?;
    Some(meaning(name, &properties, data))
}

/// Whether the line is `::token::`, with which a step ends its `::stop-commands::`.
pub fn resumes(line: &str, token: &str) -> bool {
    split(line).is_some_and(|(name, ..)| name.eq_ignore_ascii_case(token))
}

/// Whether a token may stop commands: one that everybody knows stops nothing.
pub fn is_safe_token(token: &str) -> bool {
    !token.is_empty()
        && !token.eq_ignore_ascii_case("pause-logging")
        && !NAMES.iter().any(|it| it.eq_ignore_ascii_case(token))
}

type Properties = Vec<(String, String)>;

fn split(line: &str) -> Option<(&str, Properties, String)> {
    let trimmed = line.trim_start();
    if let Some(rest) = trimmed.strip_prefix("::")
        && let Some((head, data)) = rest.split_once("::")
    {
        let (name, properties) = head.split_once(' ').unwrap_or((head, ""));
        let unescape = |it: &str| {
            it.replace("%0D", "\r")
                .replace("%0A", "\n")
                .replace("%3A", ":")
                .replace("%2C", ",")
                .replace("%25", "%")
        };
        let data = data.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%");
        return Some((name, pairs(properties, ',', unescape), data));
    }
    let rest = &line[line.find("##[")? + 3..];
    let (head, data) = rest.split_once(']')?;
    let (name, properties) = head.split_once(' ').unwrap_or((head, ""));
    let unescape = |it: &str| {
        it.replace("%3B", ";")
            .replace("%0D", "\r")
            .replace("%0A", "\n")
            .replace("%5D", "]")
            .replace("%25", "%")
    };
    Some((name, pairs(properties, ';', unescape), unescape(data)))
}

fn pairs(text: &str, separator: char, unescape: impl Fn(&str) -> String) -> Properties {
    text.split(separator)
        .filter_map(|it| it.trim().split_once('='))
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), unescape(value)))
        .collect()
}

fn meaning(name: &str, properties: &Properties, data: String) -> Result<Command, Misused> {
    let property = |key: &str| -> String {
        let found = properties.iter().find(|(it, _)| it.eq_ignore_ascii_case(key));
        found.map(|(_, it)| it.clone()).unwrap_or_default()
    };
    let named = || match property("name") {
        it if it.is_empty() => {
            Err(format!("`::{name}::` lacks `name`; write `::{name} name=<name>::<value>`"))
        }
        it => Ok(it),
    };
    Ok(match name {
        "notice" | "warning" | "error" => Command::Annotate(annotation(name, &property, data)),
        "debug" => Command::Debug(data),
        "group" => Command::Group(data),
        "endgroup" => Command::EndGroup,
        "add-mask" => Command::AddMask(data),
        "set-output" => Command::SetOutput { name: named()?, value: data },
        "save-state" => Command::SaveState { name: named()?, value: data },
        "set-env" => Command::SetEnv { name: named()?, value: data },
        "add-path" => Command::AddPath(data),
        "stop-commands" => Command::StopCommands { token: data },
        "echo" => match data.trim().to_ascii_lowercase().as_str() {
            "on" => Command::Echo(true),
            "off" => Command::Echo(false),
            _ => return Err(format!("`::echo::` takes `on` or `off`, not `{data}`")),
        },
        "add-matcher" => match data {
            file if file.is_empty() => {
                return Err("`::add-matcher::` lacks the file; write `::add-matcher::<file>`".into());
            }
            file => Command::AddMatcher { file },
        },
        "remove-matcher" => match (property("owner"), data) {
            (owner, file) if owner.is_empty() == file.is_empty() => {
                return Err("`::remove-matcher::` takes either `owner=<name>` or a file".into());
            }
            (owner, file) => Command::RemoveMatcher { owner, file },
        },
        _ => unreachable!("every name of NAMES has its arm"),
    })
}

/// Lines count only if they make sense together, as GitHub's runner sees to.
fn annotation(severity: &str, property: &impl Fn(&str) -> String, data: String) -> Diagnostic {
    let number = |key: &str| property(key).trim().parse::<u32>().ok();
    let (mut line, end_line) = (number("line"), number("endLine"));
    let mut column = number("col").or(number("endColumn"));
    line = line.or(end_line);
    if line.is_none() || end_line.is_some_and(|end| line != Some(end)) {
        column = None;
    }
    if line.zip(end_line).is_some_and(|(line, end)| end < line) {
        line = None;
    }
    let title = property("title");
    Diagnostic {
        severity: severity.to_owned(),
        file: property("file"),
        line: line.unwrap_or(0),
        column: column.unwrap_or(0),
        message: if title.is_empty() { data } else { format!("{title}: {data}") },
        hint: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(severity: &str, file: &str, line: u32, column: u32, message: &str) -> Command {
        Command::Annotate(Diagnostic {
            severity: severity.into(),
            file: file.into(),
            line,
            column,
            message: message.into(),
            hint: String::new(),
        })
    }

    #[test]
    fn commands_are_read_as_githubs_runner_reads_them() {
        let text = str::to_owned;
        for (line, want) in [
            (
                "::error file=a.js,line=3,col=5,title=Oops::it%0Abroke %25",
                note("error", "a.js", 3, 5, "Oops: it\nbroke %"),
            ),
            ("  ::warning::w", note("warning", "", 0, 0, "w")),
            ("::NOTICE file=a%2Cb%3Ac::n", note("notice", "a,b:c", 0, 0, "n")),
            ("::error line=9,endLine=4::m", note("error", "", 0, 0, "m")),
            ("::error col=9::m", note("error", "", 0, 0, "m")),
            ("##[error]old way", note("error", "", 0, 0, "old way")),
            ("::set-output name=a::b::c", Command::SetOutput { name: text("a"), value: text("b::c") }),
            ("x ##[set-output name=a;]v%5D", Command::SetOutput { name: text("a"), value: text("v]") }),
            ("::group::g", Command::Group(text("g"))),
            ("::endgroup::", Command::EndGroup),
            ("::echo::ON", Command::Echo(true)),
            (
                "::remove-matcher owner=me::",
                Command::RemoveMatcher { owner: text("me"), file: String::new() },
            ),
        ] {
            assert_eq!(parse(line), Some(Ok(want)), "{line}");
        }
        for line in ["::unknown::x", "::error", "plain", "a ::error::b", "std::vector::push", "##[nope]x"] {
            assert_eq!(parse(line), None, "{line}");
        }
        for line in ["::set-output::x", "::echo::maybe", "::add-matcher::", "::remove-matcher owner=a::b"] {
            assert!(parse(line).unwrap().is_err(), "{line}");
        }
        assert!(resumes("::t0ken::", "T0KEN") && !resumes("::other::", "t0ken"));
        assert!(is_safe_token("x1") && !is_safe_token("warning") && !is_safe_token(""));
    }
}
