//! Labels and annotations that carry meaning between stages.

/// On everything that one change causes: the change id.
pub const CHANGE: &str = "naru.dev/change";
/// The app (and repository) that an object belongs to.
pub const APP: &str = "naru.dev/app";
/// The service of the app, as named in `naru.yaml`.
pub const SERVICE: &str = "naru.dev/service";
/// The name of the `Release` that rendered the object.
pub const RELEASE: &str = "naru.dev/release";
/// The name of the `Run` that caused the object.
pub const RUN: &str = "naru.dev/run";
/// On a pod that waits for a job: what it was started for.
pub const WARM: &str = "naru.dev/warm";
/// The job's key within the run.
pub const JOB: &str = "naru.dev/job";
/// Which slice of the machine a pod's processes live in: `apps` (the default) or `pipelines`.
pub const SLICE: &str = "naru.dev/slice";
/// Annotation on a pod: keep what its container wrote as an image layer under this id.
pub const COMMIT: &str = "naru.dev/commit";
/// Annotation on a pod: `none` leaves its containers without a network but their own loopback.
pub const NETWORK: &str = "naru.dev/network";
/// The field manager of objects that a release applies.
pub const MANAGER: &str = "naru";
/// Annotation on a run: `none` if its commit holds no `naru.yaml`, so that nothing will be deployed.
pub const APP_FILE: &str = "naru.dev/app-file";
/// Annotation on a run: the name of the release that came of it.
pub const RELEASED: &str = "naru.dev/released";
/// Annotation on a pod: it can be stopped and started again; says which of its lives is wanted.
pub const LIFE: &str = "naru.dev/life";
/// Annotation on a pod: what a Pod has no words for, such as a user by name or a limit of open files.
pub const OPTIONS: &str = "naru.dev/options";
/// Annotation on a pod: the networks that it is a member of, each with the names by which the other members
/// find it.
pub const NETWORKS: &str = "naru.dev/networks";
