//! Actions from an outside git host: its archives over HTTPS, kept by commit. A commit is fetched once; what
//! a tag or a branch means is asked again after a few minutes, and taken from before if the host is away.

use crate::actions::without_leading_folder;
use crate::code::Bytestream;
use crate::problem::{Kind, Problem, Result, problem};
use crate::records::write_durably;
use futures::StreamExt;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

/// A larger archive is no action.
const ARCHIVE_BYTES_MAX: u64 = 512 << 20;

/// How long an answer about a tag or branch is believed.
const FRESH: Duration = Duration::from_mins(5);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(60); // silence, not duration

pub struct Upstream {
    dir: PathBuf,
    /// `https://github.com`, or `None` for none.
    url: Option<String>,
    client: OnceLock<reqwest::Client>,
    /// One fetch at a time of each action.
    under_way: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Upstream {
    pub fn new(dir: PathBuf, url: Option<String>) -> Self {
        let url = url.map(|it| it.trim_end_matches('/').to_owned());
        Self { dir, url, client: OnceLock::new(), under_way: Mutex::default() }
    }

    /// The commit that a ref means, and its files.
    pub async fn get(&self, owner: &str, name: &str, git_ref: &str) -> Result<(String, Bytestream)> {
        let Some(url) = &self.url else {
            return Err(problem(
                Kind::NotFound,
                "no outside git host is asked (`naru serve --actions-from URL`)",
            ));
        };
        let dir = self.dir.join(owner).join(name);
        let note = dir.join("refs").join(file_name(git_ref));
        let key = format!("{owner}/{name}@{git_ref}");
        let turn = {
            let mut under_way = self.under_way.lock().expect("nothing panics while it holds this");
            under_way.retain(|_, it| Arc::strong_count(it) > 1);
            under_way.entry(key.clone()).or_default().clone()
        };
        let _turn = turn.lock().await;
        let known = Known::read(&dir, &note, git_ref);
        if let Some(known) = known.as_ref().filter(|it| it.is_fresh) {
            return open(&known.commit, &known.archive).await;
        }
        match self.fetch(url, &key, owner, name, git_ref, &dir, &note).await {
            Ok((commit, archive)) => open(&commit, &archive).await,
            Err(it) => match known {
                Some(known) if it.kind != Kind::NotFound => {
                    tracing::warn!(action = key, problem = %it, "the copy of before is used");
                    open(&known.commit, &known.archive).await
                }
                _ => Err(it),
            },
        }
    }

    async fn fetch(
        &self,
        url: &str,
        key: &str,
        owner: &str,
        name: &str,
        git_ref: &str,
        dir: &Path,
        note: &Path,
    ) -> Result<(String, PathBuf)> {
        let unreachable = |it: reqwest::Error| {
            problem(Kind::Gateway, format!("cannot fetch {key} from {url}: {}", naru_client::chain(&it)))
        };
        let from = format!("{url}/{owner}/{name}/archive/{git_ref}.tar.gz");
        let response = self.client()?.get(&from).send().await.map_err(unreachable)?;
        match response.status().as_u16() {
            200 => {}
            404 => return Err(problem(Kind::NotFound, format!("{url} has no {key}"))),
            it => return Err(problem(Kind::Gateway, format!("{url} answered {it} for {key}"))),
        }
        let failed = |it: std::io::Error| Problem::internal("an action cannot be kept", &it);
        tokio::fs::create_dir_all(note.parent().expect("joined above")).await.map_err(failed)?;
        let (raw, packed) = (dir.join("fetched.new"), dir.join("packed.new"));
        let mut file = tokio::fs::File::create(&raw).await.map_err(failed)?;
        let (mut bytes, mut body) = (0, response.bytes_stream());
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(unreachable)?;
            bytes += chunk.len() as u64;
            if bytes > ARCHIVE_BYTES_MAX {
                return Err(problem(
                    Kind::TooLarge,
                    format!("{key} has more than {ARCHIVE_BYTES_MAX} bytes"),
                ));
            }
            file.write_all(&chunk).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        let (dir, note, git_ref) = (dir.to_owned(), note.to_owned(), git_ref.to_owned());
        let kept = tokio::task::spawn_blocking(move || {
            let commit = without_leading_folder(
                std::io::BufReader::new(std::fs::File::open(&raw)?),
                std::fs::File::create(&packed)?,
            )?;
            let commit = match commit {
                Some(it) => it,
                None if is_commit(&git_ref) => git_ref,
                None => return Err(std::io::Error::other("the archive does not tell its commit")),
            };
            let archive = archive_of(&dir, &commit);
            std::fs::File::open(&packed)?.sync_all()?;
            std::fs::rename(&packed, &archive)?;
            std::fs::remove_file(&raw)?;
            write_durably(&note, commit.as_bytes())?;
            Ok((commit, archive))
        });
        kept.await.expect("packing does not panic").map_err(failed)
    }

    fn client(&self) -> Result<reqwest::Client> {
        if let Some(it) = self.client.get() {
            return Ok(it.clone());
        }
        let built = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("naru/", env!("CARGO_PKG_VERSION")))
            .build();
        let built = built.map_err(|it| Problem::internal("no HTTP client can be made", &it))?;
        Ok(self.client.get_or_init(|| built).clone())
    }
}

/// What is on the disk of an action.
struct Known {
    commit: String,
    archive: PathBuf,
    is_fresh: bool,
}

impl Known {
    fn read(dir: &Path, note: &Path, git_ref: &str) -> Option<Self> {
        let commit = match is_commit(git_ref) {
            true => git_ref.to_owned(),
            false => std::fs::read_to_string(note).ok()?,
        };
        let archive = archive_of(dir, &commit);
        if !archive.exists() {
            return None;
        }
        let age = || SystemTime::now().duration_since(note.metadata().ok()?.modified().ok()?).ok();
        let is_fresh = is_commit(git_ref) || age().is_some_and(|it| it < FRESH);
        Some(Self { commit, archive, is_fresh })
    }
}

fn archive_of(dir: &Path, commit: &str) -> PathBuf {
    dir.join(format!("{commit}.tar.gz"))
}

fn is_commit(git_ref: &str) -> bool {
    git_ref.len() == 40 && git_ref.bytes().all(|it| it.is_ascii_hexdigit())
}

/// A ref as the name of a file.
fn file_name(git_ref: &str) -> String {
    naru_objects::percent_encode(git_ref)
}

async fn open(commit: &str, archive: &Path) -> Result<(String, Bytestream)> {
    let file = tokio::fs::File::open(archive).await;
    let file = file.map_err(|it| Problem::internal("an action cannot be read", &it))?;
    Ok((commit.to_owned(), Box::pin(ReaderStream::with_capacity(file, 128 << 10))))
}
