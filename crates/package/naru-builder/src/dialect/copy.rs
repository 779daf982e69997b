//! `COPY` and `ADD` with their flags and heredocs.

use super::{Flag, Reader, json_words, leaves_context};
use crate::form::{Action, Add, Copy, Dockerfile, Source};
use crate::mode::Mode;
use crate::syntax::Line;

const OF_COPY: &[&str] = &["from", "chown", "chmod", "link", "parents", "exclude"];
const OF_ADD: &[&str] = &["chown", "chmod", "link", "checksum", "keep-git-dir", "unpack", "exclude"];

impl Reader {
    pub(super) fn copy(
        &mut self,
        line: &Line,
        flags: &[Flag],
        start: usize,
        before: &Dockerfile,
    ) -> Option<Action> {
        let keyword = line.keyword.as_str();
        let mut out = Copy {
            sources: Vec::new(),
            destination: String::new(),
            from: None,
            chown: None,
            chmod: None,
            exclude: Vec::new(),
            parents: false,
            link: false,
            add: (keyword == "ADD").then(Add::default),
        };
        let known = if out.add.is_some() { OF_ADD } else { OF_COPY };
        for flag in flags {
            if !known.contains(&flag.name.as_str()) {
                self.unknown_flag(flag, keyword, known);
                continue;
            }
            let boolean = flag.boolean();
            let mut add = out.add.as_mut();
            match (flag.name.as_str(), &flag.value) {
                ("link", _) if boolean.is_some() => out.link = boolean == Some(true),
                ("parents", _) if boolean.is_some() => out.parents = boolean == Some(true),
                ("keep-git-dir", _) if boolean.is_some() => {
                    add.as_mut().expect("a flag of ADD").keep_git_dir = boolean == Some(true);
                }
                ("unpack", _) if boolean.is_some() => add.as_mut().expect("a flag of ADD").unpack = boolean,
                ("checksum", Some(it)) => {
                    if !it.contains('$') && naru_image::Digest::parse(it).is_err() {
                        let message = format!("`--checksum={it}` is not a digest");
                        self.error(flag.place, message, "write `--checksum=sha256:` and 64 hex digits");
                    }
                    add.as_mut().expect("a flag of ADD").checksum = Some(it.clone());
                }
                ("from", Some(it)) => {
                    self.check_from(flag, it, before);
                    out.from = Some(it.clone());
                }
                ("chown", Some(it)) if !it.is_empty() => out.chown = Some(it.clone()),
                ("chmod", Some(it)) => {
                    if !it.contains('$') && Mode::parse(it).is_none() {
                        let message = format!("`--chmod={it}` is neither an octal nor a symbolic mode");
                        self.error(flag.place, message, "write `--chmod=755` or `--chmod=u=rwX,go=rX`");
                    }
                    out.chmod = Some(it.clone());
                }
                ("exclude", Some(it)) if !it.is_empty() => out.exclude.push(it.clone()),
                (name, _) => {
                    self.error(flag.place, format!("`--{name}` of `{keyword}` is not understood"), "")
                }
            }
        }
        let rest = line.rest[start..].trim_end();
        let mut words: Vec<(String, usize)> = match json_words(rest) {
            Some(words) => words.into_iter().map(|it| (it, start)).collect(),
            None => {
                let mut from = start;
                let mut words = Vec::new();
                for word in rest.split_whitespace() {
                    let offset = line.rest[from..].find(word).map_or(from, |it| it + from);
                    from = offset + word.len();
                    words.push((word.to_owned(), offset));
                }
                words
            }
        };
        let Some((destination, destination_at)) = words.pop().filter(|_| !words.is_empty()) else {
            let message = format!("`{keyword}` needs at least one source and a destination");
            self.error(line.place, message, format!("write `{keyword} . /app/`"));
            return None;
        };
        out.destination = destination;
        let mut heredocs = line.heredocs.iter();
        let is_heredoc = |it: &str| it.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with("<<");
        for (word, at) in words {
            if is_heredoc(&word)
                && let Some(heredoc) = heredocs.next()
            {
                if out.from.is_some() {
                    let message = "a heredoc comes from the Dockerfile, not from `--from`";
                    self.error(line.place_of(at), message, "copy it in an instruction of its own");
                }
                out.sources.push(Source::Inline {
                    name: heredoc.name.clone(),
                    content: heredoc.content.clone(),
                    expand: heredoc.expand,
                });
                continue;
            }
            let is_elsewhere = out.add.is_some() && crate::fetch::is_remote(&word);
            if !is_elsewhere && leaves_context(&word) && out.from.is_none() {
                let message = format!("`{word}` lies outside the build context");
                self.error(
                    line.place_of(at),
                    message,
                    "only files below the context's directory can be copied",
                );
            }
            out.sources.push(Source::Path(word));
        }
        let has_checksum = out.add.as_ref().is_some_and(|it| it.checksum.is_some());
        if has_checksum && out.sources.len() > 1 {
            self.error(line.place, "`--checksum` is for one source", "write an `ADD` for each");
        }
        let is_directory =
            out.destination.ends_with('/') || out.destination == "." || out.destination.ends_with("/.");
        if out.sources.len() > 1 && !is_directory && !out.destination.contains('$') {
            let hint = format!("write `{}/`", out.destination);
            let message = "several sources need a directory as their destination";
            self.error(line.place_of(destination_at), message, hint);
        }
        Some(Action::Copy(out))
    }

    fn check_from(&mut self, flag: &Flag, from: &str, before: &Dockerfile) {
        if from.contains('$') {
            let message = "`--from` does not know variables";
            let hint = "name a stage: `FROM $IMAGE AS other` and `COPY --from=other`";
            return self.error(flag.place, message, hint);
        }
        if before.stages.is_empty() {
            return; // in somebody else's build
        }
        let stages = before.stages.len() - 1; // the last one is this instruction's own
        let is_stage = before.stage_index(from, stages).is_some();
        if from.parse::<usize>().is_ok() && !is_stage {
            let message = format!("there is no stage number {from} before this one");
            return self.error(flag.place, message, "name stages with `FROM ... AS name`");
        }
        let names = before.stages[..stages].iter().filter_map(|it| it.name.as_deref());
        let own = before.stages.last().and_then(|it| it.name.as_deref());
        if own.is_some_and(|it| it.eq_ignore_ascii_case(from)) {
            self.error(flag.place, format!("`{from}` is this stage itself"), "");
        } else if !is_stage && let Some(near) = naru_text::suggest(from, names) {
            // It may be an image, or a context that the command names.
            let message = format!("there is no stage `{from}` before this one");
            let finding = naru_text::Finding::warning(flag.place, message);
            self.findings.push(finding.hint(format!("did you mean `{near}`?")));
        }
    }
}
