//! A Docker socket for the steps of a job. Each connection goes on to the daemon, which knows by the pod's token
//! whose it is and what that one may do; the token itself no step sees.

use super::fetch;
use std::io::{Error, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// Where Docker's clients look by themselves.
const USUAL: &str = "/var/run/docker.sock";

/// Listens, and returns what `DOCKER_HOST` has to be if it is not where clients look anyway: an image may belong to
/// a user who may not write there.
pub fn open(url: &str, token: &str, directory: &Path) -> Result<Option<String>> {
    let usual = Path::new(USUAL);
    let (listener, other) = match listen(usual) {
        Ok(listener) => (listener, None),
        Err(_) => {
            let path: PathBuf = directory.join("docker.sock");
            (listen(&path)?, Some(format!("unix://{}", path.display())))
        }
    };
    let (url, token) = (format!("{url}/docker"), token.to_owned());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(carry(client, url.clone(), token.clone()));
        }
    });
    Ok(other)
}

fn listen(path: &Path) -> Result<UnixListener> {
    std::fs::create_dir_all(path.parent().ok_or_else(|| Error::other("a socket has a directory"))?)?;
    // One of the image's own means nothing here.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    // Steps of other users of this pod are the same job.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn carry(mut client: UnixStream, url: String, token: String) {
    match fetch::upgrade(&url, &token).await {
        Ok(mut daemon) => {
            // Whoever closes first ends it.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut daemon).await;
        }
        Err(error) => {
            use tokio::io::AsyncWriteExt;
            let message = serde_json::json!({"message": error.to_string()}).to_string();
            let answer = format!(
                "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{message}",
                message.len()
            );
            let _ = client.write_all(answer.as_bytes()).await;
        }
    }
}
