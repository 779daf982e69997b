//! What is said to a client beside the answer: how strictly its fields are read, what was odd.

use std::sync::{Arc, Mutex};

use kube_kinds::{Failure, Kind, decode};
use serde_json::Value;

/// What becomes of unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Validation {
    /// The write fails.
    Strict,
    /// They are left out, and the client is told.
    Warn,
    /// They are left out.
    #[default]
    Ignore,
}

impl Validation {
    /// From the parameter `fieldValidation`.
    pub fn parse(word: Option<&str>) -> Result<Validation, Failure> {
        match word {
            None | Some("Warn") => Ok(Validation::Warn),
            Some("Strict") => Ok(Validation::Strict),
            Some("Ignore") => Ok(Validation::Ignore),
            Some(other) => Err(Failure::bad_request(format!(
                "invalid fieldValidation {other:?}, use Strict, Warn or Ignore"
            ))),
        }
    }
}

/// Collects while a request is carried out. Clones share what they collect.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Found while the body was parsed.
    duplicates: Vec<String>,
    warnings: Vec<String>,
}

impl Notes {
    /// Fields that the body has twice, as `kube_kinds::decode::parse` names them.
    pub fn found_duplicates(&self, duplicates: Vec<String>) {
        self.inner.lock().expect("no code panics while it holds this lock").duplicates.extend(duplicates);
    }

    /// Tells the client once.
    pub fn warn(&self, warning: String) {
        let mut inner = self.inner.lock().expect("no code panics while it holds this lock");
        if !inner.warnings.contains(&warning) {
            inner.warnings.push(warning);
        }
    }

    /// For `Warning` headers.
    pub fn warnings(&self) -> Vec<String> {
        self.inner.lock().expect("no code panics while it holds this lock").warnings.clone()
    }

    fn duplicates(&self) -> Vec<String> {
        self.inner.lock().expect("no code panics while it holds this lock").duplicates.clone()
    }
}

/// How an object came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Body,
    Patch,
}

/// Makes the object one of its kind, and says what did not fit.
pub(crate) fn conform(
    kind: &Kind,
    object: &mut Value,
    source: Source,
    validation: Validation,
    notes: &Notes,
) -> Result<(), Failure> {
    let mut findings = decode::conform(kind, object)?;
    findings.extend(notes.duplicates());
    if findings.is_empty() {
        return Ok(());
    }
    match validation {
        Validation::Ignore => {}
        Validation::Warn => findings.into_iter().for_each(|it| notes.warn(it)),
        Validation::Strict => {
            let why = format!("strict decoding error: {}", findings.join(", "));
            return Err(match source {
                Source::Body => Failure::bad_request(format!(
                    "{} in version {:?} cannot be handled as a {}: {why}",
                    kind.kind, kind.version, kind.kind
                )),
                Source::Patch => Failure::invalid_patch(&why),
            });
        }
    }
    Ok(())
}
