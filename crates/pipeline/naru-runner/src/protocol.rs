//! What a job's pod says about itself, as lines between those of the steps.
//!
//! A line is `##naru <nonce> <json>`. The nonce is in the job's own file and not in the environment, so
//! that a step that prints such a line by accident (or a log of ours) is not taken for the job's word.

use crate::reports::Test;
use naru_objects::Diagnostic;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Every line of ours starts so.
pub const MARK: &str = "##naru ";

/// One thing that happened in the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event {
    JobStarted {
        at: String,
    },
    /// Indices from the number of the job's steps on are what packaged steps do before and after them.
    StepStarted {
        index: usize,
        name: String,
        at: String,
    },
    StepEnded {
        index: usize,
        name: String,
        outcome: Outcome,
        exit_code: Option<i32>,
        at: String,
    },
    /// Somebody has a shell in the job.
    Paused {
        why: String,
        at: String,
    },
    Resumed {
        at: String,
    },
    /// Tests of a report that the job has left; a long one comes in several.
    Tests {
        file: String,
        tests: Vec<Test>,
    },
    JobEnded {
        outcome: Outcome,
        outputs: BTreeMap<String, String>,
        summary: String,
        #[serde(default)]
        annotations: Vec<Diagnostic>,
        at: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Succeeded,
    Failed,
    Skipped,
    /// Stopped before its end, because somebody wanted the job to end.
    Cancelled,
}

/// The event as its line, without a line break.
pub fn to_line(nonce: &str, event: &Event) -> String {
    let json = serde_json::to_string(event).expect("events hold nothing that JSON cannot say");
    format!("{MARK}{nonce} {json}")
}

/// The event of a line, if it is one under this nonce.
pub fn of_line(nonce: &str, line: &str) -> Option<Event> {
    serde_json::from_str(line.strip_prefix(MARK)?.strip_prefix(nonce)?.strip_prefix(' ')?).ok()
}

/// The tests that a line of a job's log tells of, whatever its nonce: a step could print them as well.
pub fn tests_of(line: &str) -> Option<(String, Vec<Test>)> {
    match serde_json::from_str(line.strip_prefix(MARK)?.split_once(' ')?.1).ok()? {
        Event::Tests { file, tests } => Some((file, tests)),
        _ => None,
    }
}

/// A job's log line as people want to see it: our own lines become headings or vanish.
pub fn for_people(line: &str) -> Option<String> {
    let Some(rest) = line.strip_prefix(MARK) else {
        let Some((kind, text)) = line.strip_prefix("##[").and_then(|it| it.split_once(']')) else {
            return Some(format!("  {line}"));
        };
        return match kind {
            "group" => Some(format!("  > {text}")),
            "endgroup" => None,
            "error" | "warning" | "notice" | "debug" => Some(format!("  {kind}: {text}")),
            _ => Some(format!("  {line}")),
        };
    };
    let event = serde_json::from_str(rest.split_once(' ')?.1).ok()?;
    match event {
        Event::StepStarted { name, .. } => Some(format!("- {name}")),
        Event::StepEnded { name, outcome: Outcome::Failed, exit_code, .. } => {
            Some(format!("x {name} failed{}", exit_code.map(|it| format!(" with {it}")).unwrap_or_default()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_jobs_own_lines_count() {
        let event = Event::JobStarted { at: "now".into() };
        let line = to_line("n1", &event);
        assert_eq!(of_line("n1", &line), Some(event));
        assert_eq!(of_line("n2", &line), None);
        assert_eq!(of_line("n1", "##naru n1 {}"), None);
    }
}
