//! The pods that wait for a node: those to look at now, by priority and age, and those that fitted nowhere.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

/// Pause after the first vain attempt; it doubles with every further one.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Waiting {
    priority: i64,
    /// In the order of arrival.
    number: u64,
    attempts: u32,
    tried: Option<Instant>,
    /// Its fate depends on other pods.
    sociable: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Ready,
    /// Something changed, but it was tried a moment ago.
    Pausing(Instant),
    /// Nothing has changed since it was tried.
    Stuck,
}

#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    ready: BTreeSet<(Reverse<i64>, u64, String)>,
    pausing: BTreeSet<(Instant, String)>,
    last: u64,
}

impl Queue {
    /// A pod that is new or has changed.
    pub fn push(&mut self, key: &str, priority: i64, sociable: bool) {
        self.remove(key);
        self.last += 1;
        let waiting =
            Waiting { priority, number: self.last, attempts: 0, tried: None, sociable, state: State::Ready };
        self.ready.insert((Reverse(priority), self.last, key.to_string()));
        self.pods.insert(key.to_string(), waiting);
    }

    /// The next to look at. It stays known until `remove`.
    pub fn pop(&mut self) -> Option<String> {
        let (_, _, key) = self.ready.pop_first()?;
        if let Some(it) = self.pods.get_mut(&key) {
            it.state = State::Stuck;
        }
        Some(key)
    }

    /// It fitted nowhere.
    pub fn put_back(&mut self, key: &str, now: Instant) {
        if let Some(it) = self.pods.get_mut(key) {
            it.attempts += 1;
            it.tried = Some(now);
        } else {
            self.push(key, 0, true);
            if let Some(it) = self.pods.get_mut(key) {
                it.attempts = 1;
            }
        }
    }

    pub fn remove(&mut self, key: &str) {
        if let Some(it) = self.pods.remove(key) {
            match it.state {
                State::Ready => drop(self.ready.remove(&(Reverse(it.priority), it.number, key.to_string()))),
                State::Pausing(until) => drop(self.pausing.remove(&(until, key.to_string()))),
                State::Stuck => {}
            }
        }
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn next_at(&self) -> Option<Instant> {
        self.pausing.first().map(|it| it.0)
    }

    /// Something has changed that may help anybody.
    pub fn wake_all(&mut self) {
        self.wake(|_| true);
    }

    /// Something has changed that may help pods that look at other pods.
    pub fn wake_sociable(&mut self) {
        self.wake(|it| it.sociable);
    }

    fn wake(&mut self, concerned: impl Fn(&Waiting) -> bool) {
        if self.pods.len() == self.ready.len() {
            return;
        }
        for (key, it) in self.pods.iter_mut().filter(|(_, it)| it.state == State::Stuck && concerned(it)) {
            let pause = PAUSE_FIRST * 2u32.saturating_pow(it.attempts.saturating_sub(1).min(10));
            let until = it.tried.map(|at| at + pause.min(PAUSE_MAX));
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => {
                    it.state = State::Pausing(until);
                    self.pausing.insert((until, key.clone()));
                }
                None => {
                    it.state = State::Ready;
                    self.ready.insert((Reverse(it.priority), it.number, key.clone()));
                }
            }
        }
    }

    pub fn wake_due(&mut self, now: Instant) {
        while let Some((until, key)) = self.pausing.first().cloned().filter(|it| it.0 <= now) {
            self.pausing.remove(&(until, key.clone()));
            if let Some(it) = self.pods.get_mut(&key) {
                it.state = State::Ready;
                self.ready.insert((Reverse(it.priority), it.number, key));
            }
        }
    }
}
