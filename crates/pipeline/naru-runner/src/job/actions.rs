//! A packaged step's way through the job: prepared before the first step (`pre`), run in its place, cleaned up
//! after the last (`post`).

use super::environment::Level;
use super::packages::{Loaded, Uses};
use super::{FAILED, JobRun, SKIPPED, SUCCEEDED, StepEnd};
use crate::protocol::Outcome;
use naru_plan::{Action, PackageBody, Step};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Composites within composites, as on GitHub.
pub const DEPTH_MAX: usize = 10;

/// A packaged step that wants to run once more after the job's last step.
pub struct Post {
    /// Where the step stands: its index in the job, then in each composite.
    at: Vec<usize>,
    step: Step,
    loaded: Loaded,
}

/// What a job keeps about its packaged steps.
#[derive(Default)]
pub struct Actions {
    /// Directories of fetched repositories, by `owner/repository@ref`.
    pub repositories: BTreeMap<String, PathBuf>,
    pub posts: Vec<Post>,
    /// The levels of composites that have ended, for what runs after them.
    ended: BTreeMap<Vec<usize>, Level>,
    /// What `pre`, `main` and `post` of one step tell each other.
    pub states: BTreeMap<Vec<usize>, Vec<(String, String)>>,
}

/// Which part of a package is to run.
#[derive(Clone, Copy, PartialEq)]
pub enum Stage {
    Pre,
    Main,
    Post,
}

impl JobRun<'_> {
    /// The `pre` of every packaged step, in order, before the first step. Local actions have none: their
    /// files are not there yet.
    pub(super) async fn pre_steps(&mut self, steps: &[Step]) {
        for (index, step) in steps.iter().enumerate() {
            if !self.wants_pre(step, 0) {
                continue;
            }
            let number = self.extra_index();
            let name = self.display_name(step);
            self.start_step(number, &format!("Pre {name}"));
            let end = self.pre(&[index], step).await;
            self.end_extra(number, &format!("Pre {name}"), step, &end);
        }
    }

    fn wants_pre(&mut self, step: &Step, depth: usize) -> bool {
        let Some(loaded) = self.load_remote(step) else { return false };
        match loaded.package.body {
            PackageBody::Node { pre, .. } => pre.is_some(),
            PackageBody::Container { pre_entrypoint, .. } => pre_entrypoint.is_some(),
            PackageBody::Composite { steps } => {
                depth < DEPTH_MAX && steps.iter().any(|it| self.wants_pre(it, depth + 1))
            }
        }
    }

    fn load_remote(&mut self, step: &Step) -> Option<Loaded> {
        let Action::Uses { uses, .. } = &step.action else { return None };
        let uses = Uses::parse(uses).ok()?;
        matches!(uses, Uses::Remote(_)).then(|| self.load(&uses).ok())?
    }

    fn pre<'s>(
        &'s mut self,
        at: &'s [usize],
        step: &'s Step,
    ) -> std::pin::Pin<Box<dyn Future<Output = StepEnd> + 's>> {
        Box::pin(async move {
            let Some(loaded) = self.load_remote(step) else { return SUCCEEDED };
            let Action::Uses { with, .. } = &step.action else { return SUCCEEDED };
            let Ok((env, inputs)) = self.given(step, with, &loaded) else { return FAILED };
            match &loaded.package.body {
                PackageBody::Composite { steps } => {
                    let level = Level {
                        inputs: json!(inputs.into_iter().collect::<Map<String, Value>>()),
                        env,
                        action: loaded.facts.clone(),
                        ..Level::default()
                    };
                    self.levels.push(level);
                    let mut end = SUCCEEDED;
                    for (index, inner) in steps.iter().enumerate() {
                        let mut at = at.to_vec();
                        at.push(index);
                        if self.wants_pre(inner, self.levels.len()) {
                            end = self.pre(&at, inner).await;
                        }
                        if end.outcome != Outcome::Succeeded {
                            break;
                        }
                    }
                    self.levels.pop();
                    end
                }
                PackageBody::Node { pre: None, .. } | PackageBody::Container { pre_entrypoint: None, .. } => {
                    SUCCEEDED
                }
                body => {
                    let condition = match body {
                        PackageBody::Node { pre_condition, .. }
                        | PackageBody::Container { pre_condition, .. } => pre_condition.clone(),
                        PackageBody::Composite { .. } => None,
                    };
                    match condition.map(|it| self.condition(Some(&it))) {
                        Some(Ok(false)) => return SKIPPED,
                        Some(Err(error)) => {
                            self.log.say(&format!("error: `pre-if`: {error}"));
                            return FAILED;
                        }
                        None | Some(Ok(true)) => {}
                    }
                    self.run_package(Stage::Pre, at, step, &loaded, &env, &inputs).await
                }
            }
        })
    }

    /// A packaged step in its place.
    pub(super) async fn uses(
        &mut self,
        at: &[usize],
        step: &Step,
        uses: &str,
        with: &[(String, String)],
    ) -> StepEnd {
        let parsed = match Uses::parse(uses) {
            Ok(it) => it,
            Err(error) => {
                self.log.remark("error", &error);
                return FAILED;
            }
        };
        // A local composite may name what was not seen before the first step.
        if let Uses::Remote(remote) = &parsed
            && let Err(error) = self.fetch_action(remote).await
        {
            self.log.remark("error", &format!("the action `{uses}` cannot be had: {error}"));
            return FAILED;
        }
        let loaded = match self.load(&parsed) {
            Ok(it) => it,
            Err(error) => {
                self.log.remark("error", &format!("the action `{uses}`: {error}"));
                return FAILED;
            }
        };
        if let Uses::Local(_) = parsed
            && let PackageBody::Node { pre: Some(_), .. }
            | PackageBody::Container { pre_entrypoint: Some(_), .. } = loaded.package.body
        {
            self.log.remark("warning", &format!("`pre` does not run for the local action `{uses}`"));
        }
        let Ok((env, inputs)) = self.given(step, with, &loaded) else { return FAILED };
        match &loaded.package.body {
            PackageBody::Composite { steps } => self.composite(at, step, &loaded, steps, env, inputs).await,
            _ => self.run_package(Stage::Main, at, step, &loaded, &env, &inputs).await,
        }
    }

    /// The step's environment and the inputs of its package: given, or the manifest's defaults. What is wrong
    /// has been said.
    fn given(
        &mut self,
        step: &Step,
        with: &[(String, String)],
        loaded: &Loaded,
    ) -> Result<(Vec<(String, String)>, Vec<(String, Value)>), ()> {
        self.enter(&[]);
        let env = self.step_env(step);
        let env = match env {
            Ok(env) => env,
            Err(error) => {
                self.log.say(&format!("error: line {}: `env`: {error}", step.line));
                return Err(());
            }
        };
        self.enter(&env);
        let mut inputs: Vec<(String, Value)> = Vec::new();
        for (name, template) in with {
            match self.text(template) {
                Ok(value) => inputs.push((name.clone(), json!(value))),
                Err(error) => {
                    self.log.say(&format!("error: line {}: `with.{name}`: {error}", step.line));
                    return Err(());
                }
            }
        }
        let known: Vec<&str> = loaded.package.inputs.iter().map(|it| it.name.as_str()).collect();
        let is_container = matches!(loaded.package.body, PackageBody::Container { .. });
        let unknown: Vec<String> = inputs
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !known.iter().any(|it| it.eq_ignore_ascii_case(name)))
            .filter(|name| {
                !is_container || !["args", "entrypoint"].iter().any(|it| it.eq_ignore_ascii_case(name))
            })
            .map(|it| format!("`{it}`"))
            .collect();
        if !unknown.is_empty() && !loaded.directory.as_os_str().is_empty() {
            let message =
                format!("unknown inputs {}; the action knows: {}", unknown.join(", "), known.join(", "));
            self.log.remark("warning", &message);
        }
        for input in &loaded.package.inputs {
            let is_given = inputs.iter().any(|(name, _)| name.eq_ignore_ascii_case(&input.name));
            match (&input.deprecation, is_given) {
                (Some(message), true) => {
                    self.log
                        .remark("warning", &format!("the input `{}` is deprecated: {message}", input.name));
                }
                (_, true) => {}
                (_, false) => match self.text(input.default.as_deref().unwrap_or_default()) {
                    Ok(value) => inputs.push((input.name.clone(), json!(value))),
                    Err(error) => {
                        self.log.say(&format!("error: the default of the input `{}`: {error}", input.name));
                        return Err(());
                    }
                },
            }
        }
        Ok((env, inputs))
    }

    async fn composite(
        &mut self,
        at: &[usize],
        step: &Step,
        loaded: &Loaded,
        steps: &[Step],
        env: Vec<(String, String)>,
        inputs: Vec<(String, Value)>,
    ) -> StepEnd {
        if self.levels.len() > DEPTH_MAX {
            let message = format!("composite actions are nested more than {DEPTH_MAX} deep");
            self.log.remark("error", &message);
            return FAILED;
        }
        let outer_env = self.level().env.clone();
        self.levels.push(Level {
            inputs: Value::Object(inputs.into_iter().collect()),
            env: outer_env.into_iter().chain(env).collect(),
            action: loaded.facts.clone(),
            ..Level::default()
        });
        let mut cancelled = false;
        for (index, inner) in steps.iter().enumerate() {
            let mut at = at.to_vec();
            at.push(index);
            let outcome = Box::pin(self.step(&at, inner)).await;
            cancelled |= outcome == Outcome::Cancelled;
        }
        self.enter(&[]);
        let mut failed = self.level().failed;
        let mut outputs = Vec::new();
        for (name, template) in &loaded.package.outputs {
            match self.text(template) {
                Ok(value) => outputs.push((name.clone(), value)),
                Err(error) => {
                    self.log.say(&format!("error: the output `{name}` of the action: {error}"));
                    failed = true;
                }
            }
        }
        let level = self.levels.pop().expect("pushed above");
        self.actions.ended.insert(at.to_vec(), level);
        self.set_outputs(step, outputs);
        match (cancelled, failed) {
            (true, _) => StepEnd { outcome: Outcome::Cancelled, exit_code: None },
            (false, true) => FAILED,
            (false, false) => SUCCEEDED,
        }
    }

    /// Runs one stage of a package that is a process, and sees to its `post`.
    async fn run_package(
        &mut self,
        stage: Stage,
        at: &[usize],
        step: &Step,
        loaded: &Loaded,
        env: &[(String, String)],
        inputs: &[(String, Value)],
    ) -> StepEnd {
        let has_post = match &loaded.package.body {
            PackageBody::Node { post, .. } => post.is_some(),
            PackageBody::Container { post_entrypoint, .. } => post_entrypoint.is_some(),
            PackageBody::Composite { .. } => false,
        };
        if has_post && stage != Stage::Post && !self.actions.posts.iter().any(|it| it.at == at) {
            self.actions.posts.push(Post { at: at.to_vec(), step: step.clone(), loaded: loaded.clone() });
        }
        // The facts of this package hold while it runs.
        let level = self.levels.last_mut().expect("there is always the job's own level");
        let outer = std::mem::replace(&mut level.action, loaded.facts.clone());
        self.enter(env);
        let end = match &loaded.package.body {
            PackageBody::Node { main, pre, post, .. } => {
                let script = match stage {
                    Stage::Pre => pre.as_deref(),
                    Stage::Main => Some(main.as_str()),
                    Stage::Post => post.as_deref(),
                };
                match script {
                    Some(script) => self.node(at, step, loaded, script, env, inputs).await,
                    None => SUCCEEDED,
                }
            }
            PackageBody::Container { .. } => self.container(stage, at, step, loaded, env, inputs).await,
            PackageBody::Composite { .. } => unreachable!("its steps run one by one"),
        };
        self.levels.last_mut().expect("there is always the job's own level").action = outer;
        end
    }

    /// What wants to run after the last step, in reverse order; all of one step of the job is one step.
    pub(super) async fn post_steps(&mut self) {
        while let Some(last) = self.actions.posts.last() {
            let owner = last.at[0];
            let mut mine = Vec::new();
            self.actions.posts = std::mem::take(&mut self.actions.posts)
                .into_iter()
                .filter_map(|it| {
                    if it.at[0] == owner {
                        mine.push(it);
                        None
                    } else {
                        Some(it)
                    }
                })
                .collect();
            let step = self.file.job.steps[owner].clone();
            self.enter(&[]);
            let name = format!("Post {}", self.display_name(&step));
            let number = self.extra_index();
            self.start_step(number, &name);
            let mut end = SKIPPED;
            for post in mine.into_iter().rev() {
                let one = self.post(&post).await;
                if end.outcome == Outcome::Skipped || one.outcome == Outcome::Failed {
                    end = one;
                }
            }
            self.end_extra(number, &name, &step, &end);
        }
    }

    async fn post(&mut self, post: &Post) -> StepEnd {
        let Action::Uses { with, .. } = &post.step.action else { return SUCCEEDED };
        let inner = post.at.len() > 1;
        if inner {
            let level = self.actions.ended.get(&post.at[..post.at.len() - 1]).cloned().unwrap_or_default();
            self.levels.push(level);
        }
        let end = match self.given(&post.step, with, &post.loaded) {
            Err(()) => FAILED,
            Ok((env, inputs)) => {
                let condition = match &post.loaded.package.body {
                    PackageBody::Node { post_condition, .. }
                    | PackageBody::Container { post_condition, .. } => post_condition.clone(),
                    PackageBody::Composite { .. } => None,
                };
                // How the job went is what counts here, also within a composite.
                self.enter(&env);
                let status = self.contexts.get("job").map(|it| it["status"].clone()).unwrap_or_default();
                self.contexts.insert("__status".into(), status);
                match condition.map(|it| self.condition(Some(&it))) {
                    Some(Ok(false)) => SKIPPED,
                    Some(Err(error)) => {
                        self.log.say(&format!("error: `post-if`: {error}"));
                        FAILED
                    }
                    None | Some(Ok(true)) => {
                        self.run_package(Stage::Post, &post.at, &post.step, &post.loaded, &env, &inputs).await
                    }
                }
            }
        };
        if inner {
            self.levels.pop();
        }
        end
    }
}
