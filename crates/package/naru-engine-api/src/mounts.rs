//! `-v`, `--mount`, `--tmpfs` and the volumes of an image: where files of elsewhere are in a container. Pure.

use serde_json::Value;

use crate::answer::{is_set, text, texts};
use crate::container::MountPoint;
use crate::error::{Error, Result};

/// Parses sizes of `tmpfs`: `64m`, `1g`, bytes.
pub fn bytes_of(text: &str) -> Result<u64> {
    let wrong = || Error::bad(format!("invalid size: '{text}'"));
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|it: char| !it.is_ascii_digit());
    let factor = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|it| it.checked_mul(factor)).ok_or_else(wrong)
}

/// The mounts that a request names, in its three ways; volumes without a name have an empty one. Pure.
pub fn mount_points(config: &Value, host: &Value) -> Result<Vec<MountPoint>> {
    let mut points: Vec<MountPoint> = Vec::new();
    for bind in texts(&host["Binds"]) {
        points.push(parse_bind(&bind)?);
    }
    for mount in host["Mounts"].as_array().into_iter().flatten() {
        points.push(parse_mount(mount)?);
    }
    for (path, given) in host["Tmpfs"].as_object().into_iter().flatten() {
        points.push(parse_tmpfs(path, given.as_str().unwrap_or_default())?);
    }
    for (at, point) in points.iter().enumerate() {
        if !point.destination.starts_with('/') {
            return Err(Error::bad(format!(
                "invalid mount path: '{}' mount path must be absolute",
                point.destination
            )));
        }
        if point.destination == "/" {
            return Err(Error::bad("invalid specification: destination can't be '/'"));
        }
        if points[..at].iter().any(|it| it.destination == point.destination) {
            return Err(Error::bad(format!("Duplicate mount point: {}", point.destination)));
        }
    }
    for path in config["Volumes"].as_object().into_iter().flatten().map(|(path, _)| path) {
        let path = path.trim_end_matches('/');
        if !points.iter().any(|it| it.destination == path) {
            points.push(MountPoint {
                kind: "volume".into(),
                destination: path.into(),
                anonymous: true,
                copy: true,
                ..MountPoint::default()
            });
        }
    }
    Ok(points)
}

fn parse_bind(bind: &str) -> Result<MountPoint> {
    let parts: Vec<&str> = bind.split(':').collect();
    let invalid = || Error::bad(format!("invalid volume specification: '{bind}'"));
    let (source, destination, modes) = match parts.as_slice() {
        [destination] => ("", *destination, ""),
        [source, destination] => (*source, *destination, ""),
        [source, destination, modes] => (*source, *destination, *modes),
        _ => return Err(invalid()),
    };
    let mut point = MountPoint {
        kind: if source.starts_with('/') { "bind" } else { "volume" }.into(),
        destination: clean(destination),
        copy: true,
        ..MountPoint::default()
    };
    match point.kind.as_str() {
        "bind" => point.source = clean(source),
        _ if source.is_empty() => point.anonymous = true,
        _ if crate::names::is_name(source) => point.name = source.into(),
        _ => {
            return Err(Error::bad(format!(
                "create {source}: \"{source}\" includes invalid characters for a local volume name; if you intended \
                 to pass a host directory, use absolute path"
            )));
        }
    }
    for mode in modes.split(',').filter(|it| !it.is_empty()) {
        match mode {
            "ro" => point.read_only = true,
            // Labels are of SELinux, which is not here; private is what every mount is.
            "rw" | "z" | "Z" | "rprivate" | "private" | "consistent" | "cached" | "delegated" => {}
            "nocopy" => point.copy = false,
            "shared" | "rshared" | "slave" | "rslave" => {
                return Err(Error::refused(format!("-v {bind}: mount propagation {mode} is not supported")));
            }
            _ => return Err(Error::bad(format!("invalid mode: {mode}"))),
        }
    }
    Ok(point)
}

fn parse_mount(mount: &Value) -> Result<MountPoint> {
    let mut point = MountPoint {
        kind: text(mount, "/Type").into(),
        destination: clean(text(mount, "/Target")),
        read_only: mount["ReadOnly"] == true,
        copy: mount["VolumeOptions"]["NoCopy"] != true,
        ..MountPoint::default()
    };
    let source = text(mount, "/Source");
    match point.kind.as_str() {
        "bind" => {
            if !source.starts_with('/') {
                return Err(Error::bad(format!(
                    "invalid mount config for type \"bind\": invalid mount path: '{source}'"
                )));
            }
            let options = &mount["BindOptions"];
            let propagation = text(options, "/Propagation");
            if !["", "rprivate", "private"].contains(&propagation) {
                return Err(Error::refused(format!("bind-propagation={propagation} is not supported")));
            }
            if options["NonRecursive"] == true {
                return Err(Error::refused("bind-recursive=disabled is not supported".to_owned()));
            }
            // Otherwise it must be there, see the caller.
            point.copy = options["CreateMountpoint"] == true;
            point.source = clean(source);
        }
        "volume" => {
            let options = &mount["VolumeOptions"];
            if is_set(&options["Subpath"]) {
                return Err(Error::refused("volume-subpath is not supported".to_owned()));
            }
            if is_set(&options["DriverConfig"]["Options"])
                || !["", "local"].contains(&text(options, "/DriverConfig/Name"))
            {
                return Err(Error::refused("volume-driver and volume-opt are not supported".to_owned()));
            }
            point.anonymous = source.is_empty();
            point.name = source.into();
        }
        "tmpfs" => {
            let options = &mount["TmpfsOptions"];
            if !matches!(options["Mode"].as_u64(), None | Some(0 | 0o777 | 0o1777))
                || is_set(&options["Options"])
            {
                return Err(Error::refused("tmpfs-mode other than 1777 is not supported".to_owned()));
            }
            if let Some(bytes) = options["SizeBytes"].as_u64().filter(|it| *it > 0) {
                point.source = bytes.to_string();
            }
        }
        other => return Err(Error::refused(format!("--mount type={other} is not supported"))),
    }
    Ok(point)
}

fn parse_tmpfs(path: &str, options: &str) -> Result<MountPoint> {
    let mut point = MountPoint { kind: "tmpfs".into(), destination: clean(path), ..MountPoint::default() };
    for option in options.split(',').filter(|it| !it.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", size) => point.source = bytes_of(size)?.to_string(),
            ("mode", "1777" | "01777" | "777" | "0777") => {}
            ("ro", "") => point.read_only = true,
            ("rw" | "nosuid" | "nodev" | "exec" | "relatime" | "noatime" | "async", "") => {}
            _ => return Err(Error::refused(format!("--tmpfs {path}:{option} is not supported"))),
        }
    }
    Ok(point)
}

/// Without `.`, doubled and trailing slashes; `..` goes up.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    let joined = parts.join("/");
    if path.starts_with('/') { format!("/{joined}") } else { joined }
}
