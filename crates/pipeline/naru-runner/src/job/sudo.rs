//! `sudo` for jobs whose image has none. Workflows written for GitHub's machines call it everywhere; a job's
//! steps are root in their pod already, and gain nothing by it. It is a script of the job's own directory at the
//! end of PATH, so that a real one comes first.

use std::io::Result;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Steps are root: what they run, they run as they are. For another user it says what to write instead.
const SCRIPT: &str = r#"#!/bin/sh
# Written by naru: this job is root already.
refuse() { echo "sudo: $1" >&2; exit 1; }
user() { [ "$1" = root ] || [ "$1" = '#0' ] || refuse "steps are root here, and this stands in for sudo only as root; for the user $1 write: su $1 -s /bin/sh -c '...'"; }
shell=
while [ $# -gt 0 ]; do
  case "$1" in
    --) shift; break ;;
    -u|--user) user "$2"; shift 2 ;;
    --user=*) user "${1#--user=}"; shift ;;
    -u*) user "${1#-u}"; shift ;;
    -g|-p|-C|-h|-T|-r|-t|--group|--prompt|--host|--close-from) shift 2 ;;
    -D|--chdir) cd "$2" || exit 1; shift 2 ;;
    --chdir=*) cd "${1#--chdir=}" || exit 1; shift ;;
    -i|-s|--login|--shell) shell=1; shift ;;
    -v|-k|-K|-V|-l|--validate|--reset-timestamp|--remove-timestamp|--version|--list) [ $# -eq 1 ] && exit 0; shift ;;
    --preserve-env*|--non-interactive|--stdin|--background|--set-home|--group=*|--prompt=*|--host=*) shift ;;
    -[!-]*) case "$1" in *[!-AbBEHknPSi]*) refuse "the option $1 is not known here" ;; esac; shift ;;
    -*) refuse "the option $1 is not known here" ;;
    [A-Za-z_]*=*) export "$1"; shift ;;
    *) break ;;
  esac
done
if [ -n "$shell" ]; then
  [ $# -eq 0 ] && exec "${SHELL:-/bin/sh}"
  exec "${SHELL:-/bin/sh}" -c "$*"
fi
[ $# -gt 0 ] || refuse "what is to be run?"
exec "$@"
"#;

/// The directory to put behind PATH, if this job is in need of it.
pub fn offer(root: &Path, image_path: &str) -> Option<PathBuf> {
    let has_one = image_path.split(':').any(|it| !it.is_empty() && Path::new(it).join("sudo").is_file());
    if has_one || image_path.is_empty() || !nix::unistd::geteuid().is_root() {
        return None;
    }
    let directory = root.join("_sudo");
    // A job that never calls it is not to fail for it, and one that does is told that there is none.
    write(&directory).ok().map(|()| directory)
}

fn write(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let script = directory.join("sudo");
    std::fs::write(&script, SCRIPT)?;
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn it_runs_what_follows_its_options_and_only_as_root() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let run = |args: &[&str]| {
            let output =
                Command::new(dir.path().join("sudo")).args(args).env("SHELL", "/bin/sh").output().unwrap();
            let said = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8_lossy(&said).trim().to_owned())
        };
        let fine = |text: &str| (Some(0), text.to_owned());
        assert_eq!(run(&["echo", "-n", "a b"]), fine("a b"));
        assert_eq!(run(&["-nE", "-u", "root", "A=1 2", "sh", "-c", "echo $A"]), fine("1 2"));
        assert_eq!(run(&["--preserve-env=A", "--", "echo", "x"]), fine("x"));
        assert_eq!(run(&["-s", "echo", "x;", "echo", "y"]), fine("x\ny"));
        assert_eq!(run(&["-D", "/", "pwd"]), fine("/"));
        assert_eq!(run(&["-v"]), fine(""));
        assert_eq!(run(&["sh", "-c", "exit 7"]).0, Some(7));
        let (code, said) = run(&["-u", "postgres", "psql"]);
        assert!(code == Some(1) && said.contains("su postgres -s /bin/sh -c"), "{said}");
        assert_eq!(run(&["--unknown", "x"]).0, Some(1));
    }
}
