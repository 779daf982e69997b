//! Container output on disk, in the format every Kubernetes log reader knows:
//! `2026-11-22T01:02:03.123456789Z stdout F the line`, `P` for a line that goes on in the next record.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};

/// Longest record; a longer line is split into partial ones. The size kubelet's readers expect.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// Kubernetes' defaults are 10 MiB and 5 files; three bound a container to 30 MiB.
pub const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;
pub const FILES_MAX: u32 = 3;

/// Set aside for a new file.
const FIRST_BYTES: i64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Out,
    Error,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Out => "stdout",
            Stream::Error => "stderr",
        }
    }

    /// Its number in an attachment's frames.
    pub fn frame(self) -> u8 {
        match self {
            Stream::Out => crate::attach::OUT,
            Stream::Error => crate::attach::ERROR,
        }
    }
}

/// A log file that turns over by itself: `0.log`, then `0.log.1`, `0.log.2`.
pub struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl LogFile {
    pub fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        let bytes = file.metadata()?.len();
        if bytes == 0 {
            // Room for the first words: a program that has just filled the disk says so here. Where the file
            // system cannot set room aside, there is none.
            let _ = fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, FIRST_BYTES);
        }
        Ok(Self { path: path.to_owned(), file, bytes, bytes_max })
    }

    /// Appends whole records.
    pub fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + records.len() as u64 > self.bytes_max {
            self.turn_over()?;
        }
        self.file.write_all(records)?;
        self.bytes += records.len() as u64;
        Ok(())
    }

    fn turn_over(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..FILES_MAX - 1).rev() {
            let _ = std::fs::rename(numbered(number), numbered(number + 1));
        }
        std::fs::rename(&self.path, numbered(1))?;
        *self = Self::open(&self.path, self.bytes_max)?;
        Ok(())
    }
}

/// Cuts a byte stream into records. Holds at most one unfinished line.
pub struct Splitter {
    stream: Stream,
    line: Vec<u8>,
}

impl Splitter {
    pub fn new(stream: Stream) -> Self {
        Self { stream, line: Vec::new() }
    }

    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Adds the records that `bytes` complete to `records`.
    pub fn push(&mut self, mut bytes: &[u8], now_nanoseconds: i64, records: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.line.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.line.extend_from_slice(&window[..end]);
                    bytes = &bytes[end + 1..];
                    self.write(b'F', now_nanoseconds, records);
                }
                None => {
                    self.line.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.line.len() == LINE_BYTES_MAX {
                        self.write(b'P', now_nanoseconds, records);
                    }
                }
            }
        }
    }

    /// The stream ended; an unfinished line is a line.
    pub fn finish(&mut self, now_nanoseconds: i64, records: &mut Vec<u8>) {
        if !self.line.is_empty() {
            self.write(b'F', now_nanoseconds, records);
        }
    }

    fn write(&mut self, tag: u8, now_nanoseconds: i64, records: &mut Vec<u8>) {
        format_time(now_nanoseconds, records);
        records.push(b' ');
        records.extend_from_slice(self.stream.name().as_bytes());
        records.extend_from_slice(&[b' ', tag, b' ']);
        records.extend_from_slice(&self.line);
        records.push(b'\n');
        self.line.clear();
    }
}

/// RFC 3339 with nanoseconds, UTC. By hand: the shim stays free of a time-zone library.
fn format_time(nanoseconds: i64, out: &mut Vec<u8>) {
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    let fraction = nanoseconds.rem_euclid(1_000_000_000);
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    // Days to civil date, Howard Hinnant's algorithm: eras of 400 years starting in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:09}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(chunks: &[&[u8]]) -> String {
        let mut splitter = Splitter::new(Stream::Out);
        let mut out = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, 1_795_311_845_000_000_007, &mut out);
        }
        splitter.finish(1_795_311_845_000_000_007, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_becomes_one_record_however_it_arrives() {
        let expected = "2026-11-22T01:44:05.000000007Z stdout F one\n2026-11-22T01:44:05.000000007Z stdout F \n\
                        2026-11-22T01:44:05.000000007Z stdout F two\n";
        assert_eq!(records(&[b"one\n\ntwo"]), expected);
        assert_eq!(records(&[b"o", b"ne", b"\n", b"\ntwo\n"]), expected);
    }

    #[test]
    fn a_long_line_is_split_and_memory_stays_bounded() {
        let long = vec![b'x'; LINE_BYTES_MAX * 2 + 5];
        let out = records(&[&long, b"\n"]);
        let tags: Vec<&str> = out.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "P", "F"]);
        assert_eq!(out.lines().last().unwrap().len(), "2026-11-22T01:44:05.000000007Z stdout F xxxxx".len());
    }

    #[test]
    fn a_full_file_turns_over_and_old_ones_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = LogFile::open(&path, 100).unwrap();
        for number in 0..40 {
            log.append(format!("record {number:02} of twenty bytes\n").as_bytes()).unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        assert!(std::fs::read_to_string(&path).unwrap().contains("record 39"));
    }
}
