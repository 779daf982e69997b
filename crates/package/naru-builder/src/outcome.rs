//! What a build tells: events while it goes, the image or the error at its end.

use crate::copy::CopyError;
use crate::run::RunFailure;
use naru_image::Digest;
use naru_objects::ImageAdvice;
use naru_text::{Finding, Place};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuiltImage {
    /// `naru.local/<name>@sha256:...`, or the first name that was asked for with its digest.
    pub reference: String,
    pub digest: Digest,
    /// Every name that it was given.
    pub names: Vec<String>,
    /// Of all layers, as they are stored.
    pub size: u64,
    pub layers: u32,
    pub cached_steps: u32,
    pub total_steps: u32,
    pub advice: Vec<ImageAdvice>,
}

/// What happens during a build. `Display` is a line of the build log; as JSON it is a line of the stream
/// that clients follow. Stages are built side by side, so whatever belongs to a step says its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Event {
    /// A step begins.
    Step {
        number: u32,
        total: u32,
        stage: String,
        text: String,
    },
    /// It need not be done again.
    Cached {
        number: u32,
    },
    /// It prints.
    Log {
        number: u32,
        line: String,
    },
    /// It is done.
    Finished {
        number: u32,
        millis: u64,
    },
    /// A warning, rendered with its place.
    Finding {
        text: String,
    },
    /// What else is being done.
    Note {
        text: String,
    },
    Done(BuiltImage),
    /// The last event of a build that failed: the report, as people read it.
    Failed {
        report: String,
    },
}

impl Event {
    /// Nothing comes after it.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Failed { .. })
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Step { number, total, stage, text } => write!(f, "[{stage} {number}/{total}] {text}"),
            Self::Cached { number } => write!(f, "  {number}: cached"),
            Self::Log { number, line } => write!(f, "  {number}: {line}"),
            Self::Finished { number, millis } => {
                write!(f, "  {number}: done in {}.{:01} s", millis / 1000, millis % 1000 / 100)
            }
            Self::Finding { text } | Self::Note { text } => f.write_str(text),
            Self::Failed { report } => f.write_str(report),
            Self::Done(image) => write!(
                f,
                "built {} ({} layers, {} KiB, {} of {} steps cached)",
                image.reference,
                image.layers,
                image.size.div_ceil(1024),
                image.cached_steps,
                image.total_steps
            ),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile cannot be honoured. Nothing was built.
    #[error("{file} has {} error(s): {}", .findings.len(), .findings.first().map_or("", |it| it.message.as_str()))]
    Refused { file: String, findings: Vec<Finding> },
    #[error("there is no stage `{name}` in {file}")]
    NoTarget { file: String, name: String },
    #[error(transparent)]
    Platform(#[from] naru_image::PlatformError),
    #[error("nothing can be built for {0}: images are of linux")]
    NotLinux(naru_image::Platform),
    #[error("cannot read {what} `{path}`")]
    Context { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{text}` failed")]
    Step { file: String, place: Place, text: String, source: Box<StepError> },
    #[error("cannot keep the image")]
    Store(#[source] naru_image::Error),
    #[error("cannot write the build cache")]
    Cache(#[source] std::io::Error),
    #[error("the image is built, but its cache cannot be sent to `{name}`")]
    CacheTo { name: String, source: naru_image::Error },
    #[error("the build ended by a panic; this is a bug in Naru")]
    Bug,
    #[error("the build was stopped")]
    Stopped,
}

#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Expand(#[from] crate::expand::ExpandError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Image(#[from] naru_image::Error),
    #[error(transparent)]
    Fetch(#[from] crate::fetch::FetchError),
    #[error("cannot write the build cache")]
    Cache(#[source] std::io::Error),
    #[error("{failure}")]
    Run { failure: RunFailure, tail: Vec<String> },
}

impl BuildError {
    pub fn is_disk_full(&self) -> bool {
        let full = |it: &std::io::Error| it.kind() == std::io::ErrorKind::StorageFull;
        match self {
            Self::Step { source, .. } => match source.as_ref() {
                StepError::Copy(it) => it.is_disk_full(),
                StepError::Image(it) => it.is_disk_full(),
                StepError::Cache(it) => full(it),
                _ => false,
            },
            Self::Store(it) => it.is_disk_full(),
            Self::Cache(it) => full(it),
            _ => false,
        }
    }

    /// It was not the build's fault: it can be started over.
    pub fn is_stopped(&self) -> bool {
        let stopped = |it: &StepError| matches!(it, StepError::Run { failure: RunFailure::Stopped, .. });
        matches!(self, Self::Stopped) || matches!(self, Self::Step { source, .. } if stopped(source))
    }

    /// As people read it: places, the failed step's last lines, and what to do.
    pub fn report(&self) -> String {
        let mut text = match self {
            Self::Refused { file, findings } => {
                return findings.iter().map(|it| it.render(file)).collect::<Vec<_>>().join("\n\n");
            }
            Self::Step { file, place, text, source } => {
                let mut report =
                    format!("error: `{text}` failed: {}\n  --> {file}:{place}", chain(source.as_ref()));
                if let StepError::Run { tail, .. } = source.as_ref() {
                    for line in tail {
                        report.push_str(&format!("\n  | {line}"));
                    }
                }
                report
            }
            other => format!("error: {}", chain(other)),
        };
        if self.is_disk_full() {
            text.push_str(
                "\nhint: the disk is full; nothing half-written was kept, free some space and try again",
            );
        }
        text
    }
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(it) = source {
        text = format!("{text}: {it}");
        source = it.source();
    }
    text
}
