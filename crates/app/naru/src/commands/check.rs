//! `naru check`: what a push would say about these files, without a daemon.

use crate::error::{Context, Result};
use naru_plan_dialects::{Trigger, dialect_of};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub fn run(files: &[PathBuf]) -> Result<ExitCode> {
    let mut broken = false;
    for file in files {
        let source = std::fs::read_to_string(file).context(|| format!("cannot read {}", file.display()))?;
        let shown = file.display().to_string();
        let findings = if file.file_name().is_some_and(|it| it == naru_spec::FILE) {
            naru_spec::parse(&source).1
        } else if let Some(dialect) = dialect_of(&repository_path(file)) {
            let trigger = Trigger {
                event: "push".into(),
                git_ref: "refs/heads/main".into(),
                labels: crate::serve::DEFAULT_RUNNERS.iter().map(|it| (*it).to_owned()).collect(),
                ..Trigger::default()
            };
            (dialect.lower)(&shown, &source, &trigger).findings
        } else {
            eprintln!("{shown}: not a file that naru reads; known are .github/workflows/*.yml and naru.yaml");
            broken = true;
            continue;
        };
        for finding in &findings {
            println!("{}\n", finding.render(&shown));
            broken |= finding.is_error();
        }
        if findings.is_empty() {
            println!("{shown}: fine");
        }
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The part of a path that a dialect recognises: from `.github` on.
fn repository_path(file: &Path) -> String {
    let text = file.display().to_string();
    text.find(".github/").map_or(text.clone(), |at| text[at..].to_owned())
}
