//! The loop on the real thing: the `naru` binary with real git, kubectl, skopeo, curl and containers.
//!
//! Every test starts a daemon of its own (own ports, bridge, data directory) and destroys it. They need
//! root, and `cargo build -p naru` before them: `make test` does both.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

mod bad_input;
mod demo;
mod faults;
mod kubernetes;
mod loop_parts;
mod pods;

use naru_loop_tests::harness;
