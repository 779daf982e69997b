//! What `ADD` brings from elsewhere: files over HTTP, checked against their digest if one is given, and git
//! repositories at a commit. Both are kept, so that a build that changed nothing fetches nothing it has.
//!
//! The daemon fetches with its own place in the network, so a Dockerfile must not lead it to what only this
//! machine can reach: every address, of every redirect, is looked at first.

use futures::StreamExt;
use naru_image::{Digest, Hashing};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

const BYTES_MAX: u64 = 8 << 30; // of one file; the largest toolchains have a few
const REDIRECTS_MAX: usize = 10; // as browsers and curl
const IDLE_MAX: Duration = Duration::from_secs(60); // without a byte: the server is gone
const GIT_MAX: Duration = Duration::from_secs(900);

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("`{0}` is not an address that can be fetched")]
    Url(String),
    #[error("`{host}` is {address}, which only this machine may reach; a Dockerfile must not")]
    Forbidden { host: String, address: IpAddr },
    #[error("`{url}` answers {status}")]
    Status { url: String, status: u16 },
    #[error("`{0}` leads from one address to the next without end")]
    Redirects(String),
    #[error("cannot fetch `{url}`: {why}")]
    Broken { url: String, why: String },
    #[error("`{0}` is larger than 8 GiB")]
    TooLarge(String),
    #[error("`{url}` has the digest {actual}, not {expected}")]
    Checksum { url: String, expected: Digest, actual: Digest },
    #[error("`{0}` names no file; end the destination with the name that it should have")]
    NoName(String),
    #[error("git cannot fetch `{url}`: {why}")]
    Git { url: String, why: String },
    #[error("cannot keep what was fetched")]
    Io(#[from] io::Error),
}

/// Whether a source of `ADD` is elsewhere.
pub fn is_remote(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://") || is_git(source)
}

/// `git@host:path`, `git://`, `ssh://`, or an HTTP address of a repository: it ends in `.git`, or says what
/// to check out after a `#`.
pub fn is_git(source: &str) -> bool {
    if source.starts_with("git@") || source.starts_with("git://") || source.starts_with("ssh://") {
        return true;
    }
    let is_http = source.starts_with("http://") || source.starts_with("https://");
    let address = source.split(['#', '?']).next().unwrap_or(source);
    is_http && address.ends_with(".git")
}

/// What a fetched file was called, and when it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    url: String,
    digest: Digest,
    #[serde(default)]
    etag: Option<String>,
    #[serde(default)]
    modified: Option<String>,
}

/// A file that was fetched.
pub struct Fetched {
    /// Holds the file alone, under its name.
    pub directory: tempfile::TempDir,
    pub name: String,
}

/// Fetches and keeps; cheap to clone.
#[derive(Debug, Clone)]
pub struct Fetcher {
    dir: PathBuf,
    /// Tests serve on this machine.
    may_reach_this_machine: bool,
}

impl Fetcher {
    pub fn open(dir: PathBuf, may_reach_this_machine: bool) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, may_reach_this_machine })
    }

    /// A file over HTTP. `name` is what it is called if the address does not say.
    pub async fn file(&self, url: &str, checksum: Option<&Digest>) -> Result<Fetched, FetchError> {
        let key = Digest::of(url);
        let record = self.dir.join(format!("{}.json", key.hex()));
        let content = |digest: &Digest| self.dir.join(digest.hex());
        let known: Option<Known> = fs::read(&record).ok().and_then(|it| serde_json::from_slice(&it).ok());
        let known = known.filter(|it| content(&it.digest).is_file());
        if let Some(checksum) = checksum
            && content(checksum).is_file()
        {
            let modified = known.filter(|it| it.digest == *checksum).and_then(|it| it.modified);
            return self.give(url, &content(checksum), modified.as_deref());
        }
        let answer = self.ask(url, known.as_ref()).await?;
        let Some((response, modified, etag)) = answer else {
            let known = known.expect("only what is known is answered with `not modified`");
            return match checksum.filter(|it| **it != known.digest) {
                Some(expected) => Err(FetchError::Checksum {
                    url: url.to_owned(),
                    expected: expected.clone(),
                    actual: known.digest,
                }),
                None => self.give(url, &content(&known.digest), known.modified.as_deref()),
            };
        };
        let mut file = Hashing::new(tempfile::NamedTempFile::new_in(&self.dir)?);
        let mut body = response.bytes_stream();
        let broken = |why: String| FetchError::Broken { url: url.to_owned(), why };
        while let Some(chunk) = tokio::time::timeout(IDLE_MAX, body.next())
            .await
            .map_err(|_| broken("nothing came for a minute".into()))?
        {
            file.write_all(&chunk.map_err(|it| broken(it.without_url().to_string()))?)?;
            if file.bytes() > BYTES_MAX {
                return Err(FetchError::TooLarge(url.to_owned()));
            }
        }
        let (file, digest, _) = file.finish();
        if let Some(expected) = checksum.filter(|it| **it != digest) {
            return Err(FetchError::Checksum {
                url: url.to_owned(),
                expected: expected.clone(),
                actual: digest,
            });
        }
        file.persist(content(&digest)).map_err(|it| it.error)?;
        let known = Known { url: url.to_owned(), digest: digest.clone(), etag, modified: modified.clone() };
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        serde_json::to_writer(&mut file, &known).map_err(io::Error::from)?;
        file.persist(&record).map_err(|it| it.error)?;
        self.give(url, &content(&digest), modified.as_deref())
    }

    /// A view of one file, with the time that the server said.
    fn give(&self, url: &str, content: &Path, modified: Option<&str>) -> Result<Fetched, FetchError> {
        let path = url.split(['?', '#']).next().unwrap_or(url);
        let path = path.split_once("://").map_or(path, |it| it.1);
        let name = match path.rsplit_once('/') {
            Some((_, name)) if !name.is_empty() && name != "." && name != ".." => name.to_owned(),
            _ => String::new(),
        };
        let directory = tempfile::Builder::new().prefix("file-").tempdir_in(&self.dir)?;
        let shown = if name.is_empty() { "download" } else { &name };
        let to = directory.path().join(shown);
        fs::copy(content, &to)?;
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let time = modified.and_then(http_date).unwrap_or(0);
        let at = std::time::UNIX_EPOCH + Duration::from_secs(u64::try_from(time).unwrap_or(0));
        fs::File::options().write(true).open(&to)?.set_modified(at)?;
        Ok(Fetched { directory, name })
    }

    /// `None`: what is known is still so.
    async fn ask(
        &self,
        url: &str,
        known: Option<&Known>,
    ) -> Result<Option<(reqwest::Response, Option<String>, Option<String>)>, FetchError> {
        let bad = || FetchError::Url(url.to_owned());
        let mut at = reqwest::Url::parse(url).map_err(|_| bad())?;
        for _ in 0..=REDIRECTS_MAX {
            if !matches!(at.scheme(), "http" | "https") {
                return Err(bad());
            }
            let host = at.host_str().ok_or_else(bad)?.to_owned();
            let addresses = self.addresses(&host, at.port_or_known_default().ok_or_else(bad)?).await?;
            let client = reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .resolve_to_addrs(host.trim_matches(['[', ']']), &addresses)
                .connect_timeout(IDLE_MAX)
                .no_proxy()
                .build()
                .map_err(|it| FetchError::Broken { url: url.into(), why: it.to_string() })?;
            let mut request = client.get(at.clone());
            if let Some(etag) = known.and_then(|it| it.etag.as_ref()) {
                request = request.header("if-none-match", etag);
            }
            let response = request.send().await.map_err(|it| FetchError::Broken {
                url: url.to_owned(),
                why: crate::outcome::chain(&it.without_url()),
            })?;
            let header =
                |name: &str| response.headers().get(name).and_then(|it| it.to_str().ok()).map(str::to_owned);
            let status = response.status();
            if status.is_redirection() && status.as_u16() != 304 {
                let next = header("location").ok_or_else(bad)?;
                at = at.join(&next).map_err(|_| bad())?;
                continue;
            }
            return match status.as_u16() {
                304 if known.is_some() => Ok(None),
                _ if status.is_success() => {
                    let (modified, etag) = (header("last-modified"), header("etag"));
                    Ok(Some((response, modified, etag)))
                }
                status => Err(FetchError::Status { url: url.to_owned(), status }),
            };
        }
        Err(FetchError::Redirects(url.to_owned()))
    }

    /// Where a host is, if a Dockerfile may lead there.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, FetchError> {
        let name = host.trim_matches(['[', ']']).to_owned();
        let found = tokio::net::lookup_host((name.as_str(), port)).await;
        let found: Vec<SocketAddr> =
            found.map_err(|it| FetchError::Broken { url: host.to_owned(), why: it.to_string() })?.collect();
        match found.iter().map(SocketAddr::ip).find(|it| is_own(*it) && !self.may_reach_this_machine) {
            Some(address) => Err(FetchError::Forbidden { host: host.to_owned(), address }),
            None => Ok(found),
        }
    }

    /// A git repository's files at what `#ref:directory` says, and the commit.
    pub async fn git(
        &self,
        source: &str,
        keep_git_dir: bool,
    ) -> Result<(tempfile::TempDir, PathBuf), FetchError> {
        let (address, fragment) = source.split_once('#').unwrap_or((source, ""));
        let (wanted, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
        let wanted = if wanted.is_empty() { "HEAD" } else { wanted };
        let failed = |why: String| FetchError::Git { url: address.to_owned(), why };
        if address.starts_with('-') || wanted.starts_with('-') || crate::dialect::leaves_context(directory) {
            return Err(FetchError::Url(source.to_owned()));
        }
        self.check_git_host(address).await?;
        let tree = tempfile::Builder::new().prefix("git-").tempdir_in(&self.dir)?;
        // Whatever this machine's configuration says: no helper, no hook, no local path, no question.
        let git = async |arguments: &[&str]| {
            let mut command = tokio::process::Command::new("git");
            command
                .args(["-c", "protocol.file.allow=never", "-c", "protocol.ext.allow=never"])
                .args(["-c", "core.hooksPath=/dev/null", "-c", "credential.helper="])
                .args(["-c", "http.followRedirects=false", "-C"])
                .arg(tree.path())
                .args(arguments)
                .env("GIT_TERMINAL_PROMPT", "0")
                .env("GIT_CONFIG_NOSYSTEM", "1")
                .env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oStrictHostKeyChecking=accept-new")
                .stdin(std::process::Stdio::null())
                .kill_on_drop(true);
            let output = tokio::time::timeout(GIT_MAX, command.output())
                .await
                .map_err(|_| failed("it took longer than 15 minutes".into()))?
                .map_err(|it| failed(it.to_string()))?;
            match output.status.success() {
                true => Ok(()),
                false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
            }
        };
        git(&["init", "--quiet"]).await?;
        git(&["fetch", "--quiet", "--depth=1", "--", address, wanted]).await?;
        git(&["checkout", "--quiet", "--detach", "FETCH_HEAD"]).await?;
        let modules = fs::read_to_string(tree.path().join(".gitmodules")).unwrap_or_default();
        if !modules.is_empty() {
            let urls =
                modules.lines().filter_map(|it| it.trim().strip_prefix("url")?.trim().strip_prefix('='));
            for url in urls.map(str::trim).filter(|it| !it.starts_with("./") && !it.starts_with("../")) {
                self.check_git_host(url).await?;
            }
            git(&["submodule", "update", "--quiet", "--init", "--depth=1"]).await?;
            for module in
                modules.lines().filter_map(|it| it.trim().strip_prefix("path")?.trim().strip_prefix('='))
            {
                if tree.path().join(module.trim()).join(".gitmodules").exists() {
                    return Err(failed(format!("its submodule {} has submodules of its own", module.trim())));
                }
            }
        }
        if !keep_git_dir {
            fs::remove_dir_all(tree.path().join(".git"))?;
        }
        Ok((tree, PathBuf::from(directory)))
    }

    async fn check_git_host(&self, address: &str) -> Result<(), FetchError> {
        let rest = address.split_once("://").map_or(address, |it| it.1);
        let host = rest.split(['/']).next().unwrap_or_default();
        let host = host.rsplit_once('@').map_or(host, |it| it.1);
        let host = match host.strip_prefix('[').and_then(|it| it.split_once(']')) {
            Some((literal, _)) => literal,
            None => host.split(':').next().unwrap_or(host),
        };
        if host.is_empty() {
            return Err(FetchError::Url(address.to_owned()));
        }
        self.addresses(host, 0).await.map(|_| ())
    }
}

/// Loopback, link-local (where clouds keep a machine's credentials), unspecified, multicast.
fn is_own(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => {
            it.is_loopback()
                || it.is_link_local()
                || it.is_unspecified()
                || it.is_multicast()
                || it.is_broadcast()
        }
        IpAddr::V6(it) => match it.to_ipv4_mapped() {
            Some(it) => is_own(it.into()),
            None => {
                it.is_loopback() || it.is_unspecified() || it.is_multicast() || it.is_unicast_link_local()
            }
        },
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in seconds.
fn http_date(text: &str) -> Option<i64> {
    let text = text.trim().strip_suffix(" GMT")?;
    let at = jiff::civil::DateTime::strptime("%a, %d %b %Y %H:%M:%S", text).ok()?;
    Some(at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_elsewhere_are_told_apart() {
        for (text, remote, git) in [
            ("https://example.com/a.tar.gz", true, false),
            ("https://example.com/a.git", true, true),
            ("https://example.com/a.git#v1:dir", true, true),
            ("git@example.com:a/b.git", true, true),
            ("ssh://git@example.com/a", true, true),
            ("src/https", false, false),
        ] {
            assert_eq!((is_remote(text), is_git(text)), (remote, git), "{text}");
        }
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
    }

    #[test]
    fn addresses_of_this_machine_are_not_for_dockerfiles() {
        for (text, own) in [
            ("127.0.0.1", true),
            ("169.254.169.254", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("fe80::1", true),
            ("0.0.0.0", true),
            ("10.0.0.1", false),
            ("93.184.216.34", false),
            ("2606:2800::1", false),
        ] {
            assert_eq!(is_own(text.parse().unwrap()), own, "{text}");
        }
    }

    #[tokio::test]
    async fn names_that_lead_to_this_machine_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fetcher = Fetcher::open(dir.path().join("x"), false).unwrap();
        for url in ["http://127.0.0.1:1/x", "http://localhost:1/x", "http://169.254.169.254/latest/meta-data"]
        {
            let error = fetcher.file(url, None).await.err().unwrap();
            assert!(matches!(error, FetchError::Forbidden { .. }), "{error}");
        }
        for url in ["http://127.0.0.1:1/x.git", "git@localhost:x.git", "ssh://git@[::1]:22/x.git"] {
            assert!(matches!(fetcher.git(url, false).await, Err(FetchError::Forbidden { .. })), "{url}");
        }
    }
}
