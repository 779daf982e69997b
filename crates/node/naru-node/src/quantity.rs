//! Kubernetes quantities (`500m`, `64Mi`, `1.5`, `2e3`), as far as resources need them. Pure.

/// The value in thousandths, rounded up. `None` when it is not a quantity.
pub fn parse_milli(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (number, factor) = match suffix {
        "" => (number.parse::<f64>().ok()?, 1.0),
        "n" => (number.parse().ok()?, 1e-9),
        "u" => (number.parse().ok()?, 1e-6),
        "m" => (number.parse().ok()?, 1e-3),
        "k" => (number.parse().ok()?, 1e3),
        "M" => (number.parse().ok()?, 1e6),
        "G" => (number.parse().ok()?, 1e9),
        "T" => (number.parse().ok()?, 1e12),
        "P" => (number.parse().ok()?, 1e15),
        "Ki" => (number.parse().ok()?, 1024.0),
        "Mi" => (number.parse().ok()?, 1024f64.powi(2)),
        "Gi" => (number.parse().ok()?, 1024f64.powi(3)),
        "Ti" => (number.parse().ok()?, 1024f64.powi(4)),
        "Pi" => (number.parse().ok()?, 1024f64.powi(5)),
        exponent if exponent.starts_with(['e', 'E']) => (text.parse().ok()?, 1.0),
        _ => return None,
    };
    let milli = (number * factor * 1000.0).ceil();
    (milli >= 0.0 && milli < u64::MAX as f64).then_some(milli as u64)
}

/// Whole units, rounded up.
pub fn parse_whole(text: &str) -> Option<u64> {
    parse_milli(text).map(|milli| milli.div_ceil(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, milli) in [
            ("500m", 500),
            ("1", 1000),
            ("1.5", 1500),
            ("0.1", 100),
            ("2e3", 2_000_000),
            ("64Mi", 64 * 1024 * 1024 * 1000),
            ("1G", 1_000_000_000_000),
        ] {
            assert_eq!(parse_milli(text), Some(milli), "{text}");
        }
        for text in ["", "x", "1x", "-1", "1 Mi", "Mi"] {
            assert_eq!(parse_milli(text), None, "{text}");
        }
        assert_eq!(parse_whole("100Ki"), Some(102_400));
    }
}
