//! The frames of an attachment: a byte of kind, four of length (big endian), the payload.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// From the daemon.
pub const INPUT: u8 = 0;
pub const INPUT_END: u8 = 3;
/// Columns and rows, two bytes each.
pub const RESIZE: u8 = 4;
/// From the shim.
pub const OUT: u8 = 1;
pub const ERROR: u8 = 2;

const HEADER_BYTES: usize = 5;
/// Between the tasks that unpack frames and whoever reads.
const BUFFER_BYTES: usize = 64 * 1024;

pub fn put_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
}

/// The next whole frame, taken out of `input`.
pub fn take_frame(input: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let header = input.get(..HEADER_BYTES)?;
    let (kind, length) =
        (header[0], u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize);
    let payload = input.get(HEADER_BYTES..HEADER_BYTES + length)?.to_vec();
    input.drain(..HEADER_BYTES + length);
    Some((kind, payload))
}

/// A container's streams from now on. Its end is the end of both outputs; dropping it detaches.
#[derive(Debug)]
pub struct Attachment {
    /// `None` when it was not asked for.
    pub stdin: Option<DuplexStream>,
    pub stdout: DuplexStream,
    /// Silent when the container has a terminal.
    pub stderr: DuplexStream,
    /// Columns and rows.
    pub resize: mpsc::Sender<(u16, u16)>,
    /// Ends with the container or with the shim.
    pub tasks: AttachmentTasks,
}

#[derive(Debug)]
pub struct AttachmentTasks(Vec<JoinHandle<()>>);

impl AttachmentTasks {
    /// Waits until the container has ended.
    pub async fn ended(&mut self) {
        if let Some(reader) = self.0.first_mut() {
            let _ = reader.await;
        }
    }
}

impl Drop for AttachmentTasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl Attachment {
    /// `left` is what was read past the shim's answer.
    pub(crate) fn new(left: Vec<u8>, reader: OwnedReadHalf, writer: OwnedWriteHalf, stdin: bool) -> Self {
        let (stdout, out) = tokio::io::duplex(BUFFER_BYTES);
        let (stderr, error) = tokio::io::duplex(BUFFER_BYTES);
        let (resize, sizes) = mpsc::channel(4);
        let (input, stdin) = match stdin.then(|| tokio::io::duplex(BUFFER_BYTES)) {
            Some((ours, theirs)) => (Some(ours), Some(theirs)),
            None => (None, None),
        };
        let tasks =
            vec![tokio::spawn(unpack(left, reader, out, error)), tokio::spawn(pack(input, sizes, writer))];
        Self { stdin, stdout, stderr, resize, tasks: AttachmentTasks(tasks) }
    }
}

async fn unpack(
    mut input: Vec<u8>,
    mut reader: OwnedReadHalf,
    mut out: DuplexStream,
    mut error: DuplexStream,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        while let Some((kind, payload)) = take_frame(&mut input) {
            // Whoever does not read one of them may still want the other.
            let _ = match kind {
                OUT => out.write_all(&payload).await,
                ERROR => error.write_all(&payload).await,
                _ => Ok(()),
            };
        }
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => input.extend_from_slice(&buffer[..count]),
        }
    }
}

async fn pack(
    mut input: Option<DuplexStream>,
    mut sizes: mpsc::Receiver<(u16, u16)>,
    mut writer: OwnedWriteHalf,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut resizable = true;
    loop {
        let read = async {
            match &mut input {
                Some(input) => input.read(&mut buffer).await.unwrap_or(0),
                None => std::future::pending().await,
            }
        };
        let mut frame = Vec::new();
        tokio::select! {
            // What is typed is typed on a terminal of the size that was told before.
            biased;
            size = sizes.recv(), if resizable => match size {
                Some((columns, rows)) => {
                    let size = [columns.to_be_bytes(), rows.to_be_bytes()].concat();
                    put_frame(&mut frame, RESIZE, &size);
                }
                None => resizable = false,
            },
            count = read => match count {
                0 => {
                    input = None;
                    put_frame(&mut frame, INPUT_END, &[]);
                }
                count => put_frame(&mut frame, INPUT, &buffer[..count]),
            },
        }
        if writer.write_all(&frame).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_arrive() {
        let mut sent = Vec::new();
        put_frame(&mut sent, OUT, b"one");
        put_frame(&mut sent, ERROR, b"");
        let mut input = Vec::new();
        let mut got = Vec::new();
        for byte in sent {
            input.push(byte);
            got.extend(take_frame(&mut input));
        }
        assert_eq!(got, [(OUT, b"one".to_vec()), (ERROR, Vec::new())]);
    }
}
