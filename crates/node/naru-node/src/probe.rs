//! Probes: is it up, is it ready, is it alive.
//!
//! [`Counter`] turns single results into verdicts and is pure; `prober` asks at the right times.

use std::time::Duration;

use tokio::net::TcpStream;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub check: Check,
    pub initial_delay_seconds: u64,
    pub period_seconds: u64,
    pub timeout_seconds: u64,
    pub success_threshold: u32,
    pub failure_threshold: u32,
    /// Instead of the pod's, when this probe ends the container.
    pub grace_seconds: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Without a host the pod's own address is asked.
    Http {
        tls: bool,
        host: Option<String>,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp {
        host: Option<String>,
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` of a service, which may be empty.
    Grpc {
        port: u16,
        service: String,
    },
    Exec {
        command: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }
}

/// Counts results in a row.
#[derive(Debug, Clone)]
pub struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    same: u32,
    last: Option<bool>,
}

impl Counter {
    pub fn new(probe: &Probe) -> Self {
        Self {
            success_threshold: probe.success_threshold,
            failure_threshold: probe.failure_threshold,
            same: 0,
            last: None,
        }
    }

    /// The verdict, when this result made it.
    pub fn feed(&mut self, success: bool) -> Option<bool> {
        self.same = if self.last == Some(success) { self.same + 1 } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.same == threshold).then_some(success)
    }

    pub fn in_a_row(&self) -> u32 {
        self.same
    }
}

/// Asks once over the network. `Err` says what was wrong.
pub async fn ask_network(check: &Check, pod_ip: &str, timeout: Duration) -> Result<(), String> {
    let asked = async {
        match check {
            Check::Tcp { host, port } => {
                let address = (host.as_deref().unwrap_or(pod_ip), *port);
                TcpStream::connect(address)
                    .await
                    .map(drop)
                    .map_err(|error| format!("dial tcp {}:{port}: {error}", address.0))
            }
            Check::Http { tls, host, port, path, headers } => {
                let host = host.as_deref().unwrap_or(pod_ip);
                crate::http_get::get(*tls, host, *port, path, headers).await
            }
            Check::Grpc { port, service } => crate::grpc::check(pod_ip, *port, service).await,
            Check::Exec { .. } => Err("not a network check; this is a bug in Naru".to_owned()),
        }
    };
    tokio::time::timeout(timeout, asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(success_threshold: u32, failure_threshold: u32) -> Probe {
        Probe {
            check: Check::Tcp { host: None, port: 1 },
            initial_delay_seconds: 0,
            period_seconds: 1,
            timeout_seconds: 1,
            success_threshold,
            failure_threshold,
            grace_seconds: None,
        }
    }

    #[test]
    fn verdicts_need_results_in_a_row() {
        let mut counter = Counter::new(&probe(1, 3));
        let fed: Vec<_> =
            [true, false, false, true, false, false, false, false, true].map(|it| counter.feed(it)).into();
        let expect = [Some(true), None, None, Some(true), None, None, Some(false), None, Some(true)];
        assert_eq!(fed, expect);
        let mut counter = Counter::new(&probe(2, 1));
        assert_eq!([false, true, true].map(|it| counter.feed(it)), [Some(false), None, Some(true)]);
    }
}
