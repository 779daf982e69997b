//! Dockerfile -> image. In comes a directory with a Dockerfile, out comes an OCI image in the store, or
//! findings with their places.
//!
//! The walls inside: [`form`] is plain data; `dialect` reads text into it and is pure; `engine` and `stage`
//! carry it out. `RUN` steps are pods (see [`Runner`]), so that a build is isolated, limited and visible like
//! everything else that runs. [`start`] is the controller that makes `Image` objects true with it.
//!
//! ```no_run
//! # async fn example(builder: naru_builder::Builder) -> Result<(), naru_builder::BuildError> {
//! use naru_builder::BuildRequest;
//! let request = BuildRequest {
//!     context: "/src/shop".into(), dockerfile: "Dockerfile".into(), name: "shop/web".into(), ..Default::default()
//! };
//! let image = builder.build(request, |event| println!("{event}")).await?;
//! println!("{}", image.reference);
//! # Ok(()) }
//! ```

mod advice;
mod agent;
mod archive;
mod cache;
mod context;
mod controller;
mod copy;
mod dialect;
mod engine;
mod expand;
mod fetch;
mod finish;
pub mod form;
mod ignore;
pub mod inspect;
mod keeper;
mod log;
mod mode;
mod outcome;
mod pattern;
mod platform;
pub mod provenance;
mod run;
mod shared_cache;
mod stage;
mod step;
mod submit;
mod syntax;

#[cfg(test)]
mod build_test;

pub use agent::SSH_PREFIX;
pub use context::{ContextError, pack_context};
pub use controller::{ControllerConfig, start};
pub use copy::CopyError;
pub use dialect::parse;
pub use engine::{BuildRequest, Builder, CacheTarget, Config, NamedContext};
pub use expand::ExpandError;
pub use ignore::Ignore;
pub use keeper::{DiskReport, Keeper, KeeperConfig, Part, size};
pub use log::{BuildLogs, log_path};
pub use outcome::{BuildError, BuiltImage, Event, StepError};
pub use run::{RunFailure, RunStep, Runner, StepMount};
pub use submit::{CONTEXTS_REPOSITORY, Order, submit};
