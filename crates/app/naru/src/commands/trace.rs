//! `naru trace`: the walk of one change, row by row as the plan of the house has it.

use crate::cli::Global;
use crate::commands::dora::duration;
use crate::connection;
use crate::error::{Error, Result};
use jiff::Timestamp;
use naru_client::Client;
use naru_objects::{Image, ImagePhase, JobPhase, NAMESPACE, Release, Run, VerdictOutcome, kinds, labels};
use std::process::ExitCode;

pub async fn run(global: &Global, what: &str) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    for line in lines(&client, what).await? {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// One row: when, what, the object that was written, by whom.
struct Row {
    at: Option<Timestamp>,
    number: u32,
    what: String,
    object: String,
    by: &'static str,
}

pub async fn lines(client: &Client, what: &str) -> Result<Vec<String>> {
    let change = change_of(client, what).await?;
    let selector = format!("{}={change}", labels::CHANGE);
    let list = |kind| client.list(kind, Some(NAMESPACE), &selector);
    let runs: Vec<Run> = parse(list(&kinds::RUN).await?);
    let images: Vec<Image> = parse(list(&kinds::IMAGE).await?);
    let releases: Vec<Release> = parse(list(&kinds::RELEASE).await?);
    let pods = client.list(&kinds::POD, Some(NAMESPACE), &format!("{selector},{}", labels::SERVICE)).await?;
    let mut rows = Vec::new();
    for run in &runs {
        run_rows(run, &mut rows);
    }
    for image in &images {
        image_rows(image, &mut rows);
    }
    for release in &releases {
        release_rows(release, &pods, &mut rows);
    }
    rows.sort_by_key(|it| (it.at, it.number));
    let begin = rows.iter().find_map(|it| it.at);
    let mut lines = vec![
        format!("The walk of {change}"),
        format!("{:>9}  {:>2}  {:<52} {:<28} {}", "time", "#", "what happened", "object", "by"),
    ];
    for row in &rows {
        let since = match (row.at, begin) {
            (Some(at), Some(begin)) => format!("+{}", duration(at.duration_since(begin).as_secs_f64())),
            _ => "-".into(),
        };
        lines.push(format!("{since:>9}  {:>2}  {:<52} {:<28} {}", row.number, row.what, row.object, row.by));
    }
    Ok(lines)
}

/// The change id that was meant: itself, or that of a run or release.
async fn change_of(client: &Client, what: &str) -> Result<String> {
    for kind in [&kinds::RUN, &kinds::RELEASE] {
        if let Some(object) = client.get(kind, NAMESPACE, what).await? {
            return Ok(object["spec"]["change"].as_str().unwrap_or_default().to_owned());
        }
    }
    let runs = client.list(&kinds::RUN, Some(NAMESPACE), &format!("{}={what}", labels::CHANGE)).await;
    match runs {
        Ok(runs) if !runs.is_empty() => Ok(what.to_owned()),
        _ => Err(Error::new(format!("no change, run or release is called `{what}`"))
            .hint("`naru status` shows the latest changes")),
    }
}

fn parse<T: for<'a> serde::Deserialize<'a>>(objects: Vec<serde_json::Value>) -> Vec<T> {
    objects.into_iter().filter_map(|it| serde_json::from_value(it).ok()).collect()
}

fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

fn run_rows(run: &Run, rows: &mut Vec<Row>) {
    let object = format!("Run {}", run.metadata.name);
    rows.push(Row {
        at: time(&run.spec.pushed_at),
        number: 1,
        what: format!("push accepted: {}", cut(&run.spec.message, 36)),
        object: object.clone(),
        by: "code",
    });
    for job in &run.status.jobs {
        let took = match (time(&job.started_at), time(&job.finished_at)) {
            (Some(start), Some(end)) => format!(" in {}", duration(end.duration_since(start).as_secs_f64())),
            _ => String::new(),
        };
        let word = match job.phase {
            JobPhase::Succeeded => "succeeded",
            JobPhase::Failed => "failed",
            JobPhase::Skipped => "skipped",
            JobPhase::Cancelled => "cancelled",
            JobPhase::Interrupted => "interrupted",
            JobPhase::Pending | JobPhase::Running => "under way",
        };
        rows.push(Row {
            at: time(&job.finished_at),
            number: 2,
            what: format!("job {} {word}{took}", job.name),
            object: object.clone(),
            by: "pipeline",
        });
    }
    if run.status.phase.is_final() {
        rows.push(Row {
            at: time(&run.status.finished_at),
            number: 2,
            what: format!("run {:?} {}", run.status.phase, run.status.message),
            object,
            by: "pipeline",
        });
    }
}

fn image_rows(image: &Image, rows: &mut Vec<Row>) {
    let status = &image.status;
    let what = match status.phase {
        ImagePhase::Ready => format!(
            "image built, {:.1} MB, {} of {} steps cached",
            status.size_bytes as f64 / 1e6,
            status.cached_steps,
            status.total_steps
        ),
        ImagePhase::Failed => "image not built".into(),
        ImagePhase::Pending | ImagePhase::Building => "image under way".into(),
    };
    rows.push(Row {
        at: time(&status.finished_at),
        number: 3,
        what,
        object: format!("Image {}", image.metadata.name),
        by: "package",
    });
}

fn release_rows(release: &Release, pods: &[serde_json::Value], rows: &mut Vec<Row>) {
    let object = format!("Release {}", release.metadata.name);
    let status = &release.status;
    let mut push = |at: &str, number, what: String, object: &str, by| {
        rows.push(Row { at: time(at), number, what, object: object.to_owned(), by });
    };
    let created = release.metadata.creation_timestamp.clone().unwrap_or_default();
    // Kubernetes' own creation time has whole seconds; the rollout's first act is finer and right after.
    let rendered = if status.started_at.is_empty() { &created } else { &status.started_at };
    push(
        rendered,
        4,
        format!("{} objects rendered and checked", release.spec.objects.len()),
        &object,
        "deploy",
    );
    for it in &status.history {
        match it.what.as_str() {
            "objects applied" => push(
                &it.at,
                5,
                "objects applied by server-side apply".into(),
                "Deployment, Service, HTTPRoute",
                "rollout",
            ),
            what if what.ends_with("of the traffic") => {
                push(&it.at, 7, format!("weight moved: {what}"), "HTTPRoute", "rollout")
            }
            what if what.starts_with("all traffic back") => {
                push(&it.at, 7, what.to_owned(), "HTTPRoute", "rollout")
            }
            what => push(&it.at, 9, what.to_owned(), &object, "rollout"),
        }
    }
    for it in &status.verdicts {
        let word = match it.outcome {
            VerdictOutcome::Good => "good",
            VerdictOutcome::Bad => "BAD",
            VerdictOutcome::Inconclusive => "open",
        };
        push(&it.at, 8, format!("{} % judged {word}: {}", it.weight, cut(&it.why, 30)), &object, "monitor");
    }
    for pod in pods.iter().filter(|it| naru_objects::label_of(it, labels::RELEASE) == release.metadata.name) {
        let ready = pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|it| it["type"] == "Ready" && it["status"] == "True");
        if let Some(ready) = ready {
            let at = ready["lastTransitionTime"].as_str().unwrap_or_default();
            push(
                at,
                6,
                "pod scheduled, started, probed: ready".into(),
                &format!("Pod {}", naru_objects::name_of(pod)),
                "controllers, node",
            );
        }
    }
    let end = if status.promoted_at.is_empty() { &status.finished_at } else { &status.promoted_at };
    if !end.is_empty() {
        push(end, 10, "folded into the delivery figures".into(), "naru dora", "improve");
    }
}

fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max - 3).chain("...".chars()).collect()
}
