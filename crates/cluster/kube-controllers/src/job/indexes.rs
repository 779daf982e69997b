//! Sets of completion indexes, as Jobs write them: `1,3-5,7`.

use std::collections::BTreeSet;

pub type Indexes = BTreeSet<i64>;

/// What is not a number or a range is left out; so is what is not below `limit`.
pub fn parse(text: &str, limit: i64) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>()) {
            indexes.extend(first.max(0)..=last.min(limit - 1));
        }
    }
    indexes
}

/// Three neighbours and more become a range.
pub fn format(indexes: &Indexes) -> String {
    let mut parts: Vec<(i64, i64)> = Vec::new();
    for index in indexes {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => parts.push((*index, *index)),
        }
    }
    let words = parts.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_read_and_written_as_kubernetes_does() {
        for text in ["", "0", "0,1", "0-2,4", "1,3-5,7"] {
            assert_eq!(format(&parse(text, 10)), text);
        }
        assert_eq!(format(&parse("0-100", 3)), "0-2");
    }
}
