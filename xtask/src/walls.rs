//! The walls of ARCHITECTURE.md, checked over `cargo metadata` and the sources. Each finding says why the
//! wall is there.

use crate::root;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Crate {
    name: String,
    /// `base`, `cluster`, ...; empty for tests and xtask.
    wing: String,
    /// Names of everything it depends on directly, development included.
    dependencies: Vec<String>,
    dir: PathBuf,
}

/// Crates that compute and do nothing else: no async, no clock, no file, no process.
const PURE: &[&str] = &[
    "naru-text",
    "naru-objects",
    "naru-token",
    "naru-plan",
    "naru-plan-dialects",
    "naru-spec",
    "naru-dora",
    "kube-cel",
    "kube-patch",
    "kube-kinds",
    "kube-tables",
];
const IMPURE_DEPENDENCIES: &[&str] = &[
    "tokio",
    "axum",
    "hyper",
    "hyper-util",
    "reqwest",
    "nix",
    "rusqlite",
    "kube",
    "naru-client",
    "naru-source",
];

/// A heavy dependency has one door, or as few as are named here.
const DOORS: &[(&str, &[&str])] = &[
    ("rusqlite", &["kube-store"]),
    ("cel", &["kube-cel"]),
    ("libcontainer", &["naru-runtime"]),
    ("seccompiler", &["naru-runtime"]),
    ("rtnetlink", &["naru-net"]),
    ("clap", &["naru"]),
    (
        "axum",
        &["kube-api", "naru-git", "naru-hooks", "naru-job-api", "naru-registry", "naru-engine-api", "naru"],
    ),
    // The gateway only reads certificates; its tests make some.
    ("rcgen", &["kube-api", "naru-gateway"]),
    ("kube", &["naru-client", "naru"]),
    ("tar", &["naru-image", "naru-builder", "naru-engine-api", "naru-runner", "naru-job-api", "naru"]),
];

pub fn check() -> Vec<String> {
    let crates = crates();
    let mut problems = Vec::new();
    let wing_of = |name: &str| crates.iter().find(|it| it.name == name).map(|it| it.wing.as_str());
    for it in &crates {
        for dependency in &it.dependencies {
            let Some(wing) = wing_of(dependency) else {
                if let Some((_, doors)) = DOORS.iter().find(|(heavy, _)| heavy == dependency)
                    && !it.wing.is_empty()
                    && !doors.contains(&it.name.as_str())
                {
                    problems.push(format!(
                        "{} depends on {dependency}, whose door is {}: a heavy dependency that is spread over the \
                         house cannot be replaced",
                        it.name,
                        doors.join(", ")
                    ));
                }
                continue;
            };
            if wing == "app" && !it.wing.is_empty() {
                problems.push(format!("{} depends on {dependency}: nothing depends on app", it.name));
            } else if it.wing == "base" && wing != "base" {
                problems.push(format!(
                    "{} depends on {dependency}: base is what anyone may use, so it uses nobody",
                    it.name
                ));
            } else if !matches!(it.wing.as_str(), "app" | "" | "base") && wing != "base" && wing != it.wing {
                problems.push(format!(
                    "{} ({}) depends on {dependency} ({wing}): wings meet as objects or through a public protocol, \
                     so that each can be understood, tested and replaced alone",
                    it.name, it.wing
                ));
            }
            if it.wing == "cluster" && matches!(dependency.as_str(), "naru-client" | "naru-objects") {
                problems.push(format!(
                    "{} depends on {dependency}: the cluster knows standard Kubernetes only; the loop's kinds reach it \
                     as CRDs",
                    it.name
                ));
            }
        }
        if PURE.contains(&it.name.as_str()) {
            for dependency in it.dependencies.iter().filter(|it| IMPURE_DEPENDENCIES.contains(&it.as_str())) {
                problems.push(format!(
                    "{} depends on {dependency}: it decides and does nothing, so that a dry run is the real run",
                    it.name
                ));
            }
        }
        if it.wing != "app" && !it.wing.is_empty() {
            problems.extend(prints_or_reads(&it.dir));
        }
    }
    problems
}

/// Modules that are a process of their own (re-executed, single-threaded), so printing is theirs to do.
const PROCESS_MAINS: &[&str] = &["naru-runtime/src/helper.rs", "naru-runtime/src/shim.rs"];

/// Only `app` prints, and reads the environment. Tests and helpers that are a program's `main` may.
fn prints_or_reads(dir: &Path) -> Vec<String> {
    const ONLY_APP: &[&str] =
        &["println!(", "eprintln!(", "print!(", "eprint!(", "env::var(", "env::var_os("];
    let mut problems = Vec::new();
    for file in rust_files(&dir.join("src")) {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        if PROCESS_MAINS.iter().any(|it| file.ends_with(it)) {
            continue;
        }
        let is_test = file.file_stem().is_some_and(|it| it.to_string_lossy().ends_with("_test"));
        for (number, line) in code.lines().enumerate() {
            let line = line.trim_start();
            let found = ONLY_APP.iter().find(|it| {
                // `write!(`-like names end in the same letters.
                line.match_indices(**it)
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
            });
            if let Some(found) = found.filter(|_| !line.starts_with("//") && !is_test) {
                problems.push(format!(
                    "{}:{}: `{found}..)` outside of app: a library that prints or reads the environment cannot be \
                     used twice in one process",
                    file.strip_prefix(root()).unwrap_or(&file).display(),
                    number + 1
                ));
            }
        }
    }
    problems
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn crates() -> Vec<Crate> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs: it runs us");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|package| {
            let dir = PathBuf::from(text(&package["manifest_path"]))
                .parent()
                .expect("a manifest stands in a directory")
                .to_owned();
            let below = dir.strip_prefix(root().join("crates")).ok();
            Crate {
                name: text(&package["name"]),
                wing: below
                    .and_then(|it| it.iter().next())
                    .map(|it| it.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                dependencies: package["dependencies"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|it| text(&it["name"]))
                    .collect(),
                dir,
            }
        })
        .collect()
}
