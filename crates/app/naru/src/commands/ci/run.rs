//! `naru ci run`: the workflows of the current directory, uncommitted changes included, without a daemon.

use super::screen::Screen;
use super::services;
use crate::error::{Error, Result};
use naru_runner::local::{self, Ended, Facts, Machine, Request};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often the tree is drawn: times that tick, and no flicker.
const DRAW_EVERY: Duration = Duration::from_millis(100);

#[derive(clap::Args, Clone)]
pub struct RunArgs {
    /// Only this workflow file; several may be named.
    #[arg(short = 'W', long = "workflows", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only this job with all that it needs; several may be named.
    #[arg(short = 'j', long = "job", value_name = "JOB")]
    jobs: Vec<String>,
    /// The event that has happened.
    #[arg(long, default_value = "push")]
    event: String,
    /// A JSON file with what the event's sender says (`github.event`).
    #[arg(short = 'e', long = "eventpath", value_name = "FILE")]
    event_path: Option<PathBuf>,
    /// Only combinations of a matrix with this value: `--matrix node:20`.
    #[arg(long, value_name = "KEY:VALUE")]
    matrix: Vec<String>,
    /// An input of a dispatched workflow: `--input target=staging`.
    #[arg(long = "input", value_name = "KEY=VALUE")]
    inputs: Vec<String>,
    /// A secret; without a value that of the environment variable.
    #[arg(short = 's', long = "secret", value_name = "NAME[=VALUE]")]
    secrets: Vec<String>,
    /// A file of secrets, a `NAME=value` per line.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// A variable of the repository (`vars`).
    #[arg(long = "var", value_name = "NAME=VALUE")]
    vars: Vec<String>,
    /// A variable of every job's environment, outside of all that the files say.
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Another label of `runs-on` that this machine stands for.
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// A directory with actions, `<owner>/<name>` or `<owner>/<name>@<ref>`.
    #[arg(long, value_name = "DIR")]
    actions_dir: Vec<PathBuf>,
    /// The git host that is asked for actions which are in no such directory; `none` asks nobody.
    #[arg(long, value_name = "URL", default_value = "https://github.com")]
    actions_from: String,
    /// Open a shell before this step: its id, its name, or its number in the job.
    #[arg(long = "break", value_name = "STEP")]
    breaks: Vec<String>,
    /// What to open after a step that failed.
    #[arg(long, value_name = "WHAT")]
    on_failure: Option<OnFailure>,
    /// So many jobs at a time; as many as there are processors if not said.
    #[arg(long, value_name = "COUNT")]
    parallel: Option<usize>,
    /// Leave the jobs' directories, and say where they are.
    #[arg(long)]
    keep: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq)]
enum OnFailure {
    /// A shell in the job.
    Shell,
}

pub async fn run(args: &RunArgs) -> Result<ExitCode> {
    let wants_terminal = !args.breaks.is_empty() || args.on_failure.is_some();
    if wants_terminal && !std::io::stdin().is_terminal() {
        return Err(Error::new("a shell in a job needs a terminal, and standard input is none")
            .hint("leave out --break and --on-failure"));
    }
    let here = std::env::current_dir()?;
    let facts = Facts::of(&here);
    let mut request = request(args, &here, &facts)?;
    let reading = local::read(&request, &facts)?;
    let mut refused = false;
    for (file, finding) in &reading.findings {
        eprintln!("{}", finding.render(file));
        refused |= finding.is_error();
    }
    if refused {
        return Err(Error::new("a workflow cannot be honoured; nothing was run"));
    }
    if reading.planned.is_empty() {
        return Err(Error::new(format!("no workflow here asks for the event `{}`", request.event))
            .hint("name another one with --event, such as workflow_dispatch or pull_request"));
    }
    let scratch = tempfile::Builder::new().prefix("naru-ci-").tempdir()?;
    let services = if local::uses_packages(&reading) {
        let from = Some(args.actions_from.clone()).filter(|it| it != "none");
        Some(services::start(&facts, &cache_directory().join("services"), scratch.path(), from).await?)
    } else {
        None
    };
    if let Some(services) = &services {
        request.services.clone_from(&services.variables);
        request.actions_url.clone_from(&services.url);
    }
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let machine = Machine {
        program: std::env::current_exe()?,
        scratch: scratch.path().to_owned(),
        jobs_max: args.parallel.unwrap_or(processors).max(1),
    };
    let (stop_in, mut stop) = mpsc::channel(8);
    tokio::spawn(
        async move { while tokio::signal::ctrl_c().await.is_ok() && stop_in.send(()).await.is_ok() {} },
    );
    let screen = RefCell::new(Screen::new());
    let mut worst = Ended::Succeeded;
    for (number, planned) in reading.planned.iter().enumerate() {
        let machine = Machine { scratch: machine.scratch.join(number.to_string()), ..machine.clone() };
        screen.borrow_mut().begin(&planned.plan.name, reading.planned.len() > 1);
        let mut tell = |told: local::Told<'_>| screen.borrow_mut().tell(&told);
        let mut run = std::pin::pin!(local::run(&request, &facts, planned, &machine, &mut stop, &mut tell));
        let mut ticks = tokio::time::interval(DRAW_EVERY);
        let ended = loop {
            tokio::select! {
                ended = &mut run => break ended,
                _ = ticks.tick() => screen.borrow_mut().draw(),
            }
        };
        if ended != Ended::Succeeded {
            worst = ended;
        }
        if ended == Ended::Cancelled {
            break;
        }
    }
    screen.into_inner().finish();
    if args.keep {
        println!("the jobs' directories are in {}", scratch.keep().display());
    }
    Ok(match worst {
        Ended::Succeeded => ExitCode::SUCCESS,
        Ended::Failed => ExitCode::FAILURE,
        // As a shell says that Ctrl-C ended it.
        Ended::Cancelled => ExitCode::from(130),
    })
}

fn request(args: &RunArgs, here: &Path, facts: &Facts) -> Result<Request> {
    let mut secrets = BTreeMap::new();
    if let Some(path) = &args.secret_file {
        secrets.extend(secret_file(path)?);
    }
    for it in &args.secrets {
        let (name, value) = match it.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => {
                let value = std::env::var(it).map_err(|_| {
                    Error::new(format!("the secret `{it}` has no value"))
                        .hint(format!("write --secret {it}=VALUE, or set the environment variable {it}"))
                })?;
                (it.clone(), value)
            }
        };
        secrets.insert(name, value);
    }
    let absolute = |path: &PathBuf| here.join(path);
    let files = args
        .files
        .iter()
        .map(|it| {
            let full = here.join(it);
            let within = full.strip_prefix(&facts.top).unwrap_or(&full);
            within.to_string_lossy().into_owned()
        })
        .collect();
    let payload = match &args.event_path {
        None => Value::Null,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|it| Error::new(format!("cannot read {}: {it}", path.display())))?;
            serde_json::from_str(&text).map_err(|it| Error::new(format!("{}: {it}", path.display())))?
        }
    };
    Ok(Request {
        tree: facts.top.clone(),
        files,
        event: args.event.clone(),
        payload,
        inputs: Map::from_iter(
            pairs("--input", &args.inputs, '=')?.into_iter().map(|(name, value)| (name, Value::from(value))),
        ),
        jobs: args.jobs.clone(),
        matrix: pairs("--matrix", &args.matrix, ':')?,
        secrets,
        vars: pairs("--var", &args.vars, '=')?.into_iter().collect(),
        env: pairs("--env", &args.env, '=')?,
        labels: args.labels.clone(),
        actions_dirs: args.actions_dir.iter().map(absolute).collect(),
        breaks: args.breaks.clone(),
        shell_on_failure: args.on_failure == Some(OnFailure::Shell),
        tool_cache: cache_directory().join("tools"),
        ..Request::default()
    })
}

fn cache_directory() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|it| PathBuf::from(it).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_else(std::env::temp_dir).join("naru")
}

fn pairs(option: &str, all: &[String], separator: char) -> Result<Vec<(String, String)>> {
    all.iter()
        .map(|it| match it.split_once(separator) {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Error::new(format!("`{option} {it}` has no `{separator}`"))
                .hint(format!("write {option} NAME{separator}VALUE"))),
        })
        .collect()
}

/// `NAME=value` lines; quotes around a value are not part of it, `#` begins a remark.
fn secret_file(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path)
        .map_err(|it| Error::new(format!("cannot read {}: {it}", path.display())))?;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| {
            Error::new(format!("{}:{}: this is not `NAME=value`", path.display(), number + 1))
        })?;
        let name = name.trim().trim_start_matches("export ").trim();
        let value = value.trim();
        let value = match value.chars().next() {
            Some('"') if value.len() > 1 && value.ends_with('"') => {
                value[1..value.len() - 1].replace("\\n", "\n").replace("\\\"", "\"")
            }
            Some('\'') if value.len() > 1 && value.ends_with('\'') => value[1..value.len() - 1].to_owned(),
            _ => value.to_owned(),
        };
        found.push((name.to_owned(), value));
    }
    Ok(found)
}
