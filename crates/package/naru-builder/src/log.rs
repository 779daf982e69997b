//! The log of a build, kept beside the store: lines for people (`<image>.log`) and the same as events
//! (`<image>.events`, a JSON object per line), which clients follow while they are written.

use crate::outcome::Event;
use futures::Stream;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

const LOG_BYTES_MAX: usize = 16 << 20; // per image; what is beyond is dropped and said so
const LOGS_KEPT: usize = 1_000; // files, two per build; the oldest go
/// A follower looks again after this long even if nobody woke it.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Where the build log of an image is written, line by line.
pub fn log_path(log_dir: &Path, image: &str) -> PathBuf {
    file(log_dir, image, "log")
}

fn file(dir: &Path, image: &str, kind: &str) -> PathBuf {
    // Names of objects are DNS names and hold no slash; anything else would not have been stored.
    dir.join(format!("{}.{kind}", image.replace('/', "_")))
}

/// All logs; cheap to clone. Writers and followers of one process share it.
#[derive(Debug, Clone)]
pub struct BuildLogs {
    dir: PathBuf,
    changed: Arc<Notify>,
}

impl BuildLogs {
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, changed: Arc::new(Notify::new()) })
    }

    /// Starts the log of an image over.
    pub(crate) fn begin(&self, image: &str) -> BuildLog {
        remove_oldest(&self.dir);
        let create = |kind| {
            let path = file(&self.dir, image, kind);
            match File::create(&path) {
                Ok(it) => Some(BufWriter::new(it)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a build log is not kept");
                    None
                }
            }
        };
        let files = LogFiles { text: create("log"), events: create("events"), bytes: 0 };
        BuildLog { files: Arc::new(Mutex::new(files)), changed: Arc::clone(&self.changed) }
    }

    /// The events of an image's build as lines of JSON, from the first, as they come, until the last. Waits
    /// for a build that has not begun. Whoever stops listening drops the stream.
    pub fn follow(&self, image: &str) -> impl Stream<Item = String> + Send + use<> {
        let path = file(&self.dir, image, "events");
        let changed = Arc::clone(&self.changed);
        let state = Follow { path, changed, file: None, line: String::new(), is_over: false };
        futures::stream::unfold(state, |mut state| async move { Some((state.next().await?, state)) })
    }
}

struct Follow {
    path: PathBuf,
    changed: Arc<Notify>,
    file: Option<BufReader<File>>,
    /// What of a line is there so far.
    line: String,
    is_over: bool,
}

impl Follow {
    async fn next(&mut self) -> Option<String> {
        if self.is_over {
            return None;
        }
        loop {
            // Asked for before looking, so that nothing written in between is missed.
            let changed = Arc::clone(&self.changed);
            let woken = changed.notified();
            if self.file.is_none() {
                self.file = File::open(&self.path).ok().map(BufReader::new);
            }
            if let Some(file) = &mut self.file {
                // Small reads of a local file that was just written: not worth a thread.
                while file.read_line(&mut self.line).ok()? > 0 {
                    if self.line.ends_with('\n') {
                        let line = std::mem::take(&mut self.line);
                        self.is_over =
                            serde_json::from_str::<Event>(&line).is_ok_and(|event| event.is_last());
                        return Some(line);
                    }
                }
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, woken).await;
        }
    }
}

/// The log of one build. That it cannot be written is no reason to fail a build.
#[derive(Clone)]
pub(crate) struct BuildLog {
    files: Arc<Mutex<LogFiles>>,
    changed: Arc<Notify>,
}

struct LogFiles {
    text: Option<BufWriter<File>>,
    events: Option<BufWriter<File>>,
    bytes: usize,
}

impl BuildLog {
    pub(crate) fn event(&self, event: &Event) {
        let mut log = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let text = event.to_string();
        let is_first_too_many = log.bytes <= LOG_BYTES_MAX;
        log.bytes += text.len() + 1;
        let cut = Event::Note { text: "(the log is longer than 16 MiB; the rest is dropped)".into() };
        let event = match log.bytes > LOG_BYTES_MAX && !event.is_last() {
            true if is_first_too_many => &cut,
            true => return,
            false => event,
        };
        // Flushed per line: somebody may be reading along.
        if let Some(file) = &mut log.text {
            let _ = writeln!(file, "{event}").and_then(|()| file.flush());
        }
        if let Some(file) = &mut log.events {
            let line = serde_json::to_string(event).expect("an event is plain data");
            let _ = writeln!(file, "{line}").and_then(|()| file.flush());
        }
        self.changed.notify_waiters();
    }
}

fn remove_oldest(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut logs: Vec<_> =
        entries.flatten().filter_map(|it| Some((it.metadata().ok()?.modified().ok()?, it.path()))).collect();
    logs.sort();
    let too_many = logs.len().saturating_sub(LOGS_KEPT);
    for (_, path) in logs.drain(..too_many) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[tokio::test]
    async fn a_follower_sees_every_event_until_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let logs = BuildLogs::open(dir.path().join("logs")).unwrap();
        let heard = tokio::spawn(logs.follow("web").collect::<Vec<String>>());
        let log = logs.begin("web");
        log.event(&Event::Note { text: "one".into() });
        tokio::task::yield_now().await;
        log.event(&Event::Log { number: 1, line: "x".repeat(100_000) });
        log.event(&Event::Failed { report: "no".into() });
        let heard = heard.await.unwrap();
        assert_eq!(heard.len(), 3);
        assert!(heard[0].contains("one") && heard[2].contains("failed"), "{heard:?}");
        // Whoever comes later sees the same.
        assert_eq!(logs.follow("web").collect::<Vec<_>>().await, heard);
    }
}
