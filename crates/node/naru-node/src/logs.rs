//! Reading container logs back: the shim writes the files, this follows them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

/// What [`crate::Node::logs`] should return.
#[derive(Debug, Clone, Default)]
pub struct LogRequest {
    pub namespace: String,
    pub pod: String,
    /// Empty: whichever pod has the name.
    pub uid: String,
    /// Empty: the pod's only container.
    pub container: String,
    pub follow: bool,
    /// The container before the last restart.
    pub previous: bool,
    pub timestamps: bool,
    /// Whole records with time, stream and tag, as they are on the disk.
    pub records: bool,
    pub tail_lines: Option<u64>,
    pub since_seconds: Option<u64>,
    pub limit_bytes: Option<u64>,
}

/// How soon a new line is seen while following; also how often a quiet container costs a `read`.
const FOLLOW_PERIOD: Duration = Duration::from_millis(50);
/// Chunks on their way to a slow reader.
const CHUNKS_MAX: usize = 16;
const CHUNK_BYTES: usize = 32 * 1024;
/// The shim splits longer ones.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// Follows `path`; `running` tells whether the container may still write.
pub(crate) fn stream(
    path: PathBuf,
    request: LogRequest,
    running: impl Fn() -> bool + Send + 'static,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    tokio::spawn(async move {
        if let Err(error) = follow(&path, &request, running, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    receiver
}

async fn follow(
    path: &Path,
    request: &LogRequest,
    running: impl Fn() -> bool,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let since = request.since_seconds.map(|seconds| {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN)
    });
    let mut format = Format::new(request, since);
    if let Some(lines) = request.tail_lines {
        format.skip_lines = count_lines(path, since)?.saturating_sub(lines);
    }
    let mut files: VecDeque<File> = oldest_first(path)?;
    let mut current: Option<Reader> = None;
    loop {
        // Asked before reading: what was written before the end is then certainly seen.
        let may_grow = request.follow && running();
        let mut out = Vec::new();
        let mut moved = false;
        while out.len() < CHUNK_BYTES {
            let Some(reader) = current.as_mut() else {
                match files.pop_front() {
                    Some(file) => {
                        current = Some(Reader::new(file));
                        continue;
                    }
                    None => break,
                }
            };
            match reader.next_record()? {
                Some(record) => {
                    moved = true;
                    format.push(record, &mut out);
                    if format.is_full() {
                        break;
                    }
                }
                None if !files.is_empty() => current = None,
                None => break,
            }
        }
        if !out.is_empty() && sender.send(Ok(out.into())).await.is_err() {
            return Ok(());
        }
        if format.is_full() {
            return Ok(());
        }
        if moved {
            continue;
        }
        // Everything there is has been read. The file may have been turned over meanwhile.
        let newer = newer_than(path, current.as_ref())?;
        if !newer.is_empty() {
            files = newer;
            continue;
        }
        if !may_grow {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_PERIOD) => {}
            () = sender.closed() => return Ok(()),
        }
    }
}

/// The rotated files and the current one.
fn oldest_first(path: &Path) -> io::Result<VecDeque<File>> {
    let mut files = VecDeque::new();
    for number in (1..10).rev() {
        if let Ok(file) = File::open(numbered(path, number)) {
            files.push_back(file);
        }
    }
    match File::open(path) {
        Ok(file) => files.push_back(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(files)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(format!(".{number}"));
    name.into()
}

/// Files that were begun after the one being read.
fn newer_than(path: &Path, reader: Option<&Reader>) -> io::Result<VecDeque<File>> {
    let mut files = oldest_first(path)?;
    let Some(reader) = reader else { return Ok(files) };
    let own = reader.file.get_ref().metadata()?.ino();
    let mut at = None;
    for (index, file) in files.iter().enumerate() {
        if file.metadata()?.ino() == own {
            at = Some(index);
        }
    }
    match at {
        Some(index) => Ok(files.split_off(index + 1)),
        // Turned over so often that ours is gone: everything left is newer.
        None => Ok(files),
    }
}

/// Reads whole records; an unfinished one at the end is left for the next time.
struct Reader {
    file: BufReader<File>,
    line: Vec<u8>,
}

impl Reader {
    fn new(file: File) -> Self {
        Self { file: BufReader::with_capacity(16 * 1024, file), line: Vec::new() }
    }

    fn next_record(&mut self) -> io::Result<Option<&[u8]>> {
        if self.line.last() == Some(&b'\n') {
            self.line.clear();
        }
        let room = RECORD_BYTES_MAX - (self.line.len() as u64).min(RECORD_BYTES_MAX - 1);
        (&mut self.file).take(room).read_until(b'\n', &mut self.line)?;
        Ok((self.line.last() == Some(&b'\n')).then_some(self.line.as_slice()))
    }
}

/// The last lines of a log's newest file, whole lines within `bytes_max`. Blocking.
pub(crate) fn tail(path: &Path, lines_max: usize, bytes_max: usize) -> Vec<u8> {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(path) {
        // Records carry a time and a stream's name beside the text.
        const RECORD_OVERHEAD: i64 = 64;
        let wanted = bytes_max as i64 + RECORD_OVERHEAD * lines_max as i64;
        let _ = file.seek(SeekFrom::End(-wanted)).or_else(|_| file.rewind().map(|()| 0));
        let _ = file.read_to_end(&mut text);
    }
    let records: Vec<Vec<u8>> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|record| {
            let (_, tag, text) = parts(record)?;
            let end: &[u8] = if tag == b'F' { b"\n" } else { b"" };
            Some([text, end].concat())
        })
        .collect();
    let mut bytes: Vec<u8> = records[records.len().saturating_sub(lines_max)..].concat();
    let extra = bytes.len().saturating_sub(bytes_max);
    bytes.drain(..extra);
    bytes
}

struct Format {
    timestamps: bool,
    records: bool,
    since: Option<Timestamp>,
    skip_lines: u64,
    left: u64,
    in_line: bool,
}

/// Time, stream, tag, text.
fn parts(record: &[u8]) -> Option<(&[u8], u8, &[u8])> {
    let mut fields = record.splitn(4, |byte| *byte == b' ');
    let (time, _, tag, text) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    Some((time, *tag.first()?, text))
}

fn is_before(time: &[u8], since: Option<Timestamp>) -> bool {
    let parsed = || std::str::from_utf8(time).ok()?.parse::<Timestamp>().ok();
    since.is_some_and(|since| parsed().is_some_and(|time| time < since))
}

impl Format {
    fn new(request: &LogRequest, since: Option<Timestamp>) -> Self {
        Self {
            timestamps: request.timestamps,
            records: request.records,
            since,
            skip_lines: 0,
            left: request.limit_bytes.unwrap_or(u64::MAX),
            in_line: false,
        }
    }

    fn is_full(&self) -> bool {
        self.left == 0
    }

    fn push(&mut self, record: &[u8], out: &mut Vec<u8>) {
        let Some((time, tag, text)) = parts(record) else { return };
        if is_before(time, self.since) {
            return;
        }
        let ends = tag == b'F';
        if self.skip_lines > 0 {
            self.skip_lines -= u64::from(ends);
            return;
        }
        if self.records {
            out.extend_from_slice(record);
            return;
        }
        let from = out.len();
        if self.timestamps && !self.in_line {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        // A partial record ends with a line feed that is not the container's.
        out.extend_from_slice(if ends { text } else { text.strip_suffix(b"\n").unwrap_or(text) });
        self.in_line = !ends;
        let added = (out.len() - from) as u64;
        if added > self.left {
            out.truncate(from + self.left as usize);
        }
        self.left -= added.min(self.left);
    }
}

fn count_lines(path: &Path, since: Option<Timestamp>) -> io::Result<u64> {
    let mut lines = 0;
    for mut file in oldest_first(path)? {
        file.seek(SeekFrom::Start(0))?;
        let mut reader = Reader::new(file);
        while let Some(record) = reader.next_record()? {
            if let Some((time, tag, _)) = parts(record) {
                lines += u64::from(tag == b'F' && !is_before(time, since));
            }
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn write(path: &Path, lines: &[&str]) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        for line in lines {
            let tag = if line.ends_with('+') { "P" } else { "F" };
            writeln!(
                file,
                "2026-11-22T01:00:0{}Z stdout {tag} {}",
                line.len() % 10,
                line.trim_end_matches('+')
            )
            .unwrap();
        }
    }

    async fn read(path: &Path, request: LogRequest) -> String {
        let mut receiver = stream(path.to_owned(), request, || false);
        let mut all = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            all.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn old_files_come_first_and_options_are_honoured() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        write(&path, &["c", "dd+", "ee"]);
        write(&numbered(&path, 1), &["b"]);
        write(&numbered(&path, 2), &["a"]);
        let with = |change: fn(&mut LogRequest)| {
            let mut request = LogRequest::default();
            change(&mut request);
            read(&path, request)
        };
        assert_eq!(with(|_| {}).await, "a\nb\nc\nddee\n");
        assert_eq!(with(|it| it.tail_lines = Some(2)).await, "c\nddee\n");
        assert_eq!(with(|it| it.tail_lines = Some(0)).await, "");
        assert_eq!(with(|it| it.limit_bytes = Some(3)).await, "a\nb");
        assert!(is_before(b"2026-11-22T01:00:01Z", Some("2026-11-22T01:00:02Z".parse().unwrap())));
        assert!(with(|it| it.timestamps = true).await.ends_with("2026-11-22T01:00:03Z ddee\n"));
    }

    #[tokio::test]
    async fn following_survives_turning_over_and_ends_with_the_container() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        write(&path, &["one"]);
        let running = Arc::new(AtomicBool::new(true));
        let seen = running.clone();
        let request = LogRequest { follow: true, ..LogRequest::default() };
        let mut receiver = stream(path.clone(), request, move || seen.load(Ordering::SeqCst));
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "one\n");
        write(&path, &["two"]);
        std::fs::rename(&path, numbered(&path, 1)).unwrap();
        write(&path, &["three"]);
        let mut all = Vec::new();
        while all.len() < "two\nthree\n".len() {
            all.extend_from_slice(&receiver.recv().await.unwrap().unwrap());
        }
        assert_eq!(all, b"two\nthree\n");
        write(&path, &["last"]);
        running.store(false, Ordering::SeqCst);
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "last\n");
        assert!(receiver.recv().await.is_none());
    }
}
