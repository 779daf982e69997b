//! Samples of what runs, kept in memory long enough to judge a release and to show `naru top`, and the
//! [`verdict`] on each canary step, written into the release.
//!
//! Targets are scraped over HTTP in the Prometheus text format. There is no query language here: storage
//! on disk and PromQL are a crate of their own.

pub mod exposition;
pub mod samples;
pub mod verdict;

pub use samples::Samples;

use naru_client::Client;
use std::time::Duration;

#[derive(Clone)]
pub struct Config {
    pub namespace: String,
    /// What to scrape: URLs that answer in the Prometheus text format.
    pub targets: Vec<String>,
}

/// How often targets are scraped. A canary window is some seconds at least, so that one has several.
const SCRAPE_EVERY: Duration = Duration::from_secs(1);

/// An answer larger than this is refused: one target must not take the memory of all.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Scrapes and judges until the tasks are aborted.
pub fn start(client: Client, config: Config) -> (Samples, Vec<tokio::task::JoinHandle<()>>) {
    let samples = Samples::default();
    let tasks = vec![
        tokio::spawn(scrape(config.targets.clone(), samples.clone())),
        tokio::spawn(verdict::run(client, config.namespace, samples.clone())),
    ];
    (samples, tasks)
}

async fn scrape(targets: Vec<String>, samples: Samples) {
    let http = reqwest::Client::builder()
        .timeout(SCRAPE_EVERY)
        .no_proxy()
        .build()
        .expect("a client with these options can always be made");
    let mut every = tokio::time::interval(SCRAPE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        for target in &targets {
            let answer = async {
                let answer = http.get(target).send().await?.error_for_status()?;
                answer.text().await
            };
            match answer.await {
                Ok(text) if text.len() <= BODY_BYTES_MAX => {
                    samples.push(exposition::parse(&text), jiff::Timestamp::now());
                }
                Ok(text) => tracing::warn!(%target, bytes = text.len(), "the answer is too large to keep"),
                Err(error) => tracing::debug!(%target, %error, "scrape failed"),
            }
        }
    }
}
