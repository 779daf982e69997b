//! The daemon's HTTP side as a build client uses it: contexts up through the registry, events and blobs
//! down.

use crate::cli::Global;
use crate::connection;
use crate::error::{Context, Error, Result};
use futures::{Stream, StreamExt, TryStreamExt};
use naru_builder::{CONTEXTS_REPOSITORY, Event};
use naru_image::{Digest, Hashing};
use std::io::{Read, Seek, Write};
use tokio::io::AsyncBufReadExt;

pub struct Remote {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Remote {
    pub fn new(global: &Global) -> Result<Self> {
        let path = connection::push_token_path(&global.data_dir);
        let base = connection::endpoints(global)?.http;
        let token = std::fs::read_to_string(&path).context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { http: reqwest::Client::new(), base, token: token.trim().to_owned() })
    }

    /// Who uses the daemon's disk, as JSON; after bringing it within its budget if `tidy`.
    pub async fn disk(&self, tidy: bool) -> Result<String> {
        let url = format!("{}/disk", self.base);
        let request = if tidy { self.http.post(url) } else { self.http.get(url) };
        let answer = request.bearer_auth(&self.token).send().await;
        let answer = answer.context(|| self.silent())?;
        let status = answer.status();
        let text = answer.text().await.context(|| self.silent())?;
        match status.is_success() {
            true => Ok(text),
            false => Err(Error::new(format!("the daemon answers {status}: {}", text.trim()))),
        }
    }

    /// What the daemon says about an image.
    pub async fn about_image(&self, what: &str, image: &str, more: &str) -> Result<String> {
        let url = format!("{}/images/{what}?image={}{more}", self.base, naru_objects::percent_encode(image));
        let answer = self.http.get(url).bearer_auth(&self.token).send().await.context(|| self.silent())?;
        let status = answer.status();
        let text = answer.text().await.context(|| self.silent())?;
        match status.is_success() {
            true => Ok(text),
            false => Err(Error::new(text.trim().to_owned())),
        }
    }

    /// Joins images under a name and returns the index's digest.
    pub async fn create_index(&self, name: &str, images: &[String], push: bool) -> Result<String> {
        let url = format!("{}/images/index", self.base);
        let order = serde_json::json!({"name": name, "images": images, "push": push});
        let sent = self.http.post(url).bearer_auth(&self.token).json(&order).send().await;
        let answer = sent.context(|| self.silent())?;
        let status = answer.status();
        let text = answer.text().await.context(|| self.silent())?;
        match status.is_success() {
            true => Ok(text.trim().to_owned()),
            false => Err(Error::new(text.trim().to_owned())),
        }
    }

    /// Brings an archive into the daemon's store, unless it is there, and returns its digest.
    pub async fn upload(&self, mut archive: tempfile::SpooledTempFile) -> Result<String> {
        archive.rewind()?;
        let mut hashing = Hashing::new(&mut archive);
        let size = std::io::copy(&mut hashing, &mut std::io::sink())?;
        let (_, digest, _) = hashing.finish();
        let blob = format!("{}/v2/{CONTEXTS_REPOSITORY}/blobs/{digest}", self.base);
        let known = self.http.head(&blob).bearer_auth(&self.token).send().await.context(|| self.silent())?;
        if known.status().is_success() {
            return Ok(digest.to_string());
        }
        archive.rewind()?;
        let body = futures::stream::unfold(archive, |mut archive| async move {
            let mut buffer = vec![0; 256 * 1024];
            match archive.read(&mut buffer) {
                Ok(0) => None,
                Ok(n) => {
                    buffer.truncate(n);
                    Some((Ok::<_, std::io::Error>(buffer), archive))
                }
                Err(error) => Some((Err(error), archive)),
            }
        });
        let url = format!("{}/v2/{CONTEXTS_REPOSITORY}/blobs/uploads/?digest={digest}", self.base);
        let request = self
            .http
            .post(&url)
            .bearer_auth(&self.token)
            .header("content-length", size)
            .body(reqwest::Body::wrap_stream(body));
        let answer = request.send().await.context(|| self.silent())?;
        let status = answer.status();
        if !status.is_success() {
            let why = answer.text().await.unwrap_or_default();
            return Err(Error::new(format!("the daemon does not take the build context: {status} {why}")));
        }
        Ok(digest.to_string())
    }

    fn silent(&self) -> String {
        format!("the daemon at {} does not answer", self.base)
    }

    /// What happens in a build, from its beginning.
    pub async fn events(&self, image: &str) -> Result<impl Stream<Item = Result<Event>> + use<>> {
        let url = format!("{}/builds/{image}/events", self.base);
        let answer = self.http.get(&url).bearer_auth(&self.token).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status).context(|| self.silent())?;
        let reader = tokio_util::io::StreamReader::new(answer.bytes_stream().map_err(std::io::Error::other));
        let lines = tokio_util::codec::FramedRead::new(
            tokio::io::BufReader::new(reader),
            tokio_util::codec::LinesCodec::new_with_max_length(LINE_BYTES_MAX),
        );
        Ok(lines.map(|line| Ok(serde_json::from_str(&line?)?)))
    }

    /// A blob of the daemon's store.
    pub async fn blob(&self, digest: &Digest, to: &mut (dyn Write + Send)) -> Result<()> {
        let url = format!("{}/blobs/{digest}", self.base);
        let answer = self.http.get(&url).bearer_auth(&self.token).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status).context(|| self.silent())?;
        let mut reader =
            tokio_util::io::StreamReader::new(answer.bytes_stream().map_err(std::io::Error::other));
        loop {
            let chunk = reader.fill_buf().await?;
            if chunk.is_empty() {
                return Ok(());
            }
            to.write_all(chunk)?;
            let count = chunk.len();
            reader.consume(count);
        }
    }
}

/// A report of a failed build has a few hundred lines at most.
const LINE_BYTES_MAX: usize = 4 << 20;
