//! Expressions of the Common Expression Language over JSON values, as Kubernetes uses them: rules of
//! declared kinds and admission policies.
//!
//! An expression comes from a user and runs in the server, so what it may cost is bounded before it
//! runs: its size, how deep it loops, and over how many things.
//!
//! ```
//! use serde_json::json;
//! let rule = kube_cel::compile("self.min <= self.max").expect("it is CEL");
//! let object = json!({"min": 2, "max": 1});
//! assert_eq!(rule.holds(&[("self", kube_cel::from_json(&object))]), Ok(false));
//! ```

mod library;
mod value;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::parser::PrattParser;
use cel::{Context, Env};

pub use value::{escape, from_json, from_json_of, map};

/// A value of the language. Cheap to clone.
pub type Value = cel::Value;

/// As Kubernetes has it for an expression of a schema.
const EXPRESSION_BYTES_MAX: usize = 10 * 1024;
/// Steps of an evaluation at most: about a tenth of a second.
const STEPS_MAX: u64 = 2_000_000;
/// Deeper expressions are nobody's.
const DEPTH_MAX: usize = 64;
const NODES_MAX: usize = 5_000;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(library::environment()));

/// A compiled expression.
pub struct Expression {
    tree: IdedExpr,
    nodes: u64,
    /// Loops within loops.
    loops: u32,
    /// Takes texts apart, so that their length counts.
    splits: bool,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Expression of {} nodes", self.nodes)
    }
}

/// Compiles an expression; the message says what is wrong with it.
pub fn compile(text: &str) -> Result<Expression, String> {
    if text.trim().is_empty() {
        return Err("expression is not specified".into());
    }
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(format!("expression is longer than {EXPRESSION_BYTES_MAX} bytes"));
    }
    // Not the crate's first parser: that one has no limit of depth.
    let parser = PrattParser::new()
        .max_recursion_depth(DEPTH_MAX as u16)
        .max_expression_node_count(NODES_MAX)
        .enable_optional_syntax(true);
    let tree = catch_unwind(AssertUnwindSafe(|| parser.parse(text)))
        .map_err(|_| "compilation failed".to_string())?
        .map_err(|error| format!("compilation failed: ERROR: {}", error.to_string().trim()))?;
    let mut size = Size::default();
    size.measure(&tree, 0, 0)?;
    Ok(Expression { tree, nodes: size.nodes, loops: size.loops, splits: size.splits })
}

#[derive(Default)]
struct Size {
    nodes: u64,
    loops: u32,
    splits: bool,
}

impl Size {
    fn measure(&mut self, expression: &IdedExpr, loops: u32, depth: usize) -> Result<(), String> {
        if depth > 8 * DEPTH_MAX {
            return Err("expression is nested too deeply".into());
        }
        self.nodes += 1;
        self.loops = self.loops.max(loops);
        let mut of = |it: &IdedExpr, loops: u32| self.measure(it, loops, depth + 1);
        let entry = |it: &EntryExpr| match it {
            EntryExpr::StructField(it) => vec![it.value.clone()],
            EntryExpr::MapEntry(it) => vec![it.key.clone(), it.value.clone()],
        };
        match &expression.expr {
            Expr::Call(call) => {
                self.splits |= ["split", "findAll"].contains(&call.func_name.as_str());
                let mut of = |it: &IdedExpr, loops: u32| self.measure(it, loops, depth + 1);
                call.target.iter().try_for_each(|it| of(it, loops))?;
                call.args.iter().try_for_each(|it| of(it, loops))
            }
            Expr::Comprehension(it) => {
                of(&it.iter_range, loops)?;
                of(&it.accu_init, loops)?;
                of(&it.loop_cond, loops + 1)?;
                of(&it.loop_step, loops + 1)?;
                of(&it.result, loops)
            }
            Expr::List(list) => list.elements.iter().try_for_each(|it| of(it, loops)),
            Expr::Map(map) => {
                map.entries.iter().flat_map(|it| entry(&it.expr)).try_for_each(|it| of(&it, loops))
            }
            Expr::Struct(it) => {
                it.entries.iter().flat_map(|it| entry(&it.expr)).try_for_each(|it| of(&it, loops))
            }
            Expr::Select(select) => of(&select.operand, loops),
            Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Ok(()),
        }
    }
}

impl Expression {
    /// Evaluates with these variables.
    pub fn evaluate(&self, variables: &[(&str, Value)]) -> Result<Value, String> {
        let longest =
            variables.iter().map(|(_, it)| value::longest(it, self.splits)).max().unwrap_or(1).max(1);
        let steps = longest.checked_pow(self.loops).and_then(|it| it.checked_mul(self.nodes));
        if steps.is_none_or(|it| it > STEPS_MAX) {
            return Err("operation cancelled: actual cost limit exceeded".into());
        }
        let mut context = Context::with_env(ENVIRONMENT.clone());
        library::extend(&mut context);
        for (name, value) in variables {
            context.add_variable_from_value(*name, value.clone());
        }
        let result = catch_unwind(AssertUnwindSafe(|| Value::resolve(&self.tree, &context)));
        result.map_err(|_| "evaluation failed".to_string())?.map_err(|error| error.to_string())
    }

    /// The truth of an expression that is one.
    pub fn holds(&self, variables: &[(&str, Value)]) -> Result<bool, String> {
        match self.evaluate(variables)? {
            Value::Bool(truth) => Ok(truth),
            other => Err(format!("cel expression evaluated to {}, not to a bool", other.type_of())),
        }
    }

    /// The text of an expression that is one.
    pub fn text(&self, variables: &[(&str, Value)]) -> Result<String, String> {
        match self.evaluate(variables)? {
            Value::String(text) => Ok(text.to_string()),
            other => Err(format!("cel expression evaluated to {}, not to a string", other.type_of())),
        }
    }

    /// Whether it speaks of this variable.
    pub fn mentions(&self, variable: &str) -> bool {
        self.tree.references().has_variable(variable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(rule: &str, expected: bool) {
        let object = json!({"replicas": 3, "names": ["a", "b"], "labels": {"app": "web", "x-y": "1"}, "ratio": 0.5,
            "size": "10Mi", "ip": "10.0.0.1", "nothing": null, "list": [{"k": "a", "v": 1}, {"k": "b", "v": 2}]});
        let rule_text = rule;
        let rule = compile(rule).unwrap_or_else(|why| panic!("{rule_text}: {why}"));
        assert_eq!(rule.holds(&[("self", from_json(&object))]), Ok(expected), "{rule_text}");
    }

    #[test]
    fn what_kubernetes_rules_use_works() {
        check("self.replicas <= 3 && self.replicas > 0", true);
        check("self.replicas in [1, 2]", false);
        check("has(self.missing) ? self.missing == 1 : true", true);
        check("self.names.all(n, n.matches('^[a-z]$'))", true);
        check("self.names.exists_one(n, n == 'a')", true);
        check("size(self.names) == 2 && self.names.size() == 2", true);
        check("self.labels['x-y'] == '1' && 'app' in self.labels", true);
        check("self.labels.all(k, k.startsWith('a') || k.endsWith('y'))", true);
        check("self.list.map(it, it.v).sum() == 3", true);
        check("self.names.isSorted() && [3, 1].isSorted() == false", true);
        check("self.names.min() == 'a' && [3, 1].max() == 3", true);
        check("'a-b'.split('-')[0] == 'a' && 'Ab'.lowerAscii() == 'ab'", true);
        check("'abc 123'.find('[0-9]+') == '123'", true);
        check("double(self.replicas) * self.ratio == 1.5", true);
        check("self.ratio < 1", true);
        check("type(self.replicas) == int", true);
        check("isQuantity(self.size) && quantity(self.size).isGreaterThan(quantity('1Mi'))", true);
        check("isIP(self.ip) && !isIP('x')", true);
        check("self.?missing.orValue('x') == 'x'", true);
        check("string(self.replicas) == '3' && int('3') == self.replicas", true);
        check("self.nothing == null", true);
        check(
            "duration('1h') > duration('1m') && timestamp('2026-01-01T00:00:00Z').getFullYear() == 2026",
            true,
        );
        check("url('https://example.com:80/p').getHostname() == 'example.com'", true);
    }

    #[test]
    fn an_expression_that_would_take_long_is_not_run() {
        let object = json!({"items": vec![1; 1000]});
        let rule =
            compile("self.items.all(a, self.items.all(b, self.items.all(c, a + b + c > 0)))").expect("CEL");
        let why = rule.holds(&[("self", from_json(&object))]).expect_err("too much");
        assert!(why.contains("cost limit"), "{why}");
        assert!(compile(&"(".repeat(5000)).is_err());
        assert!(compile("self.").is_err());
        assert!(compile(&format!("{}1", "1+".repeat(4000))).is_err());
    }
}
