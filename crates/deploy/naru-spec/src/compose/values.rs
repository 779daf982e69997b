//! Single values of compose files: times, sizes, shares of a processor, names, command lines.

use super::load::Loader;
use super::tree::{Data, Node};

/// Seconds of `1m30s`, `500ms`, `2h`.
pub fn seconds(text: &str) -> Option<f64> {
    let mut total = 0.0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !(it.is_ascii_digit() || it == '.')).unwrap_or(rest.len());
        let amount: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|it: char| it.is_ascii_digit()).unwrap_or(rest.len());
        let factor = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        total += amount * factor;
        rest = &rest[unit..];
    }
    Some(total)
}

/// Bytes of `512m`, `1.5gb`, `64k`, `1024`.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|it: char| !(it.is_ascii_digit() || it == '.')).unwrap_or(text.len());
    let amount: f64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        _ => return None,
    };
    Some((amount * (1u64 << shift) as f64) as u64)
}

/// Bytes as Kubernetes writes them.
pub fn quantity(bytes: u64) -> String {
    for (shift, unit) in [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// `0.5` processors as `500m`.
pub fn processors(text: &str) -> Option<String> {
    let amount: f64 = text.trim().parse().ok()?;
    if !(0.0..=100_000.0).contains(&amount) {
        return None;
    }
    let thousandths = (amount * 1000.0).round() as u64;
    Some(if thousandths.is_multiple_of(1000) {
        (thousandths / 1000).to_string()
    } else {
        format!("{thousandths}m")
    })
}

/// A name as DNS and Kubernetes take it.
pub fn dns_name(name: &str, length_max: usize) -> String {
    let mut out: String = name
        .chars()
        .map(|it| if it.is_ascii_alphanumeric() { it.to_ascii_lowercase() } else { '-' })
        .collect();
    out.truncate(length_max);
    let out = out.trim_matches('-').to_owned();
    if out.is_empty() { "x".to_owned() } else { out }
}

/// The words of a command line, split as a shell splits them; nothing is expanded.
pub fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(it) = chars.next() {
        match (quote, it) {
            (Some(open), it) if it == open => quote = None,
            (Some('\''), it) => word.get_or_insert_default().push(it),
            (Some(_), '\\') => match chars.next() {
                Some(it @ ('"' | '\\' | '$' | '`')) => word.get_or_insert_default().push(it),
                Some(it) => word.get_or_insert_default().extend(['\\', it]),
                None => return Err("ends with a backslash".into()),
            },
            (Some(_), it) => word.get_or_insert_default().push(it),
            (None, '\\') => match chars.next() {
                Some(it) => word.get_or_insert_default().push(it),
                None => return Err("ends with a backslash".into()),
            },
            (None, '\'' | '"') => {
                quote = Some(it);
                word.get_or_insert_default();
            }
            (None, it) if it.is_whitespace() => words.extend(word.take()),
            (None, it) => word.get_or_insert_default().push(it),
        }
    }
    match quote {
        Some(it) => Err(format!("has no closing {it}")),
        None => {
            words.extend(word);
            Ok(words)
        }
    }
}

/// Readers of values that say what is wrong with them.
impl Loader<'_> {
    pub fn text(&mut self, key: &str, node: &Node) -> Option<String> {
        match node.as_str().filter(|_| !node.is_null()) {
            Some(it) => Some(it.to_owned()),
            None => {
                self.error(node.at, format!("`{key}` must be text, this is {}", node.describe()), "");
                None
            }
        }
    }

    pub fn flag(&mut self, key: &str, node: &Node) -> bool {
        node.as_bool().unwrap_or_else(|| {
            self.error(node.at, format!("`{key}` must be true or false"), "");
            false
        })
    }

    pub fn number(&mut self, key: &str, node: &Node, min: u64, max: u64) -> Option<u64> {
        let number = node.as_str().and_then(|it| it.trim().parse::<u64>().ok());
        let number = number.filter(|it| (min..=max).contains(it));
        if number.is_none() {
            self.error(node.at, format!("`{key}` must be a whole number from {min} to {max}"), "");
        }
        number
    }

    pub fn time(&mut self, key: &str, node: &Node) -> Option<f64> {
        let time = node.as_str().and_then(seconds);
        if time.is_none() {
            self.error(node.at, format!("`{key}` is not a time"), format!("write it like `{key}: 1m30s`"));
        }
        time
    }

    pub fn size(&mut self, key: &str, node: &Node) -> Option<String> {
        let size = node.as_str().and_then(bytes);
        if size.is_none() {
            self.error(node.at, format!("`{key}` is not a size"), format!("write it like `{key}: 256m`"));
        }
        size.map(quantity)
    }

    /// A list of texts; one text counts as a list.
    pub fn texts(&mut self, key: &str, node: &Node) -> Vec<String> {
        if node.is_map() {
            self.error(node.at, format!("`{key}` must be a list, this is a mapping"), "");
        }
        node.items_or_one().into_iter().filter_map(|it| self.text(key, it)).collect()
    }

    /// Names with values; a name without one is `None`.
    pub fn pairs(&mut self, key: &str, node: &Node) -> Vec<(String, Option<String>, super::tree::At)> {
        let node = super::merge::pairs(node.clone());
        if !node.is_map() && !node.is_null() {
            self.error(node.at, format!("`{key}` must be a mapping or a list of NAME=value"), "");
        }
        let mut all = Vec::new();
        for entry in node.entries() {
            match &entry.value.data {
                _ if entry.value.is_null() => all.push((entry.key.clone(), None, entry.at)),
                Data::Scalar { text, .. } => all.push((entry.key.clone(), Some(text.clone()), entry.at)),
                _ => {
                    let what = entry.value.describe();
                    self.error(
                        entry.value.at,
                        format!("the value of `{}` in `{key}` must be text, this is {what}", entry.key),
                        "quote it",
                    );
                }
            }
        }
        all
    }

    /// A command: a list of words, or a line that is split into words. `None` says nothing, an empty list
    /// says that there is none.
    pub fn command(&mut self, key: &str, node: &Node) -> Option<Vec<String>> {
        match &node.data {
            _ if node.is_null() => None,
            Data::Scalar { text, .. } => match words(text) {
                Ok(it) => Some(it),
                Err(why) => {
                    self.error(
                        node.at,
                        format!("`{key}` {why}"),
                        "write it as a list: [\"program\", \"argument\"]",
                    );
                    None
                }
            },
            _ => Some(self.texts(key, node)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_as_people_write_them() {
        assert_eq!(seconds("1m30s"), Some(90.0));
        assert_eq!(seconds("500ms"), Some(0.5));
        assert_eq!([seconds("10"), seconds(""), seconds("x")], [None, None, None]);
        assert_eq!(bytes("512m").map(quantity).as_deref(), Some("512Mi"));
        assert_eq!(bytes("1.5gb").map(quantity).as_deref(), Some("1536Mi"));
        assert_eq!(bytes("1000").map(quantity).as_deref(), Some("1000"));
        assert_eq!(bytes("lots"), None);
        assert_eq!(processors("0.50").as_deref(), Some("500m"));
        assert_eq!(processors("2").as_deref(), Some("2"));
        assert_eq!(dns_name("My_Service.1", 63), "my-service-1");
    }

    #[test]
    fn command_lines_are_split_as_a_shell_does() {
        assert_eq!(
            words("a 'b c' \"d \\\"e\\\" \\n\" f\\ g ''"),
            Ok(["a", "b c", "d \"e\" \\n", "f g", ""].map(str::to_owned).to_vec())
        );
        assert!(words("a 'b").is_err());
    }
}
