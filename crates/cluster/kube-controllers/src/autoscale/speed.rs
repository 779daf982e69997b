//! How fast an autoscaler may go: windows in which the most cautious recommendation counts, and limits of
//! change per time.

use jiff::Timestamp;
use kube_kinds::{int, list, text};
use serde_json::Value;

/// Kubernetes' standard for going down; going up has none.
const DOWN_WINDOW_SECONDS: i64 = 300;
/// The longest window that is allowed.
const WINDOW_SECONDS_MAX: i64 = 3600;

/// What an autoscaler has recommended and done lately.
#[derive(Debug, Default)]
pub struct Past {
    recommended: Vec<(i64, i64)>,
    /// Second, and by how much.
    changes: Vec<(i64, i64)>,
}

impl Past {
    pub fn changed(&mut self, from: i64, to: i64, now: Timestamp) {
        self.changes.push((now.as_second(), to - from));
        self.changes.retain(|it| it.0 > now.as_second() - WINDOW_SECONDS_MAX);
    }

    /// Down to no less than the highest, up to no more than the lowest recommendation of the window.
    pub fn stabilized(&mut self, wish: i64, behavior: &Value, current: i64, now: Timestamp) -> i64 {
        let second = now.as_second();
        if self.recommended.is_empty() {
            // The first look: the present size is what was recommended so far.
            self.recommended.push((second, current));
        }
        self.recommended.push((second, wish));
        self.recommended.retain(|it| it.0 > second - WINDOW_SECONDS_MAX);
        let window = |direction: &str, standard: i64| {
            behavior[direction]["stabilizationWindowSeconds"].as_i64().unwrap_or(standard)
        };
        let within = |seconds: i64| {
            let lately = self.recommended.iter().filter(move |it| it.0 > second - seconds);
            lately.map(|it| it.1).chain([wish])
        };
        let lowest = within(window("scaleUp", 0)).min().unwrap_or(wish);
        let highest = within(window("scaleDown", DOWN_WINDOW_SECONDS)).max().unwrap_or(wish);
        current.max(lowest).min(highest)
    }

    /// Within the policies of change.
    pub fn paced(&self, wish: i64, behavior: &Value, current: i64, now: Timestamp) -> i64 {
        if wish == current {
            return current;
        }
        let up = wish > current;
        let rules = &behavior[if up { "scaleUp" } else { "scaleDown" }];
        let select = text(rules, "/selectPolicy");
        if select == "Disabled" {
            return current;
        }
        // Without rules: up by four or to the double in 15 seconds, down as far as it goes.
        let limit = |kind: &str, value: i64, period: i64| {
            let since = now.as_second() - period;
            let lately: i64 =
                self.changes.iter().filter(|it| it.0 > since && (it.1 > 0) == up).map(|it| it.1).sum();
            let start = current - lately;
            match (up, kind) {
                (true, "Percent") => (start * (100 + value) + 99) / 100,
                (true, _) => start + value,
                (false, "Percent") => (start * (100 - value.min(100))) / 100,
                (false, _) => start - value,
            }
        };
        let given = list(rules, "/policies");
        let mut limits: Vec<i64> = given
            .iter()
            .map(|it| limit(text(it, "/type"), int(it, "/value"), int(it, "/periodSeconds")))
            .collect();
        if limits.is_empty() {
            limits = if up { vec![limit("Pods", 4, 15), limit("Percent", 100, 15)] } else { vec![0] };
        }
        // Of several rules the one that allows most, unless asked otherwise.
        let farthest = (select == "Min") != up;
        let bound = if farthest { limits.iter().max() } else { limits.iter().min() }.copied().unwrap_or(wish);
        if up { wish.min(bound.max(current)) } else { wish.max(bound.min(current)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    #[test]
    fn going_down_waits_for_five_minutes_of_the_same_wish() {
        let mut past = Past::default();
        assert_eq!(past.stabilized(2, &Value::Null, 10, at(0)), 10);
        assert_eq!(past.stabilized(2, &Value::Null, 10, at(299)), 10);
        assert_eq!(past.stabilized(2, &Value::Null, 10, at(300)), 2);
        assert_eq!(past.stabilized(12, &Value::Null, 10, at(301)), 12, "up at once");
    }

    #[test]
    fn policies_limit_the_speed() {
        let mut past = Past::default();
        assert_eq!(past.paced(100, &Value::Null, 10, at(0)), 20);
        assert_eq!(past.paced(100, &Value::Null, 1, at(0)), 5);
        let slow = json!({"scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
            "scaleDown": {"selectPolicy": "Disabled"}});
        assert_eq!(past.paced(100, &slow, 10, at(0)), 12);
        past.changed(10, 12, at(0));
        assert_eq!(past.paced(100, &slow, 12, at(30)), 12);
        assert_eq!(past.paced(100, &slow, 12, at(61)), 14);
        assert_eq!(past.paced(1, &slow, 12, at(61)), 12);
    }
}
