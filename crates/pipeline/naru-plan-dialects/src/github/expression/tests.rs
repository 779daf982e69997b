use super::*;
use serde_json::json;

fn contexts() -> Value {
    json!({
        "github": {"ref": "refs/heads/main", "event": {"commits": [{"id": "a"}, {"id": "b"}, {"no": 1}]}},
        "env": {"N": "3", "EMPTY": "", "n": "lower"},
        "needs": {
            "build": {"result": "success", "outputs": {"version": "1.2"}},
            "lint": {"result": "failure", "outputs": {}},
        },
        "matrix": {"os": "linux", "list": [1, 2], "nested": {"a": {"x": 1}, "b": {"x": 2}, "c": 3}},
        "__status": "success",
        "__hashes": {"a\nb": "abc"},
    })
}

/// Expression, kind and value as JSON. The same table is run through GitHub's own evaluator by the tests in
/// `tests/actions/tests/language`.
const TABLE: &str = include_str!("table.json");

#[test]
fn the_table_of_expressions_holds() {
    let cases: Vec<Value> = serde_json::from_str(TABLE).unwrap();
    assert!(cases.len() > 150, "{}", cases.len());
    for case in cases {
        let source = case["expr"].as_str().unwrap();
        let question = json!({"expr": source, "contexts": case.get("contexts")}).to_string();
        let got: Value = serde_json::from_str(&answer(&question).unwrap()).unwrap();
        match case.get("err") {
            None => assert_eq!(got, json!({"kind": case["kind"], "value": case["value"]}), "{source}"),
            Some(want) => {
                let message = got["err"].as_str().unwrap_or_default();
                assert!(message.contains(want.as_str().unwrap()), "{source}: {got}, want {want}");
                assert_eq!(got["pos"], case["pos"], "{source}: {got}");
            }
        }
    }
    assert!(answer("{}").is_err() && answer("1").is_err() && answer("{\"expr\": 1}").is_err());
}

#[test]
fn what_the_contexts_hold_is_found() {
    let cases = [
        ("github.ref == 'REFS/heads/main'", json!(true)),
        ("GITHUB.Ref", json!("refs/heads/main")),
        ("env.N > 2 && env.N < 4", json!(true)),
        ("env.n", json!("lower")),
        ("env.empty", json!(null)),
        ("env.EMPTY || 'default'", json!("default")),
        ("env.MISSING == 0", json!(true)),
        ("join(github.event.commits.*.id, '-')", json!("a-b")),
        ("needs.build.outputs['version']", json!("1.2")),
        ("needs.*.result", json!(["success", "failure"])),
        ("contains(needs.*.result, 'FAILURE')", json!(true)),
        ("matrix.nested.*.x", json!([1, 2])),
        ("matrix.nested['A'].x", json!(1)),
        ("matrix.list == matrix.list", json!(true)),
        ("matrix.list == fromJSON('[1,2]')", json!(false)),
        ("runner.os", json!(null)),
        ("success('build')", json!(true)),
        ("success('build', 'lint')", json!(false)),
        ("failure('build', 'lint')", json!(true)),
        ("hashFiles('a', 'b')", json!("abc")),
    ];
    for (source, want) in cases {
        assert_eq!(evaluate(source, &contexts()).as_ref(), Ok(&want), "{source}");
    }
    assert!(evaluate("gihub.ref", &contexts()).unwrap_err().message.contains("did you mean `github`?"));
    assert!(evaluate("hashFiles('c')", &contexts()).is_err());
}

#[test]
fn text_keeps_what_is_not_an_expression() {
    let text = |it: &str| GithubEvaluator.text(it, &contexts());
    assert_eq!(text("v${{ needs.build.outputs.version }}!").unwrap(), "v1.2!");
    assert_eq!(text("${{ '}}' }} $HOME").unwrap(), "}} $HOME");
    assert_eq!(text("a ${{ b").unwrap_err().offset, 2);
    assert_eq!(text("ab ${{ github. }}").unwrap_err().offset, 15);
}

#[test]
fn a_condition_implies_success_unless_it_asks_for_the_status() {
    let at = |status: &str, condition: Option<&str>| {
        let mut contexts = contexts();
        contexts["__status"] = json!(status);
        GithubEvaluator.condition(condition, &contexts).unwrap()
    };
    assert!(at("success", None));
    assert!(!at("failure", None));
    assert!(!at("failure", Some("github.ref == 'refs/heads/main'")));
    assert!(at("failure", Some("failure()")));
    assert!(at("failure", Some("${{ always() && true }}")));
    assert!(at("failure", Some("contains('x', 'y') == (success() && true)")));
    assert!(!at("success", Some("failure()")));
    assert!(!at("success", Some("contains('always()', 'x')")));
    assert!(!at("failure", Some("contains('always()', 'a')")));
    // Text around an expression is a text, and so true; GitHub does the same, `naru check` warns of it.
    assert!(at("success", Some("${{ false }} && true")));
    assert!(at("success", Some("  ${{ true }}\n")));
    assert!(at("success", Some("")));
}

#[test]
fn the_hashes_that_a_text_asks_for_are_named() {
    let asked = |text: &str| GithubEvaluator.file_hashes(text, &contexts()).unwrap();
    assert_eq!(
        asked("k-${{ hashFiles('**/*.lock', format('{0}.x', matrix.os)) }}"),
        [["**/*.lock", "linux.x"]]
    );
    assert_eq!(asked("steps.a.outputs.b != hashFiles('x')"), [["x"]]);
    assert_eq!(asked("echo hashFiles('x')"), Vec::<Vec<String>>::new());
}
