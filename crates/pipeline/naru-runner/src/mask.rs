//! Secrets never reach a log: a [`Mask`] replaces their values, and the encodings in which they usually
//! slip out, before a line leaves the job.
//!
//! All forms of all secrets are looked for at once, in one pass, so that the time does not grow with their
//! number; what overlaps is hidden whole.

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Write as _;

/// What is shown instead.
pub const HIDDEN: &str = "***";

/// Shorter values are not masked: hiding every `1` would hide the log.
const VALUE_BYTES_MIN: usize = 3;

/// An encoding of a part of a secret that is shorter says too little to be worth the false alarms.
const PART_BYTES_MIN: usize = 8;

/// Beyond so many lines only the lines themselves and the encodings of the whole are looked for.
const LINES_ENCODED_MAX: usize = 64;

/// Where `base64` and `openssl` break their lines, and `xxd -p` its.
const BASE64_LINES: [usize; 2] = [76, 64];
const HEX_LINE: usize = 60;

#[derive(Default)]
pub struct Mask {
    known: HashSet<String>,
    /// Each at least twice as large as the next, so that a step may hide a value per line that it writes
    /// without everything being built anew each time.
    levels: Vec<Level>,
    longest: usize,
}

struct Level {
    values: Vec<String>,
    /// Built when it is next asked for.
    searcher: std::cell::OnceCell<AhoCorasick>,
}

impl Level {
    fn searcher(&self) -> &AhoCorasick {
        let build = || {
            // Standard: every occurrence is found, also those within others.
            AhoCorasick::new(&self.values).expect("secrets are limited to what fits into an object")
        };
        self.searcher.get_or_init(build)
    }
}

impl Mask {
    /// Hides a value from now on: as it is, each of its lines, and in the encodings of [`forms`].
    pub fn add(&mut self, secret: &str) {
        if secret.trim().len() < VALUE_BYTES_MIN {
            // Nor are its encodings: that of nothing at all is `Cg==`.
            return;
        }
        let mut values = Vec::new();
        for form in forms(secret) {
            if form.len() >= VALUE_BYTES_MIN && self.known.insert(form.clone()) {
                self.longest = self.longest.max(form.len());
                values.push(form);
            }
        }
        while let Some(last) = self.levels.pop_if(|it| it.values.len() < 2 * values.len()) {
            values.extend(last.values);
        }
        if !values.is_empty() {
            self.levels.push(Level { values, searcher: std::cell::OnceCell::new() });
        }
    }

    /// Makes one searcher of all that is known so far: what is known before anything is read.
    pub fn settle(&mut self) {
        let values: Vec<String> = self.levels.drain(..).flat_map(|it| it.values).collect();
        self.levels
            .extend((!values.is_empty()).then(|| Level { values, searcher: std::cell::OnceCell::new() }));
    }

    /// The length of the longest thing that is looked for.
    pub fn longest(&self) -> usize {
        self.longest
    }

    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let spans = self.spans(text.as_bytes());
        if spans.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut shown = String::with_capacity(text.len());
        let mut at = 0;
        for (start, end) in spans {
            shown.push_str(&text[at..start]);
            shown.push_str(HIDDEN);
            at = end;
        }
        shown.push_str(&text[at..]);
        Cow::Owned(shown)
    }

    /// Whether the text holds a secret.
    pub fn hides(&self, text: &str) -> bool {
        self.levels.iter().any(|it| it.searcher().is_match(text))
    }

    /// Where a line that is too long may be cut, at most at `limit`: not within a secret, also not within one
    /// whose end is still to come.
    pub fn cut(&self, bytes: &[u8], limit: usize) -> usize {
        let mut at = limit.min(bytes.len().saturating_sub(self.longest.saturating_sub(1)));
        if let Some((start, _)) = self.spans(bytes).into_iter().find(|(start, end)| *start < at && at < *end)
        {
            at = start;
        }
        at
    }

    /// What is to be hidden, in order, without overlaps.
    fn spans(&self, bytes: &[u8]) -> Vec<(usize, usize)> {
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for level in &self.levels {
            spans.extend(level.searcher().find_overlapping_iter(bytes).map(|it| (it.start(), it.end())));
        }
        spans.sort_unstable();
        let mut merged: Vec<(usize, usize)> = Vec::with_capacity(spans.len());
        for (start, end) in spans {
            match merged.last_mut() {
                Some(last) if start < last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        merged
    }
}

/// How a secret is looked for: as it is and by line, and each in the encodings of programs that print it.
fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned(), secret.trim().to_owned()];
    let lines: Vec<&str> = secret.lines().map(str::trim).filter(|it| it.len() >= VALUE_BYTES_MIN).collect();
    forms.extend(lines.iter().map(|it| (*it).to_owned()));
    encoded(secret, &mut forms);
    if lines.len() > 1 && lines.len() <= LINES_ENCODED_MAX {
        for line in lines {
            encoded(line, &mut forms);
        }
    }
    forms
}

fn encoded(secret: &str, forms: &mut Vec<String>) {
    // Alone, and with the line break that `echo` adds.
    for text in [secret.to_owned(), format!("{secret}\n")] {
        for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
            forms.push(engine.encode(&text));
        }
        let whole = STANDARD.encode(&text);
        forms.extend(BASE64_LINES.iter().flat_map(|it| broken(&whole, *it)));
        forms.extend(broken(&hex(text.as_bytes(), "", false), HEX_LINE));
    }
    // Within something longer (`user:secret`), at each of the three places where a group may begin.
    within_base64(secret.as_bytes(), forms);
    let utf16: Vec<u8> = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
    within_base64(&utf16, forms);
    forms.push(STANDARD.encode(&utf16));

    for upper in [false, true] {
        forms.push(hex(secret.as_bytes(), "", upper));
        forms.push(hex(secret.as_bytes(), " ", upper));
        forms.push(hex(secret.as_bytes(), ":", upper));
        forms.push(percent(secret, upper, |c| c.is_ascii_alphanumeric() || b"-_.~".contains(&c)));
        // `encodeURIComponent`, and what leaves a path's slashes alone.
        forms.push(percent(secret, upper, |c| c.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&c)));
        forms.push(percent(secret, upper, |c| c.is_ascii_alphanumeric() || b"-_.~/".contains(&c)));
        let form = percent(secret, upper, |c| c.is_ascii_alphanumeric() || b"-_.*".contains(&c) || c == b' ');
        forms.push(form.replace(' ', "+"));
    }

    let json = json(secret);
    forms.push(json.replace('/', "\\/"));
    // As languages that also escape what HTML minds, and everything beyond ASCII.
    let html_safe =
        json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026").replace('\'', "\\u0027");
    forms.push(ascii_json(&html_safe));
    forms.push(html_safe.replace("\\u0027", "'"));
    forms.push(ascii_json(&json));
    // JSON within JSON.
    forms.push(self::json(&json));
    forms.push(self::json(&ascii_json(&json)));
    forms.push(self::json(&html_safe));
    forms.push(json);

    let xml = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    forms.push(xml.replace('"', "&quot;"));
    for (quote, apostrophe) in
        [("&quot;", "&apos;"), ("&quot;", "&#39;"), ("&#34;", "&#39;"), ("&quot;", "&#x27;")]
    {
        forms.push(xml.replace('"', quote).replace('\'', apostrophe));
    }
    forms.push(xml);

    // The shell's: `'\''`, `%q`, `$'...'`, within double quotes.
    forms.push(secret.replace('\'', "'\\''"));
    forms.push(secret.replace('\'', "'\"'\"'"));
    forms.push(escaped(secret, '\\', |c| !c.is_alphanumeric() && !"_-./:=@%+,\n".contains(c)));
    forms.push(escaped(secret, '\\', |c| !c.is_alphanumeric() && !"_-./:=%+@\n".contains(c)));
    forms.push(escaped(secret, '\\', |c| "\"\\$`".contains(c)));
    forms.push(c_escaped(secret, '\''));
    forms.push(c_escaped(secret, '"'));
    forms.push(secret.replace('\\', "\\\\"));
    // PowerShell's, and doubled quotes as in SQL and CSV.
    forms.push(escaped(secret, '`', |c| "`\"$'#;&|<>(){} @,".contains(c)));
    forms.push(escaped(secret, '`', |c| "`\"$".contains(c)));
    forms.push(secret.replace('\'', "''"));
    forms.push(secret.replace('"', "\"\""));
}

/// The pieces of a text that a program broke into lines, if it did.
fn broken(text: &str, width: usize) -> Vec<String> {
    if text.len() <= width {
        return Vec::new();
    }
    let pieces = text.as_bytes().chunks(width).map(|it| String::from_utf8_lossy(it).into_owned());
    pieces.filter(|it| it.len() >= PART_BYTES_MIN).collect()
}

/// The characters that depend on nothing but the secret, wherever in a group of three bytes it begins.
fn within_base64(bytes: &[u8], forms: &mut Vec<String>) {
    for shift in 0..3 {
        let rest = bytes.get(shift..).unwrap_or_default();
        let whole = &rest[..rest.len() - rest.len() % 3];
        for engine in [&STANDARD, &URL_SAFE] {
            let form = engine.encode(whole);
            if form.len() >= PART_BYTES_MIN {
                forms.push(form);
            }
        }
    }
}

fn hex(bytes: &[u8], between: &str, upper: bool) -> String {
    let mut text = String::with_capacity(bytes.len() * (2 + between.len()));
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 {
            text.push_str(between);
        }
        let _ = if upper { write!(text, "{byte:02X}") } else { write!(text, "{byte:02x}") };
    }
    text
}

fn percent(text: &str, upper: bool, plain: fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push_str(&hex(&[byte], "", upper));
        }
    }
    out
}

/// Without its quotes: those at its ends are the encoding's, not the secret's.
fn json(text: &str) -> String {
    let json = serde_json::to_string(text).expect("text always serialises");
    json[1..json.len() - 1].to_owned()
}

fn ascii_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

fn escaped(text: &str, with: char, special: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if special(c) {
            out.push(with);
        }
        out.push(c);
    }
    out
}

fn c_escaped(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use naru_objects::percent_encode;

    const SECRET: &str = "p@ss \"w'ord\"&<é>/$x\\y";

    fn mask(secret: &str) -> Mask {
        let mut mask = Mask::default();
        mask.add(secret);
        mask
    }

    #[test]
    fn a_secret_is_hidden_in_every_usual_encoding() {
        let mask = mask(SECRET);
        let utf16: Vec<u8> = SECRET.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let leaks = [
            SECRET.to_owned(),
            STANDARD.encode(SECRET),
            URL_SAFE_NO_PAD.encode(SECRET),
            STANDARD.encode(format!("{SECRET}\n")),
            STANDARD.encode(&utf16),
            percent_encode(SECRET),
            percent_encode(SECRET).to_lowercase(),
            // Python: urllib.parse.quote_plus, json.dumps, shlex.quote, html.escape.
            "p%40ss+%22w%27ord%22%26%3C%C3%A9%3E%2F%24x%5Cy".to_owned(),
            r#"p@ss \"w'ord\"&<\u00e9>/$x\\y"#.to_owned(),
            r#"'p@ss "w'"'"'ord"&<é>/$x\y'"#.to_owned(),
            "p@ss &quot;w&#x27;ord&quot;&amp;&lt;é&gt;/$x\\y".to_owned(),
            // Go: json.Marshal; bash: printf %q and declare -p.
            "p@ss \\\"w'ord\\\"\\u0026\\u003cé\\u003e/$x\\\\y".to_owned(),
            r#"p@ss\ \"w\'ord\"\&\<é\>/\$x\\y"#.to_owned(),
            r#"p@ss \"w'ord\"&<é>/\$x\\y"#.to_owned(),
            r#"'p@ss "w'\''ord"&<é>/$x\y'"#.to_owned(),
            r#"$'p@ss "w\'ord"&<é>/$x\\y'"#.to_owned(),
            hex(SECRET.as_bytes(), "", false),
            hex(SECRET.as_bytes(), " ", true),
            "p@ss \"\"w'ord\"\"&<é>/$x\\y".to_owned(),
            "p@ss \"w''ord\"&<é>/$x\\y".to_owned(),
        ];
        for leak in leaks {
            let shown = mask.apply(&leak).into_owned();
            let rest = shown.replace(HIDDEN, "");
            assert!(
                shown.contains(HIDDEN) && rest.chars().all(|c| "'$\"".contains(c)) || rest.len() <= 3,
                "{leak} is shown as {shown}"
            );
        }
    }

    #[test]
    fn a_secret_within_a_longer_encoded_text_is_hidden_wherever_it_begins() {
        let mask = mask("correct-horse-battery");
        for user in ["a", "bb", "ccc"] {
            for engine in [&STANDARD, &URL_SAFE_NO_PAD] {
                let shown = mask.apply(&engine.encode(format!("{user}:correct-horse-battery"))).into_owned();
                assert!(shown.contains(HIDDEN) && shown.len() < 16, "{shown}");
            }
        }
    }

    #[test]
    fn a_long_secret_is_hidden_in_encodings_that_are_broken_into_lines() {
        let secret: String = (0..200u32).map(|it| char::from(b'a' + (it * 7 % 26) as u8)).collect();
        let mask = mask(&secret);
        let encoded = STANDARD.encode(format!("{secret}\n"));
        for line in encoded.as_bytes().chunks(76) {
            assert_eq!(mask.apply(std::str::from_utf8(line).unwrap()), HIDDEN);
        }
    }

    #[test]
    fn lines_of_a_secret_are_hidden_alone_and_overlaps_as_a_whole() {
        let mut mask = mask("first line\nsecond line");
        assert_eq!(mask.apply("a first line b second line"), "a *** b ***");
        mask.add("abcdef");
        mask.add("defghi");
        assert_eq!(mask.apply("<abcdefghi>"), "<***>");
        assert_eq!(mask.apply("nothing here"), "nothing here");
        mask.add("");
        assert_eq!(mask.apply("Cg=="), "Cg==");
    }

    #[test]
    fn many_values_added_between_lines_stay_quick_and_hidden() {
        let mut mask = Mask::default();
        for number in 0..500 {
            let value = format!("value-number-{number:04}");
            mask.add(&value);
            assert_eq!(mask.apply(&value), HIDDEN);
        }
        assert_eq!(mask.apply("value-number-0001"), HIDDEN);
    }

    #[test]
    fn a_cut_leaves_secrets_whole() {
        let mask = mask("0123456789");
        let text = b"xxxxxxxxxxxxxxxxxxxx0123456789yyyy";
        let at = mask.cut(text, 25);
        assert!(at <= 20, "{at}");
        // Its end may still come.
        assert!(mask.cut(b"xxxxxxxxxxxxxxxxxxxx01234", 25) <= 20);
    }
}
