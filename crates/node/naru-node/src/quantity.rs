//! Kubernetes quantities (`500m`, `64Mi`, `1.5`, `2e3`), as far as resources need them. Pure.

/// The value in thousandths, rounded up. `None` when it is not a quantity. In whole numbers: a fraction such
/// as 0.35 has no exact binary form.
pub fn parse_milli(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    // Kubernetes keeps nine places; so many digits fit with every factor.
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    let value: u128 = digits.parse().ok()?;
    // thousandths = value * factor * 1000 / 10^(places of the fraction)
    let (factor, mut divisor): (u128, u128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10u128.checked_pow(power.unsigned_abs()).filter(|_| power.unsigned_abs() <= 18)?;
            if power < 0 { (1, factor) } else { (factor, 1) }
        }
    };
    divisor *= 10u128.pow(fraction.len() as u32);
    let milli = value.checked_mul(factor)?.checked_mul(1000)?.div_ceil(divisor);
    u64::try_from(milli).ok()
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
            ("350m", 350),
            ("0.35", 350),
            ("1e-1", 100),
            ("100n", 1),
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
