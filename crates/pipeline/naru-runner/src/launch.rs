//! How our own program is started in a pod whose image knows nothing of it: busybox alone, or a C library of
//! another kind. It is linked with the node's C library, so that library and its loader come along beside it,
//! and the loader is what the pod starts.
//!
//! ```no_run
//! # fn example() -> std::io::Result<()> {
//! let launch = naru_runner::launch::of(std::path::Path::new("/usr/bin/naru"))?;
//! // Each of `launch.mounts` is mounted read-only; the container's command is:
//! let command = [launch.command, vec!["__job".into(), "--wait".into(), "http://naru.localhost:7070/_apis/jobs/p".into()]].concat();
//! # Ok(()) }
//! ```

use std::io::{Error, Read, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where in the pod everything of ours is.
pub const DIRECTORY: &str = "/naru/bin";

/// What a pod must have to start our program, whatever its image.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// Files of the node, and where in the pod they are mounted.
    pub mounts: Vec<(PathBuf, String)>,
    /// The words before our program's own arguments.
    pub command: Vec<String>,
}

/// The program, its loader and the libraries that it is linked with. Asks the loader itself, so that what
/// is found is what would be loaded here.
pub fn of(program: &Path) -> Result<Launch> {
    let inside = |name: &str| format!("{DIRECTORY}/{name}");
    let mut mounts = vec![(program.to_owned(), inside("naru"))];
    let Some(loader) = interpreter(program)? else {
        // Static: it needs nothing.
        return Ok(Launch { mounts, command: vec![inside("naru")] });
    };
    let output = Command::new(&loader).arg("--list").arg(program).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::other(format!(
            "{} cannot say what {} needs: {said}",
            loader.display(),
            program.display()
        )));
    }
    mounts.push((loader.canonicalize()?, inside("ld.so")));
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f...)`
        let Some((name, rest)) = line.trim().split_once(" => ") else { continue };
        let path = rest.split(" (0x").next().unwrap_or_default();
        // The loader itself is listed too, by its path.
        if path.starts_with('/') && !name.contains('/') {
            mounts.push((Path::new(path).canonicalize()?, inside(name)));
        }
    }
    let command = ["ld.so", "--library-path", "", "naru"];
    let command = command.map(|it| match it {
        "--library-path" => it.to_owned(),
        "" => DIRECTORY.to_owned(),
        it => inside(it),
    });
    Ok(Launch { mounts, command: command.to_vec() })
}

/// The words that start our program once more in this pod, whatever its image.
pub fn again() -> Vec<String> {
    let loader = format!("{DIRECTORY}/ld.so");
    if Path::new(&loader).exists() {
        return vec![loader, "--library-path".into(), DIRECTORY.into(), format!("{DIRECTORY}/naru")];
    }
    let own = std::env::current_exe().unwrap_or_else(|_| format!("{DIRECTORY}/naru").into());
    vec![own.display().to_string()]
}

/// The loader that a program names (`PT_INTERP`), from its ELF header.
fn interpreter(program: &Path) -> Result<Option<PathBuf>> {
    /// The headers are at the start; no program has more of them than fit.
    const HEAD_BYTES_MAX: u64 = 64 * 1024;
    const PT_INTERP: u64 = 3;
    let mut head = Vec::new();
    std::fs::File::open(program)?.take(HEAD_BYTES_MAX).read_to_end(&mut head)?;
    let odd = || Error::other(format!("{} is no 64-bit program of this machine", program.display()));
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Err(odd());
    }
    let number = |at: usize, bytes: usize| -> Result<u64> {
        let part = head.get(at..at + bytes).ok_or_else(odd)?;
        Ok(part.iter().rev().fold(0, |sum, it| sum << 8 | u64::from(*it)))
    };
    let (table, size, count) =
        (number(0x20, 8)? as usize, number(0x36, 2)? as usize, number(0x38, 2)? as usize);
    for index in 0..count {
        let at = table + index * size;
        if number(at, 4)? == PT_INTERP {
            let (offset, length) = (number(at + 8, 8)? as usize, number(at + 32, 8)? as usize);
            let text = head.get(offset..offset + length).ok_or_else(odd)?;
            let text = String::from_utf8_lossy(text);
            return Ok(Some(PathBuf::from(text.trim_end_matches('\0'))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_comes_with_its_loader_and_libraries() {
        let launch = of(&std::env::current_exe().unwrap()).unwrap();
        let names: Vec<&str> = launch.mounts.iter().map(|it| it.1.as_str()).collect();
        assert_eq!(names[..2], ["/naru/bin/naru", "/naru/bin/ld.so"]);
        assert!(names.contains(&"/naru/bin/libc.so.6"), "{names:?}");
        assert_eq!(launch.command, ["/naru/bin/ld.so", "--library-path", "/naru/bin", "/naru/bin/naru"]);
        // It starts in a root that holds nothing but that.
        let root = tempfile::tempdir().unwrap();
        for (from, to) in &launch.mounts {
            let to = root.path().join(to.trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
        }
        let output =
            Command::new("chroot").arg(root.path()).args(&launch.command).arg("--list").output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("launch::tests"), "{output:?}");
    }

    #[test]
    fn a_static_program_needs_nothing() {
        let launch = of(Path::new("/bin/busybox")).unwrap();
        assert_eq!((launch.mounts.len(), launch.command), (1, vec!["/naru/bin/naru".to_owned()]));
        assert!(of(Path::new("/etc/hostname")).unwrap_err().to_string().contains("no 64-bit program"));
    }
}
