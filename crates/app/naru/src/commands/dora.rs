//! `naru dora`: the four delivery figures.

use crate::cli::Global;
use crate::connection;
use crate::error::Result;
use naru_client::Client;
use naru_dora::Figures;
use naru_objects::{NAMESPACE, Release, Run, kinds};
use std::process::ExitCode;

pub async fn run(global: &Global, app: Option<&str>, days: u32, json: bool) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let figures = figures(&client, app, days).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("{}", render(&figures));
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn figures(client: &Client, app: Option<&str>, days: u32) -> Result<Figures> {
    let runs: Vec<Run> = client
        .list(&kinds::RUN, Some(NAMESPACE), "")
        .await?
        .into_iter()
        .filter_map(|it| serde_json::from_value(it).ok())
        .collect();
    let releases: Vec<Release> = client
        .list(&kinds::RELEASE, Some(NAMESPACE), "")
        .await?
        .into_iter()
        .filter_map(|it| serde_json::from_value::<Release>(it).ok())
        .filter(|it| app.is_none_or(|app| it.spec.app == app))
        .collect();
    let window = jiff::SignedDuration::from_hours(24 * i64::from(days.max(1)));
    Ok(naru_dora::fold(&runs, &releases, jiff::Timestamp::now(), window))
}

pub fn render(figures: &Figures) -> String {
    let time = |it: Option<f64>| it.map_or("-".into(), duration);
    let rate = figures.change_failure_rate.map_or("-".into(), |it| format!("{:.0} %", 100.0 * it));
    let rows = [
        (
            "Deployment frequency",
            format!(
                "{} in {:.0} day(s), {:.1} a day",
                figures.deployments, figures.days, figures.deployments_per_day
            ),
        ),
        (
            "Lead time for changes",
            format!("{} (median, commit to all traffic)", time(figures.lead_time_seconds)),
        ),
        ("Change failure rate", format!("{rate} ({} failed)", figures.failures)),
        ("Time to restore", format!("{} (median)", time(figures.time_to_restore_seconds))),
    ];
    rows.iter().map(|(name, value)| format!("{name:<24}{value}\n")).collect()
}

/// `3.2 s`, `4 min`, `2.5 h`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        it if it < 120.0 => format!("{it:.1} s"),
        it if it < 7200.0 => format!("{:.0} min", it / 60.0),
        it => format!("{:.1} h", it / 3600.0),
    }
}
