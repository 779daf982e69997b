//! How far a local run is, for whoever looks: on a terminal a tree with times under the jobs' output, else
//! plain lines with the job in front.

use crate::commands::dora::duration;
use naru_plan::JobState;
use naru_runner::local::Told;
use naru_runner::protocol::{Event, Outcome, for_people};
use std::io::{IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::time::Instant;

/// The tree is no taller, so that it fits the terminal with some output above it.
const ROWS_MAX: usize = 20;

pub struct Screen {
    live: bool,
    /// Rows that the tree takes on the terminal now.
    drawn: usize,
    /// Somebody has a shell: nothing is drawn.
    paused: bool,
    rows: Vec<Row>,
    /// Lines that wait to be printed with the next drawing.
    waiting: String,
}

struct Row {
    key: String,
    name: String,
    state: JobState,
    started: Option<Instant>,
    took: Option<f64>,
    step: Option<(String, Instant)>,
    count: usize,
    done: usize,
}

impl Screen {
    pub fn new() -> Self {
        let live = std::io::stdout().is_terminal();
        Self { live, drawn: 0, paused: false, rows: Vec::new(), waiting: String::new() }
    }

    pub fn begin(&mut self, workflow: &str, several: bool) {
        self.settle();
        self.rows.clear();
        if several {
            self.line(&format!("{workflow}:"));
        }
    }

    pub fn tell(&mut self, told: &Told<'_>) {
        match told {
            Told::Jobs(jobs) => {
                let mut rows: Vec<Row> = Vec::new();
                for job in *jobs {
                    let known = self.rows.iter().position(|it| it.key == job.key);
                    rows.push(match known {
                        Some(at) => self.rows.swap_remove(at),
                        None => Row {
                            key: job.key.clone(),
                            name: if job.name.is_empty() { job.key.clone() } else { job.name.clone() },
                            state: JobState::Pending,
                            started: None,
                            took: None,
                            step: None,
                            count: job.steps.len(),
                            done: 0,
                        },
                    });
                }
                self.rows = rows;
            }
            Told::Started(key) => {
                if let Some(row) = self.row(key) {
                    row.state = JobState::Running;
                    row.started = Some(Instant::now());
                }
            }
            Told::Line(key, line) => {
                if let Some(line) = for_people(line) {
                    self.of_job(key, &line);
                }
            }
            Told::Event(key, event) => self.event(key, event),
            Told::Ended { key, state, why } => {
                let Some(row) = self.row(key) else { return };
                row.state = *state;
                row.step = None;
                row.took = row.started.map(|it| it.elapsed().as_secs_f64());
                let took = row.took.map(|it| format!(" in {}", duration(it))).unwrap_or_default();
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                if !self.live || !why.is_empty() {
                    self.of_job(key, &format!("{}{took}{why}", word(*state)));
                }
            }
        }
        if !self.live {
            self.flush();
        }
    }

    fn event(&mut self, key: &str, event: &Event) {
        match event {
            Event::StepStarted { name, .. } => {
                if let Some(row) = self.row(key) {
                    row.step = Some((name.clone(), Instant::now()));
                }
                self.of_job(key, &format!("- {name}"));
            }
            Event::StepEnded { name, outcome, exit_code, .. } => {
                if let Some(row) = self.row(key) {
                    row.done += 1;
                    row.step = None;
                }
                if *outcome == Outcome::Failed {
                    let code = exit_code.map(|it| format!(" with {it}")).unwrap_or_default();
                    self.of_job(key, &format!("x {name} failed{code}"));
                }
            }
            Event::Paused { why, .. } => {
                self.of_job(key, &format!("a shell, {why}; leave it to go on"));
                self.settle();
                self.paused = true;
            }
            Event::Resumed { .. } => self.paused = false,
            Event::JobEnded { summary, .. } if !summary.is_empty() => {
                for line in summary.lines() {
                    self.of_job(key, &format!("| {line}"));
                }
            }
            // The summary says what of them is worth a look.
            Event::JobStarted { .. } | Event::Tests { .. } | Event::JobEnded { .. } => {}
        }
    }

    fn row(&mut self, key: &str) -> Option<&mut Row> {
        self.rows.iter_mut().find(|it| it.key == key)
    }

    fn of_job(&mut self, key: &str, line: &str) {
        self.line(&format!("[{key}] {line}"));
    }

    fn line(&mut self, line: &str) {
        self.waiting.push_str(line);
        self.waiting.push('\n');
        // A job that says much is printed as it speaks, not at the next tick.
        if self.waiting.len() > 64 * 1024 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.clear();
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(std::mem::take(&mut self.waiting).as_bytes());
        let _ = out.flush();
    }

    /// Takes the tree off the terminal.
    fn clear(&mut self) {
        if self.drawn > 0 {
            print!("\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }

    /// What waits is printed; no tree is left below it.
    fn settle(&mut self) {
        self.flush();
    }

    pub fn draw(&mut self) {
        if self.paused || !self.live {
            return;
        }
        self.flush();
        let size = naru_runtime::terminal_size(std::io::stdout().as_raw_fd());
        let (columns, height) =
            size.map_or((80, 24), |(columns, rows)| (usize::from(columns), usize::from(rows)));
        let most = ROWS_MAX.min(height / 2).max(1);
        let mut text = String::new();
        let running = |it: &&Row| it.state == JobState::Running;
        // If not all fit, those that run are worth the place.
        let mut shown: Vec<&Row> = self.rows.iter().collect();
        if shown.len() > most {
            shown = self
                .rows
                .iter()
                .filter(running)
                .chain(self.rows.iter().filter(|it| !running(it)))
                .take(most)
                .collect();
        }
        for row in &shown {
            let line: String = row.render().chars().take(columns.saturating_sub(1)).collect();
            text.push_str(&format!("{}{line}\x1b[0m\n", colour(row.state)));
        }
        self.drawn = shown.len();
        print!("{text}");
        let _ = std::io::stdout().flush();
    }

    /// The last word: the tree as it ended.
    pub fn finish(mut self) {
        self.flush();
        if self.live {
            for row in &self.rows {
                println!("{}{}\x1b[0m", colour(row.state), row.render());
            }
        }
    }
}

impl Row {
    fn render(&self) -> String {
        let sign = match self.state {
            JobState::Pending => '.',
            JobState::Running => '>',
            JobState::Succeeded => '+',
            JobState::Skipped => '-',
            JobState::Failed | JobState::Cancelled | JobState::Interrupted => 'x',
        };
        let time = self.took.or(self.started.map(|it| it.elapsed().as_secs_f64()));
        let time = time.map(duration).unwrap_or_default();
        let step = match &self.step {
            Some((name, since)) => {
                format!(
                    "  {}/{} {name} {}",
                    self.done + 1,
                    self.count.max(self.done + 1),
                    duration(since.elapsed().as_secs_f64())
                )
            }
            None => format!("  {}", word(self.state)),
        };
        format!("{sign} {:<28} {time:>8}{step}", self.name)
    }
}

fn word(state: JobState) -> &'static str {
    match state {
        JobState::Pending => "waits",
        JobState::Running => "runs",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Skipped => "skipped",
        JobState::Cancelled => "cancelled",
        JobState::Interrupted => "interrupted",
    }
}

fn colour(state: JobState) -> &'static str {
    match state {
        JobState::Succeeded => "\x1b[32m",
        JobState::Failed | JobState::Cancelled | JobState::Interrupted => "\x1b[31m",
        JobState::Running => "\x1b[36m",
        JobState::Pending | JobState::Skipped => "\x1b[2m",
    }
}
