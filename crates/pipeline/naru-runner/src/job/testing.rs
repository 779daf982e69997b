//! The test reports that a job has left behind: into its log, where `naru ci tests` finds them, and its summary.

use super::JobRun;
use crate::protocol::Event;
use crate::reports::{Test, junit, places, summary};
use std::path::Path;

/// Tests in one line of the log.
const TESTS_PER_LINE: usize = 200;

/// Room in the summary, beside what steps have written.
const SUMMARY_BYTES_MAX: usize = 64 * 1024;

impl JobRun<'_> {
    pub(super) fn report_tests(&mut self) {
        // Nothing was made that nobody has begun to make.
        if self.stop.as_ref().is_some_and(|it| it.cancelled) {
            return;
        }
        let found = places::find(&self.places.workspace);
        let left_out = found.len().saturating_sub(places::FILES_MAX);
        let mut files: Vec<(String, Vec<Test>)> = Vec::new();
        let mut room = junit::TESTS_MAX;
        for path in found.into_iter().take(places::FILES_MAX) {
            let name =
                path.strip_prefix(&self.places.workspace).unwrap_or(Path::new("")).display().to_string();
            let read = std::fs::read(&path).map_err(|it| it.to_string());
            match read.and_then(|it| junit::read(&it).map_err(|it| it.to_string())) {
                Ok(mut tests) => {
                    if tests.len() > room {
                        tests.truncate(room);
                        self.log.remark(
                            "warning",
                            &format!("only the first {} tests are kept", junit::TESTS_MAX),
                        );
                    }
                    room -= tests.len();
                    files.push((name, tests));
                }
                Err(why) => {
                    self.log.remark("warning", &format!("the test report {name} cannot be read: {why}"))
                }
            }
            if room == 0 {
                break;
            }
        }
        if left_out > 0 {
            self.log.remark(
                "warning",
                &format!("{left_out} test reports more than {} are left out", places::FILES_MAX),
            );
        }
        files.retain(|(_, tests)| !tests.is_empty());
        if files.is_empty() {
            return;
        }
        for (file, tests) in &mut files {
            *file = self.log.masked(file).into_owned();
            for test in tests.iter_mut() {
                test.name = self.log.masked(&test.name).into_owned();
            }
            for tests in tests.chunks(TESTS_PER_LINE) {
                self.log.tell(&Event::Tests { file: file.clone(), tests: tests.to_vec() });
            }
        }
        let text = summary(&files);
        if !self.summary.is_empty() && !self.summary.ends_with('\n') {
            self.summary.push('\n');
        }
        self.summary.push_str(&text[..text.floor_char_boundary(SUMMARY_BYTES_MAX)]);
    }
}
