//! Room for the way out of a full disk. What frees space (a pod's end, a deletion) must first be written,
//! so some space is kept in a file of its own and given up when a write finds none.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// After the reserve was given up, it is taken back this much later at the earliest: whoever frees space
/// needs a moment, too.
const RESTORE_AFTER: Duration = Duration::from_secs(10);

pub(crate) struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: bool,
    tried_at: Instant,
}

impl Reserve {
    /// Takes the reserve beside the store's file. A disk that has no room for it has none to give.
    pub fn take(store: &Path, bytes: u64) -> Reserve {
        let mut reserve =
            Reserve { path: store.with_extension("reserve"), bytes, held: false, tried_at: Instant::now() };
        reserve.fill();
        reserve
    }

    /// Gives the space up; false if there is none to give.
    pub fn give_up(&mut self) -> bool {
        self.tried_at = Instant::now();
        std::mem::replace(&mut self.held, false) && std::fs::remove_file(&self.path).is_ok()
    }

    /// Takes the space back if it was given up and there is room again.
    pub fn restore_when_due(&mut self) {
        if !self.held && self.tried_at.elapsed() > RESTORE_AFTER {
            self.fill();
        }
    }

    fn fill(&mut self) {
        self.tried_at = Instant::now();
        let complete = std::fs::metadata(&self.path).is_ok_and(|it| it.len() == self.bytes);
        self.held = complete || self.write().is_ok();
        if !self.held {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Real bytes: a file with holes would reserve nothing.
    fn write(&self) -> std::io::Result<()> {
        let mut file = File::create(&self.path)?;
        let block = [0x5a; 64 * 1024];
        let mut left = self.bytes;
        while left > 0 {
            let count = left.min(block.len() as u64);
            file.write_all(&block[..count as usize])?;
            left -= count;
        }
        file.sync_all()
    }
}
