//! Giving back what a process has in memory of its own program.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;

/// Takes the program's pages out of this process' memory. What starts a process is most of what it ever runs, and
/// stays mapped for good otherwise: two thirds of an idle daemon. The pages are the file's: they stay in the
/// machine's cache for as long as there is room, and come back one by one, at a microsecond each, where they are
/// needed.
pub fn let_go_of_program() {
    let Ok(smaps) = File::open("/proc/self/smaps") else { return };
    // Line by line: the whole text is half of what a shim has in memory.
    let lines = BufReader::new(smaps).lines().map_while(Result::ok);
    for range in program_mappings(lines, let_go_of_program as fn() as usize) {
        // SAFETY: a private mapping of a file without a page of our own in it; dropping such pages loses nothing,
        // also while other threads run what is in them.
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    }
}

/// The mappings of the file that `inside` is a mapping of, from the text of `smaps`: those that nobody writes, and
/// in which nothing was ever written. What the linker relocated is among the latter and must stay.
fn program_mappings(smaps: impl Iterator<Item = String>, inside: usize) -> Vec<Range<usize>> {
    struct Mapping {
        range: Range<usize>,
        is_read_only: bool,
        /// Device and inode.
        file: (String, u64),
        is_clean: bool,
    }
    let mut all: Vec<Mapping> = Vec::new();
    for line in smaps {
        let mut fields = line.split_whitespace();
        let (Some(first), Some(second)) = (fields.next(), fields.next()) else { continue };
        if first == "Anonymous:" {
            if let Some(it) = all.last_mut() {
                it.is_clean = second == "0";
            }
        } else if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            && let (Some(_), Some(device), Some(inode)) = (fields.next(), fields.next(), fields.next())
            && let Ok(inode) = inode.parse()
        {
            let is_read_only = matches!(second, "r-xp" | "r--p");
            let file = (device.to_owned(), inode);
            all.push(Mapping { range: start..end, is_read_only, file, is_clean: false });
        }
    }
    let Some(file) = all.iter().find(|it| it.range.contains(&inside)).map(|it| it.file.clone()) else {
        return Vec::new();
    };
    let is_given = |it: &&Mapping| it.file == file && it.is_clean && it.is_read_only;
    all.iter().filter(is_given).map(|it| it.range.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_written_of_our_own_program_goes() {
        let smaps = "\
00200000-003c5000 r--p 00000000 fd:00 77 /\nRss: 100 kB\nAnonymous:             0 kB\n\
003c5000-0092b000 r-xp 001c4000 fd:00 77 /\nRss: 900 kB\nAnonymous:             0 kB\n\
0092b000-009a2000 r--p 00729000 fd:00 77 /\nRss: 90 kB\nAnonymous:            20 kB\n\
009a2000-009a9000 rw-p 0079f000 fd:00 77 /\nAnonymous:             0 kB\n\
7f53a210a000-7f53a2260000 r-xp 00026000 fd:00 9 /lib/libc.so.6\nAnonymous:             0 kB\n\
7fffb340e000-7fffb342f000 rw-p 00000000 00:00 0 [stack]\nAnonymous:            84 kB\n";
        let lines = || smaps.lines().map(str::to_owned);
        let found = program_mappings(lines(), 0x40_0000);
        assert_eq!(found, [0x20_0000..0x3c_5000, 0x3c_5000..0x92_b000]);
        assert!(program_mappings(lines(), 0x10).is_empty());
    }

    #[test]
    fn a_process_goes_on_without_its_pages() {
        let before: Vec<String> = (0..100).map(|it| format!("{it:?}")).collect();
        let_go_of_program();
        let after: Vec<String> = (0..100).map(|it| format!("{it:?}")).collect();
        assert_eq!(before, after);
    }
}
