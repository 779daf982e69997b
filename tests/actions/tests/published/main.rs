//! GitHub's own actions as they are published, unmodified, against our services: checkout, upload-artifact,
//! download-artifact, cache, setup-node, github-script.
//!
//! No package registry has them, so they are here only where somebody brought them:
//!
//! ```text
//! scripts/published-actions.sh /srv/actions
//! NARU_PUBLISHED_ACTIONS=/srv/actions cargo test -p naru-actions-tests --test published
//! ```
//!
//! Without that the test says that it did nothing. What these actions are built from, the `@actions/*` packages, is
//! tested in `tests/services` everywhere.

use naru_actions_tests::ended;
use naru_actions_tests::harness::{Daemon, Repository, text};
use std::io::Write;

/// What our own checkout does not do itself is left to the published one: submodules.
const WORKFLOW: &str = "on: push
permissions: {contents: read, actions: read}
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
        with: {submodules: true, fetch-depth: 0}
      - run: test \"$(git rev-parse HEAD)\" = \"$GITHUB_SHA\" && git log --oneline | wc -l
      - uses: actions/setup-node@v4
      - id: cache
        uses: actions/cache@v4
        with: {path: dist, key: 'dist-${{ hashFiles(''source.txt'') }}'}
      - run: mkdir -p dist; test -e dist/made || date +%N > dist/made; echo \"hit=${{ steps.cache.outputs.cache-hit }}\"
      - uses: actions/upload-artifact@v4
        id: upload
        with: {name: dist, path: dist, if-no-files-found: error, retention-days: 3}
      - run: echo \"artifact ${{ steps.upload.outputs.artifact-id }} ${{ steps.upload.outputs.artifact-digest }}\"
      - uses: actions/github-script@v7
        with:
          script: |
            const { data } = await github.rest.repos.get(context.repo)
            console.log(`script sees ${data.full_name} on ${data.default_branch}`)
  use:
    needs: build
    runs-on: ubuntu-latest
    steps:
      - uses: actions/download-artifact@v4
        with: {name: dist, path: got}
      - run: test -s got/made && echo \"made at $(cat got/made)\"
      - uses: actions/download-artifact@v4
        with: {pattern: 'd*', merge-multiple: true, path: all}
      - run: cmp got/made all/made
";

#[test]
fn the_published_actions_run_unmodified() {
    let Some(directory) = std::env::var_os("NARU_PUBLISHED_ACTIONS") else {
        let why = "skipped: github.com's actions are in no package registry; bring them with \
                   scripts/published-actions.sh DIR, and set NARU_PUBLISHED_ACTIONS=DIR\n";
        // Not by a macro: what those print of a test that passes is not shown.
        let _ = std::io::stderr().write_all(why.as_bytes());
        return;
    };
    let directory = directory.into_string().unwrap();
    let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let daemon = Daemon::start_in(dir, &["--actions-dir", &directory, "--actions-from", "none"]);
    let shop = Repository::empty(&daemon, "shop");
    shop.write(".github/workflows/ci.yml", WORKFLOW);
    shop.write("source.txt", "one\n");
    shop.commit("the start");
    shop.push();
    let logs = |name: &str| {
        let run = ended(&daemon, name);
        let shown = text(&daemon.naru(&["logs", &format!("run/{name}")]));
        assert_eq!(run["status"]["phase"], "Succeeded", "{shown}\n{run:#}");
        shown
    };
    let first = logs("shop-main-1");
    assert!(first.contains("script sees naru/shop on main"), "{first}");
    assert!(!first.contains("hit=true"), "{first}");
    let made = |shown: &str| {
        shown.lines().find(|it| it.contains("made at ") && !it.contains("$(")).unwrap().trim().to_owned()
    };

    // The cache of the run before is found, and with it what was made then.
    shop.commit("the same sources");
    shop.push();
    let second = logs("shop-main-2");
    assert!(second.contains("hit=true"), "{second}");
    assert_eq!(made(&first), made(&second));
    daemon.destroy();
}
