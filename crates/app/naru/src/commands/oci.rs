//! `naru oci`: the runtime with runc's command line. Other tools start it with a bundle and a state directory of
//! theirs; nothing of it needs the daemon.

use crate::error::{Error, Result};
use clap::{Args, Subcommand};
use naru_runtime::oci::{CreateOptions, ExecOptions, Oci, OciError, default_spec, features};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Set in a process that was executed from a read-only mount already.
const SEALED: &str = "_NARU_OCI_SEALED";
/// By this name the program is the runtime alone, for tools that take a path and no arguments.
const ALIAS: &str = "naru-oci";

#[derive(Args, Clone)]
pub struct OciArgs {
    /// Where the state of containers is kept.
    #[arg(long, default_value = "/run/naru-oci")]
    root: PathBuf,
    /// Errors go into this file, too: callers read them from there. `--log` is the same here.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
    /// Taken for runc's sake; errors always say all that is known.
    #[arg(long)]
    debug: bool,
    /// systemd's cgroups cannot be used; callers that want them are told.
    #[arg(long)]
    systemd_cgroup: bool,
    /// Taken for runc's sake: whether we have rights is seen, not told.
    #[arg(long, default_value = "auto")]
    rootless: String,
    #[command(subcommand)]
    command: OciCommand,
}

#[derive(Args, Clone)]
struct Create {
    /// The directory with config.json.
    #[arg(short, long, default_value = ".")]
    bundle: PathBuf,
    /// A socket that the terminal is sent to.
    #[arg(long)]
    console_socket: Option<PathBuf>,
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// So many descriptors from 3 on are handed to the container.
    #[arg(long, default_value_t = 0)]
    preserve_fds: i32,
    #[arg(long)]
    no_pivot: bool,
    /// Taken for runc's sake: a container is its caller's session anyway.
    #[arg(long)]
    no_new_keyring: bool,
    id: String,
}

impl Create {
    fn options(&self) -> CreateOptions {
        CreateOptions {
            bundle: self.bundle.clone(),
            console_socket: self.console_socket.clone(),
            pid_file: self.pid_file.clone(),
            preserve_fds: self.preserve_fds,
            no_pivot: self.no_pivot,
        }
    }
}

#[derive(Subcommand, Clone)]
enum OciCommand {
    /// Make a container; its process waits for `start`.
    Create(Create),
    /// Let the process of a created container go.
    Start { id: String },
    /// Make, start, wait for and remove a container.
    Run {
        #[command(flatten)]
        create: Create,
        #[arg(short, long)]
        detach: bool,
        /// Do not remove it afterwards.
        #[arg(long)]
        keep: bool,
    },
    /// The state of a container as JSON.
    State { id: String },
    /// Send a signal, SIGTERM by default.
    Kill {
        id: String,
        #[arg(default_value = "SIGTERM")]
        signal: String,
        /// To all processes of the container.
        #[arg(short, long)]
        all: bool,
    },
    /// Remove a container that has ended.
    Delete {
        /// End it first.
        #[arg(short, long)]
        force: bool,
        id: String,
    },
    /// Run one more process in a container.
    Exec {
        #[arg(short, long, value_name = "FILE")]
        process: Option<PathBuf>,
        #[arg(short, long)]
        env: Vec<String>,
        #[arg(long)]
        cwd: Option<String>,
        /// `uid` or `uid:gid`.
        #[arg(short, long)]
        user: Option<String>,
        #[arg(short, long)]
        tty: bool,
        #[arg(short, long)]
        detach: bool,
        #[arg(long)]
        console_socket: Option<PathBuf>,
        #[arg(long)]
        pid_file: Option<PathBuf>,
        id: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// The processes of a container.
    Ps {
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        format: String,
        id: String,
    },
    /// All containers of this state directory.
    List {
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        format: String,
        /// Only their ids.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Stop a container's processes where they are.
    Pause { id: String },
    /// Let them go on.
    Resume { id: String },
    /// Write a config.json to begin with.
    Spec {
        #[arg(short, long, default_value = ".")]
        bundle: PathBuf,
        #[arg(long)]
        rootless: bool,
    },
    /// What this runtime can do, as JSON.
    Features,
    /// Refused, with the reason.
    Checkpoint {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<String>,
    },
    /// Refused, with the reason.
    Restore {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<String>,
    },
    /// Refused, with the reason.
    Update {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<String>,
    },
}

/// The command line, with `oci` put in if we were called by the runtime's own name.
pub fn arguments() -> Vec<OsString> {
    let mut all: Vec<OsString> = std::env::args_os().collect();
    let name = all.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|it| it == ALIAS) {
        all.insert(1, "oci".into());
    }
    // What runc calls --log is a file; everywhere else in this program it is a level.
    if all.get(1).is_some_and(|it| it == "oci") {
        for argument in all.iter_mut().skip(2) {
            let text = argument.to_string_lossy();
            // From the subcommand on, words may be the container's.
            if OciCommand::has_subcommand(&text) {
                break;
            }
            if text == "--log" || text.starts_with("--log=") {
                *argument = text.replacen("--log", "--log-file", 1).into();
            }
        }
    }
    all
}

/// Must run before there are threads.
pub fn run(args: OciArgs) -> Result<ExitCode> {
    let is_container =
        matches!(args.command, OciCommand::Create(_) | OciCommand::Run { .. } | OciCommand::Exec { .. });
    if is_container && std::env::var_os(SEALED).is_none() {
        seal();
    }
    let (log, format) = (args.log_file.clone(), args.log_format.clone());
    match carry_out(args) {
        Ok(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(255))),
        Err(error) => {
            if let Some(path) = log {
                write_log(&path, &format, "error", error.message());
            }
            Err(error)
        }
    }
}

/// Executes ourselves again, so that no container can overwrite this program. Returns where that cannot be had.
fn seal() {
    let Ok(program) = std::env::current_exe() else { return };
    let arguments: Option<Vec<String>> = std::env::args_os().map(|it| it.into_string().ok()).collect();
    let Some(arguments) = arguments else { return };
    naru_runtime::execute_read_only(&program, &arguments, SEALED);
}

fn write_log(path: &Path, format: &str, level: &str, message: &str) {
    let now = jiff::Timestamp::now().to_string();
    let line = match format {
        "json" => serde_json::json!({"level": level, "msg": message, "time": now}).to_string(),
        _ => format!("time=\"{now}\" level={level} msg={message:?}"),
    };
    if let Ok(mut file) = std::fs::File::options().create(true).append(true).open(path) {
        let _ = writeln!(file, "{line}");
    }
}

fn failed(error: OciError) -> Error {
    Error::new(error.to_string())
}

fn carry_out(args: OciArgs) -> Result<i32> {
    if args.systemd_cgroup {
        return Err(Error::new("systemd's cgroups cannot be used by this runtime")
            .hint("leave --systemd-cgroup out; for podman: --cgroup-manager cgroupfs"));
    }
    let oci = Oci::new(&args.root);
    let warn = |warnings: Vec<String>| {
        for text in warnings {
            eprintln!("warning: {text}");
            if let Some(path) = &args.log_file {
                write_log(path, &args.log_format, "warning", &text);
            }
        }
    };
    let mut out = std::io::stdout();
    match &args.command {
        OciCommand::Create(create) => warn(oci.create(&create.id, &create.options()).map_err(failed)?),
        OciCommand::Start { id } => oci.start(id).map_err(failed)?,
        OciCommand::Run { create, detach, keep } => {
            let (code, warnings) = oci.run(&create.id, &create.options(), *detach, *keep).map_err(failed)?;
            warn(warnings);
            return Ok(code);
        }
        OciCommand::State { id } => {
            writeln!(out, "{}", serde_json::to_string_pretty(&oci.state(id).map_err(failed)?)?)?;
        }
        OciCommand::Kill { id, signal, all } => oci.kill(id, signal, *all).map_err(failed)?,
        OciCommand::Delete { force, id } => oci.delete(id, *force).map_err(failed)?,
        OciCommand::Exec { process, env, cwd, user, tty, detach, console_socket, pid_file, id, command } => {
            if process.is_none() && command.is_empty() {
                return Err(Error::new("there is nothing to run")
                    .hint(format!("write it like `naru oci exec {id} ps -ef`")));
            }
            let options = ExecOptions {
                process: process.clone(),
                command: command.clone(),
                env: env.clone(),
                cwd: cwd.clone(),
                user: user.clone(),
                terminal: *tty,
                detach: *detach,
                console_socket: console_socket.clone(),
                pid_file: pid_file.clone(),
            };
            return oci.exec(id, &options).map_err(failed);
        }
        OciCommand::Ps { format, id } => {
            let pids = oci.processes(id).map_err(failed)?;
            match format.as_str() {
                "json" => writeln!(out, "{}", serde_json::to_string(&pids)?)?,
                _ => table_of(&pids)?,
            }
        }
        OciCommand::List { format, quiet } => {
            let entries = oci.list().map_err(failed)?;
            if *quiet {
                for it in entries {
                    writeln!(out, "{}", it.id)?;
                }
            } else if format == "json" {
                writeln!(out, "{}", serde_json::to_string(&entries)?)?;
            } else {
                writeln!(
                    out,
                    "{:<20} {:>8}  {:<10} {:<40} {:<26} OWNER",
                    "ID", "PID", "STATUS", "BUNDLE", "CREATED"
                )?;
                for it in entries {
                    writeln!(
                        out,
                        "{:<20} {:>8}  {:<10} {:<40} {:<26} {}",
                        it.id, it.pid, it.status, it.bundle, it.created, it.owner
                    )?;
                }
            }
        }
        OciCommand::Pause { id } => oci.pause(id).map_err(failed)?,
        OciCommand::Resume { id } => oci.resume(id).map_err(failed)?,
        OciCommand::Spec { bundle, rootless } => {
            let path = bundle.join("config.json");
            if path.exists() {
                return Err(Error::new(format!("{} is there already", path.display()))
                    .hint("remove it first, or say where to write with --bundle"));
            }
            std::fs::write(path, serde_json::to_string_pretty(&default_spec(*rootless))? + "\n")?;
        }
        OciCommand::Features => {
            writeln!(out, "{}", serde_json::to_string_pretty(&features(env!("CARGO_PKG_VERSION")))?)?;
        }
        OciCommand::Checkpoint { .. } | OciCommand::Restore { .. } => {
            return Err(Error::new(
                "containers are not checkpointed: what a process has open outside of itself cannot be brought back \
                 faithfully, and a new container is up in milliseconds",
            )
            .hint("stop it and start a new one; keep what must stay in a volume"));
        }
        OciCommand::Update { .. } => {
            return Err(Error::new(
                "the limits of a container that runs are not changed by this command line",
            )
            .hint("delete it and create it with other limits; pods are resized with kubectl"));
        }
    }
    Ok(0)
}

/// As `ps -ef` shows them.
fn table_of(pids: &[i32]) -> Result<()> {
    let list: Vec<String> = pids.iter().map(i32::to_string).collect();
    if list.is_empty() {
        return Ok(());
    }
    let status = std::process::Command::new("ps").args(["-f", "-p", &list.join(",")]).status();
    match status {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::new(format!("ps cannot be run: {error}")).hint("use --format json")),
    }
}
