//! The scenarios as tests, and the ledger of names that pass.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

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

/// Runs the scenarios that the command line asks for, on one daemon.
pub fn run(scenarios: Vec<Scenario>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let lines: BTreeSet<String> = scenarios.iter().map(|it| format!("{:?} {}", it.group, it.name)).collect();
    let mut trials = vec![Trial::test("ledger", move || check(&lines))];
    for scenario in scenarios {
        trials.push(Trial::test(scenario.name, move || {
            let case = Case::new(scenario.name);
            (scenario.run)(&case);
            Ok(())
        }));
    }
    conclude(&arguments, trials)
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
fn check(lines: &BTreeSet<String>) -> Result<(), Failed> {
    let names: BTreeSet<String> = read("names.txt");
    let unknown: Vec<&String> = lines.iter().filter(|it| !names.contains(&it[2..])).collect();
    if !unknown.is_empty() {
        return Err(format!("not names of the conformance suite: {unknown:#?}").into());
    }
    let known = read("ledger.txt");
    let lost: Vec<&String> = known.difference(lines).collect();
    if !lost.is_empty() {
        return Err(
            format!("the ledger may only grow, but these have no scenario any more: {lost:#?}").into()
        );
    }
    let new: Vec<&String> = lines.difference(&known).collect();
    if std::env::var("NARU_LEDGER").is_ok_and(|it| it == "write") {
        let text: String = lines.iter().map(|it| format!("{it}\n")).collect();
        std::fs::write(path("ledger.txt"), text).unwrap();
    } else if !new.is_empty() {
        return Err(format!("write these down with NARU_LEDGER=write: {new:#?}").into());
    }
    Ok(())
}

fn read(file: &str) -> BTreeSet<String> {
    std::fs::read_to_string(path(file)).unwrap().lines().map(String::from).collect()
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}
