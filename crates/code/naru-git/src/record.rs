//! From git's own log of a ref to `Run` objects. State-based: what counts is which updates have no run
//! yet, not who noticed them.

use crate::pulls::book::{Book, Entry, State};
use crate::{directory, git, pulls, repositories};
use naru_client::Client;
use naru_objects::{ChangeId, RunSpec, dns_label, kinds, labels, timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot read {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("git could not tell about {what}: {message}")]
    Git { what: String, message: String },
    #[error(transparent)]
    Api(#[from] naru_client::Error),
}

/// Under these names git notes in a ref's log who moved it.
pub(crate) const PEOPLE: &str = "naru";
pub(crate) const JOB: &str = "naru-job";
pub(crate) const MIRROR: &str = "naru-mirror";

const ZERO: &str = "0000000000000000000000000000000000000000";

/// Writes a `Run` for every update of every ref that has none yet, in all repositories. A repository that
/// cannot be read is said and left out: it must not keep the others, or the daemon, from going on.
pub async fn record_all(client: &Client, root: &Path, namespace: &str) -> Result<Vec<Value>, RecordError> {
    let mut runs = Vec::new();
    for name in repositories(root) {
        if !directory(root, &name).join("naru-ready").exists() {
            // Its first push was cut off while it was made; nothing was acknowledged. The next completes it.
            continue;
        }
        match record(client, root, &name, namespace).await {
            Ok(it) => runs.extend(it),
            Err(RecordError::Api(error)) => return Err(error.into()),
            Err(error) => {
                tracing::error!(
                    repository = name,
                    error = &error as &dyn std::error::Error,
                    "no runs of it are made"
                );
            }
        }
    }
    Ok(runs)
}

/// Writes a `Run` for every update of a repository's refs that has none yet, oldest first; returns them.
///
/// Safe to call at any time and from several processes: a file lock makes it one at a time, a run's name
/// follows from the ref and the number of its updates, and the mark of what was recorded moves only
/// after the run is stored.
pub async fn record(
    client: &Client,
    root: &Path,
    repository: &str,
    namespace: &str,
) -> Result<Vec<Value>, RecordError> {
    let directory = directory(root, repository);
    let marks = directory.join("naru-recorded");
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RecordError::Io { path, source }
    };
    std::fs::create_dir_all(&marks).map_err(io(&marks))?;
    let _lock = lock(&directory).await?;
    let mut book = Book::open(&directory)?;

    let default_branch = default_branch(&directory).await?;
    let mut runs = Vec::new();
    for git_ref in refs_with_log(&directory) {
        let log_path = directory.join("logs").join(&git_ref);
        let log = std::fs::read_to_string(&log_path).map_err(io(&log_path))?;
        let mark_path = marks.join(hash(&git_ref));
        let recorded = recorded_of(&std::fs::read_to_string(&mark_path).unwrap_or_default(), &log);
        for (index, line) in log.lines().enumerate().skip(recorded) {
            if let Some(update) = Update::parse(line)
                && update.after != ZERO
                && ![JOB, MIRROR].contains(&update.who.as_str())
            {
                let name = run_name(repository, &git_ref, index + 1);
                let deploy = git_ref == format!("refs/heads/{default_branch}");
                let (mut run, pull) =
                    run_of(&directory, &mut book, repository, namespace, &name, &git_ref, &update, deploy)
                        .await?;
                if let Some(other) = client.get(&kinds::RUN, namespace, &name).await?
                    && !is_of(&other, &run, &update)
                {
                    // The number was used by an earlier life of the ref.
                    run["metadata"]["name"] = json!(format!("{name}-{}", &hash(line)[..6]));
                }
                match client.create(&kinds::RUN, &run).await {
                    Ok(run) => runs.push(run),
                    Err(error) if error.is_already_exists() => {
                        runs.extend(client.get(&kinds::RUN, namespace, naru_objects::name_of(&run)).await?);
                    }
                    Err(error) => return Err(error.into()),
                }
                if let Some((number, entry)) = pull {
                    book.put(&directory, number, entry)?;
                }
            }
            let mark = format!("{} {}", index + 1, hash(line));
            write_durably(&mark_path, &mark).map_err(io(&mark_path))?;
        }
    }
    // Before the others: whoever follows the last one follows what was pushed.
    let mut ended = closings(client, &directory, repository, namespace, &mut book).await?;
    ended.extend(runs);
    Ok(ended)
}

/// Holds off other processes that record; each holds it only for a few requests.
pub(crate) async fn lock(directory: &Path) -> Result<nix::fcntl::Flock<std::fs::File>, RecordError> {
    let path = directory.join("naru-lock");
    let io = |source| RecordError::Io { path: path.clone(), source };
    let file = std::fs::File::create(&path).map_err(io)?;
    tokio::task::spawn_blocking(move || {
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
            .map_err(|(_, errno)| std::io::Error::from(errno))
    })
    .await
    .expect("locking does not panic")
    .map_err(io)
}

/// A run for each pull request that was closed or merged since.
async fn closings(
    client: &Client,
    directory: &Path,
    repository: &str,
    namespace: &str,
    book: &mut Book,
) -> Result<Vec<Value>, RecordError> {
    let mut runs = Vec::new();
    for ended in pulls::settle::ended(directory, repository, book).await? {
        let name = run_name(repository, &format!("refs/pull/{}/closed", ended.number), ended.entry.closings);
        let change = ChangeId::mint();
        let spec = RunSpec {
            change: change.to_string(),
            pushed_at: timestamp(jiff::Timestamp::now()),
            ..ended.spec
        };
        match client.create(&kinds::RUN, &object_of(&name, namespace, &change, &spec)).await {
            Ok(run) => runs.push(run),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
        let is_merged = ended.entry.state == pulls::book::State::Merged;
        book.put(directory, ended.number, ended.entry)?;
        if is_merged {
            // The next push to it asks for something new.
            let _ = git_output(directory, &["update-ref", "-d", &ended.git_ref], &ended.git_ref).await;
        }
    }
    Ok(runs)
}

fn object_of(name: &str, namespace: &str, change: &ChangeId, spec: &RunSpec) -> Value {
    json!({
        "apiVersion": kinds::RUN.api_version(), "kind": kinds::RUN.kind,
        "metadata": {
            "name": name, "namespace": namespace,
            "labels": {labels::CHANGE: change.as_str(), labels::APP: spec.repository}},
        "spec": spec,
    })
}

/// How many updates of a log have a run. The mark is their number and the hash of the last one's line: a
/// ref that was deleted and pushed anew starts a new log, which may be as long as the old one was.
fn recorded_of(mark: &str, log: &str) -> usize {
    let mut words = mark.split_whitespace();
    let count: usize = words.next().and_then(|it| it.parse().ok()).unwrap_or(0);
    let Some(last) = count.checked_sub(1).and_then(|it| log.lines().nth(it)) else { return 0 };
    match words.next() {
        Some(it) if it != hash(last) => 0,
        _ => count,
    }
}

/// Whether `other` is the run of this very update, made before we could note it, and not that of an
/// earlier life of the ref that happened to push the same commit.
fn is_of(other: &Value, run: &Value, update: &Update) -> bool {
    let pushed = other["spec"]["pushedAt"].as_str().and_then(|it| it.parse::<jiff::Timestamp>().ok());
    let near = pushed.is_some_and(|it| it.as_second().abs_diff(update.seconds) <= PUSHED_WITHIN_SECONDS);
    other["spec"]["sha"] == run["spec"]["sha"] && other["spec"]["before"] == run["spec"]["before"] && near
}

/// How far a run's time of push may be from that in git's log, see [`pushed_at`].
const PUSHED_WITHIN_SECONDS: u64 = 2;

/// Room for a run's name: it is also the value of a label, which takes 63 characters, and may get a suffix.
const RUN_NAME_CHARS_MAX: usize = 56;

/// One line of a ref's log: `<before> <after> <who> <seconds> <zone>\t<why>` (git's reflog format).
struct Update {
    before: String,
    after: String,
    who: String,
    seconds: i64,
}

impl Update {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split('\t').next()?.split(' ');
        let (before, after) = (words.next()?.to_owned(), words.next()?.to_owned());
        let rest: Vec<&str> = words.collect();
        let who = rest.iter().take_while(|it| !it.starts_with('<')).copied().collect::<Vec<_>>().join(" ");
        let seconds = rest.iter().rev().nth(1)?.parse().ok()?;
        Some(Self { before, after, who, seconds })
    }
}

/// `shop-main-3`: the third update of `main`. A ref whose name does not survive as it is gets a short
/// hash, so that `a/b` and `a-b` stay apart.
fn run_name(repository: &str, git_ref: &str, number: usize) -> String {
    let short = git_ref
        .strip_prefix("refs/heads/")
        .map(str::to_owned)
        .unwrap_or_else(|| git_ref.trim_start_matches("refs/").replace('/', "-"));
    let label = dns_label(&short, 24);
    let label = if label == short { label } else { format!("{label}-{}", &hash(git_ref)[..4]) };
    let name = format!("{repository}-{label}-{number}");
    if name.len() <= RUN_NAME_CHARS_MAX {
        return name;
    }
    let hash = hash(&format!("{repository} {git_ref}"));
    format!("{}-{}-{number}", dns_label(&format!("{repository}-{label}"), 40), &hash[..6])
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(16).map(|it| format!("{it:02x}")).collect()
}

/// The run of an update; and how the pull request stands then, if it is one's.
async fn run_of(
    directory: &Path,
    book: &mut Book,
    repository: &str,
    namespace: &str,
    name: &str,
    git_ref: &str,
    update: &Update,
    deploy: bool,
) -> Result<(Value, Option<(u64, Entry)>), RecordError> {
    let change = ChangeId::mint();
    let facts = Facts::of(directory, &update.after, git_ref).await?;
    let mut spec = RunSpec {
        repository: repository.to_owned(),
        git_ref: git_ref.to_owned(),
        sha: facts.sha.clone(),
        before: update.before.clone(),
        change: change.to_string(),
        event: "push".into(),
        author: facts.author.clone(),
        committed_at: facts.committed_at.clone(),
        message: facts.subject.clone(),
        pushed_at: pushed_at(update.seconds),
        deploy,
        ..RunSpec::default()
    };
    let branches = branches(directory).await?;
    let mut asked = None;
    if let Some((base, topic)) = pulls::asked(git_ref, &branches) {
        let pull = pulls::update(directory, book, git_ref, &base, &topic, &facts.sha).await?;
        let before = book.entries.get(&pull.number);
        // Of a repository from before there was a book.
        let known = before.map(|it| it.state).or((update.before != ZERO).then_some(State::Open));
        let entry = pull.entry(directory, before, &facts.sha, &facts.subject, &facts.author).await;
        // From where the two parted, as GitHub compares.
        spec.changed = changed(directory, &format!("{}...{}", pull.base_sha, facts.sha)).await;
        spec.payload = pull.payload(known, &facts.sha, &facts.subject, &facts.author);
        asked = Some((pull.number, entry));
        spec.event = "pull_request".into();
        spec.git_ref = format!("refs/pull/{}/merge", pull.number);
        spec.sha = pull.sha;
        spec.base_ref = base;
        spec.head_ref = topic;
    } else {
        let from = start_of(directory, git_ref, update).await;
        if let Some(from) = &from {
            spec.changed = changed(directory, &format!("{from}..{}", facts.sha)).await;
        }
        spec.payload = json!({"commits": commits(directory, from.as_deref(), &facts.sha).await?});
    }
    Ok((object_of(name, namespace, &change, &spec), asked))
}

/// What a commit says about itself.
struct Facts {
    sha: String,
    author: String,
    committed_at: String,
    subject: String,
}

impl Facts {
    /// A tag may name a tag object, whose commit is meant, or (rarely) something that is no commit at all.
    async fn of(directory: &Path, commit: &str, what: &str) -> Result<Self, RecordError> {
        let text = git_output(directory, &["log", "-1", "--format=%H%n%an%n%cI%n%s", commit], what).await?;
        let mut lines = text.lines();
        Ok(Self {
            sha: lines.next().unwrap_or(commit).to_owned(),
            author: lines.next().unwrap_or_default().to_owned(),
            committed_at: lines
                .next()
                .and_then(|it| it.parse::<jiff::Timestamp>().ok())
                .map(timestamp)
                .unwrap_or_default(),
            subject: lines.next().unwrap_or_default().to_owned(),
        })
    }
}

/// Files of one push that filters look at; of more it is not said which, and the filters let it pass.
const CHANGED_MAX: usize = 3000;

/// Commits that an event tells of, the latest: it is part of an object, which stays small. (GitHub's has at
/// most 2048.)
const COMMITS_MAX: &str = "-50";

/// The commit that a push is compared with: what the ref named before, or, of a new ref, what its first
/// commit of its own stands on. `None` if there is no such commit.
async fn start_of(directory: &Path, git_ref: &str, update: &Update) -> Option<String> {
    if update.before != ZERO {
        let exists = ["cat-file", "-e", &update.before];
        return git_output(directory, &exists, git_ref).await.is_ok().then(|| update.before.clone());
    }
    let exclude = format!("--exclude={git_ref}");
    let own = ["rev-list", "--reverse", &update.after, "--not", &exclude, "--exclude=refs/pull/*", "--all"];
    let own = git_output(directory, &own, git_ref).await.ok()?;
    let first = own.lines().next()?;
    let parent = format!("{first}^");
    let parent = git_output(directory, &["rev-parse", "--verify", "--quiet", &parent], git_ref).await;
    Some(parent.ok()?.trim().to_owned())
}

/// The files that differ in a range of commits.
async fn changed(directory: &Path, range: &str) -> Option<Vec<String>> {
    let text = git_output(directory, &["diff", "--name-only", "-z", "-M", range], range).await.ok()?;
    let files: Vec<String> = text.split('\0').filter(|it| !it.is_empty()).map(str::to_owned).collect();
    (files.len() <= CHANGED_MAX).then_some(files)
}

/// The commits of a push, the oldest first, in the shape of GitHub's event.
async fn commits(directory: &Path, from: Option<&str>, to: &str) -> Result<Value, RecordError> {
    let range = from.map_or(to.to_owned(), |it| format!("{it}..{to}"));
    let format = "--format=%H%x1f%an%x1f%ae%x1f%cI%x1f%B%x1e";
    let count = if from.is_some() { COMMITS_MAX } else { "-1" };
    let text = git_output(directory, &["log", "--reverse", count, format, &range], &range).await?;
    let commit = |it: &str| {
        let mut parts = it.trim_start_matches('\n').splitn(5, '\x1f').map(str::to_owned);
        let (id, name, email) = (parts.next()?, parts.next()?, parts.next()?);
        let (time, message) = (parts.next()?, parts.next()?);
        let author = json!({"name": name, "email": email, "username": name});
        Some(
            json!({"id": id, "message": message.trim_end(), "timestamp": time, "author": author, "distinct": true}),
        )
    };
    Ok(text.split('\x1e').filter_map(commit).collect())
}

/// Git's log knows whole seconds; a push that is recorded at once gets the finer clock.
fn pushed_at(seconds: i64) -> String {
    let now = jiff::Timestamp::now();
    if now.as_second() - seconds < 2 {
        return timestamp(now);
    }
    jiff::Timestamp::from_second(seconds).map(timestamp).unwrap_or_default()
}

/// The branch that is deployed: the one that HEAD names; if that was never pushed, the first that was.
async fn default_branch(directory: &Path) -> Result<String, RecordError> {
    let head = git_output(directory, &["symbolic-ref", "--short", "HEAD"], "HEAD").await?;
    let head = head.trim().to_owned();
    match branches(directory).await?.as_slice() {
        [only] if *only != head => {
            git_output(directory, &["symbolic-ref", "HEAD", &format!("refs/heads/{only}")], "HEAD").await?;
            Ok(only.clone())
        }
        _ => Ok(head),
    }
}

async fn branches(directory: &Path) -> Result<Vec<String>, RecordError> {
    let args = ["for-each-ref", "--format=%(refname:short)", "refs/heads"];
    Ok(git_output(directory, &args, "branches").await?.lines().map(str::to_owned).collect())
}

pub(crate) async fn git_output(directory: &Path, args: &[&str], what: &str) -> Result<String, RecordError> {
    let fail = |message: String| RecordError::Git { what: what.to_owned(), message };
    let output =
        git().arg("-C").arg(directory).args(args).output().await.map_err(|it| fail(it.to_string()))?;
    if !output.status.success() {
        return Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The refs that have a log, sorted.
fn refs_with_log(directory: &Path) -> Vec<String> {
    let root = directory.join("logs");
    let mut found = Vec::new();
    let mut open = vec![root.join("refs")];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(name) = path.strip_prefix(&root) {
                let name = name.to_string_lossy().into_owned();
                // Those are made by us, of what was pushed.
                if !name.starts_with("refs/pull/") {
                    found.push(name);
                }
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn write_durably(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(path.parent().expect("marks are files in a directory"))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_gits_log_is_read() {
        let line = format!("{ZERO} {} A U Thor <a@b> 1700000000 +0100\tpush", "a".repeat(40));
        let update = Update::parse(&line).unwrap();
        assert_eq!((update.before.as_str(), update.seconds), (ZERO, 1_700_000_000));
        assert_eq!(update.who, "A U Thor");
        assert!(Update::parse("garbage").is_none());
    }

    #[test]
    fn a_ref_that_is_deleted_and_pushed_again_is_not_taken_for_recorded() {
        let line = |seconds: u32| format!("{ZERO} {} A <a@b> {seconds} +0000\tpush", "a".repeat(40));
        let mark = format!("1 {}", hash(&line(5)));
        assert_eq!(recorded_of(&mark, &line(5)), 1);
        assert_eq!(recorded_of(&mark, &format!("{}\n{}", line(5), line(6))), 1);
        assert_eq!(recorded_of(&mark, &line(6)), 0);
        assert_eq!(recorded_of(&mark, ""), 0);
        assert_eq!(recorded_of("1", &line(6)), 1, "a mark of before has no hash");
        assert_eq!(recorded_of("", &line(6)), 0);
    }

    #[test]
    fn a_runs_name_fits_into_a_label() {
        let long = run_name(&"r".repeat(40), &format!("refs/heads/{}/x", "b".repeat(60)), 12345);
        assert!(long.len() <= RUN_NAME_CHARS_MAX, "{long}");
        assert_ne!(long, run_name(&"r".repeat(40), &format!("refs/heads/{}/y", "b".repeat(60)), 12345));
    }

    #[test]
    fn runs_of_different_refs_never_share_a_name() {
        assert_eq!(run_name("shop", "refs/heads/main", 3), "shop-main-3");
        assert_ne!(run_name("shop", "refs/heads/a/b", 1), run_name("shop", "refs/heads/a-b", 1));
        assert_ne!(run_name("shop", "refs/tags/main", 1), run_name("shop", "refs/heads/main", 1));
    }
}
