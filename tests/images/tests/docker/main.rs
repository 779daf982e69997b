//! Docker's own clients against our socket. The images are made of Debian's static busybox.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

mod build;
mod buildx;
mod client;
mod compose;
mod files;
mod lives;
mod networks;
mod run;
mod sdk;
