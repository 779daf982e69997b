//! Any text as a question about an expression: it has an answer, and the answer is JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use naru_plan_dialects::github::expression::answer;
use serde_json::{Value, json};

fuzz_target!(|text: &str| {
    let question = json!({
        "expr": text,
        "contexts": {"github": {"ref": "a", "event": {"commits": [{"id": 1}, {"id": null}]}}, "env": {"A": "1e3"}},
    });
    let line = answer(&question.to_string()).expect("the question has an `expr`");
    let answered: Value = serde_json::from_str(&line).expect("answers are JSON");
    assert!(answered.get("kind").is_some() || answered["pos"].as_u64().is_some_and(|it| it <= text.len() as u64));
    // The question itself may be anything, too.
    let _ = answer(text);
});
