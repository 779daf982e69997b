//! The safe part of the advice, as changes to a Dockerfile's lines: each leaves what the image does as it is.
//! Pure.

use std::fmt::Write;

/// A line that is written differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// From 1.
    pub line: usize,
    pub from: String,
    pub to: String,
    pub why: &'static str,
}

/// What can be made better. `digest_of` tells which image a name stands for here.
pub fn fixes(text: &str, digest_of: &dyn Fn(&str) -> Option<String>) -> Vec<Fix> {
    let mut out = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    let file = crate::dialect::parse(text);
    let stages: Vec<String> =
        file.stages.iter().filter_map(|it| it.name.as_ref()).map(|it| it.to_ascii_lowercase()).collect();
    for line in crate::syntax::read(text).lines {
        let first = line.place.line as usize;
        // The last line of the instruction, continued ones included.
        let last = (first..=lines.len()).find(|it| !is_continued(&lines, *it, file.escape)).unwrap_or(first);
        if line.keyword == "FROM" {
            let image = line.rest.split_whitespace().find(|it| !it.starts_with("--")).unwrap_or_default();
            let is_fixed = image.contains(['@', '$']) || image == "scratch";
            if !is_fixed
                && !stages.contains(&image.to_ascii_lowercase())
                && let Some(digest) = digest_of(image)
            {
                let from = lines[first - 1].to_owned();
                let to = from.replacen(image, &format!("{image}@{digest}"), 1);
                out.push(Fix {
                    line: first,
                    from,
                    to,
                    why: "the base image stays the same until you change it",
                });
            }
            continue;
        }
        if line.keyword != "RUN" || !line.heredocs.is_empty() || line.rest.trim_start().starts_with('[') {
            continue;
        }
        let rest = &line.rest;
        let has_cache = |path: &str| rest.contains("type=cache") && rest.contains(path);
        let mut after: Option<(&str, &'static str)> = None;
        if rest.contains("apt-get install")
            && !rest.contains("/var/lib/apt/lists")
            && !has_cache("/var/lib/apt")
        {
            after = Some((" && rm -rf /var/lib/apt/lists/*", "the package lists do not stay in the layer"));
        } else if rest.contains("dnf install") && !rest.contains("dnf clean") && !has_cache("/var/cache/dnf")
        {
            after = Some((" && dnf clean all", "the downloads do not stay in the layer"));
        } else if (rest.contains("npm ci") || rest.contains("npm install"))
            && !rest.contains("npm cache")
            && !has_cache("/root/.npm")
        {
            after = Some((" && npm cache clean --force", "the downloads do not stay in the layer"));
        }
        if let Some((text, why)) = after.filter(|_| !rest.contains(';') && !rest.contains("||")) {
            let from = lines[last - 1].to_owned();
            let to = format!("{}{text}", from.trim_end());
            out.push(Fix { line: last, from, to, why });
        }
        for number in first..=last {
            let from = lines[number - 1];
            let mut to = from.to_owned();
            let mut why = "";
            for (command, flag, cache) in [
                ("apk add", "--no-cache", "/var/cache/apk"),
                ("pip install", "--no-cache-dir", "/root/.cache/pip"),
            ] {
                if from.contains(command) && !rest.contains(flag) && !has_cache(cache) {
                    to = to.replacen(command, &format!("{command} {flag}"), 1);
                    why = "the downloads do not stay in the layer";
                }
            }
            if !why.is_empty() && !out.iter().any(|it| it.line == number) {
                out.push(Fix { line: number, from: from.to_owned(), to, why });
            }
        }
    }
    out.sort_by_key(|it| it.line);
    out
}

fn is_continued(lines: &[&str], line: usize, escape: char) -> bool {
    let text = lines[line - 1].trim();
    // A comment between continued lines goes on as they do.
    text.ends_with(escape) || (text.starts_with('#') && line < lines.len())
}

/// The changes as a patch that `patch -p1` and `git apply` take.
pub fn patch(name: &str, text: &str, fixes: &[Fix]) -> String {
    const CONTEXT: usize = 3;
    let lines: Vec<&str> = text.lines().collect();
    if fixes.is_empty() {
        return String::new();
    }
    let mut out = format!("--- a/{name}\n+++ b/{name}\n");
    let mut at = 0;
    while at < fixes.len() {
        // Changes whose surroundings touch share a hunk.
        let mut end = at;
        while end + 1 < fixes.len() && fixes[end + 1].line <= fixes[end].line + 2 * CONTEXT {
            end += 1;
        }
        let from = fixes[at].line.saturating_sub(CONTEXT).max(1);
        let to = (fixes[end].line + CONTEXT).min(lines.len());
        let count = to - from + 1;
        let _ = writeln!(out, "@@ -{from},{count} +{from},{count} @@");
        for number in from..=to {
            match fixes[at..=end].iter().find(|it| it.line == number) {
                Some(fix) => {
                    let _ = writeln!(out, "-{}\n+{}", fix.from, fix.to);
                }
                None => {
                    let _ = writeln!(out, " {}", lines[number - 1]);
                }
            }
        }
        at = end + 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_safe_is_changed() {
        let text = "FROM debian:12 AS build\nRUN apt-get update && \\\n    apt-get install -y gcc\nRUN pip install x\nFROM build\nFROM alpine\nRUN apk add curl\nRUN apk add --no-cache jq\nRUN --mount=type=cache,target=/root/.cache/pip pip install y\nRUN apt-get install -y z; true\n";
        let digest_of = |name: &str| (name == "debian:12").then(|| "sha256:abc".to_owned());
        let found = fixes(text, &digest_of);
        let of: Vec<(usize, &str)> = found.iter().map(|it| (it.line, it.to.as_str())).collect();
        assert_eq!(
            of,
            [
                (1, "FROM debian:12@sha256:abc AS build"),
                (3, "    apt-get install -y gcc && rm -rf /var/lib/apt/lists/*"),
                (4, "RUN pip install --no-cache-dir x"),
                (7, "RUN apk add --no-cache curl"),
            ]
        );
        let patch = patch("Dockerfile", text, &found);
        assert!(patch.starts_with(
            "--- a/Dockerfile\n+++ b/Dockerfile\n@@ -1,10 +1,10 @@\n-FROM debian:12 AS build\n"
        ));
        assert_eq!(patch.lines().filter(|it| it.starts_with('+')).count(), 5);
    }
}
