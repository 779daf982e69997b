//! What becomes of jobs when something dies: the daemon (kill -9 at any moment), or the node under a job.
//!
//! They need root and `cargo build -p naru`. `NARU_SEEDS=200` kills more often.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

mod hostile;
mod killed;
mod lost;
