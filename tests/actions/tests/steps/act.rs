//! `act` as a second opinion: the same workflows, on this machine, must end the same and say the same.
//!
//! Where act is known to be wrong, GitHub's documentation counts: such cases are in [`DIFFERENT`], with what
//! each says.

use super::{Project, text, tool};
use std::collections::BTreeMap;

const LOCAL_NODE: &str = "name: n\ninputs: {who: {default: nobody}}\noutputs: {greeting: {}}\n\
                          runs: {using: node20, main: main.js, post: post.js}\n";
const LOCAL_NODE_MAIN: &str = "const fs = require('fs');\nconst e = process.env;\n\
                               console.log('=> main ' + e.INPUT_WHO);\n\
                               fs.appendFileSync(e.GITHUB_OUTPUT, 'greeting=hello ' + e.INPUT_WHO + '\\n');\n\
                               fs.appendFileSync(e.GITHUB_STATE, 'kept=state\\n');\n";
const LOCAL_NODE_POST: &str = "console.log('=> post ' + process.env.STATE_kept);\n";
const LOCAL_COMPOSITE: &str = "name: c\ninputs: {who: {required: true}}\n\
    outputs: {twice: {value: '${{ steps.two.outputs.v }}'}}\n\
    runs:\n  using: composite\n  steps:\n\
    \x20   - {id: one, shell: bash, run: 'echo \"v=${{ inputs.who }}\" >> $GITHUB_OUTPUT'}\n\
    \x20   - {id: two, shell: bash, run: 'echo \"v=${{ steps.one.outputs.v }}${{ steps.one.outputs.v }}\" >> $GITHUB_OUTPUT'}\n";

/// Steps (or whole jobs, if they begin with `jobs:`). Lines that begin with `=>` are compared; a step that fails
/// says none, because act may lose the last output of such a step.
const SAME: &[(&str, &str)] = &[
    ("plain", "- run: echo '=> hi'"),
    ("a failure stops", "- run: echo '=> one'\n- run: exit 3\n- run: echo '=> never'"),
    (
        "pipefail only when bash is named",
        "- run: false | echo '=> without'\n- run: echo '=> with'\n- {run: \"false | true\", shell: bash}\n- run: echo '=> never'",
    ),
    (
        "always and failure",
        "- {id: x, run: exit 1}\n- {if: always(), run: 'echo \"=> ${{ steps.x.outcome }} ${{ job.status }}\"'}\n- {if: failure(), run: echo '=> failed'}\n- {if: success(), run: echo '=> never'}",
    ),
    (
        "continue-on-error",
        "- {id: x, run: exit 1, continue-on-error: true}\n- run: echo '=> ${{ steps.x.outcome }} ${{ steps.x.conclusion }}'",
    ),
    (
        "outputs",
        "- {id: x, run: 'echo a=1 >> $GITHUB_OUTPUT; printf \"b<<E\\nl1\\nl2\\nE\\n\" >> $GITHUB_OUTPUT'}\n- run: |\n    echo '=> ${{ steps.x.outputs.a }}'\n    echo \"=> ${{ toJSON(steps.x.outputs.b) }}\"",
    ),
    (
        "environment",
        "- run: echo A=late >> $GITHUB_ENV; echo \"=> [$A]\"\n- {run: 'echo \"=> $A $B ${{ env.A }} ${{ env.B }}\"', env: {B: step}}\n- {run: 'echo \"=> $A\"', env: {A: own}}",
    ),
    (
        "path",
        "- run: mkdir -p bin; printf '#!/bin/sh\\necho \"=> mine\"\\n' > bin/my-tool; chmod +x bin/my-tool; echo $PWD/bin >> $GITHUB_PATH\n- run: my-tool",
    ),
    ("working directory", "- run: mkdir -p a/b\n- {run: 'echo \"=> ${PWD##*/}\"', working-directory: a/b}"),
    ("python", "- {run: 'print(\"=>\", 6 * 7)', shell: python}"),
    ("sh", "- {run: 'echo \"=> $0\" | cut -c1-3; set -o | grep errexit | sed \"s/^/=> /\"', shell: sh}"),
    ("custom shell", "- {run: '=> is text', shell: 'cat {0}'}"),
    (
        "conditions",
        "- {if: \"github.event_name == 'push' && !contains('abc', 'd')\", run: echo '=> yes'}\n- {if: \"${{ github.event_name == 'x' }}\", run: echo '=> no'}",
    ),
    ("masks", "- run: echo '::add-mask::hide-me'; echo '=> hide-me'"),
    (
        "local node action",
        "- uses: actions/checkout@v4\n- {id: n, uses: ./node, with: {who: world}}\n- run: echo '=> ${{ steps.n.outputs.greeting }}'",
    ),
    (
        "local composite action",
        "- uses: actions/checkout@v4\n- {id: c, uses: ./composite, with: {who: ab}}\n- run: echo '=> ${{ steps.c.outputs.twice }}'",
    ),
    (
        "needs and outputs",
        "jobs:\n  a:\n    runs-on: ubuntu-latest\n    outputs: {v: '${{ steps.s.outputs.v }}'}\n    steps: [{id: s, run: echo v=7 >> $GITHUB_OUTPUT}]\n  b:\n    needs: a\n    runs-on: ubuntu-latest\n    steps: [{run: 'echo \"=> ${{ needs.a.outputs.v }} ${{ needs.a.result }}\"'}]\n  c:\n    needs: a\n    if: needs.a.outputs.v == 8\n    runs-on: ubuntu-latest\n    steps: [{run: 'echo \"=> never\"'}]",
    ),
    (
        "matrix",
        "jobs:\n  a:\n    runs-on: ubuntu-latest\n    strategy: {fail-fast: false, matrix: {n: [1, 2, 3], include: [{n: 2, more: x}], exclude: [{n: 3}]}}\n    steps: [{run: 'echo \"=> ${{ matrix.n }}${{ matrix.more }}\"'}, {run: 'test ${{ matrix.n }} != 1'}]",
    ),
    (
        "a failed need skips",
        "jobs:\n  a: {runs-on: ubuntu-latest, steps: [{run: exit 1}]}\n  b: {needs: a, runs-on: ubuntu-latest, steps: [{run: 'echo \"=> never\"'}]}\n  c: {needs: a, if: always(), runs-on: ubuntu-latest, steps: [{run: 'echo \"=> ${{ needs.a.result }}\"'}]}",
    ),
    (
        "defaults",
        "jobs:\n  a:\n    runs-on: ubuntu-latest\n    defaults: {run: {shell: 'bash {0}', working-directory: /}}\n    steps: [{run: 'false; echo \"=> $PWD\"'}]",
    ),
];

/// Steps with what GitHub documents, where act says something else.
const DIFFERENT: &[(&str, &str, &str, &str)] = &[
    (
        "a commands' block ends with its token only",
        "- run: echo '::stop-commands::tok'; echo '::add-mask::shown'; echo '::tok::'; echo '=> shown'",
        "=> shown",
        "GitHub: nothing between the token's lines is a command",
    ),
    (
        "variables of the runner are not a step's to change",
        "- run: echo GITHUB_SHA=mine >> $GITHUB_ENV\n- run: test \"$GITHUB_SHA\" != mine && echo '=> kept'",
        "=> kept",
        "GitHub: default variables named GITHUB_* cannot be overwritten",
    ),
];

fn workflow(body: &str) -> String {
    if body.starts_with("jobs:") {
        return format!("on: push\n{body}\n");
    }
    let steps: String = body.lines().map(|it| format!("      {it}\n")).collect();
    format!("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n{steps}")
}

fn project(body: &str) -> Project {
    Project::new(&[
        (".github/workflows/ci.yml", &workflow(body)),
        ("node/action.yml", LOCAL_NODE),
        ("node/main.js", LOCAL_NODE_MAIN),
        ("node/post.js", LOCAL_NODE_POST),
        ("composite/action.yml", LOCAL_COMPOSITE),
    ])
}

/// Lines that begin with `=>`, by job, and whether the run went well.
type Said = (BTreeMap<String, Vec<String>>, bool);

fn of_naru(project: &Project) -> (Said, String) {
    let (log, code) = project.run(&[]);
    let mut said: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in log.lines() {
        if let Some((job, text)) = line.strip_prefix('[').and_then(|it| it.split_once("]   => ")) {
            said.entry(job.to_owned()).or_default().push(text.trim_end().to_owned());
        }
    }
    ((said, code == 0), log)
}

fn of_act(project: &Project) -> (Said, String) {
    let config = project.path("home/config/act");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("actrc"), "").unwrap();
    let mut command = project.command(tool("bin/act").canonicalize().unwrap().to_str().unwrap());
    let output = command.args(["push", "-P", "ubuntu-latest=-self-hosted"]).output().unwrap();
    let log = format!("{}{}", text(&output.stdout), text(&output.stderr));
    let mut said: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in log.lines() {
        let Some((head, text)) = line.split_once("]   | => ") else { continue };
        let job = head.rsplit('/').next().unwrap_or_default().trim();
        said.entry(job.to_owned()).or_default().push(text.trim_end().to_owned());
    }
    ((said, output.status.success()), log)
}

#[test]
fn workflows_end_and_say_the_same_as_under_act() {
    let mut wrong = Vec::new();
    for (name, body) in SAME {
        let project = project(body);
        let ((ours, our_log), (theirs, their_log)) = (of_naru(&project), of_act(&project));
        assert!(!ours.0.is_empty(), "{name} says nothing:\n{our_log}");
        if ours != theirs {
            wrong.push(format!("{name}: {ours:?}\nact: {theirs:?}\n{our_log}\n{their_log}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n----\n"));
}

#[test]
fn where_act_differs_the_documentation_counts() {
    for (name, body, want, why) in DIFFERENT {
        let (_, log) = of_naru(&project(body));
        assert!(log.contains(want), "{name} ({why}):\n{log}");
    }
}
