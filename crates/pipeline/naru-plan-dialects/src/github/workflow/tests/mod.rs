//! What files come to. Cases as text.

mod calls;
mod events;

use super::*;
use crate::github::expression::GithubEvaluator;
use naru_plan::{Action, Evaluator};
use serde_json::{Value, json};

fn trigger(git_ref: &str) -> Trigger {
    Trigger {
        event: "push".into(),
        git_ref: git_ref.into(),
        labels: vec!["ubuntu-latest".into(), "gpu".into(), "self-hosted".into()],
        contexts: json!({"github": {"ref": git_ref, "event_name": "push"}, "vars": {"OS": "gpu"}})
            .as_object()
            .unwrap()
            .clone(),
        ..Trigger::default()
    }
}

fn main() -> Trigger {
    trigger("refs/heads/main")
}

fn rendered(lowered: &Lowered) -> String {
    lowered.findings.iter().map(|it| it.render("ci.yml")).collect::<Vec<_>>().join("\n")
}

fn findings(source: &str) -> String {
    rendered(&lower("ci.yml", source, &main()))
}

fn job(keys: &str) -> String {
    format!("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n{keys}    steps:\n      - run: 'true'\n")
}

fn step(text: &str) -> String {
    format!("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n{text}")
}

/// The jobs of a workflow that must be without fault.
fn jobs(source: &str) -> Vec<Job> {
    let lowered = lower("ci.yml", source, &main());
    assert!(lowered.findings.is_empty(), "{}", rendered(&lowered));
    lowered.plan.unwrap().jobs
}

fn expand(job: &Job, contexts: Value) -> Result<Vec<Job>, String> {
    GithubEvaluator.expand(job, &contexts).map_err(|it| it.message)
}

#[test]
fn a_plain_workflow_becomes_a_plan() {
    let source = "on: push\nenv: {A: 1}\njobs:\n  build:\n    runs-on: ubuntu-latest\n    strategy:\n      matrix: {v: [1, 2]}\n    steps:\n      - uses: actions/checkout@v4\n      - run: make\n  deploy:\n    needs: build\n    runs-on: ubuntu-latest\n    defaults: {run: {shell: bash}}\n    steps: [{run: ./deploy, id: d}]\n";
    let jobs = jobs(source);
    let keys: Vec<&str> = jobs.iter().map(|it| it.key.as_str()).collect();
    assert_eq!(keys, ["build-1", "build-2", "deploy"]);
    assert_eq!(jobs[0].name, "build (1)");
    assert_eq!(jobs[0].steps[0].action, Action::Checkout { path: String::new(), depth: 1 });
    let Action::Run { shell, .. } = &jobs[0].steps[1].action else { panic!() };
    assert_eq!(shell.join(" "), "bash -e {0}");
    let Action::Run { shell, .. } = &jobs[2].steps[0].action else { panic!() };
    assert_eq!(shell.join(" "), "bash --noprofile --norc -e -o pipefail {0}");
}

#[test]
fn what_cannot_be_honoured_is_refused_with_its_place() {
    let call = |keys: &str| format!("on: push\njobs:\n  a:\n    uses: ./.github/workflows/x.yml\n{keys}");
    let cases = [
        (job("    snapshot: x\n"), "`snapshot` of the job `a` is not supported\n  --> ci.yml:5:5"),
        (job("    stepz: 1\n"), "unknown key `stepz` in the job `a`\n  --> ci.yml:5:5\nhint: did you mean `steps`?"),
        (job("    needs: b\n"), "job `a` needs `b`, which does not exist\n  --> ci.yml:5:12"),
        (job("    if: ${{ github. }}\n"), "a name or `*` is expected after `.`\n  --> ci.yml:5:21"),
        (job("    if: github.ref == 'x' && nope\n"), "there is no context `nope`\n  --> ci.yml:5:30"),
        (job("    if: secrets.X != ''\n"), "there is no context `secrets` in a job's `if`; there are github, inputs, vars, needs\n  --> ci.yml:5:9"),
        (job("    if: ${{ matrix.x }}\n"), "there is no context `matrix` in a job's `if`"),
        (job("    name: ${{ always() }}\n"), "`always()` is only available in `if`"),
        (job("    env: {A: \"${{ hashFiles('x') }}\"}\n"), "`hashFiles` is only available in steps"),
        (job("    env: {A: '${{ steps.a.outputs.b }}'}\n"), "there is no context `steps` in a job's `env`"),
        (job("    env: &a {A: 1}\n    outputs:\n      <<: *a\n"), "merge keys (`<<`) are not part of GitHub's YAML\n  --> ci.yml:7:7"),
        (job("    permissions: {contents: admin}\n"), "the permission `contents` cannot be `admin`\n  --> ci.yml:5:29\nhint: known here: read, write, none"),
        (job("    permissions: {content: read}\n"), "did you mean `contents`?"),
        (job("    permissions: {id-token: read}\n"), "the permission `id-token` cannot be `read`"),
        (job("    permissions: all\n"), "there are no permissions `all`"),
        (job("    timeout-minutes: soon\n"), "must be a number of minutes, this is `soon`\n  --> ci.yml:5:22"),
        (job("    continue-on-error: maybe\n"), "must be true or false, this is `maybe`"),
        (job("    concurrency: {cancel-in-progress: true}\n"), "`concurrency` needs a `group`"),
        (job("    concurrency: {group: a, cancel: true}\n"), "unknown key `cancel` in `concurrency`"),
        (job("    environment: {url: x}\n"), "`environment` needs a `name`"),
        (job("    container: {imag: x}\n"), "unknown key `imag` in `container`\n  --> ci.yml:5:17\nhint: did you mean `image`?"),
        (job("    services: {db: {image: x, port: [1]}}\n"), "unknown key `port` in a service"),
        (job("    services: [x]\n"), "`services` must be a mapping, this is a list"),
        (job("    with: {a: 1}\n"), "`with` belongs to `uses`"),
        (job("    strategy: {matrix: {v: 1}}\n"), "`v` of the matrix must be a list\n  --> ci.yml:5:28"),
        (job("    strategy: {matrix: {v: []}}\n"), "`v` of the matrix holds no value"),
        (job("    strategy: {matrix: {v: [1]}, max-paralel: 1}\n"), "did you mean `max-parallel`?"),
        (job("    strategy: {max-parallel: 0}\n"), "`max-parallel` must be a whole number above 0"),
        (call("    runs-on: x\n"), "`runs-on` cannot stand beside `uses` in the job `a`"),
        ("on: push\njobs:\n  a:\n    uses: ./x.yml\n".into(), "the file must be in `.github/workflows`"),
        ("on: push\njobs:\n  a:\n    uses: o/r/.github/workflows/x.yml\n".into(), "the version after `@` is missing"),
        ("on: push\njobs:\n  a:\n    runs-on: windows-latest\n    steps: [{run: x}]\n".into(), "no machine here serves the label `windows-latest`\n  --> ci.yml:4:14"),
        ("on: push\njobs:\n  a: {runs-on: ubuntu-latest, needs: b, steps: [{run: x}]}\n  b: {runs-on: ubuntu-latest, needs: a, steps: [{run: x}]}\n".into(), "the jobs wait for each other: `a` needs `b` needs `a`"),
        ("on: push\njobs:\n  1a: {runs-on: ubuntu-latest, steps: [{run: x}]}\n".into(), "`1a` cannot be a job's id"),
        ("on: psuh\njobs: {}\n".into(), "did you mean `push`?"),
        ("on: push\nconcurrency: {group: '${{ matrix.x }}'}\njobs:\n  a: {runs-on: ubuntu-latest, steps: [{run: x}]}\n".into(), "there is no context `matrix` in the workflow's `concurrency`"),
        (step("      - run: x\n        uses: a/b@v1\n"), "cannot have both `run` and `uses`"),
        (step("      - name: x\n"), "a step needs `run` or `uses`"),
        (step("      - run: x\n        shell: cmd\n"), "the shell `cmd` is one of Windows, which no machine here runs\n  --> ci.yml:7:16"),
        (step("      - run: x\n        shell: powershell\n"), "hint: use `pwsh`"),
        (step("      - run: x\n        shell: zsh\n"), "the shell `zsh` is not known"),
        (step("      - run: x\n        with: {a: 1}\n"), "`with` belongs to `uses`"),
        (step("      - uses: actions/checkout\n"), "`actions/checkout` names no action: the version after `@` is missing\n  --> ci.yml:6:15"),
        (step("      - uses: ../x\n"), "a path begins with `./`"),
        (step("      - run: x\n        background: true\n"), "`background` of the step is not supported"),
        (step("      - wait: x\n"), "`wait` of the step is not supported"),
        (step("      - parallel: [{run: x}]\n"), "`parallel` of the step is not supported"),
        (step("      - {run: x, id: a}\n      - {run: y, id: A}\n"), "two steps have the id `A`\n  --> ci.yml:7:22"),
        (step("      - {run: x, id: __a}\n"), "`__` is reserved"),
        (step("      - run: |\n          echo a\n          echo ${{ githb.ref }}\n"), "there is no context `githb`; did you mean `github`?\n  --> ci.yml:8:20"),
        (step("      - run: \"a ${{ b }}\"\n"), "there is no context `b`\n  --> ci.yml:6:21"),
        (step("      - run: x\n        if: secrets.A\n"), "there is no context `secrets` in a step's `if`"),
        (step("      - run: x\n        timeout-minutes: 0\n"), "`timeout-minutes` must be a number above 0"),
    ];
    for (source, want) in cases {
        let got = findings(&source);
        assert!(got.contains(want), "want {want}\ngot {got}\nof {source}");
        assert!(got.contains("error"), "{got}");
    }
}

#[test]
fn what_is_dangerous_is_warned_of_where_it_stands() {
    let cases = [
        (step("      - run: echo '${{ github.event.head_commit.message }}'\n"), "`github.event.head_commit.message` is text from outside and becomes part of a script\n  --> ci.yml:6:24\nhint: pass it"),
        (step("      - run: |\n          x\n          echo ${{ format('{0}', github.event.commits[0].author.name) }}\n"), "`github.event.commits.*.author.name` is text from outside and becomes part of a script\n  --> ci.yml:8:"),
        (step("      - run: echo ${{ github.head_ref || 'x' }}\n"), "`github.head_ref`"),
        (step("      - run: echo '${{ toJSON(github.event) }}'\n"), "`github.event` is text from outside"),
        (step("      - uses: actions/github-script@v7\n        with:\n          script: f('${{ github.event.issue.title }}')\n"), "`github.event.issue.title` is text from outside"),
        (step("      - uses: some/action@v1\n"), "`some/action@v1` is not pinned: whoever can move `v1` runs code here\n  --> ci.yml:6:15\nhint: name the commit"),
        (step("      - uses: docker://alpine:3\n"), "the image `alpine:3` is not pinned"),
        ("on: pull_request_target\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - uses: actions/checkout@v4\n        with: {ref: '${{ github.event.pull_request.head.sha }}'}\n".into(), "`pull_request_target` runs with the repository's rights and secrets"),
        (job("    if: ${{ github.ref == 'x' }} && true\n"), "and so always true"),
        (job("    env: {PYTHON: 3.10}\n"), "`3.10` is the number 3.1 for YAML, and so for GitHub\n  --> ci.yml:5:19\nhint: write '3.10' in quotes"),
        ("on: [push, gollum]\njobs: {a: {runs-on: ubuntu-latest, steps: [{run: x}]}}\n".into(), "nothing here sends the event `gollum`"),
        (job("    concurrency: {group: a, queue: max}\n"), "`queue: max` is not looked at"),
        (job("    runs-on: {group: big, labels: gpu}\n").replacen("    runs-on: ubuntu-latest\n", "", 1), "there are no groups of runners here"),
    ];
    for (source, want) in cases {
        let lowered = lower("ci.yml", &source, &main());
        let got = rendered(&lowered);
        assert!(got.contains(want), "want {want}\ngot {got}");
        assert!(lowered.findings.iter().all(|it| !it.is_error()), "{got}");
    }
    let quiet = [
        step(
            "      - run: echo \"${{ contains(github.event.issue.title, 'x') }} ${{ github.head_ref == 'a' }}\"\n",
        ),
        step("      - run: echo \"$T\"\n        env: {T: '${{ github.event.issue.title }}'}\n"),
        step(
            "      - uses: actions/setup-node@v4\n      - uses: ./local\n      - uses: some/action@0123456789012345678901234567890123456789\n",
        ),
    ];
    for source in quiet {
        assert_eq!(findings(&source), "");
    }
}

#[test]
fn everything_a_job_says_is_in_the_form() {
    let source = "on: push
run-name: by ${{ github.actor }}
concurrency: {group: 'ci-${{ github.ref }}', cancel-in-progress: true}
permissions: {contents: read, id-token: write, issues: none}
jobs:
  a:
    name: All
    runs-on: [self-hosted, gpu]
    timeout-minutes: 1.5
    cancel-timeout-minutes: 2
    continue-on-error: ${{ github.ref != 'x' }}
    environment: {name: prod, url: 'https://${{ steps.d.outputs.host }}'}
    concurrency: deploy-${{ github.ref }}
    container:
      image: node:${{ vars.OS }}
      env: {TOKEN: '${{ secrets.T }}'}
      ports: [80, '8080:80']
      volumes: ['a:/b']
      options: --cpus 1
      credentials: {username: u, password: '${{ secrets.P }}'}
    services:
      db:
        image: postgres
        env: {POSTGRES_PASSWORD: x}
        ports: ['5432:5432']
        options: >-
          --health-cmd pg_isready
          --health-interval 1s
      off: {image: \"${{ github.nothing }}\"}
      cache: redis
    outputs: {v: '${{ steps.d.outputs.v }}'}
    steps:
      - id: d
        uses: owner/act@0123456789012345678901234567890123456789
        with: {a: 1, b: '${{ runner.os }}', entrypoint: /x, args: y}
        continue-on-error: ${{ env.LOOSE == 'yes' }}
        timeout-minutes: ${{ fromJSON('3') }}
      - run: print(1)
        shell: python
      - run: Get-Date
        shell: pwsh
      - run: x
        shell: perl -w {0}
        working-directory: ${{ env.DIR }}
        continue-on-error: true
        timeout-minutes: 2
  b: {runs-on: '${{ vars.OS }}', permissions: {}, steps: [{run: x}]}
  c: {runs-on: gpu, permissions: read-all, steps: [{uses: actions/checkout@v4, with: {ref: x}}]}
";
    let lowered = lower("ci.yml", source, &main());
    assert!(lowered.findings.is_empty(), "{}", rendered(&lowered));
    assert_eq!(lowered.survey.secrets.iter().collect::<Vec<_>>(), ["P", "T"]);
    let plan = lowered.plan.unwrap();
    assert_eq!(plan.run_name, "by ${{ github.actor }}");
    assert_eq!(plan.concurrency.unwrap().cancel_in_progress, "true");
    let a = &plan.jobs[0];
    assert_eq!((a.name.as_str(), a.timeout_minutes, a.cancel_timeout_minutes), ("All", 2, 2));
    assert_eq!(a.runs_on, ["self-hosted", "gpu"]);
    assert!(a.continue_on_error);
    assert_eq!(a.concurrency.as_ref().unwrap().group, "deploy-refs/heads/main");
    let environment = a.environment.as_ref().unwrap();
    assert_eq!(
        (environment.name.as_str(), environment.url.as_str()),
        ("prod", "https://${{ steps.d.outputs.host }}")
    );
    let container = a.container.as_ref().unwrap();
    assert_eq!((container.image.as_str(), container.options.as_str()), ("node:gpu", "--cpus 1"));
    assert_eq!(container.ports, ["80", "8080:80"]);
    assert_eq!(container.credentials.as_ref().unwrap().1, "${{ secrets.P }}");
    let services: Vec<(&str, &str)> =
        a.services.iter().map(|(name, it)| (name.as_str(), it.image.as_str())).collect();
    assert_eq!(services, [("db", "postgres"), ("cache", "redis")]);
    assert_eq!(a.services[0].1.options, "--health-cmd pg_isready --health-interval 1s");
    assert_eq!(json!(a.permissions), json!({"contents": "read", "id-token": "write"}));
    let Action::Uses { uses, with } = &a.steps[0].action else { panic!() };
    assert!(uses.starts_with("owner/act@"));
    assert_eq!(with[0], ("a".to_owned(), "1".to_owned()));
    assert_eq!(a.steps[0].timeout_minutes_text, "${{ fromJSON('3') }}");
    assert_eq!(a.steps[0].continue_on_error_text, "${{ env.LOOSE == 'yes' }}");
    let shell = |index: usize| match &a.steps[index].action {
        Action::Run { shell, script, extension } => (shell.join(" "), script.clone(), extension.clone()),
        _ => panic!(),
    };
    assert_eq!(shell(1).2, "py");
    assert!(shell(2).1.starts_with("$ErrorActionPreference = 'stop'\nGet-Date\n") && shell(2).2 == "ps1");
    assert_eq!(shell(3).0, "perl -w {0}");
    assert_eq!((a.steps[3].continue_on_error, a.steps[3].timeout_minutes), (true, 2));
    assert_eq!(plan.jobs[1].runs_on, ["gpu"]);
    assert_eq!(json!(plan.jobs[1].permissions), json!({}));
    assert_eq!(plan.jobs[2].permissions.as_ref().unwrap()["issues"], "read");
    assert!(!plan.jobs[2].permissions.as_ref().unwrap().contains_key("id-token"));
    // Our own checkout does not take other refs.
    assert!(matches!(plan.jobs[2].steps[0].action, Action::Uses { .. }));
}

#[test]
fn a_name_that_is_nowhere_is_warned_of() {
    let source = "on: {push: , workflow_dispatch: {inputs: {level: {}}}}
jobs:
  build: {runs-on: gpu, outputs: {a: '${{ steps.x.outputs.v }}'}, steps: [{run: x}]}
  test:
    needs: build
    runs-on: gpu
    strategy: {matrix: {os: [a], include: [{cc: gcc}]}}
    name: ${{ matrix.oss }} ${{ matrix.cc }} ${{ inputs.levle }}
    steps:
      - run: echo ${{ needs.biuld.result }} ${{ steps.later.outcome }}
      - {id: later, run: 'echo ${{ needs.build.result }}'}
      - run: echo ${{ steps.later.outcome }} ${{ steps['LATER'].outcome }} ${{ needs.*.result }}
";
    let lowered = lower("ci.yml", source, &main());
    let got = rendered(&lowered);
    let wanted = [
        "`x` is not the id of a step before this one: `steps.x` is nothing\n  --> ci.yml:3:49\nhint: there are none",
        "`oss` is not a name of this job's matrix: `matrix.oss` is nothing\n  --> ci.yml:8:22\nhint: did you mean `os`?",
        "`levle` is not an input of this workflow: `inputs.levle` is nothing\n  --> ci.yml:8:57\nhint: did you mean `level`?",
        "`biuld` is not among the `needs` of this job: `needs.biuld` is nothing\n  --> ci.yml:10:29\nhint: did you mean `build`?",
        "`later` is not the id of a step before this one: `steps.later` is nothing\n  --> ci.yml:10:55",
    ];
    for want in wanted {
        assert!(got.contains(want), "want {want}\ngot {got}");
    }
    assert_eq!(lowered.findings.len(), wanted.len(), "{got}");
}

#[test]
fn a_matrix_that_is_computed_waits_for_what_it_needs() {
    let source = "on: push
jobs:
  plan: {runs-on: ubuntu-latest, outputs: {m: x}, steps: [{run: x}]}
  test:
    needs: plan
    name: ${{ matrix.os }} ${{ strategy.job-index }}/${{ strategy.job-total }}
    strategy:
      fail-fast: ${{ needs.plan.outputs.fast == 'yes' }}
      max-parallel: 1
      matrix: ${{ fromJSON(needs.plan.outputs.m) }}
    runs-on: ${{ matrix.os }}
    container: ${{ matrix.image }}
    defaults: {run: {shell: '${{ matrix.shell || ''sh'' }}'}}
    timeout-minutes: ${{ matrix.minutes }}
    steps: [{run: x}]
";
    let jobs = jobs(source);
    assert!(jobs[0].deferred.is_none());
    assert_eq!((jobs[1].key.as_str(), jobs[1].matrix.len()), ("test", 0));
    let with = |m: Value| {
        let contexts = json!({
            "github": {}, "vars": {}, "inputs": {},
            "needs": {"plan": {"outputs": {"m": m.to_string(), "fast": "no"}}},
        });
        expand(&jobs[1], contexts)
    };
    let made = with(json!({"os": ["gpu", "ubuntu-latest"], "include": [{"os": "gpu", "image": "x", "minutes": 3, "shell": "bash"}, {"os": "gpu", "a": "b"}]})).unwrap();
    let seen: Vec<(&str, &str, &str, u64)> = made
        .iter()
        .map(|it| (it.key.as_str(), it.name.as_str(), it.runs_on[0].as_str(), it.timeout_minutes))
        .collect();
    assert_eq!(
        seen,
        [("test-1", "gpu 0/2", "gpu", 3), ("test-2", "ubuntu-latest 1/2", "ubuntu-latest", 360)]
    );
    assert!(made.iter().all(|it| it.deferred.is_none() && !it.fail_fast && it.parallel_max == 1));
    assert_eq!(made[0].matrix["a"], "b");
    assert_eq!(made[0].container.as_ref().unwrap().image, "x");
    assert!(made[1].container.is_none());
    let shell = |job: &Job| match &job.steps[0].action {
        Action::Run { shell, .. } => shell[0].clone(),
        _ => panic!(),
    };
    assert_eq!((shell(&made[0]), shell(&made[1])), ("bash".into(), "sh".into()));
    assert!(
        with(json!({"os": ["windows-latest"]})).unwrap_err().contains("no machine here serves the label")
    );
    assert!(with(json!({"os": []})).unwrap_err().contains("line 10: `os` of the matrix holds no value"));
    assert!(with(json!("x")).unwrap_err().contains("the matrix must be a mapping of lists, this is String"));
    let many: Vec<u32> = (0..257).collect();
    assert!(with(json!({"os": many})).unwrap_err().contains("more than 256 combinations"));
}

#[test]
fn one_axis_a_label_or_a_limit_may_be_computed_too() {
    let source = "on: push
jobs:
  p: {runs-on: ubuntu-latest, steps: [{run: x}]}
  a:
    needs: p
    strategy: {matrix: {v: '${{ fromJSON(needs.p.outputs.l) }}', w: [x]}}
    runs-on: gpu
    steps: [{run: x}]
  b:
    needs: [p]
    runs-on: ${{ fromJSON(needs.p.outputs.r) }}
    services: ${{ fromJSON(needs.p.outputs.s) }}
    environment: {name: '${{ needs.p.outputs.e }}', url: 'https://${{ env.X }}'}
    concurrency: {group: 'g-${{ needs.p.result }}', cancel-in-progress: '${{ github.ref == 1 }}'}
    steps: [{run: x}]
";
    let jobs = jobs(source);
    let contexts = json!({"github": {"ref": 1}, "needs": {"p": {"result": "success", "outputs": {
        "l": "[1,\"b\"]", "r": "[\"self-hosted\",\"gpu\"]", "e": "prod", "s": "{\"db\":{\"image\":\"pg\",\"ports\":[1]}}"}}}});
    let a = expand(&jobs[1], contexts.clone()).unwrap();
    let names: Vec<&str> = a.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["a (1, x)", "a (b, x)"]);
    let b = &expand(&jobs[2], contexts).unwrap()[0];
    assert_eq!((b.key.as_str(), b.runs_on.len()), ("b", 2));
    assert_eq!(b.services[0].1.ports, ["1"]);
    assert_eq!(b.environment.as_ref().unwrap().name, "prod");
    let concurrency = b.concurrency.as_ref().unwrap();
    assert_eq!((concurrency.group.as_str(), concurrency.cancel_in_progress.as_str()), ("g-success", "true"));
}

#[test]
fn a_matrix_of_257_is_refused() {
    let source = job(
        "    strategy: {matrix: {a: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17], b: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}}\n",
    );
    assert!(findings(&source).contains("the matrix has more than 256 combinations\n  --> ci.yml:5:24"));
}

#[test]
fn a_file_that_does_not_apply_is_surveyed() {
    let source = "name: Nightly\non: {schedule: [{cron: '0 3 * * *', timezone: Asia/Tokyo}], workflow_dispatch: {inputs: {x: {}}}}\njobs:\n  a:\n    runs-on: ${{ inputs.x || 'gpu' }}\n    steps: [{uses: actions/cache@v4}, {run: 'echo ${{ secrets.A }} ${{ vars.B }}'}]\n";
    let lowered = lower("ci.yml", source, &main());
    assert!(lowered.findings.is_empty() && lowered.plan.is_none());
    assert_eq!(lowered.name, "Nightly");
    assert_eq!(lowered.events, ["schedule", "workflow_dispatch"]);
    assert_eq!(lowered.schedules[0].timezone, "Asia/Tokyo");
    let survey = lowered.survey;
    assert!(
        survey.actions.contains("actions/cache@v4")
            && survey.secrets.contains("A")
            && survey.variables.contains("B")
    );
    assert_eq!(survey.plan.unwrap().jobs[0].id, "a");
}

#[test]
fn an_alias_stands_for_its_anchor() {
    let source = "on: push\njobs:\n  a: &job\n    runs-on: ubuntu-latest\n    steps: &steps\n      - run: x\n  b:\n    runs-on: gpu\n    steps: *steps\n  c: *job\n";
    let jobs = jobs(source);
    assert_eq!(jobs[1].steps[0].name, "Run x");
    assert_eq!(jobs[2].id, "c");
}

#[test]
fn files_that_nobody_writes_are_bounded() {
    let axis: Vec<u32> = (0..16).collect();
    let wide: String = (0..5)
        .map(|it| format!("  j{it}: {{runs-on: gpu, strategy: {{matrix: {{a: {axis:?}, b: {axis:?}}}}}, steps: [{{run: x}}]}}\n"))
        .collect();
    let wide = findings(&format!("on: push\njobs:\n{wide}"));
    assert!(wide.contains("more than the 1000 that can be run\n  --> ci.yml:6:3"), "{wide}");
    let many = format!(
        "on: push\njobs:\n{}",
        (0..3000)
            .map(|it| format!("  j{it}: {{runs-on: nowhere, steps: [{{run: 'a ${{{{ b }}}}'}}]}}\n"))
            .collect::<String>()
    );
    let lowered = lower("ci.yml", &many, &main());
    assert_eq!(lowered.findings.len(), 101);
    assert_eq!(lowered.findings[100].message, "1903 more findings are not told");
    assert!(lowered.findings[100].is_error());
    let large = "#".repeat(1024 * 1024 + 1);
    assert!(findings(&large).contains("the file has 1048577 bytes"));
    // Nesting that a grammar builds step by step.
    for text in [
        ".a".repeat(9000),
        "!".repeat(20_000),
        "==a".repeat(6000),
        "<a".repeat(9000),
        "[0]".repeat(6000),
        "(".repeat(20_000),
    ] {
        let expression =
            if text.starts_with(['!', '(']) { format!("{text}github") } else { format!("github{text}") };
        let got = findings(&job(&format!("    if: ${{{{ {expression} }}}}\n")));
        assert!(got.contains("deeper than 50 levels"), "{}", &got[..300.min(got.len())]);
    }
    let chain = format!("    if: ${{{{ github.a {} }}}}\n", "|| github.b ".repeat(1000));
    assert_eq!(findings(&job(&chain)), "");
}
