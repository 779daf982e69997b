//! Any text as a workflow: it is read or refused with places, and what is left open can be made.
#![no_main]

use libfuzzer_sys::fuzz_target;
use naru_plan_dialects::{DIALECTS, Trigger};
use serde_json::json;

fuzz_target!(|text: &str| {
    let contexts = json!({"github": {"ref": "refs/heads/main"}, "vars": {}});
    let trigger = Trigger {
        event: "push".into(),
        git_ref: "refs/heads/main".into(),
        labels: vec!["ubuntu-latest".into()],
        contexts: contexts.as_object().expect("written as an object").clone(),
        files: [(".github/workflows/x.yml".to_owned(), text.to_owned())].into(),
        ..Trigger::default()
    };
    for dialect in DIALECTS {
        let lowered = (dialect.lower)("ci.yml", text, &trigger);
        for finding in &lowered.findings {
            assert!(finding.place.line >= 1, "{finding:?}");
        }
        let contexts = json!({"github": {}, "vars": {}, "inputs": {}, "needs": {}, "matrix": {}});
        for job in lowered.plan.iter().flat_map(|it| &it.jobs) {
            let _ = dialect.evaluator.condition(job.condition.as_deref(), &contexts);
            for made in dialect.evaluator.expand(job, &contexts).unwrap_or_default() {
                assert!(made.key.starts_with(&job.key), "{} of {}", made.key, job.key);
            }
        }
    }
});
