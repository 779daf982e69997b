//! How much of the time something in a slice waited for a processor, for memory, or for the disk: the kernel's
//! pressure files (<https://docs.kernel.org/accounting/psi.html>), of the slice's group in the v2 hierarchy. Without
//! one, which only machines with v1 alone have, of the whole machine.

use crate::cgroup;
use crate::config::Slice;
use std::path::PathBuf;
use std::time::Instant;

/// Shares of the time, 0 to 1, since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pressure {
    pub cpu: f64,
    pub memory: f64,
    pub io: f64,
}

impl Pressure {
    pub fn worst(&self) -> f64 {
        self.cpu.max(self.memory).max(self.io)
    }
}

/// Reads the pressure on one slice again and again.
pub struct Gauge {
    slice: Slice,
    last: Option<(Instant, [u64; 3])>,
}

impl Gauge {
    pub fn new(slice: Slice) -> Self {
        Self { slice, last: None }
    }

    /// The pressure since the last call; `None` the first time, and where the kernel does not tell.
    pub fn read(&mut self) -> Option<Pressure> {
        let files = match cgroup::pressure_directory(self.slice) {
            Some(directory) => ["cpu", "memory", "io"].map(|it| directory.join(format!("{it}.pressure"))),
            None => ["cpu", "memory", "io"].map(|it| PathBuf::from("/proc/pressure").join(it)),
        };
        let mut totals = [0; 3];
        for (total, file) in totals.iter_mut().zip(files) {
            *total = total_microseconds(&std::fs::read_to_string(file).ok()?)?;
        }
        let now = Instant::now();
        let (then, before) = self.last.replace((now, totals))?;
        let passed = now.duration_since(then).as_secs_f64().max(0.001) * 1e6;
        // A group that was removed and made again begins at nothing.
        let share = |at: usize| (totals[at].saturating_sub(before[at]) as f64 / passed).min(1.0);
        Some(Pressure { cpu: share(0), memory: share(1), io: share(2) })
    }
}

/// The time for which at least one task waited.
fn total_microseconds(text: &str) -> Option<u64> {
    let line = text.lines().find(|it| it.starts_with("some "))?;
    line.split(' ').find_map(|it| it.strip_prefix("total="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_files_are_read() {
        let text = "some avg10=0.12 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(total_microseconds(text), Some(1234));
        assert_eq!(total_microseconds("nonsense"), None);
    }
}
