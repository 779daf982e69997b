//! `naru __job --wait URL`: the runner of a job's steps, inside its pod, which asks the daemon for the job.
//! `naru __job -` takes it from standard input: how a job on somebody's own machine is started.

use naru_runner::controller::WAIT_TOKEN;
use naru_runner::job::JobFile;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

/// Runs the job if that is what we were started for. Answered before the command line is parsed: in a pod
/// there is nobody to read help, and a start costs as little as it can.
pub fn maybe_run() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    match args.next()?.to_str()? {
        "__job" => {}
        // Beside a job: its client for a container, and what runs in that container.
        "__beside" => return Some(beside(args.next()?.as_ref())),
        "__inside" => return Some(inside(args.next()?.as_ref(), args.collect())),
        _ => return None,
    }
    let source = args.next()?;
    let url = args.next();
    let run = || -> Result<i32, String> {
        let runtime = runtime()?;
        let file = match (source.to_str(), url) {
            (Some("--wait"), Some(url)) => {
                // Steps run as the same user: what this process knows (secrets, and the word by which its lines
                // count) is kept from them as far as the kernel lets it.
                let _ = nix::sys::prctl::set_dumpable(false);
                let token = std::env::var(WAIT_TOKEN).unwrap_or_default();
                runtime.block_on(naru_runner::job::wait::for_job(&url.to_string_lossy(), &token))?
            }
            (Some("-"), None) => from_standard_input()?,
            _ => return Err("a job is started by naru, not by hand".into()),
        };
        let image_path = std::env::var("PATH").unwrap_or_default();
        Ok(runtime.block_on(naru_runner::job::run(file, image_path, &mut std::io::stdout())))
    };
    Some(match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(message) => {
            println!("error: {message}");
            ExitCode::FAILURE
        }
    })
}

fn from_standard_input() -> Result<JobFile, String> {
    // Whoever started it may be killed.
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM);
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|it| format!("cannot read the job's file: {it}"))?;
    serde_json::from_str(&text).map_err(|it| format!("the job's file is damaged: {it}"))
}

fn beside(file: &Path) -> ExitCode {
    ended(runtime().and_then(|it| it.block_on(naru_runner::job::beside::ask(file, &mut std::io::stdout()))))
}

fn inside(file: &Path, own: Vec<std::ffi::OsString>) -> ExitCode {
    let words = |at: usize| -> Vec<String> {
        own.get(at).and_then(|it| serde_json::from_str(it.to_str()?).ok()).unwrap_or_default()
    };
    ended(runtime().and_then(|it| it.block_on(naru_runner::job::beside::run(file, &words(0), &words(1)))))
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|it| format!("cannot start: {it}"))
}

fn ended(code: Result<i32, String>) -> ExitCode {
    match code {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(message) => {
            println!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
