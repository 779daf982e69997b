//! Requests to the API as they are on the wire: a method, a path, a body, and the answer's code and value.

use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::Value;
use tokio::runtime::Runtime;

#[derive(Debug, Clone)]
pub struct Answer {
    pub code: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
    /// `Null` when the answer is no JSON.
    pub body: Value,
}

pub(crate) struct Http {
    runtime: Runtime,
    client: Client,
    base: String,
    token: String,
}

impl Http {
    pub fn new(base: &str, token: &str) -> Http {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            // The certificate is not what these tests are about.
            .tls_danger_accept_invalid_certs(true)
            .no_proxy()
            .build()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Http { runtime: runtime.unwrap(), client, base: base.into(), token: token.into() }
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        self.runtime.block_on(async {
            let response = self.request(method, path, headers, body).send().await;
            let response = response.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
            let (code, headers) = (response.status().as_u16(), response.headers().clone());
            let bytes = response.bytes().await.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            Answer { code, headers, text, body }
        })
    }

    pub fn watch(&self, path: &str) -> Watch<'_> {
        let response = self.runtime.block_on(self.request("GET", path, &[], Vec::new()).send());
        let response = response.unwrap_or_else(|error| panic!("watch {path}: {error:?}"));
        assert_eq!(response.status(), 200, "watch {path}");
        Watch { http: self, response, rest: Vec::new() }
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> reqwest::RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            request = request.bearer_auth(&self.token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body)
    }
}

/// An open watch.
pub struct Watch<'a> {
    http: &'a Http,
    response: reqwest::Response,
    rest: Vec<u8>,
}

impl Watch<'_> {
    /// The next event (`{"type", "object"}`), or `None` when the server ends the watch or nothing comes in time.
    pub fn next(&mut self, patience: Duration) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|it| *it == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let chunk = self
                .http
                .runtime
                .block_on(async { tokio::time::timeout(patience, self.response.chunk()).await.ok()?.ok()? });
            self.rest.extend(chunk?);
        }
    }

    /// The next event of this type, with the ones before it left out.
    pub fn until(&mut self, kind: &str, patience: Duration) -> Value {
        loop {
            let Some(event) = self.next(patience) else { panic!("no {kind} came") };
            if event["type"] == kind {
                return event;
            }
        }
    }
}
