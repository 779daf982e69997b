//! Warnings about what an attacker could use: text from outside in scripts, actions that may change under the
//! same name, foreign code with the repository's rights. The list of untrusted contexts is that of GitHub's
//! page "Script injections".

use super::expression::{self, Expr, Function, Node as Tree, Part};
use super::reader::Reader;
use crate::Survey;
use naru_text::yaml::Node;

/// Text that whoever opens an issue or a pull request writes. `*` is any one step.
const UNTRUSTED: &[&str] = &[
    "github.event.issue.title",
    "github.event.issue.body",
    "github.event.pull_request.title",
    "github.event.pull_request.body",
    "github.event.pull_request.head.ref",
    "github.event.pull_request.head.label",
    "github.event.pull_request.head.repo.default_branch",
    "github.event.comment.body",
    "github.event.review.body",
    "github.event.review_comment.body",
    "github.event.discussion.title",
    "github.event.discussion.body",
    "github.event.pages.*.page_name",
    "github.event.commits.*.message",
    "github.event.commits.*.author.email",
    "github.event.commits.*.author.name",
    "github.event.head_commit.message",
    "github.event.head_commit.author.email",
    "github.event.head_commit.author.name",
    "github.event.workflow_run.head_branch",
    "github.event.workflow_run.head_commit.message",
    "github.event.workflow_run.head_commit.author.email",
    "github.event.workflow_run.head_commit.author.name",
    "github.event.workflow_run.pull_requests.*.head.ref",
    "github.head_ref",
];

/// Whose actions are trusted under a tag: the makers of the format. As the linter zizmor has it.
const TRUSTED_OWNERS: &[&str] = &["actions", "github", "dependabot"];

impl Reader<'_> {
    /// Text that a stranger wrote must not become part of a script.
    pub fn warn_of_injection(&mut self, node: &Node, text: &str, what: &str) {
        let Ok(parts) = expression::parts(text) else { return };
        for part in &parts {
            let Part::Expression { expr, offset } = part else { continue };
            if let Some((path, at)) = untrusted(expr) {
                let place = self.place_in(node, text, offset + at);
                self.warn(
                    place,
                    format!("`{path}` is text from outside and becomes part of {what}"),
                    "pass it through `env:` and use the variable in quotes",
                );
            }
        }
    }

    /// A name that can be moved to other code, of somebody else's.
    pub fn warn_of_unpinned(&mut self, node: &Node, uses: &str) {
        if let Some(image) = uses.strip_prefix("docker://") {
            if !image.contains("@sha256:") {
                let hint = "name it by its digest: `docker://image@sha256:...`";
                self.warn(
                    node.place,
                    format!("the image `{image}` is not pinned: its name can be given to another"),
                    hint,
                );
            }
            return;
        }
        let Some((name, git_ref)) = uses.split_once('@') else { return };
        let owner = name.split('/').next().unwrap_or_default();
        let pinned = matches!(git_ref.len(), 40 | 64) && git_ref.bytes().all(|it| it.is_ascii_hexdigit());
        if pinned || TRUSTED_OWNERS.iter().any(|it| it.eq_ignore_ascii_case(owner)) {
            return;
        }
        self.warn(
            node.place,
            format!("`{uses}` is not pinned: whoever can move `{git_ref}` runs code here"),
            format!("name the commit: `{name}@<40 hex digits> # {git_ref}`"),
        );
    }

    /// The code of a pull request, in a run that has the repository's secrets.
    pub fn warn_of_foreign_checkout(&mut self, uses: &str, with: Option<&Node>) {
        let privileged = ["pull_request_target", "workflow_run"];
        let Some(event) = privileged.iter().find(|it| self.survey.events.iter().any(|event| event == *it))
        else {
            return;
        };
        if !uses.to_ascii_lowercase().starts_with("actions/checkout@") {
            return;
        }
        for key in ["ref", "repository"] {
            let Some(node) = with.and_then(|it| it.get(key)) else { continue };
            let text = node.as_str().unwrap_or_default().to_ascii_lowercase();
            let foreign = ["pull_request.head", "github.head_ref", "workflow_run.head_"];
            if foreign.iter().any(|it| text.contains(it)) {
                self.warn(
                    node.place,
                    format!("`{event}` runs with the repository's rights and secrets, and this checks out the code of whoever asks"),
                    "use `pull_request` for what builds or tests that code",
                );
                return;
            }
        }
    }
}

/// The first untrusted text that becomes part of an expression's value, and where.
fn untrusted(expr: &Expr) -> Option<(String, usize)> {
    if let Some(path) = path_of(expr) {
        let hit = UNTRUSTED.iter().any(|it| matches(it, &path));
        return hit.then(|| (path.join("."), expr.at));
    }
    match &expr.node {
        // Their value is true or false, whatever the text.
        Tree::Compare(..) | Tree::Not(_) => None,
        Tree::Call(Function::Contains | Function::StartsWith | Function::EndsWith, _) => None,
        Tree::Call(Function::ToJson, args) => {
            args.iter().find_map(whole).or_else(|| args.iter().find_map(untrusted))
        }
        _ => expr.children().into_iter().find_map(untrusted),
    }
}

/// An object that has untrusted text somewhere in it, written out whole.
fn whole(expr: &Expr) -> Option<(String, usize)> {
    let path = path_of(expr)?;
    let hit = UNTRUSTED.iter().any(|it| {
        let pattern: Vec<&str> = it.split('.').take(path.len()).collect();
        pattern.len() == path.len() && matches(&pattern.join("."), &path)
    });
    hit.then(|| (path.join("."), expr.at))
}

/// `github.event.commits[0].message` as its steps, numbers and stars as `*`.
fn path_of(expr: &Expr) -> Option<Vec<String>> {
    match &expr.node {
        Tree::Context(name) => Some(vec![name.clone()]),
        Tree::Star(of) => {
            let mut path = path_of(of)?;
            path.push("*".into());
            Some(path)
        }
        Tree::Index(of, key) => {
            let mut path = path_of(of)?;
            path.push(match &key.node {
                Tree::Text(it) => it.to_ascii_lowercase(),
                _ => "*".into(),
            });
            Some(path)
        }
        _ => None,
    }
}

fn matches(pattern: &str, path: &[String]) -> bool {
    let pattern: Vec<&str> = pattern.split('.').collect();
    pattern.len() == path.len()
        && pattern.iter().zip(path).all(|(want, step)| *want == step || *want == "*" || step == "*")
}

/// The names of secrets and variables that an expression asks for.
pub fn note_secrets(expr: &Expr, survey: &mut Survey) {
    expr.walk(&mut |it| {
        let Tree::Index(of, key) = &it.node else { return };
        let (Tree::Context(context), Tree::Text(name)) = (&of.node, &key.node) else { return };
        let names = match context.as_str() {
            "secrets" if !name.eq_ignore_ascii_case("GITHUB_TOKEN") => &mut survey.secrets,
            "vars" => &mut survey.variables,
            _ => return,
        };
        names.insert(name.to_uppercase());
    });
}
