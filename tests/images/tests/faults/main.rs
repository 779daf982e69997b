//! kill -9 of the daemon in the middle of pushes, pulls and builds. What is on its disk afterwards is whole: no blob
//! that is not what its name says, no name that leads to something missing, no half layer under a container. And what
//! was interrupted goes through when it is asked for again. `NARU_SEEDS=200` tries more moments.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use naru_image_tests::Numbers;
use naru_image_tests::harness::{Daemon, PATIENCE, busybox, naru_binary, seeds, text, tool};
use naru_image_tests::layout::{done, layout, push_args, run};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FILE_BYTES: usize = 1_600_000;
const KILL_WITHIN_MS: u64 = 400;

/// What cannot be packed smaller.
fn file(numbers: &mut Numbers) -> Vec<u8> {
    (0..FILE_BYTES / 8).flat_map(|_| numbers.next().to_le_bytes()).collect()
}

/// An image of four layers that no other seed has.
fn image(dir: &Path, numbers: &mut Numbers) -> String {
    let contents: Vec<Vec<u8>> = (0..4).map(|_| file(numbers)).collect();
    let names = ["data0", "data1", "data2", "data3"];
    let files: Vec<[(&str, &[u8]); 1]> =
        names.iter().zip(&contents).map(|(name, it)| [(*name, &it[..])]).collect();
    let layers: Vec<&[(&str, &[u8])]> = files.iter().map(|it| &it[..]).collect();
    format!("oci:{}:1", layout(dir, &layers, json!({})).display())
}

fn quietly(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The moment of the kill is the seed's; nothing is awaited here.
fn kill_meanwhile(daemon: &mut Daemon, client: &mut Child, numbers: &mut Numbers) {
    std::thread::sleep(Duration::from_millis(numbers.next() % KILL_WITHIN_MS));
    daemon.kill();
    let _ = client.kill();
    client.wait().unwrap();
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|it| format!("{it:02x}")).collect()
}

/// Looks at the store of a daemon that is dead. What was found whole once is not read again.
#[derive(Default)]
struct Inspector {
    seen: HashSet<String>,
}

impl Inspector {
    fn look(&mut self, daemon: &Daemon, seed: u64) {
        let images = daemon.data_dir().join("images");
        let blobs = images.join("blobs/sha256");
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&blobs).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if self.seen.insert(name.clone()) {
                let content = fs::read(entry.path()).unwrap();
                assert_eq!(hex(&content), name, "seed {seed}: a blob that is not what its name says");
            }
            present.insert(name);
        }
        let read = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
        let of = |it: &Value| it["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        for entry in read(&images.join("index.json"))["manifests"].as_array().unwrap() {
            let digest = of(entry);
            assert!(present.contains(&digest), "seed {seed}: {entry} is not there");
            let manifest = read(&blobs.join(&digest));
            if manifest["annotations"]["naru.dev/base"] == "host" {
                continue;
            }
            for part in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
                assert!(present.contains(&of(part)), "seed {seed}: {part} of {entry} is not there");
            }
        }
        // A layer with a record is ready to be a lower directory.
        for entry in fs::read_dir(images.join("layers")).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let Some(layer) = name.strip_suffix(".json") else { continue };
            for file in fs::read_dir(images.join("layers").join(layer)).into_iter().flatten().flatten() {
                let is_data = file.file_name().to_string_lossy().starts_with("data");
                let size = file.metadata().unwrap().len();
                assert!(
                    !is_data || size == FILE_BYTES as u64,
                    "seed {seed}: half a layer: {:?}",
                    file.path()
                );
            }
        }
    }
}

#[test]
fn whatever_is_pushed_while_the_daemon_is_killed_is_whole_or_not_there() {
    let mut daemon = Daemon::start();
    let credentials = format!("naru:{}", daemon.push_token());
    let mut inspector = Inspector::default();
    for seed in 0..seeds(8) {
        let mut numbers = Numbers(seed);
        let scratch = tempfile::tempdir().unwrap();
        let layout = image(scratch.path(), &mut numbers);
        let host = |it: &Daemon| it.http().trim_start_matches("http://").to_owned();
        let target = format!("docker://{}/kill/seed:{seed}", host(&daemon));
        let mut client = quietly(Command::new("skopeo").args(push_args(&layout, &target, &credentials)));
        kill_meanwhile(&mut daemon, &mut client, &mut numbers);
        inspector.look(&daemon, seed);
        daemon.start_again();
        let host = host(&daemon);
        let name = format!("{host}/kill/seed:{seed}");
        let crane = |args: &[&str]| run(tool("crane"), &[args, &["--insecure"]].concat());
        let tags = text(&crane(&["ls", &format!("{host}/kill/seed")]));
        if tags.lines().any(|it| it == seed.to_string()) {
            let valid = crane(&["validate", "--remote", &name]);
            assert!(
                valid.status.success(),
                "seed {seed}: it can be seen and not be pulled: {}",
                text(&valid)
            );
        }
        // Half an upload spoils nothing: the same image goes through now.
        done(run("skopeo", &push_args(&layout, &format!("docker://{name}"), &credentials)));
    }
    daemon.kill();
    inspector.look(&daemon, u64::MAX);
    daemon.start_again();
    daemon.destroy();
}

#[test]
fn whatever_is_pulled_while_the_daemon_is_killed_is_whole_or_not_there() {
    let origin = Daemon::start();
    let mut daemon = Daemon::start();
    let credentials = format!("naru:{}", origin.push_token());
    let host = origin.http().trim_start_matches("http://").to_owned();
    let mut inspector = Inspector::default();
    for seed in 0..seeds(6) {
        let mut numbers = Numbers(1_000_000 + seed);
        let scratch = tempfile::tempdir().unwrap();
        let layout = image(scratch.path(), &mut numbers);
        let name = format!("{host}/far/seed:{seed}");
        done(run("skopeo", &push_args(&layout, &format!("docker://{name}"), &credentials)));
        let mut command = Command::new(naru_binary());
        command.args(["--data-dir", &daemon.data_dir().display().to_string(), "image", "sbom", &name]);
        let mut client = quietly(&mut command);
        kill_meanwhile(&mut daemon, &mut client, &mut numbers);
        inspector.look(&daemon, seed);
        daemon.start_again();
        done(daemon.naru(&["image", "sbom", &name]));
    }
    daemon.kill();
    inspector.look(&daemon, u64::MAX);
    daemon.start_again();
    daemon.destroy();
    origin.destroy();
}

#[test]
fn whatever_is_built_while_the_daemon_is_killed_is_whole_or_built_again() {
    let mut daemon = Daemon::start();
    let context = tempfile::tempdir().unwrap();
    let at = |name: &str| context.path().join(name);
    fs::copy(busybox(), at("busybox")).unwrap();
    let dockerfile = "FROM scratch AS one\nCOPY busybox /bin/busybox\nCOPY data0 /data0\n\
        RUN [\"/bin/busybox\", \"cp\", \"/data0\", \"/data1\"]\nFROM scratch\nCOPY --from=one /data1 /data1\nCOPY data0 /data0\n";
    fs::write(at("Dockerfile"), dockerfile).unwrap();
    let mut inspector = Inspector::default();
    for seed in 0..seeds(6) {
        let mut numbers = Numbers(2_000_000 + seed);
        let content = file(&mut numbers);
        fs::write(at("data0"), &content).unwrap();
        let (tag, dir) = (format!("kill:{seed}"), context.path().display().to_string());
        let mut command = Command::new(naru_binary());
        command.args([
            "--data-dir",
            &daemon.data_dir().display().to_string(),
            "build",
            "-q",
            "-t",
            &tag,
            &dir,
        ]);
        let mut client = quietly(&mut command);
        kill_meanwhile(&mut daemon, &mut client, &mut numbers);
        inspector.look(&daemon, seed);
        daemon.start_again();
        // What was asked for before the kill is done by itself, or was never heard of.
        let began = Instant::now();
        while daemon
            .get("images")
            .iter()
            .any(|it| !matches!(it["status"]["phase"].as_str(), Some("Ready" | "Failed")))
        {
            assert!(began.elapsed() < PATIENCE, "seed {seed}: {:?}", daemon.get("images"));
            std::thread::sleep(Duration::from_millis(50));
        }
        for it in daemon.get("images") {
            assert_eq!(it["status"]["phase"], "Ready", "seed {seed}: {it}");
        }
        let files = tempfile::tempdir().unwrap();
        let output = format!("type=local,dest={}", files.path().display());
        done(daemon.naru(&["build", "-q", "-t", &tag, "-o", &output, &dir]));
        for name in ["data0", "data1"] {
            assert!(fs::read(files.path().join(name)).unwrap() == content, "seed {seed}: {name} is another");
        }
    }
    daemon.kill();
    inspector.look(&daemon, u64::MAX);
    daemon.start_again();
    daemon.destroy();
}
