//! Workflows that call others.

use super::*;

const CALLED: &str = "on:
  workflow_call:
    inputs:
      level: {type: string, default: low}
      count: {type: number, required: true}
      dry: {type: boolean}
    secrets:
      KEY: {required: true}
      MAYBE:
    outputs:
      v: {value: '${{ jobs.inner.outputs.v }}'}
env: {A: b}
jobs:
  inner:
    runs-on: ubuntu-latest
    name: Inner ${{ inputs.level }}
    if: inputs.count > 1
    outputs: {v: x}
    steps: [{run: 'echo ${{ inputs.dry }}'}]
  after:
    needs: inner
    runs-on: ${{ needs.inner.outputs.v }}
    steps: [{run: x}]
";

fn with_files(source: &str, files: &[(&str, &str)]) -> Lowered {
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    lower(".github/workflows/ci.yml", source, &Trigger { files, ..main() })
}

#[test]
fn a_reusable_workflow_brings_its_jobs_in() {
    let source = "on: push
jobs:
  a:
    strategy: {matrix: {n: [1, 2]}}
    uses: ./.github/workflows/x.yml
    with: {count: '${{ matrix.n }}', dry: true}
    secrets: {KEY: '${{ secrets.OURS }}'}
  b:
    needs: a
    uses: o/r/.github/workflows/y.yml@0123456789012345678901234567890123456789
    secrets: inherit
";
    let lowered = with_files(source, &[]);
    let wanted =
        [".github/workflows/x.yml", "o/r/.github/workflows/y.yml@0123456789012345678901234567890123456789"];
    assert_eq!(lowered.missing, wanted);
    assert!(lowered.plan.is_none() && lowered.findings.is_empty(), "{}", rendered(&lowered));
    let nested = "on: workflow_call\njobs:\n  c:\n    uses: ./.github/workflows/z.yml\n";
    let z = format!("o/r/.github/workflows/z.yml@{}", "0123456789".repeat(4));
    let lowered = with_files(source, &[(wanted[0], CALLED), (wanted[1], nested)]);
    assert_eq!(lowered.missing, std::slice::from_ref(&z));
    let last = "on: workflow_call\njobs: {d: {runs-on: gpu, steps: [{run: x}]}}\n";
    let lowered = with_files(source, &[(wanted[0], CALLED), (wanted[1], nested), (&z, last)]);
    assert!(lowered.findings.is_empty(), "{}", rendered(&lowered));
    let jobs = lowered.plan.unwrap().jobs;
    let keys: Vec<&str> = jobs.iter().map(|it| it.key.as_str()).collect();
    assert_eq!(keys, ["a-1", "a-2", "b"]);
    assert_eq!(jobs[0].call.as_ref().unwrap().outputs[0].0, "v");

    let contexts = json!({"github": {}, "vars": {}, "inputs": {}, "matrix": {"n": 2}, "needs": {}});
    let inner = expand(&jobs[1], contexts).unwrap();
    assert_eq!(inner[0].key, "a-2/inner");
    assert_eq!(inner[0].name, "a (2) / Inner low");
    assert_eq!((inner[0].scope.as_str(), inner[0].id.as_str()), ("a-2", "inner"));
    assert_eq!(json!(inner[0].inputs), json!({"level": "low", "count": 2, "dry": true}));
    assert_eq!(inner[0].secrets, [[("KEY".to_owned(), "${{ secrets.OURS }}".to_owned())]]);
    assert_eq!(inner[0].env, [("A".to_owned(), "b".to_owned())]);
    assert_eq!(inner[0].condition.as_deref(), Some("inputs.count > 1"));
    // What asks for its own needs is made when they have ended.
    assert!(inner[1].deferred.is_some());
    let contexts = json!({"github": {}, "needs": {"inner": {"outputs": {"v": "gpu"}}}});
    let after = expand(&inner[1], contexts).unwrap();
    assert_eq!((after[0].key.as_str(), after[0].name.as_str()), ("a-2/after", "a (2) / after"));

    let c = &expand(&jobs[2], json!({})).unwrap()[0];
    assert_eq!((c.key.as_str(), c.secrets.len()), ("b/c", 0));
    let d = &expand(c, json!({})).unwrap()[0];
    assert_eq!((d.key.as_str(), d.name.as_str(), d.secrets.len()), ("b/c/d", "b / c / d", 1));
}

#[test]
fn a_called_file_brings_its_concurrency() {
    let called = |concurrency: &str| {
        format!(
            "on: {{workflow_call: {{inputs: {{x: {{type: string}}}}}}}}\nconcurrency: {concurrency}\njobs: {{b: {{runs-on: gpu, steps: [{{run: x}}]}}}}\n"
        )
    };
    let call = |keys: &str| format!("on: push\njobs:\n  a:\n    uses: ./.github/workflows/x.yml\n{keys}");
    let read = |keys: &str, concurrency: &str| {
        let lowered = with_files(&call(keys), &[(".github/workflows/x.yml", &called(concurrency))]);
        let group = lowered.plan.as_ref().and_then(|it| it.jobs[0].concurrency.clone()).map(|it| it.group);
        (group, rendered(&lowered))
    };
    assert_eq!(read("", "one-${{ github.ref }}"), (Some("one-refs/heads/main".into()), String::new()));
    let (group, told) = read("    concurrency: mine\n", "one");
    assert!(
        group.as_deref() == Some("mine") && told.contains("the `concurrency` of this job counts"),
        "{told}"
    );
    let (group, told) = read("", "one-${{ inputs.x }}");
    assert!(group.is_none() && told.contains("asks for its inputs"), "{told}");
}

#[test]
fn what_is_wrong_with_a_call_is_said_where_it_stands() {
    let call = |keys: &str| format!("on: push\njobs:\n  a:\n    uses: ./.github/workflows/x.yml\n{keys}");
    let good = "    with: {count: 1}\n    secrets: {KEY: x}\n";
    let cases = [
        (call(""), CALLED, "`./.github/workflows/x.yml` must be given the input `count`\n  --> ci.yml:4:11"),
        (call("    with: {count: 1}\n"), CALLED, "must be given the secret `KEY`"),
        (
            call("    with: {count: x}\n    secrets: inherit\n"),
            CALLED,
            "the input `count` must be a number, this is `x`\n  --> ci.yml:5:19",
        ),
        (
            call("    with: {count: 1, levl: x}\n    secrets: inherit\n"),
            CALLED,
            "takes no input `levl`\n  --> ci.yml:5:22\nhint: did you mean `level`?",
        ),
        (
            call("    with: {count: 1}\n    secrets: {KEY: x, KYE: y}\n"),
            CALLED,
            "takes no secret `KYE`\n  --> ci.yml:6:23",
        ),
        (call(good), "on: push\njobs: {a: {runs-on: gpu, steps: [{run: x}]}}\n", "cannot be called"),
        (
            call(good),
            "on: workflow_call\njobs: {a: {runs-on: gpu, steps: [{rn: x}]}}\n",
            "in .github/workflows/x.yml:2:35: unknown key `rn` in the step\n  --> ci.yml:4:11",
        ),
        (
            call(&format!("{good}    permissions: {{contents: read}}\n")),
            "on: workflow_call\npermissions: write-all\njobs: {a: {runs-on: gpu, steps: [{run: x}]}}\n",
            "the called job `a` asks for `actions: write`, this one has `actions: none`",
        ),
        (call("    with: {x: '${{ steps.a }}'}\n"), CALLED, "there is no context `steps`"),
        (
            call(""),
            "on: workflow_call\njobs: {a: {uses: ./.github/workflows/x.yml}}\n",
            "the workflows call each other: `.github/workflows/ci.yml` calls `.github/workflows/x.yml` calls `.github/workflows/x.yml`",
        ),
        (
            call(""),
            "on: workflow_call\njobs: {a: {uses: ./.github/workflows/ci.yml}}\n",
            "calls `.github/workflows/ci.yml`",
        ),
    ];
    for (source, called, want) in cases {
        let lowered = with_files(&source, &[(".github/workflows/x.yml", called)]);
        let got = rendered(&lowered);
        assert!(got.contains(want), "want {want}\ngot {got}");
    }
    let absent = [(".github/workflows/x.yml".to_owned(), "there is no such file".to_owned())].into();
    let lowered = lower("ci.yml", &call(""), &Trigger { absent, ..main() });
    assert!(
        rendered(&lowered)
            .contains("`./.github/workflows/x.yml` cannot be read: there is no such file\n  --> ci.yml:4:11")
    );
    assert!(lowered.missing.is_empty());
    let files: Vec<(String, String)> = (0..12)
        .map(|it| {
            let text =
                format!("on: workflow_call\njobs: {{a: {{uses: ./.github/workflows/{}.yml}}}}\n", it + 1);
            (format!(".github/workflows/{it}.yml"), text)
        })
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let lowered = with_files("on: push\njobs: {a: {uses: ./.github/workflows/0.yml}}\n", &files);
    assert!(rendered(&lowered).contains("a call may lead 10 files deep at most"), "{}", rendered(&lowered));
}

#[test]
fn calls_that_multiply_are_stopped() {
    let mut files: Vec<(String, String)> = (0..6)
        .map(|it| {
            let next = it + 1;
            let jobs: String =
                (0..10).map(|job| format!("  j{job}: {{uses: ./.github/workflows/{next}.yml}}\n")).collect();
            (format!(".github/workflows/{it}.yml"), format!("on: workflow_call\njobs:\n{jobs}"))
        })
        .collect();
    let last = "on: workflow_call\njobs: {a: {runs-on: gpu, steps: [{run: x}]}}\n".to_owned();
    files.push((".github/workflows/6.yml".into(), last));
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let lowered = with_files("on: push\njobs: {a: {uses: ./.github/workflows/0.yml}}\n", &files);
    assert_eq!(lowered.findings.len(), 1);
    assert!(rendered(&lowered).contains("256 calls at most"), "{}", rendered(&lowered));
}

#[test]
fn a_matrix_of_calls_counts_their_jobs() {
    let jobs: String =
        (0..20).map(|it| format!("  j{it}: {{runs-on: gpu, steps: [{{run: x}}]}}\n")).collect();
    let called = format!("on: workflow_call\njobs:\n{jobs}");
    let axis: Vec<u32> = (0..50).collect();
    let source = format!(
        "on: push\njobs:\n  a:\n    strategy: {{matrix: {{n: {axis:?}}}}}\n    uses: ./.github/workflows/x.yml\n"
    );
    let lowered = with_files(&source, &[(".github/workflows/x.yml", &called)]);
    assert!(rendered(&lowered).contains("the matrix comes to 1050 jobs"), "{}", rendered(&lowered));
}
