//! Objects as YAML, as a person would write them: block style, quotes only where they are needed.
//!
//! ```
//! let text = naru_spec::yaml_text::write(&serde_json::json!({"kind": "Pod", "args": ["a: b", "no"], "env": {}}));
//! assert_eq!(text, "kind: Pod\nargs:\n- \"a: b\"\n- \"no\"\nenv: {}\n");
//! ```

use crate::compose::in_reading_order;
use serde_json::Value;

/// One document.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (index, (key, value)) in in_reading_order(value).iter().enumerate() {
                if index > 0 {
                    out.push_str(&" ".repeat(indent));
                }
                out.push_str(&scalar(key));
                out.push(':');
                match value {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        out.push_str(&" ".repeat(indent + 2));
                        block(value, indent + 2, out);
                    }
                    // A list stands where its key stands, as kubectl writes it.
                    Value::Array(items) if !items.is_empty() => {
                        out.push('\n');
                        out.push_str(&" ".repeat(indent));
                        block(value, indent, out);
                    }
                    Value::String(text) if is_lines(text) => lines(text, indent + 2, out),
                    _ => {
                        out.push(' ');
                        block(value, indent, out);
                    }
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(&" ".repeat(indent));
                }
                out.push_str("- ");
                block(item, indent + 2, out);
            }
        }
        Value::Object(_) => out.push_str("{}\n"),
        Value::Array(_) => out.push_str("[]\n"),
        Value::String(text) => {
            out.push_str(&scalar(text));
            out.push('\n');
        }
        other => {
            out.push_str(&other.to_string());
            out.push('\n');
        }
    }
}

/// Text of several plain lines, which a block shows as they are.
fn is_lines(text: &str) -> bool {
    let inner = text.trim_end_matches('\n');
    inner.contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && !text.ends_with("\n\n")
        && text.chars().all(|it| {
            it == '\n'
                || it == '\t'
                || !it.is_control()
                    && it != '\u{feff}'
                    && it != '\u{85}'
                    && it != '\u{2028}'
                    && it != '\u{2029}'
        })
        && !inner.lines().any(|it| it.ends_with([' ', '\t']))
}

fn lines(text: &str, indent: usize, out: &mut String) {
    out.push_str(if text.ends_with('\n') { " |\n" } else { " |-\n" });
    for line in text.lines() {
        if !line.is_empty() {
            out.push_str(&" ".repeat(indent));
            out.push_str(line);
        }
        out.push('\n');
    }
}

/// A word that is nothing but a string to any reader of YAML 1.1 and 1.2 stands alone; all else is quoted
/// as JSON, which is YAML.
fn scalar(text: &str) -> String {
    let plain = |it: char| it.is_ascii_alphanumeric() || "-_./@+=%,".contains(it) || it == ':' || it == ' ';
    let special = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let is_plain = text.starts_with(|it: char| it.is_ascii_alphabetic() || it == '/' || it == '_')
        && text.chars().all(plain)
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.ends_with([':', ' '])
        && !special.contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { serde_json::to_string(text).expect("text is always JSON") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_again() {
        let value = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "data": {"a": "x: 1\n  y\n", "b": "one\ntwo", "c": " lead", "d": "0755", "e": "1e3", "f": "", "g": "~", "h": "trail \nx", "i": "é\u{1}"},
            "list": [{"name": "n", "items": [1, 2.5, true, null]}, [], {}, ["a", ["b"]]],
            "0x10": "- no", "y": "2026-01-01",
        });
        let text = write(&value);
        let (node, findings) = naru_text::yaml::parse(&text);
        assert!(findings.is_empty(), "{findings:?}\n{text}");
        assert_eq!(node.unwrap().to_json(), value, "{text}");
        assert!(text.starts_with("apiVersion: v1\nkind: ConfigMap\n"), "{text}");
    }
}
