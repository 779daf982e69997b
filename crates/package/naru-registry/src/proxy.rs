//! Images of other registries, through ours: `docker pull HOST/docker.io/library/busybox:1`, containerd's mirror
//! requests (`?ns=docker.io`), and Docker's `registry-mirrors`. What was fetched once is served from the store;
//! a tag is asked for again after a minute, and while its registry cannot be reached the copy is good enough.

use crate::Inner;
use crate::answer::{Code, Failure};
use crate::read::blocking;
use naru_image::{Digest, Reference, RegistryError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const FRESH_FOR: Duration = Duration::from_secs(60); // a moved tag is seen within this time
const REMEMBERED_MAX: usize = 10_000;

/// The registries that may be asked on behalf of clients, and when they last were.
#[derive(Default)]
pub(crate) struct Proxy {
    upstreams: Vec<String>,
    asked: Mutex<HashMap<String, Instant>>,
}

impl Proxy {
    pub(crate) fn new(upstreams: Vec<String>) -> Self {
        Self { upstreams, asked: Mutex::default() }
    }

    /// The registry and the repository there that a request means, if it means another registry.
    pub(crate) fn target<'a>(&self, name: &'a str, ns: Option<&str>) -> Option<(String, &'a str)> {
        let known = |it: &str| self.upstreams.iter().find(|upstream| *upstream == it).cloned();
        if let Some(upstream) = ns.and_then(known) {
            return Some((upstream, name));
        }
        let (first, rest) = name.split_once('/')?;
        if let Some(upstream) = known(first) {
            return Some((upstream, rest));
        }
        None
    }

    /// What Docker's own mirror requests mean, which name no registry: Docker Hub, where it is served.
    pub(crate) fn default_target<'a>(&self, name: &'a str) -> Option<(String, &'a str)> {
        let hub = self.upstreams.iter().find(|it| *it == "docker.io")?;
        Some((hub.clone(), name))
    }

    fn is_fresh(&self, name: &str) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(name).is_some_and(|it| it.elapsed() < FRESH_FOR)
    }

    fn remember(&self, name: String) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= REMEMBERED_MAX {
            asked.clear();
        }
        asked.insert(name, Instant::now());
    }
}

/// Makes the manifest present that a reference to another registry means.
pub(crate) async fn manifest(inner: &Arc<Inner>, reference: &Reference) -> Result<(), Failure> {
    let wanted = reference.clone();
    let is_here = blocking(inner, move |it| it.store.find(&wanted)).await?.is_some();
    let name = reference.to_string();
    if is_here && (reference.digest.is_some() || inner.proxy.is_fresh(&name)) {
        return Ok(());
    }
    match inner.store.fetch_manifest(reference).await {
        Ok(_) => {
            inner.proxy.remember(name);
            Ok(())
        }
        Err(error) if is_here => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(image = name, error, "served from the copy, because its registry does not answer");
            Ok(())
        }
        Err(error) => Err(failure(error)),
    }
}

/// Makes a blob present that another registry has.
pub(crate) async fn blob(inner: &Arc<Inner>, reference: &Reference, digest: &Digest) -> Result<(), Failure> {
    if inner.store.blob_size(digest).is_some() {
        return Ok(());
    }
    inner.store.fetch_blob(reference, digest).await.map_err(failure)
}

fn failure(error: naru_image::Error) -> Failure {
    match &error {
        naru_image::Error::Registry(RegistryError::NotFound { .. }) => {
            Failure::new(Code::ManifestUnknown, error.to_string())
        }
        naru_image::Error::Registry(RegistryError::Denied { .. }) => {
            Failure::new(Code::Denied, error.to_string())
        }
        naru_image::Error::Registry(_) => Failure::new(Code::Unavailable, error.to_string()),
        _ => Failure::store(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registries_that_were_named_are_asked() {
        let proxy = Proxy::new(vec!["docker.io".into(), "ghcr.io".into()]);
        let of = |name: &'static str, ns| {
            proxy.target(name, ns).map(|(registry, name)| format!("{registry} {name}"))
        };
        assert_eq!(of("docker.io/library/busybox", None).as_deref(), Some("docker.io library/busybox"));
        assert_eq!(of("library/busybox", Some("ghcr.io")).as_deref(), Some("ghcr.io library/busybox"));
        assert_eq!(of("library/busybox", Some("169.254.169.254")), None);
        assert_eq!(of("quay.io/a/b", None), None);
        assert_eq!(of("shop/web", None), None);
        assert!(Proxy::default().default_target("library/busybox").is_none());
    }
}
