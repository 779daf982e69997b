//! `@actions/artifact`, at the version of `upload-artifact@v4` and at the newest.

use crate::{Fixture, answer};
use naru_actions_tests::harness::text;
use naru_token::JobClaims;
use serde_json::json;

const CLIENTS: [&str; 2] = ["artifact-of-v4", "@actions/artifact"];

#[test]
fn artifacts_of_every_client_reach_the_run_s_other_jobs() {
    let it = Fixture::start(&[]);
    let root = it.path("dist");
    let small = it.write("dist/a.txt", b"hello");
    let large: Vec<u8> = (0..20_000_000_u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let large_path = it.write("dist/deep/b.bin", &large);
    let sibling = JobClaims { job: "another".into(), ..it.claims.clone() };

    // Both at once, so that their pieces arrive interleaved.
    let uploads: Vec<_> = CLIENTS
        .iter()
        .enumerate()
        .map(|(number, client)| {
            let options = r#"{"retentionDays": 3, "compressionLevel": 0}"#;
            let mut command = it.command(
                &it.claims,
                &[client, "upload", &format!("dist-{number}"), &root, options, &small, &large_path],
            );
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for upload in uploads {
        let uploaded = answer(&upload.wait_with_output().unwrap());
        assert!(uploaded["size"].as_u64().unwrap() > 20_000_000, "{uploaded}");
    }
    for (number, client) in CLIENTS.iter().enumerate() {
        let listed = it.call(&sibling, &[client, "list"]);
        assert_eq!(listed.as_array().unwrap().len(), 2, "{client}: {listed}");
        // What the one has uploaded, the other downloads.
        let (name, to) = (format!("dist-{}", 1 - number), it.path(&format!("to-{number}")));
        let downloaded = it.call(&sibling, &[client, "download", &name, &to]);
        assert!(downloaded["digestMismatch"] != json!(true), "{downloaded}");
        assert_eq!(std::fs::read(format!("{to}/a.txt")).unwrap(), b"hello");
        assert!(std::fs::read(format!("{to}/deep/b.bin")).unwrap() == large, "{client} got other bytes");
    }

    let taken = it.run(&it.claims, &[CLIENTS[0], "upload", "dist-0", &root, "{}", &small]);
    assert!(
        !taken.status.success() && text(&taken).contains("an artifact with this name already exists"),
        "{}",
        text(&taken)
    );
    // `overwrite: true` deletes first.
    it.call(&it.claims, &[CLIENTS[1], "delete", "dist-0"]);
    it.call(&it.claims, &[CLIENTS[0], "upload", "dist-0", &root, "{}", &small]);

    // One file as it is, not zipped.
    let raw = it.call(&it.claims, &[CLIENTS[1], "upload", "", &root, r#"{"skipArchive": true}"#, &small]);
    assert_eq!(raw["size"], 5);
    it.call(&sibling, &[CLIENTS[1], "download", "a.txt", &it.path("raw")]);
    assert_eq!(std::fs::read(it.path("raw/a.txt")).unwrap(), b"hello");

    // From another run, with a token that may read `actions`: through the REST interface.
    let run = naru_token::run_id(&it.claims.run_uid);
    let find = |token: &JobClaims| {
        json!({"token": it.mint(token), "workflowRunId": run, "repositoryOwner": "naru", "repositoryName": "page"})
            .to_string()
    };
    for client in CLIENTS {
        let listed = it.call(&it.claims, &[client, "list", &find(&it.claims)]);
        assert_eq!(listed.as_array().unwrap().len(), 3, "{client}: {listed}");
        let to = it.path(&format!("rest-{}", client.len()));
        it.call(&it.claims, &[client, "download", "dist-1", &to, &find(&it.claims)]);
        assert_eq!(std::fs::read(format!("{to}/a.txt")).unwrap(), b"hello");
    }
    let without = JobClaims { permissions: Default::default(), ..it.claims.clone() };
    let refused = it.run(&it.claims, &[CLIENTS[1], "list", &find(&without)]);
    assert!(text(&refused).contains("`actions: read`"), "{}", text(&refused));
    it.call(&it.claims, &[CLIENTS[1], "delete", "dist-1", &find(&it.claims)]);

    // Test reports in artifacts, zipped or not.
    let report = |test: &str| {
        format!(
            "<testsuites><testsuite><testcase classname=\"c\" name=\"{test}\" time=\"3\"/></testsuite></testsuites>"
        )
    };
    let zipped = it.write("dist/out/a.xml", report("in_an_archive").as_bytes());
    let bare = it.write("dist/b.xml", report("as_it_is").as_bytes());
    it.call(&it.claims, &[CLIENTS[0], "upload", "reports", &root, "{}", &zipped]);
    it.call(&it.claims, &[CLIENTS[1], "upload", "", &root, r#"{"skipArchive": true}"#, &bare]);
    let tests = text(&it.daemon.naru(&["ci", "tests", "page-main-1"]));
    for line in
        ["artifact reports: 1 passed", "artifact b.xml: 1 passed", "3.00 s  c.in_an_archive", "c.as_it_is"]
    {
        assert!(tests.contains(line), "{line}: {tests}");
    }

    let foreign = JobClaims { run_uid: "00000000-0000-0000-0000-000000000000".into(), ..it.claims.clone() };
    let refused = it.run(&foreign, &[CLIENTS[0], "list"]);
    assert!(text(&refused).contains("the run of this token is gone"), "{}", text(&refused));
    let expired = JobClaims { exp: 1, ..it.claims.clone() };
    let refused = it.run(&expired, &[CLIENTS[1], "list"]);
    assert!(text(&refused).contains("the token has expired"), "{}", text(&refused));
    it.daemon.destroy();
}

/// Peak of the daemon's memory, in KiB.
fn peak_memory(it: &Fixture) -> u64 {
    let pid = it.daemon.endpoints["pid"].as_u64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_large_artifact_needs_no_memory_and_half_of_one_is_never_seen() {
    let mut it = Fixture::start(&[]);
    let root = it.path("large");
    let path = it.path("large/file");
    std::fs::create_dir_all(&root).unwrap();
    // 300 MB that take no room here, and are sent in full: nothing is compressed.
    std::fs::File::create(&path).unwrap().set_len(300 << 20).unwrap();
    let upload = |it: &Fixture, name: &str| {
        it.command(&it.claims, &[CLIENTS[0], "upload", name, &root, r#"{"compressionLevel": 0}"#, &path])
    };
    let before = peak_memory(&it);
    let uploaded = answer(&upload(&it, "whole").output().unwrap());
    assert!(uploaded["size"].as_u64().unwrap() > 300 << 20);
    it.call(&it.claims, &[CLIENTS[0], "download", "whole", &it.path("to")]);
    assert_eq!(std::fs::metadata(it.path("to/file")).unwrap().len(), 300 << 20);
    let grown = peak_memory(&it) - before;
    assert!(grown < 100 << 10, "the daemon grew by {grown} KiB for 300 MB");

    // The next upload ends with the daemon's life.
    let blobs = it.daemon.data_dir().join("ci/blobs");
    let count = || std::fs::read_dir(&blobs).unwrap().count();
    assert_eq!(count(), 1);
    let mut half = upload(&it, "half").stdout(std::process::Stdio::null()).spawn().unwrap();
    let began = std::time::Instant::now();
    let has_pieces = || {
        let dirs = std::fs::read_dir(&blobs).unwrap().flatten();
        dirs.filter_map(|it| std::fs::read_dir(it.path()).ok()).any(|mut it| {
            let names: Vec<String> =
                it.by_ref().flatten().map(|it| it.file_name().to_string_lossy().into()).collect();
            !names.contains(&"sealed.json".to_owned()) && names.iter().any(|it| it.starts_with("p-"))
        })
    };
    while !has_pieces() {
        assert!(began.elapsed() < naru_actions_tests::harness::PATIENCE, "no piece arrived");
        std::thread::yield_now();
    }
    it.daemon.kill();
    half.kill().unwrap();
    half.wait().unwrap();
    it.daemon.start_again();
    let listed = it.call(&it.claims, &[CLIENTS[1], "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["name"], "whole");
    // The job may do it again, and what the first try has left goes.
    answer(&upload(&it, "half").output().unwrap());
    assert_eq!(count(), 2);
    it.daemon.destroy();
}
