//! What a writer was told is safe survives the process, and a full disk is an error, not an end.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use kube_store::{Expected, Options, RevisionError, Store, WriteError};
use serde_json::json;

const CHILD: &str = "KUBE_STORE_TEST_CHILD";

fn open(path: &Path) -> Store {
    Store::open(path, Options::default()).expect("the store opens")
}

/// Not a test of its own: the process that is killed. Prints each key after it was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let store = open(path.as_ref());
    let writers = (0..8).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0.. {
                let key = format!("core/configmaps/default/w{writer}-{number}");
                let entry = store.put(&key, Expected::Absent, json!({"metadata": {}, "n": number})).await;
                println!("acknowledged {} {key}", entry.expect("written").revision);
            }
        })
    });
    futures_join(writers.collect()).await;
}

async fn futures_join(tasks: Vec<tokio::task::JoinHandle<()>>) {
    for task in tasks {
        task.await.expect("a writer goes on");
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    for round in 0..5 {
        let path = dir.path().join(format!("store-{round}.db"));
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["child_writes_until_it_is_killed", "--exact", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut acknowledged = Vec::new();
        let mut read = |line: String| {
            if let Some(line) = line.strip_prefix("acknowledged ") {
                let (revision, key) = line.split_once(' ').expect("a revision and a key");
                acknowledged.push((revision.parse::<u64>().expect("a number"), key.to_string()));
            }
        };
        // The last one is in the middle of ten thousand writes.
        let heard = if round == 4 { 10_000 } else { 200 + round * 37 };
        for line in lines.by_ref().take(heard) {
            read(line.expect("text"));
        }
        child.kill().expect("the child is killed");
        child.wait().expect("the child has ended");
        // A line cut off in the middle was not received as an acknowledgement.
        let mut rest: Vec<String> = lines.map_while(Result::ok).collect();
        rest.pop();
        rest.into_iter().for_each(&mut read);

        let store = open(&path);
        assert!(acknowledged.len() > 100);
        let mut revisions = std::collections::HashSet::new();
        let mut last = 0;
        for (revision, key) in acknowledged {
            assert_eq!(store.get(&key).map(|it| it.revision), Some(revision), "{key}");
            assert!(revisions.insert(revision), "revision {revision} is there twice");
            last = last.max(revision);
        }
        let next = store.put("core/configmaps/default/next", Expected::Absent, json!({})).await;
        assert!(next.expect("written").revision > last, "a revision is never given again");
    }
}

/// Acknowledged writes of a child that works in this directory, until `heard` of them were heard.
struct Heard {
    child: std::process::Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    acknowledged: Vec<(u64, String)>,
}

impl Heard {
    fn start(mut command: Command, path: &Path) -> Heard {
        let mut child = command
            .args(["child_writes_until_it_is_killed", "--exact", "--nocapture"])
            .env(CHILD, path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Heard { child, lines, acknowledged: Vec::new() }
    }

    /// False when the child has ended.
    fn hear(&mut self) -> bool {
        let Some(Ok(line)) = self.lines.next() else { return false };
        if let Some(line) = line.strip_prefix("acknowledged ")
            && let Some((revision, key)) = line.split_once(' ')
        {
            self.acknowledged.push((revision.parse().expect("a number"), key.to_owned()));
        }
        true
    }

    fn check(&self, path: &Path) {
        let store = open(path);
        for (revision, key) in &self.acknowledged {
            assert_eq!(store.get(key).map(|it| it.revision), Some(*revision), "{key} was acknowledged");
        }
    }
}

/// Ends a file system as a power cut does: nothing that was not flushed reaches the disk any more.
fn cut_power(mount: &Path) {
    // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH.
    let script = "import fcntl, os, struct, sys\nfcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
    let done = Command::new("python3").args(["-c", script]).arg(mount).output().expect("python3 runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn a_power_cut_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = |program: &str, args: &[&str]| {
        let done = Command::new(program).args(args).output().expect("the program is installed");
        assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let text = |path: &Path| path.display().to_string();
    let (image, mount) = (dir.path().join("disk"), dir.path().join("mount"));
    std::fs::create_dir(&mount).expect("a directory");
    std::fs::File::create(&image).and_then(|it| it.set_len(96 << 20)).expect("a sparse file");
    run("mkfs.ext4", &["-q", "-F", &text(&image)]);
    let path = mount.join("store.db");
    for round in 0..5 {
        run("mount", &["-o", "loop", &text(&image), &text(&mount)]);
        let unmount = Unmount(mount.clone());
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_file(mount.join("store.db-wal"));
        let mut heard = Heard::start(Command::new(std::env::current_exe().expect("this program")), &path);
        while heard.acknowledged.len() < 150 + round * 83 {
            assert!(heard.hear(), "the child writes");
        }
        cut_power(&mount);
        // What it says now was heard before the cut or is never said: the disk is gone, so it stops.
        while heard.hear() {}
        heard.child.wait().expect("the child has ended");
        drop(unmount);
        run("mount", &["-o", "loop", &text(&image), &text(&mount)]);
        let _unmount = Unmount(mount.clone());
        heard.check(&path);
    }
}

#[tokio::test]
async fn a_failed_flush_stops_the_process_and_is_never_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    for when in [12, 40, 77] {
        let path = dir.path().join(format!("{when}.db"));
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]);
        command.args(["-e", &format!("inject=fsync,fdatasync:error=EIO:when={when}+")]);
        command.arg(std::env::current_exe().expect("this program"));
        let mut heard = Heard::start(command, &path);
        while heard.acknowledged.len() < 1_000_000 && heard.hear() {}
        let status = heard.child.wait().expect("the child has ended");
        assert!(!status.success(), "{when}: {status}");
        assert!(heard.acknowledged.len() > when / 2, "the failure comes when it should");
        heard.check(&path);
    }
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let _store = open(&path);
    let error = Store::open(&path, Options::default()).err().expect("the file is taken");
    assert!(error.to_string().contains("in use by another process"), "{error}");
}

/// A small file system of its own that fills up.
#[tokio::test]
async fn a_full_disk_refuses_writes_and_recovers() {
    let dir = tempfile::tempdir().expect("a directory");
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(dir.path())
        .stderr(Stdio::piped())
        .output()
        .expect("mount runs");
    assert!(mount.status.success(), "this test needs root: {}", String::from_utf8_lossy(&mount.stderr));
    let _unmount = Unmount(dir.path().to_path_buf());
    let ballast = dir.path().join("ballast");
    let store = open(&dir.path().join("store.db"));
    let big = json!({"metadata": {}, "data": "x".repeat(20_000)});
    store.put("a/b/c/first", Expected::Absent, big.clone()).await.expect("there is room");
    fill(&ballast);
    let mut refused = None;
    for number in 0..200 {
        if let Err(error) = store.put(&format!("a/b/c/{number}"), Expected::Absent, big.clone()).await {
            refused = Some(error);
            break;
        }
    }
    assert_eq!(refused, Some(WriteError::DiskFull));
    let revision = store.revision();
    assert!(store.get("a/b/c/first").is_some(), "reading goes on");
    std::fs::remove_file(&ballast).expect("room is made");
    let entry = store.put("a/b/c/later", Expected::Absent, big).await.expect("there is room again");
    assert_eq!(entry.revision, revision + 1, "a refused write takes no revision");
    store.close().await;
    let again = open(&dir.path().join("store.db"));
    assert_eq!(again.revision(), revision + 1);
    again.close().await;
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Lazily: the writer thread may still hold the file for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).expect("a file");
    let mut zeros = std::io::repeat(0).take(16 << 20);
    std::io::copy(&mut zeros, &mut file).expect_err("the disk is smaller than this");
}

#[tokio::test]
async fn a_watch_goes_on_after_a_restart_and_expires_after_compaction() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let store = open(&path);
    let first = store.put("a/b/c/x", Expected::Absent, json!({"n": 1})).await.expect("written");
    let second =
        store.put("a/b/c/x", Expected::Revision(first.revision), json!({"n": 2})).await.expect("written");
    store.delete("a/b/c/x", second.revision).await.expect("removed");
    store.close().await;

    let store = open(&path);
    let mut watcher = store.watch_from("a/b/", first.revision).expect("recent enough");
    let changes = watcher.next().await.expect("recent enough").changes;
    let seen: Vec<(bool, i64, bool)> = changes
        .iter()
        .map(|it| (it.deleted, it.value["n"].as_i64().expect("a number"), it.previous.is_some()))
        .collect();
    assert_eq!(seen, [(false, 2, true), (true, 2, true)]);
    assert_eq!(changes[1].value["metadata"]["resourceVersion"], "3", "a deletion has its own revision");
    store.close().await;

    // A ring that is too small for what happens.
    let store = Store::open(&path, Options { ring_changes_max: 2, ..Options::default() }).expect("opens");
    let mut slow = store.watch_from("", 3).expect("the present");
    for number in 0..5 {
        store.put(&format!("a/b/c/{number}"), Expected::Absent, json!({})).await.expect("written");
    }
    assert!(matches!(slow.next().await.err(), Some(RevisionError::Expired { wanted: 3, .. })));
    assert!(matches!(store.watch_from("", 99).err(), Some(RevisionError::Future { .. })));
    store.close().await;
}

#[tokio::test]
async fn earlier_states_can_be_listed_as_long_as_history_reaches() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(&dir.path().join("store.db"));
    let a = store.put("k/a", Expected::Absent, json!({"n": 1})).await.expect("written");
    let before = store.revision();
    store.put("k/b", Expected::Absent, json!({})).await.expect("written");
    store.put("k/a", Expected::Revision(a.revision), json!({"n": 2})).await.expect("written");
    let then = store.page("k/", before, "", usize::MAX).expect("recent");
    assert_eq!(then.items.len(), 1);
    assert_eq!((&then.items[0].value["n"], then.items[0].revision), (&json!(1), 1));
    assert_eq!(store.list("k/").items.len(), 2);
    store.close().await;
}

/// Pages are cut from the same list, now and at any remembered time, whatever happens between them.
#[tokio::test]
async fn pages_are_parts_of_the_list_of_their_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(&dir.path().join("store.db"));
    let mut dice = 5u64;
    let mut below = |limit: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % limit
    };
    let known = |all: &[kube_store::Entry]| -> Vec<(String, u64)> {
        all.iter().map(|it| (it.key.to_string(), it.revision)).collect()
    };
    // By revision.
    let mut states = vec![Vec::new()];
    for number in 0..400 {
        let key = format!("{}/{:02}", ["j", "k", "k0", "l"][below(4) as usize], below(40));
        match store.get(&key) {
            Some(it) if below(3) == 0 => drop(store.delete(&key, it.revision).await.expect("removed")),
            Some(it) => {
                let value = json!({"n": number});
                store.put(&key, Expected::Revision(it.revision), value).await.expect("written");
            }
            None => drop(store.put(&key, Expected::Absent, json!({"n": number})).await.expect("written")),
        }
        states.push(known(&store.list("k/").items));
    }
    for revision in [0, 1, 57, 200, 399, 400] {
        let whole = if revision == 0 { states.last() } else { states.get(revision as usize) };
        let whole = whole.expect("every revision was kept");
        for size in [1, 7, 1000] {
            let (mut items, mut after) = (Vec::new(), String::new());
            loop {
                let page = store.page("k/", revision, &after, size).expect("remembered");
                items.extend(page.items);
                assert_eq!(items.len() + page.remaining, whole.len(), "at {revision} by {size}");
                match items.last() {
                    Some(last) if page.remaining > 0 => after = last.key.to_string(),
                    _ => break,
                }
            }
            assert_eq!(known(&items), *whole, "at {revision} by {size}");
        }
    }
    store.close().await;
}

#[tokio::test]
async fn of_two_writers_that_saw_the_same_state_one_wins() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(&dir.path().join("store.db"));
    let entry = store.put("k/a", Expected::Absent, json!({})).await.expect("written");
    let seen = Expected::Revision(entry.revision);
    let (one, two) = tokio::join!(
        store.put("k/a", seen, json!({"by": "one"})),
        store.put("k/a", seen, json!({"by": "two"})),
    );
    assert_eq!([one.is_ok(), two.is_ok()].iter().filter(|it| **it).count(), 1);
    assert_eq!(
        store.put("k/a", Expected::Absent, json!({})).await.err(),
        Some(WriteError::Exists { revision: 2 })
    );
    assert_eq!(store.delete("k/none", 1).await.err(), Some(WriteError::Absent));
    store.close().await;
}

#[tokio::test]
async fn the_file_does_not_grow_with_the_number_of_writes() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let options = Options {
        history_ms_min: 0,
        history_rows_max: 50,
        compaction_interval: std::time::Duration::ZERO,
        ..Options::default()
    };
    let store = Store::open(&path, options).expect("opens");
    let text = "x".repeat(1000);
    store.put("k/quiet", Expected::Absent, json!({"n": "kept"})).await.expect("written");
    let mut entry = store.put("k/busy", Expected::Absent, json!({})).await.expect("written");
    for number in 0..500 {
        let value = json!({"n": number, "text": text});
        entry = store.put("k/busy", Expected::Revision(entry.revision), value).await.expect("written");
    }
    let gone = store.put("k/gone", Expected::Absent, json!({})).await.expect("written");
    store.delete("k/gone", gone.revision).await.expect("removed");
    store.close().await;

    let file = rusqlite::Connection::open(&path).expect("opens");
    let rows: i64 = file.query_row("SELECT count(*) FROM log", [], |row| row.get(0)).expect("a count");
    assert!(rows < 60, "{rows} rows");
    drop(file);
    assert!(std::fs::metadata(&path).expect("a file").len() < 300_000);

    let store = open(&path);
    assert_eq!(store.revision(), 504);
    assert_eq!(store.list("k/").items.len(), 2);
    assert_eq!(store.get("k/busy").expect("there").value["n"], 499);
    assert_eq!(store.get("k/quiet").expect("there").value["n"], "kept");
    assert!(matches!(store.watch_from("k/", 3).err(), Some(RevisionError::Expired { .. })));
    store.close().await;
}
