//! `naru top`: CPU and memory of pods, requests per second of services.

use crate::cli::Global;
use crate::connection;
use crate::error::Result;
use naru_series::Samples;
use std::process::ExitCode;
use std::time::Duration;

/// Two looks at the counters, so far apart.
const BETWEEN: Duration = Duration::from_secs(1);

pub async fn run(global: &Global) -> Result<ExitCode> {
    let endpoints = connection::endpoints(global)?;
    let samples = Samples::default();
    let http = reqwest::Client::builder().no_proxy().build()?;
    let look = async || -> Result<jiff::Timestamp> {
        let text =
            http.get(format!("{}/metrics", endpoints.http)).send().await?.error_for_status()?.text().await?;
        let now = jiff::Timestamp::now();
        samples.push(naru_series::exposition::parse(&text), now);
        Ok(now)
    };
    let first = look().await?;
    tokio::time::sleep(BETWEEN).await;
    let second = look().await?;
    let seconds = second.duration_since(first).as_secs_f64();
    println!("{:<44} {:>10} {:>12}", "POD", "CPU", "MEMORY");
    let cpu = samples.increase_by("naru_pod_cpu_seconds_total", &[], "pod", first, second);
    let mut memory = samples.latest("naru_pod_memory_bytes");
    memory.sort_by(|a, b| a.0.cmp(&b.0));
    for (labels, bytes) in memory {
        let pod = labels.get("pod").cloned().unwrap_or_default();
        let cores = cpu.get(&pod).copied().unwrap_or_default() / seconds;
        println!("{pod:<44} {:>9}m {:>9.1} MiB", (1000.0 * cores).round(), bytes / 1_048_576.0);
    }
    println!("\n{:<44} {:>10} {:>12}", "SERVICE", "REQ/S", "5XX/S");
    let all = samples.increase_by("naru_gateway_requests_total", &[], "service", first, second);
    for (service, count) in all {
        let codes = samples.increase_by(
            "naru_gateway_requests_total",
            &[("service", service.as_str())],
            "code",
            first,
            second,
        );
        let bad: f64 = codes.iter().filter(|(code, _)| code.starts_with('5')).map(|(_, it)| it).sum();
        println!("{service:<44} {:>10.1} {:>12.1}", count / seconds, bad / seconds);
    }
    Ok(ExitCode::SUCCESS)
}
