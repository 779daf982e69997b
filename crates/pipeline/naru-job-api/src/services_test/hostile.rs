//! Requests that no client sends: whatever comes, the answer is the client's fault and nothing breaks.

use super::rest::with;
use super::*;

/// A small generator (xorshift), so that a failure can be had again from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    /// The text with a few bytes changed, left out or doubled, as long as it can stand in a request.
    fn bend(&mut self, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..self.roll(4) {
            if bytes.is_empty() {
                break;
            }
            let at = self.roll(bytes.len());
            match self.roll(4) {
                0 => bytes[at] = b' ' + u8::try_from(self.roll(94)).unwrap(),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, bytes[at]),
                _ => bytes.truncate(at),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

const PATHS: &[&str] = &[
    "/twirp/github.actions.results.api.v1.ArtifactService/CreateArtifact",
    "/twirp/github.actions.results.api.v1.ArtifactService/FinalizeArtifact",
    "/twirp/github.actions.results.api.v1.ArtifactService/ListArtifacts",
    "/twirp/github.actions.results.api.v1.ArtifactService/GetSignedArtifactURL",
    "/twirp/github.actions.results.api.v1.CacheService/CreateCacheEntry",
    "/twirp/github.actions.results.api.v1.CacheService/FinalizeCacheEntryUpload",
    "/twirp/github.actions.results.api.v1.CacheService/GetCacheEntryDownloadURL",
    "/_apis/artifactcache/cache?keys=a%2Cb&version=v",
    "/_apis/artifactcache/caches",
    "/_apis/artifactcache/caches/17",
    "/_apis/actions/actions/checkout/v4",
    "/_apis/oidc/token?audience=x",
    "/.well-known/jwks",
    "/api/v3/repos/naru/shop/contents/README.md?ref=main",
    "/api/v3/repos/naru/shop/actions/artifacts?per_page=18446744073709551615&page=18446744073709551615",
    "/api/v3/repos/naru/shop/actions/workflows/deploy.yml/dispatches",
    "/api/v3/repos/naru/shop/dispatches",
    "/api/v3/repos/naru/shop/compare/main...main",
];

const BODIES: &[&str] = &[
    "",
    "{}",
    "[]",
    "null",
    r#"{"workflow_run_backend_id":"uid-shop-1","workflow_job_run_backend_id":"ci-a","name":"x","version":4,"size":"1"}"#,
    r#"{"workflowRunBackendId":"uid-shop-1","workflowJobRunBackendId":"ci-a","name":7,"version":"4","idFilter":"-1"}"#,
    r#"{"key":"k","version":"v","cacheSize":18446744073709551615,"size":-1,"size_bytes":"1e9"}"#,
    r#"{"ref":"main","inputs":{"a":[1]},"event_type":"e","client_payload":{"deep":[[[[[[]]]]]]}}"#,
    "<BlockList><Latest>YQ==</Latest></BlockList>",
];

#[tokio::test]
async fn no_request_breaks_anything() {
    let it = Fixture::new();
    let claims = with(
        &it.claims("shop-1"),
        &[("contents", "write"), ("actions", "write"), ("id-token", "write"), ("pull-requests", "read")],
    );
    let token = it.key.mint(&claims);
    let created = it.create(&claims, "dist").await.json();
    let link = created["signed_upload_url"].as_str().unwrap().replace("http://naru.localhost:7070", "");
    for seed in 1..=3000_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let method = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD];
        let method = method[dice.roll(6)].clone();
        let straight = if dice.roll(5) == 0 { link.as_str() } else { dice.one(PATHS) };
        let mut path = if dice.roll(2) == 0 { dice.bend(straight) } else { straight.to_owned() };
        if !path.starts_with('/') || path.parse::<http::Uri>().is_err() {
            path = straight.to_owned();
        }
        let token = if dice.roll(4) == 0 { dice.bend(&token) } else { token.clone() };
        let body = dice.one(BODIES);
        let body = if dice.roll(2) == 0 { dice.bend(body) } else { body.to_owned() };
        let range = dice.one(&["bytes 0-0/*", "bytes 5-2/*", "bytes 0-18446744073709551615/*", "x"]);
        let wanted = dice.one(&["bytes=0-", "bytes=-0", "bytes=18446744073709551615-", "bytes=9-1"]);
        let headers = [("content-type", "application/json"), ("content-range", range), ("range", wanted)];
        let answer = it.send(method.clone(), &path, &token, &headers, body.clone()).await;
        let is_theirs = answer.status.as_u16() < 500;
        assert!(is_theirs, "seed {seed}: {method} {path} {body}: {} {}", answer.status, answer.text());
    }
}
