//! What the gateway counts: requests by route, service and status, how long they took, how many are under
//! way. Counting is a few additions to memory that belongs to the pair of route and service.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Upper bounds in microseconds, 1 ms to 10 s.
const BUCKETS_US: [u64; 13] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];
const CODES: usize = 600;
/// Services come and go with releases; the oldest series go when there are more.
const SERIES_MAX: usize = 2_000;

/// The figures of one service behind one route.
#[derive(Debug)]
pub struct Series {
    codes: Box<[AtomicU64]>,
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
    pub under_way: AtomicI64,
    /// Answers that broke off after their head was sent.
    pub aborted: AtomicU64,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            codes: (0..CODES).map(|_| AtomicU64::new(0)).collect(),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            sum_us: AtomicU64::new(0),
            under_way: AtomicI64::new(0),
            aborted: AtomicU64::new(0),
        }
    }
}

impl Series {
    pub fn count(&self, code: u16, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.codes[usize::from(code).min(CODES - 1)].fetch_add(1, Relaxed);
        let bucket = BUCKETS_US.iter().position(|it| micros <= *it).unwrap_or(BUCKETS_US.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(micros, Relaxed);
    }
}

/// All series by route and service.
#[derive(Debug, Default)]
pub struct Metrics {
    series: Mutex<BTreeMap<(String, String), Arc<Series>>>,
}

impl Metrics {
    /// The series of a pair, the same one every time. Not for a request's way: a table keeps what it needs.
    pub fn series(&self, route: &str, service: &str) -> Arc<Series> {
        let mut series = self.series.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = (route.to_owned(), service.to_owned());
        if series.len() >= SERIES_MAX && !series.contains_key(&key) {
            // One that no table holds any more.
            let unused = series.iter().find(|(_, it)| Arc::strong_count(it) == 1).map(|(key, _)| key.clone());
            if let Some(unused) = unused {
                series.remove(&unused);
            }
        }
        Arc::clone(series.entry(key).or_default())
    }

    pub fn text(&self) -> String {
        let series = self.series.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let mut out = String::with_capacity(series.len() * 1500);
        let mut line = |text: std::fmt::Arguments<'_>| {
            out.write_fmt(text).expect("writing to a string cannot fail");
            out.push('\n');
        };
        line(format_args!("# HELP naru_gateway_requests_total Answered requests."));
        line(format_args!("# TYPE naru_gateway_requests_total counter"));
        for ((route, service), it) in &series {
            for (code, count) in it.codes.iter().enumerate() {
                let count = count.load(Relaxed);
                if count > 0 {
                    line(format_args!(
                        "naru_gateway_requests_total{{route=\"{route}\",service=\"{service}\",code=\"{code}\"}} {count}"
                    ));
                }
            }
        }
        line(format_args!(
            "# HELP naru_gateway_request_duration_seconds From a request to the end of its answer."
        ));
        line(format_args!("# TYPE naru_gateway_request_duration_seconds histogram"));
        for ((route, service), it) in &series {
            let labels = format!("route=\"{route}\",service=\"{service}\"");
            let mut total = 0;
            for (index, bucket) in it.buckets.iter().enumerate() {
                total += bucket.load(Relaxed);
                let bound =
                    BUCKETS_US.get(index).map_or("+Inf".to_owned(), |it| (*it as f64 / 1e6).to_string());
                line(format_args!(
                    "naru_gateway_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {total}"
                ));
            }
            let sum = it.sum_us.load(Relaxed) as f64 / 1e6;
            line(format_args!("naru_gateway_request_duration_seconds_sum{{{labels}}} {sum}"));
            line(format_args!("naru_gateway_request_duration_seconds_count{{{labels}}} {total}"));
        }
        line(format_args!("# HELP naru_gateway_requests_under_way Requests that are being answered."));
        line(format_args!("# TYPE naru_gateway_requests_under_way gauge"));
        for ((route, service), it) in &series {
            let count = it.under_way.load(Relaxed);
            line(format_args!(
                "naru_gateway_requests_under_way{{route=\"{route}\",service=\"{service}\"}} {count}"
            ));
        }
        line(format_args!(
            "# HELP naru_gateway_answers_aborted_total Answers that broke off after their head."
        ));
        line(format_args!("# TYPE naru_gateway_answers_aborted_total counter"));
        for ((route, service), it) in &series {
            let count = it.aborted.load(Relaxed);
            line(format_args!(
                "naru_gateway_answers_aborted_total{{route=\"{route}\",service=\"{service}\"}} {count}"
            ));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_out_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        let series = metrics.series("default/shop", "shop-v1");
        series.count(200, Duration::from_micros(900));
        series.count(200, Duration::from_millis(30));
        series.count(503, Duration::from_secs(20));
        let text = metrics.text();
        for want in [
            "naru_gateway_requests_total{route=\"default/shop\",service=\"shop-v1\",code=\"200\"} 2",
            "naru_gateway_requests_total{route=\"default/shop\",service=\"shop-v1\",code=\"503\"} 1",
            "bucket{route=\"default/shop\",service=\"shop-v1\",le=\"0.001\"} 1",
            "le=\"0.05\"} 2",
            "le=\"10\"} 2",
            "le=\"+Inf\"} 3",
            "_count{route=\"default/shop\",service=\"shop-v1\"} 3",
        ] {
            assert!(text.contains(want), "{want} in {text}");
        }
    }
}
