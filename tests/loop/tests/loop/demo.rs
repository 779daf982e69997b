//! Naru's main job, as a user starts it.

use crate::harness::{leftovers, naru_binary, text};
use serde_json::Value;
use std::process::Command;

#[test]
fn the_demo_takes_the_example_through_the_whole_loop() {
    let dir = tempfile::Builder::new().prefix("naru-demo-test-").tempdir().unwrap();
    let summary = dir.path().join("summary.json");
    let output = Command::new(naru_binary())
        .args(["demo", "--dir", &dir.path().join("demo").display().to_string()])
        .args(["--summary", &summary.display().to_string()])
        .output()
        .unwrap();
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    let summary: Value = serde_json::from_str(&std::fs::read_to_string(&summary).unwrap()).unwrap();
    assert_eq!(summary["releases"], 3, "{summary}");
    assert_eq!(summary["promoted"], 2, "{summary}");
    assert_eq!(summary["rolled_back"], 1, "{summary}");
    assert_eq!(summary["failed_outside_canary"], 0, "{shown}");
    assert!(summary["failed_in_canary"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(summary["containers_survived_restart"], true, "{shown}");
    assert_eq!(summary["run_during_restart"], "Succeeded", "{shown}");
    assert!(summary["requests"].as_u64().unwrap() > 500, "{summary}");

    // The walk has a row for each of the ten steps of the plan.
    let walk = shown.split("The walk of").nth(1).expect("the demo prints the walk");
    for number in 1..=10 {
        let row = walk.lines().any(|it| it.split_whitespace().any(|word| word == number.to_string()));
        assert!(row, "row {number} is missing in\n{walk}");
    }
    assert!(shown.contains("Deployment frequency"), "{shown}");
    assert_eq!(leftovers("narudemo", &dir.path().join("demo").display().to_string()), Vec::<String>::new());
}
