//! Signed links: whoever has one may read or write one blob for a while, without a token. They speak the
//! part of Azure's Blob REST interface that the official clients use: Put Blob, Put Block, Put Block List,
//! and Get Blob with ranges.

use crate::artifacts::{Artifact, ZIP};
use crate::problem::{Kind, Result, problem};
use crate::{Inner, Shared};
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use naru_objects::percent_encode;
use std::collections::HashMap;
use std::ops::Range;

/// How long a link works: an upload of ten gigabytes over a slow network, and no more.
const UPLOAD_LIFE: SignedDuration = SignedDuration::from_hours(6);
const DOWNLOAD_LIFE: SignedDuration = SignedDuration::from_hours(1);

/// A list of 50,000 names of 64 bytes, with its tags.
const BLOCK_LIST_BYTES_MAX: usize = 8 << 20;

/// The version of the interface that the answers name.
const VERSION: &str = "2020-10-02";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    Read,
    Write,
}

/// What a link opens.
pub struct Link {
    blob: String,
    right: Right,
    media_type: String,
    /// The name that a download gets; empty is none.
    file_name: String,
}

impl Link {
    pub fn upload(blob: &str) -> Self {
        Self::download(blob, Right::Write)
    }

    pub fn download(blob: &str, right: Right) -> Self {
        let media_type = "application/octet-stream".into();
        Self { blob: blob.into(), right, media_type, file_name: String::new() }
    }

    /// An artifact that was uploaded as a single file keeps its name; all others are archives.
    pub fn of_artifact(it: &Artifact) -> Self {
        let file_name = if it.media_type == ZIP { format!("{}.zip", it.name) } else { it.name.clone() };
        Self { blob: it.blob.clone(), right: Right::Read, media_type: it.media_type.clone(), file_name }
    }

    fn life(&self) -> SignedDuration {
        match self.right {
            Right::Read => DOWNLOAD_LIFE,
            Right::Write => UPLOAD_LIFE,
        }
    }

    fn letter(&self) -> &'static str {
        match self.right {
            Right::Read => "r",
            Right::Write => "w",
        }
    }

    /// What is signed: every part of the link that means something.
    fn text(&self, expires: &str) -> String {
        [self.blob.as_str(), self.letter(), expires, self.media_type.as_str(), self.file_name.as_str()]
            .join("\n")
    }
}

const PURPOSE: &str = "blob link";

impl Inner {
    pub fn link(&self, base: &str, link: &Link, now: Timestamp) -> String {
        let expires = (now + link.life()).as_second().to_string();
        let signature = self.key.sign_text(PURPOSE, &link.text(&expires));
        format!(
            "{base}/_apis/results/blobs/{}?sp={}&se={expires}&rsct={}&rscd={}&sig={signature}",
            link.blob,
            link.letter(),
            percent_encode(&link.media_type),
            percent_encode(&link.file_name),
        )
    }

    fn opened(&self, blob: String, query: &HashMap<String, String>, now: Timestamp) -> Result<Link> {
        let of = |name: &str| query.get(name).cloned().unwrap_or_default();
        let right = if of("sp") == "w" { Right::Write } else { Right::Read };
        let link = Link { blob, right, media_type: of("rsct"), file_name: of("rscd") };
        let expires = of("se");
        if of("sp") != link.letter() || !self.key.is_signed(PURPOSE, &link.text(&expires), &of("sig")) {
            return Err(problem(Kind::Denied, "the link's signature is not ours"));
        }
        if expires.parse::<i64>().map_or(true, |it| it <= now.as_second()) {
            return Err(problem(Kind::Denied, "the link has expired; ask for a new one"));
        }
        Ok(link)
    }
}

pub async fn handle(
    State(inner): State<Shared>,
    Path(blob): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    request: Request,
) -> Response {
    let answer = async {
        let link = inner.opened(blob, &query, Timestamp::now())?;
        match (request.method(), link.right) {
            (&Method::GET | &Method::HEAD, Right::Read) => {
                let (parts, _) = request.into_parts();
                read(&inner, &link, &parts).await
            }
            (&Method::PUT, Right::Write) => write(&inner, &link, &query, request).await,
            (method, _) => Err(problem(Kind::Denied, format!("this link is not for {method}"))),
        }
    };
    answer.await.unwrap_or_else(|it| it.azure())
}

/// Headers that change what the body means, and that no official client sends.
const NOT_HONOURED: &[&str] = &[
    "content-md5",
    "x-ms-content-crc64",
    "x-ms-structured-body",
    "x-ms-encryption-key",
    "x-ms-copy-source",
    "content-encoding",
];

async fn write(
    inner: &Inner,
    link: &Link,
    query: &HashMap<String, String>,
    request: Request,
) -> Result<Response> {
    let headers = request.headers();
    if let Some(it) = NOT_HONOURED.iter().find(|it| headers.contains_key(**it)) {
        return Err(problem(Kind::Invalid, format!("the header {it} is not honoured here")));
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse().ok());
    match query.get("comp").map(String::as_str) {
        Some("block") => {
            let name = query.get("blockid").filter(|it| !it.is_empty() && it.len() <= 88);
            let name = name.ok_or_else(|| problem(Kind::Invalid, "blockid has 1 to 64 bytes, in base64"))?;
            inner.blobs.put_piece(&link.blob, name, length, request.into_body().into_data_stream()).await?;
        }
        Some("blocklist") => {
            let body = axum::body::to_bytes(request.into_body(), BLOCK_LIST_BYTES_MAX).await;
            let body = body.map_err(|_| problem(Kind::TooLarge, "the block list is too long"))?;
            inner.blobs.put_order(&link.blob, &block_list(&String::from_utf8_lossy(&body))?).await?;
        }
        None => {
            let kind = headers.get("x-ms-blob-type").map(HeaderValue::as_bytes);
            if kind.is_some_and(|it| it != b"BlockBlob") {
                return Err(problem(Kind::Invalid, "only block blobs are kept here"));
            }
            let whole = "whole".to_owned();
            inner.blobs.put_piece(&link.blob, &whole, length, request.into_body().into_data_stream()).await?;
            inner.blobs.put_order(&link.blob, &[whole]).await?;
        }
        Some(it) => return Err(problem(Kind::Invalid, format!("comp={it} is not served here"))),
    }
    let mut response = StatusCode::CREATED.into_response();
    set_facts(response.headers_mut(), link);
    Ok(response)
}

/// The names in a block list, in their order. Its elements hold base64 and nothing else, so that this needs
/// no XML: `<BlockList><Latest>YQ==</Latest>...</BlockList>`.
fn block_list(text: &str) -> Result<Vec<String>> {
    let wrong = || problem(Kind::Invalid, "the block list is not understood");
    let inside = text.split_once("<BlockList").ok_or_else(wrong)?.1;
    let inside = match inside.split_once('>').ok_or_else(wrong)? {
        (open, _) if open.ends_with('/') => "",
        (_, rest) => rest.split_once("</BlockList>").ok_or_else(wrong)?.0,
    };
    let mut names = Vec::new();
    let mut rest = inside.trim();
    while !rest.is_empty() {
        let (tag, after) = rest.strip_prefix('<').and_then(|it| it.split_once('>')).ok_or_else(wrong)?;
        if !matches!(tag, "Latest" | "Uncommitted" | "Committed") {
            return Err(wrong());
        }
        let (name, after) = after.split_once(&format!("</{tag}>")).ok_or_else(wrong)?;
        names.push(name.trim().to_owned());
        rest = after.trim_start();
    }
    Ok(names)
}

async fn read(inner: &Inner, link: &Link, request: &http::request::Parts) -> Result<Response> {
    let order = inner.blobs.order(&link.blob).await?;
    let headers = &request.headers;
    let wanted =
        headers.get("x-ms-range").or_else(|| headers.get(header::RANGE)).and_then(|it| it.to_str().ok());
    let part = wanted.and_then(parse_range).map(|it| it.within(order.bytes)).transpose()?;
    let range = part.clone().unwrap_or(0..order.bytes);
    let body = match request.method == Method::HEAD {
        true => Body::empty(),
        false => Body::from_stream(inner.blobs.read(&link.blob, &order, range.clone())),
    };
    let mut response = Response::new(body);
    if part.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, order.bytes);
        response.headers_mut().insert(header::CONTENT_RANGE, text.parse().expect("digits and slashes"));
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // What a job has uploaded is never shown as a page of ours.
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("content-security-policy", HeaderValue::from_static("sandbox"));
    if let Ok(it) = link.media_type.parse() {
        headers.insert(header::CONTENT_TYPE, it);
    }
    let disposition = match link.file_name.is_empty() {
        true => "attachment".to_owned(),
        false => {
            let ascii: String = link
                .file_name
                .chars()
                .map(|it| if it.is_ascii_graphic() && !"\"\\;".contains(it) { it } else { '_' })
                .collect();
            format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{}", percent_encode(&link.file_name))
        }
    };
    headers.insert(header::CONTENT_DISPOSITION, disposition.parse().expect("escaped above"));
    set_facts(headers, link);
    Ok(response)
}

/// What Azure says with every answer.
fn set_facts(headers: &mut HeaderMap, link: &Link) {
    headers.insert("x-ms-version", HeaderValue::from_static(VERSION));
    headers.insert("x-ms-blob-type", HeaderValue::from_static("BlockBlob"));
    headers.insert("x-ms-request-server-encrypted", HeaderValue::from_static("false"));
    let tag = format!("\"{}\"", link.blob);
    headers.insert(header::ETAG, tag.parse().expect("a blob's id is hexadecimal"));
}

/// `bytes=from-to` as RFC 9110 has it; of several ranges none is honoured, which is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    From(u64, Option<u64>),
    Last(u64),
}

fn parse_range(text: &str) -> Option<Wanted> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    match (from.trim().parse(), to.trim()) {
        (Ok(from), "") => Some(Wanted::From(from, None)),
        (Ok(from), to) => to.parse().ok().filter(|to| from <= *to).map(|to| Wanted::From(from, Some(to))),
        (Err(_), to) if from.is_empty() => to.parse().ok().map(Wanted::Last),
        _ => None,
    }
}

impl Wanted {
    fn within(self, bytes: u64) -> Result<Range<u64>> {
        let range = match self {
            Self::From(from, to) => from..to.map_or(bytes, |it| it.saturating_add(1).min(bytes)),
            Self::Last(count) => bytes.saturating_sub(count)..bytes,
        };
        match range.start < range.end {
            true => Ok(range),
            false => Err(problem(Kind::Range, format!("the blob has {} bytes", bytes))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_lists_are_read_in_their_order() {
        let text = "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?><BlockList><Latest>YQ==</Latest>\n\
                    <Uncommitted>Yg==</Uncommitted><Committed>Yw==</Committed></BlockList>";
        assert_eq!(block_list(text).unwrap(), ["YQ==", "Yg==", "Yw=="]);
        assert!(block_list("<BlockList/>").unwrap().is_empty());
        for bad in
            ["", "<BlockList>", "<BlockList><Other>a</Other></BlockList>", "<BlockList><Latest>a</BlockList>"]
        {
            assert!(block_list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_those_of_http() {
        let of = |text: &str| parse_range(text).map(|it| it.within(100).map_err(|it| it.kind));
        assert_eq!(of("bytes=0-9"), Some(Ok(0..10)));
        assert_eq!(of("bytes=90-"), Some(Ok(90..100)));
        assert_eq!(of("bytes=90-500"), Some(Ok(90..100)));
        assert_eq!(of("bytes=-10"), Some(Ok(90..100)));
        assert_eq!(of("bytes=0-18446744073709551615"), Some(Ok(0..100)));
        assert_eq!(of("bytes=100-"), Some(Err(Kind::Range)));
        assert_eq!(of("bytes=5-2"), None);
        assert_eq!(of("lines=1-2"), None);
        assert_eq!(of("bytes=0-1,5-6"), None);
    }
}
