//! A small shop over HTTP, with nothing but the standard library: `/` lists items, `/healthz` says that it
//! can take requests, `/metrics` counts them in the Prometheus text format.

mod catalogue;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", 8080))?;
    println!("shop {} listens on {}", catalogue::VERSION, listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // A client that goes away in the middle is no trouble of ours.
            let _ = serve(stream);
        });
    }
    Ok(())
}

/// Answers the requests of one connection until the client closes it.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut body_bytes = 0u64;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':') {
                if name.eq_ignore_ascii_case("content-length") {
                    body_bytes = value.trim().parse().unwrap_or(0);
                }
            }
        }
        std::io::copy(&mut std::io::Read::take(&mut reader, body_bytes), &mut std::io::sink())?;
        let path = request.split(' ').nth(1).unwrap_or("/");
        let (status, kind, body) = answer(path);
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
}

fn answer(path: &str) -> (&'static str, &'static str, String) {
    match path {
        "/healthz" => ("200 OK", "text/plain", "ok\n".into()),
        "/metrics" => {
            let text = format!(
                "# TYPE shop_requests_total counter\nshop_requests_total {}\n\
                 # TYPE shop_failed_total counter\nshop_failed_total {}\n",
                REQUESTS.load(Ordering::Relaxed),
                FAILED.load(Ordering::Relaxed)
            );
            ("200 OK", "text/plain; version=0.0.4", text)
        }
        "/" => {
            let number = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
            if catalogue::fails(number) {
                FAILED.fetch_add(1, Ordering::Relaxed);
                return ("500 Internal Server Error", "text/plain", "the till is stuck\n".into());
            }
            ("200 OK", "application/json", catalogue::items())
        }
        _ => ("404 Not Found", "text/plain", "no such page\n".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_answer_as_promised() {
        assert!(answer("/healthz").0.starts_with("200"));
        assert!(answer("/metrics").2.contains("shop_requests_total"));
        assert!(answer("/nowhere").0.starts_with("404"));
    }
}
