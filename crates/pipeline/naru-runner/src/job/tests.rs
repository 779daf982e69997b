use super::*;
use crate::protocol::of_line;
use serde_json::json;
use std::path::Path;

fn run_step(id: &str, script: &str) -> Step {
    Step {
        id: id.into(),
        name: "Run it".into(),
        action: Action::Run {
            script: script.into(),
            shell: ["bash", "-e", "{0}"].map(str::to_owned).to_vec(),
            extension: "sh".into(),
        },
        ..Step::default()
    }
}

fn uses_step(id: &str, uses: &str, with: &[(&str, &str)]) -> Step {
    Step {
        id: id.into(),
        name: format!("Run {uses}"),
        action: Action::Uses {
            uses: uses.into(),
            with: with.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        },
        ..Step::default()
    }
}

struct Ended {
    code: i32,
    log: String,
    events: Vec<Event>,
}

impl Ended {
    fn ends(&self) -> Vec<(String, Outcome)> {
        let of = |it: &Event| match it {
            Event::StepEnded { name, outcome, .. } => Some((name.clone(), *outcome)),
            _ => None,
        };
        self.events.iter().filter_map(of).collect()
    }

    fn annotations(&self) -> Vec<String> {
        let Some(Event::JobEnded { annotations, .. }) = self.events.last() else { panic!("{}", self.log) };
        annotations
            .iter()
            .map(|it| format!("{} {}:{}:{} {}", it.severity, it.file, it.line, it.column, it.message))
            .collect()
    }

    fn summary(&self) -> &str {
        let Some(Event::JobEnded { summary, .. }) = self.events.last() else { panic!("{}", self.log) };
        summary
    }
}

/// Files of the workspace and of a directory of actions, as `path` and content.
async fn job_with(
    files: &[(&str, &str)],
    actions: &[(&str, &str)],
    change: impl FnOnce(&mut JobFile),
) -> Ended {
    let root = tempfile::tempdir().unwrap();
    let workspace = root.path().join("work/repo");
    let write = |base: &Path, all: &[(&str, &str)]| {
        for (path, text) in all {
            let path = base.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    };
    write(&workspace, files);
    write(&root.path().join("actions"), actions);
    let mut file = JobFile {
        dialect: "github".into(),
        nonce: "n".into(),
        job: Job { timeout_minutes: 5, ..Job::default() },
        contexts: json!({"secrets": {"KEY": "hunter22"}, "github": {"sha": "abc", "event": {"number": 7}}})
            .as_object()
            .unwrap()
            .clone(),
        actions_dirs: vec![root.path().join("actions")],
        checkout_token: "token".into(),
        workspace,
        ..JobFile::default()
    };
    change(&mut file);
    let mut out = Vec::new();
    // Where Debian has Node, and where our set-up puts it on a machine without.
    let path = concat!("/usr/local/bin:/usr/bin:/bin:", env!("CARGO_MANIFEST_DIR"), "/../../../.tools/bin")
        .to_owned();
    let code = run(file, path, &mut out).await;
    let log = String::from_utf8(out).unwrap();
    let events = log.lines().filter_map(|it| of_line("n", it)).collect();
    Ended { code, log, events }
}

async fn job(steps: Vec<Step>) -> Ended {
    job_with(&[], &[], |it| {
        it.job.steps = steps;
        it.job.outputs = vec![("v".into(), "${{ steps.a.outputs.v }}".into())];
    })
    .await
}

#[tokio::test]
async fn steps_pass_values_on_and_secrets_stay_hidden() {
    let it = job(vec![
        run_step("a", "echo v=1.2 >> $GITHUB_OUTPUT; echo X=from-env >> $GITHUB_ENV; echo '# done' >> $GITHUB_STEP_SUMMARY"),
        run_step("", "echo \"got ${{ steps.a.outputs.v }} $X ${{ env.X }}\"; echo ${{ secrets.KEY }}; echo -n ${{ secrets.KEY }} | base64"),
    ])
    .await;
    assert_eq!(it.code, 0, "{}", it.log);
    assert!(it.log.contains("got 1.2 from-env from-env"), "{}", it.log);
    assert!(!it.log.contains("hunter22") && !it.log.contains("aHVudGVyMjI"), "{}", it.log);
    let Some(Event::JobEnded { outputs, .. }) = it.events.last() else { panic!("{}", it.log) };
    assert_eq!(outputs["v"], "1.2");
    assert_eq!(it.summary(), "# done");
}

#[tokio::test]
async fn a_failed_step_skips_the_rest_but_not_always() {
    let mut cleanup = run_step("", "echo cleaning");
    cleanup.condition = Some("always()".into());
    let it = job(vec![run_step("", "exit 3"), run_step("", "echo never"), cleanup]).await;
    assert_eq!(it.code, 1);
    assert!(!it.log.contains("never") && it.log.contains("cleaning"), "{}", it.log);
    let ends: Vec<_> = it
        .events
        .iter()
        .filter_map(|it| match it {
            Event::StepEnded { outcome, exit_code, .. } => Some((*outcome, *exit_code)),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [(Outcome::Failed, Some(3)), (Outcome::Skipped, None), (Outcome::Succeeded, Some(0))]);
}

#[tokio::test]
async fn a_step_that_closes_its_output_is_still_bound_by_its_end() {
    let it = job(vec![run_step("", "exec >&- 2>&-; sleep 0.2; exit 4"), run_step("", "echo never")]).await;
    assert_eq!(it.code, 1);
    assert!(!it.log.contains("never"), "{}", it.log);
}

#[tokio::test]
async fn what_a_step_starts_in_the_background_serves_later_steps_and_ends_with_the_job() {
    let it = job(vec![
        run_step("", "(while sleep 0.02; do echo beat; echo x >> beats; done) & echo $! > pid"),
        run_step(
            "",
            "before=$(wc -l < beats); sleep 0.3; after=$(wc -l < beats); test $after -gt $before; cat pid",
        ),
    ])
    .await;
    assert_eq!(it.code, 0, "{}", it.log);
    let pid = it.log.lines().filter_map(|it| it.parse::<i32>().ok()).next_back().unwrap();
    let gone = async {
        // Killed is not reaped: a zombie has no command line.
        while std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| !it.is_empty()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
}

#[tokio::test]
async fn a_process_left_behind_does_not_hold_the_job() {
    let it = job(vec![run_step("", "sleep 600 & echo started")]).await;
    assert_eq!(it.code, 0);
    assert!(it.log.contains("started"));
}

#[tokio::test]
async fn commands_in_the_output_are_done() {
    let it = job_with(
        &[
            ("src/a.c", "x"),
            (
                ".matcher.json",
                r#"{"problemMatcher": [{"owner": "cc", "pattern": [{"regexp": "^(\\S+):(\\d+): (.*)$", "file": 1, "line": 2, "message": 3}]}]}"#,
            ),
        ],
        &[],
        |it| {
            it.job.steps = vec![
                run_step(
                    "a",
                    "echo '::set-output name=old::way'; echo '::error file=src/a.c,line=3,title=T::bad%0Athing'; \
                     echo '::add-mask::topsecret'; echo topsecret; echo '::stop-commands::tok'; \
                     echo '::warning::not one'; echo '::tok::'; echo '::debug::unseen'; \
                     echo '::add-matcher::.matcher.json'; echo 'src/a.c:9: oops hunter22'; echo 'none.c:1: gone'; \
                     echo '::remove-matcher owner=cc::'; echo 'src/a.c:10: plain'; echo '::group::G'; echo '::endgroup::'",
                ),
                run_step("", "echo 'old is ${{ steps.a.outputs.old }}'"),
                run_step("", "echo '::set-env name=A::b'"),
            ];
        },
    )
    .await;
    assert!(it.log.contains("old is way") && !it.log.contains("topsecret"), "{}", it.log);
    assert!(it.log.contains("##[group]G\n##[endgroup]\n") && !it.log.contains("unseen"), "{}", it.log);
    let notes = it.annotations();
    assert!(notes[0].contains("`::set-output::` is deprecated"), "{notes:?}");
    assert_eq!(notes[1], "error src/a.c:3:0 T: bad\nthing");
    assert_eq!(notes[2], "error src/a.c:9:0 oops ***");
    // A file that is not there is no place.
    assert_eq!(notes[3], "error :1:0 gone");
    assert!(notes[4].contains("GITHUB_ENV") && notes.len() == 5, "{notes:?}");
    // What a misused command means is that the step failed.
    assert_eq!(it.ends()[2].1, Outcome::Failed);
}

#[tokio::test]
async fn files_of_a_step_are_read_by_githubs_rules() {
    let it = job(vec![
        run_step("", "printf 'A=1\\nA=2\\nGITHUB_SHA=mine\\nGITHUB_OTHER=kept\\nNODE_OPTIONS=x\\n' >> $GITHUB_ENV; echo /first >> $GITHUB_PATH; echo /second >> $GITHUB_PATH"),
        run_step("", "echo \"A=$A sha=$GITHUB_SHA other=$GITHUB_OTHER no=$NODE_OPTIONS.\"; echo \"path=${PATH%%:/u*}\"; echo $GITHUB_EVENT_PATH; cat $GITHUB_EVENT_PATH"),
        run_step("", "head -c 1100000 /dev/zero | tr '\\0' x > $GITHUB_STEP_SUMMARY"),
        run_step("", "echo kept > $GITHUB_STEP_SUMMARY"),
        run_step("", "echo oops >> $GITHUB_OUTPUT"),
    ])
    .await;
    assert!(it.log.contains("A=2 sha=abc other=kept no=."), "{}", it.log);
    assert!(it.log.contains("path=/second:/first"), "{}", it.log);
    assert!(it.log.contains("\"number\": 7"), "{}", it.log);
    assert_eq!(it.summary(), "kept");
    let outcomes: Vec<Outcome> = it.ends().into_iter().map(|it| it.1).collect();
    assert_eq!(outcomes[..4], [Outcome::Succeeded; 4]);
    assert_eq!(outcomes[4], Outcome::Failed);
    assert!(it.annotations().iter().any(|it| it.contains("NODE_OPTIONS")), "{:?}", it.annotations());
}

/// Says its stage, its inputs and its state; `post` runs where the manifest says so.
const NODE_ACTION: &str = "name: it\ninputs:\n  who me: {default: nobody}\n  job: {default: '${{ job.status }}'}\n\
                           runs: {using: node20, main: main.js, pre: pre.js, post: post.js}\n";
const MAIN: &str = "const fs = require('fs');\n\
                    const e = process.env;\n\
                    console.log(`main ${e['INPUT_WHO_ME']} state=${e.STATE_pre} action=${e.GITHUB_ACTION_REPOSITORY}@${e.GITHUB_ACTION_REF}`);\n\
                    fs.appendFileSync(e.GITHUB_STATE, `main=${e['INPUT_WHO_ME']}\\n`);\n\
                    fs.appendFileSync(e.GITHUB_OUTPUT, 'said=yes\\n');\n";
const PRE: &str =
    "require('fs').appendFileSync(process.env.GITHUB_STATE, 'pre=done\\n'); console.log('pre');\n";
const POST: &str = "console.log(`post ${process.env.STATE_main} job=${process.env.INPUT_JOB}`);\n";

fn node_action(at: &[String; 4]) -> Vec<(&str, &str)> {
    vec![(&at[0], NODE_ACTION), (&at[1], MAIN), (&at[2], PRE), (&at[3], POST)]
}

fn node_paths(at: &str) -> [String; 4] {
    ["action.yml", "main.js", "pre.js", "post.js"].map(|it| format!("{at}/{it}"))
}

fn in_order(log: &str, parts: &[&str]) {
    let mut at = 0;
    for part in parts {
        match log[at..].find(part) {
            Some(found) => at += found + part.len(),
            None => panic!("`{part}` is missing or too early in\n{log}"),
        }
    }
}

#[tokio::test]
async fn javascript_actions_prepare_run_and_clean_up_in_reverse() {
    let paths = node_paths("o/r@v1");
    let it = job_with(&[], &node_action(&paths), |it| {
        it.job.steps = vec![
            uses_step("one", "o/r@v1", &[("Who Me", "first")]),
            uses_step("two", "o/r@v1", &[("who me", "second")]),
            run_step("", "echo \"said ${{ steps.one.outputs.said }}\"; exit 1"),
        ];
    })
    .await;
    assert_eq!(it.code, 1);
    in_order(
        &it.log,
        &[
            "pre\n",
            "pre\n",
            "main first state=done action=o/r@v1",
            "main second state=done",
            "said yes",
            "post second job=failure",
            "post first job=failure",
        ],
    );
    let names: Vec<String> = it.ends().into_iter().map(|it| it.0).collect();
    assert_eq!(names[0], "Pre Run o/r@v1");
    assert_eq!(names[5..], ["Post Run o/r@v1", "Post Run o/r@v1"]);
}

#[tokio::test]
async fn actions_run_on_the_images_node_whatever_the_project_uses() {
    let paths = node_paths("o/r@v1");
    let it = job_with(&[], &node_action(&paths), |it| {
        let own = "mkdir bin; printf '#!/bin/sh\\necho not this one; exit 1\\n' > bin/node; chmod +x bin/node; echo $PWD/bin >> $GITHUB_PATH";
        it.job.steps = vec![run_step("", own), uses_step("", "o/r@v1", &[("who me", "x")]), run_step("", "node || true")];
    })
    .await;
    assert_eq!(it.code, 0, "{}", it.log);
    assert!(it.log.contains("main x") && it.log.contains("not this one"), "{}", it.log);
}

const COMPOSITE: &str = "name: c\ninputs: {level: {default: '0'}}\n\
    outputs: {deep: {value: '${{ steps.inner.outputs.x }}-${{ inputs.level }}'}}\n\
    runs:\n  using: composite\n  steps:\n\
    \x20   - {id: inner, shell: bash, run: 'echo \"x=${{ inputs.level }}${{ steps.outer.outputs.x }}\" >> $GITHUB_OUTPUT; echo in ${{ github.action_path }} E=$E S=${{ secrets.KEY }}.'}\n\
    \x20   - {uses: o/r@v1, with: {who me: 'level ${{ inputs.level }}'}}\n\
    \x20   - {shell: bash, run: 'exit ${{ inputs.level }}', continue-on-error: '${{ inputs.level == 3 }}'}\n\
    \x20   - {shell: bash, run: 'echo rescued', if: 'failure()'}\n\
    \x20   - {shell: bash, run: 'echo fine'}\n";

#[tokio::test]
async fn composites_have_inputs_steps_and_outputs_of_their_own() {
    let paths = node_paths("o/r@v1");
    let mut actions = node_action(&paths);
    actions.push(("o/c/sub/action.yml", COMPOSITE));
    let local = [(".github/actions/c/action.yaml", COMPOSITE)];
    let it = job_with(&local, &actions, |it| {
        let with_env = Step { env: vec![("E".into(), "given".into())], ..uses_step("remote", "o/c/sub@main", &[("level", "0")]) };
        it.job.steps = vec![
            run_step("outer", "echo x=LEAK >> $GITHUB_OUTPUT"),
            with_env,
            uses_step("local", "./.github/actions/c", &[("level", "3")]),
            run_step("", "echo '[${{ steps.remote.outputs.deep }}] [${{ steps.local.outputs.deep }}] [${{ steps.inner.outputs.x }}]'"),
            uses_step("bad", "./.github/actions/c", &[("level", "4"), ("nonsense", "1")]),
        ];
    })
    .await;
    assert_eq!(it.code, 1, "{}", it.log);
    assert!(it.log.contains("[0-0] [3-3] []") && !it.log.contains("LEAK"), "{}", it.log);
    assert!(it.log.contains("o/c/sub E=given S=."), "{}", it.log);
    in_order(
        &it.log,
        &[
            "main level 0 state=done",
            "fine",
            "main level 3 state=undefined",
            "fine",
            "unknown inputs `nonsense`",
            "main level 4",
            "rescued",
            "post level 4 job=failure",
            "post level 3",
            "post level 0",
        ],
    );
    let ends = it.ends();
    assert_eq!(ends[0], ("Pre Run o/c/sub@main".into(), Outcome::Succeeded));
    assert_eq!(ends[5], ("Run ./.github/actions/c".into(), Outcome::Failed));
}

#[tokio::test]
async fn an_action_that_cannot_be_had_or_read_fails_with_what_to_do() {
    let it = job_with(&[], &[], |it| {
        let always = Step { condition: Some("always()".into()), ..run_step("", "echo never") };
        it.job.steps = vec![uses_step("", "o/missing@v1", &[]), always];
    })
    .await;
    assert_eq!(it.code, 1);
    assert!(it.log.contains("`o/missing@v1` cannot be had") && !it.log.contains("never\n"), "{}", it.log);
    for (uses, want) in [
        ("./none", "actions/checkout before it"),
        ("nonsense", "names no action"),
        ("./bad", "./bad/action.yml:1:15"),
        ("./loop", "nested more than 10 deep"),
    ] {
        let files = [
            ("bad/action.yml", "runs: {using: node1, main: x}\n"),
            ("loop/action.yml", "runs: {using: composite, steps: [{uses: ./loop}]}\n"),
        ];
        let it = job_with(&files, &[], |it| it.job.steps = vec![uses_step("", uses, &[])]).await;
        assert!(it.code == 1 && it.log.contains(want), "{uses}: {}", it.log);
    }
}

#[tokio::test]
async fn a_step_may_be_forgiven_or_run_out_of_time_by_expression() {
    let mut slow = run_step("slow", "sleep 60");
    slow.timeout_minutes_text = "${{ 0.002 }}".into();
    slow.continue_on_error_text = "${{ github.sha == 'abc' }}".into();
    let it =
        job(vec![slow, run_step("", "echo '${{ steps.slow.outcome }} ${{ steps.slow.conclusion }}'")]).await;
    assert_eq!(it.code, 0, "{}", it.log);
    assert!(it.log.contains("failure success"), "{}", it.log);
    assert!(it.log.contains("longer than its timeout"), "{}", it.log);
}

#[tokio::test]
async fn files_are_hashed_while_the_job_runs() {
    let it = job_with(&[("a.lock", "1"), ("d/b.lock", "2")], &[], |it| {
        it.job.steps = vec![
            run_step("", "echo \"hash=${{ hashFiles('**/*.lock') }}.\"; echo 3 > c.lock"),
            run_step("", "echo \"none=${{ hashFiles('*.none') }}.\"; test '${{ hashFiles('**/*.lock') }}' != '${{ hashFiles('a.lock', 'd') }}'"),
        ];
    })
    .await;
    assert_eq!(it.code, 0, "{}", it.log);
    assert!(it.log.contains("none=.") && !it.log.contains("hash=."), "{}", it.log);
}

#[tokio::test]
async fn a_line_of_ten_megabytes_goes_through_with_its_secret_hidden() {
    let it = job(vec![run_step("", "head -c 5000000 /dev/zero | tr '\\0' a; printf hunter22; head -c 5000000 /dev/zero | tr '\\0' b; echo")]).await;
    assert_eq!(it.code, 0);
    let shown: usize = it.log.lines().filter(|it| !it.starts_with("##")).map(str::len).sum();
    assert_eq!(shown, 10_000_003);
    assert!(it.log.contains("***") && !it.log.contains("hunter22"));
}

/// What a step prints and writes is anybody's text: no reader of it may break.
#[test]
fn hostile_text_breaks_no_reader() {
    const PARTS: &[&str] = &[
        "::",
        "##[",
        "]",
        "error",
        "set-output",
        "add-mask",
        "stop-commands",
        " ",
        ",",
        ";",
        "=",
        "name=",
        "%0A",
        "%25",
        "%",
        "<<",
        "\n",
        "\r",
        "é",
        "\u{1f980}",
        "*",
        "**",
        "?",
        "[",
        "[!",
        "-",
        "\\",
        "/",
        "./",
        "..",
        "!",
        "#",
        "{",
        "}",
        "{2,}",
        "(",
        ")",
        "(?:",
        "\\s",
        "\\>",
        "$",
        "^",
        "a",
        "b",
        "\0",
        "\u{feff}",
        "\x1b[31m",
        "\x1b[",
    ];
    let mut state = 42u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a"), "x").unwrap();
    let mut mask = crate::mask::Mask::default();
    for round in 0..4000 {
        let text: String = (0..random(12)).map(|_| PARTS[random(PARTS.len())]).collect();
        let _ = commands::parse(&text);
        let _ = crate::files::assignments(&text);
        let _ = hash::of_files(root.path(), std::slice::from_ref(&text));
        let _ = packages::Uses::parse(&text);
        let pattern =
            json!({"problemMatcher": [{"owner": "o", "pattern": [{"regexp": text, "message": 0}]}]});
        if let Ok(loaded) = matchers::load(&pattern.to_string()) {
            let mut matchers = matchers::Matchers::default();
            matchers.add(loaded.matchers);
            let _ = matchers.line(&text);
        }
        if round % 40 == 0 {
            mask.add(&text);
        }
        let mut lines = lines::Lines::default();
        let whole: String = lines.push(format!("{text}\n").as_bytes(), &mask).concat();
        let _ = mask.apply(&whole);
        let _ = mask.cut(text.as_bytes(), random(20));
    }
}
