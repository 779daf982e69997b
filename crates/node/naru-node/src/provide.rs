//! Brings what the API knows into a pod's volumes: ConfigMaps, Secrets, tokens, the pod's own fields, and
//! what claims are bound to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use naru_client::{Cache, Client};
use naru_objects::kinds;
use serde_json::{Value, json};

use crate::effects::blocking;
use crate::environment::{Allocatable, Place, Sources};
use crate::pod::{DesiredPod, FileSource, TokenSource, Volume};
use crate::shared::Shared;
use crate::volumes::files::{self, Payload};
use crate::volumes::{self, Places};

pub(crate) fn places(shared: &Shared, uid: &str, claims: BTreeMap<String, PathBuf>) -> Places {
    Places { disk: shared.pod_directory(uid).join("volumes"), memory: shared.memory_directory(uid), claims }
}

pub(crate) async fn fetch(
    client: &Client,
    namespace: &str,
    names: Vec<(bool, String)>,
) -> Result<Sources, String> {
    let mut sources = Sources::new();
    for (secret, name) in names {
        if sources.contains_key(&(secret, name.clone())) {
            continue;
        }
        let kind = if secret { &kinds::SECRET } else { &kinds::CONFIG_MAP };
        let object = client.get(kind, namespace, &name).await.map_err(|error| error.to_string())?;
        sources.insert((secret, name), object);
    }
    Ok(sources)
}

/// The directories behind the pod's claims.
pub(crate) async fn claims(shared: &Shared, pod: &DesiredPod) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut found = BTreeMap::new();
    for volume in pod.volumes.values() {
        let Volume::Claim { name, .. } = volume else { continue };
        let get = |kind, namespace: String, name: String| async move {
            shared.client.get(kind, &namespace, &name).await.map_err(|error| error.to_string())
        };
        let claim = get(&kinds::PERSISTENT_VOLUME_CLAIM, pod.namespace.clone(), name.clone()).await?;
        let claim = claim.ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))?;
        let bound = claim["spec"]["volumeName"].as_str().unwrap_or_default();
        if bound.is_empty() || claim["status"]["phase"] != "Bound" {
            return Err(format!("persistentvolumeclaim \"{name}\" is not bound to a volume"));
        }
        let volume = get(&kinds::PERSISTENT_VOLUME, String::new(), bound.to_owned()).await?;
        let volume = volume.ok_or_else(|| format!("persistentvolume \"{bound}\" not found"))?;
        let spec = &volume["spec"];
        let path = spec["local"]["path"].as_str().or(spec["hostPath"]["path"].as_str());
        let path = path.ok_or_else(|| {
            format!("persistentvolume \"{bound}\" is neither local nor hostPath, which is all that this node mounts")
        })?;
        found.insert(name.clone(), PathBuf::from(path));
    }
    Ok(found)
}

/// Handlers of a RuntimeClass that mean what this node does anyway.
const HANDLERS: &[&str] = &["naru", "runc", "crun", "youki"];

/// A pod of another runtime is not run by this one.
pub(crate) async fn check_runtime(shared: &Shared, pod: &DesiredPod) -> Result<(), String> {
    let Some(class) = &pod.runtime_class else { return Ok(()) };
    let found =
        shared.client.get(&kinds::RUNTIME_CLASS, "", class).await.map_err(|error| error.to_string())?;
    let found = found.ok_or_else(|| format!("runtimeclass.node.k8s.io \"{class}\" not found"))?;
    match found["handler"].as_str() {
        Some(handler) if HANDLERS.contains(&handler) => Ok(()),
        handler => Err(format!("no runtime for \"{}\" is configured", handler.unwrap_or_default())),
    }
}

/// Makes every volume of files hold what it should hold now. Returns when tokens want to be renewed.
pub(crate) async fn fill(
    shared: &Arc<Shared>,
    pod: &DesiredPod,
    object: &Arc<Value>,
) -> Result<Option<Timestamp>, String> {
    if !pod.volumes.values().any(|volume| matches!(volume, Volume::Files { .. })) {
        return Ok(None);
    }
    let objects = fetch(&shared.client, &pod.namespace, volumes::needed_sources(pod)).await?;
    let places = places(shared, &pod.uid, BTreeMap::new());
    let place = Place {
        object,
        pod,
        pod_ip: "",
        host_ip: &shared.host_ip,
        allocatable: allocatable(shared),
        services: &[],
    };
    let mut payloads: Vec<(PathBuf, Payload)> = Vec::new();
    let mut renew_at: Option<Timestamp> = None;
    for (name, volume) in &pod.volumes {
        let Volume::Files { sources, mode } = volume else { continue };
        let at = |error: String| format!("MountVolume.SetUp failed for volume \"{name}\" : {error}");
        let path = places.of(name, volume).expect("a volume of files has a place");
        let mut tokens = BTreeMap::new();
        for source in sources {
            let FileSource::Token(source) = source else { continue };
            let present = tokio::fs::read_to_string(path.join(&source.path)).await.ok();
            let token = token(shared, pod, source, present).await.map_err(at)?;
            let next = renewal(&token).ok_or_else(|| at("the API's token cannot be read".to_owned()))?;
            renew_at = Some(renew_at.map_or(next, |earlier| earlier.min(next)));
            tokens.insert(source.path.clone(), token);
        }
        payloads.push((path, files::payload(sources, *mode, &objects, &tokens, &place).map_err(at)?));
    }
    let group = pod.fs_group;
    blocking(move || {
        let stamp = Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f").to_string();
        for (path, payload) in payloads {
            files::write(&path, &payload, group, &stamp)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        Ok(renew_at)
    })
    .await
}

pub(crate) fn allocatable(shared: &Shared) -> Allocatable {
    Allocatable {
        cpu_millis: shared.machine.cpus * 1000,
        memory_bytes: shared.machine.memory_bytes,
        disk_bytes: crate::machine::disk_free(&shared.config.state_dir).map_or(0, |(_, total)| total),
    }
}

/// The token that is there while it is young, or a new one.
async fn token(
    shared: &Shared,
    pod: &DesiredPod,
    source: &TokenSource,
    present: Option<String>,
) -> Result<String, String> {
    if let Some(token) = present
        && renewal(&token).is_some_and(|at| Timestamp::now() < at)
    {
        return Ok(token);
    }
    let mut spec = json!({
        "expirationSeconds": source.expiration_seconds,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid},
    });
    if !source.audience.is_empty() {
        spec["audiences"] = json!([source.audience]);
    }
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let account = pod.service_account.as_str();
    let answer = shared
        .client
        .create_below(&kinds::SERVICE_ACCOUNT, &pod.namespace, account, "token", &request)
        .await
        .map_err(|error| format!("failed to fetch token: {error}"))?;
    match answer["status"]["token"].as_str() {
        Some(token) => Ok(token.to_owned()),
        None => Err("the API answered without a token".to_owned()),
    }
}

/// When a token is to be renewed: after four fifths of its life, as kubelet does.
fn renewal(token: &str) -> Option<Timestamp> {
    let payload = token.split('.').nth(1)?;
    let bytes =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&bytes).ok()?;
    let (issued, expires) = (claims["iat"].as_i64()?, claims["exp"].as_i64()?);
    let issued = Timestamp::from_second(issued).ok()?;
    let life = SignedDuration::from_secs((expires - issued.as_second()).max(0));
    issued.checked_add(life * 4 / 5).ok()
}

impl Shared {
    /// A ConfigMap or Secret that pods show, followed once for all of them.
    pub fn follow(&self, secret: bool, namespace: &str, name: &str) -> Arc<Cache> {
        let key = (secret, namespace.to_owned(), name.to_owned());
        let mut sources = self.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(cache) = sources.get(&key).and_then(std::sync::Weak::upgrade) {
            return cache;
        }
        sources.retain(|_, cache| cache.strong_count() > 0);
        let kind = if secret { &kinds::SECRET } else { &kinds::CONFIG_MAP };
        let cache = Arc::new(self.client.cache_named(kind, namespace, name));
        sources.insert(key, Arc::downgrade(&cache));
        cache
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_after_four_fifths_of_its_life() {
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let token = format!("{}.{}.sig", encode("{}"), encode(r#"{"iat": 1000, "exp": 2000}"#));
        assert_eq!(renewal(&token), Timestamp::from_second(1800).ok());
        assert_eq!(renewal("not a token"), None);
    }
}
