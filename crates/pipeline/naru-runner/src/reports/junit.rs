//! Test reports in JUnit's XML, as pytest, gotestsum, nextest, surefire, Gradle and node's test runner write them.
//! Nobody owns the format; what these programs agree on is read. Pure.
//!
//! The reader knows no document types: what an entity is said to stand for is never looked up, here or elsewhere,
//! and an entity that XML itself does not have makes the file unreadable.

use super::{Outcome, Test};
use quick_xml::Reader;
use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, Event};

/// More of one file is not read: a report of fifty thousand tests is smaller.
pub const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// More tests of one job are not kept; they travel in its log.
pub const TESTS_MAX: usize = 20_000;

/// Suites within suites, and what programs put into a test.
const DEPTH_MAX: usize = 64;

/// A name is for people to read; parameters of a test may be pages.
const NAME_BYTES_MAX: usize = 300;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it is no JUnit report: it begins with <{0}>")]
    Other(String),
    #[error("it is nested deeper than {DEPTH_MAX} levels")]
    Deep,
    #[error("it ends within an element")]
    Unfinished,
    #[error("at byte {at}: {why}")]
    Xml { at: u64, why: String },
}

/// Whether a file's first bytes look like a report; other XML has the same endings.
pub fn is_report(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let mut rest = text.trim_start_matches('\u{feff}').trim_start();
    loop {
        let end = match rest {
            it if it.starts_with("<?") => "?>",
            it if it.starts_with("<!--") => "-->",
            it => return ["<testsuites", "<testsuite"].iter().any(|tag| it.starts_with(tag)),
        };
        match rest.split_once(end) {
            Some((_, after)) => rest = after.trim_start(),
            None => return false,
        }
    }
}

/// The tests of a report.
pub fn read(text: &[u8]) -> Result<Vec<Test>, Error> {
    let mut reader = Reader::from_reader(text);
    let mut tests: Vec<Test> = Vec::new();
    let mut open: Option<Test> = None;
    let (mut depth, mut buffer) = (0_usize, Vec::new());
    loop {
        let at = reader.buffer_position();
        let wrong = |why: &dyn std::fmt::Display| Error::Xml { at, why: why.to_string() };
        buffer.clear();
        match reader.read_event_into(&mut buffer).map_err(|it| wrong(&it))? {
            Event::Start(tag) => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(Error::Deep);
                }
                begin(&tag, depth, &mut open, &wrong)?;
            }
            Event::Empty(tag) => {
                begin(&tag, depth + 1, &mut open, &wrong)?;
                if tag.local_name().as_ref() == b"testcase" {
                    tests.extend(open.take());
                }
            }
            Event::End(tag) => {
                depth = depth.saturating_sub(1);
                if tag.local_name().as_ref() == b"testcase" {
                    tests.extend(open.take());
                }
            }
            Event::Eof if depth > 0 => return Err(Error::Unfinished),
            Event::Eof => return Ok(tests),
            // Text, comments, and a DOCTYPE with whatever it says.
            _ => {}
        }
        if tests.len() >= TESTS_MAX {
            return Ok(tests);
        }
    }
}

fn begin(
    tag: &BytesStart<'_>,
    depth: usize,
    open: &mut Option<Test>,
    wrong: &dyn Fn(&dyn std::fmt::Display) -> Error,
) -> Result<(), Error> {
    let name = tag.local_name();
    if depth == 1 && !matches!(name.as_ref(), b"testsuites" | b"testsuite") {
        return Err(Error::Other(String::from_utf8_lossy(name.as_ref()).into_owned()));
    }
    match (name.as_ref(), open) {
        (b"testcase", open) => {
            let (mut name, mut class, mut seconds) = (String::new(), String::new(), None);
            for attribute in tag.attributes() {
                let attribute = attribute.map_err(|it| wrong(&it))?;
                let raw = String::from_utf8_lossy(&attribute.value);
                let value = unescape(&raw).map_err(|it| wrong(&it))?;
                match attribute.key.local_name().as_ref() {
                    b"name" => name = value.into_owned(),
                    b"classname" => class = value.into_owned(),
                    // Some write 1,234.5
                    b"time" => {
                        seconds = value.replace(',', "").parse::<f64>().ok().filter(|it| it.is_finite())
                    }
                    _ => {}
                }
            }
            *open = Some(Test {
                name: full_name(&class, &name),
                outcome: Outcome::Passed,
                seconds,
                retried: false,
            });
        }
        (b"failure" | b"error", Some(test)) => test.outcome = Outcome::Failed,
        (b"skipped" | b"disabled", Some(test)) if test.outcome != Outcome::Failed => {
            test.outcome = Outcome::Skipped;
        }
        // It failed and was run again: passed in the end, if nothing else says that it failed.
        (b"flakyFailure" | b"flakyError", Some(test)) => test.retried = true,
        _ => {}
    }
    Ok(())
}

/// `tests.test_a.test_b`; some programs put the class into the name already, or have none worth the name.
fn full_name(class: &str, name: &str) -> String {
    let full = match class {
        "" | "test" => name.to_owned(),
        _ if name.starts_with(class) => name.to_owned(),
        _ => format!("{class}.{name}"),
    };
    let line: String = full.chars().map(|it| if it.is_control() { ' ' } else { it }).collect();
    let end = line.floor_char_boundary(NAME_BYTES_MAX);
    line[..end].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let all = read(text.as_bytes()).unwrap();
        all.iter().map(|it| format!("{} {:?} {:?} {}", it.name, it.outcome, it.seconds, it.retried)).collect()
    }

    #[test]
    fn what_programs_agree_on_is_read() {
        let text = r#"<?xml version="1.0" encoding="utf-8"?>
<!-- by hand -->
<testsuites><testsuite name="pytest" errors="1"><properties><property name="a" value="b"/></properties>
<testcase classname="tests.test_a" name="test_b[&quot;x&quot;]" time="0.001" />
<testcase classname="tests.test_a" name="fails" time="1,000.5"><failure message="m">text &lt; more</failure></testcase>
<testcase classname="tests.test_a" name="breaks"><error/><system-out><![CDATA[<testcase name="no"/>]]></system-out></testcase>
<testcase classname="tests.test_a" name="later"><skipped type="x"/></testcase></testsuite>
<testsuite><testsuite><testcase name="again" time="2"><flakyFailure>once</flakyFailure></testcase></testsuite></testsuite>
</testsuites>"#;
        assert!(is_report(text.as_bytes()));
        assert_eq!(
            shown(text),
            [
                "tests.test_a.test_b[\"x\"] Passed Some(0.001) false",
                "tests.test_a.fails Failed Some(1000.5) false",
                "tests.test_a.breaks Failed None false",
                "tests.test_a.later Skipped None false",
                "again Passed Some(2.0) true",
            ]
        );
        assert_eq!(shown("<testsuite/>").len(), 0);
    }

    #[test]
    fn a_report_that_is_made_to_harm_is_refused_or_harmless() {
        let expands = r#"<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd"><!ENTITY b "&a;&a;">]>
<testsuite><testcase name="&b;"/></testsuite>"#;
        assert!(matches!(read(expands.as_bytes()), Err(Error::Xml { .. })));
        let in_text = expands.replace("name=\"&b;\"/>", "name=\"n\"><failure>&b;</failure></testcase>");
        assert_eq!(shown(&in_text), ["n Failed None false"]);
        assert!(matches!(read("<testsuite>".repeat(100).as_bytes()), Err(Error::Deep)));
        assert!(matches!(read(b"<project/>"), Err(Error::Other(_))));
        assert!(!is_report(b"<project xmlns=\"x\">") && !is_report(b"<?xml") && !is_report(b""));
        for broken in ["<testsuite><testcase", "<testsuite><testcase name=\"a\">", "<testsuite></other>"] {
            assert!(read(broken.as_bytes()).is_err(), "{broken}");
        }
        let long = format!("<testsuite><testcase name=\"{}\n\"/></testsuite>", "é".repeat(1000));
        assert!(read(long.as_bytes()).unwrap()[0].name.len() <= NAME_BYTES_MAX);
        let many = format!("<testsuite>{}</testsuite>", "<testcase name='a'/>".repeat(TESTS_MAX + 5));
        assert_eq!(read(many.as_bytes()).unwrap().len(), TESTS_MAX);
    }
}
