//! Ports of services under other numbers: steps and services share one network, so only a port that the
//! workflow maps to another one needs somebody to pass its connections on.

use tokio::net::{TcpListener, TcpStream};

/// Listens on the first port of this machine for as long as the job runs, and passes every connection on to the
/// second.
pub async fn start(from: u16, to: u16) -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", from)).await?;
    tokio::spawn(async move {
        while let Ok((mut outside, _)) = listener.accept().await {
            tokio::spawn(async move {
                // Whoever is not there ends the connection, as it would without us.
                if let Ok(mut inside) = TcpStream::connect(("127.0.0.1", to)).await {
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
    });
    Ok(())
}
