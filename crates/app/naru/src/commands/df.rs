//! `naru df`: who uses the disk, what of it may go by itself, and when it will be full.

use crate::cli::Global;
use crate::commands::build::Remote;
use crate::error::Result;
use naru_builder::{DiskReport, size};
use std::process::ExitCode;

const IMAGES_SHOWN: usize = 10;
const BAR: usize = 30;

pub async fn run(global: &Global, json: bool, tidy: bool) -> Result<ExitCode> {
    let text = Remote::new(global)?.disk(tidy).await?;
    let report: DiskReport = serde_json::from_str(&text)?;
    match json {
        true => println!("{text}"),
        false => show(&report),
    }
    Ok(ExitCode::SUCCESS)
}

fn show(report: &DiskReport) {
    for is_counted in [true, false] {
        println!("{}", if is_counted { "in the budget" } else { "people's own, never removed" });
        for part in report.parts.iter().filter(|it| it.in_budget == is_counted) {
            println!(
                "  {:<30} {:>11}  {}",
                part.name,
                size(part.bytes),
                bar(part.bytes, report.budget_bytes)
            );
        }
    }
    println!("\nused {} of a budget of {}", size(report.used_bytes), size(report.budget_bytes));
    println!("disk {}, {} free", size(report.disk_bytes), size(report.disk_free_bytes));
    match report.full_in_seconds {
        Some(seconds) => println!("at the pace of the last hours it is full in about {} h", seconds / 3600),
        None => println!("it does not fill, as far as the last hours tell"),
    }
    if !report.quotas.is_empty() {
        println!("\n{:<40} {:>24}  TAGS", "QUOTA", "SIZE");
    }
    for it in &report.quotas {
        let bytes = match it.bytes_max {
            Some(max) => format!("{} of {}", size(it.bytes), size(max)),
            None => size(it.bytes),
        };
        let tags = it.tags_max.map_or(it.tags.to_string(), |max| format!("{} of {max}", it.tags));
        println!("{:<40} {bytes:>24}  {tags}", it.repositories);
    }
    if report.images.is_empty() {
        return;
    }
    println!("\n{:<60} {:>11}  LAST USED", "IMAGE", "SIZE");
    for image in report.images.iter().take(IMAGES_SHOWN) {
        let at = i64::try_from(image.last_used).ok().and_then(|it| jiff::Timestamp::from_second(it).ok());
        let at = at.map(|it| it.strftime("%Y-%m-%d %H:%M").to_string()).unwrap_or_default();
        let note = if image.is_pulled { "  goes when room is needed" } else { "" };
        println!("{:<60} {:>11}  {at}{note}", image.name, size(image.bytes));
    }
    if report.images.len() > IMAGES_SHOWN {
        println!("... and {} more; --json shows all", report.images.len() - IMAGES_SHOWN);
    }
}

fn bar(bytes: u64, whole: u64) -> String {
    let length = (bytes as f64 / whole.max(1) as f64 * BAR as f64).round() as usize;
    "#".repeat(length.min(BAR))
}
