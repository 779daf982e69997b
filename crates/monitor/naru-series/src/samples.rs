//! The samples in memory: a ring per series, and the few questions that a judgement asks of them.

use crate::exposition::Line;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, OnceLock, RwLock};

/// Samples kept per series: twenty minutes at one a second, longer than any sensible canary window.
const SAMPLES_MAX: usize = 1200;

/// Series kept at all. Ten thousand times the ring above would be too much; series that say the same
/// value again and again are stored once per change (see [`Ring::push`]).
const SERIES_MAX: usize = 10_000;

/// A series that was not seen for so long is forgotten.
const FORGET_AFTER_MS: i64 = 20 * 60 * 1000;

type Labels = BTreeMap<String, String>;
type Series = HashMap<Labels, Ring>;

#[derive(Default)]
struct Ring {
    /// Milliseconds and value; a value that stays is kept with the first and the latest time only.
    points: VecDeque<(i64, f64)>,
}

impl Ring {
    fn push(&mut self, at: i64, value: f64) {
        let len = self.points.len();
        if len >= 2 && self.points[len - 1].1 == value && self.points[len - 2].1 == value {
            self.points[len - 1].0 = at;
            return;
        }
        if len == SAMPLES_MAX {
            self.points.pop_front();
        }
        self.points.push_back((at, value));
    }

    /// How much a counter grew between two times. A counter that appears within the window was zero
    /// before; one that falls was restarted.
    fn increase(&self, from: i64, to: i64) -> f64 {
        let before = self.points.iter().rev().find(|(at, _)| *at <= from).map_or(0.0, |it| it.1);
        let mut last = before;
        let mut sum = 0.0;
        for (_, value) in self.points.iter().filter(|(at, _)| *at > from && *at <= to) {
            sum += if *value < last { *value } else { value - last };
            last = *value;
        }
        sum
    }
}

/// Cheap to clone; all clones share the samples.
#[derive(Clone, Default)]
pub struct Samples {
    by_name: Arc<RwLock<HashMap<String, Series>>>,
    /// When the first sample came: before it, nobody counted.
    since: Arc<OnceLock<Timestamp>>,
}

impl Samples {
    pub fn push(&self, lines: Vec<Line>, at: Timestamp) {
        self.since.get_or_init(|| at);
        let at = at.as_millisecond();
        let mut by_name = self.by_name.write().expect("no holder panics");
        for line in lines {
            let series = by_name.entry(line.name).or_default();
            let labels: Labels = line.labels.into_iter().collect();
            if series.len() < SERIES_MAX || series.contains_key(&labels) {
                series.entry(labels).or_default().push(at, line.value);
            }
        }
        for series in by_name.values_mut() {
            series.retain(|_, ring| ring.points.back().is_some_and(|(last, _)| at - last < FORGET_AFTER_MS));
        }
    }

    /// When counting began. Samples live in memory, so it is never before the daemon's start.
    pub fn since(&self) -> Option<Timestamp> {
        self.since.get().copied()
    }

    /// When the latest sample of any series of the name was taken.
    pub fn last_seen(&self, name: &str) -> Option<Timestamp> {
        let by_name = self.by_name.read().expect("no holder panics");
        let at = by_name.get(name)?.values().filter_map(|it| it.points.back()).map(|it| it.0).max()?;
        Timestamp::from_millisecond(at).ok()
    }

    /// The latest values of a name's series.
    pub fn latest(&self, name: &str) -> Vec<(Labels, f64)> {
        let by_name = self.by_name.read().expect("no holder panics");
        let series = by_name.get(name).into_iter().flatten();
        series.filter_map(|(labels, ring)| Some((labels.clone(), ring.points.back()?.1))).collect()
    }

    /// Growth of the counters whose labels match, summed by the value of the label `by`.
    pub fn increase_by(
        &self,
        name: &str,
        matching: &[(&str, &str)],
        by: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> BTreeMap<String, f64> {
        let by_name = self.by_name.read().expect("no holder panics");
        let mut sums = BTreeMap::new();
        for (labels, ring) in by_name.get(name).into_iter().flatten() {
            let matches = matching.iter().all(|(key, value)| labels.get(*key).is_some_and(|it| it == value));
            if matches {
                let key = labels.get(by).cloned().unwrap_or_default();
                *sums.entry(key).or_insert(0.0) += ring.increase(from.as_millisecond(), to.as_millisecond());
            }
        }
        sums
    }

    /// The quantile `q` of a classic histogram over a window, interpolated within its bucket as
    /// Prometheus' `histogram_quantile` does. `None` without observations.
    pub fn quantile(
        &self,
        name: &str,
        matching: &[(&str, &str)],
        q: f64,
        from: Timestamp,
        to: Timestamp,
    ) -> Option<f64> {
        let buckets = self.increase_by(&format!("{name}_bucket"), matching, "le", from, to);
        let mut buckets: Vec<(f64, f64)> = buckets
            .into_iter()
            .filter_map(|(le, count)| {
                let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().ok()? };
                Some((bound, count))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total = buckets.last()?.1;
        if total <= 0.0 {
            return None;
        }
        let rank = q * total;
        let mut below = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= rank {
                if bound.is_infinite() || count <= below.1 {
                    return Some(below.0);
                }
                return Some(below.0 + (bound - below.0) * (rank - below.1) / (count - below.1));
            }
            below = (bound, count);
        }
        Some(below.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn counter(labels: &[(&str, &str)], value: f64) -> Line {
        let labels = labels.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Line { name: "c".into(), labels, value }
    }

    #[test]
    fn increase_survives_restarts_and_late_births() {
        let samples = Samples::default();
        for (second, value) in [(0, 5.0), (1, 8.0), (2, 1.0), (3, 4.0)] {
            samples.push(vec![counter(&[("code", "200")], value)], at(second));
        }
        samples.push(vec![counter(&[("code", "500")], 2.0)], at(3));
        let by_code = samples.increase_by("c", &[], "code", at(0), at(3));
        assert_eq!(by_code["200"], 7.0);
        assert_eq!(by_code["500"], 2.0);
    }

    #[test]
    fn a_quantile_is_interpolated_within_its_bucket() {
        let samples = Samples::default();
        let bucket = |le: &str, value| Line { name: "h_bucket".into(), ..counter(&[("le", le)], value) };
        samples.push(vec![bucket("0.1", 50.0), bucket("0.2", 100.0), bucket("+Inf", 100.0)], at(1));
        let median = samples.quantile("h", &[], 0.75, at(0), at(2)).unwrap();
        assert!((median - 0.15).abs() < 1e-9, "{median}");
        assert_eq!(samples.quantile("h", &[], 0.5, at(2), at(3)), None);
    }
}
