//! What starts a workflow.

use super::*;

#[test]
fn filters_decide_as_on_github() {
    let applies = |event: &str, filter: &str, change: &dyn Fn(&mut Trigger)| {
        let filter: String = filter.lines().map(|it| format!("    {it}\n")).collect();
        let source = format!(
            "on:\n  {event}:\n{filter}jobs:\n  a:\n    runs-on: ubuntu-latest\n    steps: [{{run: x}}]\n"
        );
        let mut trigger = Trigger { event: event.into(), ..main() };
        change(&mut trigger);
        let lowered = lower("ci.yml", &source, &trigger);
        assert!(lowered.findings.iter().all(|it| !it.is_error()), "{}", rendered(&lowered));
        lowered.plan.is_some()
    };
    let pushes: &[(&str, &str, bool)] = &[
        ("branches: [main]", "refs/heads/main", true),
        ("branches: main", "refs/heads/main", true),
        ("branches: [main]", "refs/heads/dev", false),
        ("branches: ['rel/**', '!rel/old']", "refs/heads/rel/1/2", true),
        ("branches: ['rel/**', '!rel/old']", "refs/heads/rel/old", false),
        ("branches: ['rel/**', '!rel/o*', rel/ok]", "refs/heads/rel/ok", true),
        ("branches: ['rel/*']", "refs/heads/rel/1/2", false),
        ("branches-ignore: [main]", "refs/heads/dev", true),
        ("branches-ignore: [main]", "refs/heads/main", false),
        ("branches: [main]", "refs/tags/v1", false),
        ("tags: ['v*']", "refs/tags/v1", true),
        ("tags: ['v*']", "refs/heads/main", false),
        ("tags-ignore: ['v*']", "refs/heads/main", false),
        ("branches: ['**']\ntags: ['v*']", "refs/tags/v1", true),
        ("branches: ['**']\ntags: ['v*']", "refs/tags/x", false),
        ("paths: ['**']", "refs/tags/x", true),
    ];
    for (filter, git_ref, want) in pushes {
        let got = applies("push", filter, &|it| (*git_ref).clone_into(&mut it.git_ref));
        assert_eq!(got, *want, "{filter} {git_ref}");
    }
    let paths: &[(&str, &[&str], bool)] = &[
        ("paths: ['**.js']", &["a/b.js"], true),
        ("paths: ['*.js']", &["a/b.js"], false),
        ("paths: ['docs/**', '!docs/**.md']", &["docs/a.md"], false),
        ("paths: ['docs/**', '!docs/**.md']", &["docs/a.md", "docs/a.txt"], true),
        ("paths-ignore: ['docs/**']", &["docs/a.md"], false),
        ("paths-ignore: ['docs/**']", &["docs/a.md", "x"], true),
        ("paths-ignore: ['docs/**']", &[], false),
        ("branches: [dev]\npaths: ['**']", &["x"], false),
        ("branches: [main]\npaths: ['y']", &["x"], false),
    ];
    for (filter, changed, want) in paths {
        let changed = Some(changed.iter().map(|it| (*it).to_owned()).collect());
        assert_eq!(
            applies("push", filter, &|it| it.changed.clone_from(&changed)),
            *want,
            "{filter} {changed:?}"
        );
    }
    assert!(applies("push", "paths: ['y']", &|it| it.changed = None));
    let pulls: &[(&str, &str, &str, bool)] = &[
        ("branches: [main]", "main", "opened", true),
        ("branches: [main]", "dev", "opened", false),
        ("branches: [main]", "main", "labeled", false),
        ("types: [labeled]", "main", "labeled", true),
        ("types: [labeled]", "main", "opened", false),
        ("branches-ignore: ['rel/**']", "rel/1", "synchronize", false),
    ];
    for (filter, base, action, want) in pulls {
        let payload = json!({"action": action, "pull_request": {"base": {"ref": base}}});
        let change = |it: &mut Trigger| {
            it.payload = payload.clone();
            it.git_ref = "refs/pull/1/merge".into();
        };
        assert_eq!(applies("pull_request", filter, &change), *want, "{filter} {base} {action}");
    }
    let run = |name: &str, branch: &str| json!({"action": "completed", "workflow_run": {"name": name, "head_branch": branch}});
    let of_run = |payload: Value| {
        applies("workflow_run", "workflows: [CI]\ntypes: [completed]\nbranches: [main]", &|it| {
            it.payload = payload.clone()
        })
    };
    assert!(of_run(run("CI", "main")));
    assert!(!of_run(run("CI", "dev")) && !of_run(run("Other", "main")));
    let dispatch = |it: &mut Trigger| it.payload = json!({"action": "go"});
    assert!(applies("repository_dispatch", "types: [go]", &dispatch));
    assert!(!applies("repository_dispatch", "types: [stop]", &dispatch));
    let due = |cron: &str| {
        applies("schedule", "- cron: '5 4 * * *'\n- cron: '*/10 * * * *'\n  timezone: Europe/Paris", &|it| {
            it.schedule = Some(cron.into())
        })
    };
    assert!(due("*/10 * * * *") && !due("1 1 1 1 1"));
    assert!(applies("workflow_dispatch", "inputs: {}", &|it| it.workflow = Some("ci.yml".into())));
    assert!(!applies("workflow_dispatch", "inputs: {}", &|it| it.workflow = Some("other.yml".into())));
}

#[test]
fn events_are_checked_key_by_key() {
    let on = |text: &str| {
        let text: String = text.lines().map(|it| format!("  {it}\n")).collect();
        findings(&format!("on:\n{text}jobs: {{a: {{runs-on: ubuntu-latest, steps: [{{run: x}}]}}}}\n"))
    };
    let cases = [
        (
            "push:\n  branch: [x]",
            "unknown key `branch` in `push`\n  --> ci.yml:3:5\nhint: did you mean `branches`?",
        ),
        (
            "push:\n  branches: [a]\n  branches-ignore: [b]",
            "`branches` and `branches-ignore` cannot stand together",
        ),
        ("push:\n  branches: ['a[']", "not a pattern: `[` without its `]`"),
        ("push:\n  branches: ['!a']", "`branches` only takes away"),
        (
            "pull_request:\n  types: [open]",
            "`pull_request` has no activity of the type `open`\n  --> ci.yml:3:13\nhint: did you mean `opened`?",
        ),
        (
            "schedule:\n  - cron: '61 * * * *'",
            "`61` is no minute: it must be from 0 to 59\n  --> ci.yml:3:13",
        ),
        ("schedule:\n  - cron: '* * * * *'", "GitHub starts a workflow every five minutes at most"),
        ("schedule:\n  - crn: x", "did you mean `cron`?"),
        ("workflow_run:\n  types: [completed]", "`workflow_run` needs `workflows`"),
        ("workflow_dispatch:\n  inputs:\n    a: {type: choice}", "the input `a` offers no choice"),
        ("workflow_dispatch:\n  inputs:\n    a: {options: [x]}", "`options` belong to a choice"),
        ("workflow_dispatch:\n  inputs:\n    a: {type: bool}", "the input `a` cannot be of the type `bool`"),
        (
            "workflow_dispatch:\n  inputs:\n    a: {type: number, default: x}",
            "the default of the input `a` must be a number, this is `x`",
        ),
        ("workflow_call:\n  inputs:\n    a: {required: true}", "the input `a` has no `type`"),
        ("workflow_call:\n  inputs:\n    a: {type: choice}", "cannot be of the type `choice`"),
        ("workflow_call:\n  outputs:\n    a: {description: x}", "the output has no `value`"),
        (
            "workflow_call:\n  outputs:\n    a: {value: '${{ needs.x }}'}",
            "there is no context `needs` in an output of `workflow_call`",
        ),
        ("workflow_call:\n  secrets:\n    a: {require: true}", "did you mean `required`?"),
    ];
    for (text, want) in cases {
        let got = on(text);
        assert!(got.contains(want), "want {want}\ngot {got}");
    }
}

#[test]
fn a_dispatch_is_checked_and_typed() {
    let source = "on:
  workflow_dispatch:
    inputs:
      level: {type: choice, options: [low, high], default: low}
      count: {type: number, default: 2}
      dry: {type: boolean}
      tag: {required: true}
      where: {type: environment}
jobs: {a: {runs-on: ubuntu-latest, name: 'to ${{ inputs.level }} ${{ inputs.count == 3 }}', steps: [{run: x}]}}
";
    let dispatched = |inputs: Value| {
        let trigger = Trigger {
            event: "workflow_dispatch".into(),
            inputs: inputs.as_object().unwrap().clone(),
            ..main()
        };
        lower("ci.yml", source, &trigger)
    };
    let lowered = dispatched(json!({"tag": "v1", "dry": "true", "COUNT": "3"}));
    assert!(lowered.findings.is_empty(), "{}", rendered(&lowered));
    let job = &lowered.plan.unwrap().jobs[0];
    assert_eq!(json!(job.inputs), json!({"level": "low", "count": 3, "dry": true, "tag": "v1", "where": ""}));
    assert_eq!(job.name, "to low true");
    for (inputs, want) in [
        (json!({}), "the input `tag` must be given"),
        (json!({"tag": "x", "level": "mid"}), "the input `level` must be one of low, high, this is `mid`"),
        (json!({"tag": "x", "dry": "yes"}), "the input `dry` must be true or false, this is `yes`"),
        (json!({"tag": "x", "count": "many"}), "the input `count` must be a number, this is `many`"),
        (json!({"tag": "x", "leve": "low"}), "takes no input `leve`"),
    ] {
        let got = rendered(&dispatched(inputs));
        assert!(got.contains(want), "want {want}\ngot {got}");
    }
}

#[test]
fn a_fault_counts_for_the_events_that_a_file_asks_for() {
    let applies = |on: &str| {
        let source = format!("on: {on}\njobs: {{a: {{runs-on: nowhere, steps: [{{run: x}}]}}}}\n");
        let lowered = lower("ci.yml", &source, &main());
        assert!(lowered.findings.iter().any(Finding::is_error));
        lowered.applies
    };
    assert!(applies("push") && applies("[push, pull_request]"));
    assert!(!applies("pull_request") && !applies("{push: {branches: [dev]}}"));
    // Nobody knows what these ask for.
    assert!(applies("psuh") && applies("{pull_request: {branch: x}}") && applies("[") && applies(""));
    let other = Trigger { workflow: Some("other.yml".into()), ..main() };
    assert!(!lower("ci.yml", "on: [", &other).applies);
}
