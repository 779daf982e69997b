//! Secrets never reach a log: a [`Mask`] replaces their values, and the encodings in which they usually
//! slip out, before a line leaves the job.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use naru_objects::percent_encode;

/// What is shown instead.
pub const HIDDEN: &str = "***";

/// Shorter values are not masked: hiding every `1` would hide the log.
const VALUE_BYTES_MIN: usize = 3;

#[derive(Default)]
pub struct Mask {
    /// Longest first, so that a value which contains another is hidden whole.
    values: Vec<String>,
}

impl Mask {
    /// Hides a value from now on: as it is, each of its lines, and encoded as base64, URL or JSON.
    pub fn add(&mut self, secret: &str) {
        if secret.trim().len() < VALUE_BYTES_MIN {
            // Nor are its encodings: that of nothing at all is `Cg==`.
            return;
        }
        let mut forms = vec![secret.to_owned(), secret.trim().to_owned()];
        forms.extend(secret.lines().map(|it| it.trim().to_owned()));
        for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
            forms.push(engine.encode(secret));
            forms.push(engine.encode(format!("{secret}\n")));
        }
        forms.push(percent_encode(secret));
        if let Ok(json) = serde_json::to_string(secret) {
            forms.push(json.trim_matches('"').to_owned());
        }
        self.values.extend(forms.into_iter().filter(|it| it.len() >= VALUE_BYTES_MIN));
        self.values.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        self.values.dedup();
    }

    pub fn apply(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for value in &self.values {
            if line.contains(value.as_str()) {
                line = line.replace(value.as_str(), HIDDEN);
            }
        }
        line
    }

    /// Whether the text holds a secret.
    pub fn hides(&self, text: &str) -> bool {
        self.values.iter().any(|it| text.contains(it.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_form_of_a_secret_is_hidden() {
        let secret = "p@ss \"word\"\nsecond line";
        let mut mask = Mask::default();
        mask.add(secret);
        for leak in [
            "p@ss \"word\"".to_owned(),
            "second line".to_owned(),
            STANDARD.encode(secret),
            percent_encode(secret),
            serde_json::to_string(secret).unwrap(),
        ] {
            let shown = mask.apply(&format!("<{leak}>"));
            assert!(
                shown.contains(HIDDEN) && !shown.contains("word") && !shown.contains("second"),
                "{shown}"
            );
        }
        assert_eq!(mask.apply("nothing here"), "nothing here");
        mask.add("");
        assert_eq!(mask.apply("Cg=="), "Cg==");
    }
}
