//! A Dockerfile as plain data: stages of instructions, each with its place. Variables are not expanded
//! yet, because what they stand for is only known while building.

use naru_text::{Finding, Place};

/// What a Dockerfile says, and everything that is worth saying about it. With an error among the
/// findings the rest is what could still be understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Dockerfile {
    /// `ARG`s before the first `FROM`.
    pub global_args: Vec<Argument>,
    pub stages: Vec<Stage>,
    pub findings: Vec<Finding>,
    /// What makes the next character an ordinary one, and a line go on.
    pub escape: char,
}

impl Default for Dockerfile {
    fn default() -> Self {
        Self { global_args: Vec::new(), stages: Vec::new(), findings: Vec::new(), escape: '\\' }
    }
}

impl Dockerfile {
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(Finding::is_error)
    }

    /// The stage that a `--target` or `COPY --from` means, among the first `before` stages.
    pub fn stage_index(&self, name: &str, before: usize) -> Option<usize> {
        let named = |it: &Stage| it.name.as_deref().is_some_and(|it| it.eq_ignore_ascii_case(name));
        let stages = &self.stages[..before];
        // Of two with one name the later one is meant, as in BuildKit.
        stages.iter().rposition(named).or_else(|| name.parse().ok().filter(|it| *it < stages.len()))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    pub name: Option<String>,
    pub place: Place,
    pub image: String,
    pub platform: Option<String>,
    pub instructions: Vec<Instruction>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    pub place: Place,
    /// The source on one line, for logs and for the image's history.
    pub text: String,
    pub action: Action,
}

/// `NAME` or `NAME=default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    pub name: String,
    pub default: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Arg(Vec<Argument>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Run(Run),
    Copy(Copy),
    Workdir(String),
    User(String),
    Cmd(Command),
    Entrypoint(Command),
    Expose(Vec<String>),
    Volume(Vec<String>),
    StopSignal(String),
    Shell(Vec<String>),
    Healthcheck(Option<Healthcheck>),
    Maintainer(String),
    /// An instruction for those who build on this image, as it is written.
    OnBuild(String),
}

impl Action {
    /// It makes files, or may: a step that is counted and shown.
    pub fn is_step(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Copy(_) | Self::Workdir(_))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Exec(Vec<String>),
    Shell(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    /// A heredoc with an interpreter line: it is a program, by this name below [`SCRIPTS`].
    pub script: Option<(String, String)>,
    pub mounts: Vec<Mount>,
    pub network: Network,
}

/// Where a step sees the programs of its heredocs.
pub const SCRIPTS: &str = "/dev/pipes";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Default,
    None,
}

/// `RUN --mount=..`. Texts may hold variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub place: Place,
    pub kind: MountKind,
    pub target: Option<String>,
    pub source: Option<String>,
    /// A stage, an image or a named context.
    pub from: Option<String>,
    pub id: Option<String>,
    pub sharing: Sharing,
    /// As written; each kind has its own default.
    pub read_only: Option<bool>,
    /// A secret that is not there is an error.
    pub required: bool,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    /// The variable that a secret is given as.
    pub env: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context, a stage or an image, for this step only.
    Bind,
    /// A directory that outlives the build and is in no layer.
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// What steps do that want the same cache at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    Shared,
    /// One of them gets another one.
    Private,
    /// They wait for each other.
    Locked,
}

/// `COPY`, or `ADD`. Texts may hold variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub sources: Vec<Source>,
    pub destination: String,
    /// A stage, by name or number, a named context, or an image.
    pub from: Option<String>,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    /// Patterns of what is left out.
    pub exclude: Vec<String>,
    /// Directories of the source's path are kept.
    pub parents: bool,
    /// The layer does not look at what lies below it.
    pub link: bool,
    pub add: Option<Add>,
}

/// What only `ADD` does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Add {
    pub checksum: Option<String>,
    pub keep_git_dir: bool,
    /// Archives are unpacked; `None`: those of the context are, those from elsewhere are not.
    pub unpack: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Path(String),
    /// A file written in the Dockerfile itself.
    Inline {
        name: String,
        content: String,
        expand: bool,
    },
}

/// Times in nanoseconds, as the image config has them; 0 means the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    pub command: Command,
    pub interval_ns: i64,
    pub timeout_ns: i64,
    pub start_period_ns: i64,
    pub start_interval_ns: i64,
    pub retries: i64,
}
