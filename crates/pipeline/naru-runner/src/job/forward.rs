//! Ports under other numbers or addresses: steps and services share one network, so only a port that the
//! workflow maps to another one needs somebody to pass its connections on. And the server: it is called
//! `naru.localhost`, which curl and with it git take for this machine whatever the hosts file says.

use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};

/// Listens on a port of this machine for as long as the job runs, and passes every connection on.
pub async fn start(from: u16, to: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", from)).await?;
    tokio::spawn(async move {
        while let Ok((mut outside, _)) = listener.accept().await {
            tokio::spawn(async move {
                // Whoever is not there ends the connection, as it would without us.
                if let Ok(mut inside) = TcpStream::connect(to).await {
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
    });
    Ok(())
}

/// Passes on what is meant for the server of a URL, if its name says that it is here and its address that it
/// is not.
pub async fn start_server(url: &str) -> std::io::Result<()> {
    let address = url.split_once("://").map_or(url, |it| it.1).trim_end_matches('/');
    let is_local = address.rsplit_once(':').is_some_and(|(name, _)| name.ends_with(".localhost"));
    if !is_local {
        return Ok(());
    }
    // A name that nobody knows cannot be forwarded; whoever asks for it says so himself.
    let Ok(mut found) = tokio::net::lookup_host(address).await else { return Ok(()) };
    match found.find(|it| !it.ip().is_loopback()) {
        Some(to) => start(to.port(), to).await,
        None => Ok(()),
    }
}
