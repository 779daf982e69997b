//! The files of an artifact: a zip archive as `upload-artifact` writes it, in memory. Reads what it needs of the
//! format (APPNOTE.TXT 4.3, 4.5.3): the directory at its end, stored and deflated files, sizes of 64 bits.

use std::io::Read;

/// An archive with more files holds no test reports that anybody would look for by hand.
const FILES_MAX: usize = 50_000;

/// The longest comment behind the directory.
const TAIL_BYTES_MAX: usize = 22 + 65_535;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("it is no zip archive")]
    NoArchive,
    #[error("its directory names what is not there")]
    Damaged,
    #[error("it has more than {FILES_MAX} files")]
    TooMany,
    #[error("`{0}` is packed in a way that is not known here")]
    Method(String),
}

/// A file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub bytes: u64,
    method: u16,
    packed: u64,
    offset: u64,
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let mut value = [0; 8];
    value[..length].copy_from_slice(bytes.get(at..at.checked_add(length)?)?);
    Some(u64::from_le_bytes(value))
}

/// The files that the archive's directory names.
pub fn entries(archive: &[u8]) -> Result<Vec<Entry>, Error> {
    let from = archive.len().saturating_sub(TAIL_BYTES_MAX);
    let end = archive[from..].windows(4).rposition(|it| it == b"PK\x05\x06").ok_or(Error::NoArchive)? + from;
    let field = |at, length| number(archive, end + at, length).ok_or(Error::Damaged);
    let (mut count, mut at) = (field(10, 2)?, field(16, 4)?);
    // A larger one has its numbers in a record before, which a locator right before the end points to.
    if let Some(locator) = end.checked_sub(20).filter(|it| archive[*it..].starts_with(b"PK\x06\x07")) {
        let record = number(archive, locator + 8, 8).and_then(|it| usize::try_from(it).ok());
        let record = record.filter(|it| archive.get(*it..).is_some_and(|it| it.starts_with(b"PK\x06\x06")));
        let record = record.ok_or(Error::Damaged)?;
        count = number(archive, record + 32, 8).ok_or(Error::Damaged)?;
        at = number(archive, record + 48, 8).ok_or(Error::Damaged)?;
    }
    if count > FILES_MAX as u64 {
        return Err(Error::TooMany);
    }
    let mut at = usize::try_from(at).map_err(|_| Error::Damaged)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let (entry, next) = entry(archive, at).ok_or(Error::Damaged)?;
        entries.push(entry);
        at = next;
    }
    Ok(entries)
}

/// One line of the directory, and where the next begins.
fn entry(archive: &[u8], at: usize) -> Option<(Entry, usize)> {
    if !archive.get(at..)?.starts_with(b"PK\x01\x02") {
        return None;
    }
    let field = |offset: usize, length| number(archive, at + offset, length);
    let length = |offset| field(offset, 2).and_then(|it| usize::try_from(it).ok());
    let (name, extra, comment) = (length(28)?, length(30)?, length(32)?);
    let (mut packed, mut bytes, mut offset) = (field(20, 4)?, field(24, 4)?, field(42, 4)?);
    let text = archive.get(at + 46..at + 46 + name)?;
    // The field 1 holds, in this order, what did not fit into 32 bits.
    let extras = archive.get(at + 46 + name..at + 46 + name + extra)?;
    let mut place = 0;
    while let (Some(kind), Some(size)) = (number(extras, place, 2), number(extras, place + 2, 2)) {
        let mut inside = place + 4;
        if kind == 1 {
            for it in [&mut bytes, &mut packed, &mut offset] {
                if *it == u64::from(u32::MAX) {
                    *it = number(extras, inside, 8)?;
                    inside += 8;
                }
            }
        }
        place += 4 + usize::try_from(size).ok()?;
    }
    let entry = Entry {
        name: String::from_utf8_lossy(text).into_owned(),
        bytes,
        method: u16::try_from(field(10, 2)?).ok()?,
        packed,
        offset,
    };
    Some((entry, at + 46 + name + extra + comment))
}

/// A file's content, at most so many bytes of it whatever the directory says.
pub fn content(archive: &[u8], entry: &Entry, bytes_max: u64) -> Result<Vec<u8>, Error> {
    let packed = packed(archive, entry).ok_or(Error::Damaged)?;
    let mut out = Vec::new();
    let read = match entry.method {
        0 => packed.take(bytes_max).read_to_end(&mut out),
        8 => flate2::read::DeflateDecoder::new(packed).take(bytes_max).read_to_end(&mut out),
        _ => return Err(Error::Method(entry.name.clone())),
    };
    read.map_err(|_| Error::Damaged)?;
    Ok(out)
}

fn packed<'a>(archive: &'a [u8], entry: &Entry) -> Option<&'a [u8]> {
    let at = usize::try_from(entry.offset).ok()?;
    if !archive.get(at..)?.starts_with(b"PK\x03\x04") {
        return None;
    }
    let skipped = number(archive, at + 26, 2)? + number(archive, at + 28, 2)? + 30;
    let from = at.checked_add(usize::try_from(skipped).ok()?)?;
    archive.get(from..from.checked_add(usize::try_from(entry.packed).ok()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_archive_of_another_program_is_read_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let script = "import sys, zipfile
z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)
z.writestr('a/b.xml', 'x' * 100000)
with z.open(zipfile.ZipInfo('big.txt'), 'w', force_zip64=True) as f: f.write(b'stored')
z.comment = b'a comment'
z.close()";
        let file = dir.path().join("a.zip");
        let made = Command::new("python3").args(["-c", script]).arg(&file).status().unwrap();
        assert!(made.success());
        let archive = std::fs::read(&file).unwrap();
        let all = entries(&archive).unwrap();
        let names: Vec<_> = all.iter().map(|it| (it.name.as_str(), it.bytes)).collect();
        assert_eq!(names, [("a/b.xml", 100_000), ("big.txt", 6)]);
        assert_eq!(content(&archive, &all[1], 100).unwrap(), b"stored");
        assert_eq!(content(&archive, &all[0], 1000).unwrap().len(), 1000, "a bomb gets no further");
        assert_eq!(entries(b"no archive"), Err(Error::NoArchive));
        for cut in 1..archive.len() {
            // Whatever is missing, nothing breaks.
            if let Ok(all) = entries(&archive[cut..]) {
                all.iter().for_each(|it| drop(content(&archive[cut..], it, 1000)));
            }
        }
    }
}
