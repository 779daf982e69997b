//! The cluster's name server: what pods ask for services and each other, and, through the machine's own
//! resolvers, for everything else.
//!
//! It listens on the bridge only, over UDP and TCP; pods know it as 10.96.0.10. Answers are computed from
//! the watched objects at every question, so they are never older than the watch.

mod forward;
mod message;
mod neighbours;
mod zone;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::Subnet;
use crate::cluster::Caches;
use forward::Transport;
use message::Question;
use zone::Zone;

const PORT: u16 = 53;
/// Questions under way; more are left unanswered, and asked again by who needs them.
const QUESTIONS_MAX: usize = 512;
/// A connection that says nothing for this long is closed.
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// The largest answer over UDP to one who does not say that he takes more.
const UDP_BYTES: usize = 512;

/// Listens on the address and answers until `shutdown`. Says on which port: the usual one, or another if
/// somebody on the machine has that; pods find it either way.
pub(crate) async fn start(
    address: Ipv4Addr,
    subnet: Subnet,
    caches: Caches,
    shutdown: CancellationToken,
) -> io::Result<(u16, JoinHandle<()>)> {
    let (tcp, udp) = match listen(address, PORT).await {
        Ok(both) => both,
        Err(_) => listen(address, 0).await?,
    };
    let port = tcp.local_addr()?.port();
    let udp = Arc::new(udp);
    let server = Arc::new(Server {
        caches,
        subnet,
        upstream: forward::resolvers(address),
        limit: Arc::new(Semaphore::new(QUESTIONS_MAX)),
    });
    let task = tokio::spawn(async move {
        tokio::select! {
            () = datagrams(server.clone(), udp) => {}
            () = connections(server, tcp) => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok((port, task))
}

async fn listen(address: Ipv4Addr, port: u16) -> io::Result<(TcpListener, UdpSocket)> {
    let tcp = TcpListener::bind((address, port)).await?;
    let udp = UdpSocket::bind(tcp.local_addr()?).await?;
    Ok((tcp, udp))
}

struct Server {
    caches: Caches,
    subnet: Subnet,
    upstream: Vec<SocketAddr>,
    limit: Arc<Semaphore>,
}

impl Server {
    /// The answer to one message; `None` when it is no question.
    async fn answer(&self, query: &[u8], transport: Transport, asker: IpAddr) -> Option<Vec<u8>> {
        let question = Question::parse(query)?;
        let (services, slices, pods, namespaces) = (
            self.caches.services.list(),
            self.caches.slices.list(),
            self.caches.pods.list(),
            self.caches.namespaces.list(),
        );
        let zone = Zone {
            services: &services,
            slices: &slices,
            pods: &pods,
            namespaces: &namespaces,
            subnet: self.subnet,
        };
        let size_max = if transport == Transport::Udp {
            question.size_max.max(UDP_BYTES)
        } else {
            usize::from(u16::MAX)
        };
        if let IpAddr::V4(asker) = asker
            && let Some(answer) = neighbours::answer(&pods, asker, &question)
        {
            return Some(message::encode(query, &question, &answer, size_max));
        }
        if let Some(mut answer) = zone.answer(&question) {
            if let Some(outside) = answer.outside.take() {
                // An alias of something outside: its addresses are in the same answer.
                answer.records.extend(self.follow(&outside).await);
            }
            return Some(message::encode(query, &question, &answer, size_max));
        }
        match forward::ask(&self.upstream, query, transport).await {
            Some(answer) => Some(answer),
            None => Some(message::encode(query, &question, &message::Answer::failure(), size_max)),
        }
    }

    async fn follow(&self, name: &str) -> Vec<message::Record> {
        let query = message::query_for_address(name);
        match forward::ask(&self.upstream, &query, Transport::Udp).await {
            Some(answer) => {
                message::addresses(&answer).into_iter().map(|it| message::Record::address(name, it)).collect()
            }
            None => Vec::new(),
        }
    }
}

async fn datagrams(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(permit) = server.limit.clone().try_acquire_owned() else { continue };
        let (server, socket, query) = (server.clone(), socket.clone(), buffer[..length].to_vec());
        tokio::spawn(async move {
            let _permit = permit;
            if let Some(answer) = server.answer(&query, Transport::Udp, from.ip()).await {
                // Who does not get it asks again.
                let _ = socket.send_to(&answer, from).await;
            }
        });
    }
}

async fn connections(server: Arc<Server>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = server.limit.clone().try_acquire_owned() else { continue };
        let server = server.clone();
        tokio::spawn(async move {
            let _permit = permit;
            // A connection that breaks is the asker's to make again.
            let _ = conversation(&server, stream).await;
        });
    }
}

async fn conversation(server: &Server, mut stream: TcpStream) -> io::Result<()> {
    let asker = stream.peer_addr()?.ip();
    loop {
        let Ok(length) = tokio::time::timeout(CONNECTION_IDLE, stream.read_u16()).await else {
            return Ok(());
        };
        let mut query = vec![0; usize::from(length?)];
        tokio::time::timeout(CONNECTION_IDLE, stream.read_exact(&mut query)).await??;
        let Some(answer) = server.answer(&query, Transport::Tcp, asker).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat()).await?;
    }
}
