//! Links between our Markdown files, and from them to files and headings of the repository.

use crate::root;
use std::path::{Path, PathBuf};

pub fn check() -> Vec<String> {
    let mut problems = Vec::new();
    for file in markdown_files(&root()) {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut in_code = false;
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            }
            if in_code {
                continue;
            }
            for target in targets(line) {
                if let Some(problem) = problem_of(&file, &target) {
                    let shown = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
                    problems.push(format!("{shown}:{}: the link `{target}` {problem}", number + 1));
                }
            }
        }
    }
    problems
}

/// The targets of `[text](target)` in a line.
fn targets(line: &str) -> Vec<String> {
    line.match_indices("](")
        .filter_map(|(at, _)| {
            let rest = &line[at + 2..];
            Some(rest[..rest.find(')')?].to_owned())
        })
        .collect()
}

fn problem_of(file: &Path, target: &str) -> Option<String> {
    if target.starts_with("http://") || target.starts_with("https://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let full = if path.is_empty() {
        file.to_owned()
    } else {
        file.parent().expect("a file stands in a directory").join(path)
    };
    if !full.exists() {
        return Some("leads to nothing".into());
    }
    if heading.is_empty() {
        return None;
    }
    let text = std::fs::read_to_string(&full).unwrap_or_default();
    let known =
        text.lines().filter(|it| it.starts_with('#')).any(|it| slug(it.trim_start_matches('#')) == heading);
    (!known).then(|| "names a heading that does not exist".into())
}

/// A heading's anchor, as code hosts make it.
fn slug(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

fn markdown_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && !path.is_symlink() {
            if !name.to_string_lossy().starts_with('.') && name != "target" && name != "node_modules" {
                found.extend(markdown_files(&path));
            }
        } else if path.extension().is_some_and(|it| it == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}
