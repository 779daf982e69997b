//! Images as Docker shows them. An image's id is the digest of its manifest, as with Docker's own containerd
//! store.

use std::collections::BTreeMap;

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use jiff::Timestamp;
use naru_image::oci::{Descriptor, ImageConfig, Index, architecture};
use naru_image::{Digest, LocalImage, Reference};
use serde_json::{Value, json};

use crate::answer::{Query, created, json as answer, text};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::names::short;

const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// An image that is here.
#[derive(Debug, Clone)]
pub struct Found {
    /// Of the manifest for this machine.
    pub digest: Digest,
    /// What was asked for, if it was a name.
    pub name: Option<Reference>,
    /// The store's names of it.
    pub tags: Vec<Reference>,
    /// The machine's own root, which has no manifest.
    pub host: bool,
}

impl Found {
    /// A name without a tag, to which the digest is added.
    pub fn bare_name(&self) -> String {
        let name = self.name.as_ref().or(self.tags.first());
        name.map_or("naru.local/image".into(), Reference::name)
    }
}

/// Everything that is told of an image.
pub struct Shown {
    pub digest: Digest,
    pub config: ImageConfig,
    /// Of its layers, unpacked where that is known.
    pub sizes: Vec<u64>,
    pub tags: Vec<Reference>,
}

impl Shown {
    fn size(&self) -> u64 {
        self.sizes.iter().sum()
    }

    fn names(&self) -> Vec<String> {
        self.tags.iter().map(Reference::familiar).collect()
    }

    fn digests(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .tags
            .iter()
            .map(|it| {
                let bare = Reference { tag: None, digest: Some(self.digest.clone()), ..it.clone() };
                bare.familiar()
            })
            .collect();
        names.dedup();
        names
    }

    fn created(&self) -> Timestamp {
        self.config.created.as_deref().and_then(|it| it.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

impl Engine {
    /// The manifest for this machine behind a digest that may be an index.
    fn manifest_digest(&self, digest: &Digest) -> Result<Digest> {
        let Ok(bytes) = self.images.read_blob("manifest", digest, DOCUMENT_BYTES_MAX) else {
            return Ok(digest.clone());
        };
        let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if !document["manifests"].is_array() {
            return Ok(digest.clone());
        }
        let index: Index = serde_json::from_value(document)
            .map_err(|error| Error::server(format!("the index {digest} is damaged: {error}")))?;
        let ours = |it: &&Descriptor| {
            it.platform.as_ref().is_none_or(|it| it.os == "linux" && it.architecture == architecture())
                && self.images.blob_size(&it.digest).is_some()
        };
        let found = index.manifests.iter().find(ours).map(|it| it.digest.clone());
        found.ok_or_else(|| {
            Error::missing(format!("image {digest} has no variant for linux/{}", architecture()))
        })
    }

    /// Every tag and the manifest that it stands for.
    fn tagged(&self) -> Result<Vec<(Reference, Digest)>> {
        let all = self.images.tags()?;
        Ok(all
            .into_iter()
            .filter_map(|(name, it)| {
                Some((Reference::parse(&name).ok()?, self.manifest_digest(&it.digest).ok()?))
            })
            .collect())
    }

    /// By name, by id, or as much of the id as is unique.
    pub fn find_image(&self, wanted: &str) -> Result<Found> {
        let tagged = self.tagged()?;
        let with_tags = |digest: Digest, name: Option<Reference>| Found {
            tags: tagged.iter().filter(|(_, it)| *it == digest).map(|(name, _)| name.clone()).collect(),
            digest,
            name,
            host: false,
        };
        let bare = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        let is_id = !bare.is_empty() && bare.len() <= 64 && bare.bytes().all(|it| it.is_ascii_hexdigit());
        if !wanted.starts_with("sha256:") {
            let resolved = self.images.resolve_name(wanted).map_err(|error| match is_id {
                true => Error::no_image(wanted),
                false => error.into(),
            });
            match resolved {
                Ok(naru_image::Resolved::Host) => {
                    let image = self.images.host_image();
                    let name = Reference::parse(naru_image::HOST_IMAGE).ok();
                    return Ok(Found { digest: image.digest, name, tags: Vec::new(), host: true });
                }
                Ok(naru_image::Resolved::Name(name)) => {
                    if let Some(found) = self.images.find(&name)? {
                        return Ok(with_tags(self.manifest_digest(&found.digest)?, Some(name)));
                    }
                }
                Err(error) if !is_id => return Err(error),
                Err(_) => {}
            }
        }
        if !is_id {
            return Err(Error::no_image(wanted));
        }
        let mut matching: Vec<&Digest> =
            tagged.iter().map(|it| &it.1).filter(|it| it.hex().starts_with(bare)).collect();
        matching.sort();
        matching.dedup();
        match matching.as_slice() {
            [only] => Ok(with_tags((*only).clone(), None)),
            [] => {
                // Without a tag only the whole digest finds it.
                let whole = Digest::parse(&format!("sha256:{bare}")).ok();
                let whole = whole.filter(|it| self.images.manifest(it).is_ok());
                whole.map(|it| with_tags(it, None)).ok_or_else(|| Error::no_image(wanted))
            }
            _ => Err(Error::bad(format!("ambiguous image id: {wanted}"))),
        }
    }

    /// The image, unpacked.
    pub async fn load_image(&self, found: &Found) -> Result<LocalImage> {
        if found.host {
            return Ok(self.images.host_image());
        }
        let (store, digest, name) = (self.images.clone(), found.digest.clone(), found.bare_name());
        let loaded = tokio::task::spawn_blocking(move || store.load(&name, &digest)).await;
        Ok(loaded.map_err(|it| Error::server(it.to_string()))??)
    }

    pub fn show_image(&self, found: &Found) -> Result<Shown> {
        if found.host {
            let image = self.images.host_image();
            let tags = found.name.clone().into_iter().collect();
            return Ok(Shown { digest: image.digest, config: image.config, sizes: Vec::new(), tags });
        }
        let manifest = self.images.manifest(&found.digest)?;
        let bytes = self.images.read_blob("image config", &manifest.config.digest, DOCUMENT_BYTES_MAX)?;
        let config: ImageConfig = serde_json::from_slice(&bytes).map_err(|error| {
            Error::server(format!("the configuration of {} is damaged: {error}", found.digest))
        })?;
        let sizes = manifest.layers.iter().zip(&config.rootfs.diff_ids);
        let sizes =
            sizes.map(|(blob, diff)| self.images.layer(diff).map_or(blob.size, |it| it.size)).collect();
        Ok(Shown { digest: found.digest.clone(), config, sizes, tags: found.tags.clone() })
    }

    /// All images that have a tag, by digest.
    fn all_images(&self) -> Result<Vec<Shown>> {
        let mut by_digest: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        for (name, digest) in self.tagged()? {
            by_digest.entry(digest).or_default().push(name);
        }
        let show = |(digest, tags): (Digest, Vec<Reference>)| {
            self.show_image(&Found { digest, name: None, tags, host: false }).ok()
        };
        let mut all: Vec<Shown> = by_digest.into_iter().filter_map(show).collect();
        all.sort_by_key(|it| std::cmp::Reverse(it.created()));
        Ok(all)
    }
}

const FILTERS: &[&str] = &["before", "dangling", "label", "label!", "reference", "since", "until"];

fn summary(engine: &Engine, image: &Shown) -> Value {
    let used = engine.containers().iter().filter(|it| it.record.digest == image.digest.as_str()).count();
    json!({
        "Id": image.digest, "ParentId": "", "RepoTags": image.names(), "RepoDigests": image.digests(),
        "Created": image.created().as_second(), "Size": image.size(), "VirtualSize": image.size(),
        "SharedSize": -1, "Containers": used, "Labels": image.config.config.labels,
    })
}

pub async fn list(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let filters = Filters::parse(query.get("filters"), FILTERS)?;
    let created_of = |name: &str| {
        let found = engine.find_image(name)?;
        engine.show_image(&found).map(|it| it.created())
    };
    let before = filters.of("before").next().map(created_of).transpose()?;
    let since = filters.of("since").next().map(created_of).transpose()?;
    let until = filters.of("until").next().map(crate::system::until).transpose()?;
    // What has no tag is not listed here: it is on its way out.
    let dangling = filters.truth("dangling")?.unwrap_or(false);
    let fits = |it: &Shown| {
        !dangling
            && filters.labels(&json!(it.config.config.labels))
            && filters.any("reference", |wanted| it.names().iter().any(|name| matches_pattern(name, wanted)))
            && before.is_none_or(|before| it.created() < before)
            && since.is_none_or(|since| it.created() > since)
            && until.is_none_or(|until| it.created() < until)
    };
    let found: Vec<Value> =
        engine.all_images()?.iter().filter(|it| fits(it)).map(|it| summary(&engine, it)).collect();
    Ok(answer(json!(found)))
}

/// `shop/*:1`, `busybox`: the pattern may leave out the tag.
fn matches_pattern(name: &str, pattern: &str) -> bool {
    fn glob(text: &[u8], pattern: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => {
                let stop = text.iter().position(|it| *it == b'/').unwrap_or(text.len());
                (0..=stop).any(|at| glob(&text[at..], rest))
            }
            Some((b'?', rest)) => text.first().is_some_and(|it| *it != b'/') && glob(&text[1..], rest),
            Some((letter, rest)) => text.first() == Some(letter) && glob(&text[1..], rest),
        }
    }
    let bare = name.rsplit_once(':').map_or(name, |it| it.0);
    glob(name.as_bytes(), pattern.as_bytes()) || glob(bare.as_bytes(), pattern.as_bytes())
}

/// `/images/{name}/...`: names have slashes, so the last word says what is wanted.
pub async fn get(
    State(engine): State<Engine>,
    Path(rest): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    match rest.rsplit_once('/') {
        Some((name, "json")) => inspect(&engine, name),
        Some((name, "history")) => history(&engine, name),
        Some((name, "get")) => crate::bundle::save(&engine, vec![name.to_owned()], &query).await,
        _ => Err(Error::missing("page not found")),
    }
}

pub async fn post(
    State(engine): State<Engine>,
    Path(rest): Path<String>,
    RawQuery(query): RawQuery,
    headers: http::HeaderMap,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    match rest.rsplit_once('/') {
        Some((name, "tag")) => tag(&engine, name, &query),
        Some((name, "push")) => crate::transfer::push(&engine, name, &query, &headers).await,
        _ => Err(Error::missing("page not found")),
    }
}

fn inspect(engine: &Engine, name: &str) -> Result<Response> {
    let found = engine.find_image(name)?;
    let image = engine.show_image(&found)?;
    let config = serde_json::to_value(&image.config.config).map_err(|it| Error::server(it.to_string()))?;
    let text =
        |name: &str| image.config.rest.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(answer(json!({
        "Id": image.digest, "RepoTags": image.names(), "RepoDigests": image.digests(), "Parent": "",
        "Comment": "", "Created": crate::answer::nanos(image.created()), "DockerVersion": "",
        "Author": text("author"), "Config": config, "Architecture": image.config.architecture,
        "Variant": text("variant"), "Os": image.config.os, "Size": image.size(), "VirtualSize": image.size(),
        "GraphDriver": {"Name": "overlay2", "Data": {}},
        "RootFS": {"Type": "layers", "Layers": image.config.rootfs.diff_ids},
        "Metadata": {"LastTagTime": crate::answer::NEVER},
    })))
}

fn history(engine: &Engine, name: &str) -> Result<Response> {
    let found = engine.find_image(name)?;
    let image = engine.show_image(&found)?;
    let mut sizes = image.sizes.iter();
    let mut rows: Vec<Value> = image
        .config
        .history
        .iter()
        .map(|it| {
            let it = serde_json::to_value(it).unwrap_or_default();
            let size = if it["empty_layer"] == true { 0 } else { sizes.next().copied().unwrap_or(0) };
            let created = text(&it, "/created").parse::<Timestamp>().map_or(0, Timestamp::as_second);
            json!({"Id": "<missing>", "Created": created, "CreatedBy": text(&it, "/created_by"), "Tags": null,
                "Size": size, "Comment": text(&it, "/comment")})
        })
        .collect();
    if rows.is_empty() {
        rows.push(
            json!({"Id": "<missing>", "Created": image.created().as_second(), "CreatedBy": "", "Tags": null,
            "Size": image.size(), "Comment": ""}),
        );
    }
    rows.reverse();
    if let Some(first) = rows.first_mut() {
        first["Id"] = json!(image.digest);
        first["Tags"] = json!(image.names());
    }
    Ok(answer(json!(rows)))
}

fn tag(engine: &Engine, name: &str, query: &Query) -> Result<Response> {
    let found = engine.find_image(name)?;
    if found.host {
        return Err(Error::refused(
            "the machine's own root cannot be given another name; see naru serve --image",
        ));
    }
    let repository = query.get("repo").ok_or_else(|| Error::bad("repo is missing"))?;
    let wanted = match query.get("tag") {
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    };
    let target = Reference::parse(&wanted)
        .map_err(|error| Error::bad(format!("invalid reference format: {error}")))?;
    engine.images.tag(&target, &found.digest, naru_image::oci::media_type::MANIFEST)?;
    engine.events.tell("image", "tag", found.digest.as_str(), json!({"name": target.familiar()}));
    Ok(created(Value::Null))
}

pub async fn remove(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let found = engine.find_image(&wanted)?;
    let force = query.is("force");
    if found.host {
        return Err(Error::refused("the machine's own root cannot be removed"));
    }
    let by_id = found.name.is_none();
    let going: Vec<Reference> = match &found.name {
        Some(name) => found.tags.iter().filter(|it| it.tag_name() == name.tag_name()).cloned().collect(),
        None => found.tags.clone(),
    };
    if by_id && going.len() > 1 && !force {
        return Err(Error::conflict(format!(
            "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
            short(found.digest.hex())
        )));
    }
    let is_last = going.len() == found.tags.len();
    let users: Vec<_> =
        engine.containers().into_iter().filter(|it| it.record.digest == found.digest.as_str()).collect();
    let up = users.iter().find(|it| it.state().status.is_up());
    if let Some(user) = up.or(users.first()).filter(|_| is_last) {
        let running = up.is_some();
        if running || !force {
            let (what, kind) = match (by_id, running) {
                (true, true) => {
                    (format!("unable to delete {}", short(found.digest.hex())), "cannot be forced")
                }
                (true, false) => {
                    (format!("unable to delete {}", short(found.digest.hex())), "must be forced")
                }
                (false, _) => (format!("unable to remove repository reference {wanted:?}"), "must force"),
            };
            return Err(Error::conflict(format!(
                "conflict: {what} ({kind}) - container {} is using its referenced image {}",
                short(user.id()),
                short(found.digest.hex())
            )));
        }
    }
    let mut told = Vec::new();
    for name in &going {
        engine.images.untag(name)?;
        engine.events.tell("image", "untag", found.digest.as_str(), json!({"name": name.familiar()}));
        told.push(json!({"Untagged": name.familiar()}));
    }
    if is_last {
        engine.events.tell(
            "image",
            "delete",
            found.digest.as_str(),
            json!({"name": found.digest.to_string()}),
        );
        told.push(json!({"Deleted": found.digest}));
    }
    Ok(answer(json!(told)))
}

/// Images without a tag go by themselves; with `dangling=false` those without a container go, too.
pub async fn prune(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let filters = Filters::parse(query.get("filters"), &["dangling", "label", "label!", "until"])?;
    let all = filters.truth("dangling")? == Some(false);
    let until = filters.of("until").next().map(crate::system::until).transpose()?;
    let containers = engine.containers();
    let (mut told, mut bytes) = (Vec::new(), 0);
    for image in engine.all_images()?.into_iter().filter(|_| all) {
        let used = containers.iter().any(|it| it.record.digest == image.digest.as_str());
        // What was deployed from here is not Docker's to prune.
        let deployed = image.tags.iter().any(Reference::is_local_only);
        let old = until.is_none_or(|until| image.created() < until);
        if used || deployed || !old || !filters.labels(&json!(image.config.config.labels)) {
            continue;
        }
        for name in &image.tags {
            engine.images.untag(name)?;
            told.push(json!({"Untagged": name.familiar()}));
        }
        bytes += image.size();
        told.push(json!({"Deleted": image.digest}));
    }
    engine.events.tell("image", "prune", "", json!({"reclaimed": bytes.to_string()}));
    Ok(answer(json!({"ImagesDeleted": told, "SpaceReclaimed": bytes})))
}

/// For `docker system df`.
pub fn usage(engine: &Engine) -> Result<(Vec<Value>, u64)> {
    let all = engine.all_images()?;
    let mut layers: BTreeMap<&Digest, u64> = BTreeMap::new();
    for image in &all {
        layers.extend(image.config.rootfs.diff_ids.iter().zip(image.sizes.iter().copied()));
    }
    let total = layers.values().sum();
    Ok((all.iter().map(|it| summary(engine, it)).collect(), total))
}

/// `docker search`: there is no index to search.
pub async fn search() -> Result<Response> {
    Err(Error::refused("docker search is not supported: registries are not searched from here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_images() {
        for (name, pattern, fits) in [
            ("busybox:1", "busybox", true),
            ("busybox:1", "busybox:*", true),
            ("shop/web:1", "shop/*", true),
            ("shop/web:1", "*", false),
            ("shop/web:1", "shop/w?b:1", true),
        ] {
            assert_eq!(matches_pattern(name, pattern), fits, "{name} {pattern}");
        }
    }
}
