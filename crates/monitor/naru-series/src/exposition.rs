//! The Prometheus text exposition format, version 0.0.4. A line that is none is left out; the rest counts.

/// One line of an exposition.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub name: String,
    /// In the order of the text.
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

pub fn parse(text: &str) -> Vec<Line> {
    text.lines().filter(|it| !it.starts_with('#')).filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Line> {
    let line = line.trim();
    let name_end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let name = line[..name_end].to_owned();
    let mut labels = Vec::new();
    let mut rest = &line[name_end..];
    if let Some(inner) = rest.strip_prefix('{') {
        let mut chars = inner.char_indices().peekable();
        loop {
            while chars.next_if(|(_, c)| c.is_whitespace() || *c == ',').is_some() {}
            if let Some((at, _)) = chars.next_if(|(_, c)| *c == '}') {
                rest = &inner[at + 1..];
                break;
            }
            let mut key = String::new();
            while let Some((_, c)) = chars.next_if(|(_, c)| *c != '=' && *c != '}') {
                key.push(c);
            }
            chars.next_if(|(_, c)| *c == '=')?;
            chars.next_if(|(_, c)| *c == '"')?;
            let mut value = String::new();
            loop {
                match chars.next()?.1 {
                    '"' => break,
                    '\\' => match chars.next()?.1 {
                        'n' => value.push('\n'),
                        c => value.push(c),
                    },
                    c => value.push(c),
                }
            }
            labels.push((key.trim().to_owned(), value));
        }
    }
    let value = rest.split_whitespace().next()?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        it => it.parse().ok()?,
    };
    Some(Line { name, labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_every_kind_of_label_are_read() {
        let text = "# HELP a b\na 1\nb{x=\"1\",y=\"q\\\"uo\\\\te}\"} 2.5 1700000000\nc_bucket{le=\"+Inf\"} +Inf\nbroken{x=\nd{} 3\n";
        let lines = parse(text);
        let names: Vec<_> = lines.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c_bucket", "d"]);
        assert_eq!(lines[1].labels[1].1, "q\"uo\\te}");
        assert_eq!(lines[1].value, 2.5);
        assert!(lines[2].value.is_infinite());
    }
}
