//! What the integration tests share: a daemon, a repository and the clients that people have.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

pub mod harness;
