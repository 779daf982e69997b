//! What `runs-on` may name without anybody's word: this machine stands for every Linux machine of GitHub's.

/// Labels of every machine here; beside another one they decide nothing.
pub const GENERAL: &[&str] = &["self-hosted", "linux", ARCHITECTURE];

const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };

const X64: &[&str] =
    &["ubuntu-latest", "ubuntu-26.04", "ubuntu-24.04", "ubuntu-22.04", "ubuntu-20.04", "ubuntu-slim"];
const ARM64: &[&str] = &["ubuntu-26.04-arm", "ubuntu-24.04-arm", "ubuntu-22.04-arm"];

/// All labels that mean this machine itself.
pub fn of_this_machine() -> impl Iterator<Item = &'static str> {
    // A workflow that says nothing of the processor is as well off here.
    let arm: &[&str] = if cfg!(target_arch = "aarch64") { ARM64 } else { &[] };
    X64.iter().chain(arm).chain(GENERAL).copied()
}
