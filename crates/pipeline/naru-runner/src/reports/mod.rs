//! Tests as their programs tell of them: line by line, as `cargo test`, `go test -v`, `pytest -v` and whatever
//! speaks TAP do, or in JUnit's files ([`junit`]). What is here is pure.

pub mod junit;
pub mod places;
pub mod zip;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A test that takes longer is named as slow.
pub const SLOW_SECONDS: f64 = 1.0;

/// So many names are in a summary, each of its kind.
const NAMES_SHOWN: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Passed,
    Failed,
    Skipped,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Test {
    pub name: String,
    pub outcome: Outcome,
    /// Where the program says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// It failed first and passed when its program ran it again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retried: bool,
}

pub fn count(tests: &[Test], outcome: Outcome) -> usize {
    tests.iter().filter(|it| it.outcome == outcome).count()
}

/// What a job's summary says of its reports: a table of files, and the tests that somebody should look at.
pub fn summary(files: &[(String, Vec<Test>)]) -> String {
    let mut text =
        "### Tests\n\n| report | passed | failed | skipped | seconds |\n| --- | --- | --- | --- | --- |\n"
            .to_owned();
    for (file, tests) in files {
        let of = |outcome| count(tests, outcome);
        let seconds: f64 = tests.iter().filter_map(|it| it.seconds).sum();
        let (passed, failed, skipped) = (of(Outcome::Passed), of(Outcome::Failed), of(Outcome::Skipped));
        let _ = writeln!(text, "| {} | {passed} | {failed} | {skipped} | {seconds:.2} |", cell(file));
    }
    let all: Vec<&Test> = files.iter().flat_map(|(_, tests)| tests).collect();
    let mut name = |what: &str, names: Vec<String>| {
        if names.is_empty() {
            return;
        }
        let _ = writeln!(text, "\n{what}\n");
        for it in names.iter().take(NAMES_SHOWN) {
            let _ = writeln!(text, "- {it}");
        }
        if names.len() > NAMES_SHOWN {
            let _ = writeln!(text, "- and {} more", names.len() - NAMES_SHOWN);
        }
    };
    let failed = all.iter().filter(|it| it.outcome == Outcome::Failed);
    name("**Failed**", failed.map(|it| cell(&it.name)).collect());
    name(
        "**Passed only when run again**",
        all.iter().filter(|it| it.retried).map(|it| cell(&it.name)).collect(),
    );
    let mut slow: Vec<(f64, &str)> =
        all.iter().filter_map(|it| Some((it.seconds?, it.name.as_str()))).collect();
    slow.retain(|(seconds, _)| *seconds >= SLOW_SECONDS);
    slow.sort_by(|a, b| b.0.total_cmp(&a.0));
    name("**Slow**", slow.iter().map(|(seconds, it)| format!("{} ({seconds:.1} s)", cell(it))).collect());
    text
}

/// A name as code in Markdown: whatever is in it, it stays one line of one cell.
fn cell(text: &str) -> String {
    format!("`{}`", text.replace(['`', '\n', '\r'], "'").replace('|', "\\|"))
}

/// The test that a line of a job's log tells of, if it does.
pub fn test_of(line: &str) -> Option<Test> {
    let line = line.trim_end();
    cargo(line).or_else(|| go(line)).or_else(|| pytest(line)).or_else(|| tap(line))
}

fn test(name: &str, outcome: Outcome) -> Test {
    Test { name: name.to_owned(), outcome, seconds: None, retried: false }
}

/// `test a::b ... ok`, `test a ... FAILED`, `test a ... ignored, why`
fn cargo(line: &str) -> Option<Test> {
    let (name, end) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let word = end.split([',', ' ']).next()?;
    let outcome = match word {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        "ignored" => Outcome::Skipped,
        _ => return None,
    };
    Some(test(name.trim_end_matches(" - should panic"), outcome))
}

/// `--- PASS: TestName (0.01s)`, also deeper in
fn go(line: &str) -> Option<Test> {
    let (word, rest) = line.trim_start().strip_prefix("--- ")?.split_once(": ")?;
    let outcome = match word {
        "PASS" => Outcome::Passed,
        "FAIL" => Outcome::Failed,
        "SKIP" => Outcome::Skipped,
        _ => return None,
    };
    let (name, seconds) = rest.rsplit_once(" (")?;
    let seconds = seconds.strip_suffix("s)")?.parse().ok()?;
    Some(Test { seconds: Some(seconds), ..test(name, outcome) })
}

/// `tests/test_a.py::test_b PASSED   [ 50%]`
fn pytest(line: &str) -> Option<Test> {
    let (name, rest) = line.split_once(' ')?;
    if !name.contains("::") || !name.contains(".py") {
        return None;
    }
    let outcome = match rest.split_whitespace().next()? {
        "PASSED" | "XPASS" => Outcome::Passed,
        "FAILED" | "ERROR" => Outcome::Failed,
        "SKIPPED" | "XFAIL" => Outcome::Skipped,
        _ => return None,
    };
    Some(test(name, outcome))
}

/// `ok 1 - name`, `not ok 2 - name # time=3ms`, `ok 3 - name # SKIP why`; see testanything.org
fn tap(line: &str) -> Option<Test> {
    let (failed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (true, rest),
        None => (false, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ')?;
    number.parse::<u32>().ok()?;
    let (name, directive) = rest.split_once(" # ").unwrap_or((rest, ""));
    let name = name.trim_start_matches("- ").trim();
    let word = directive.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    let outcome = match word.as_str() {
        "SKIP" | "TODO" => Outcome::Skipped,
        _ if failed => Outcome::Failed,
        _ => Outcome::Passed,
    };
    let seconds = directive.strip_prefix("time=").and_then(|it| it.strip_suffix("ms")?.parse::<f64>().ok());
    (!name.is_empty()).then(|| Test { seconds: seconds.map(|it| it / 1000.0), ..test(name, outcome) })
}

/// Tests that passed and failed with the same code. `runs` are those of one commit.
pub fn flaky<'a>(runs: impl Iterator<Item = &'a Test>) -> Vec<String> {
    let mut seen: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    for it in runs {
        let (passed, failed) = seen.entry(&it.name).or_default();
        *passed |= it.outcome == Outcome::Passed;
        *failed |= it.outcome == Outcome::Failed || it.retried;
    }
    seen.into_iter()
        .filter(|(_, (passed, failed))| *passed && *failed)
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_read_as_their_programs_print_them() {
        let at = |line: &str| test_of(line).map(|it| (it.name, it.outcome, it.seconds));
        let cases = [
            ("test a::b ... ok", "a::b", Outcome::Passed, None),
            ("test a::b - should panic ... FAILED", "a::b", Outcome::Failed, None),
            ("test a ... ignored, slow", "a", Outcome::Skipped, None),
            ("--- PASS: TestSum (0.02s)", "TestSum", Outcome::Passed, Some(0.02)),
            ("    --- FAIL: TestSum/by_zero (1.50s)", "TestSum/by_zero", Outcome::Failed, Some(1.5)),
            (
                "tests/test_a.py::test_b[1-2] PASSED      [ 50%]",
                "tests/test_a.py::test_b[1-2]",
                Outcome::Passed,
                None,
            ),
            (
                "tests/test_a.py::T::test_c SKIPPED (why)",
                "tests/test_a.py::T::test_c",
                Outcome::Skipped,
                None,
            ),
            ("ok 1 - adds # time=3ms", "adds", Outcome::Passed, Some(0.003)),
            ("not ok 2 - divides", "divides", Outcome::Failed, None),
            ("not ok 3 - later # TODO not yet", "later", Outcome::Skipped, None),
        ];
        for (line, name, outcome, seconds) in cases {
            assert_eq!(at(line), Some((name.to_owned(), outcome, seconds)), "{line}");
        }
        for line in
            ["ok then", "test result: ok. 3 passed", "tests are fun ... ok", "--- a/file", "not ok", "ok 1 "]
        {
            assert_eq!(at(line), None, "{line}");
        }
    }

    #[test]
    fn a_summary_names_what_somebody_should_look_at() {
        let mut all =
            ["ok 1 - a", "not ok 2 - b|c`", "ok 3 - d # time=2500ms"].map(|it| test_of(it).unwrap()).to_vec();
        all[0].retried = true;
        let text = summary(&[("junit.xml".into(), all)]);
        for line in [
            "| `junit.xml` | 2 | 1 | 0 | 2.50 |\n",
            "**Failed**\n\n- `b\\|c'`\n",
            "**Passed only when run again**\n\n- `a`\n",
            "**Slow**\n\n- `d` (2.5 s)\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_test_that_does_both_with_the_same_code_is_flaky() {
        let all = ["ok 1 - a", "not ok 2 - b", "ok 1 - b", "not ok 1 - c"].map(|it| test_of(it).unwrap());
        assert_eq!(flaky(all.iter()), ["b"]);
    }
}
