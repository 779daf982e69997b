//! `Range` headers: which bytes of a blob a client asks for (RFC 9110, section 14).

/// What a header means for a blob of a known size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Several parts, another unit, or nothing that is understood: the whole is a right answer to all of them.
    Whole,
    Part {
        start: u64,
        bytes: u64,
    },
    /// None of its bytes is in the blob.
    Outside,
}

/// Reads a header. What it gives always lies in the blob.
pub fn asked(text: &str, size: u64) -> Asked {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|it| it.split_once('-')) else {
        return Asked::Whole;
    };
    if last.contains(',') {
        return Asked::Whole;
    }
    let end_max = size.saturating_sub(1);
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(start), Ok(end)) => (start, end.min(end_max)),
        (Ok(start), Err(_)) if last.is_empty() => (start, end_max),
        (Err(_), Ok(count)) if first.is_empty() => (size.saturating_sub(count), end_max),
        _ => return Asked::Whole,
    };
    match start >= size || start > end {
        true => Asked::Outside,
        false => Asked::Part { start, bytes: end - start + 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_what_http_says() {
        let part = |start, bytes| Asked::Part { start, bytes };
        for (text, want) in [
            ("bytes=2-4", part(2, 3)),
            ("bytes=2-", part(2, 8)),
            ("bytes=-3", part(7, 3)),
            ("bytes=0-99", part(0, 10)),
            ("bytes=10-", Asked::Outside),
            ("bytes=4-2", Asked::Outside),
            ("bytes=-0", Asked::Outside),
            ("bytes=0-1,3-4", Asked::Whole),
            ("lines=1-2", Asked::Whole),
        ] {
            assert_eq!(asked(text, 10), want, "{text}");
        }
        assert_eq!(asked("bytes=0-0", 0), Asked::Outside);
    }
}
