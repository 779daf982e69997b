//! What must be known before a job starts: its matrix, name, labels, limits, containers. [`settle`] computes it
//! and gives one job per combination. It runs while the file is read if everything that it asks for is known,
//! else once the jobs that it needs have ended: until then the values stand in [`Late`], as in the file.

use super::call;
use super::container::{CONTAINER_KEYS, SERVICE_KEYS, container, services};
use super::expression::{Evaluation, Val};
use super::late::Late;
use super::matrix::{self, COMBINATIONS_MAX, Combination};
use super::reader::{has_expression, scalar_text};
use super::step;
use naru_plan::{Action, Concurrency, Environment, EvaluateError, JOBS_MAX, Job};
use naru_text::yaml::{Data, Node, Style};
use naru_text::{Finding, Place};
use serde_json::{Map, Value, json};

/// The shell that `defaults` computes, among the nodes of [`Late`].
pub const SHELL: &str = "defaults.run.shell";

/// [`naru_plan::Evaluator::expand`].
pub fn expand(job: &Job, contexts: &Value) -> Result<Vec<Job>, EvaluateError> {
    let failed = |finding: &Finding| EvaluateError {
        message: format!("line {}: {}", finding.place.line, finding.message),
        offset: 0,
    };
    if let Some(deferred) = &job.deferred {
        let Some(late) = Late::of_json(deferred) else {
            let message = "the job's text was written by another version of naru".into();
            return Err(EvaluateError { message, offset: 0 });
        };
        let contexts = contexts.as_object().cloned().unwrap_or_default();
        let base = Job { deferred: None, ..job.clone() };
        return settle(&base, &late, &contexts).map(|(jobs, _)| jobs).map_err(|it| failed(&it[0]));
    }
    match &job.call {
        Some(call) => call::expand(job, call, contexts).map_err(|it| failed(&it)),
        None => Ok(vec![job.clone()]),
    }
}

/// Jobs, and what is to be said about them; or what stands in their way.
type Settled = Result<(Vec<Job>, Vec<Finding>), Vec<Finding>>;

/// One job per combination of the matrix, everything that must be known before it starts computed.
pub fn settle(base: &Job, late: &Late, contexts: &Map<String, Value>) -> Settled {
    let mut warnings = Vec::new();
    let mut base = base.clone();
    let root = Value::Object(contexts.clone());
    let evaluation = Evaluation::new(&root);
    let combinations = match late.node("strategy") {
        Some(node) => strategy(node, &evaluation, &mut base).map_err(|it| vec![it])?,
        None => None,
    };
    let total = combinations.as_ref().map_or(1, Vec::len);
    let spread = combinations.is_some();
    if total * base.count() > JOBS_MAX {
        let message =
            format!("the matrix comes to {} jobs, {JOBS_MAX} at most can be run", total * base.count());
        return Err(vec![Finding::error(late.node("strategy").map_or(late.place, |it| it.place), message)]);
    }
    let mut jobs = Vec::new();
    let mut findings: Vec<Finding> = Vec::new();
    for (index, combination) in
        combinations.unwrap_or_else(|| vec![Combination::new()]).into_iter().enumerate()
    {
        let mut contexts = contexts.clone();
        contexts.insert("matrix".into(), if spread { matrix::json(&combination) } else { Value::Null });
        let strategy = json!({
            "fail-fast": base.fail_fast, "job-index": index, "job-total": total,
            "max-parallel": if base.parallel_max == 0 { total } else { base.parallel_max },
        });
        contexts.insert("strategy".into(), strategy);
        let contexts = Value::Object(contexts);
        let mut job = base.clone();
        if spread {
            job.key = format!("{}-{}", base.key, index + 1);
        }
        // The order of the matrix's names counts for what expressions show of it.
        let evaluation = Evaluation::new(&contexts).with("matrix", matrix::value(&combination, spread));
        if let Err(finding) = one(&mut job, late, &evaluation, &combination, &mut warnings)
            && !findings.contains(&finding)
        {
            findings.push(finding);
        }
        if let Value::Object(map) = matrix::json(&combination) {
            job.matrix = map;
        }
        jobs.push(job);
    }
    if findings.is_empty() { Ok((jobs, warnings)) } else { Err(findings) }
}

fn one(
    job: &mut Job,
    late: &Late,
    evaluation: &Evaluation<'_>,
    combination: &Combination,
    warnings: &mut Vec<Finding>,
) -> Result<(), Finding> {
    let spread = !combination.is_empty();
    let name = match late.node("name") {
        Some(node) => text(node, evaluation)?,
        None => String::new(),
    };
    let own_name = late.node("name").is_some_and(has_expression);
    job.name = match (name.is_empty(), own_name && !name.is_empty()) {
        (_, true) => name,
        (empty, _) => {
            let name = if empty { job.id.clone() } else { name };
            if spread { format!("{name} ({})", matrix::label(combination)) } else { name }
        }
    };
    job.name.insert_str(0, &late.prefix);
    for (key, node) in &late.nodes {
        if !matches!(key.as_str(), "strategy" | "name") {
            apply(key, node, late, evaluation, job, warnings)?;
        }
    }
    Ok(())
}

/// Computes one value, into the job.
pub fn apply(
    key: &str,
    node: &Node,
    late: &Late,
    evaluation: &Evaluation<'_>,
    job: &mut Job,
    warnings: &mut Vec<Finding>,
) -> Result<(), Finding> {
    match key {
        "runs-on" => {
            let (labels, group) = labels_of(&value(node, evaluation)?).map_err(|it| at(node, it))?;
            if let Some(group) = group {
                let message =
                    format!("there are no groups of runners here: `{group}` is not looked at, labels are");
                let finding = Finding::warning(node.place, message);
                if !warnings.contains(&finding) {
                    warnings.push(finding);
                }
            }
            check_labels(&labels, &late.labels, node.place)?;
            job.runs_on = labels;
        }
        "timeout-minutes" => minutes(node, evaluation, &mut job.timeout_minutes)?,
        "cancel-timeout-minutes" => minutes(node, evaluation, &mut job.cancel_timeout_minutes)?,
        "continue-on-error" => job.continue_on_error = truth(node, &value(node, evaluation)?)?,
        "concurrency" => {
            let node = computed(node, evaluation)?;
            let (it, warning) = concurrency(&node)?;
            job.concurrency = it;
            warnings.extend(warning.filter(|it| !warnings.contains(it)));
        }
        "environment" => job.environment = environment(node, evaluation)?,
        "container" => job.container = container(node, evaluation, false)?,
        "services" => job.services = services(node, evaluation)?,
        SHELL => {
            let template = scalar_text(node);
            let shell = text(node, evaluation)?;
            for step in &mut job.steps {
                let Action::Run { script, shell: words, .. } = &step.action else { continue };
                if *words == [template.clone()] {
                    let shell = Some(shell.as_str()).filter(|it| !it.is_empty());
                    step.action = step::run(shell, script.clone())
                        .map_err(|(message, hint)| at(node, message).hint(hint))?;
                }
            }
        }
        "name" => {
            text(node, evaluation)?;
        }
        other => unreachable!("`{other}` is in the table of late keys and not here"),
    }
    Ok(())
}

const STRATEGY_KEYS: &[&str] = &["matrix", "fail-fast", "max-parallel"];
const CONCURRENCY_KEYS: &[&str] = &["group", "cancel-in-progress", "queue"];
const ENVIRONMENT_KEYS: &[&str] = &["name", "url", "deployment"];

/// The keys of a value that is not computed yet.
pub fn check_shape(key: &str, node: &Node) -> Result<(), Finding> {
    let known = |what: &str, node: &Node, keys: &[&str]| {
        let unknown = node.entries().iter().find(|(it, _)| !keys.contains(&it.as_str().unwrap_or_default()));
        unknown.map_or(Ok(()), |(it, _)| Err(unknown_key(it, what, keys)))
    };
    match key {
        "strategy" => {
            known("`strategy`", node, STRATEGY_KEYS)?;
            for (key, it) in node.get("matrix").map(Node::entries).unwrap_or_default() {
                if !has_expression(it) && !matches!(it.data, Data::Sequence(_)) {
                    return Err(axis_is_no_list(key.as_str().unwrap_or_default(), it.place));
                }
            }
            let fixed = |key: &str| node.get(key).filter(|it| !has_expression(it));
            if let Some(it) = fixed("fail-fast") {
                truth(it, &plain(it).map_err(|message| at(it, message))?)?;
            }
            Ok(())
        }
        "concurrency" => known("`concurrency`", node, CONCURRENCY_KEYS),
        "environment" => known("`environment`", node, ENVIRONMENT_KEYS),
        "container" => known("`container`", node, CONTAINER_KEYS),
        "services" => node.entries().iter().try_for_each(|(_, it)| known("a service", it, SERVICE_KEYS)),
        _ => Ok(()),
    }
}

pub fn unknown_key(key: &Node, what: &str, known: &[&str]) -> Finding {
    let name = key.as_str().unwrap_or_default();
    at(key, format!("unknown key `{name}` in {what}")).hint(naru_text::suggest_hint(name, known))
}

pub fn at(node: &Node, message: impl Into<String>) -> Finding {
    Finding::error(node.place, message)
}

fn wrong_expression(node: &Node, error: &EvaluateError) -> Finding {
    at(node, format!("expression: {}", error.message))
}

/// A node with its expressions computed. Lists and objects may come out of a single expression.
pub fn value(node: &Node, evaluation: &Evaluation<'_>) -> Result<Val<'static>, Finding> {
    Ok(match &node.data {
        Data::Scalar { text, .. } if text.contains("${{") => {
            evaluation.value(text).map_err(|it| wrong_expression(node, &it))?
        }
        Data::Scalar { .. } => Val::of(&node.to_json()).into_owned(),
        Data::Sequence(items) => {
            Val::list(items.iter().map(|it| value(it, evaluation)).collect::<Result<_, _>>()?)
        }
        Data::Mapping(entries) => {
            let mut all = Vec::new();
            for (key, it) in entries {
                all.push((key.as_str().unwrap_or_default().to_owned(), value(it, evaluation)?));
            }
            Val::object(all)
        }
    })
}

pub fn plain(node: &Node) -> Result<Val<'static>, String> {
    let nothing = Value::Null;
    value(node, &Evaluation::new(&nothing)).map_err(|it| it.message)
}

/// As [`value`], but still a node, with the places of the file as far as there are any.
pub fn computed(node: &Node, evaluation: &Evaluation<'_>) -> Result<Node, Finding> {
    fn node_of(value: &Val<'_>, place: Place) -> Node {
        let data = if let Some(items) = value.items() {
            Data::Sequence(items.iter().map(|it| node_of(it, place)).collect())
        } else if let Some(entries) = value.entries() {
            let key =
                |key: &str| Node { place, data: Data::Scalar { text: key.to_owned(), style: Style::Text } };
            Data::Mapping(entries.iter().map(|(name, it)| (key(name), node_of(it, place))).collect())
        } else {
            let style = if matches!(value, Val::Text(_)) { Style::Text } else { Style::Plain };
            Data::Scalar { text: value.text().into_owned(), style }
        };
        Node { place, data }
    }
    Ok(match &node.data {
        Data::Mapping(entries) => {
            let entries = entries.iter().map(|(key, it)| Ok((key.clone(), computed(it, evaluation)?)));
            Node { place: node.place, data: Data::Mapping(entries.collect::<Result<_, _>>()?) }
        }
        Data::Sequence(items) => {
            let items = items.iter().map(|it| computed(it, evaluation)).collect::<Result<_, _>>()?;
            Node { place: node.place, data: Data::Sequence(items) }
        }
        Data::Scalar { .. } if has_expression(node) => node_of(&value(node, evaluation)?, node.place),
        Data::Scalar { .. } => node.clone(),
    })
}

pub fn text(node: &Node, evaluation: &Evaluation<'_>) -> Result<String, Finding> {
    let it = value(node, evaluation)?;
    if it.is_collection() {
        return Err(at(node, format!("text is expected here, this is an {}", it.kind().name())));
    }
    Ok(it.text().into_owned())
}

fn truth(node: &Node, value: &Val<'_>) -> Result<bool, Finding> {
    match value.text().as_ref() {
        "true" => Ok(true),
        "false" | "" => Ok(false),
        other => Err(at(node, format!("must be true or false, this is `{other}`"))),
    }
}

/// What comes out as nothing leaves the limit as it is.
fn minutes(node: &Node, evaluation: &Evaluation<'_>, limit: &mut u64) -> Result<(), Finding> {
    let it = value(node, evaluation)?;
    if it.text().is_empty() {
        return Ok(());
    }
    let number = it.number();
    if !number.is_finite() || number < 0.0 || it.is_collection() {
        return Err(at(node, format!("must be a number of minutes, this is `{}`", it.text())));
    }
    *limit = number.ceil() as u64;
    Ok(())
}

/// The combinations of the matrix; `None` if there is none.
pub fn strategy(
    node: &Node,
    evaluation: &Evaluation<'_>,
    job: &mut Job,
) -> Result<Option<Vec<Combination>>, Finding> {
    let it = value(node, evaluation)?;
    let Some(entries) = it.entries() else {
        return if matches!(it, Val::Null) {
            Ok(None)
        } else {
            Err(at(node, format!("`strategy` must be a mapping, this is {}", it.kind().name())))
        };
    };
    let place = |key: &str| node.get(key).unwrap_or(node);
    let mut combinations = None;
    for (key, it) in entries {
        let node = place(key);
        match key {
            "fail-fast" => job.fail_fast = truth(node, &it)?,
            "max-parallel" => {
                let number = it.number();
                if !(number >= 1.0 && number.is_finite()) {
                    return Err(at(node, "`max-parallel` must be a whole number above 0"));
                }
                job.parallel_max = number as usize;
            }
            "matrix" => combinations = combinations_of(node, &it)?,
            other => {
                let hint = naru_text::suggest_hint(other, STRATEGY_KEYS);
                let node = node_of_key(place("strategy"), other).unwrap_or(node);
                return Err(at(node, format!("unknown key `{other}` in `strategy`")).hint(hint));
            }
        }
    }
    Ok(combinations)
}

fn node_of_key<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    node.entries().iter().find(|(it, _)| it.as_str() == Some(key)).map(|(it, _)| it)
}

fn axis_is_no_list(name: &str, place: Place) -> Finding {
    Finding::error(place, format!("`{name}` of the matrix must be a list"))
        .hint("write the values between brackets: [a, b]")
}

fn combinations_of(node: &Node, matrix: &Val<'static>) -> Result<Option<Vec<Combination>>, Finding> {
    if matches!(matrix, Val::Null) {
        return Ok(None);
    }
    let Some(entries) = matrix.entries() else {
        let message = format!("the matrix must be a mapping of lists, this is {}", matrix.kind().name());
        return Err(at(node, message).hint("`fromJSON` makes one of the text of an output"));
    };
    let mut axes: Vec<(String, Vec<Val<'static>>)> = Vec::new();
    let (mut include, mut exclude) = (Vec::new(), Vec::new());
    for (name, list) in entries {
        let place = node.get(name).map_or(node.place, |it| it.place);
        let Some(items) = list.items() else { return Err(axis_is_no_list(name, place)) };
        if name == "include" || name == "exclude" {
            for item in &items {
                let Some(entries) = item.entries() else {
                    return Err(Finding::error(place, format!("an entry of `{name}` must be a mapping")));
                };
                let combination = entries.into_iter().map(|(key, it)| (key.to_owned(), it)).collect();
                if name == "include" { &mut include } else { &mut exclude }.push(combination);
            }
        } else if items.is_empty() {
            return Err(Finding::error(place, format!("`{name}` of the matrix holds no value")));
        } else {
            axes.push((name.to_owned(), items));
        }
    }
    let all = matrix::spread(&axes, &include, &exclude);
    if all.len() > COMBINATIONS_MAX {
        let message = format!("the matrix has more than {COMBINATIONS_MAX} combinations");
        return Err(at(node, message).hint("split it over several jobs"));
    }
    if all.is_empty() {
        return Err(at(node, "the matrix has no combination"));
    }
    Ok(Some(all))
}

/// What `runs-on` says, and the group if it names one.
pub fn labels_of(value: &Val<'_>) -> Result<(Vec<String>, Option<String>), String> {
    let words = |it: &Val<'_>| -> Result<Vec<String>, String> {
        let items = it.items().unwrap_or_else(|| vec![it.clone()]);
        if let Some(it) = items.iter().find(|it| it.is_collection()) {
            return Err(format!("a label must be text, this is an {}", it.kind().name()));
        }
        Ok(items.iter().map(|it| it.text().into_owned()).filter(|it| !it.is_empty()).collect())
    };
    let Some(entries) = value.entries() else {
        let labels = words(value)?;
        return if labels.is_empty() { Err("`runs-on` names no label".into()) } else { Ok((labels, None)) };
    };
    let (mut labels, mut group) = (Vec::new(), None);
    for (key, it) in entries {
        match key {
            "group" => group = Some(it.text().into_owned()),
            "labels" => labels = words(&it)?,
            other => return Err(format!("unknown key `{other}` in `runs-on`; there are group and labels")),
        }
    }
    if labels.is_empty() {
        // The group is all that is said, so it is taken for a label.
        labels.extend(group.take());
    }
    if labels.is_empty() { Err("`runs-on` names no label".into()) } else { Ok((labels, group)) }
}

/// Every label must be one that this machine serves.
fn check_labels(labels: &[String], served: &[String], place: Place) -> Result<(), Finding> {
    let is_served = |label: &String| served.iter().any(|it| it.eq_ignore_ascii_case(label));
    let Some(label) = labels.iter().find(|it| !is_served(it)) else { return Ok(()) };
    let known = served.join(", ");
    Err(Finding::error(place, format!("no machine here serves the label `{label}`")).hint(format!(
        "map it with `naru serve --runner {label}=<image>`, or leave such jobs out with \
             `--runner {label}=skip`; known: {known}"
    )))
}

/// A group alone, or with its settings. Texts stay as they are.
pub fn concurrency(node: &Node) -> Result<(Option<Concurrency>, Option<Finding>), Finding> {
    let simple = |group: String| Concurrency { group, cancel_in_progress: String::new() };
    match &node.data {
        Data::Scalar { .. } => {
            let group = scalar_text(node);
            Ok((Some(simple(group)).filter(|it| !it.group.is_empty()), None))
        }
        Data::Sequence(_) => {
            Err(at(node, "`concurrency` must be the name of a group or a mapping, this is a list"))
        }
        Data::Mapping(entries) => {
            let mut it = simple(String::new());
            let mut warning = None;
            for (key, value) in entries {
                match key.as_str().unwrap_or_default() {
                    "group" => it.group = scalar_text(value),
                    "cancel-in-progress" => it.cancel_in_progress = scalar_text(value),
                    "queue" => match scalar_text(value).as_str() {
                        "single" => {}
                        "max" => {
                            let message =
                                "one run of a group waits here at most; `queue: max` is not looked at";
                            warning = Some(Finding::warning(value.place, message));
                        }
                        other => {
                            return Err(at(
                                value,
                                format!("`queue` must be single or max, this is `{other}`"),
                            ));
                        }
                    },
                    _ => return Err(unknown_key(key, "`concurrency`", CONCURRENCY_KEYS)),
                }
            }
            if it.group.is_empty() {
                return Err(at(node, "`concurrency` needs a `group`"));
            }
            Ok((Some(it), warning))
        }
    }
}

/// The URL is computed when the job has ended, from what its steps leave.
fn environment(node: &Node, evaluation: &Evaluation<'_>) -> Result<Option<Environment>, Finding> {
    let mut it = Environment::default();
    if node.entries().is_empty() {
        let computed = computed(node, evaluation)?;
        if computed.entries().is_empty() {
            it.name = text(&computed, evaluation)?;
        } else {
            return environment(&computed, evaluation);
        }
    }
    for (key, value) in node.entries() {
        match key.as_str().unwrap_or_default() {
            "name" => it.name = text(value, evaluation)?,
            "url" => it.url = scalar_text(value),
            // Whether GitHub keeps a record of the deployment; there is none here.
            "deployment" => {}
            _ => return Err(unknown_key(key, "`environment`", ENVIRONMENT_KEYS)),
        }
    }
    if it.name.is_empty() && !node.entries().is_empty() {
        return Err(at(node, "`environment` needs a `name`"));
    }
    Ok(Some(it).filter(|it| !it.name.is_empty()))
}
