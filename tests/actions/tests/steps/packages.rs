//! JavaScript actions as people write them: with the official packages.

use super::{Project, steps, text, tool};
use std::process::Command;

const MANIFEST: &str = "name: kit\ninputs:\n  token: {required: true}\n  lines: {}\n  flag: {default: 'true'}\n\
                        outputs: {found: {}}\nruns: {using: node20, pre: pre.mjs, main: main.mjs, post: post.mjs}\n";

const PRE: &str = "import * as core from '@actions/core';\ncore.saveState('from', 'pre');\n";

const MAIN: &str = r"
import * as core from '@actions/core';
import * as exec from '@actions/exec';
import * as glob from '@actions/glob';
import * as io from '@actions/io';
import * as tc from '@actions/tool-cache';
import fs from 'node:fs';
import path from 'node:path';

const token = core.getInput('token', { required: true });
core.setSecret('derived-' + token);
core.info('the derived one is derived-' + token);
core.info('lines ' + JSON.stringify(core.getMultilineInput('lines')) + ' flag ' + core.getBooleanInput('flag'));
core.exportVariable('FROM_KIT', 'two\nlines');
core.addPath(path.join(process.env.RUNNER_TEMP, 'kit-bin'));
await io.mkdirP(path.join(process.env.RUNNER_TEMP, 'kit-bin'));
fs.writeFileSync(path.join(process.env.RUNNER_TEMP, 'kit-bin/kit-tool'), '#!/bin/sh\necho tool runs\n', { mode: 0o755 });
await core.group('a group', async () => core.info('within'));
core.warning('watch out', { file: 'src/a.txt', startLine: 2, startColumn: 1, title: 'Careful' });
core.notice('just so');
core.debug('not shown');
const out = await exec.getExecOutput('bash', ['-c', 'echo out; echo err >&2; exit 3'], { ignoreReturnCode: true, silent: true });
core.info(`exec ${out.exitCode} ${out.stdout.trim()} ${out.stderr.trim()}`);
const found = await (await glob.create('**/*.lock\n!skip/**')).glob();
core.setOutput('found', found.map(it => path.relative(process.env.GITHUB_WORKSPACE, it)).join(' '));
core.setOutput('hash', await glob.hashFiles('**/*.lock\n!skip/**'));
fs.mkdirSync('made'); fs.writeFileSync('made/tool', 'x');
core.info('cached before: ' + (tc.find('kit', '1.2.3') !== ''));
await tc.cacheDir('made', 'kit', '1.2.3');
core.info('cached after: ' + (tc.find('kit', '1.x') !== ''));
await core.summary.addHeading('Kit').addTable([[{ data: 'a', header: true }], ['1']]).write();
core.saveState('main', JSON.stringify({ token: token.length }));
core.info('state from ' + core.getState('from'));
core.info(`platform ${core.platform.isLinux} event ${JSON.parse(fs.readFileSync(process.env.GITHUB_EVENT_PATH)).pusher.name}`);
";

const POST: &str = "import * as core from '@actions/core';\ncore.info('post ' + core.getState('from') + ' ' + core.getState('main'));\n";

fn kit() -> Project {
    let workflow = steps(
        "      - uses: actions/checkout@v4
      - id: kit
        uses: test/kit@v1
        with:
          token: ${{ secrets.TOKEN }}
          lines: |
            one
            two
      - run: |
          kit-tool
          echo \"env $FROM_KIT\"
          echo 'found ${{ steps.kit.outputs.found }}'
          test '${{ steps.kit.outputs.hash }}' = \"${{ hashFiles('**/*.lock', '!skip/**') }}\" && echo same hash
",
    );
    let project = Project::new(&[
        (".github/workflows/ci.yml", &workflow),
        ("b.lock", "b"),
        ("deep/er/a.lock", "a"),
        ("skip/c.lock", "c"),
        ("src/a.txt", "x"),
        ("actions/test/kit/action.yml", MANIFEST),
        ("actions/test/kit/pre.mjs", PRE),
        ("actions/test/kit/main.mjs", MAIN),
        ("actions/test/kit/post.mjs", POST),
    ]);
    let packages = tool("actions/node_modules").canonicalize().unwrap();
    std::os::unix::fs::symlink(packages, project.path("actions/test/kit/node_modules")).unwrap();
    project
}

#[test]
fn the_official_packages_find_everything_that_they_speak_to() {
    let project = kit();
    let (log, code) = project.run(&["-s", "TOKEN=sesame-open"]);
    assert_eq!(code, 0, "{log}");
    for want in [
        "the derived one is ***",
        "lines [\"one\",\"two\"] flag true",
        "> a group",
        "warning: Careful: watch out",
        "notice: just so",
        "exec 3 out err",
        "cached before: false",
        "cached after: true",
        "state from pre",
        "platform true event tester",
        "tool runs",
        "env two",
        "found b.lock deep/er/a.lock",
        "same hash",
        "| <h1>Kit</h1>",
        "post pre {\"token\":11}",
        "- Pre Run test/kit@v1",
        "- Post Run test/kit@v1",
    ] {
        assert!(log.contains(want), "`{want}` is missing in\n{log}");
    }
    assert!(!log.contains("sesame") && !log.contains("not shown"), "{log}");
    // The tool cache outlives the run; debug output is asked for by a secret.
    let (log, code) = project.run(&["-s", "TOKEN=sesame-open", "--var", "ACTIONS_STEP_DEBUG=true"]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("cached before: true") && log.contains("debug: not shown"), "{log}");
}

#[test]
fn an_action_that_fails_says_why_and_its_post_still_runs() {
    let project = kit();
    let (log, code) = project.run(&[]);
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("Input required and not supplied: token"), "{log}");
    assert!(log.contains("post pre"), "{log}");
}

/// The same patterns over the same files: ours and `@actions/glob`'s.
#[test]
fn hash_files_gives_the_hashes_of_actions_glob() {
    let patterns = [
        "**/*.lock",
        "*",
        "**",
        "deep",
        "deep/",
        "deep/**",
        "**/deep/*",
        "!deep/**",
        "**\\n!deep",
        "?.lock",
        "[ab].lock",
        "[!a].lock",
        ".hid*/**",
        "./b.lock",
        "**/a*",
        "deep/*/*",
        "b.lock\\nb.lock",
        "# remark\\nb.lock",
        "none",
    ];
    let lines: String = patterns
        .iter()
        .enumerate()
        .map(|(index, it)| format!("          h{index}=${{{{ hashFiles('{it}') }}}}\n"))
        .collect::<String>()
        .replace("\\n", "', '");
    let workflow = steps(&format!(
        "      - uses: actions/checkout@v4\n      - run: |\n          rm -rf .git .github\n      - run: |\n          cat <<E\n{lines}          E\n"
    ));
    let files = [
        (".github/workflows/ci.yml", workflow.as_str()),
        ("a.lock", "1"),
        ("b.lock", "2"),
        ("deep/er/a.lock", "3"),
        ("deep/x.x", "4"),
        ("deep-2/y", "5"),
        (".hidden/z", "6"),
        ("Upper", "7"),
    ];
    let project = Project::new(&files);
    let (log, code) = project.run(&[]);
    assert_eq!(code, 0, "{log}");
    // The package, over a copy without what belongs to git.
    let packages = tool("actions/node_modules").canonicalize().unwrap();
    project.shell("mkdir ../copy; cp -a . ../copy/w; rm -rf ../copy/w/.git ../copy/w/.github");
    std::os::unix::fs::symlink(packages, project.path("copy/node_modules")).unwrap();
    let script = "import * as glob from '@actions/glob';\nconst all = JSON.parse(process.argv[2]);\n\
                  for (let i = 0; i < all.length; i++) console.log(`h${i}=` + await glob.hashFiles(all[i], process.env.GITHUB_WORKSPACE, {followSymbolicLinks: false}));\n";
    std::fs::write(project.path("copy/hash.mjs"), script).unwrap();
    let asked: Vec<String> = patterns.iter().map(|it| it.replace("\\n", "\n")).collect();
    let output = Command::new("node")
        .arg(project.path("copy/hash.mjs"))
        .arg(serde_json::to_string(&asked).unwrap())
        .current_dir(project.path("copy/w"))
        .env("GITHUB_WORKSPACE", project.path("copy/w"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    for (want, pattern) in text(&output.stdout).lines().filter(|it| it.starts_with('h')).zip(patterns) {
        assert!(log.contains(&format!("{want}\n")), "{pattern}: {want}\n{log}");
    }
}

const KEEP: &str = r"
import { DefaultArtifactClient } from '@actions/artifact';
import * as cache from '@actions/cache';
import * as core from '@actions/core';
import fs from 'node:fs';

const client = new DefaultArtifactClient();
if (core.getInput('do') === 'save') {
  fs.mkdirSync('cached', { recursive: true });
  const hit = await cache.restoreCache(['cached'], 'key-1', ['key-']);
  core.info('cache ' + (hit ?? 'missed'));
  if (!hit) {
    fs.writeFileSync('cached/file', 'kept');
    await cache.saveCache(['cached'], 'key-1');
  }
  fs.writeFileSync('out.txt', 'from the first job');
  const { id } = await client.uploadArtifact('result', ['out.txt'], process.cwd());
  core.info('uploaded ' + (id > 0));
} else {
  const { artifact } = await client.getArtifact('result');
  await client.downloadArtifact(artifact.id, { path: 'in' });
  core.info('downloaded ' + fs.readFileSync('in/out.txt', 'utf8'));
}
";

#[test]
fn artifacts_go_from_job_to_job_and_caches_from_run_to_run_without_a_daemon() {
    let job = |name: &str, needs: &str, action: &str| {
        format!(
            "  {name}:\n{needs}    runs-on: ubuntu-latest\n    steps: [{{uses: test/keep@v1, with: {{do: {action}}}}}]\n"
        )
    };
    let workflow = format!(
        "on: push\njobs:\n{}{}",
        job("first", "", "save"),
        job("second", "    needs: first\n", "load")
    );
    let project = Project::new(&[
        (".github/workflows/ci.yml", &workflow),
        ("actions/test/keep/action.yml", "inputs: {do: {}}\nruns: {using: node20, main: main.mjs}\n"),
        ("actions/test/keep/main.mjs", KEEP),
    ]);
    let packages = tool("actions/node_modules").canonicalize().unwrap();
    std::os::unix::fs::symlink(packages, project.path("actions/test/keep/node_modules")).unwrap();
    for (cache, number) in [("cache missed", 1), ("cache key-1", 2)] {
        let (log, code) = project.run(&[]);
        assert_eq!(code, 0, "{log}");
        for want in [cache, "uploaded true", "downloaded from the first job"] {
            assert!(log.contains(want), "run {number}: `{want}` is missing in\n{log}");
        }
    }
}
