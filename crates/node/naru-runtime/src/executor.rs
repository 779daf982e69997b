//! The last step inside a container: find the program, close the door, become it.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use seccompiler::BpfProgram;

use crate::sys;

/// Texts by which the other side of libcontainer's string-typed channel knows what failed.
pub const NOT_FOUND_MARK: &str = "program not found: ";
pub const NOT_EXECUTABLE_MARK: &str = "program cannot be executed: ";

const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// libcontainer's own executor wants the program readable by others and knows no seccomp without a
/// C library; this one lifts the first and brings the second.
#[derive(Clone)]
pub struct PodExecutor {
    pub filter: Option<BpfProgram>,
    /// The program may gain privileges, so the filter is installed with a capability that goes afterwards:
    /// these are the ones that stay, one bit each.
    pub keep_capabilities: Option<u64>,
    /// An `exec` must not outlive the helper that holds its pipes.
    pub die_with_parent: bool,
}

impl Executor for PodExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find_program(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The default implementation; spelled out because it must also run for a name with `=`-less
        // or empty keys, which `set_var` panics on.
        for (name, _) in std::env::vars_os() {
            // SAFETY: the process was forked from a single-threaded one.
            unsafe { std::env::remove_var(name) };
        }
        for (name, value) in envs {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                continue;
            }
            // SAFETY: as above.
            unsafe { std::env::set_var(name, value) };
        }
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let program = find_program(spec).map_err(ExecutorError::Other)?;
        let arguments = arguments(spec);
        sys::reset_signals();
        // What a container's memory looks like is its own choice, not ours (see `without_huge_pages`).
        let _ = nix::sys::prctl::set_thp_disable(false);
        if self.die_with_parent {
            sys::die_with_parent();
        }
        let refused = |error: &dyn std::fmt::Display| {
            ExecutorError::Other(format!("cannot install the system-call filter: {error}"))
        };
        match (&self.filter, self.keep_capabilities) {
            (Some(filter), Some(keep)) => {
                sys::install_filter(filter).map_err(|error| refused(&error))?;
                sys::keep_capabilities(keep).map_err(|error| refused(&error))?;
            }
            (Some(filter), None) => seccompiler::apply_filter(filter).map_err(|error| refused(&error))?,
            (None, _) => {}
        }
        let error = sys::execute(program.as_os_str(), arguments);
        Err(ExecutorError::Other(format!("{NOT_EXECUTABLE_MARK}{}: {error}", program.display())))
    }
}

fn arguments(spec: &Spec) -> &[String] {
    spec.process().as_ref().and_then(|process| process.args().as_deref()).unwrap_or_default()
}

fn find_program(spec: &Spec) -> Result<PathBuf, String> {
    let name = match arguments(spec).first() {
        Some(name) if !name.is_empty() => name,
        _ => return Err(format!("{NOT_FOUND_MARK}neither the container nor its image names a program")),
    };
    if name.contains('/') {
        return check_program(Path::new(name));
    }
    let environment =
        spec.process().as_ref().and_then(|process| process.env().as_deref()).unwrap_or_default();
    let path = environment.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(PATH_DEFAULT);
    let mut refused = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        match check_program(&Path::new(directory).join(name)) {
            Ok(program) => return Ok(program),
            Err(reason) if reason.starts_with(NOT_EXECUTABLE_MARK) => refused = refused.or(Some(reason)),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| format!("{NOT_FOUND_MARK}`{name}` is not in $PATH ({path})")))
}

fn check_program(path: &Path) -> Result<PathBuf, String> {
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) => return Err(format!("{NOT_FOUND_MARK}`{}` ({error})", path.display())),
    };
    if !metadata.is_file() {
        return Err(format!("{NOT_EXECUTABLE_MARK}`{}` is not a file", path.display()));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(format!("{NOT_EXECUTABLE_MARK}`{}` lacks the execute permission", path.display()));
    }
    Ok(path.to_owned())
}
