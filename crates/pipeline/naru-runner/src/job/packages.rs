//! Where a packaged step's files are: in the work tree, in a directory, at the server; and what its manifest
//! says. Fetched before the first step, so that a job which lacks one does nothing by halves.

use super::actions::DEPTH_MAX;
use super::environment::ActionFacts;
use super::{JobRun, fetch};
use naru_plan::{Action, Package, PackageBody, Step};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// So many repositories of actions may one job fetch: composites may name ever more.
const REPOSITORIES_MAX: usize = 200;

const FETCH_ATTEMPTS_MAX: u32 = 5;
const FETCH_PAUSE: Duration = Duration::from_millis(500);

/// How a step names its package.
#[derive(Debug, Clone, PartialEq)]
pub enum Uses {
    /// Relative to the workspace.
    Local(String),
    Remote(Remote),
    Image(String),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Remote {
    pub owner: String,
    pub repository: String,
    /// Within the repository; may be empty.
    pub path: String,
    pub git_ref: String,
}

impl Uses {
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(image) = text.strip_prefix("docker://") {
            return Ok(Self::Image(image.to_owned()));
        }
        if text == "." || text.starts_with("./") || text.starts_with("../") {
            return Ok(Self::Local(text.to_owned()));
        }
        let wrong = || {
            format!(
                "`{text}` names no action; write `owner/repository@ref`, `owner/repository/path@ref`, `./path` or `docker://image`"
            )
        };
        let (name, git_ref) = text.split_once('@').ok_or_else(wrong)?;
        let mut parts = name.splitn(3, '/');
        let owner = parts.next().unwrap_or_default();
        let repository = parts.next().unwrap_or_default();
        let path = parts.next().unwrap_or_default();
        let plain = |it: &str| !matches!(it, "" | "." | "..") && !it.contains('\0');
        if !plain(owner) || !plain(repository) || !git_ref.split('/').all(plain) {
            return Err(wrong());
        }
        if !path.is_empty() && !path.split('/').all(plain) {
            return Err(wrong());
        }
        Ok(Self::Remote(Remote {
            owner: owner.into(),
            repository: repository.into(),
            path: path.into(),
            git_ref: git_ref.into(),
        }))
    }
}

/// A package that is on disk.
#[derive(Clone)]
pub struct Loaded {
    pub package: Package,
    pub directory: PathBuf,
    pub facts: ActionFacts,
}

impl JobRun<'_> {
    /// Fetches every repository that the job's steps name, and those that their composites name. False if
    /// one cannot be had: then nothing of the job runs, as on GitHub.
    pub(super) async fn fetch_actions(&mut self, steps: &[Step]) -> bool {
        let mut open: Vec<(String, usize)> = uses_of(steps).map(|it| (it.to_owned(), 0)).collect();
        let mut seen = std::collections::BTreeSet::new();
        while let Some((text, depth)) = open.pop() {
            if !seen.insert(text.clone()) {
                continue;
            }
            // What is wrong with a name is told where it is used.
            let Ok(Uses::Remote(remote)) = Uses::parse(&text) else { continue };
            if let Err(error) = self.fetch_action(&remote).await {
                self.log.remark("error", &format!("the action `{text}` cannot be had: {error}"));
                return false;
            }
            if depth < DEPTH_MAX
                && let Ok(loaded) = self.load(&Uses::Remote(remote))
                && let PackageBody::Composite { steps } = &loaded.package.body
            {
                open.extend(uses_of(steps).map(|it| (it.to_owned(), depth + 1)));
            }
        }
        true
    }

    pub(super) async fn fetch_action(&mut self, remote: &Remote) -> Result<(), String> {
        let Remote { owner, repository, git_ref, .. } = remote;
        let key = format!("{owner}/{repository}@{git_ref}");
        if self.actions.repositories.contains_key(&key) {
            return Ok(());
        }
        if self.actions.repositories.len() == REPOSITORIES_MAX {
            return Err(format!("the job names more than {REPOSITORIES_MAX} repositories of actions"));
        }
        for directory in &self.file.actions_dirs {
            let named = [format!("{repository}@{git_ref}"), repository.clone()];
            if let Some(found) = named.iter().map(|it| directory.join(owner).join(it)).find(|it| it.is_dir())
            {
                self.log.say(&format!("action {key} from {}", found.display()));
                self.actions.repositories.insert(key, found);
                return Ok(());
            }
        }
        let directory = self.places.actions.join(owner).join(repository).join(git_ref);
        let sha = self.fetch_files(owner, repository, git_ref, &directory).await?;
        self.log.say(&format!("action {key} is {sha}"));
        self.actions.repositories.insert(key, directory);
        Ok(())
    }

    /// The files of a repository at a ref, from the server; which commit that is comes back.
    pub(super) async fn fetch_files(
        &mut self,
        owner: &str,
        repository: &str,
        git_ref: &str,
        directory: &Path,
    ) -> Result<String, String> {
        let server = match self.file.actions_url.as_str() {
            "" => self.contexts.get("github").and_then(|it| it["server_url"].as_str()).unwrap_or_default(),
            url => url,
        };
        if server.is_empty() {
            return Err("there is no server that has actions; name a directory of them".into());
        }
        let url = format!(
            "{server}/_apis/actions/{}/{}/{}",
            naru_objects::percent_encode(owner),
            naru_objects::percent_encode(repository),
            naru_objects::percent_encode(git_ref)
        );
        let token = self.file.services.get("ACTIONS_RUNTIME_TOKEN").cloned().unwrap_or_default();
        let mut attempt = 1;
        loop {
            match fetch::archive(&url, &token, directory).await {
                Ok(sha) => return Ok(sha),
                Err(error) if error.is_passing() && attempt < FETCH_ATTEMPTS_MAX => {
                    tokio::time::sleep(FETCH_PAUSE * attempt).await;
                    attempt += 1;
                }
                Err(error) => return Err(chain(&error)),
            }
        }
    }

    /// Reads the manifest of a package that is on disk.
    pub(super) fn load(&mut self, uses: &Uses) -> Result<Loaded, String> {
        let (directory, facts, shown) = match uses {
            Uses::Local(path) => {
                let directory = self.places.workspace.join(path.strip_prefix("./").unwrap_or(path));
                (directory, ActionFacts::default(), path.clone())
            }
            Uses::Remote(it) => {
                let key = format!("{}/{}@{}", it.owner, it.repository, it.git_ref);
                let Some(root) = self.actions.repositories.get(&key) else {
                    return Err(format!("`{key}` was not fetched (this is a bug in Naru)"));
                };
                let repository = format!("{}/{}", it.owner, it.repository);
                let facts = ActionFacts {
                    path: String::new(),
                    repository: repository.clone(),
                    git_ref: it.git_ref.clone(),
                };
                (root.join(&it.path), facts, format!("{repository}/{}", it.path))
            }
            Uses::Image(image) => {
                let body = a_container(format!("docker://{image}"));
                let package = Package { body, ..Package::default() };
                return Ok(Loaded { package, directory: PathBuf::new(), facts: ActionFacts::default() });
            }
        };
        let shown = shown.trim_end_matches('/');
        let package = self.manifest(&directory, shown)?;
        let facts = ActionFacts { path: directory.display().to_string(), ..facts };
        Ok(Loaded { package, directory, facts })
    }

    fn manifest(&mut self, directory: &Path, shown: &str) -> Result<Package, String> {
        for name in self.dialect.package_files {
            let path = directory.join(name);
            let source = match std::fs::read_to_string(&path) {
                Ok(source) => source,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
            };
            let file = format!("{shown}/{name}");
            let (package, findings) = (self.dialect.package)(&file, &source);
            for finding in findings {
                if finding.is_error() || self.log.debug {
                    self.log.say(&finding.render(&file));
                }
            }
            return package.ok_or_else(|| format!("{file} cannot be honoured"));
        }
        if directory.join("Dockerfile").is_file() {
            return Ok(Package { body: a_container("Dockerfile".into()), ..Package::default() });
        }
        let hint =
            if shown.starts_with('.') { "; a local action needs actions/checkout before it" } else { "" };
        Err(format!("there is no action.yml, action.yaml or Dockerfile in {}{hint}", directory.display()))
    }
}

/// A container that is nothing but its image.
fn a_container(image: String) -> PackageBody {
    PackageBody::Container {
        image,
        entrypoint: None,
        pre_entrypoint: None,
        pre_condition: None,
        post_entrypoint: None,
        post_condition: None,
        args: Vec::new(),
        env: Vec::new(),
    }
}

fn uses_of(steps: &[Step]) -> impl Iterator<Item = &str> {
    steps.iter().rev().filter_map(|it| match &it.action {
        Action::Uses { uses, .. } => Some(uses.as_str()),
        _ => None,
    })
}

/// An error with everything that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(it) = source {
        text.push_str(&format!(": {it}"));
        source = it.source();
    }
    text
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_an_action_is_read() {
        let remote = |owner: &str, repository: &str, path: &str, git_ref: &str| {
            Ok(Uses::Remote(Remote {
                owner: owner.into(),
                repository: repository.into(),
                path: path.into(),
                git_ref: git_ref.into(),
            }))
        };
        assert_eq!(Uses::parse("actions/cache@v4"), remote("actions", "cache", "", "v4"));
        assert_eq!(Uses::parse("o/r/a/b@feature/x"), remote("o", "r", "a/b", "feature/x"));
        assert_eq!(Uses::parse("./x"), Ok(Uses::Local("./x".into())));
        assert_eq!(Uses::parse("docker://alpine:3"), Ok(Uses::Image("alpine:3".into())));
        for bad in ["cache", "o/r", "o@v1", "../r@x/../y", "o/..@v1", "o/r/../x@v1", "o/r@../x", "o/r@"] {
            let parsed = Uses::parse(bad);
            assert!(parsed.is_err() || matches!(parsed, Ok(Uses::Local(_))), "{bad}: {parsed:?}");
        }
    }
}
