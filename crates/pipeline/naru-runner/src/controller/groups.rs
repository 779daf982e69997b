//! Concurrency groups: at most one member of a group runs, at most one waits; a newcomer takes the place of
//! the one that waits, and, if it says so, of the one that runs.
//!
//! Who holds what is written into each run's status before it acts; this table is made of them at the start.
//! One process drives all runs of a cluster, so a lock in memory decides who comes first.

use std::collections::HashMap;
use std::sync::Mutex;
use tokio::sync::watch;

/// Who asks: a run's name, and the workflow or job in it.
pub type Member = (String, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may run.
    Holds,
    /// Another one runs.
    Waits,
    /// It is to end: a newer member took its place.
    Displaced,
}

#[derive(Default)]
struct Group {
    holder: Option<Member>,
    holder_displaced: bool,
    waiting: Option<Member>,
    /// Those that lost their place while they waited.
    displaced: Vec<Member>,
}

pub struct Groups {
    /// By repository and group, the latter in lower case.
    groups: Mutex<HashMap<(String, String), Group>>,
    changed: watch::Sender<u64>,
}

impl Default for Groups {
    fn default() -> Self {
        Self { groups: Mutex::default(), changed: watch::channel(0).0 }
    }
}

fn key(repository: &str, group: &str) -> (String, String) {
    (repository.to_owned(), group.to_lowercase())
}

impl Groups {
    /// Tells of every change of anybody's standing.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes over what an earlier life of this process had decided.
    pub fn restore(&self, repository: &str, group: &str, member: Member, holds: bool) {
        let mut groups = self.groups.lock().expect("nothing panics under this lock");
        let group = groups.entry(key(repository, group)).or_default();
        if holds {
            group.holder = Some(member);
        } else {
            group.waiting = Some(member);
        }
    }

    /// Asks for a place, or how one stands; asking again changes nothing.
    pub fn ask(&self, repository: &str, group: &str, member: &Member, cancel_in_progress: bool) -> Standing {
        let mut groups = self.groups.lock().expect("nothing panics under this lock");
        let group = groups.entry(key(repository, group)).or_default();
        if group.holder.as_ref() == Some(member) {
            return if group.holder_displaced { Standing::Displaced } else { Standing::Holds };
        }
        if group.displaced.contains(member) {
            return Standing::Displaced;
        }
        if group.waiting.as_ref() == Some(member) {
            return Standing::Waits;
        }
        let standing = if group.holder.is_none() {
            group.holder = Some(member.clone());
            Standing::Holds
        } else {
            group.displaced.extend(group.waiting.replace(member.clone()));
            group.holder_displaced |= cancel_in_progress;
            Standing::Waits
        };
        drop(groups);
        self.changed.send_modify(|it| *it += 1);
        standing
    }

    /// Gives up a place, held or waited for. The one that waits gets it.
    pub fn leave(&self, repository: &str, group: &str, member: &Member) {
        let mut groups = self.groups.lock().expect("nothing panics under this lock");
        let key = key(repository, group);
        let Some(group) = groups.get_mut(&key) else { return };
        group.displaced.retain(|it| it != member);
        if group.waiting.as_ref() == Some(member) {
            group.waiting = None;
        }
        if group.holder.as_ref() == Some(member) {
            group.holder = group.waiting.take();
            group.holder_displaced = false;
        }
        if group.holder.is_none() && group.displaced.is_empty() {
            groups.remove(&key);
        }
        drop(groups);
        self.changed.send_modify(|it| *it += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        (name.to_owned(), "ci.yml".to_owned())
    }

    #[test]
    fn one_runs_one_waits_and_the_newest_takes_the_waiting_place() {
        let groups = Groups::default();
        let ask = |name: &str, cancel| groups.ask("shop", "Deploy", &member(name), cancel);
        assert_eq!(ask("a", false), Standing::Holds);
        assert_eq!(ask("b", false), Standing::Waits);
        assert_eq!(ask("c", false), Standing::Waits);
        assert_eq!((ask("a", false), ask("b", false)), (Standing::Holds, Standing::Displaced));
        groups.leave("shop", "deploy", &member("a"));
        assert_eq!(ask("c", false), Standing::Holds);
        groups.leave("shop", "deploy", &member("b"));
        groups.leave("shop", "deploy", &member("c"));
        assert_eq!(ask("d", false), Standing::Holds);
    }

    #[test]
    fn cancel_in_progress_ends_the_one_that_runs() {
        let groups = Groups::default();
        groups.restore("shop", "g", member("a"), true);
        assert_eq!(groups.ask("shop", "g", &member("b"), true), Standing::Waits);
        assert_eq!(groups.ask("shop", "g", &member("a"), true), Standing::Displaced);
        assert_eq!(groups.ask("other", "g", &member("c"), true), Standing::Holds);
        groups.leave("shop", "g", &member("a"));
        assert_eq!(groups.ask("shop", "g", &member("b"), true), Standing::Holds);
    }
}
