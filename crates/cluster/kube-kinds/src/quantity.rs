//! Kubernetes quantities: `500m`, `128Mi`, `1e3`.

/// The value in thousandths, or `None` when the text is not a quantity.
pub fn parse_milli(text: &str) -> Option<i128> {
    let text = text.trim();
    let end = text
        .char_indices()
        .find(|(at, letter)| {
            !(letter.is_ascii_digit() || *letter == '.' || (*at == 0 && (*letter == '-' || *letter == '+')))
        })
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(end);
    if !number.contains(|it: char| it.is_ascii_digit()) {
        return None;
    }
    let factor: i128 = match suffix {
        "n" | "u" => 0,
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "P" => 1_000_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        "Ei" => 1000 << 60,
        _ => {
            let exponent: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            10i128.checked_pow(exponent)?.checked_mul(1000)?
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let whole: i128 = match whole.trim_start_matches(['-', '+']) {
        "" => 0,
        digits => digits.parse().ok()?,
    };
    let mut value = whole.checked_mul(factor)?;
    let mut scale = factor;
    for digit in fraction.chars() {
        scale /= 10;
        value = value.checked_add(scale * i128::from(digit.to_digit(10)?))?;
    }
    if factor == 0 {
        // Below a thousandth: rounded up, so that a request never becomes nothing.
        value = i128::from(whole > 0);
    }
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::parse_milli;

    #[test]
    fn quantities_have_the_values_of_kubernetes() {
        for (text, milli) in [
            ("500m", Some(500)),
            ("1", Some(1000)),
            ("1.5", Some(1500)),
            ("128Mi", Some(134_217_728_000)),
            ("0.5Gi", Some(536_870_912_000)),
            ("1e3", Some(1_000_000)),
            ("-2", Some(-2000)),
            ("", None),
            ("Mi", None),
            ("1x", None),
        ] {
            assert_eq!(parse_milli(text), milli, "{text}");
        }
    }
}
