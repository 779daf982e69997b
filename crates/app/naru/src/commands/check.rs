//! `naru check`: what a push would say about these files, without a daemon. A directory is a repository.

use super::ci::lint::{Workflow, repository_path, workflows_of};
use crate::error::{Context, Result};
use naru_plan_dialects::dialect_of;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub fn run(files: &[PathBuf]) -> Result<ExitCode> {
    let mut broken = false;
    for file in files {
        if !file.is_dir() {
            broken |= check(file)?;
            continue;
        }
        let app = file.join(naru_spec::FILE);
        let found = app.is_file().then_some(app).into_iter().chain(workflows_of(file)?);
        for file in found {
            broken |= check(&file)?;
        }
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Says what is wrong with a file; true if it cannot be honoured.
fn check(file: &Path) -> Result<bool> {
    let shown = file.display().to_string();
    if dialect_of(&repository_path(file)).is_some() {
        let workflow = Workflow::read(file, &[])?;
        workflow.print();
        return Ok(workflow.is_broken());
    }
    if file.file_name().is_none_or(|it| it != naru_spec::FILE) {
        eprintln!("{shown}: not a file that naru reads; known are .github/workflows/*.yml and naru.yaml");
        return Ok(true);
    }
    let source = std::fs::read_to_string(file).context(|| format!("cannot read {}", file.display()))?;
    let findings = naru_spec::parse(&source).1;
    for finding in &findings {
        println!("{}\n", finding.render(&shown));
    }
    if findings.is_empty() {
        println!("{shown}: fine");
    }
    Ok(findings.iter().any(naru_text::Finding::is_error))
}
