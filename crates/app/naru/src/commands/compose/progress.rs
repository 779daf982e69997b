//! What `naru up` says while it waits: a line for each step that a service has taken.

use super::state::State;
use std::collections::BTreeMap;
use std::time::Instant;

/// A reason fits on a line; the whole of it is told if it comes to nothing.
const WORDS_MAX: usize = 90;

pub struct Progress {
    began: Instant,
    width: usize,
    said: BTreeMap<String, String>,
}

impl Progress {
    pub fn new<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        Self { began: Instant::now(), width: names.map(str::len).max().unwrap_or(0), said: BTreeMap::new() }
    }

    pub fn say(&mut self, name: &str, word: &str) {
        if self.said.get(name).is_some_and(|it| it == word) {
            return;
        }
        let time = self.began.elapsed().as_secs_f64();
        println!("  {name:<width$}  {word:<10} {time:6.1} s", width = self.width);
        self.said.insert(name.to_owned(), word.to_owned());
    }

    pub fn show(&mut self, name: &str, state: &State) {
        match &state.waits {
            Some(why) => {
                let line: String = why.chars().take(WORDS_MAX).take_while(|it| *it != '\n').collect();
                self.say(name, &format!("waits: {line}"));
            }
            None => self.say(name, state.word()),
        }
    }
}
