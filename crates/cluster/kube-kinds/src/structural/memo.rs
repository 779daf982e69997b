//! Compiled expressions and patterns, kept by their text: a schema is read many times.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex};

use kube_cel::Expression;
use regex::Regex;

/// When more are in use, all are forgotten and compiled again as needed.
const KEPT_MAX: usize = 4096;

struct Memo<T>(Mutex<HashMap<String, Arc<T>>>);

impl<T> Memo<T> {
    fn get(&self, text: &str, make: impl FnOnce(&str) -> T) -> Arc<T>
    where
        String: Hash,
    {
        if let Some(made) = self.0.lock().expect("no code panics while it holds this lock").get(text) {
            return made.clone();
        }
        let made = Arc::new(make(text));
        let mut kept = self.0.lock().expect("no code panics while it holds this lock");
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(text.to_string(), made.clone());
        made
    }
}

/// The expression, compiled once; or why it cannot be.
pub fn expression(text: &str) -> Arc<Result<Expression, String>> {
    static EXPRESSIONS: LazyLock<Memo<Result<Expression, String>>> = LazyLock::new(|| Memo(Mutex::default()));
    EXPRESSIONS.get(text, kube_cel::compile)
}

/// `None` for a pattern that cannot be used.
pub(super) fn pattern(text: &str) -> Arc<Option<Regex>> {
    static PATTERNS: LazyLock<Memo<Option<Regex>>> = LazyLock::new(|| Memo(Mutex::default()));
    PATTERNS.get(text, |text| regex::RegexBuilder::new(text).size_limit(1 << 20).build().ok())
}
