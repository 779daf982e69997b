//! Times on the wire and ages in tables.

use jiff::Timestamp;
use serde_json::Value;

/// `2026-01-02T03:04:05Z`: `metav1.Time` has whole seconds.
pub fn format(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2026-01-02T03:04:05.000006Z`: `metav1.MicroTime`.
pub fn format_micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

pub fn parse(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// Seconds between a time on the wire and `now`.
pub fn seconds_since(value: &Value, now: Timestamp) -> Option<i64> {
    Some(now.as_second() - parse(value)?.as_second())
}

/// A duration such as `1h30m` or `250ms`, in nanoseconds.
pub fn parse_duration(text: &str) -> Option<i128> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits == "0" {
        return Some(0);
    }
    let (mut total, mut rest) = (0f64, digits);
    while !rest.is_empty() {
        let end = rest.find(|it: char| !it.is_ascii_digit() && it != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end =
            rest[end..].find(|it: char| it.is_ascii_digit() || it == '.').map_or(rest.len(), |it| end + it);
        total += number
            * match &rest[end..unit_end] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    if digits.is_empty() {
        return None;
    }
    Some(if text.starts_with('-') { -(total as i128) } else { total as i128 })
}

/// The age of a time, as `kubectl` prints it.
pub fn age(value: &Value, now: Timestamp) -> String {
    match seconds_since(value, now) {
        Some(seconds) => duration(seconds),
        None => "<unknown>".into(),
    }
}

/// A duration with two figures at most: `45s`, `5m30s`, `3h`, `12d`.
pub fn duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit}{small}{small_unit}"),
    };
    match seconds {
        i64::MIN..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_read_as_kubectl_prints_them() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (3600, "60m"),
            (10_800, "3h"),
            (200_000, "2d7h"),
        ] {
            assert_eq!(super::duration(seconds), text);
        }
    }
}
