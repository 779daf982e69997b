//! A Dockerfile as plain data: stages of instructions, each with its place. Variables are not expanded
//! yet, because what they stand for is only known while building.

use naru_text::{Finding, Place};

/// What a Dockerfile says, and everything that is worth saying about it. With an error among the
/// findings the rest is what could still be understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dockerfile {
    /// `ARG`s before the first `FROM`.
    pub global_args: Vec<Argument>,
    pub stages: Vec<Stage>,
    pub findings: Vec<Finding>,
}

impl Dockerfile {
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(Finding::is_error)
    }

    /// The stage that a `--target` or `COPY --from` means, among the first `before` stages.
    pub fn stage_index(&self, name: &str, before: usize) -> Option<usize> {
        let named = |it: &Stage| it.name.as_deref().is_some_and(|it| it.eq_ignore_ascii_case(name));
        let stages = &self.stages[..before];
        stages.iter().position(named).or_else(|| name.parse().ok().filter(|it| *it < stages.len()))
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
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Exec(Vec<String>),
    Shell(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    pub mounts: Vec<Mount>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// A directory that outlives the build and is in no layer.
    Cache {
        id: String,
        target: String,
    },
    Tmpfs {
        target: String,
    },
}

/// `COPY`, or `ADD` of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub sources: Vec<Source>,
    pub destination: String,
    /// A stage, by name or number, or an image.
    pub from: Option<String>,
    pub chown: Option<String>,
    pub chmod: Option<u32>,
    /// `ADD` unpacks local archives.
    pub unpack: bool,
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
