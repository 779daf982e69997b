//! Label selectors and field selectors: text or object in, `matches` out.

use serde_json::Value;

use crate::{Failure, Kind};

/// All requirements must hold. The empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// `app=web,tier in (a,b),!old,track`.
    pub fn parse(text: &str) -> Result<LabelSelector, Failure> {
        let mut requirements = Vec::new();
        for part in split_outside_brackets(text) {
            let part = part.trim();
            if !part.is_empty() {
                requirements.push(parse_requirement(part).ok_or_else(|| {
                    Failure::bad_request(format!("unable to parse requirement: {part:?} in label selector"))
                })?);
            }
        }
        Ok(LabelSelector { requirements })
    }

    /// From `{matchLabels, matchExpressions}`. `None` when it is malformed.
    pub fn from_object(selector: &Value) -> Option<LabelSelector> {
        let mut requirements = Vec::new();
        if let Some(labels) = selector["matchLabels"].as_object() {
            for (key, value) in labels {
                let operator = Operator::In(vec![value.as_str()?.to_string()]);
                requirements.push(Requirement { key: key.clone(), operator });
            }
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let values = || -> Vec<String> {
                let values = expression["values"].as_array().into_iter().flatten();
                values.filter_map(|it| it.as_str().map(String::from)).collect()
            };
            let operator = match expression["operator"].as_str()? {
                "In" => Operator::In(values()),
                "NotIn" => Operator::NotIn(values()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return None,
            };
            requirements.push(Requirement { key: expression["key"].as_str()?.to_string(), operator });
        }
        Some(LabelSelector { requirements })
    }

    /// From a plain map of labels, as Services have it.
    pub fn from_map(labels: &Value) -> LabelSelector {
        let mut requirements = Vec::new();
        for (key, value) in labels.as_object().into_iter().flatten() {
            let operator = Operator::In(vec![value.as_str().unwrap_or("").to_string()]);
            requirements.push(Requirement { key: key.clone(), operator });
        }
        LabelSelector { requirements }
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object's labels match.
    pub fn matches(&self, object: &Value) -> bool {
        self.matches_labels(object.pointer("/metadata/labels").unwrap_or(&Value::Null))
    }

    pub fn matches_labels(&self, labels: &Value) -> bool {
        self.requirements.iter().all(|it| {
            let value = labels.get(&it.key).and_then(Value::as_str);
            match &it.operator {
                Operator::In(values) => value.is_some_and(|value| values.iter().any(|it| it == value)),
                Operator::NotIn(values) => !value.is_some_and(|value| values.iter().any(|it| it == value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

/// The text form that `LabelSelector::parse` reads (and the scale subresource shows).
impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, it) in self.requirements.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match &it.operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{comma}{}={}", it.key, values[0])?,
                Operator::In(values) => write!(f, "{comma}{} in ({})", it.key, values.join(","))?,
                Operator::NotIn(values) => write!(f, "{comma}{} notin ({})", it.key, values.join(","))?,
                Operator::Exists => write!(f, "{comma}{}", it.key)?,
                Operator::DoesNotExist => write!(f, "{comma}!{}", it.key)?,
            }
        }
        Ok(())
    }
}

fn split_outside_brackets(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_requirement(text: &str) -> Option<Requirement> {
    let is_key = |key: &str| {
        !key.is_empty() && key.chars().all(|it| it.is_ascii_alphanumeric() || "-_./".contains(it))
    };
    let build = |key: &str, operator: Operator| {
        let key = key.trim();
        is_key(key).then(|| Requirement { key: key.to_string(), operator })
    };
    if let Some(key) = text.strip_prefix('!') {
        return build(key, Operator::DoesNotExist);
    }
    if let Some((head, values)) = text.split_once('(') {
        let values = values.strip_suffix(')')?.split(',').map(|it| it.trim().to_string()).collect();
        let (key, word) = head.trim().rsplit_once(char::is_whitespace)?;
        return match word {
            "in" => build(key, Operator::In(values)),
            "notin" => build(key, Operator::NotIn(values)),
            _ => None,
        };
    }
    if let Some((key, value)) = text.split_once("!=") {
        return build(key, Operator::NotIn(vec![value.trim().to_string()]));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return build(key, Operator::In(vec![value.trim().to_string()]));
    }
    build(text, Operator::Exists)
}

/// `metadata.name=web,status.phase!=Failed`.
#[derive(Debug, Clone, Default)]
pub struct FieldSelector {
    terms: Vec<(String, bool, String)>,
}

impl FieldSelector {
    /// Checks that the kind supports every field.
    pub fn parse(text: &str, kind: &Kind) -> Result<FieldSelector, Failure> {
        let mut terms = Vec::new();
        for part in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, true, value)
            } else {
                return Err(Failure::bad_request(format!("invalid field selector: {part:?}")));
            };
            if kind.field_value(&Value::Null, field).is_none() {
                return Err(Failure::bad_request(format!(
                    "field label not supported: {field:?} for {}",
                    kind.resource()
                )));
            }
            terms.push((field.to_string(), equal, value.to_string()));
        }
        Ok(FieldSelector { terms })
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The name that the selector pins down, if it does: such a list is one lookup.
    pub fn name(&self) -> Option<&str> {
        self.terms
            .iter()
            .find(|(field, equal, _)| *equal && field == "metadata.name")
            .map(|(_, _, value)| value.as_str())
    }

    pub fn matches(&self, object: &Value, kind: &Kind) -> bool {
        self.terms.iter().all(|(field, equal, value)| {
            (kind.field_value(object, field).as_deref() == Some(value)) == *equal
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_match_as_kubectl_users_expect() {
        let labels = json!({"app": "web", "track": "canary"});
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,track in (stable, canary)", true),
            ("track notin (canary)", false),
            ("app!=web", false),
            ("other!=x", true),
            ("!other,track", true),
            ("other", false),
        ] {
            let parsed = LabelSelector::parse(selector).expect(selector);
            assert_eq!(parsed.matches_labels(&labels), expected, "{selector}");
            let again = LabelSelector::parse(&parsed.to_string()).expect("its own text is readable");
            assert_eq!(again, parsed);
        }
        assert!(LabelSelector::parse("a in b").is_err());
        assert!(LabelSelector::parse("=x").is_err());
    }
}
