//! Building for other machines: which platform each stage is of, and whether its steps can run here.
//!
//! A stage that only copies and configures is built for any platform. A `RUN` needs a kernel that runs the
//! platform's programs: this machine's own, or one with a handler in binfmt_misc that was registered with the
//! flag `F` (its interpreter is open already, so no container has to hold it). What cannot run is refused before
//! anything is built.

use crate::engine::named_stage;
use crate::form::{Action, Stage};
use crate::outcome::BuildError;
use crate::stage::Build;
use naru_image::Platform;
use naru_text::Finding;
use std::collections::BTreeMap;
use std::path::Path;

const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";

/// Architecture, the number that ELF files say it with, whether they are big-endian, and Debian's emulator.
const MACHINES: &[(&str, u16, bool, &str)] = &[
    ("amd64", 62, false, "x86_64"),
    ("386", 3, false, "i386"),
    ("arm64", 183, false, "aarch64"),
    ("arm", 40, false, "arm"),
    ("riscv64", 243, false, "riscv64"),
    ("ppc64le", 21, false, "ppc64le"),
    ("s390x", 22, true, "s390x"),
    ("mips64le", 8, false, "mips64el"),
    ("loong64", 258, false, "loongarch64"),
];

/// Whether programs of a platform run on this machine.
pub(crate) fn runs_here(platform: &Platform) -> bool {
    if platform.architecture == Platform::here().architecture {
        return true; // variants of one architecture: what is too new says so itself
    }
    if platform.architecture == "386" && Platform::here().architecture == "amd64" {
        return true;
    }
    let entries = std::fs::read_dir(Path::new(HANDLERS)).into_iter().flatten().flatten();
    entries
        .filter_map(|it| std::fs::read_to_string(it.path()).ok())
        .any(|text| handles(&text, &platform.architecture))
}

/// Whether a registered handler, as the kernel shows it, runs an architecture's programs in containers.
fn handles(text: &str, architecture: &str) -> bool {
    let Some((_, number, is_big, _)) = MACHINES.iter().find(|it| it.0 == architecture) else { return false };
    let field = |name: &str| text.lines().find_map(|it| it.strip_prefix(name)).map(str::trim);
    let byte =
        |hex: &str, at: usize| hex.get(2 * at..2 * at + 2).and_then(|it| u8::from_str_radix(it, 16).ok());
    let is_fixed = field("flags:").is_some_and(|it| it.contains('F'));
    let Some(magic) = field("magic ") else { return false };
    let is_elf = magic.starts_with("7f454c46");
    // Byte 5 of an ELF header tells its byte order, bytes 18 and 19 the machine.
    let order = byte(magic, 5);
    let machine = match (byte(magic, 18), byte(magic, 19)) {
        (Some(a), Some(b)) if order == Some(2) => u16::from_be_bytes([a, b]),
        (Some(a), Some(b)) => u16::from_le_bytes([a, b]),
        _ => return false,
    };
    text.lines().next() == Some("enabled")
        && is_fixed
        && is_elf
        && machine == *number
        && (order == Some(2)) == *is_big
}

fn hint(platform: &Platform) -> String {
    let emulator = MACHINES.iter().find(|it| it.0 == platform.architecture).map(|it| it.3);
    let Some(emulator) = emulator else {
        return "build this stage with `FROM --platform=$BUILDPLATFORM` and compile for `$TARGETARCH`".into();
    };
    format!(
        "install an emulator (`apt-get install qemu-user-static`, which registers qemu-{emulator} in binfmt_misc), \
         or build this stage with `FROM --platform=$BUILDPLATFORM` and compile for `$TARGETARCH`"
    )
}

impl Build<'_> {
    /// The platform of each needed stage, and everything that cannot be run for it.
    pub(crate) fn plan_platforms<'s>(
        &self,
        needed: impl Iterator<Item = &'s usize>,
    ) -> Result<BTreeMap<usize, Platform>, BuildError> {
        let mut platforms: BTreeMap<usize, Platform> = BTreeMap::new();
        let mut findings = Vec::new();
        // In order: a stage is named only after it stands.
        for &index in needed {
            let stage = &self.dockerfile.stages[index];
            let platform = match self.stage_platform(index, stage, &platforms) {
                Ok(it) => it,
                Err(why) => {
                    findings.push(Finding::error(stage.place, why).hint("write it like `linux/arm64`"));
                    continue;
                }
            };
            let first = stage.instructions.iter().find(|it| matches!(it.action, Action::Run(_)));
            if let Some(run) = first.filter(|_| !runs_here(&platform)) {
                let why = format!(
                    "`{}` cannot be run here for {platform}: this machine is {}",
                    run.text,
                    Platform::here()
                );
                findings.push(Finding::error(run.place, why).hint(hint(&platform)));
            }
            platforms.insert(index, platform);
        }
        match findings.is_empty() {
            true => Ok(platforms),
            false => Err(BuildError::Refused { file: self.file.clone(), findings }),
        }
    }

    fn stage_platform(
        &self,
        index: usize,
        stage: &Stage,
        before: &BTreeMap<usize, Platform>,
    ) -> Result<Platform, String> {
        if let Some(text) = &stage.platform {
            let text = self.value_of_from(text).map_err(|it| it.to_string())?;
            let platform = Platform::parse(&text).map_err(|it| it.to_string())?;
            if platform.os != "linux" {
                return Err(format!("nothing can be built for {platform}: images are of linux"));
            }
            return Ok(platform);
        }
        // What cannot be filled in is said when the stage is built.
        let base = self.base_name(stage).ok().and_then(|it| named_stage(self.dockerfile, &it, index));
        Ok(base.and_then(|it| before.get(&it)).unwrap_or(&self.platform).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_counts_if_containers_can_use_it() {
        // As Debian's qemu-user-binfmt registers it.
        let arm64 = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\n\
            magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";
        assert!(handles(arm64, "arm64"));
        assert!(!handles(arm64, "arm") && !handles(arm64, "s390x") && !handles(arm64, "z80"));
        assert!(!handles(&arm64.replace("POCF", "POC"), "arm64"), "its interpreter is not in the container");
        assert!(!handles(&arm64.replace("enabled", "disabled"), "arm64"));
        let s390x =
            "enabled\ninterpreter /q\nflags: F\noffset 0\nmagic 7f454c4602020100000000000000000000020016\n";
        assert!(handles(s390x, "s390x") && !handles(s390x, "ppc64le"));
        for odd in ["", "enabled", "enabled\nflags: F\nmagic 7f454c46", "enabled\nflags: F\nextension .jar\n"]
        {
            assert!(!handles(odd, "arm64"), "{odd}");
        }
    }
}
