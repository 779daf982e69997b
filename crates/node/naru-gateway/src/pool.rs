//! Connections to pods, kept open between requests. Every serving thread has its own: nothing is shared,
//! nothing is locked.

use crate::proxy::Outgoing;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

const IDLE_PER_ENDPOINT_MAX: usize = 128; // more are closed after use: a burst must not pin memory
const IDLE_MAX: Duration = Duration::from_secs(20); // below the usual 60 s at which servers hang up
/// On one machine or rack a connect takes microseconds; a second means that nobody is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub type Sender = SendRequest<Outgoing>;

#[derive(Default)]
pub struct Pool {
    idle: RefCell<HashMap<SocketAddr, Vec<(Sender, Instant)>>>,
}

impl Pool {
    /// A connection that is open and free, the one used last first.
    pub fn take(&self, address: SocketAddr, now: Instant) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&address)?;
        let mut at = list.len();
        while at > 0 {
            at -= 1;
            let (sender, since) = &list[at];
            if sender.is_closed() || now.duration_since(*since) > IDLE_MAX {
                list.swap_remove(at);
            } else if sender.is_ready() {
                return Some(list.swap_remove(at).0);
            }
        }
        None
    }

    /// A new connection; it is driven by a task of this thread until either side closes it.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<Sender> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::task::spawn_local(async move {
            // How it ends is told to whoever waits for an answer on it.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    /// Keeps a connection whose answer has been read to its end.
    pub fn put(&self, address: SocketAddr, sender: Sender, now: Instant) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(address).or_default();
        if list.len() < IDLE_PER_ENDPOINT_MAX {
            list.push((sender, now));
        }
    }

    /// Closes everything idle to an endpoint that broke one connection.
    pub fn forget(&self, address: SocketAddr) {
        self.idle.borrow_mut().remove(&address);
    }

    /// Closes what has been idle for long, and everything to endpoints that are gone.
    pub fn tidy(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|(sender, since)| !sender.is_closed() && now.duration_since(*since) <= IDLE_MAX);
            !list.is_empty()
        });
    }
}
