//! `--filter`: a JSON object of lists, in either of the two forms that clients send.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::error::{Error, Result};

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// `known` are the names that the caller honours; any other is refused.
    pub fn parse(text: Option<&str>, known: &[&str]) -> Result<Self> {
        let Some(text) = text else { return Ok(Self::default()) };
        let value: Value =
            serde_json::from_str(text).map_err(|_| Error::bad(format!("invalid filter: {text}")))?;
        let mut filters = BTreeMap::new();
        for (name, wanted) in value.as_object().into_iter().flatten() {
            if !known.contains(&name.as_str()) {
                return Err(Error::bad(format!("invalid filter '{name}'; known are {}", known.join(", "))));
            }
            let wanted: BTreeSet<String> = match wanted {
                Value::Array(list) => list.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect(),
                Value::Object(map) => {
                    map.iter().filter(|(_, on)| **on != false).map(|(it, _)| it.clone()).collect()
                }
                _ => return Err(Error::bad(format!("invalid filter: {text}"))),
            };
            if !wanted.is_empty() {
                filters.insert(name.clone(), wanted);
            }
        }
        Ok(Self(filters))
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn of(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// No such filter, or one of its values fits.
    pub fn any(&self, name: &str, fits: impl Fn(&str) -> bool) -> bool {
        !self.has(name) || self.of(name).any(fits)
    }

    /// No such filter, or all of its values fit: labels.
    pub fn all(&self, name: &str, fits: impl Fn(&str) -> bool) -> bool {
        self.of(name).all(fits)
    }

    /// `label=key`, `label=key=value`, and the same with `label!`.
    pub fn labels(&self, labels: &Value) -> bool {
        let has = |wanted: &str| match wanted.split_once('=') {
            Some((key, value)) => labels[key] == value,
            None => labels.get(wanted).is_some(),
        };
        self.all("label", has) && self.of("label!").all(|it| !has(it))
    }

    /// `dangling=true`.
    pub fn truth(&self, name: &str) -> Result<Option<bool>> {
        match self.of(name).next() {
            None => Ok(None),
            Some("1" | "true" | "True" | "TRUE" | "t" | "T") => Ok(Some(true)),
            Some("0" | "false" | "False" | "FALSE" | "f" | "F") => Ok(Some(false)),
            Some(other) => Err(Error::bad(format!("invalid filter '{name}={other}'"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_mean_the_same() {
        let known = ["label", "status"];
        let list = Filters::parse(Some(r#"{"label":["a=b","c"],"status":["exited"]}"#), &known).unwrap();
        let map = Filters::parse(Some(r#"{"label":{"a=b":true,"c":true},"status":{"exited":true}}"#), &known);
        assert_eq!(list, map.unwrap());
        assert!(list.labels(&json!({"a": "b", "c": ""})) && !list.labels(&json!({"a": "x", "c": ""})));
        assert!(list.any("status", |it| it == "exited") && list.any("other", |_| false));
        assert!(Filters::parse(Some(r#"{"colour":["red"]}"#), &known).is_err(), "never ignored");
    }
}
