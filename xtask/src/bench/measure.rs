//! Reading clocks, processes and the machine; running programs that must not stay.

use super::{Quiet, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Above this share of the last 10 s in which a task waited for a processor, times mean little.
const PRESSURE_MAX: f64 = 10.0;
const QUIET_WITHIN: Duration = Duration::from_secs(60);
/// The kernel's unit for a process' CPU time, on every Linux there is.
const TICKS_PER_SECOND: f64 = 100.0;
const SCRATCH_PREFIX: &str = "naru-bench-";

pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

pub fn median(values: &[f64]) -> f64 {
    match sorted(values).as_slice() {
        [] => f64::NAN,
        it if it.len() % 2 == 1 => it[it.len() / 2],
        it => (it[it.len() / 2 - 1] + it[it.len() / 2]) / 2.0,
    }
}

pub fn min(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

pub fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Element by element.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(a, b)| a / b).collect()
}

pub fn milliseconds(it: Duration) -> f64 {
    it.as_secs_f64() * 1e3
}

/// Waits for others to be done; a machine that does not calm down is measured, and the result marked.
pub fn wait_until_quiet() -> Quiet {
    let began = Instant::now();
    loop {
        let pressure = pressure();
        if pressure < PRESSURE_MAX {
            return Quiet::Yes;
        }
        if began.elapsed() > QUIET_WITHIN {
            return Quiet::No(pressure);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn pressure() -> f64 {
    let text = std::fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    let number = text.split("avg10=").nth(1).and_then(|it| it.split(' ').next()?.parse().ok());
    number.unwrap_or(0.0)
}

/// User and system time of a process with all its threads, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).map_err(|it| format!("{path}: {it}"))?;
    stat_field_pair(&text, 14).ok_or_else(|| format!("{path} cannot be understood"))
}

/// Of all children that have ended and been waited for, theirs included.
pub fn cpu_seconds_of_children() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    stat_field_pair(&text, 16).unwrap_or(f64::NAN)
}

/// The sum of a field and the one after it, in seconds. Counted as in proc(5), where the name is field 2.
fn stat_field_pair(stat: &str, field: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(field - 3).map(|it| it.parse::<f64>().ok());
    Some((fields.next()?? + fields.next()??) / TICKS_PER_SECOND)
}

/// Resident memory, and the part of it that is nobody else's, in MiB.
pub fn memory_mib(pid: u32) -> Result<(f64, f64)> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).map_err(|it| format!("{path}: {it}"))?;
    let value = |name: &str| -> Option<f64> {
        let line = text.lines().find(|it| it.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
    };
    value("Rss:").zip(value("Pss:")).ok_or_else(|| format!("{path} cannot be understood"))
}

/// The most that a process ever had resident, in MiB.
pub fn peak_memory_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).map_err(|it| format!("{path}: {it}"))?;
    let line = text.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    let kib = line.and_then(|it| it.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|it| it / 1024.0).ok_or_else(|| format!("{path} cannot be understood"))
}

/// Processes whose command line contains all of these.
pub fn processes_with(parts: &[&str]) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if parts.iter().all(|it| command.contains(it)) {
            found.push(pid);
        }
    }
    found
}

pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|it| it.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |it| it.1.trim().to_owned())
    };
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let processor = value(&read("/proc/cpuinfo"), "model name");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = value(&read("/proc/meminfo"), "MemTotal");
    let date = output("date", &["-u", "+%F %H:%M UTC"]).unwrap_or_default().trim().to_owned();
    let load = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
    let line = format!("{date}: {cores} cores of {processor}, {memory}, Linux {kernel}, load {load}");
    json!({"line": line, "date": date, "cores": cores, "processor": processor, "memory": memory,
           "kernel": kernel, "load": load})
}

/// A directory that goes with us. Short, because sockets are made below it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{SCRATCH_PREFIX}{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|it| format!("cannot make {}: {it}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("warning: {} is left: {error}", self.0.display());
        }
    }
}

/// What a run that was killed left: its daemon's pods, mounts and links, and its directory.
pub fn remove_remains_of_others(naru: &Path) {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|it| it.strip_prefix(SCRATCH_PREFIX)) else { continue };
        if Path::new("/proc").join(pid).exists() {
            continue;
        }
        for data in ["shop/data", "gateway/data", "pods/data"] {
            let data = entry.path().join(data);
            if data.exists() {
                let _ = Command::new(naru).arg("--data-dir").arg(data).arg("destroy").status();
            }
        }
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

/// A program that serves until we are done with it.
pub struct Server(Child);

impl Server {
    pub fn start(command: &mut Command) -> Result<Self> {
        let shown = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn().map_err(|it| format!("{shown}: {it}"))?;
        Ok(Self(child))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits until it accepts connections.
    pub fn wait_for_port(&mut self, port: u16) -> Result<()> {
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Ok(Some(status)) = self.0.try_wait() {
                return Err(format!("the server for port {port} ended with {status}"));
            }
            if began.elapsed() > Duration::from_secs(20) {
                return Err(format!("nothing answers on port {port}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|it| it.to_string())?;
    Ok(listener.local_addr().map_err(|it| it.to_string())?.port())
}

/// Standard output of a program that must succeed.
pub fn output(program: &str, args: &[&str]) -> Result<String> {
    run(Command::new(program).args(args))
}

/// As `output`, and stopped when it takes longer, with everything that it started.
pub fn output_within(seconds: u32, program: &str, args: &[&str]) -> Result<String> {
    run(Command::new("timeout").args(["-k", "5", &seconds.to_string(), program]).args(args))
}

pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(|it| format!("{shown}: {it}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{shown} ended with {}: {}", output.status, error.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `name` with the first thing in the program's own words that looks like a version; none if it is not
/// installed.
pub fn version(name: &str, program: &str, arg: &str) -> Option<String> {
    let output = Command::new(program).arg(arg).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let looks_like_one = |it: &&str| it.starts_with(|c: char| c.is_ascii_digit()) && it.contains('.');
    let word = text.split([' ', '\n', '/', 'v', '\t', '+', '-']).find(looks_like_one)?;
    Some(format!("{name} {word}"))
}

pub const NOT_INSTALLED: &str = "not installed; `scripts/setup.sh bench` installs it";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_contain_what_separates_fields() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 25 75 20 0";
        assert_eq!(stat_field_pair(stat, 14), Some(2.0));
        assert_eq!(stat_field_pair(stat, 16), Some(1.0));
    }

    #[test]
    fn medians_of_odd_and_even_rounds() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn this_process_has_memory() {
        let (rss, pss) = memory_mib(std::process::id()).expect("we may look at ourselves");
        assert!(rss >= pss && pss > 0.0);
    }
}
