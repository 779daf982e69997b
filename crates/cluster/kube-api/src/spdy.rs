//! SPDY/3.1 as far as Kubernetes clients speak it: streams with headers, data both ways, pings. Every
//! `kubectl port-forward` uses it, over a websocket or a raw upgrade; kubectl before 1.30 also for exec.
//!
//! Source: the SPDY/3.1 draft. There is no flow control, as in the clients' own library; a stream whose
//! reader is slow holds up its session.

use std::collections::HashMap;
use std::io;
use std::sync::LazyLock;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
const VERSION: u16 = 3;
/// The frame's first bit tells control from data.
const CONTROL: u32 = 1 << 31;
const FRAME_BYTES_MAX: usize = 1 << 20;
const HEADER_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: u32 = 64;
const STREAMS_MAX: usize = 2048;
/// Frames that wait for a slow reader.
const QUEUE: usize = 64;

/// The dictionary of header compression (draft section 2.6.10.1): words with their lengths, then values.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|\
        accept-language|accept-ranges|age|allow|authorization|cache-control|connection|content-base|\
        content-encoding|content-language|content-length|content-location|content-md5|content-range|\
        content-type|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|\
        if-unmodified-since|last-modified|location|max-forwards|pragma|proxy-authenticate|\
        proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|\
        user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|\
        set-cookie|keep-alive|origin";
    const VALUES: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417\
        502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request\
        401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented\
        503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, \
        Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
        application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
        charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::new();
    for word in WORDS.split('|') {
        bytes.put_u32(word.len() as u32);
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(VALUES.as_bytes());
    bytes
});

/// A stream that the client opened.
pub(crate) struct Stream {
    pub headers: HashMap<String, String>,
    /// What the client sends; ends with its half of the stream.
    pub input: mpsc::Receiver<Bytes>,
    pub output: Output,
}

/// Our half of a stream.
#[derive(Clone)]
pub(crate) struct Output {
    id: u32,
    frames: mpsc::Sender<Bytes>,
}

impl Output {
    /// False when the client has gone.
    pub async fn send(&self, bytes: &[u8]) -> bool {
        self.frames.send(data_frame(self.id, 0, bytes)).await.is_ok()
    }

    /// Ends our half.
    pub async fn finish(&self) {
        let _ = self.frames.send(data_frame(self.id, FIN, &[])).await;
    }
}

fn data_frame(id: u32, flags: u8, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + bytes.len());
    frame.put_u32(id);
    frame.put_u32(u32::from(flags) << 24 | bytes.len() as u32);
    frame.extend_from_slice(bytes);
    frame.freeze()
}

fn control_frame(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + body.len());
    frame.put_u32(CONTROL | u32::from(VERSION) << 16 | u32::from(kind));
    frame.put_u32(body.len() as u32);
    frame.extend_from_slice(body);
    frame.freeze()
}

/// Runs a session until the client goes; streams come out of the receiver as they are opened.
pub(crate) fn session<T>(transport: T) -> mpsc::Receiver<Stream>
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (opened, streams) = mpsc::channel(16);
    let (frames, mut to_send) = mpsc::channel::<Bytes>(QUEUE);
    let (mut reader, mut writer) = tokio::io::split(transport);
    tokio::spawn(async move {
        while let Some(frame) = to_send.recv().await {
            if writer.write_all(&frame).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    });
    tokio::spawn(async move {
        if let Err(error) = read(&mut reader, opened, frames).await {
            tracing::debug!(%error, "a SPDY session ended");
        }
    });
    streams
}

async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    opened: mpsc::Sender<Stream>,
    frames: mpsc::Sender<Bytes>,
) -> io::Result<()> {
    let mut headers = HeaderBlocks::new();
    let mut inputs: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    loop {
        let first = match reader.read_u32().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let second = reader.read_u32().await?;
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        if length > FRAME_BYTES_MAX {
            return Err(malformed("a frame is longer than a megabyte"));
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await?;
        let mut body = Bytes::from(body);
        if first & CONTROL == 0 {
            let id = first;
            if let Some(input) = inputs.get(&id) {
                // Whoever read it may have finished; the rest of the stream is then of no use.
                if !body.is_empty() && input.send(body).await.is_err() {
                    inputs.remove(&id);
                }
            }
            if flags & FIN != 0 {
                inputs.remove(&id);
            }
            continue;
        }
        match (first & 0xffff) as u16 {
            SYN_STREAM => {
                if body.len() < 10 || inputs.len() >= STREAMS_MAX {
                    return Err(malformed("a stream cannot be opened"));
                }
                let id = body.get_u32() & !CONTROL;
                body.advance(6);
                let fields = headers.decode(&body)?;
                let mut reply = BytesMut::new();
                reply.put_u32(id);
                reply.extend_from_slice(&headers.encode_empty()?);
                let _ = frames.send(control_frame(SYN_REPLY, &reply)).await;
                let (sender, input) = mpsc::channel(QUEUE);
                if flags & FIN == 0 {
                    inputs.insert(id, sender);
                }
                let output = Output { id, frames: frames.clone() };
                if opened.send(Stream { headers: fields, input, output }).await.is_err() {
                    return Ok(());
                }
            }
            RST_STREAM if body.len() >= 4 => {
                inputs.remove(&(body.get_u32() & !CONTROL));
            }
            PING => {
                let _ = frames.send(control_frame(PING, &body)).await;
            }
            GOAWAY => return Ok(()),
            // Settings and window updates: there is no flow control.
            _ => {}
        }
    }
}

/// Header blocks share one compression context per direction.
struct HeaderBlocks {
    inflate: Decompress,
    deflate: Compress,
}

impl HeaderBlocks {
    fn new() -> HeaderBlocks {
        let mut deflate = Compress::new(Compression::fast(), true);
        // It can only fail after data has been compressed.
        let _ = deflate.set_dictionary(&DICTIONARY);
        HeaderBlocks { inflate: Decompress::new(true), deflate }
    }

    fn decode(&mut self, block: &[u8]) -> io::Result<HashMap<String, String>> {
        let mut plain = Vec::with_capacity(1024);
        let mut rest = block;
        loop {
            if plain.len() == plain.capacity() {
                if plain.len() >= HEADER_BYTES_MAX {
                    return Err(malformed("the headers of a stream are too long"));
                }
                plain.reserve(plain.len());
            }
            let before = (self.inflate.total_in(), self.inflate.total_out());
            let inflated = self.inflate.decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            let consumed = (self.inflate.total_in() - before.0) as usize;
            rest = &rest[consumed..];
            match inflated {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| malformed("the headers are compressed with another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(malformed("the headers of a stream cannot be decompressed")),
                Ok(Status::StreamEnd) => break,
                Ok(_) => {}
            }
            let progressed = consumed > 0 || self.inflate.total_out() > before.1;
            if rest.is_empty() && plain.len() < plain.capacity() || !progressed {
                break;
            }
        }
        parse(&plain)
    }

    fn encode_empty(&mut self) -> io::Result<Vec<u8>> {
        let mut block = Vec::with_capacity(64);
        self.deflate
            .compress_vec(&0u32.to_be_bytes(), &mut block, FlushCompress::Sync)
            .map_err(|_| malformed("headers cannot be compressed"))?;
        Ok(block)
    }
}

/// A count, then names and values, each with its length. Names in lower case.
fn parse(mut plain: &[u8]) -> io::Result<HashMap<String, String>> {
    fn word(plain: &mut &[u8]) -> io::Result<String> {
        if plain.len() < 4 {
            return Err(malformed("the headers of a stream are cut off"));
        }
        let length = plain.get_u32() as usize;
        let (word, rest) =
            plain.split_at_checked(length).ok_or_else(|| malformed("the headers of a stream are cut off"))?;
        *plain = rest;
        Ok(String::from_utf8_lossy(word).into_owned())
    }
    if plain.len() < 4 {
        return Err(malformed("the headers of a stream are cut off"));
    }
    let count = plain.get_u32();
    if count > HEADERS_MAX {
        return Err(malformed("a stream has too many headers"));
    }
    let mut headers = HashMap::new();
    for _ in 0..count {
        let name = word(&mut plain)?.to_ascii_lowercase();
        headers.insert(name, word(&mut plain)?);
    }
    Ok(headers)
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client sends to open a stream.
    fn open(deflate: &mut Compress, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for word in [name, value] {
                plain.put_u32(word.len() as u32);
                plain.extend_from_slice(word.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(4096);
        deflate.compress_vec(&plain, &mut block, FlushCompress::Sync).expect("it can be compressed");
        let mut body = Vec::new();
        body.put_u32(id);
        body.put_u32(0);
        body.put_u16(0);
        body.extend_from_slice(&block);
        control_frame(SYN_STREAM, &body).to_vec()
    }

    #[tokio::test]
    async fn streams_carry_headers_and_data_both_ways() {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let mut streams = session(server);
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&DICTIONARY).expect("nothing was compressed yet");
        for (id, kind) in [(1, "error"), (3, "data")] {
            let frame = open(&mut deflate, id, &[("streamtype", kind), ("Port", "80"), ("requestid", "0")]);
            to_server.write_all(&frame).await.expect("the server listens");
        }
        let error = streams.recv().await.expect("a stream");
        let mut data = streams.recv().await.expect("a stream");
        assert_eq!((error.headers["streamtype"].as_str(), error.headers["port"].as_str()), ("error", "80"));
        assert_eq!(data.headers["streamtype"], "data");
        to_server.write_all(&data_frame(3, FIN, b"ping")).await.expect("the server listens");
        assert_eq!(data.input.recv().await.expect("data"), "ping");
        assert!(data.input.recv().await.is_none());
        assert!(data.output.send(b"pong").await);
        // Two replies come first, of 8 bytes and what their second word says.
        let mut last = Vec::new();
        for _ in 0..3 {
            let mut head = [0; 8];
            from_server.read_exact(&mut head).await.expect("a frame");
            last = vec![0; u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize];
            from_server.read_exact(&mut last).await.expect("a frame");
        }
        assert_eq!(last, b"pong");
    }

    #[tokio::test]
    async fn rubbish_ends_the_session_and_nothing_else() {
        for bad in
            [vec![0xff; 64], vec![0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0], vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]]
        {
            let (mut client, server) = tokio::io::duplex(1024);
            let mut streams = session(server);
            client.write_all(&bad).await.expect("the server listens");
            client.shutdown().await.expect("the end can be told");
            assert!(streams.recv().await.is_none());
        }
    }
}
