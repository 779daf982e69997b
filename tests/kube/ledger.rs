//! The scenarios as tests, and the ledger of names that pass.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{Case, cluster};

/// What a scenario needs: A pure API, B the node runs pods, C workloads, D network and tokens,
/// E calls from the API into pods, F scheduling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    A,
    B,
    C,
    D,
    E,
    F,
}

pub struct Scenario {
    pub group: Group,
    pub name: &'static str,
    pub run: Arc<dyn Fn(&Case) + Send + Sync>,
}

/// Scenarios side by side: most of them wait.
const THREADS: usize = 6;

/// Runs the scenarios that the command line asks for, on one daemon. Those that are not in the ledger yet are
/// left out unless they are asked for (`--include-ignored`); with `NARU_LEDGER=write` they are run, and the ones
/// that pass are written down.
pub fn run(scenarios: Vec<Scenario>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let writes = std::env::var("NARU_LEDGER").is_ok_and(|it| it == "write");
    arguments.include_ignored |= writes;
    let mut known = read("ledger.txt");
    let lines: BTreeSet<String> = scenarios.iter().map(line).collect();
    let passed: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let mut trials = vec![Trial::test("ledger", {
        let (lines, known) = (lines.clone(), known.clone());
        move || check(&lines, &known)
    })];
    for scenario in scenarios {
        let line = line(&scenario);
        let is_known = known.contains(&line);
        let passed = passed.clone();
        let trial = Trial::test(scenario.name, move || {
            let case = Case::new(scenario.name);
            (scenario.run)(&case);
            passed.lock().unwrap().insert(line);
            Ok(())
        });
        trials.push(trial.with_ignored_flag(!is_known));
    }
    let code = conclude(&arguments, trials);
    if writes {
        known.append(&mut passed.lock().unwrap());
        let text: String = known.iter().map(|it| format!("{it}\n")).collect();
        std::fs::write(path("ledger.txt"), text).unwrap();
    }
    code
}

fn line(scenario: &Scenario) -> String {
    format!("{:?} {}", scenario.group, scenario.name)
}

/// Runs tests that are not in the ledger: names of our own.
pub fn run_own(tests: Vec<(&'static str, fn(&Case))>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let trial = |(name, test): (&'static str, fn(&Case))| {
        Trial::test(name, move || {
            test(&Case::new(name));
            Ok(())
        })
    };
    conclude(&arguments, tests.into_iter().map(trial).collect())
}

fn conclude(arguments: &Arguments, trials: Vec<Trial>) -> ExitCode {
    let conclusion = libtest_mimic::run(arguments, trials);
    cluster::shut_down(conclusion.has_failed());
    conclusion.exit_code()
}

/// Every name in the ledger has a scenario, and every scenario bears a name of the suite.
fn check(lines: &BTreeSet<String>, known: &BTreeSet<String>) -> Result<(), Failed> {
    let names: BTreeSet<String> = read("names.txt");
    let unknown: Vec<&String> = lines.iter().filter(|it| !names.contains(&it[2..])).collect();
    if !unknown.is_empty() {
        return Err(format!("not names of the conformance suite: {unknown:#?}").into());
    }
    let lost: Vec<&String> = known.difference(lines).collect();
    if !lost.is_empty() {
        return Err(
            format!("the ledger may only grow, but these have no scenario any more: {lost:#?}").into()
        );
    }
    Ok(())
}

fn read(file: &str) -> BTreeSet<String> {
    std::fs::read_to_string(path(file)).unwrap().lines().map(String::from).collect()
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}
