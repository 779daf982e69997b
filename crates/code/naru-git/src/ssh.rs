//! Git over SSH, behind the system's own sshd: it has checked the key, and runs our program in place of what the
//! client asked for. What the client may ask for is read here; everything else is refused.

use crate::record::PEOPLE;
use crate::{CreateError, create_in, directory, git, is_valid_name};
use std::path::Path;
use tokio::process::Command;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Fetch,
    Push,
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub service: Service,
    pub repository: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SshError {
    #[error("this account is for git: fetch from and push to ssh://<user>@<host>/<repository>.git")]
    NoGit,
    #[error("a repository is named with lower-case letters, digits and dashes, not `{0}`")]
    Name(String),
    #[error("there is no repository `{0}`; the first push creates it")]
    Unknown(String),
    #[error(transparent)]
    Create(#[from] CreateError),
}

/// Reads `SSH_ORIGINAL_COMMAND`: `git-upload-pack '/shop.git'`. Repositories also have their owner in front, as in
/// URLs over HTTP.
pub fn asked(command: &str, owner: &str) -> Result<Asked, SshError> {
    let (word, path) = command.trim().split_once(' ').ok_or(SshError::NoGit)?;
    let service = match word {
        "git-upload-pack" => Service::Fetch,
        "git-receive-pack" => Service::Push,
        _ => return Err(SshError::NoGit),
    };
    let path = path.trim();
    let bare = path.strip_prefix('\'').and_then(|it| it.strip_suffix('\'')).unwrap_or(path);
    let name = bare.trim_start_matches('/').trim_end_matches('/');
    let name = name.strip_prefix(owner).and_then(|it| it.strip_prefix('/')).unwrap_or(name);
    let name = name.strip_suffix(".git").unwrap_or(name);
    match is_valid_name(name) {
        true => Ok(Asked { service, repository: name.to_owned() }),
        false => Err(SshError::Name(bare.to_owned())),
    }
}

/// The program that speaks with the client, over its own standard input and output.
pub async fn backend(
    root: &Path,
    asked: &Asked,
    hook_command: &[String],
    hook_env: &[(String, String)],
) -> Result<Command, SshError> {
    let name = &asked.repository;
    let directory = directory(root, name);
    let word = match asked.service {
        Service::Fetch => "upload-pack",
        Service::Push => "receive-pack",
    };
    if asked.service == Service::Push {
        create_in(root, name).await?;
    } else if !directory.join("HEAD").exists() {
        return Err(SshError::Unknown(name.clone()));
    }
    let mut command = git();
    command
        .arg(word)
        .arg(&directory)
        // What git's log of a ref notes.
        .env("GIT_COMMITTER_NAME", PEOPLE)
        .env("GIT_COMMITTER_EMAIL", "naru@localhost")
        .env("NARU_HOOK", hook_command.join(" "))
        .env("NARU_REPOSITORY", name)
        .envs(hook_env.iter().map(|(a, b)| (a, b)))
        // A push that was accepted goes on when its client goes away.
        .kill_on_drop(false);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gits_two_commands_are_taken_and_only_repositories() {
        let of = |command: &str| asked(command, "naru").map(|it| (it.service, it.repository));
        let shop = |service| (service, "shop".to_owned());
        for command in [
            "git-upload-pack '/shop.git'",
            "git-upload-pack 'shop'",
            "git-upload-pack '/naru/shop.git'",
            "git-upload-pack '/shop.git/'",
        ] {
            assert_eq!(of(command).unwrap(), shop(Service::Fetch), "{command}");
        }
        assert_eq!(of("git-receive-pack 'shop.git'").unwrap(), shop(Service::Push));
        for bad in
            ["", "sh", "git-upload-archive 'shop.git'", "git-shell -c id", "scp -f x", "git upload-pack shop"]
        {
            assert!(matches!(of(bad), Err(SshError::NoGit)), "{bad}");
        }
        for bad in [
            "git-upload-pack '../shop.git'",
            "git-upload-pack ''",
            "git-upload-pack '--help'",
            "git-receive-pack 'a b'",
            "git-receive-pack '/other/shop.git'",
            "git-receive-pack 'shop.git'; id",
        ] {
            assert!(matches!(of(bad), Err(SshError::Name(_))), "{bad}");
        }
    }
}
