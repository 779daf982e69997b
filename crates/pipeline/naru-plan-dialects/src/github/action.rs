//! `action.yml`: what a packaged step says about itself, brought to the one form's [`Package`].
//!
//! The keys are those of GitHub's page "Metadata syntax for GitHub Actions" and of the schema that its runner
//! reads manifests with. As there, the root and the inputs may hold keys of other tools: they are a warning;
//! in `runs` and its steps an unknown key is an error, because something would not happen.
//!
//! ```
//! let source = "name: greet\nruns: {using: node20, main: index.js}\n";
//! let (package, findings) = naru_plan_dialects::github::package("action.yml", source);
//! assert!(findings.is_empty());
//! assert_eq!(package.unwrap().name, "greet");
//! ```

use super::expression;
use super::step::checkout;
use naru_plan::{Action, Package, PackageBody, PackageInput, Step};
use naru_text::yaml::{self, Data, Node};
use naru_text::{Finding, suggest_hint};

const ROOT_KEYS: &[&str] = &["name", "author", "description", "inputs", "outputs", "runs", "branding"];
const INPUT_KEYS: &[&str] = &["description", "required", "default", "deprecationMessage", "type", "options"];
const OUTPUT_KEYS: &[&str] = &["description", "value"];
const NODE_KEYS: &[&str] = &["using", "main", "pre", "pre-if", "post", "post-if"];
const CONTAINER_KEYS: &[&str] = &[
    "using",
    "image",
    "entrypoint",
    "args",
    "env",
    "pre-entrypoint",
    "pre-if",
    "post-entrypoint",
    "post-if",
];
const COMPOSITE_KEYS: &[&str] = &["using", "steps"];
const RUN_STEP_KEYS: &[&str] =
    &["name", "id", "if", "run", "env", "working-directory", "shell", "continue-on-error"];
const USES_STEP_KEYS: &[&str] = &["name", "id", "if", "uses", "with", "env", "continue-on-error"];

/// Versions of Node that manifests name. All run on the one that the image has.
const NODE_VERSIONS: &[&str] = &["node12", "node16", "node20", "node22", "node24"];

/// The package of a manifest, unless it cannot be run at all, and everything worth saying about it.
pub fn package(_path: &str, source: &str) -> (Option<Package>, Vec<Finding>) {
    let (node, findings) = yaml::parse(source);
    let mut reader = Reader { findings };
    let package = node.and_then(|it| reader.package(&it));
    let broken = reader.findings.iter().any(Finding::is_error);
    (package.filter(|_| !broken), reader.findings)
}

/// The command line of a named shell and its scripts' extension, as GitHub's runner has them; `None` if the
/// name is none of its own. `{0}` stands for the script's file.
pub(super) fn shell_line(shell: &str) -> Option<(&'static str, &'static str)> {
    Some(match shell {
        "bash" => ("bash --noprofile --norc -e -o pipefail {0}", "sh"),
        "sh" => ("sh -e {0}", "sh"),
        "python" => ("python {0}", "py"),
        "pwsh" => ("pwsh -command . '{0}'", "ps1"),
        _ => return None,
    })
}

struct Reader {
    findings: Vec<Finding>,
}

impl Reader {
    fn error(&mut self, at: &Node, message: impl Into<String>) {
        self.findings.push(Finding::error(at.place, message));
    }

    fn error_hint(&mut self, at: &Node, message: impl Into<String>, hint: impl Into<String>) {
        self.findings.push(Finding::error(at.place, message).hint(hint));
    }

    /// Says which keys are unknown; false if there are no keys because it is no mapping.
    fn keys(
        &mut self,
        what: &str,
        node: &Node,
        known: &[&str],
        severity: fn(&Node, String) -> Finding,
    ) -> bool {
        let Data::Mapping(entries) = &node.data else {
            self.error(node, format!("{what} must be a mapping, this is {}", node.describe()));
            return false;
        };
        for (key, _) in entries {
            let name = key.as_str().unwrap_or_default();
            if !known.contains(&name) {
                let finding = severity(key, format!("unknown key `{name}` in {what}"));
                self.findings.push(finding.hint(suggest_hint(name, known)));
            }
        }
        true
    }

    fn text(&mut self, node: &Node) -> String {
        if node.is_null() {
            return String::new();
        }
        let Some(text) = node.as_str() else {
            self.error(node, format!("text is expected here, this is {}", node.describe()));
            return String::new();
        };
        if let Err(error) = expression::check_text(text) {
            self.error(node, format!("{error} in `{}`", text.lines().next().unwrap_or_default()));
        }
        text.to_owned()
    }

    fn optional(&mut self, node: &Node, key: &str) -> Option<String> {
        node.get(key).map(|it| self.text(it))
    }

    /// A condition, whose braces are optional.
    fn condition(&mut self, node: &Node, key: &str) -> Option<String> {
        let at = node.get(key)?;
        let text = at.as_str().unwrap_or_default();
        if let Err(error) = expression::check_condition(text) {
            self.error(at, format!("{error} in `{text}`"));
        }
        Some(text.to_owned())
    }

    fn pairs(&mut self, what: &str, node: Option<&Node>) -> Vec<(String, String)> {
        let Some(node) = node.filter(|it| !it.is_null()) else { return Vec::new() };
        if !matches!(node.data, Data::Mapping(_)) {
            self.error(node, format!("{what} must be a mapping, this is {}", node.describe()));
        }
        node.entries()
            .iter()
            .map(|(key, value)| (key.as_str().unwrap_or_default().to_owned(), self.text(value)))
            .collect()
    }

    fn package(&mut self, root: &Node) -> Option<Package> {
        if !self.keys("the manifest", root, ROOT_KEYS, warning) {
            return None;
        }
        let mut package =
            Package { name: self.optional(root, "name").unwrap_or_default(), ..Package::default() };
        for (name, input) in root.get("inputs").map(Node::entries).unwrap_or_default() {
            let mut it = PackageInput {
                name: name.as_str().unwrap_or_default().to_owned(),
                ..PackageInput::default()
            };
            if !input.is_null() && self.keys("an input", input, INPUT_KEYS, warning) {
                it.default = self.optional(input, "default");
                it.required = input.get("required").and_then(Node::as_bool).unwrap_or(false);
                it.deprecation = self.optional(input, "deprecationMessage");
            }
            package.inputs.push(it);
        }
        let outputs = root.get("outputs").map(Node::entries).unwrap_or_default();
        for (name, output) in outputs {
            let value = if !output.is_null() && self.keys("an output", output, OUTPUT_KEYS, warning) {
                self.optional(output, "value")
            } else {
                None
            };
            package.outputs.push((name.as_str().unwrap_or_default().to_owned(), value.unwrap_or_default()));
        }
        let Some(runs) = root.get("runs") else {
            self.error_hint(
                root,
                "the manifest has no `runs`",
                "write `runs: {using: composite, steps: [...]}`",
            );
            return None;
        };
        package.body = self.body(runs)?;
        Some(package)
    }

    fn body(&mut self, runs: &Node) -> Option<PackageBody> {
        let using = runs.get("using").and_then(Node::as_str).unwrap_or_default().to_ascii_lowercase();
        match using.as_str() {
            "composite" => {
                self.keys("`runs` of a composite action", runs, COMPOSITE_KEYS, error);
                let Some(steps) = runs.get("steps") else {
                    self.error(runs, "a composite action needs `steps`");
                    return None;
                };
                if !matches!(steps.data, Data::Sequence(_)) {
                    self.error(steps, format!("`steps` must be a list, this is {}", steps.describe()));
                }
                Some(PackageBody::Composite {
                    steps: steps.items().iter().filter_map(|it| self.step(it)).collect(),
                })
            }
            "docker" => {
                self.keys("`runs` of a Docker action", runs, CONTAINER_KEYS, error);
                let Some(image) = self.optional(runs, "image").filter(|it| !it.is_empty()) else {
                    self.error_hint(runs, "a Docker action needs `image`", "write `image: Dockerfile`");
                    return None;
                };
                let args = runs.get("args").map(Node::items).unwrap_or_default();
                Some(PackageBody::Container {
                    image,
                    entrypoint: self.optional(runs, "entrypoint"),
                    pre_entrypoint: self.optional(runs, "pre-entrypoint"),
                    pre_condition: self.condition(runs, "pre-if"),
                    post_entrypoint: self.optional(runs, "post-entrypoint"),
                    post_condition: self.condition(runs, "post-if"),
                    args: args.iter().map(|it| self.text(it)).collect(),
                    env: self.pairs("`env`", runs.get("env")),
                })
            }
            it if NODE_VERSIONS.contains(&it) => {
                self.keys("`runs` of a JavaScript action", runs, NODE_KEYS, error);
                let Some(main) = self.optional(runs, "main").filter(|it| !it.is_empty()) else {
                    self.error_hint(runs, "a JavaScript action needs `main`", "write `main: index.js`");
                    return None;
                };
                Some(PackageBody::Node {
                    main,
                    pre: self.optional(runs, "pre"),
                    pre_condition: self.condition(runs, "pre-if"),
                    post: self.optional(runs, "post"),
                    post_condition: self.condition(runs, "post-if"),
                })
            }
            "" => {
                self.error_hint(
                    runs,
                    "`runs` needs `using`",
                    "write `using: composite`, `node20` or `docker`",
                );
                None
            }
            other => {
                let known: Vec<&str> = ["composite", "docker"].iter().chain(NODE_VERSIONS).copied().collect();
                let at = runs.get("using").expect("its text was read above");
                self.error_hint(at, format!("`using: {other}` is not known"), suggest_hint(other, &known));
                None
            }
        }
    }

    fn step(&mut self, node: &Node) -> Option<Step> {
        let keys = if node.get("uses").is_some() { USES_STEP_KEYS } else { RUN_STEP_KEYS };
        if !self.keys("a step of the action", node, keys, error) {
            return None;
        }
        let mut step = Step {
            id: self.optional(node, "id").unwrap_or_default(),
            condition: self.condition(node, "if"),
            env: self.pairs("`env`", node.get("env")),
            continue_on_error_text: self.optional(node, "continue-on-error").unwrap_or_default(),
            line: node.place.line,
            ..Step::default()
        };
        if let Some(uses) = node.get("uses") {
            let uses = self.text(uses);
            step.name = format!("Run {uses}");
            let with = self.pairs("`with`", node.get("with"));
            let name = uses.split('@').next().unwrap_or_default();
            let built_in = name.eq_ignore_ascii_case("actions/checkout").then(|| checkout(&with)).flatten();
            step.action = built_in.unwrap_or(Action::Uses { uses, with });
        } else {
            let Some(run) = node.get("run") else {
                self.error_hint(node, "a step needs `run` or `uses`", "write `run: <command>`");
                return None;
            };
            let script = self.text(run);
            let Some(shell_node) = node.get("shell") else {
                self.error_hint(run, "a step of a composite action needs `shell`", "write `shell: bash`");
                return None;
            };
            let shell = self.text(shell_node);
            let Some((line, extension)) = shell_line(&shell)
                .map(|(line, extension)| (line.to_owned(), extension))
                .or_else(|| shell.contains("{0}").then(|| (shell.clone(), "sh")))
            else {
                let hint = "use bash, sh, python, pwsh, or a command line with `{0}` for the script's file";
                self.error_hint(shell_node, format!("the shell `{shell}` is not supported"), hint);
                return None;
            };
            step.name = format!("Run {}", script.trim_start().lines().next().unwrap_or_default());
            step.working_directory = self.optional(node, "working-directory").unwrap_or_default();
            step.action = Action::Run {
                script,
                shell: line.split_whitespace().map(str::to_owned).collect(),
                extension: extension.to_owned(),
            };
        }
        if let Some(name) = self.optional(node, "name") {
            step.name = name;
        }
        Some(step)
    }
}

fn warning(at: &Node, message: String) -> Finding {
    Finding::warning(at.place, message)
}

fn error(at: &Node, message: String) -> Finding {
    Finding::error(at.place, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_sorts_of_actions_are_read() {
        let node = "name: a\ninputs:\n  who: {default: you, required: true}\nruns: {using: node20, main: m.js, post: p.js, post-if: success()}\n";
        let (package, findings) = super::package("action.yml", node);
        assert!(findings.is_empty(), "{findings:?}");
        let package = package.unwrap();
        assert_eq!(package.inputs[0].default.as_deref(), Some("you"));
        let PackageBody::Node { main, pre, post, post_condition, .. } = package.body else { panic!() };
        assert_eq!((main.as_str(), pre, post.as_deref()), ("m.js", None, Some("p.js")));
        assert_eq!(post_condition.as_deref(), Some("success()"));

        let composite = "outputs: {o: {value: '${{ steps.a.outputs.x }}'}}\nruns:\n  using: composite\n  steps:\n    - {id: a, run: ls, shell: bash}\n    - {uses: o/r@v1, with: {k: v}, if: always()}\n    - {uses: actions/checkout@v4, with: {path: d}}\n";
        let (package, findings) = super::package("action.yml", composite);
        assert!(findings.is_empty(), "{findings:?}");
        let package = package.unwrap();
        assert_eq!(package.outputs, [("o".into(), "${{ steps.a.outputs.x }}".into())]);
        let PackageBody::Composite { steps } = package.body else { panic!() };
        let Action::Run { shell, .. } = &steps[0].action else { panic!() };
        assert_eq!(shell.join(" "), "bash --noprofile --norc -e -o pipefail {0}");
        assert_eq!(
            steps[1].action,
            Action::Uses { uses: "o/r@v1".into(), with: vec![("k".into(), "v".into())] }
        );

        assert_eq!(steps[2].action, Action::Checkout { path: "d".into(), depth: 1 });

        let docker = "runs: {using: docker, image: Dockerfile, args: ['${{ inputs.a }}', b], env: {K: v}}\n";
        let PackageBody::Container { args, .. } = super::package("action.yml", docker).0.unwrap().body else {
            panic!()
        };
        assert_eq!(args, ["${{ inputs.a }}", "b"]);
    }

    #[test]
    fn what_would_not_happen_is_an_error_with_its_place() {
        for (source, want) in [
            ("runs: {using: node20}\n", "needs `main`"),
            ("runs: {using: deno, main: x}\n", "`using: deno` is not known\n  --> action.yml:1:15"),
            ("runs: {using: node20, mian: x, main: y}\n", "did you mean `main`?"),
            ("runs: {using: composite, steps: [{run: ls}]}\n", "needs `shell`"),
            ("name: x\n", "no `runs`"),
            (
                "runs: {using: composite, steps: [{uses: a/b@c, with: {k: '${{ oops( }}'}}]}\n",
                "action.yml:1:",
            ),
        ] {
            let (package, findings) = super::package("action.yml", source);
            let text = findings.iter().map(|it| it.render("action.yml")).collect::<Vec<_>>().join("\n");
            assert!(package.is_none() && text.contains(want), "want {want}\ngot {text}");
        }
        let (package, findings) = super::package("action.yml", "x-tool: 1\nruns: {using: node20, main: m}\n");
        assert!(package.is_some() && !findings[0].is_error(), "{findings:?}");
    }
}
