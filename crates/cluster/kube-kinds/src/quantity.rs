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

/// The form in which Kubernetes writes the quantity: no fractions, the largest suffix that loses
/// nothing (`0.5` is `500m`, `1024Mi` is `1Gi`). `None` when the text is not a quantity.
pub fn canonical(text: &str) -> Option<String> {
    const NANO: i128 = 1_000_000_000;
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') || whole.len() > 24 {
        return None;
    }
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    let binary = BINARY.iter().position(|it| *it == suffix).map(|it| 10 * (it as u32 + 1));
    let decimal = DECIMAL.iter().find(|(it, _)| *it == suffix).map(|(_, power)| *power);
    let exponent = match (binary, decimal) {
        (None, None) => {
            Some(suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok().filter(|it| it.abs() <= 18)?)
        }
        _ => None,
    };
    // Thousand millionths, rounded away from nothing.
    let power = decimal.or(exponent).unwrap_or(0);
    let mut value: i128 = 0;
    let mut lost = false;
    if power >= -9 {
        let mut unit = 10i128.checked_pow(u32::try_from(power + 9).ok()?)?;
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        value = whole.checked_mul(unit)?;
        for digit in fraction.bytes() {
            unit /= 10;
            let digit = i128::from(digit - b'0');
            lost |= unit == 0 && digit != 0;
            value = value.checked_add(digit * unit)?;
        }
    } else {
        lost = number.bytes().any(|it| (b'1'..=b'9').contains(&it));
    }
    if let Some(bits) = binary {
        value = value.checked_mul(1 << bits)?;
    }
    value += i128::from(lost);
    if value == 0 {
        return Some("0".into());
    }
    if binary.is_some() && value >= 1024 * NANO {
        let mut amount = value / NANO + i128::from(value % NANO != 0);
        let mut steps = 0;
        while amount % 1024 == 0 && steps < BINARY.len() {
            amount /= 1024;
            steps += 1;
        }
        let suffix = if steps == 0 { "" } else { BINARY[steps - 1] };
        return Some(format!("{sign}{amount}{suffix}"));
    }
    let mut power = -9;
    while value % 1000 == 0 && power < 18 {
        value /= 1000;
        power += 3;
    }
    Some(match (exponent, power) {
        (Some(_), 0) => format!("{sign}{value}"),
        (Some(_), power) => format!("{sign}{value}e{power}"),
        (None, power) => {
            let (suffix, _) = DECIMAL.iter().find(|(_, it)| *it == power)?;
            format!("{sign}{value}{suffix}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{canonical, parse_milli};

    #[test]
    fn quantities_are_written_as_kubernetes_writes_them() {
        for (text, written) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1", "1"),
            ("1000", "1k"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("100000000", "100M"),
            ("0", "0"),
            ("1500", "1500"),
            ("0.1Ki", "102400m"),
            ("123456789n", "123456789n"),
            ("-5", "-5"),
            (".5", "500m"),
            ("1Ki", "1Ki"),
            ("1e-3", "1e-3"),
            ("12e1", "120"),
            ("1.0", "1"),
            ("0.00001u", "1n"),
            ("1.5", "1500m"),
            ("2048Ki", "2Mi"),
            ("0.25Mi", "256Ki"),
            ("1e4", "10e3"),
            ("-0", "0"),
            ("1000k", "1M"),
            ("1Ei", "1Ei"),
            ("1u", "1u"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(written), "{text}");
            let again = canonical(written);
            assert_eq!(again.as_deref(), Some(written), "{text}: written once, written for ever");
        }
        for text in
            ["", "Mi", "1x", "1.2.3", "--1", "1e", "1e99", "e3", "1 Mi", "999999999999999999999999999999"]
        {
            assert_eq!(canonical(text), None, "{text}");
        }
    }

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
