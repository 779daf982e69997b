//! `@actions/cache`, over the second service and, as old versions of `actions/cache` do, over the first.

use crate::Fixture;
use naru_token::JobClaims;
use serde_json::json;

#[test]
fn caches_are_restored_by_key_then_by_the_newest_prefix() {
    let it = Fixture::start(&["--cache-budget", "60M"]);
    let feature = JobClaims { git_ref: "refs/heads/feature".into(), ..it.claims.clone() };
    for client in ["cache-of-v3", "cache-of-v4", "@actions/cache"] {
        let dir = format!("modules-{}", client.trim_start_matches('@').replace('/', "-"));
        let key = |number: u32| format!("{dir}-{number}");
        for number in [1, 2] {
            it.write(&format!("{dir}/file"), format!("version {number}").as_bytes());
            let saved = it.call(&it.claims, &[client, "save", &key(number), &dir]);
            assert!(saved.as_i64().unwrap() > 0 || client != "cache-of-v3", "{client}: {saved}");
        }
        let restore = |claims: &JobClaims, keys: &[&str]| {
            std::fs::remove_dir_all(it.path(&dir)).unwrap();
            let mut args = vec![client, "restore", keys[0], dir.as_str()];
            args.extend(&keys[1..]);
            let found = it.call(claims, &args);
            let content = std::fs::read_to_string(it.path(&format!("{dir}/file"))).unwrap_or_default();
            std::fs::create_dir_all(it.path(&dir)).unwrap();
            (found, content)
        };
        assert_eq!(restore(&it.claims, &[&key(1)]), (json!(key(1)), "version 1".into()), "{client}");
        let prefix = format!("{dir}-");
        assert_eq!(
            restore(&feature, &[&key(9), "nothing-", &prefix]),
            (json!(key(2)), "version 2".into()),
            "{client}"
        );
        assert_eq!(restore(&it.claims, &["nothing"]), (json!(null), String::new()), "{client}");
        // A second save under a key keeps the first.
        it.write(&format!("{dir}/file"), b"version 3");
        it.call(&it.claims, &[client, "save", &key(1), &dir]);
        assert_eq!(restore(&it.claims, &[&key(1)]).1, "version 1", "{client}");
        // What a branch saves, the default branch does not see.
        it.write(&format!("{dir}/file"), b"of the branch");
        it.call(&feature, &[client, "save", &key(1), &dir]);
        assert_eq!(restore(&feature, &[&key(1)]).1, "of the branch", "{client}");
        assert_eq!(restore(&it.claims, &[&key(1)]).1, "version 1", "{client}");
        let fork = JobClaims { untrusted: true, ..it.claims.clone() };
        it.write(&format!("{dir}/file"), b"poison");
        it.call(&fork, &[client, "save", &key(7), &dir]);
        assert_eq!(
            restore(&it.claims, &[&key(7)]).0,
            json!(null),
            "{client}: a fork wrote into a branch's caches"
        );
    }
    it.daemon.destroy();
}
