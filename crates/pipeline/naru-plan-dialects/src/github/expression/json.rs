//! JSON as `toJSON` writes and `fromJSON` reads it. Reading is as lenient as the runner's reader: quotes may be
//! single, names bare, commas left over, and comments are skipped. The order of an object's names is kept.

use super::value::{Val, number_text, parse_number};
use std::rc::Rc;

/// Deeper nesting is refused, so that reading and writing stay within the stack.
const DEPTH_MAX: usize = 100;

/// Two blanks a level; what is empty stays on one line.
pub fn write_pretty(value: &Val<'_>) -> String {
    let mut out = String::new();
    write(value, Some(0), &mut out);
    out
}

/// On one line. Numbers that JSON does not know stand in quotes.
pub fn write_line(value: &Val<'_>) -> String {
    let mut out = String::new();
    write(value, None, &mut out);
    out
}

fn write(value: &Val<'_>, level: Option<usize>, out: &mut String) {
    let inner = level.map(|it| it + 1);
    let line = |level: Option<usize>, out: &mut String| {
        if let Some(level) = level {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", level));
        }
    };
    if let Some(items) = value.items() {
        out.push('[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            line(inner, out);
            write(item, inner, out);
        }
        if !items.is_empty() {
            line(level, out);
        }
        out.push(']');
    } else if let Some(entries) = value.entries() {
        out.push('{');
        for (index, (key, item)) in entries.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            line(inner, out);
            write_text(key, out);
            out.push_str(if level.is_some() { ": " } else { ":" });
            write(item, inner, out);
        }
        if !entries.is_empty() {
            line(level, out);
        }
        out.push('}');
    } else {
        match value {
            Val::Null => out.push_str("null"),
            Val::Text(it) => write_text(it, out),
            Val::Number(it) if !it.is_finite() && level.is_none() => write_text(&number_text(*it), out),
            it => out.push_str(&it.text()),
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' | '\u{85}' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The value in a text, or what is wrong with it and at which byte.
pub fn read(text: &str) -> Result<Val<'static>, (String, usize)> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.skip()?;
    if reader.at < text.len() { Err(reader.wrong("something follows the value")) } else { Ok(value) }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

type Read<T> = Result<T, (String, usize)>;

impl Reader<'_> {
    fn wrong(&self, what: impl Into<String>) -> (String, usize) {
        (what.into(), self.at)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    /// Blanks and comments.
    fn skip(&mut self) -> Read<()> {
        loop {
            let rest = &self.text[self.at..];
            let blanks = rest.len() - rest.trim_start().len();
            self.at += blanks;
            let rest = &self.text[self.at..];
            if rest.starts_with("//") {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if rest.starts_with("/*") {
                let end = rest.find("*/").ok_or_else(|| self.wrong("a comment does not end"))?;
                self.at += end + 2;
            } else if blanks == 0 {
                return Ok(());
            }
        }
    }

    fn value(&mut self, depth: usize) -> Read<Val<'static>> {
        if depth > DEPTH_MAX {
            return Err(self.wrong(format!("nested deeper than {DEPTH_MAX} levels")));
        }
        self.skip()?;
        match self.peek() {
            None => Err(self.wrong("a value is expected, the text ends")),
            Some('[') => {
                self.at += 1;
                let mut items = Vec::new();
                while !self.ends(']')? {
                    items.push(self.value(depth + 1)?);
                    self.comma(']')?;
                }
                Ok(Val::list(items))
            }
            Some('{') => {
                self.at += 1;
                let mut entries: Vec<(String, Val<'static>)> = Vec::new();
                while !self.ends('}')? {
                    let name = match self.peek() {
                        Some(quote @ ('"' | '\'')) => self.quoted(quote)?,
                        _ => self.word(),
                    };
                    if name.is_empty() {
                        return Err(self.wrong("a name is expected"));
                    }
                    self.skip()?;
                    if !self.take(':') {
                        return Err(self.wrong("`:` is expected"));
                    }
                    let value = self.value(depth + 1)?;
                    match entries.iter_mut().find(|(it, _)| *it == name) {
                        Some(entry) => entry.1 = value,
                        None => entries.push((name, value)),
                    }
                    self.comma('}')?;
                }
                Ok(Val::Object(Rc::new(entries)))
            }
            Some(quote @ ('"' | '\'')) => Ok(Val::Text(self.quoted(quote)?.into())),
            Some(_) => {
                let start = self.at;
                let word = self.word();
                match word.as_str() {
                    "null" | "undefined" => return Ok(Val::Null),
                    "true" => return Ok(Val::Bool(true)),
                    "false" => return Ok(Val::Bool(false)),
                    "NaN" => return Ok(Val::Number(f64::NAN)),
                    _ => {}
                }
                let number = if word.is_empty() { f64::NAN } else { parse_number(&word) };
                if number.is_nan() {
                    self.at = start;
                    let rest: String = self.text[start..].chars().take(20).collect();
                    return Err(self.wrong(format!("`{rest}` is no value")));
                }
                Ok(Val::Number(number))
            }
        }
    }

    fn ends(&mut self, close: char) -> Read<bool> {
        self.skip()?;
        Ok(self.take(close))
    }

    fn comma(&mut self, close: char) -> Read<()> {
        self.skip()?;
        if self.take(',') || self.peek() == Some(close) {
            return Ok(());
        }
        Err(self.wrong(format!("`,` or `{close}` is expected")))
    }

    fn word(&mut self) -> String {
        let rest = &self.text[self.at..];
        let ends = |c: char| c.is_whitespace() || ",:[]{}\"'/".contains(c);
        let word = &rest[..rest.find(ends).unwrap_or(rest.len())];
        self.at += word.len();
        word.to_owned()
    }

    fn quoted(&mut self, quote: char) -> Read<String> {
        let start = self.at;
        self.at += 1;
        let mut text = String::new();
        // A character beyond 16 bits may be written as a pair of escapes.
        let mut high: Option<u32> = None;
        loop {
            let Some(c) = self.peek() else {
                self.at = start;
                return Err(self.wrong("a text does not end"));
            };
            self.at += c.len_utf8();
            if c == quote {
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some(escaped) = self.peek() else { continue };
            self.at += escaped.len_utf8();
            match escaped {
                'n' => text.push('\n'),
                'r' => text.push('\r'),
                't' => text.push('\t'),
                'b' => text.push('\u{8}'),
                'f' => text.push('\u{c}'),
                'u' => {
                    let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
                    let Ok(unit) = u32::from_str_radix(digits, 16) else {
                        return Err(self.wrong("`\\u` takes four hexadecimal digits"));
                    };
                    self.at += 4;
                    match (high.take(), unit) {
                        (_, 0xd800..=0xdbff) => high = Some(unit),
                        (Some(high), 0xdc00..=0xdfff) => {
                            let code = 0x10000 + ((high - 0xd800) << 10) + (unit - 0xdc00);
                            text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                        }
                        (_, unit) => text.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
                    }
                }
                '"' | '\'' | '\\' | '/' => text.push(escaped),
                other => return Err(self.wrong(format!("`\\{other}` is no escape"))),
            }
        }
    }
}
