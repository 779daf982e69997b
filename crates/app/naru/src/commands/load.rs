//! A load generator: steady requests over kept-open connections, counted by who answered them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a request is tried again while the daemon is known to be away: what a patient client does.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy, Default)]
pub struct Count {
    pub good: u64,
    pub failed: u64,
}

/// A running load; dropping it stops it.
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// By the service that the gateway named; empty when no answer came.
    counts: Mutex<BTreeMap<String, Count>>,
    /// The first failures in words, to look at.
    samples: Mutex<Vec<String>>,
    retried: AtomicU64,
    daemon_is_away: AtomicBool,
    stop: AtomicBool,
}

impl Load {
    /// `per_second` requests in all, spread over `connections`.
    pub fn start(url: String, host: String, per_second: u32, connections: u32) -> Self {
        let shared = Arc::new(Shared::default());
        let pause = Duration::from_secs(1) * connections / per_second.max(1);
        let tasks = (0..connections)
            .map(|index| {
                let (url, host, shared) = (url.clone(), host.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    tokio::time::sleep(pause * index / connections).await;
                    worker(&url, &host, pause, &shared).await;
                })
            })
            .collect();
        Self { shared, tasks }
    }

    /// While set, a request that gets no answer is tried again and counted as retried, not as failed.
    pub fn set_daemon_is_away(&self, away: bool) {
        self.shared.daemon_is_away.store(away, Ordering::SeqCst);
    }

    pub fn counts(&self) -> BTreeMap<String, Count> {
        self.shared.counts.lock().expect("no holder panics").clone()
    }

    pub fn failure_samples(&self) -> Vec<String> {
        self.shared.samples.lock().expect("no holder panics").clone()
    }

    pub fn retried(&self) -> u64 {
        self.shared.retried.load(Ordering::SeqCst)
    }

    /// Lets the requests under way finish.
    pub async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn worker(url: &str, host: &str, pause: Duration, shared: &Shared) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .pool_max_idle_per_host(1)
        .build()
        .expect("a client with these options can always be made");
    let mut every = tokio::time::interval(pause);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::SeqCst) {
        every.tick().await;
        let began = tokio::time::Instant::now();
        let (backend, good, words) = loop {
            match client.get(url).header("host", host).send().await {
                Ok(answer) => {
                    let backend = answer.headers().get("x-naru-backend").and_then(|it| it.to_str().ok());
                    let backend = backend.unwrap_or_default().to_owned();
                    let status = answer.status();
                    match answer.bytes().await {
                        Ok(_) => break (backend, status.as_u16() < 500, format!("{status}")),
                        Err(_) if may_retry(shared, began) => {}
                        Err(error) => break (backend, false, format!("{error:?}")),
                    }
                }
                Err(_) if may_retry(shared, began) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => break (String::new(), false, format!("{error:?}")),
            }
        };
        let mut counts = shared.counts.lock().expect("no holder panics");
        let count = counts.entry(backend.clone()).or_default();
        if good {
            count.good += 1;
        } else {
            count.failed += 1;
            let mut samples = shared.samples.lock().expect("no holder panics");
            if samples.len() < 10 {
                samples.push(format!("{backend}: {words}"));
            }
        }
    }
}

fn may_retry(shared: &Shared, began: tokio::time::Instant) -> bool {
    let away = shared.daemon_is_away.load(Ordering::SeqCst) && began.elapsed() < PATIENCE;
    if away {
        shared.retried.fetch_add(1, Ordering::SeqCst);
    }
    away
}
