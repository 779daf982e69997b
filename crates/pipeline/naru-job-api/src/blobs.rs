//! Large things on the disk, uploaded in pieces. A blob is a directory of the pieces as they came; putting
//! it together is writing down their order, so that ten gigabytes are written once and never copied.
//!
//! ```text
//! <id>/p-<name>     a piece that has arrived whole
//!      limit        how many bytes it may have, if that is limited
//!      order.json   which pieces, in which order: the upload is complete, and may still be replaced
//!      sealed.json  the same, and it never changes again
//! ```
//!
//! Only sealed blobs are read. A directory without a record that names it is removed at the next start.

use crate::problem::{Kind, Problem, Result, problem};
use crate::records::{sync_dir, write_durably};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

/// Azure's own limits, which its clients keep to: bytes of one piece, and pieces of one blob.
const PIECE_BYTES_MAX: u64 = 4000 << 20;
pub const PIECES_MAX: usize = 50_000;

/// An upload ends when the disk has no more than this left: the objects' store must go on writing.
const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// The room on the disk is looked at once in so many bytes.
const LOOK_EVERY_BYTES: u64 = 32 << 20;

/// What is read from the disk at once on the way out: large enough that system calls do not count.
const READ_BYTES: usize = 256 << 10;

/// The file of a blob that holds its limit.
const LIMIT: &str = "limit";

#[derive(Clone)]
pub struct Blobs {
    root: PathBuf,
    /// Held while a piece takes its place and while a blob is sealed, so that none slips in afterwards.
    placing: Arc<Mutex<()>>,
}

/// The pieces of a blob in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pieces: Vec<Piece>,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Piece {
    file: String,
    bytes: u64,
}

impl Blobs {
    pub fn open(root: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&root)?;
        Ok(Self { root, placing: Arc::default() })
    }

    /// The same for an upload that ends beyond so many bytes, instead of filling the disk first.
    pub fn create_limited(&self, bytes_max: u64) -> Result<String> {
        let id = self.create()?;
        std::fs::write(self.root.join(&id).join(LIMIT), bytes_max.to_string())
            .map_err(|it| Problem::internal("an upload cannot be started", &it))?;
        Ok(id)
    }

    /// A new, empty blob; returns its id.
    pub fn create(&self) -> Result<String> {
        let bytes: [u8; 16] = rand::random();
        let id: String = bytes.iter().map(|it| format!("{it:02x}")).collect();
        std::fs::create_dir(self.root.join(&id))
            .and_then(|()| sync_dir(&self.root))
            .map_err(|it| Problem::internal("an upload cannot be started", &it))?;
        Ok(id)
    }

    fn dir(&self, id: &str) -> Result<PathBuf> {
        let is_id = id.len() == 32 && id.bytes().all(|it| it.is_ascii_hexdigit());
        let dir = self.root.join(id);
        if !is_id || !dir.is_dir() {
            return Err(problem(Kind::NotFound, "there is no such blob; it was removed or has never been"));
        }
        Ok(dir)
    }

    /// The same, as long as it may be written to.
    fn open_dir(&self, id: &str) -> Result<PathBuf> {
        let dir = self.dir(id)?;
        match dir.join("sealed.json").exists() {
            true => Err(problem(Kind::Exists, "this blob is complete and does not change any more")),
            false => Ok(dir),
        }
    }

    /// Stores one piece under a name of the client's choice; a second one of that name takes its place.
    pub async fn put_piece<E: std::fmt::Display>(
        &self,
        id: &str,
        name: &str,
        expected_bytes: Option<u64>,
        body: impl Stream<Item = std::result::Result<Bytes, E>>,
    ) -> Result<u64> {
        let dir = self.open_dir(id)?;
        if expected_bytes.is_some_and(|it| it > PIECE_BYTES_MAX) {
            return Err(problem(Kind::TooLarge, format!("a piece has at most {PIECE_BYTES_MAX} bytes")));
        }
        let temporary = dir.join(format!("t-{:016x}", rand::random::<u64>()));
        let target = dir.join(piece_file(name));
        let room = room(&dir, &target);
        let written = match room.zip(expected_bytes) {
            Some((room, expected)) if expected > room => Err(beyond_limit()),
            _ => write_stream(&temporary, expected_bytes, room.unwrap_or(u64::MAX), body).await,
        };
        let stored = match written {
            Ok(bytes) => {
                let _placing = self.placing.lock().expect("nothing panics while it places a piece");
                self.open_dir(id).and_then(|_| {
                    std::fs::rename(&temporary, target)
                        .map(|()| bytes)
                        .map_err(|it| Problem::internal("a piece cannot be stored", &it))
                })
            }
            Err(problem) => Err(problem),
        };
        if stored.is_err() {
            let _ = tokio::fs::remove_file(&temporary).await;
        }
        stored
    }

    /// Puts a blob together from these pieces; on the disk when this returns.
    pub async fn put_order(&self, id: &str, names: &[String]) -> Result<Order> {
        if names.len() > PIECES_MAX {
            return Err(problem(Kind::TooLarge, format!("a blob has at most {PIECES_MAX} pieces")));
        }
        let dir = self.open_dir(id)?;
        let mut order = Order::default();
        for name in names {
            let file = piece_file(name);
            let missing = || problem(Kind::Invalid, format!("the piece {name} was never uploaded"));
            let bytes = tokio::fs::metadata(dir.join(&file)).await.map_err(|_| missing())?.len();
            order.bytes += bytes;
            order.pieces.push(Piece { file, bytes });
        }
        let kept = order.clone();
        blocking("a blob cannot be stored", move || {
            for piece in &kept.pieces {
                std::fs::File::open(dir.join(&piece.file))?.sync_data()?;
            }
            sync_dir(&dir)?;
            let json = serde_json::to_vec(&kept).expect("an order holds nothing that JSON cannot say");
            write_durably(&dir.join("order.json"), &json)
        })
        .await?;
        Ok(order)
    }

    /// The same from pieces that were stored with [`range_name`], which must follow each other without a gap.
    pub async fn put_ranges(&self, id: &str, bytes: u64) -> Result<Order> {
        let dir = self.open_dir(id)?;
        let mut ranges: Vec<(u64, u64, String)> = std::fs::read_dir(&dir)
            .map_err(|it| Problem::internal("an upload cannot be read", &it))?
            .flatten()
            .filter_map(|it| {
                let name = unpiece_file(it.file_name().to_str()?)?;
                let (start, end) = name.strip_prefix("range-")?.split_once('-')?;
                Some((start.parse().ok()?, end.parse().ok()?, name.clone()))
            })
            .collect();
        ranges.sort();
        let mut at = 0;
        for (start, end, _) in &ranges {
            if *start != at {
                break;
            }
            at = end + 1;
        }
        if at != bytes {
            let message = format!("{at} of {bytes} bytes have arrived; upload the rest, then commit again");
            return Err(problem(Kind::Invalid, message));
        }
        self.put_order(id, &ranges.into_iter().map(|(_, _, name)| name).collect::<Vec<_>>()).await
    }

    /// Ends the upload: from now on the blob can be read, and not be changed. Returns its size and, if asked
    /// for, the SHA-256 of its bytes. Doing it again does nothing.
    pub async fn seal(&self, id: &str, digest: Digest) -> Result<(u64, Option<String>)> {
        let dir = self.dir(id)?;
        let placing = self.placing.clone();
        blocking("a blob cannot be sealed", move || {
            let (open, sealed) = (dir.join("order.json"), dir.join("sealed.json"));
            let (path, rename) = if sealed.exists() { (&sealed, false) } else { (&open, true) };
            let order = match std::fs::read(path) {
                Ok(bytes) => serde_json::from_slice::<Order>(&bytes)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            // Sealed first, hashed then: nobody can change it in between.
            if rename {
                let _placing = placing.lock().expect("nothing panics while it places a piece");
                std::fs::rename(&open, &sealed)?;
                sync_dir(&dir)?;
                remove_strays(&dir, &order);
            }
            let digest = match digest {
                Digest::Skip => None,
                Digest::Sha256 => Some(sha256(&dir, &order)?),
            };
            Ok(Some((order.bytes, digest)))
        })
        .await?
        .ok_or_else(|| problem(Kind::Invalid, "nothing was uploaded yet, or not all of it"))
    }

    /// How to read a sealed blob.
    pub async fn order(&self, id: &str) -> Result<Order> {
        let path = self.dir(id)?.join("sealed.json");
        let missing = |_| problem(Kind::NotFound, "there is no such blob, or its upload has not ended");
        let bytes = tokio::fs::read(path).await.map_err(missing)?;
        serde_json::from_slice(&bytes).map_err(|it| Problem::internal("a blob cannot be read", &it))
    }

    /// The bytes of a range of a blob, as they come from the disk.
    pub fn read(
        &self,
        id: &str,
        order: &Order,
        range: Range<u64>,
    ) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        let dir = self.root.join(id);
        let mut start = 0;
        let mut parts = Vec::new();
        for piece in &order.pieces {
            let end = start + piece.bytes;
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                parts.push((dir.join(&piece.file), from - start, to - from));
            }
            start = end;
        }
        futures::stream::iter(parts)
            .then(|(path, from, bytes)| async move {
                let mut file = tokio::fs::File::open(path).await?;
                if from > 0 {
                    file.seek(std::io::SeekFrom::Start(from)).await?;
                }
                Ok::<_, std::io::Error>(ReaderStream::with_capacity(file.take(bytes), READ_BYTES))
            })
            .try_flatten()
    }

    pub async fn remove(&self, id: &str) {
        if let Ok(dir) = self.dir(id)
            && let Err(error) = tokio::fs::remove_dir_all(&dir).await
        {
            tracing::warn!(path = %dir.display(), %error, "a blob is not removed yet");
        }
    }

    /// Removes every blob that nothing speaks of; for the start, when nobody uploads.
    pub fn remove_unknown(&self, is_known: impl Fn(&str) -> bool) {
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(&is_known) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Whether sealing a blob is to read it for its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digest {
    Skip,
    Sha256,
}

/// The name of a piece that holds the bytes `start..=end` of its blob.
pub fn range_name(start: u64, end: u64) -> String {
    format!("range-{start}-{end}")
}

/// A file name for whatever a client calls a piece (base64, mostly).
fn piece_file(name: &str) -> String {
    format!("p-{}", name.bytes().map(|it| format!("{it:02x}")).collect::<String>())
}

fn unpiece_file(file: &str) -> Option<String> {
    let hex = file.strip_prefix("p-")?;
    let bytes: Option<Vec<u8>> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect();
    String::from_utf8(bytes?).ok()
}

/// Pieces that are in no order any more take no room.
fn remove_strays(dir: &Path, order: &Order) {
    let kept: std::collections::HashSet<&str> = order.pieces.iter().map(|it| it.file.as_str()).collect();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if (name.starts_with("p-") || name.starts_with("t-")) && !kept.contains(&*name) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn sha256(dir: &Path, order: &Order) -> std::io::Result<String> {
    use std::io::Read;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    for piece in &order.pieces {
        let mut file = std::fs::File::open(dir.join(&piece.file))?;
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            context.update(&buffer[..count]);
        }
    }
    Ok(context.finish().as_ref().iter().map(|it| format!("{it:02x}")).collect())
}

/// How many bytes a piece may still have, if the blob has a limit.
fn room(dir: &Path, target: &Path) -> Option<u64> {
    let limit: u64 = std::fs::read_to_string(dir.join(LIMIT)).ok()?.parse().ok()?;
    let others = std::fs::read_dir(dir).ok()?.flatten().filter(|it| {
        let name = it.file_name();
        name.to_string_lossy().starts_with("p-") && it.path() != target
    });
    let taken: u64 = others.filter_map(|it| it.metadata().ok()).map(|it| it.len()).sum();
    Some(limit.saturating_sub(taken))
}

fn beyond_limit() -> Problem {
    problem(
        Kind::TooLarge,
        "this upload is larger than what all caches may take together (`naru serve --cache-budget`)",
    )
}

async fn write_stream<E: std::fmt::Display>(
    path: &Path,
    expected_bytes: Option<u64>,
    room: u64,
    body: impl Stream<Item = std::result::Result<Bytes, E>>,
) -> Result<u64> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => disk_is_full(),
        // The blob was deleted under the upload.
        std::io::ErrorKind::NotFound => problem(Kind::NotFound, "this upload was given up"),
        _ => Problem::internal("a piece cannot be written", &error),
    };
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    let mut body = std::pin::pin!(body);
    let (mut bytes, mut look_at) = (0_u64, 0_u64);
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|it| problem(Kind::Invalid, format!("the upload was cut off: {it}")))?;
        if bytes >= look_at {
            has_room(path)?;
            look_at = bytes + LOOK_EVERY_BYTES;
        }
        bytes += chunk.len() as u64;
        if bytes > PIECE_BYTES_MAX {
            return Err(problem(Kind::TooLarge, format!("a piece has at most {PIECE_BYTES_MAX} bytes")));
        }
        if bytes > room {
            return Err(beyond_limit());
        }
        file.write_all(&chunk).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    if let Some(expected) = expected_bytes.filter(|it| *it != bytes) {
        return Err(problem(
            Kind::Invalid,
            format!("the upload was cut off after {bytes} of {expected} bytes"),
        ));
    }
    Ok(bytes)
}

/// Whether the disk below a path has room for an upload.
pub fn has_room(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    let free = nix::sys::statvfs::statvfs(dir).map(|it| it.blocks_available() * it.fragment_size());
    match free {
        Ok(free) if free < DISK_RESERVE_BYTES => Err(disk_is_full()),
        _ => Ok(()),
    }
}

fn disk_is_full() -> Problem {
    problem(
        Kind::Full,
        "the disk of the server is full: delete old artifacts or caches, or make room (`naru df` says what takes it)",
    )
}

/// Runs what blocks on the disk beside the asynchronous threads.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await.expect("work on files does not panic");
    done.map_err(|it| match it.kind() {
        std::io::ErrorKind::StorageFull => disk_is_full(),
        _ => Problem::internal(what, &it),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn body(text: &str) -> impl Stream<Item = std::result::Result<Bytes, Infallible>> + use<> {
        futures::stream::iter(vec![Ok(Bytes::from(text.to_owned()))])
    }

    async fn text(blobs: &Blobs, id: &str, range: Range<u64>) -> String {
        let order = blobs.order(id).await.unwrap();
        let chunks: Vec<Bytes> = blobs.read(id, &order, range).try_collect().await.unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn a_blob_is_its_pieces_in_the_order_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().into()).unwrap();
        let id = blobs.create().unwrap();
        for (name, it) in [("Yg==", "world"), ("YQ==", "hello "), ("stray", "no")] {
            blobs.put_piece(&id, name, None, body(it)).await.unwrap();
        }
        assert_eq!(blobs.order(&id).await.unwrap_err().kind, Kind::NotFound, "half an upload is not served");
        blobs.put_order(&id, &["YQ==".into(), "Yg==".into()]).await.unwrap();
        assert_eq!(blobs.order(&id).await.unwrap_err().kind, Kind::NotFound, "not before it is sealed");
        let (bytes, digest) = blobs.seal(&id, Digest::Sha256).await.unwrap();
        assert_eq!(bytes, 11);
        assert_eq!(
            digest.as_deref(),
            Some("b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9")
        );
        assert_eq!(text(&blobs, &id, 0..11).await, "hello world");
        assert_eq!(text(&blobs, &id, 4..8).await, "o wo");
        assert_eq!(text(&blobs, &id, 6..7).await, "w");
        let again = blobs.put_piece(&id, "YQ==", None, body("other ")).await.unwrap_err();
        assert_eq!(again.kind, Kind::Exists, "what is sealed does not change");
        assert_eq!(std::fs::read_dir(dir.path().join(&id)).unwrap().count(), 3, "strays are gone");
    }

    #[tokio::test]
    async fn a_piece_that_was_cut_off_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().into()).unwrap();
        let id = blobs.create().unwrap();
        let cut = blobs.put_piece(&id, "a", Some(10), body("short")).await.unwrap_err();
        assert_eq!(cut.kind, Kind::Invalid);
        let missing = blobs.put_order(&id, &["a".into()]).await.unwrap_err();
        assert!(missing.message.contains("never uploaded"), "{missing}");
        assert_eq!(std::fs::read_dir(dir.path().join(&id)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn an_upload_ends_at_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().into()).unwrap();
        let id = blobs.create_limited(10).unwrap();
        blobs.put_piece(&id, "a", None, body("123456")).await.unwrap();
        for expected in [None, Some(5)] {
            let refused = blobs.put_piece(&id, "b", expected, body("12345")).await.unwrap_err();
            assert_eq!(refused.kind, Kind::TooLarge);
        }
        blobs.put_piece(&id, "a", None, body("1234567890")).await.unwrap();
        blobs.put_order(&id, &["a".into()]).await.unwrap();
        assert_eq!(blobs.seal(&id, Digest::Skip).await.unwrap().0, 10);
    }

    #[tokio::test]
    async fn ranges_must_follow_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().into()).unwrap();
        let id = blobs.create().unwrap();
        blobs.put_piece(&id, &range_name(4, 7), Some(4), body("efgh")).await.unwrap();
        assert!(blobs.put_ranges(&id, 8).await.unwrap_err().message.contains("0 of 8"));
        blobs.put_piece(&id, &range_name(0, 3), Some(4), body("abcd")).await.unwrap();
        blobs.put_ranges(&id, 8).await.unwrap();
        blobs.seal(&id, Digest::Skip).await.unwrap();
        assert_eq!(text(&blobs, &id, 0..8).await, "abcdefgh");
    }

    #[tokio::test]
    async fn a_name_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        for id in ["", "..", "../blobs", &"a".repeat(32)] {
            assert_eq!(blobs.order(id).await.unwrap_err().kind, Kind::NotFound, "{id}");
        }
        let id = blobs.create().unwrap();
        blobs.put_piece(&id, "../../x", None, body("x")).await.unwrap();
        assert!(!dir.path().join("x").exists());
        blobs.remove_unknown(|_| false);
        assert_eq!(std::fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
    }
}
