//! Files over a session, as tonistiigi/fsutil sends them: the sender tells every name, the receiver asks for
//! the contents that it wants by number, and both say when they are done.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::sync::Arc;

use bytes::Bytes;
use naru_image::{Digest, ImageStore};
use tokio::sync::mpsc;

use super::grpc::{CHUNK_BYTES, Messages, Result, Sender, Status};
use super::wire::{Packet, PacketKind, Stat};
use crate::error::Error;

/// Names in one context; what a mistaken context (`/`) has more of is not taken.
const FILES_MAX: usize = 2_000_000;
/// Of a Dockerfile and its ignore file.
const SMALL_FILE_BYTES_MAX: usize = 1 << 20;
/// What may be asked for ahead of the file that is being written.
const AHEAD_BYTES_MAX: i64 = 8 << 20;
const AHEAD_FILES_MAX: usize = 64;

/// Go's `os.FileMode`.
mod mode {
    pub const DIRECTORY: u32 = 1 << 31;
    pub const SYMLINK: u32 = 1 << 27;
    /// Any of the bits that make it something other than a regular file.
    pub const KIND: u32 = 1 << 31 | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19;

    const SETUID: u32 = 1 << 23;
    const SETGID: u32 = 1 << 22;
    const STICKY: u32 = 1 << 20;

    /// The permission bits as `chmod(2)` has them.
    pub fn permissions(go: u32) -> u32 {
        let bit = |from, to| if go & from == 0 { 0 } else { to };
        go & 0o777 | bit(SETUID, 0o4000) | bit(SETGID, 0o2000) | bit(STICKY, 0o1000)
    }

    pub fn of_permissions(unix: u32) -> u32 {
        let bit = |from, to| if unix & from == 0 { 0 } else { to };
        unix & 0o777 | bit(0o4000, SETUID) | bit(0o2000, SETGID) | bit(0o1000, STICKY)
    }
}

async fn packet(messages: &mut Messages) -> Result<Packet> {
    let packet: Packet = messages
        .next()
        .await?
        .ok_or_else(|| Status::failed("the client stopped in the middle of its files"))?;
    match packet.kind() {
        PacketKind::Error => Err(Status::failed(String::from_utf8_lossy(&packet.data).into_owned())),
        _ => Ok(packet),
    }
}

async fn names(messages: &mut Messages) -> Result<Vec<Stat>> {
    let mut names = Vec::new();
    while let Some(stat) = packet(messages).await?.stat {
        let safe = Path::new(&stat.path).components().all(|it| matches!(it, Component::Normal(_)));
        if !safe || stat.path.is_empty() {
            return Err(Status::failed(format!("`{}` is no name inside of a build context", stat.path)));
        }
        names.push(stat);
        if names.len() > FILES_MAX {
            return Err(Status::failed(format!(
                "the build context has more than {FILES_MAX} files; name what is not needed in .dockerignore"
            )));
        }
    }
    Ok(names)
}

fn is_file(stat: &Stat) -> bool {
    stat.mode & mode::KIND == 0
}

fn request(number: usize) -> Packet {
    Packet {
        kind: PacketKind::Request.into(),
        id: u32::try_from(number).unwrap_or(u32::MAX),
        ..Packet::default()
    }
}

async fn end(ours: Sender, theirs: &mut Messages) -> Result<()> {
    ours.send(&Packet { kind: PacketKind::End.into(), ..Packet::default() }).await?;
    while theirs.next::<Packet>().await?.is_some_and(|it| it.kind() != PacketKind::End) {}
    Ok(())
}

/// A few small files, by name.
pub async fn receive_small((ours, mut theirs): (Sender, Messages)) -> Result<BTreeMap<String, Vec<u8>>> {
    let names = names(&mut theirs).await?;
    let mut found = BTreeMap::new();
    for (number, stat) in names.iter().enumerate().filter(|(_, it)| is_file(it)) {
        ours.send(&request(number)).await?;
        let mut content = Vec::new();
        loop {
            let data = packet(&mut theirs).await?.data;
            if data.is_empty() {
                break;
            }
            content.extend_from_slice(&data);
            if content.len() > SMALL_FILE_BYTES_MAX {
                return Err(Status::failed(format!("{} is larger than 1 MiB", stat.path)));
            }
        }
        found.insert(stat.path.clone(), content);
    }
    end(ours, &mut theirs).await?;
    Ok(found)
}

/// One name of the archive that is being written, and its content piece by piece.
struct Entry {
    stat: Stat,
    content: mpsc::Receiver<Bytes>,
}

/// Content from a channel: cut or filled up to the size that was told.
struct Content(mpsc::Receiver<Bytes>, Bytes);

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.1.is_empty() {
            match self.0.blocking_recv() {
                Some(bytes) => self.1 = bytes,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.1.len());
        buffer[..count].copy_from_slice(&self.1.split_to(count));
        Ok(count)
    }
}

/// A directory of the client as an archive in the store.
pub async fn receive(
    store: &ImageStore,
    (ours, mut theirs): (Sender, Messages),
    mut progress: impl FnMut(u64),
) -> Result<Digest> {
    let names = names(&mut theirs).await?;
    let (entries, receiver) = mpsc::channel(AHEAD_FILES_MAX);
    let blob = store.begin_blob().map_err(Error::from)?;
    let written = tokio::task::spawn_blocking(move || write(blob, receiver));
    let sent = async {
        let wanted: Vec<usize> = (0..names.len()).filter(|it| is_file(&names[*it])).collect();
        let (mut next, mut open) = (0, Ahead::default());
        let mut bytes = 0;
        for (number, stat) in names.iter().enumerate() {
            let (content, receiver) = mpsc::channel(16);
            if entries.send(Entry { stat: stat.clone(), content: receiver }).await.is_err() {
                return Ok(()); // the writer says why
            }
            if !is_file(stat) {
                continue;
            }
            while next < wanted.len() && (wanted[next] <= number || open.has_room(names[wanted[next]].size)) {
                open.ask(wanted[next], names[wanted[next]].size);
                ours.send(&request(wanted[next])).await?;
                next += 1;
            }
            loop {
                let Some(piece) = open.pop(number) else {
                    open.push(packet(&mut theirs).await?)?;
                    continue;
                };
                if piece.is_empty() {
                    break;
                }
                bytes += piece.len() as u64;
                progress(bytes);
                if content.send(piece).await.is_err() {
                    return Ok(());
                }
            }
            open.close(number);
        }
        end(ours, &mut theirs).await
    }
    .await;
    drop(entries);
    let written = written.await.map_err(|it| Status::failed(it.to_string()))?;
    sent?;
    written
}

/// Contents that were asked for and are not written yet.
#[derive(Default)]
struct Ahead {
    open: HashMap<usize, (i64, VecDeque<Bytes>)>,
    bytes: i64,
}

impl Ahead {
    fn has_room(&self, size: i64) -> bool {
        self.open.len() < AHEAD_FILES_MAX && self.bytes + size <= AHEAD_BYTES_MAX
    }

    fn ask(&mut self, number: usize, size: i64) {
        self.open.insert(number, (size, VecDeque::new()));
        self.bytes += size;
    }

    fn push(&mut self, packet: Packet) -> Result<()> {
        let pieces = self.open.get_mut(&(packet.id as usize));
        let pieces = pieces.filter(|_| packet.kind() == PacketKind::Data);
        let (_, pieces) = pieces.ok_or_else(|| Status::failed("the client sent what was not asked for"))?;
        pieces.push_back(packet.data);
        Ok(())
    }

    /// The empty piece is a file's last.
    fn pop(&mut self, number: usize) -> Option<Bytes> {
        self.open.get_mut(&number)?.1.pop_front()
    }

    fn close(&mut self, number: usize) {
        if let Some((size, _)) = self.open.remove(&number) {
            self.bytes -= size;
        }
    }
}

fn write(blob: naru_image::BlobWriter, mut entries: mpsc::Receiver<Entry>) -> Result<Digest> {
    let failed = |error: io::Error| Status::failed(format!("cannot keep the build context: {error}"));
    let mut builder = tar::Builder::new(io::BufWriter::with_capacity(256 << 10, blob));
    while let Some(Entry { stat, content }) = entries.blocking_recv() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode::permissions(stat.mode));
        header.set_uid(stat.uid.into());
        header.set_gid(stat.gid.into());
        header.set_mtime(u64::try_from(stat.modified / 1_000_000_000).unwrap_or(0));
        header.set_size(0);
        if stat.mode & mode::DIRECTORY != 0 {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, &stat.path, io::empty()).map_err(failed)?;
        } else if stat.mode & mode::SYMLINK != 0 {
            header.set_entry_type(tar::EntryType::Symlink);
            // `append_link` would tidy the target up; a short one is written as it is.
            if stat.link.len() < 100 && header.set_link_name_literal(stat.link.as_bytes()).is_ok() {
                builder.append_data(&mut header, &stat.path, io::empty()).map_err(failed)?;
            } else {
                builder.append_link(&mut header, &stat.path, &stat.link).map_err(failed)?;
            }
        } else if is_file(&stat) {
            let size = u64::try_from(stat.size).unwrap_or(0);
            header.set_size(size);
            // A file that grew or shrank meanwhile must not break the archive.
            let mut content = Content(content, Bytes::new());
            let whole = (&mut content).chain(io::repeat(0)).take(size);
            builder.append_data(&mut header, &stat.path, whole).map_err(failed)?;
            io::copy(&mut content, &mut io::sink()).map_err(failed)?;
        }
        // Sockets, pipes and devices are no content.
    }
    let blob = builder.into_inner().map_err(failed)?;
    let blob = blob.into_inner().map_err(|it| failed(it.into_error()))?;
    Ok(blob.commit(None).map_err(Error::from)?.0)
}

/// Sends bytes as one file.
pub async fn send_bytes(
    (ours, mut theirs): (Sender, Messages),
    mut from: mpsc::Receiver<io::Result<Bytes>>,
) -> Result<()> {
    while let Some(piece) = from.recv().await {
        let mut piece = piece.map_err(|it| Status::failed(it.to_string()))?;
        while !piece.is_empty() {
            let data = piece.split_to(piece.len().min(CHUNK_BYTES)).to_vec();
            ours.send(&super::wire::Bytes { data }).await?;
        }
    }
    drop(ours);
    while theirs.next::<super::wire::Bytes>().await?.is_some() {}
    Ok(())
}

/// What of an archive the client has to know, in the order in which it wants it, and where its content is.
fn index(archive: &mut File) -> io::Result<Vec<(Stat, u64)>> {
    archive.seek(SeekFrom::Start(0))?;
    let mut found: BTreeMap<Vec<String>, (Stat, u64)> = BTreeMap::new();
    let mut reader = tar::Archive::new(io::BufReader::new(archive));
    for entry in reader.entries_with_seek()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        let parts: Vec<String> = path
            .components()
            .filter_map(|it| match it {
                Component::Normal(it) => Some(it.to_string_lossy().into_owned()),
                _ => None,
            })
            .collect();
        let header = entry.header();
        let link = entry.link_name()?.map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
        let kind = match header.entry_type() {
            tar::EntryType::Directory => mode::DIRECTORY,
            tar::EntryType::Symlink => mode::SYMLINK,
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::Link => 0,
            _ => continue, // devices mean nothing in somebody's directory
        };
        let link =
            if header.entry_type().is_hard_link() { link.trim_start_matches('/').to_owned() } else { link };
        let stat = Stat {
            path: parts.join("/"),
            mode: kind | mode::of_permissions(header.mode()?),
            uid: u32::try_from(header.uid()?).unwrap_or(0),
            gid: u32::try_from(header.gid()?).unwrap_or(0),
            size: entry.size().cast_signed(),
            modified: header.mtime()?.cast_signed().saturating_mul(1_000_000_000),
            link,
        };
        if !parts.is_empty() {
            found.insert(parts, (stat, entry.raw_file_position()));
        }
    }
    // Directories that the archive does not name come before what is in them.
    let missing: Vec<Vec<String>> = found
        .keys()
        .flat_map(|it| (1..it.len()).map(|count| it[..count].to_vec()))
        .filter(|it| !found.contains_key(it))
        .collect();
    for parts in missing {
        let stat = Stat { path: parts.join("/"), mode: mode::DIRECTORY | 0o755, ..Stat::default() };
        found.insert(parts, (stat, 0));
    }
    // A hard link may be told before the file that it is of: then they change places.
    let sizes: HashMap<String, (i64, u64)> =
        found.values().map(|(stat, at)| (stat.path.clone(), (stat.size, *at))).collect();
    let mut list: Vec<(Stat, u64)> = found.into_values().collect();
    for (stat, at) in &mut list {
        if is_file(stat) && !stat.link.is_empty() {
            // Each is sent whole: the client's files need not share their content.
            let (size, place) = sizes.get(&stat.link).copied().unwrap_or_default();
            (stat.size, *at) = (size, place);
            stat.link.clear();
        }
    }
    Ok(list)
}

/// Sends the files of an archive.
pub async fn send((ours, mut theirs): (Sender, Messages), mut archive: File) -> Result<()> {
    let failed = |error: io::Error| Status::failed(format!("cannot read the result: {error}"));
    let (archive, list) = tokio::task::spawn_blocking(move || index(&mut archive).map(|it| (archive, it)))
        .await
        .map_err(|it| Status::failed(it.to_string()))?
        .map_err(failed)?;
    let archive = Arc::new(archive);
    let tell = async {
        for (stat, _) in &list {
            ours.send(&Packet { stat: Some(stat.clone()), ..Packet::default() }).await?;
        }
        ours.send(&Packet::default()).await
    };
    // The client asks while the names still come.
    let (wanted, mut asked) = mpsc::unbounded_channel::<usize>();
    let listen = async {
        loop {
            let packet = packet(&mut theirs).await?;
            match packet.kind() {
                PacketKind::Request => {
                    let _ = wanted.send(packet.id as usize);
                }
                PacketKind::End => break,
                _ => {}
            }
        }
        drop(wanted);
        Ok::<_, Status>(())
    };
    let answer = async {
        while let Some(number) = asked.recv().await {
            let (stat, at) =
                list.get(number).ok_or_else(|| Status::failed("the client asked for an unknown file"))?;
            let (mut at, mut left) = (*at, usize::try_from(stat.size).unwrap_or(0));
            let id = u32::try_from(number).unwrap_or(u32::MAX);
            while left > 0 {
                let (archive, mut data) = (Arc::clone(&archive), vec![0; left.min(CHUNK_BYTES)]);
                let read = move || archive.read_exact_at(&mut data, at).map(|()| Bytes::from(data));
                let data = tokio::task::spawn_blocking(read).await;
                let data = data.map_err(|it| Status::failed(it.to_string()))?.map_err(failed)?;
                left -= data.len();
                at += data.len() as u64;
                ours.send(&Packet { kind: PacketKind::Data.into(), id, data, ..Packet::default() }).await?;
            }
            ours.send(&Packet { kind: PacketKind::Data.into(), id, ..Packet::default() }).await?;
        }
        Ok::<_, Status>(())
    };
    tokio::try_join!(tell, listen, answer)?;
    ours.send(&Packet { kind: PacketKind::End.into(), ..Packet::default() }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_go() {
        for unix in [0o644, 0o4755, 0o2755, 0o1777] {
            assert_eq!(mode::permissions(mode::of_permissions(unix)), unix);
        }
        assert_eq!(mode::of_permissions(0o4755), 0o755 | 1 << 23);
    }

    #[test]
    fn names_are_told_parents_first_and_hard_links_whole() {
        let mut archive = tempfile::tempfile().unwrap();
        let mut builder = tar::Builder::new(&mut archive);
        let mut add = |path: &str, kind: tar::EntryType, link: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_mtime(1);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(content.len() as u64);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            builder.append_data(&mut header, path, content).unwrap();
        };
        add("b", tar::EntryType::Regular, "", b"hello");
        add("a/deep/c", tar::EntryType::Link, "b", b"");
        add("a-b", tar::EntryType::Symlink, "b", b"");
        builder.into_inner().unwrap();
        let list = index(&mut archive).unwrap();
        let told: Vec<_> = list.iter().map(|(stat, _)| (stat.path.as_str(), stat.size)).collect();
        // `a/..` before `a-b`: a directory's files follow it at once.
        assert_eq!(told, [("a", 0), ("a/deep", 0), ("a/deep/c", 5), ("a-b", 0), ("b", 5)]);
        assert_eq!(list[2].1, list[4].1);
    }
}
