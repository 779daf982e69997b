//! The files of an action, by `owner/name` and ref, from the first place that has them: a directory of
//! vendored actions, our own git server, and an outside git host ([`crate::upstream`]).

use crate::auth::Job;
use crate::code::Bytestream;
use crate::problem::{Kind, Problem, Result, problem};
use crate::{Inner, Shared};
use axum::body::Body;
use axum::extract::{Path as PathOf, State};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, header};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tokio_util::io::ReaderStream;

/// Names longer than that are no names of GitHub's.
const NAME_BYTES_MAX: usize = 100;
const REF_BYTES_MAX: usize = 255;

/// The largest action from a directory: a bundle with all of its dependencies has some ten megabytes.
const VENDORED_FILES_MAX: usize = 50_000;

/// What is read from the disk at once on the way out.
const READ_BYTES: usize = 128 << 10;

pub async fn handle(
    State(inner): State<Shared>,
    PathOf((owner, name, git_ref)): PathOf<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let job = inner.job(&headers).await?;
        let (sha, body) = find(&inner, &job, &owner, &name, &git_ref).await?;
        let headers = [(header::CONTENT_TYPE.as_str(), "application/gzip"), ("x-naru-sha", &sha)];
        Ok::<_, Problem>((headers, Body::from_stream(body)).into_response())
    };
    answer.await.unwrap_or_else(|it| it.text())
}

async fn find(
    inner: &Inner,
    job: &Job,
    owner: &str,
    name: &str,
    git_ref: &str,
) -> Result<(String, Bytestream)> {
    let is_name = |it: &str| {
        it.len() <= NAME_BYTES_MAX
            && !it.starts_with('.')
            && it.chars().all(|it| it.is_ascii_alphanumeric() || "-_.".contains(it))
    };
    let is_ref =
        !git_ref.is_empty() && git_ref.len() <= REF_BYTES_MAX && !git_ref.split('/').any(|it| it == "..");
    if !is_name(owner) || !is_name(name) || !is_ref {
        return Err(problem(Kind::Invalid, format!("`{owner}/{name}@{git_ref}` is no name of an action")));
    }
    let mut looked = Vec::new();
    if let Some(dir) = &inner.actions_dir {
        let base = dir.join(owner);
        let exact = base.join(format!("{name}@{git_ref}"));
        if let Some(dir) = [exact, base.join(name)].into_iter().find(|it| it.is_dir()) {
            return vendored(inner.packed_dir.clone(), dir).await;
        }
        looked.push(format!("{} has no {owner}/{name}", dir.display()));
    }
    let repository = if owner == inner.owner { name.to_owned() } else { format!("{owner}-{name}") };
    let failed = |it: String| problem(Kind::Internal, it);
    if let Some(sha) = inner.code.resolve(&repository, git_ref).await.map_err(failed)? {
        // Whoever may only propose a change sees no other repository of ours.
        if job.claims.untrusted && repository != job.claims.repository {
            let message = format!("a change from outside does not read the repository {repository}");
            return Err(problem(Kind::Denied, message));
        }
        let body = inner.code.archive(&repository, &sha).await.map_err(failed)?;
        return Ok((sha, body));
    }
    looked.push(format!("our git server has no {git_ref} of {repository}"));
    if owner != inner.owner {
        match inner.upstream.get(owner, name, git_ref).await {
            Ok(found) => return Ok(found),
            Err(it) if it.kind == Kind::NotFound => looked.push(it.message),
            Err(it) => return Err(it),
        }
    }
    let message = format!(
        "cannot find the action {owner}/{name}@{git_ref}: {}. Vendor it (`naru serve --actions-dir DIR`, files in \
         DIR/{owner}/{name}), or push it to our git server as {repository}",
        looked.join("; ")
    );
    Err(problem(Kind::NotFound, message))
}

/// A directory's files; their digest is what stands for the commit. Packed once, and again when they change.
async fn vendored(packed_dir: PathBuf, dir: PathBuf) -> Result<(String, Bytestream)> {
    let packed = tokio::task::spawn_blocking(move || {
        let (files, digest) = list(&dir)?;
        let archive = packed_dir.join(format!("{digest}.tar.gz"));
        if !archive.exists() {
            // A name of its own: two jobs may ask at once.
            let temporary = packed_dir.join(format!("{:016x}.new", rand::random::<u64>()));
            std::fs::create_dir_all(&packed_dir)?;
            pack(&dir, &files, std::fs::File::create(&temporary)?)?;
            std::fs::rename(&temporary, &archive)?;
        }
        Ok::<_, std::io::Error>((digest, std::fs::File::open(archive)?))
    });
    let (digest, file) = packed
        .await
        .expect("packing files does not panic")
        .map_err(|it| Problem::internal("a vendored action cannot be read", &it))?;
    let file = tokio::fs::File::from_std(file);
    Ok((digest, Box::pin(ReaderStream::with_capacity(file, READ_BYTES))))
}

/// The paths below a directory, sorted, without what git keeps; and a digest of names, modes and contents.
fn list(dir: &Path) -> std::io::Result<(Vec<PathBuf>, String)> {
    use std::os::unix::fs::PermissionsExt;
    let mut open = vec![dir.to_owned()];
    let mut files = Vec::new();
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path)? {
            let entry = entry?;
            if entry.file_name() == ".git" {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => open.push(entry.path()),
                false => files.push(entry.path().strip_prefix(dir).expect("below it").to_owned()),
            }
            if files.len() > VENDORED_FILES_MAX {
                return Err(std::io::Error::other(format!("more than {VENDORED_FILES_MAX} files")));
            }
        }
    }
    files.sort();
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for path in &files {
        let full = dir.join(path);
        let facts = full.symlink_metadata()?;
        let content = match facts.is_symlink() {
            true => std::fs::read_link(&full)?.into_os_string().into_encoded_bytes(),
            false => std::fs::read(&full)?,
        };
        let head =
            format!("{}\0{:o}\0{}\0", path.display(), facts.permissions().mode() & 0o111, content.len());
        context.update(head.as_bytes());
        context.update(&content);
    }
    let digest: String = context.finish().as_ref().iter().map(|it| format!("{it:02x}")).collect();
    Ok((files, format!("sha256-{digest}")))
}

fn pack(dir: &Path, files: &[PathBuf], writer: impl Write) -> std::io::Result<()> {
    let mut tar = tar::Builder::new(GzEncoder::new(writer, Compression::fast()));
    tar.follow_symlinks(false);
    for path in files {
        tar.append_path_with_name(dir.join(path), path)?;
    }
    tar.into_inner()?.finish()?.flush()
}

/// An archive as git hosts pack them, under one leading folder, without that folder; and the commit that git
/// notes in front. Written to `to`.
pub fn without_leading_folder(from: impl Read, to: impl Write) -> std::io::Result<Option<String>> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(from));
    let mut out = tar::Builder::new(GzEncoder::new(to, Compression::fast()));
    let mut commit = None;
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.header().entry_type() == tar::EntryType::XGlobalHeader {
            let mut text = String::new();
            entry.take(64 << 10).read_to_string(&mut text)?;
            // `52 comment=<commit>`, as `git archive` writes it.
            commit = text.split("comment=").nth(1).map(|it| it.trim().to_owned()).or(commit);
            continue;
        }
        let path = entry.path()?.into_owned();
        let inside: PathBuf = path.components().skip(1).collect();
        let leaves = path.components().any(|it| !matches!(it, std::path::Component::Normal(_)));
        if leaves {
            return Err(std::io::Error::other(format!(
                "the archive has a path that leaves it: {}",
                path.display()
            )));
        }
        if inside.as_os_str().is_empty() || entry.header().entry_type().is_dir() {
            continue;
        }
        let mut header = entry.header().clone();
        match entry.link_name()?.map(std::borrow::Cow::into_owned) {
            Some(target) => out.append_link(&mut header, inside, target)?,
            None => out.append_data(&mut header, inside, &mut entry)?,
        }
    }
    out.into_inner()?.finish()?.flush()?;
    Ok(commit.filter(|it| it.len() == 40 && it.bytes().all(|it| it.is_ascii_hexdigit())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<GzEncoder<Vec<u8>>>)) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        build(&mut tar);
        tar.into_inner().unwrap().finish().unwrap()
    }

    fn file(tar: &mut tar::Builder<GzEncoder<Vec<u8>>>, path: &str, content: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        // Not `append_data`, which refuses what a hostile archive would hold.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }

    #[test]
    fn the_leading_folder_goes_and_the_commit_is_told() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let packed = archive(|tar| {
            let text = format!("52 comment={commit}\n");
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::XGlobalHeader);
            header.set_size(text.len() as u64);
            header.set_cksum();
            tar.append(&header, text.as_bytes()).unwrap();
            file(tar, "checkout-4/action.yml", "name: x");
            file(tar, "checkout-4/dist/index.js", "y");
        });
        let mut out = Vec::new();
        assert_eq!(without_leading_folder(&packed[..], &mut out).unwrap().as_deref(), Some(commit));
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&out[..]));
        let names: Vec<String> =
            tar.entries().unwrap().map(|it| it.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["action.yml", "dist/index.js"]);
    }

    #[test]
    fn an_archive_that_leaves_its_folder_is_refused() {
        for bad in ["a/../../etc/passwd", "/etc/passwd", "../x"] {
            let packed = archive(|tar| file(tar, bad, "x"));
            assert!(without_leading_folder(&packed[..], Vec::new()).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_vendored_directory_is_known_by_its_contents() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("dist")).unwrap();
        std::fs::create_dir_all(dir.path().join(".git")).unwrap();
        std::fs::write(dir.path().join(".git/config"), "secret").unwrap();
        std::fs::write(dir.path().join("action.yml"), "name: x").unwrap();
        std::fs::write(dir.path().join("dist/index.js"), "1").unwrap();
        let (files, first) = list(dir.path()).unwrap();
        assert_eq!(files, [PathBuf::from("action.yml"), PathBuf::from("dist/index.js")]);
        std::fs::write(dir.path().join("dist/index.js"), "2").unwrap();
        assert_ne!(list(dir.path()).unwrap().1, first);
    }
}
