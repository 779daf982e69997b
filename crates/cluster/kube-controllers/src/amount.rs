//! Numbers that may be percentages.

use serde_json::Value;

#[derive(Debug, Clone, Copy)]
pub enum Round {
    Up,
    Down,
}

/// The number, or the percentage of `of`. 0 when there is none.
pub fn amount(value: &Value, of: i64, round: Round) -> i64 {
    let Some(percent) = value.as_str().and_then(|it| it.strip_suffix('%')?.parse::<i64>().ok()) else {
        return value.as_i64().unwrap_or(0);
    };
    match round {
        Round::Up => (of * percent + 99) / 100,
        Round::Down => of * percent / 100,
    }
}
