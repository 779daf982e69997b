//! Archives that are small to send and large to take in. One test alone, because it measures its own process: the
//! limits are told, and the memory stays flat.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use naru_image::unpack;
use std::io::Read;

const MEMORY_BYTES_MAX: u64 = 64 << 20; // what a process that does nothing has, and the limits' own megabytes

/// Headers one after the other, made while they are read.
struct Stream<F> {
    next: F,
    buffer: Vec<u8>,
}

impl<F: FnMut() -> Option<Vec<u8>>> Read for Stream<F> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.buffer.is_empty() {
            let Some(more) = (self.next)() else { return Ok(0) };
            self.buffer = more;
        }
        let count = out.len().min(self.buffer.len());
        out[..count].copy_from_slice(&self.buffer[..count]);
        self.buffer.drain(..count);
        Ok(count)
    }
}

fn stream(next: impl FnMut() -> Option<Vec<u8>>) -> impl Read {
    Stream { next, buffer: Vec::new() }
}

fn header(kind: tar::EntryType, name: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(name).unwrap();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// The most memory that this process ever had.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn refused(mut archive: impl Read, want: &str) {
    let root = tempfile::tempdir().unwrap();
    let error = unpack(&mut archive, root.path()).unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(it) = source {
        text = format!("{text}: {it}");
        source = it.source();
    }
    assert!(text.contains(want), "{text}");
    assert!(peak() < MEMORY_BYTES_MAX, "{want}: {} MiB", peak() >> 20);
}

#[test]
fn bombs_are_refused_and_the_memory_stays_flat() {
    use tar::EntryType as T;
    // More entries than any image has.
    let entry = header(T::XGlobalHeader, "g", 0).repeat(64);
    let mut left = 1_000_064 / 64;
    refused(
        stream(|| {
            left -= 1;
            (left >= 0).then(|| entry.clone())
        }),
        "more than 1000000 entries",
    );
    // A long name, an attribute and a map of holes of gigabytes.
    for kind in [T::GNULongName, T::XHeader, T::GNULongLink] {
        let mut first = Some(header(kind, "x", 4 << 30));
        let zeros = vec![b'0'; 64 << 10];
        refused(stream(move || Some(first.take().unwrap_or_else(|| zeros.clone()))), "larger than 1 MiB");
    }
    // Directories with the longest names there are.
    let deep = vec!["d".repeat(250); 15].join("/");
    let mut number = 0;
    let named = move || {
        number += 1;
        let path = if number == 1 { deep.clone() } else { format!("{deep}/{number}") };
        let record = |length: usize| format!("{length} path={path}\n");
        let length = (0..).map(|digits| path.len() + 7 + digits).find(|it| record(*it).len() == *it).unwrap();
        let record = record(length).into_bytes();
        let mut out = header(T::XHeader, "x", record.len() as u64);
        out.extend(padded(record));
        out.extend(header(T::Directory, "d", 0));
        Some(out)
    };
    refused(stream(named), "names of its directories");
}
