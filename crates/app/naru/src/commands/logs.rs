//! `naru logs`: what a run's jobs print, or an app's pods. The same lines reach the terminal of a push.

use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use clap::Args;
use futures::{AsyncBufReadExt, AsyncReadExt};
use naru_client::{Cache, Client, LogOptions};
use naru_objects::{
    Image, ImagePhase, JobPhase, NAMESPACE, Release, ReleasePhase, Run, RunPhase, VerdictOutcome, kinds,
    labels,
};
use naru_runner::protocol::for_people;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc;

/// Longer lines are shown in pieces; a job's last word may hold a summary of a megabyte.
const LINE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Args)]
pub struct LogsArgs {
    /// `run/<name>`, `pod/<name>`, or the name of an app.
    pub target: String,
    /// Stay and print what comes.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines of each pod.
    #[arg(long)]
    pub tail: Option<u64>,
}

pub async fn run(global: &Global, args: &LogsArgs) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    if let Some(name) = args.target.strip_prefix("run/") {
        if args.follow {
            return follow_change(&client, name, &build_logs(global), &mut |line| println!("{line}")).await;
        }
        return print_run(&client, name, &build_logs(global)).await;
    }
    let pods: Vec<String> = match args.target.strip_prefix("pod/") {
        Some(pod) => vec![pod.to_owned()],
        None => {
            let selector = format!("{}={},{}", labels::APP, args.target, labels::SERVICE);
            let pods = client.list(&kinds::POD, Some(NAMESPACE), &selector).await?;
            pods.iter().map(|it| naru_objects::name_of(it).to_owned()).collect()
        }
    };
    if pods.is_empty() {
        return Err(Error::new(format!("no pod of an app `{}` runs", args.target))
            .hint("`naru status` shows the apps; a run's log is at `naru logs run/<name>`"));
    }
    let prefix = pods.len() > 1;
    let (lines_in, mut lines) = mpsc::channel::<String>(64);
    for pod in pods {
        let options = LogOptions { follow: args.follow, tail_lines: args.tail, ..LogOptions::default() };
        tokio::spawn(copy_log(client.clone(), pod.clone(), options, lines_in.clone(), move |line| {
            Some(if prefix { format!("[{pod}] {line}") } else { line.to_owned() })
        }));
    }
    drop(lines_in);
    while let Some(line) = lines.recv().await {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends a pod's log line by line, as far as `shown` wants it.
async fn copy_log(
    client: Client,
    pod: String,
    options: LogOptions,
    lines: mpsc::Sender<String>,
    shown: impl Fn(&str) -> Option<String> + Send,
) {
    let reader = match client.logs(NAMESPACE, &pod, "", &options).await {
        Ok(reader) => reader,
        Err(error) => {
            let _ = lines.send(format!("({error})")).await;
            return;
        }
    };
    let mut reader = reader;
    let mut line = Vec::new();
    loop {
        line.clear();
        // A program may print what is no text; that must not end its log.
        match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            Ok(0) => return,
            Err(error) => {
                let _ = lines.send(format!("(the log breaks off: {error})")).await;
                return;
            }
        }
        let text = String::from_utf8_lossy(&line);
        if let Some(line) = shown(text.trim_end_matches(['\n', '\r']))
            && lines.send(line).await.is_err()
        {
            return;
        }
    }
}

async fn print_run(client: &Client, name: &str, build_logs: &Path) -> Result<ExitCode> {
    let Some(object) = client.get(&kinds::RUN, NAMESPACE, name).await? else {
        return Err(Error::new(format!("there is no run {name}")).hint("`kubectl get runs` shows them"));
    };
    let run: Run = serde_json::from_value(object)?;
    for line in findings(&run) {
        println!("{line}");
    }
    for job in &run.status.jobs {
        println!("=== {} {}", job.name, phase_word(job.phase, &job.message));
        if !job.pod.is_empty() {
            let (lines_in, mut lines) = mpsc::channel(64);
            tokio::spawn(copy_log(
                client.clone(),
                job.pod.clone(),
                LogOptions::default(),
                lines_in,
                for_people,
            ));
            while let Some(line) = lines.recv().await {
                println!("{line}");
            }
        }
    }
    for image in client.list(&kinds::IMAGE, Some(NAMESPACE), &format!("{}={name}", labels::RUN)).await? {
        println!("=== image of {}", naru_objects::label_of(&image, labels::SERVICE));
        let mut log = BuildLog::new(naru_builder::log_path(build_logs, naru_objects::name_of(&image)));
        for line in log.new_lines() {
            println!("  {line}");
        }
    }
    println!("=== {:?} {}", run.status.phase, run.status.message);
    Ok(if run.status.phase == RunPhase::Succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn findings(run: &Run) -> Vec<String> {
    let mut lines = Vec::new();
    for it in &run.status.diagnostics {
        lines.push(format!("{}: {}", it.severity, it.message));
        lines.push(format!("  --> {}:{}:{}", it.file, it.line, it.column));
        if !it.hint.is_empty() {
            lines.push(format!("hint: {}", it.hint));
        }
    }
    lines
}

fn phase_word(phase: JobPhase, message: &str) -> String {
    let word = match phase {
        JobPhase::Pending => "waits",
        JobPhase::Running => "runs",
        JobPhase::Succeeded => "succeeded",
        JobPhase::Failed => "failed",
        JobPhase::Skipped => "was skipped",
        JobPhase::Cancelled => "was cancelled",
        JobPhase::Interrupted => "was interrupted",
    };
    if message.is_empty() { word.into() } else { format!("{word}: {message}") }
}

/// Prints a change's way from its run to the end of its release. The exit code tells how it went.
pub async fn follow_change(
    client: &Client,
    run_name: &str,
    build_logs: &Path,
    out: &mut (dyn FnMut(&str) + Send),
) -> Result<ExitCode> {
    let mut runs = client.cache(&kinds::RUN, Some(NAMESPACE), "");
    let pods = client.cache(&kinds::POD, Some(NAMESPACE), &format!("{}={run_name}", labels::RUN));
    runs.synced().await;
    pods.synced().await;
    let mut pod_changes = pods.changes();
    let (lines_in, mut lines) = mpsc::channel::<String>(256);
    let mut followed = BTreeSet::new();
    let mut told = BTreeSet::new();
    let mut announced = false;
    let run = loop {
        let Some(object) = runs.get(NAMESPACE, run_name) else {
            return Err(
                Error::new(format!("there is no run {run_name}")).hint("`kubectl get runs` shows them")
            );
        };
        let run: Run = serde_json::from_value((*object).clone())?;
        if !announced {
            out(&format!(
                "{run_name}: change {} of {} at {}",
                run.spec.change,
                run.spec.git_ref,
                short(&run.spec.sha)
            ));
            announced = true;
        }
        if run.status.phase != RunPhase::Pending && told.insert("findings".to_owned()) {
            for line in findings(&run) {
                out(&line);
            }
        }
        for job in &run.status.jobs {
            if !job.phase.is_final()
                && !job.message.is_empty()
                && told.insert(format!("{} {}", job.key, job.message))
            {
                out(&format!("[{}] {}", job.name, job.message));
            }
            let started = pods.get(NAMESPACE, &job.pod).is_some_and(|it| {
                it["status"]["containerStatuses"][0]["state"]["waiting"].is_null()
                    && it["status"]["containerStatuses"].is_array()
            });
            if started && followed.insert(job.key.clone()) {
                let name = job.name.clone();
                let options = LogOptions { follow: true, ..LogOptions::default() };
                tokio::spawn(copy_log(
                    client.clone(),
                    job.pod.clone(),
                    options,
                    lines_in.clone(),
                    move |line| Some(format!("[{name}] {}", for_people(line)?)),
                ));
            }
        }
        if run.status.phase.is_final() {
            break run;
        }
        tokio::select! {
            () = runs.changed() => {}
            () = pod_changes.wait() => {}
            Some(line) = lines.recv() => out(&line),
        }
        while let Ok(line) = lines.try_recv() {
            out(&line);
        }
    };
    drop(lines_in);
    // The followers end with their pods; a log that does not end must not hold the terminal.
    while let Ok(Some(line)) = tokio::time::timeout(std::time::Duration::from_secs(2), lines.recv()).await {
        out(&line);
    }
    for job in &run.status.jobs {
        out(&format!("{} {}", job.name, phase_word(job.phase, &job.message)));
    }
    if run.status.phase != RunPhase::Succeeded {
        out(&format!("{run_name}: {:?}: {}", run.status.phase, run.status.message));
        return Ok(ExitCode::FAILURE);
    }
    if !run.status.message.is_empty() {
        out(&run.status.message);
    }
    if !run.spec.deploy {
        return Ok(ExitCode::SUCCESS);
    }
    follow_release(client, &run, &runs, build_logs, out).await
}

async fn follow_release(
    client: &Client,
    run: &Run,
    runs: &Cache,
    build_logs: &Path,
    out: &mut (dyn FnMut(&str) + Send),
) -> Result<ExitCode> {
    let selector = format!("{}={}", labels::RUN, run.metadata.name);
    let images = client.cache(&kinds::IMAGE, Some(NAMESPACE), &selector);
    let mut releases = client.cache(&kinds::RELEASE, Some(NAMESPACE), &selector);
    images.synced().await;
    releases.synced().await;
    let mut image_changes = images.changes();
    let mut run_changes = runs.changes();
    let mut told = BTreeSet::new();
    let mut logs: BTreeMap<String, BuildLog> = BTreeMap::new();
    loop {
        let mut building = false;
        // A repository without the file never gets an image or a release; deploy says so at the run.
        let object = runs.get(NAMESPACE, &run.metadata.name);
        if object.is_some_and(|it| it["metadata"]["annotations"][labels::APP_FILE] == "none") {
            out("the repository has no naru.yaml: nothing is deployed");
            return Ok(ExitCode::SUCCESS);
        }
        for object in images.list() {
            let image: Image = serde_json::from_value((*object).clone())?;
            let status = &image.status;
            let line = match status.phase {
                ImagePhase::Pending => continue,
                ImagePhase::Building => format!("image of {}: building", image.spec.service),
                ImagePhase::Failed => format!("image of {}: failed\n{}", image.spec.service, status.message),
                ImagePhase::Ready => format!(
                    "image of {}: {} ({:.1} MB, {} of {} steps from the cache)",
                    image.spec.service,
                    short_digest(&status.digest),
                    status.size_bytes as f64 / 1e6,
                    status.cached_steps,
                    status.total_steps
                ),
            };
            building |= status.phase == ImagePhase::Building;
            if status.phase == ImagePhase::Building {
                out_once(&mut told, &line, out);
            }
            let log = logs
                .entry(image.metadata.name.clone())
                .or_insert_with(|| BuildLog::new(naru_builder::log_path(build_logs, &image.metadata.name)));
            for it in log.new_lines() {
                out(&format!("[image of {}] {it}", image.spec.service));
            }
            if told.insert(line.clone()) {
                line.lines().for_each(&mut *out);
                for it in &status.advice {
                    out(&format!("  advice: {} (Dockerfile:{}) {}", it.message, it.line, it.hint));
                }
            }
        }
        for object in releases.list() {
            let release: Release = serde_json::from_value((*object).clone())?;
            let (name, status) = (&release.metadata.name, &release.status);
            for (index, it) in status.history.iter().enumerate() {
                if told.insert(format!("{name} history {index}")) {
                    out(&format!("{name}: {}", it.what));
                }
            }
            for it in &status.verdicts {
                if told.insert(format!("{name} verdict {} {:?}", it.step, it.outcome)) {
                    let word = match it.outcome {
                        VerdictOutcome::Good => "good",
                        VerdictOutcome::Bad => "BAD",
                        VerdictOutcome::Inconclusive => "open",
                    };
                    out(&format!("{name}: {} % judged {word}: {}", it.weight, it.why));
                }
            }
            if status.phase == ReleasePhase::Promoted {
                if let Some(host) = host_of(&release) {
                    out(&format!("{name} is live at http://{host}"));
                }
                return Ok(ExitCode::SUCCESS);
            }
            if status.phase.is_final() {
                out(&format!("{name}: {:?}: {}", status.phase, status.message));
                let good = status.phase == ReleasePhase::Superseded;
                return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
        }
        tokio::select! {
            () = releases.changed() => {}
            () = image_changes.wait() => {}
            () = run_changes.wait() => {}
            () = tokio::time::sleep(BUILD_LOG_EVERY), if building => {}
        }
    }
}

/// Says a line if it was not said before.
fn out_once(told: &mut BTreeSet<String>, line: &str, out: &mut (dyn FnMut(&str) + Send)) {
    if told.insert(line.to_owned()) {
        out(line);
    }
}

/// How often a build's log is looked at while it grows.
const BUILD_LOG_EVERY: Duration = Duration::from_millis(200);

/// Where the daemon writes the logs of image builds.
pub fn build_logs(global: &Global) -> PathBuf {
    global.data_dir.join("builds/logs")
}

/// A build's log, read as it grows. One that cannot be read says nothing: the image's status tells how the
/// build went.
struct BuildLog {
    path: PathBuf,
    read: u64,
    rest: String,
}

impl BuildLog {
    fn new(path: PathBuf) -> Self {
        Self { path, read: 0, rest: String::new() }
    }

    /// The lines that were completed since the last call.
    fn new_lines(&mut self) -> Vec<String> {
        use std::io::{Read, Seek, SeekFrom};
        let mut bytes = Vec::new();
        if let Ok(mut file) = std::fs::File::open(&self.path)
            && file.seek(SeekFrom::Start(self.read)).is_ok()
        {
            let _ = file.read_to_end(&mut bytes);
        }
        self.read += bytes.len() as u64;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let Some(end) = self.rest.rfind('\n') else { return Vec::new() };
        let complete: String = self.rest.drain(..=end).collect();
        complete.lines().map(str::to_owned).collect()
    }
}

fn host_of(release: &Release) -> Option<String> {
    release.spec.objects.iter().find_map(|it| it["spec"]["hostnames"][0].as_str()).map(str::to_owned)
}

fn short(sha: &str) -> &str {
    sha.get(..12).unwrap_or(sha)
}

pub fn short_digest(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}
