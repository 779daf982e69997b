//! `RUN` with its flags, mounts and heredocs.

use super::{Flag, Reader, command};
use crate::form::{Action, Command, Mount, MountKind, Network, Run, SCRIPTS, Sharing};
use crate::syntax::Line;
use naru_text::{Place, suggest_hint};

const KEYS: &[&str] = &[
    "type",
    "target",
    "dst",
    "destination",
    "source",
    "src",
    "from",
    "id",
    "sharing",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "required",
    "mode",
    "uid",
    "gid",
    "size",
    "env",
];

impl Reader {
    pub(super) fn run(&mut self, line: &Line, flags: &[Flag], start: usize) -> Option<Action> {
        let mut mounts = Vec::new();
        let mut network = Network::Default;
        for flag in flags {
            let value = flag.value.as_deref().unwrap_or_default();
            match (flag.name.as_str(), value) {
                ("network", "default") | ("security", "sandbox") => {}
                ("network", "none") => network = Network::None,
                ("network", "host") => {
                    let message =
                        "`--network=host` is refused: a build must not reach what listens on this machine";
                    self.error(flag.place, message, "leave it out: a step has the network of a pod");
                }
                ("security", "insecure") => {
                    let message =
                        "`--security=insecure` is refused: a Dockerfile cannot give itself privileges";
                    self.error(
                        flag.place,
                        message,
                        "run what needs them in a pod of your own, before the build",
                    );
                }
                ("network", _) => {
                    let message = format!("`{value}` is not a network of `RUN`");
                    self.error(flag.place, message, "`default` and `none` are");
                }
                ("security", _) => {
                    let message = format!("`{value}` is not a security mode of `RUN`");
                    self.error(flag.place, message, "`sandbox` is");
                }
                ("mount", _) => mounts.extend(self.mount(flag.place, value)),
                _ => self.unknown_flag(flag, "RUN", &["mount", "network", "security"]),
            }
        }
        let rest = line.rest[start..].trim_end();
        let mut script = None;
        let command = match (command(rest), line.heredocs.as_slice()) {
            (command, []) => command,
            (Command::Exec(_), [_, ..]) => {
                let message = "a heredoc and a JSON list do not go together";
                self.error(line.place, message, "write the command without brackets");
                return None;
            }
            // Nothing but the heredoc: its text is the script, or with `#!` a program.
            (Command::Shell(text), [only]) if is_only_heredoc(&text) => {
                match only.content.starts_with("#!") {
                    true => {
                        script = Some((only.name.clone(), only.content.clone()));
                        Command::Shell(format!("{SCRIPTS}/{}", only.name))
                    }
                    false => Command::Shell(only.content.clone()),
                }
            }
            // The shell reads them itself, quotes, tabs and all.
            (Command::Shell(mut text), heredocs) => {
                for heredoc in heredocs {
                    text.push_str(&format!("\n{}{}", heredoc.raw, heredoc.name));
                }
                Command::Shell(text)
            }
        };
        Some(Action::Run(Run { command, script, mounts, network }))
    }

    fn mount(&mut self, place: Place, text: &str) -> Option<Mount> {
        let mut mount = Mount {
            place,
            kind: MountKind::Bind,
            target: None,
            source: None,
            from: None,
            id: None,
            sharing: Sharing::Shared,
            read_only: None,
            required: false,
            mode: None,
            uid: None,
            gid: None,
            size_bytes: None,
            env: None,
        };
        let mut given = Vec::new();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').map_or((part, None), |it| (it.0, Some(it.1)));
            let text = value.unwrap_or_default();
            let key = key.to_ascii_lowercase();
            given.push(key.clone());
            let boolean = match value {
                None | Some("true" | "1") => Some(true),
                Some("false" | "0") => Some(false),
                Some(_) => None,
            };
            let octal = u32::from_str_radix(text, 8).ok().filter(|it| *it <= 0o7777);
            let is_understood = match key.as_str() {
                "type" => {
                    let kinds = [
                        ("bind", MountKind::Bind),
                        ("cache", MountKind::Cache),
                        ("tmpfs", MountKind::Tmpfs),
                        ("secret", MountKind::Secret),
                        ("ssh", MountKind::Ssh),
                    ];
                    let found = kinds.iter().find(|it| it.0 == text);
                    mount.kind = found.map_or(MountKind::Bind, |it| it.1);
                    found.is_some()
                }
                "target" | "dst" | "destination" => set(&mut mount.target, text),
                "source" | "src" => set(&mut mount.source, text),
                "from" => set(&mut mount.from, text),
                "id" => set(&mut mount.id, text),
                "env" => set(&mut mount.env, text),
                "sharing" => {
                    let modes = [
                        ("shared", Sharing::Shared),
                        ("private", Sharing::Private),
                        ("locked", Sharing::Locked),
                    ];
                    let found = modes.iter().find(|it| it.0 == text);
                    mount.sharing = found.map_or(Sharing::Shared, |it| it.1);
                    found.is_some()
                }
                "readonly" | "ro" => set_if(&mut mount.read_only, boolean),
                "readwrite" | "rw" => set_if(&mut mount.read_only, boolean.map(|it| !it)),
                "required" => boolean.map(|it| mount.required = it).is_some(),
                "mode" => set_if(&mut mount.mode, octal),
                "uid" => set_if(&mut mount.uid, text.parse().ok()),
                "gid" => set_if(&mut mount.gid, text.parse().ok()),
                "size" => set_if(&mut mount.size_bytes, bytes(text)),
                _ => {
                    let hint = suggest_hint(&key, KEYS);
                    self.error(place, format!("`--mount` has no key `{key}`"), hint);
                    return None;
                }
            };
            if !is_understood {
                self.error(place, format!("`{part}` of `--mount` is not understood"), "");
                return None;
            }
        }
        let (name, allowed): (_, &[&str]) = match mount.kind {
            MountKind::Bind => ("bind", &["source", "src", "from", "readonly", "ro", "readwrite", "rw"]),
            MountKind::Cache => (
                "cache",
                &[
                    "source",
                    "src",
                    "from",
                    "readonly",
                    "ro",
                    "readwrite",
                    "rw",
                    "id",
                    "sharing",
                    "mode",
                    "uid",
                    "gid",
                ],
            ),
            MountKind::Tmpfs => ("tmpfs", &["size"]),
            MountKind::Secret => ("secret", &["id", "required", "mode", "uid", "gid", "env"]),
            MountKind::Ssh => ("ssh", &["id", "required", "mode", "uid", "gid"]),
        };
        let always = ["type", "target", "dst", "destination"];
        if let Some(key) =
            given.iter().find(|it| !allowed.contains(&it.as_str()) && !always.contains(&it.as_str()))
        {
            self.error(place, format!("a mount of type `{name}` has no key `{key}`"), "");
            return None;
        }
        if mount.from.as_deref().is_some_and(|it| it.contains('$')) {
            let hint = "name a stage: `FROM $IMAGE AS other` and `from=other`";
            self.error(place, "`from` of a mount does not know variables", hint);
            return None;
        }
        let needs_target = matches!(mount.kind, MountKind::Bind | MountKind::Cache | MountKind::Tmpfs);
        if needs_target && mount.target.as_deref().is_none_or(str::is_empty) {
            self.error(place, format!("a mount of type `{name}` needs a `target`"), "add `,target=/path`");
            return None;
        }
        if mount.kind == MountKind::Secret && mount.id.is_none() && mount.target.is_none() {
            self.error(place, "a secret needs an `id`", "write `--mount=type=secret,id=NAME`");
            return None;
        }
        Some(mount)
    }
}

fn set(field: &mut Option<String>, text: &str) -> bool {
    *field = Some(text.to_owned());
    !text.is_empty()
}

fn set_if<T>(field: &mut Option<T>, value: Option<T>) -> bool {
    let is_understood = value.is_some();
    *field = value;
    is_understood
}

fn is_only_heredoc(text: &str) -> bool {
    text.trim_start_matches(|it: char| it.is_ascii_digit()).starts_with("<<")
        && !text.trim().contains(char::is_whitespace)
}

/// `10m`, `1gb`, `512`.
fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    let unit = text[end..].to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}
