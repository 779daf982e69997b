//! Brings a repository of actions into the job: an archive over HTTP from our own server, unpacked so that no
//! path of it leaves its directory. Which repositories there are and where they come from, the server knows.

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use std::io::{Read, Seek, Write};
use std::path::{Component, Path};
use std::time::Duration;
use tokio::net::TcpStream;

/// The largest published actions have some hundred megabytes.
const ARCHIVE_BYTES_MAX: u64 = 512 * 1024 * 1024;
const UNPACKED_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// The server may have to fetch it from elsewhere first.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// A job's file with all its contexts; it is an object's content, so it is never larger.
const SMALL_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a refusal says so, at most: it is one line in a log.
const REASON_BYTES_MAX: usize = 4 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{0}` is no address that a job can fetch from; it begins with http://")]
    Address(String),
    #[error("{url} does not answer")]
    Connect {
        url: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{url} did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent { url: String },
    #[error("{reason} ({url} answered {status})")]
    Refused { url: String, status: u16, reason: String },
    #[error("the archive has more than {} MiB", ARCHIVE_BYTES_MAX / 1024 / 1024)]
    TooLarge,
    #[error("its files have more than {} MiB", UNPACKED_BYTES_MAX / 1024 / 1024)]
    TooMuch,
    #[error("cannot unpack it")]
    Unpack(#[source] std::io::Error),
    #[error("the archive names `{0}`, which leaves its directory")]
    Outside(String),
}

impl Error {
    /// Whether the same question may be answered better in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Silent { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

/// Fetches and unpacks; what the server says the archive is of comes back.
pub async fn archive(url: &str, token: &str, directory: &Path) -> Result<String, Error> {
    let silent = |_| Error::Silent { url: url.to_owned() };
    let (file, sha) =
        tokio::time::timeout(ANSWER_WITHIN, download(url, token, directory)).await.map_err(silent)??;
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || unpack(flate2::read::GzDecoder::new(file), &directory))
        .await
        .map_err(|it| Error::Unpack(std::io::Error::other(it)))??;
    Ok(sha)
}

/// An answer, and the connection that it comes over.
struct Answer {
    response: hyper::Response<hyper::body::Incoming>,
    connection: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

async fn get(url: &str, token: &str) -> Result<Answer, Error> {
    send(hyper::Method::GET, url, token, "text/plain", Vec::new()).await
}

/// An answer that comes bit by bit.
pub async fn post(url: &str, token: &str, kind: &str, body: Vec<u8>) -> Result<Pieces, Error> {
    let answer = send(hyper::Method::POST, url, token, kind, body).await?;
    Ok(Pieces { url: url.to_owned(), answer })
}

pub struct Pieces {
    url: String,
    answer: Answer,
}

impl Pieces {
    /// The next piece; `None` at the end. May be dropped and asked again.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, Error> {
        loop {
            match self.answer.response.body_mut().frame().await {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Error::Connect { url: self.url.clone(), source: error.into() });
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// A connection that speaks whatever the other side does there.
pub async fn upgrade(url: &str, token: &str) -> Result<TokioIo<hyper::upgrade::Upgraded>, Error> {
    let connect = |source| Error::Connect { url: url.to_owned(), source };
    let (authority, path) = address(url)?;
    let stream = TcpStream::connect(with_port(authority)).await.map_err(|it| connect(it.into()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|it| connect(it.into()))?;
    tokio::spawn(connection.with_upgrades());
    let request = hyper::Request::builder()
        .method(hyper::Method::POST)
        .uri(format!("/{path}"))
        .header("host", authority)
        .header("authorization", format!("Bearer {token}"))
        .header("connection", "Upgrade")
        .header("upgrade", "tcp")
        .body(Full::new(bytes::Bytes::new()))
        .map_err(|_| Error::Address(url.to_owned()))?;
    let response = sender.send_request(request).await.map_err(|it| connect(it.into()))?;
    if response.status() != hyper::StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map(|it| it.to_bytes()).unwrap_or_default();
        let reason = String::from_utf8_lossy(&body[..body.len().min(REASON_BYTES_MAX)]).trim().to_owned();
        return Err(Error::Refused { url: url.to_owned(), status, reason });
    }
    Ok(TokioIo::new(hyper::upgrade::on(response).await.map_err(|it| connect(it.into()))?))
}

/// Host and port, and the path without its first slash.
fn address(url: &str) -> Result<(&str, &str), Error> {
    let rest = url.strip_prefix("http://").and_then(|it| it.split_once('/'));
    rest.ok_or_else(|| Error::Address(url.to_owned()))
}

fn with_port(authority: &str) -> String {
    if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") }
}

async fn send(
    method: hyper::Method,
    url: &str,
    token: &str,
    kind: &str,
    body: Vec<u8>,
) -> Result<Answer, Error> {
    let connect = |source| Error::Connect { url: url.to_owned(), source };
    let (authority, path) = address(url)?;
    let stream = TcpStream::connect(with_port(authority)).await.map_err(|it| connect(it.into()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|it| connect(it.into()))?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(format!("/{path}"))
        .header("host", authority)
        .header("authorization", format!("Bearer {token}"))
        .header("user-agent", "naru")
        .header("content-type", kind)
        .body(Full::new(bytes::Bytes::from(body)))
        .map_err(|_| Error::Address(url.to_owned()))?;
    let response = sender.send_request(request).await.map_err(|it| connect(it.into()))?;
    Ok(Answer { response, connection })
}

/// A small answer whole, with its status.
pub async fn small(url: &str, token: &str) -> Result<(u16, bytes::Bytes), Error> {
    let mut answer = get(url, token).await?;
    let status = answer.response.status().as_u16();
    let body = http_body_util::Limited::new(answer.response.body_mut(), SMALL_BYTES_MAX).collect().await;
    let body = body.map_err(|source| Error::Connect { url: url.to_owned(), source })?;
    Ok((status, body.to_bytes()))
}

async fn download(url: &str, token: &str, directory: &Path) -> Result<(std::fs::File, String), Error> {
    let connect = |source| Error::Connect { url: url.to_owned(), source };
    let mut answer = get(url, token).await?;
    let response = &mut answer.response;
    let status = response.status();
    let sha = response.headers().get("x-naru-sha").and_then(|it| it.to_str().ok()).unwrap_or_default();
    let sha = sha.to_owned();
    let body = response.body_mut();
    // Beside what comes of it: an image need not have a /tmp.
    std::fs::create_dir_all(directory).map_err(Error::Unpack)?;
    let mut file = tempfile::tempfile_in(directory).map_err(Error::Unpack)?;
    let mut reason = Vec::new();
    let mut count = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|it| connect(it.into()))?;
        let Some(data) = frame.data_ref() else { continue };
        if !status.is_success() {
            reason.extend_from_slice(&data[..data.len().min(REASON_BYTES_MAX - reason.len())]);
            continue;
        }
        count += data.len() as u64;
        if count > ARCHIVE_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        file.write_all(data).map_err(Error::Unpack)?;
    }
    if !status.is_success() {
        let reason = String::from_utf8_lossy(&reason).trim().to_owned();
        return Err(Error::Refused { url: url.to_owned(), status: status.as_u16(), reason });
    }
    file.rewind().map_err(Error::Unpack)?;
    Ok((file, sha))
}

/// Unpacks a tar stream; every name in it must stay within the directory.
pub fn unpack(archive: impl Read, directory: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(directory).map_err(Error::Unpack)?;
    let mut archive = tar::Archive::new(archive);
    let mut count = 0u64;
    for entry in archive.entries().map_err(Error::Unpack)? {
        let mut entry = entry.map_err(Error::Unpack)?;
        // What git adds about the commit is no file.
        if matches!(entry.header().entry_type(), tar::EntryType::XGlobalHeader) {
            continue;
        }
        let path = entry.path().map_err(Error::Unpack)?.into_owned();
        let outside = || Error::Outside(path.display().to_string());
        if !path.components().all(|it| matches!(it, Component::Normal(_) | Component::CurDir)) {
            return Err(outside());
        }
        count = count.saturating_add(entry.header().size().map_err(Error::Unpack)?);
        if count > UNPACKED_BYTES_MAX {
            return Err(Error::TooMuch);
        }
        // It also refuses to write through a link that leads out.
        if !entry.unpack_in(directory).map_err(Error::Unpack)? {
            return Err(outside());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            // Raw, because the builder itself refuses bad names.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            let data = if kind.is_symlink() {
                header.set_link_name(content).unwrap();
                ""
            } else {
                content
            };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn no_path_of_an_archive_leaves_its_directory() {
        use tar::EntryType::{Regular, Symlink};
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("in");
        unpack(tar_of(&[("a/b", Regular, "x")]).as_slice(), &directory).unwrap();
        assert_eq!(std::fs::read(directory.join("a/b")).unwrap(), b"x");
        for entries in [
            vec![("../out", Regular, "x")],
            vec![("/out", Regular, "x")],
            vec![("link", Symlink, ".."), ("link/out", Regular, "x")],
        ] {
            unpack(tar_of(&entries).as_slice(), &directory).unwrap_err();
            assert!(!root.path().join("out").exists() && !Path::new("/out").exists(), "{entries:?}");
        }
    }
}
