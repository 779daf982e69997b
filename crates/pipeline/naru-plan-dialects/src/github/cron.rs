//! `on.schedule[].cron`: five fields after POSIX, as GitHub takes them: lists, ranges, steps, and English names of
//! months and days. Whether a time is due is for others to say; here a line is right or wrong.

struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    /// The first stands for `least`.
    words: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { name: "minute", least: 0, most: 59, words: &[] },
    Field { name: "hour", least: 0, most: 23, words: &[] },
    Field { name: "day of the month", least: 1, most: 31, words: &[] },
    Field {
        name: "month",
        least: 1,
        most: 12,
        words: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Field {
        name: "day of the week",
        least: 0,
        most: 6,
        words: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    },
];

/// GitHub starts nothing more often than every five minutes.
pub const MINUTES_APART_MIN: u32 = 5;

pub fn check(line: &str) -> Result<(), String> {
    let parts: Vec<&str> = line.split(' ').filter(|it| !it.is_empty()).collect();
    if parts.len() != FIELDS.len() {
        return Err(format!(
            "a schedule has five fields (minute, hour, day of the month, month, day of the week), this has {}",
            parts.len()
        ));
    }
    for (part, field) in parts.iter().zip(&FIELDS) {
        for item in part.split(',') {
            check_item(item, field).map_err(|why| format!("`{item}` is no {}: {why}", field.name))?;
        }
    }
    Ok(())
}

fn check_item(item: &str, field: &Field) -> Result<(), String> {
    let (range, step) = match item.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (item, None),
    };
    if let Some(step) = step
        && !step.parse::<u32>().is_ok_and(|it| it >= 1 && it <= field.most)
    {
        return Err(format!("the step must be a number from 1 to {}", field.most));
    }
    match range.split_once('-') {
        _ if range == "*" => Ok(()),
        Some((from, to)) if value(from, field)? > value(to, field)? => Err("the range runs backwards".into()),
        Some(_) => Ok(()),
        None => value(range, field).map(|_| ()),
    }
}

fn value(text: &str, field: &Field) -> Result<u32, String> {
    if let Some(at) = field.words.iter().position(|it| it.eq_ignore_ascii_case(text)) {
        return Ok(field.least + at as u32);
    }
    match text.parse::<u32>() {
        Ok(it) if (field.least..=field.most).contains(&it) => Ok(it),
        _ => Err(format!("it must be from {} to {}", field.least, field.most)),
    }
}

/// The smallest distance of two starts within an hour, in minutes.
pub fn minutes_apart(line: &str) -> u32 {
    let field = line.split_whitespace().next().unwrap_or_default();
    let mut minutes = [false; 60];
    for item in field.split(',') {
        let (range, step) = item.split_once('/').unwrap_or((item, "1"));
        let step = step.parse().unwrap_or(1).max(1);
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (0, 59),
            Some((from, to)) => (from.parse().unwrap_or(0), to.parse().unwrap_or(59)),
            None if item.contains('/') => (range.parse().unwrap_or(0), 59),
            None => {
                let at = range.parse().unwrap_or(0);
                (at, at)
            }
        };
        for minute in (from..=to.min(59)).step_by(step) {
            minutes[minute] = true;
        }
    }
    let starts: Vec<u32> = (0..60).filter(|it| minutes[*it as usize]).collect();
    starts
        .iter()
        .zip(starts.iter().skip(1).copied().chain(starts.first().map(|it| it + 60)))
        .map(|(a, b)| b - a)
        .min()
        .unwrap_or(60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_right_or_wrong_as_on_github() {
        for line in [
            "* * * * *",
            "*/15 0-6,12 1,15 * *",
            "5 4 * JAN-mar sun",
            "0 0 31 12 6",
            "30 5,17 * * 1-5",
            "2/5 * * * *",
        ] {
            assert_eq!(check(line), Ok(()), "{line}");
        }
        for line in [
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 7",
            "*/0 * * * *",
            "5-1 * * * *",
            "a * * * *",
            "@daily",
            "1, * * * *",
        ] {
            assert!(check(line).is_err(), "{line}");
        }
        assert!(check("61 * * * *").unwrap_err().contains("no minute: it must be from 0 to 59"));
    }

    #[test]
    fn starts_that_are_close_are_seen() {
        for (line, want) in [
            ("* * * * *", 1),
            ("*/4 * * * *", 4),
            ("*/20 * * * *", 20),
            ("0 * * * *", 60),
            ("0,58 * * * *", 2),
            ("0-4 * * * *", 1),
        ] {
            assert_eq!(minutes_apart(line), want, "{line}");
        }
    }
}
