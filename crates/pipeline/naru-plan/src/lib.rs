//! The pipeline's one form: what every workflow language is brought to, and the pure planner that says
//! which job comes next. Plain data, no I/O; no word of GitHub, GitLab or Jenkins in it.
//!
//! Values that the language computes while the job runs (`${{ ... }}` and the like) stay as text; the
//! [`Evaluator`] of the plan's dialect turns them into values, before the job for conditions, in the job
//! for everything else.
//!
//! ```
//! use naru_plan::{Job, JobView, Next, plan_next};
//! let job = Job { id: "build".into(), key: "build".into(), ..Job::default() };
//! let next = plan_next(&[job], &[JobView::default()], false, |_| Ok(true));
//! assert_eq!(next, vec![Next::Start(0)]);
//! ```

mod planner;

pub use planner::{JobState, JobView, Next, needs_cycle, outputs_of, plan_next, result_of, status_before};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A run has at most so many jobs, those of calls counted: each is a pod, and its state is in the run's object.
pub const JOBS_MAX: usize = 1_000;

/// A whole pipeline: the jobs of one file, matrix combinations already spread out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub name: String,
    /// The file that it came from, relative to the repository.
    pub file: String,
    /// What people see of the run; may hold expressions. Empty means named after the commit.
    pub run_name: String,
    pub concurrency: Option<Concurrency>,
    pub jobs: Vec<Job>,
}

/// At most one of everything that shares a group runs, and at most one waits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Concurrency {
    /// May hold expressions; compared without regard to case.
    pub group: String,
    /// Whether what runs is stopped in favour of the newcomer: `true`, `false` or an expression.
    pub cancel_in_progress: String,
}

impl Job {
    /// How many jobs it comes to, as far as that is known.
    pub fn count(&self) -> usize {
        1 + self.call.iter().flat_map(|it| &it.jobs).map(Job::count).sum::<usize>()
    }
}

/// One job: steps that share a machine and a workspace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Job {
    /// The name that `needs` uses; combinations of one matrix share it.
    pub id: String,
    /// Unique within the plan.
    pub key: String,
    /// What people see.
    pub name: String,
    pub needs: Vec<String>,
    /// Run only if this expression holds; `None` means if everything needed has succeeded.
    pub condition: Option<String>,
    /// What the job wants to run on, as the file says it.
    pub runs_on: Vec<String>,
    pub matrix: Map<String, Value>,
    /// A failed combination stops the others of its matrix.
    pub fail_fast: bool,
    /// At most so many combinations at a time; 0 is no limit.
    pub parallel_max: usize,
    /// Scopes from the outside in; later entries win. Values may hold expressions.
    pub env: Vec<(String, String)>,
    pub steps: Vec<Step>,
    pub outputs: Vec<(String, String)>,
    pub timeout_minutes: u64,
    /// How long `always()` steps may go on after a cancellation.
    pub cancel_timeout_minutes: u64,
    pub continue_on_error: bool,
    /// The key of the job that called this one in; empty at the top. `needs` names jobs of the same scope.
    pub scope: String,
    /// The `inputs` of the pipeline that the job belongs to.
    pub inputs: Map<String, Value>,
    /// Which secrets the job sees, one entry per call that hands over named ones, from the outermost in: each
    /// holds names with texts over the secrets of the one before. Empty is all of the repository's.
    pub secrets: Vec<Vec<(String, String)>>,
    /// The job's own text in the dialect's words, as long as something in it (a matrix, a label, a limit)
    /// depends on what other jobs leave. [`Next::Expand`] asks [`Evaluator::expand`] for the jobs behind it.
    pub deferred: Option<Value>,
    /// The job runs nothing itself: it stands for another pipeline's jobs.
    pub call: Option<Call>,
    pub concurrency: Option<Concurrency>,
    pub environment: Option<Environment>,
    /// Where the steps run, if not on the image that `runs_on` maps to.
    pub container: Option<Container>,
    /// What runs beside the steps, by the name under which they reach it.
    pub services: Vec<(String, Container)>,
    /// What the job's token may do: scope (`contents`) to `read` or `write`; `None` is the repository's default.
    pub permissions: Option<BTreeMap<String, String>>,
    /// Line of the file where the job stands.
    pub line: u32,
}

impl Job {
    /// How the file names the called pipeline that the job belongs to, if it belongs to one.
    pub fn scope_uses(&self, jobs: &[Job]) -> Option<String> {
        let caller = jobs.iter().find(|it| !self.scope.is_empty() && it.key == self.scope)?;
        caller.call.as_ref().map(|it| it.uses.clone())
    }
}

/// A pipeline that another one runs as one of its jobs. Its own jobs come into the plan when
/// [`Evaluator::expand`] makes them, once everything that the calling job needs has ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Call {
    /// How the file names it.
    pub uses: String,
    /// The called file's jobs in their own words, ids and needs as they stand there.
    pub jobs: Vec<Job>,
    /// Outputs of the call, computed from `jobs.<id>.outputs`.
    pub outputs: Vec<(String, String)>,
    /// What is handed over and what the called file asks for, in the dialect's words.
    pub given: Value,
    /// Once its jobs are in the plan.
    pub expanded: bool,
}

/// A named place to deploy to, with rules of its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// May hold expressions.
    pub name: String,
    pub url: String,
}

/// A container beside or around the steps. All texts may hold expressions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    pub image: String,
    pub env: Vec<(String, String)>,
    /// `80`, `8080:80`, `8080:80/udp`
    pub ports: Vec<String>,
    /// `name:/path`, `/host/path:/path`, `/path`
    pub volumes: Vec<String>,
    /// Further options in the words of `docker create`.
    pub options: String,
    pub entrypoint: String,
    pub command: String,
    /// User and password for the image's registry.
    pub credentials: Option<(String, String)>,
    pub line: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    /// Empty when later steps cannot refer to it.
    pub id: String,
    pub name: String,
    /// `None` means if every step before has succeeded.
    pub condition: Option<String>,
    pub action: Action,
    pub env: Vec<(String, String)>,
    /// Relative to the workspace; may hold expressions.
    pub working_directory: String,
    pub continue_on_error: bool,
    /// 0 is no limit but the job's.
    pub timeout_minutes: u64,
    /// Where the file gives the two above as expressions; they win.
    pub continue_on_error_text: String,
    pub timeout_minutes_text: String,
    /// Line of the file where the step stands.
    pub line: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Action {
    /// A script and the command line that runs it; `{0}` stands for the script's file.
    Run { script: String, shell: Vec<String>, extension: String },
    /// The repository at the pushed commit, put into `path` of the workspace. Depth 0 is all of history.
    Checkout { path: String, depth: u32 },
    /// A packaged step: `owner/name@ref`, `owner/name/path@ref`, `./path`, `docker://image`. What is given to
    /// it may hold expressions.
    Uses { uses: String, with: Vec<(String, String)> },
}

impl Default for Action {
    fn default() -> Self {
        Self::Run { script: String::new(), shell: Vec::new(), extension: String::new() }
    }
}

/// What a packaged step's manifest says it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Package {
    pub name: String,
    pub inputs: Vec<PackageInput>,
    /// Texts over the package's own steps; only those of a composite have a value.
    pub outputs: Vec<(String, String)>,
    pub body: PackageBody,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PackageInput {
    pub name: String,
    pub default: Option<String>,
    pub required: bool,
    /// Said to whoever still gives it.
    pub deprecation: Option<String>,
}

/// How a packaged step runs. Files are relative to the package's directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum PackageBody {
    /// Steps in place of the one.
    Composite { steps: Vec<Step> },
    /// JavaScript under Node; `pre` runs before the job's first step, `post` after its last, in reverse.
    Node {
        main: String,
        pre: Option<String>,
        pre_condition: Option<String>,
        post: Option<String>,
        post_condition: Option<String>,
    },
    /// A container: `docker://image`, or a Dockerfile of the package.
    Container {
        image: String,
        entrypoint: Option<String>,
        pre_entrypoint: Option<String>,
        pre_condition: Option<String>,
        post_entrypoint: Option<String>,
        post_condition: Option<String>,
        args: Vec<String>,
        env: Vec<(String, String)>,
    },
}

impl Default for PackageBody {
    fn default() -> Self {
        Self::Composite { steps: Vec::new() }
    }
}

/// Computes a dialect's expressions. Implementations are pure: everything that an expression may ask for
/// is in the contexts.
pub trait Evaluator {
    /// Text with every embedded expression replaced by its value.
    fn text(&self, template: &str, contexts: &Value) -> Result<String, EvaluateError>;
    /// Whether a condition holds; `None` is the dialect's default condition.
    fn condition(&self, condition: Option<&str>, contexts: &Value) -> Result<bool, EvaluateError>;
    /// Which files a text asks the hash of: for each call the patterns that it names. Whoever has the files
    /// puts `{"<patterns joined by \n>": "<hex>"}` into the contexts as `__hashes` before asking for the text.
    fn file_hashes(&self, template: &str, contexts: &Value) -> Result<Vec<Vec<String>>, EvaluateError>;
    /// The jobs that stand behind a [`Job::deferred`] or [`Job::call`] one, every text that must be known
    /// before a job starts computed. Keys begin with the job's own; jobs of a call have it as their scope.
    fn expand(&self, job: &Job, contexts: &Value) -> Result<Vec<Job>, EvaluateError>;
}

/// An expression that could not be computed, with the byte offset in it.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluateError {
    pub message: String,
    pub offset: usize,
}

impl std::fmt::Display for EvaluateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for EvaluateError {}
