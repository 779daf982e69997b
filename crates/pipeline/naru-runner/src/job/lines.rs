//! Bytes of a step's output to lines, with bounded memory however it misbehaves.

use crate::mask::Mask;

/// Longer lines are cut in pieces: one stack trace, and bounded memory.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// A command of the step's (`::set-output ...`) counts only as a whole, so it may be longer.
const COMMAND_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Hands on what is complete. A line that is too long goes out in pieces, cut where no secret is.
    pub fn push(&mut self, bytes: &[u8], mask: &Mask) -> Vec<String> {
        let mut lines = Vec::new();
        let mut at = 0;
        while let Some(end) = bytes[at..].iter().position(|it| *it == b'\n').map(|it| it + at) {
            if self.rest.is_empty() {
                lines.push(text(&bytes[at..end]));
            } else {
                self.rest.extend_from_slice(&bytes[at..end]);
                lines.push(text(&self.rest));
                self.rest.clear();
            }
            at = end + 1;
        }
        self.rest.extend_from_slice(&bytes[at..]);
        let limit = if self.rest.starts_with(b"::") { COMMAND_BYTES_MAX } else { LINE_BYTES_MAX };
        // Only once there is room for a whole secret behind the cut.
        while self.rest.len() > limit + mask.longest() {
            let mut cut = mask.cut(&self.rest, limit);
            // A character of several bytes stays whole.
            while cut > 0 && self.rest.get(cut).is_some_and(|it| it & 0xC0 == 0x80) {
                cut -= 1;
            }
            if cut == 0 {
                // One secret from the start to beyond the limit: it will be hidden as a whole.
                cut = self.rest.len();
            }
            lines.push(text(&self.rest[..cut]));
            self.rest.drain(..cut);
        }
        lines
    }

    pub fn finish(&mut self) -> Vec<String> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() { Vec::new() } else { vec![text(&rest)] }
    }
}

fn text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_arrive() {
        let mut lines = Lines::default();
        let mask = Mask::default();
        let mut got = Vec::new();
        for part in ["a", "b\nc\r\n", "\nde", "f"] {
            got.extend(lines.push(part.as_bytes(), &mask));
        }
        got.extend(lines.finish());
        assert_eq!(got, ["ab", "c", "", "def"]);
    }

    #[test]
    fn a_secret_is_not_cut_in_two() {
        let secret = "0123456789abcdef";
        let mut mask = Mask::default();
        mask.add(secret);
        for before in LINE_BYTES_MAX - 20..LINE_BYTES_MAX + 2 {
            let line = format!("{}{secret}{}", "x".repeat(before), "y".repeat(300_000));
            let mut lines = Lines::default();
            let mut got = Vec::new();
            for part in line.as_bytes().chunks(32 * 1024) {
                got.extend(lines.push(part, &mask));
                assert!(lines.rest.len() <= LINE_BYTES_MAX + 32 * 1024 + mask.longest());
            }
            got.extend(lines.finish());
            assert_eq!(got.concat(), line);
            let shown: String = got.iter().map(|it| mask.apply(it)).collect();
            assert!(
                shown.contains("***") && !shown.contains("01234") && !shown.contains("bcdef"),
                "{before}"
            );
        }
    }
}
