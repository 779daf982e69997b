//! `naru ssh`: git over SSH, through the system's own sshd. It asks us which key may come in
//! (`AuthorizedKeysCommand`), and runs us in place of what the client asked for.

use crate::cli::Global;
use crate::connection;
use crate::error::{Context, Error, Result};
use base64::Engine as _;
use naru_git::ssh::{self, Service};
use naru_objects::{NAMESPACE, dns_label, dns_label_unique, kinds, label_of, name_of};
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

/// On the secrets that hold keys. They are no secrets, but who may write them comes in.
const LABEL: &str = "naru.dev/ssh-key";

/// A key of 16,384 bits has about 3 KiB.
const KEY_BYTES_MAX: usize = 16 * 1024;

/// What sshd takes as the type of a key; certificates are for its own settings.
const TYPES: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

#[derive(clap::Subcommand, Clone)]
pub enum SshCommand {
    /// Let a public key in: `naru ssh add ann < ann.pub`.
    Add {
        /// Whose it is.
        name: String,
        /// Only these repositories; all without it.
        #[arg(long, value_name = "NAME")]
        repository: Vec<String>,
        /// Fetches, and pushes nothing.
        #[arg(long)]
        read_only: bool,
    },
    /// Whose keys come in, and where to.
    List,
    /// Let a key in no more.
    Remove { name: String },
    /// Settings for sshd: `naru ssh config > /etc/ssh/naru.conf`, then `/usr/sbin/sshd -f /etc/ssh/naru.conf`.
    Config {
        #[arg(long, default_value_t = 2222)]
        port: u16,
    },
    /// What sshd asks: the line of `authorized_keys` for a key.
    #[command(hide = true)]
    Keys { key_type: String, key: String },
    /// What sshd runs.
    #[command(hide = true)]
    Serve { name: String },
}

pub async fn run(global: &Global, command: &SshCommand) -> Result<ExitCode> {
    match command {
        SshCommand::Config { port } => config(global, *port)?,
        SshCommand::Serve { name } => return serve(global, name).await,
        SshCommand::Add { name, repository, read_only } => add(global, name, repository, *read_only).await?,
        SshCommand::Remove { name } => {
            let client = connection::client(global).await?;
            match client.delete(&kinds::SECRET, NAMESPACE, &secret_name(name), None).await {
                Err(error) if error.is_not_found() => {
                    return Err(
                        Error::new(format!("no key is called `{name}`")).hint("look at `naru ssh list`")
                    );
                }
                it => it?,
            }
        }
        SshCommand::List => {
            for key in keys(global).await? {
                let repositories =
                    if key.repositories.is_empty() { "all".into() } else { key.repositories.join(", ") };
                let mode = if key.read_only { "fetches from" } else { "fetches from and pushes to" };
                println!(
                    "{:<24} {mode} {repositories}  {} {}",
                    key.name,
                    key.key_type,
                    &key.key[..key.key.len().min(24)]
                );
            }
        }
        SshCommand::Keys { key_type, key } => {
            let exe = std::env::current_exe().context(|| "cannot find our own program".into())?;
            for it in keys(global).await?.iter().filter(|it| it.key_type == *key_type && it.key == *key) {
                println!("{}", authorized(&exe, &global.data_dir, it));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Clone, PartialEq)]
struct Key {
    name: String,
    key_type: String,
    /// In base64, as in the file.
    key: String,
    /// None are all.
    repositories: Vec<String>,
    read_only: bool,
}

fn secret_name(name: &str) -> String {
    dns_label_unique(&format!("ssh-key-{name}"), 63)
}

async fn keys(global: &Global) -> Result<Vec<Key>> {
    let client = connection::client(global).await?;
    let all = client.list(&kinds::SECRET, Some(NAMESPACE), LABEL).await?;
    Ok(all.iter().filter_map(key_of).collect())
}

fn key_of(secret: &Value) -> Option<Key> {
    let text = |name: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(secret["data"][name].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let (key_type, key) = read(&text("key")?).ok()?;
    // One that does not say what it may, may nothing.
    let (repositories, mode) = (text("repositories")?, text("mode")?);
    Some(Key {
        name: label_of(secret, LABEL).to_owned(),
        key_type,
        key,
        repositories: repositories.split_whitespace().map(str::to_owned).collect(),
        read_only: mode != "write",
    })
}

/// Type and key of a public key's file; whatever comes behind or before is not taken.
fn read(text: &str) -> std::result::Result<(String, String), &'static str> {
    if text.trim().lines().count() != 1 {
        return Err("a public key is one line, such as that of ~/.ssh/id_ed25519.pub");
    }
    let mut words = text.split_whitespace();
    let (Some(key_type), Some(key)) = (words.next(), words.next()) else {
        return Err("a public key is `ssh-ed25519 AAAA... name`");
    };
    if !TYPES.contains(&key_type) {
        return Err("this is no type of key that comes in here; make one with `ssh-keygen -t ed25519`");
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(key).unwrap_or_default();
    // The type stands in the key once more, after its length.
    let within = bytes.get(4..4 + key_type.len()).filter(|_| bytes.len() <= KEY_BYTES_MAX);
    match within == Some(key_type.as_bytes()) {
        true => Ok((key_type.to_owned(), key.to_owned())),
        false => Err("the key is damaged; copy the whole line"),
    }
}

async fn add(global: &Global, name: &str, repositories: &[String], read_only: bool) -> Result<()> {
    if dns_label(name, 63) != name {
        return Err(Error::new(format!("`{name}` cannot be the name of a key"))
            .hint("write lower-case letters, digits and dashes"));
    }
    if let Some(bad) = repositories.iter().find(|it| !naru_git::is_valid_name(it)) {
        return Err(Error::new(format!("`{bad}` cannot be the name of a repository"))
            .hint("write lower-case letters, digits and dashes"));
    }
    let mut text = String::new();
    std::io::stdin().take(KEY_BYTES_MAX as u64 * 2).read_to_string(&mut text)?;
    read(&text).map_err(|it| Error::new(it).hint(format!("naru ssh add {name} < ~/.ssh/id_ed25519.pub")))?;
    let client = connection::client(global).await?;
    let data = json!({
        "key": text.trim(), "repositories": repositories.join(" "),
        "mode": if read_only { "read" } else { "write" }});
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "stringData": data,
        "metadata": {"name": secret_name(name), "namespace": NAMESPACE, "labels": {LABEL: name}}});
    match client.create(&kinds::SECRET, &object).await {
        Err(error) if error.is_already_exists() => {
            let patch = json!({"stringData": data});
            client.patch_merge(&kinds::SECRET, NAMESPACE, name_of(&object), &patch).await?;
        }
        it => drop(it?),
    }
    Ok(())
}

/// Nothing but our command, and no forwarding, no terminal.
fn authorized(exe: &Path, data_dir: &Path, key: &Key) -> String {
    let quoted = |it: &Path| it.display().to_string().replace('"', "\\\"");
    format!(
        "restrict,command=\"{} --data-dir {} ssh serve {}\" {} {}",
        quoted(exe),
        quoted(data_dir),
        key.name,
        key.key_type,
        key.key
    )
}

fn config(global: &Global, port: u16) -> Result<()> {
    let exe = std::env::current_exe().context(|| "cannot find our own program".into())?;
    let data_dir = global.data_dir.canonicalize().unwrap_or_else(|_| global.data_dir.clone());
    println!(
        "# Git over SSH for naru, as a daemon beside the machine's own:
#   /usr/sbin/sshd -f THIS_FILE
# A user for it, who reads what naru keeps: useradd --non-unique --uid 0 --gid 0 --home-dir / git
# Keys come in by `naru ssh add`; people use ssh://git@HOST:{port}/REPOSITORY.git
Port {port}
PidFile none
HostKey /etc/ssh/ssh_host_ed25519_key
# The program and each directory above it may be written to by root alone, or sshd refuses to ask it.
AuthorizedKeysCommand {} --data-dir {} ssh keys %t %k
AuthorizedKeysCommandUser root
AuthorizedKeysFile none
# Nobody gets more than git.
PermitRootLogin forced-commands-only
PasswordAuthentication no
KbdInteractiveAuthentication no
DisableForwarding yes
PermitTTY no
AcceptEnv GIT_PROTOCOL",
        exe.display(),
        data_dir.display()
    );
    Ok(())
}

/// The session of somebody whose key sshd has checked.
async fn serve(global: &Global, name: &str) -> Result<ExitCode> {
    let key = keys(global).await?.into_iter().find(|it| it.name == name);
    let key = key.ok_or_else(|| Error::new("this key comes in no more"))?;
    let endpoints = connection::endpoints(global)?;
    let command = std::env::var("SSH_ORIGINAL_COMMAND").unwrap_or_default();
    let asked = ssh::asked(&command, &endpoints.owner).map_err(|it| Error::new(it.to_string()))?;
    if !key.repositories.is_empty() && !key.repositories.contains(&asked.repository) {
        return Err(Error::new(format!("the key `{name}` does not open `{}`", asked.repository)));
    }
    if asked.service == Service::Push && key.read_only {
        return Err(Error::new(format!("the key `{name}` only fetches")));
    }
    let exe = std::env::current_exe().context(|| "cannot find our own program".into())?;
    let hook = [exe.display().to_string(), "__post-receive".into()];
    let env = [("NARU_DATA_DIR".to_owned(), global.data_dir.display().to_string())];
    let backend = ssh::backend(&global.data_dir.join("git"), &asked, &hook, &env).await;
    let mut child = backend.map_err(|it| Error::new(naru_client::chain(&it)))?.spawn()?;
    let code = child.wait().await?.code();
    Ok(ExitCode::from(code.and_then(|it| u8::try_from(it).ok()).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBXxVYDbxT0G6Zo0y5iAr9zvx8yYJJ2H8Wvz2W7Zb0aQ ann@example.org";

    #[test]
    fn a_key_is_taken_without_what_stands_around_it() {
        let (key_type, key) = read(GOOD).unwrap();
        let key = Key { name: "ann".into(), key_type, key, repositories: Vec::new(), read_only: false };
        let line = authorized(Path::new("/usr/bin/naru"), Path::new("/var/lib/naru"), &key);
        let start =
            "restrict,command=\"/usr/bin/naru --data-dir /var/lib/naru ssh serve ann\" ssh-ed25519 AAAA";
        assert!(line.starts_with(start) && !line.contains("example.org"), "{line}");
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-dss AAAA",
            "command=\"id\" ssh-ed25519 AAAA",
            &GOOD.replace("ssh-ed25519 A", "ssh-rsa A"),
            &format!("{GOOD}\n{GOOD}"),
            "ssh-ed25519 AAAA!",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
