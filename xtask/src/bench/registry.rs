//! An image of 1 GB pushed and pulled by skopeo: our registry and the reference one (Debian's docker-registry).
//! Each round has fresh servers on fresh ports, so that neither a server nor skopeo's own notes know the blobs.

use super::daemon::Daemon;
use super::measure::{self, NOT_INSTALLED, Server, free_port, median};
use super::{Bench, Goal, Line, Result};
use crate::root;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const ROUNDS: usize = 3;
const LAYERS: usize = 4;
const LAYER_MB: usize = 256;
const GOAL: f64 = 1.0 / 1.5;

/// Seconds of a push and of a pull, seconds of a processor that the server took for each, and its peak memory in MiB.
struct Round {
    push: f64,
    pull: f64,
    push_cpu: f64,
    pull_cpu: f64,
    memory: f64,
}

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let dir = bench.scratch.path().join("registry");
    let layout = dir.join("layout");
    make_layout(&layout)?;
    let program = root().join(".tools/bin/docker-registry");
    let peer = program
        .exists()
        .then(|| measure::version("docker-registry", &program.display().to_string(), "--version"));
    let peer = peer.flatten();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let own = dir.join(format!("{round}"));
        let mut turns: Vec<bool> = if peer.is_some() { vec![true, false] } else { vec![true] };
        if round % 2 == 1 {
            turns.reverse();
        }
        for is_ours in turns {
            std::fs::create_dir_all(&own).map_err(|it| it.to_string())?;
            if is_ours {
                let daemon = Daemon::start(&bench.naru, &own)?;
                let credentials = format!("naru:{}", daemon.push_token()?);
                ours.push(exchange(&layout, &own, &daemon.http(), daemon.pid(), &credentials)?);
            } else {
                let port = free_port()?;
                let config = own.join("registry.yml");
                let text = format!(
                    "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}/peer}}\n\
                     http: {{addr: '127.0.0.1:{port}'}}\n",
                    own.display()
                );
                std::fs::write(&config, text).map_err(|it| it.to_string())?;
                let mut command = Command::new(&program);
                command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
                let mut server = Server::start(&mut command)?;
                server.wait_for_port(port)?;
                let host = format!("127.0.0.1:{port}");
                theirs.push(exchange(&layout, &own, &host, server.pid(), "any:thing")?);
            }
            std::fs::remove_dir_all(&own).map_err(|it| it.to_string())?;
        }
    }
    let line = |what: &str, unit, value: fn(&Round) -> f64, goal| {
        let (a, b): (Vec<f64>, Vec<f64>) =
            (ours.iter().map(value).collect(), theirs.iter().map(value).collect());
        Line {
            what: what.into(),
            unit,
            ours: median(&a),
            peer: peer.clone().map(|it| (it, median(&b))),
            ratios: measure::ratios(&a, &b),
            goal,
            note: if peer.is_none() { format!("docker-registry is {NOT_INSTALLED}") } else { String::new() },
        }
    };
    Ok(vec![
        line("1 GB image pushed by skopeo", "s", |it| it.push, Goal::RatioAtMost(GOAL)),
        line("1 GB image pulled by skopeo", "s", |it| it.pull, Goal::RatioAtMost(GOAL)),
        line("processor of the server for the push", "s", |it| it.push_cpu, Goal::RatioAtMost(GOAL)),
        line("processor of the server for the pull", "s", |it| it.pull_cpu, Goal::RatioAtMost(GOAL)),
        line("peak memory of the server meanwhile", "MiB", |it| it.memory, Goal::None),
    ])
}

fn exchange(layout: &Path, dir: &Path, host: &str, pid: u32, credentials: &str) -> Result<Round> {
    let source = format!("oci:{}:1", layout.display());
    let image = format!("docker://{host}/bench/large:1");
    let cpu = measure::cpu_seconds(pid)?;
    let began = Instant::now();
    let push =
        ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", credentials];
    measure::output_within(300, "skopeo", &[&push[..], &[&source, &image]].concat())?;
    let push = began.elapsed().as_secs_f64();
    let push_cpu = measure::cpu_seconds(pid)? - cpu;
    let out = dir.join("out");
    let target = format!("dir:{}", out.display());
    let began = Instant::now();
    let pull = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &image, &target];
    measure::output_within(300, "skopeo", &pull)?;
    let pull = began.elapsed().as_secs_f64();
    let pull_cpu = measure::cpu_seconds(pid)? - cpu - push_cpu;
    std::fs::remove_dir_all(&out).map_err(|it| it.to_string())?;
    Ok(Round { push, pull, push_cpu, pull_cpu, memory: measure::peak_memory_mib(pid)? })
}

/// Layers that cannot be compressed any further, compressed already: the codec is no part of what is measured.
fn make_layout(dir: &Path) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(|it| it.to_string())?;
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for number in 0..LAYERS {
        let tree = dir.join("tree");
        std::fs::create_dir_all(&tree).map_err(|it| it.to_string())?;
        let script = format!(
            "set -e; head -c {LAYER_MB}M /dev/urandom > {0}/data{number}; tar -C {0} -cf {1}/layer.tar .; rm {0}/data{number}; \
             sha256sum < {1}/layer.tar; gzip -1 {1}/layer.tar; sha256sum < {1}/layer.tar.gz",
            tree.display(),
            dir.display()
        );
        let sums = measure::output_within(300, "sh", &["-c", &script])?;
        let mut sums = sums.lines().filter_map(|it| it.split(' ').next().map(str::to_owned));
        let (plain, packed) = sums.next().zip(sums.next()).ok_or("sha256sum prints a digest")?;
        let file = blobs.join(&packed);
        std::fs::rename(dir.join("layer.tar.gz"), &file).map_err(|it| it.to_string())?;
        layers.push(descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &file, &packed)?);
        diff_ids.push(format!("sha256:{plain}"));
    }
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
                        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = document(&blobs, "application/vnd.oci.image.config.v1+json", &config)?;
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                          "config": config, "layers": layers});
    let mut manifest = document(&blobs, "application/vnd.oci.image.manifest.v1+json", &manifest)?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string()).map_err(|it| it.to_string())?;
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).map_err(|it| it.to_string())
}

fn document(blobs: &Path, kind: &str, value: &Value) -> Result<Value> {
    let file = blobs.join("document");
    std::fs::write(&file, value.to_string()).map_err(|it| it.to_string())?;
    let sum = measure::output_within(10, "sha256sum", &[&file.display().to_string()])?;
    let digest = sum.split(' ').next().ok_or("sha256sum prints a digest")?;
    let target: PathBuf = blobs.join(digest);
    std::fs::rename(&file, &target).map_err(|it| it.to_string())?;
    descriptor(kind, &target, digest)
}

fn descriptor(kind: &str, file: &Path, digest: &str) -> Result<Value> {
    let size = file.metadata().map_err(|it| it.to_string())?.len();
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size}))
}
