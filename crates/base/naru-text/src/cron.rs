//! Cron schedules, of CronJobs and of workflows: five fields, `@daily` and its like, `@every 90m`. Days of months and of weeks are
//! alternatives when both are given, as in every cron.
//!
//! Own code rather than a crate: the known ones bring a second calendar library, and this is the grammar
//! that Kubernetes takes, nothing more.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// A year that a schedule reaches at the latest; `30 2 31 2 *` never comes.
const YEARS_MAX: i16 = 5;

#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    Fields { minutes: u64, hours: u64, days: u64, months: u64, weekdays: u64, any_day: bool },
    Every(SignedDuration),
}

impl Schedule {
    pub fn parse(text: &str) -> Option<Schedule> {
        let text = text.trim();
        let plain = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        if let Some(every) = plain.strip_prefix("@every ") {
            return Some(Schedule::Every(duration(every)?));
        }
        let fields: Vec<&str> = plain.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else { return None };
        const MONTHS: [&str; 12] =
            ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
        const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
        let is_any = |field: &str| field.starts_with(['*', '?']);
        let mut on_weekdays = field(weekdays, 0, 7, &WEEKDAYS, 0)?;
        // Sunday is 0 and 7.
        on_weekdays |= on_weekdays >> 7 & 1;
        Some(Schedule::Fields {
            minutes: field(minutes, 0, 59, &[], 0)?,
            hours: field(hours, 0, 23, &[], 0)?,
            days: field(days, 1, 31, &[], 0)?,
            months: field(months, 1, 12, &MONTHS, 1)?,
            weekdays: on_weekdays,
            any_day: is_any(days) || is_any(weekdays),
        })
    }

    /// The first time after `after`, by the clock of `zone`.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let (minutes, hours, days, months, weekdays, any_day) = match self {
            Schedule::Every(pause) => return after.checked_add(*pause).ok(),
            Schedule::Fields { minutes, hours, days, months, weekdays, any_day } => {
                (*minutes, *hours, *days, *months, *weekdays, *any_day)
            }
        };
        let has = |set: u64, value: i8| set >> value & 1 == 1;
        let after = after.to_zoned(zone.clone());
        let last_year = after.year() + YEARS_MAX;
        let mut at: Zoned =
            after.with().second(0).subsec_nanosecond(0).build().ok()?.checked_add(1.minute()).ok()?;
        while at.year() <= last_year {
            let date = at.date();
            let weekday = date.weekday().to_sunday_zero_offset();
            let right_day = match any_day {
                true => has(days, at.day()) && has(weekdays, weekday),
                false => has(days, at.day()) || has(weekdays, weekday),
            };
            if !has(months, at.month()) {
                at = date.last_of_month().tomorrow().ok()?.to_zoned(zone.clone()).ok()?;
            } else if !right_day {
                at = date.tomorrow().ok()?.to_zoned(zone.clone()).ok()?;
            } else if !has(hours, at.hour()) {
                let left = 60 - i64::from(at.minute());
                at = at.checked_add(left.minutes()).ok()?;
            } else if !has(minutes, at.minute()) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }

    /// The last time after `after` and not after `now`.
    pub fn latest(&self, after: Timestamp, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Schedule::Every(pause) = self {
            let (past, pause) = (now.as_second() - after.as_second(), pause.as_secs().max(1));
            let steps = past / pause;
            return (steps > 0).then(|| Timestamp::from_second(after.as_second() + steps * pause).ok())?;
        }
        // From near to far, so that years of missed minutes are not walked through.
        const HOUR: i64 = 3600;
        for hours in [1, 25, 32 * 24, 367 * 24, i64::from(YEARS_MAX) * 367 * 24] {
            let start = Timestamp::from_second(now.as_second() - hours * HOUR).ok()?;
            let start = start.max(after);
            let mut found = None;
            let mut at = self.next(start, zone);
            while let Some(time) = at.filter(|it| *it <= now) {
                found = Some(time);
                at = self.next(time, zone);
            }
            if found.is_some() || start == after {
                return found;
            }
        }
        None
    }
}

/// `*/5`, `1-5`, `mon-fri/2`, `1,2`; bits of the values.
fn field(text: &str, min: u32, max: u32, names: &[&str], first_name: u32) -> Option<u64> {
    let value = |word: &str| -> Option<u32> {
        let lower = word.to_ascii_lowercase();
        match names.iter().position(|it| *it == lower) {
            Some(at) => Some(at as u32 + first_name),
            None => word.parse().ok().filter(|it| (min..=max).contains(it)),
        }
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u32>().ok().filter(|it| *it > 0)?)),
            None => (part, None),
        };
        let (first, last) = match (range, range.split_once('-')) {
            ("*" | "?", _) => (min, if max == 7 { 6 } else { max }),
            (_, Some((first, last))) => (value(first)?, value(last)?),
            // `5/15` goes on from 5.
            (one, None) => (value(one)?, if step.is_some() { max } else { value(one)? }),
        };
        if first > last {
            return None;
        }
        (first..=last).step_by(step.unwrap_or(1) as usize).for_each(|it| bits |= 1 << it);
    }
    Some(bits)
}

/// `1h30m`, `45s`.
fn duration(text: &str) -> Option<SignedDuration> {
    let (mut seconds, mut digits) = (0i64, String::new());
    for letter in text.trim().chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let factor = match letter {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(digits.parse::<i64>().ok()?.checked_mul(factor)?)?;
        digits.clear();
    }
    (digits.is_empty() && seconds > 0).then(|| SignedDuration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(schedule: &str, zone: &str, after: &str, expected: &str) {
        let zone = TimeZone::get(zone).expect("a time zone");
        let next = Schedule::parse(schedule)
            .expect(schedule)
            .next(after.parse().expect("a time"), &zone)
            .map_or("never".to_string(), |it| it.to_string());
        assert_eq!(next, expected, "{schedule}");
    }

    #[test]
    fn the_next_time_is_the_one_that_cron_would_take() {
        check("*/15 * * * *", "UTC", "2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z");
        check("0 9-17/4 * * mon-fri", "UTC", "2026-01-02T18:00:00Z", "2026-01-05T09:00:00Z");
        check("0 0 13 * 5", "UTC", "2026-01-03T00:00:00Z", "2026-01-09T00:00:00Z");
        check("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z");
        check("0 0 31 2 *", "UTC", "2026-01-01T00:00:00Z", "never");
        check("@weekly", "UTC", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z");
        check("@every 90m", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T01:30:00Z");
        check("0 0 * * 7", "UTC", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z");
    }

    #[test]
    fn time_zones_and_their_summers_count() {
        check("0 8 * * *", "Europe/Berlin", "2026-06-01T00:00:00Z", "2026-06-01T06:00:00Z");
        check("0 8 * * *", "Europe/Berlin", "2026-12-01T00:00:00Z", "2026-12-01T07:00:00Z");
    }

    #[test]
    fn nonsense_is_not_a_schedule() {
        for text in ["", "* * * *", "60 * * * *", "5-1 * * * *", "*/0 * * * *", "a * * * *", "@every x"] {
            assert_eq!(Schedule::parse(text), None, "{text}");
        }
    }

    #[test]
    fn of_many_missed_times_the_latest_counts() {
        let at = |text: &str| -> Timestamp { text.parse().expect("a time") };
        let schedule = Schedule::parse("* * * * *").expect("valid");
        let found = schedule.latest(at("2020-01-01T00:00:00Z"), at("2026-01-01T00:00:30Z"), &TimeZone::UTC);
        assert_eq!(found, Some(at("2026-01-01T00:00:00Z")));
        let yearly = Schedule::parse("@yearly").expect("valid");
        let found = yearly.latest(at("2024-05-01T00:00:00Z"), at("2026-05-01T00:00:00Z"), &TimeZone::UTC);
        assert_eq!(found, Some(at("2026-01-01T00:00:00Z")));
    }
}
