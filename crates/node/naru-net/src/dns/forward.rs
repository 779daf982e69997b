//! Questions about the rest of the world go to the machine's own resolvers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// A resolver that does not answer by then is passed over.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// The resolvers of `/etc/resolv.conf`, but for ourselves.
pub fn resolvers(own: Ipv4Addr) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines()
        .filter_map(|it| it.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .filter(|it| *it != IpAddr::V4(own))
        .map(|it| SocketAddr::new(it, 53))
        .collect()
}

/// The first answer of one of them.
pub async fn ask(resolvers: &[SocketAddr], query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    for resolver in resolvers {
        let answer = match transport {
            Transport::Udp => timeout(PATIENCE, by_datagram(*resolver, query)).await,
            Transport::Tcp => timeout(PATIENCE, by_stream(*resolver, query)).await,
        };
        if let Ok(Ok(answer)) = answer {
            return Some(answer);
        }
    }
    None
}

async fn by_datagram(resolver: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // An answer to another question is not ours.
        if length >= 2 && buffer[..2] == query[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_stream(resolver: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(query.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
