//! Where pods that were started before their job and jobs that want a pod find each other. The pods ask over
//! HTTP ([`crate::job::wait`]); whoever serves HTTP asks here.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A pod that exists is known to everybody by then.
const KNOWN_WITHIN: Duration = Duration::from_secs(300);

/// The waiting room. Everything in it is made again after a restart: pods ask again, jobs are offered again.
pub struct Waiting {
    room: Mutex<Room>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Room {
    /// Pods whose question is open.
    asking: HashSet<String>,
    /// Jobs' files by the pod that is to run them.
    offered: HashMap<String, String>,
    /// Pods that have got their job and must not be given another, since when.
    taken: HashMap<String, Instant>,
    /// Pods whose nodes were lost and whose jobs others have. As many as nodes were lost under jobs.
    fenced: HashSet<String>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { room: Mutex::default(), changed: watch::channel(0).0 }
    }
}

/// A question that is dropped, because its asker has gone, is open no more.
struct Question<'a> {
    waiting: &'a Waiting,
    pod: &'a str,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.waiting.room().asking.remove(self.pod);
        self.waiting.tell();
    }
}

impl Waiting {
    fn room(&self) -> std::sync::MutexGuard<'_, Room> {
        self.room.lock().expect("nothing panics under this lock")
    }

    fn tell(&self) {
        self.changed.send_modify(|it| *it += 1);
    }

    /// Waits for the job of a pod. `None`: it gets none any more, because its node was lost for a while.
    pub async fn next(&self, pod: &str) -> Option<String> {
        let mut changes = self.changed.subscribe();
        let question = Question { waiting: self, pod };
        self.room().asking.insert(pod.to_owned());
        self.tell();
        loop {
            if self.is_fenced(pod) {
                drop(question);
                return None;
            }
            // The lock must be free again before the question ends.
            let offered = self.room().offered.remove(pod);
            if let Some(file) = offered {
                drop(question);
                return Some(file);
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Gives a job to a pod, whether or not it asks already.
    pub(crate) fn offer(&self, pod: &str, file: String) {
        let mut room = self.room();
        room.taken.insert(pod.to_owned(), Instant::now());
        room.offered.insert(pod.to_owned(), file);
        drop(room);
        self.tell();
    }

    /// Gives a pod no job any more: what it had is another's.
    pub(crate) fn fence(&self, pod: &str) {
        let mut room = self.room();
        room.fenced.insert(pod.to_owned());
        room.taken.insert(pod.to_owned(), Instant::now());
        room.offered.remove(pod);
        drop(room);
        self.tell();
    }

    pub fn is_fenced(&self, pod: &str) -> bool {
        self.room().fenced.contains(pod)
    }

    /// Takes one of the pods that ask out of those that may be given a job.
    pub(crate) fn claim(&self, of: impl Fn(&str) -> bool) -> Option<String> {
        let mut room = self.room();
        let pod = room
            .asking
            .iter()
            .find(|it| !room.taken.contains_key(*it) && !room.fenced.contains(*it) && of(it))
            .cloned()?;
        room.taken.insert(pod.clone(), Instant::now());
        Some(pod)
    }

    /// Takes a pod out, so that no job is given to it; false if one was, or may be.
    pub(crate) fn retire(&self, pod: &str) -> bool {
        let mut room = self.room();
        let free = !room.taken.contains_key(pod);
        if free {
            room.taken.insert(pod.to_owned(), Instant::now());
        }
        free
    }

    /// Forgets pods that are gone. Whoever tells may not have heard yet of a pod that was made just now.
    pub(crate) fn keep(&self, exists: impl Fn(&str) -> bool) {
        let Room { taken, offered, .. } = &mut *self.room();
        taken.retain(|it, since| since.elapsed() < KNOWN_WITHIN || exists(it));
        offered.retain(|it, _| taken.contains_key(it));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_pod_gets_its_job_once_whoever_comes_first() {
        let waiting = Arc::new(Waiting::default());
        assert_eq!(waiting.claim(|_| true), None);
        waiting.offer("early", "job 1".into());
        waiting.keep(|_| false);
        assert_eq!(waiting.next("early").await.as_deref(), Some("job 1"));
        let asks = tokio::spawn({
            let waiting = waiting.clone();
            async move { waiting.next("late").await }
        });
        let claimed = loop {
            match waiting.claim(|_| true) {
                Some(it) => break it,
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!((claimed.as_str(), waiting.claim(|_| true)), ("late", None));
        assert!(!waiting.retire("late") && waiting.retire("third"));
        waiting.offer("late", "job 2".into());
        assert_eq!(asks.await.unwrap().as_deref(), Some("job 2"));
    }

    #[tokio::test]
    async fn a_pod_of_a_lost_node_gets_nothing_any_more() {
        let waiting = Arc::new(Waiting::default());
        waiting.offer("old", "job 1".into());
        waiting.fence("old");
        assert_eq!(waiting.next("old").await, None);
        assert!(waiting.is_fenced("old") && !waiting.is_fenced("new") && !waiting.retire("old"));
    }
}
