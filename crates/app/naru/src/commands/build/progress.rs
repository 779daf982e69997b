//! A build's events for people: every line as it comes, or on a terminal the steps under way at the bottom,
//! in the words that `docker build` uses.

use super::ProgressKind;
use crate::error::Result;
use naru_builder::Event;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

/// What a terminal surely shows of a line.
const COLUMNS: usize = 79;

pub struct Progress {
    /// `None` shows failures only.
    kind: Option<ProgressKind>,
    /// Steps under way, by number.
    open: BTreeMap<u32, Step>,
    /// Lines at the bottom of the terminal that are drawn again.
    drawn: usize,
}

struct Step {
    title: String,
    began: Instant,
    last_line: String,
}

impl Progress {
    pub fn new(kind: Option<ProgressKind>) -> Self {
        Self { kind, open: BTreeMap::new(), drawn: 0 }
    }

    pub fn show(&mut self, event: &Event) -> Result<()> {
        let text = match self.kind {
            Some(ProgressKind::Rawjson) => {
                println!("{}", serde_json::to_string(event)?);
                return Ok(());
            }
            Some(ProgressKind::Tty) => self.terminal(event),
            Some(_) => self.plain(event),
            None => match event {
                Event::Failed { report } => format!("{report}\n"),
                _ => String::new(),
            },
        };
        let mut err = std::io::stderr().lock();
        // Nobody listening is no reason to fail.
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
        Ok(())
    }

    fn begin(&mut self, number: u32, title: String) {
        self.open.insert(number, Step { title, began: Instant::now(), last_line: String::new() });
    }

    fn plain(&mut self, event: &Event) -> String {
        match event {
            Event::Step { number, total, stage, text } => {
                let title = format!("[{stage} {number}/{total}] {text}");
                let line = format!("#{number} {title}\n");
                self.begin(*number, title);
                line
            }
            Event::Log { number, line } => {
                let seconds = self.open.get(number).map_or(0.0, |it| it.began.elapsed().as_secs_f32());
                format!("#{number} {seconds:.3} {line}\n")
            }
            Event::Cached { number } => format!("#{number} CACHED\n"),
            Event::Finished { number, millis } => {
                format!("#{number} DONE {}.{}s\n", millis / 1000, millis % 1000 / 100)
            }
            Event::Finding { text } | Event::Note { text } => format!("{text}\n"),
            Event::Done(_) => format!("{event}\n"),
            Event::Failed { report } => format!("{report}\n"),
        }
    }

    fn terminal(&mut self, event: &Event) -> String {
        // Back over what was drawn below; what is said for good comes there first.
        let mut out = match self.drawn {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        };
        match event {
            Event::Step { number, total, stage, text } => {
                self.begin(*number, format!("[{stage} {number}/{total}] {text}"));
            }
            Event::Log { number, line } => {
                if let Some(step) = self.open.get_mut(number) {
                    step.last_line = line.clone();
                }
            }
            Event::Cached { number } => {
                if let Some(step) = self.open.remove(number) {
                    let _ = writeln!(out, "{}", cut(&format!(" => CACHED {}", step.title)));
                }
            }
            Event::Finished { number, millis } => {
                if let Some(step) = self.open.remove(number) {
                    let line = cut(&format!(" => {}", step.title));
                    let _ = writeln!(out, "{line}  {}.{}s", millis / 1000, millis % 1000 / 100);
                }
            }
            Event::Finding { text } | Event::Note { text } => {
                let _ = writeln!(out, "{text}");
            }
            Event::Done(_) => {
                self.open.clear();
                let _ = writeln!(out, "{event}");
            }
            Event::Failed { report } => {
                self.open.clear();
                let _ = writeln!(out, "{report}");
            }
        }
        self.drawn = 0;
        for step in self.open.values() {
            let _ = writeln!(out, "{}", cut(&format!(" -> {}", step.title)));
            self.drawn += 1;
            if !step.last_line.is_empty() {
                // What a program prints must not steer the terminal.
                let plain: String = step.last_line.chars().filter(|it| !it.is_control()).collect();
                let _ = writeln!(out, "{}", cut(&format!("    {plain}")));
                self.drawn += 1;
            }
        }
        out
    }
}

fn cut(line: &str) -> String {
    line.chars().take(COLUMNS - 8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_draws_open_steps_again_and_finished_ones_once() {
        let mut progress = Progress::new(Some(ProgressKind::Tty));
        let step = |number| Event::Step { number, total: 2, stage: "base".into(), text: "RUN x".into() };
        let first = progress.terminal(&step(1));
        assert_eq!(first, " -> [base 1/2] RUN x\n");
        let log = progress.terminal(&Event::Log { number: 1, line: "hello\x1b[2J".into() });
        assert_eq!(log, "\x1b[1A\x1b[J -> [base 1/2] RUN x\n    hello[2J\n");
        progress.terminal(&step(2));
        let done = progress.terminal(&Event::Finished { number: 1, millis: 1234 });
        assert_eq!(done, "\x1b[3A\x1b[J => [base 1/2] RUN x  1.2s\n -> [base 2/2] RUN x\n");
        assert!(progress.terminal(&Event::Cached { number: 2 }).ends_with(" => CACHED [base 2/2] RUN x\n"));
    }
}
