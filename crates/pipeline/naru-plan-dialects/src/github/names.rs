//! Names that expressions look up and that the file says itself: a slip in one is no error for GitHub, its value is
//! nothing. Here it is a warning.

use super::expression::{Expr, Node as Tree};
use naru_text::yaml::Node;
use naru_text::{suggest_hint, yaml::Data};

/// What there is to look up at a place; `None` where the file does not say.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub needs: Option<Vec<String>>,
    pub steps: Option<Vec<String>>,
    pub inputs: Option<Vec<String>>,
    pub matrix: Option<Vec<String>>,
    pub jobs: Option<Vec<String>>,
}

impl Names {
    /// Every name of the expression that is not there: what is wrong, what to write, and where.
    pub fn unknown(&self, expr: &Expr) -> Vec<(String, String, usize)> {
        let mut all = Vec::new();
        expr.walk(&mut |it| {
            let Tree::Index(of, key) = &it.node else { return };
            let (Tree::Context(context), Tree::Text(name)) = (&of.node, &key.node) else { return };
            let (known, what) = match context.as_str() {
                "needs" => (&self.needs, "among the `needs` of this job"),
                "steps" => (&self.steps, "the id of a step before this one"),
                "inputs" => (&self.inputs, "an input of this workflow"),
                "matrix" => (&self.matrix, "a name of this job's matrix"),
                "jobs" => (&self.jobs, "a job of this workflow"),
                _ => return,
            };
            let Some(known) = known else { return };
            if !known.iter().any(|it| it.eq_ignore_ascii_case(name)) {
                let words: Vec<&str> = known.iter().map(String::as_str).collect();
                let hint =
                    if words.is_empty() { "there are none".to_owned() } else { suggest_hint(name, &words) };
                all.push((format!("`{name}` is not {what}: `{context}.{name}` is nothing"), hint, key.at));
            }
        });
        all
    }
}

/// The names of a matrix that is written out.
pub fn of_matrix(strategy: Option<&Node>) -> Option<Vec<String>> {
    let Some(strategy) = strategy else { return Some(Vec::new()) };
    let matrix = match &strategy.data {
        Data::Mapping(_) => strategy.get("matrix"),
        _ => return None,
    };
    let Some(matrix) = matrix else { return Some(Vec::new()) };
    if !matches!(matrix.data, Data::Mapping(_)) {
        return None;
    }
    let mut names = Vec::new();
    for (key, value) in matrix.entries() {
        match key.as_str().unwrap_or_default() {
            "exclude" => {}
            "include" => {
                for item in value.items() {
                    if !matches!(item.data, Data::Mapping(_)) {
                        return None;
                    }
                    names
                        .extend(item.entries().iter().filter_map(|(key, _)| key.as_str()).map(str::to_owned));
                }
                if value.items().is_empty() {
                    return None;
                }
            }
            name => names.push(name.to_owned()),
        }
    }
    names.sort();
    names.dedup();
    Some(names)
}
