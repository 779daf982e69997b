//! What clients see of a build while it goes: vertexes with their times, logs and warnings. Everything is kept
//! until the build is forgotten, because a client may ask late.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::Stream;
use naru_builder::Event;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use super::grpc::Result;
use super::wire::{Progress, Timestamp, Vertex, VertexLog, VertexStatus, VertexWarning};

#[derive(Default)]
pub struct Board {
    told: Mutex<Told>,
    changed: Notify,
}

#[derive(Default)]
struct Told {
    messages: Vec<Progress>,
    over: bool,
}

impl Board {
    fn tell(&self, message: Progress) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).messages.push(message);
        self.changed.notify_waiters();
    }

    /// Nothing comes any more.
    pub fn end(&self) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        self.changed.notify_waiters();
    }

    /// Everything from the beginning, as it comes, until the end.
    pub fn follow(self: Arc<Self>) -> impl Stream<Item = Result<Progress>> + Send {
        futures::stream::unfold((self, 0), |(board, at)| async move {
            let message = board.message(at).await?;
            Some((Ok(message), (board, at + 1)))
        })
    }

    async fn message(&self, at: usize) -> Option<Progress> {
        loop {
            let changed = self.changed.notified();
            {
                let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.over || told.messages.len() > at {
                    return told.messages.get(at).cloned();
                }
            }
            changed.await;
        }
    }
}

/// Tells a build, vertex by vertex.
pub struct Teller {
    board: Arc<Board>,
    /// Makes the digests of this build's vertexes its own.
    build: String,
    open: BTreeMap<String, Vertex>,
}

impl Teller {
    pub fn new(board: Arc<Board>, build: &str) -> Self {
        Self { board, build: build.to_owned(), open: BTreeMap::new() }
    }

    fn digest(&self, key: &str) -> String {
        let hash = Sha256::digest(format!("{}/{key}", self.build));
        format!("sha256:{}", hash.iter().map(|it| format!("{it:02x}")).collect::<String>())
    }

    fn vertex(&self, vertex: Vertex) {
        self.board.tell(Progress { vertexes: vec![vertex], ..Progress::default() });
    }

    pub fn begin(&mut self, key: &str, name: impl Into<String>) {
        let started = Some(Timestamp::now());
        let vertex = Vertex { digest: self.digest(key), name: name.into(), started, ..Vertex::default() };
        self.open.insert(key.to_owned(), vertex.clone());
        self.vertex(vertex);
    }

    pub fn done(&mut self, key: &str) {
        if let Some(vertex) = self.open.remove(key) {
            self.vertex(Vertex { completed: Some(Timestamp::now()), ..vertex });
        }
    }

    fn cached(&mut self, key: &str) {
        if let Some(vertex) = self.open.remove(key) {
            let now = Some(Timestamp::now());
            self.vertex(Vertex { cached: true, completed: now, ..vertex });
        }
    }

    /// Whatever is open ends with this error.
    pub fn fail(&mut self, error: &str) {
        for vertex in std::mem::take(&mut self.open).into_values() {
            let now = Some(Timestamp::now());
            self.vertex(Vertex { completed: now, error: error.to_owned(), ..vertex });
        }
    }

    pub fn log(&self, key: &str, line: &str) {
        let text = format!("{line}\n").into_bytes();
        let log = VertexLog { vertex: self.digest(key), timestamp: Some(Timestamp::now()), stream: 1, text };
        self.board.tell(Progress { logs: vec![log], ..Progress::default() });
    }

    fn warn(&self, key: &str, text: &str) {
        let mut lines = text.lines();
        let short = lines.next().unwrap_or_default().as_bytes().to_vec();
        let detail = lines.map(|it| it.as_bytes().to_vec()).collect();
        let warning = VertexWarning { vertex: self.digest(key), level: 1, short, detail };
        self.board.tell(Progress { warnings: vec![warning], ..Progress::default() });
    }

    /// A part of a vertex, such as bytes that were sent.
    pub fn amount(&self, key: &str, id: &str, current: u64, done: bool) {
        let now = Some(Timestamp::now());
        let current = i64::try_from(current).unwrap_or(i64::MAX);
        let status = VertexStatus {
            id: id.to_owned(),
            vertex: self.digest(key),
            name: id.to_owned(),
            current,
            timestamp: now,
            started: self.open.get(key).and_then(|it| it.started),
            completed: now.filter(|_| done),
            ..VertexStatus::default()
        };
        self.board.tell(Progress { statuses: vec![status], ..Progress::default() });
    }

    /// An event of the builder; `definition` is the key of the vertex that warnings belong to.
    pub fn event(&mut self, event: &Event, definition: &str) {
        let step = |number: u32| format!("step {number}");
        match event {
            Event::Step { number, total, stage, text } => {
                self.begin(&step(*number), format!("[{stage} {number}/{total}] {text}"));
            }
            Event::Cached { number } => self.cached(&step(*number)),
            Event::Log { number, line } => self.log(&step(*number), line),
            Event::Finished { number, .. } => self.done(&step(*number)),
            Event::Finding { text } => self.warn(definition, text),
            Event::Note { text } => self.log(definition, text),
            Event::Done(_) => {
                for key in self.open.keys().cloned().collect::<Vec<_>>() {
                    self.done(&key);
                }
            }
            Event::Failed { report } => self.fail(report.lines().next().unwrap_or(report)),
        }
    }
}
