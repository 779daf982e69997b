//! File modes as people write them: `755`, `u=rwX,go=rX`. Pure.

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    Octal(u32),
    Symbolic(Vec<Change>),
}

/// One clause of a symbolic mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose: bits of `0o700`, `0o070`, `0o007`.
    who: u32,
    operator: char,
    /// `r`, `w`, `x`, `X`, `s`, `t`, or `u`, `g`, `o` to copy from.
    what: String,
}

impl Mode {
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with(|it: char| it.is_ascii_digit()) {
            return u32::from_str_radix(text, 8).ok().filter(|it| *it <= 0o7777).map(Self::Octal);
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            let end = clause.find(|it| !"ugoa".contains(it))?;
            let (who, mut rest) = clause.split_at(end);
            let bits = |it: char| match it {
                'u' => 0o700,
                'g' => 0o070,
                'o' => 0o007,
                _ => 0o777,
            };
            let who = if who.is_empty() { 0o777 } else { who.chars().map(bits).fold(0, |all, it| all | it) };
            while let Some(operator) = rest.chars().next() {
                if !"+-=".contains(operator) {
                    return None;
                }
                let what = &rest[1..];
                let end = what.find(['+', '-', '=']).unwrap_or(what.len());
                let (what, after) = what.split_at(end);
                let is_copy = matches!(what, "u" | "g" | "o");
                if !is_copy && !what.chars().all(|it| "rwxXst".contains(it)) {
                    return None;
                }
                changes.push(Change { who, operator, what: what.to_owned() });
                rest = after;
            }
        }
        (!changes.is_empty()).then_some(Self::Symbolic(changes))
    }

    /// The mode that a file with `old` gets.
    pub fn apply(&self, old: u32, is_directory: bool) -> u32 {
        let changes = match self {
            Self::Octal(mode) => return *mode,
            Self::Symbolic(it) => it,
        };
        changes.iter().fold(old, |mode, change| {
            let copied = match change.what.as_str() {
                "u" => mode >> 6 & 7,
                "g" => mode >> 3 & 7,
                "o" => mode & 7,
                _ => change.what.chars().fold(0, |bits, it| {
                    bits | match it {
                        'r' => 4,
                        'w' => 2,
                        'x' => 1,
                        'X' if is_directory || mode & 0o111 != 0 => 1,
                        _ => 0,
                    }
                }),
            };
            let mut bits = (copied | copied << 3 | copied << 6) & change.who;
            if change.what.contains('s') {
                bits |= u32::from(change.who & 0o700 != 0) << 11 | u32::from(change.who & 0o070 != 0) << 10;
            }
            if change.what.contains('t') {
                bits |= 0o1000;
            }
            match change.operator {
                '+' => mode | bits,
                '-' => mode & !bits,
                _ => {
                    let special =
                        u32::from(change.who & 0o700 != 0) << 11 | u32::from(change.who & 0o070 != 0) << 10;
                    mode & !(change.who | special) | bits
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_chmod() {
        for (text, old, want) in [
            ("755", 0o600, 0o755),
            ("0640", 0o777, 0o640),
            ("4755", 0o644, 0o4755),
            ("u+x", 0o644, 0o744),
            ("+x", 0o644, 0o755),
            ("a-w", 0o666, 0o444),
            ("go=", 0o755, 0o700),
            ("u=rwX,go=rX", 0o600, 0o644),
            ("u=rwX,go=rX", 0o700, 0o755),
            ("g=u", 0o640, 0o660),
            ("u+s", 0o755, 0o4755),
            ("g+s,o-rwx", 0o755, 0o2750),
            ("+t", 0o777, 0o1777),
            ("u=rw,u+x-w", 0o000, 0o500),
            ("u=rx", 0o4755, 0o555),
        ] {
            assert_eq!(Mode::parse(text).unwrap().apply(old, false), want, "{text} of {old:o}");
        }
        assert_eq!(Mode::parse("a=rX").unwrap().apply(0o600, true), 0o555);
        for bad in ["", "999", "17777", "u", "u+y", "z+x", "u+x,", "7x"] {
            assert_eq!(Mode::parse(bad), None, "{bad}");
        }
    }
}
