//! Images as archives: `docker save` and `docker load`, and the layouts that other tools write.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path as FilePath, PathBuf};

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use bytes::Bytes;
use naru_image::oci::{ANNOTATION_REF_NAME, Descriptor, ImageConfig, Manifest, architecture, media_type};
use naru_image::{Digest, ImageStore, Reference};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::answer::{Query, ToChannel, json_lines, streamed, text, texts};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::transfer::{blocking, spool};

const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
/// Entries of an archive of images: blobs, and a little beside them.
const ENTRIES_MAX: usize = 20_000;

pub async fn save_many(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let raw = query.unwrap_or_default();
    let names = raw.split('&').filter(|it| it.starts_with("names="));
    let names: Vec<String> =
        names.filter_map(|it| Query::parse(Some(it)).get("names").map(str::to_owned)).collect();
    save(&engine, names, &Query::parse(Some(&raw))).await
}

/// `docker save`: an OCI layout that is also an archive as Docker's older versions read it.
pub async fn save(engine: &Engine, names: Vec<String>, query: &Query) -> Result<Response> {
    crate::system::check_platform(query.get("platform"))?;
    let mut wanted: Vec<(Digest, Option<Reference>)> = Vec::new();
    for name in &names {
        let found = engine.find_image(name)?;
        if found.host || engine.images.manifest(&found.digest)?.is_over_host() {
            return Err(Error::refused(format!(
                "{name} lies over this machine's own root and means nothing elsewhere"
            )));
        }
        let named = found.name.filter(|it| it.tag.is_some() && it.digest.is_none());
        let named: Vec<Option<Reference>> = match named {
            Some(name) => vec![Some(name)],
            None if found.tags.is_empty() => vec![None],
            None => found.tags.into_iter().map(Some).collect(),
        };
        for name in named {
            engine.events.tell("image", "save", found.digest.as_str(), json!({}));
            wanted.push((found.digest.clone(), name));
        }
    }
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(8);
    let store = engine.images.clone();
    tokio::task::spawn_blocking(move || {
        let errors = sender.clone();
        let out = io::BufWriter::with_capacity(64 * 1024, ToChannel(sender));
        if let Err(error) = write_archive(&store, &wanted, out) {
            let _ = errors.blocking_send(Err(io::Error::other(error.message)));
        }
    });
    Ok(streamed("application/x-tar", tokio_stream::wrappers::ReceiverStream::new(receiver)))
}

pub fn write_archive(
    store: &ImageStore,
    wanted: &[(Digest, Option<Reference>)],
    out: impl Write,
) -> Result<()> {
    let mut out = tar::Builder::new(out);
    let (mut index, mut listed): (Vec<Value>, BTreeMap<Digest, Value>) = Default::default();
    let mut blobs: BTreeSet<Digest> = BTreeSet::new();
    let place = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    for (digest, name) in wanted {
        let several = store.as_index(digest)?;
        let media_type = match &several {
            Some(it) => it.media_type.clone(),
            None => store.manifest(digest)?.media_type,
        };
        let size = store.blob_size(digest).unwrap_or(0);
        let mut entry = json!({"mediaType": media_type, "digest": digest, "size": size});
        if let Some(name) = name {
            entry["annotations"] =
                json!({"io.containerd.image.name": name.tag_name(), ANNOTATION_REF_NAME: name.tag});
        }
        index.push(entry);
        blobs.insert(digest.clone());
        let children =
            several.map_or(vec![digest.clone()], |it| it.manifests.into_iter().map(|it| it.digest).collect());
        for child in &children {
            let manifest = store.manifest(child)?;
            blobs.insert(child.clone());
            blobs.insert(manifest.config.digest.clone());
            blobs.extend(manifest.layers.iter().map(|it| it.digest.clone()));
        }
        // Older readers know one platform: this one.
        let Some(child) = store.for_this_machine(digest)? else { continue };
        let manifest = store.manifest(&child)?;
        let one = listed.entry(child).or_insert_with(|| {
            json!({"Config": place(&manifest.config.digest), "RepoTags": [],
                "Layers": manifest.layers.iter().map(|it| place(&it.digest)).collect::<Vec<_>>()})
        });
        if let (Some(name), Some(tags)) = (name, one["RepoTags"].as_array_mut()) {
            tags.push(json!(name.familiar()));
        }
    }
    let mut add = |name: &str, size: u64, from: &mut dyn Read| -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size);
        out.append_data(&mut header, name, from)
    };
    for digest in &blobs {
        let mut file = File::open(store.blob_path(digest))?;
        let size = file.metadata()?.len();
        add(&place(digest), size, &mut file)?;
    }
    let listed: Vec<&Value> = listed.values().collect();
    for (name, document) in [
        ("index.json", json!({"schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": index})),
        ("manifest.json", json!(listed)),
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
    ] {
        let text = document.to_string();
        add(name, text.len() as u64, &mut text.as_bytes())?;
    }
    out.into_inner()?.flush()?;
    Ok(())
}

/// `docker load`.
pub async fn load(State(engine): State<Engine>, RawQuery(query): RawQuery, body: Body) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    crate::system::check_platform(query.get("platform"))?;
    let store = engine.images.clone();
    let (scratch, path) = spool(&store, body).await?;
    let loaded = blocking(move || {
        let names = read_archive(&store, scratch.path(), &path);
        drop(scratch);
        names
    })
    .await?;
    let mut lines = Vec::new();
    for name in loaded {
        engine.events.tell("image", "load", &name, json!({"name": name}));
        let what = if name.starts_with("sha256:") { "Loaded image ID" } else { "Loaded image" };
        lines.push(json!({"stream": format!("{what}: {name}\n")}));
    }
    Ok(json_lines(futures::stream::iter(lines)))
}

/// Puts the images of an archive into the store and returns their names.
fn read_archive(store: &ImageStore, scratch: &FilePath, path: &FilePath) -> Result<Vec<String>> {
    let wrong = |why: &str| Error::bad(format!("cannot load the archive: {why}"));
    let plain = naru_image::decompress(io::BufReader::new(File::open(path)?))?;
    // Each file under a number: names of the archive never become paths.
    let mut files: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut number = 0;
    naru_image::each_entry::<_, io::Error>(plain, |entry| {
        number += 1;
        if number > ENTRIES_MAX {
            return Err(io::Error::other("it has too many entries"));
        }
        let clean = |path: &FilePath| -> PathBuf {
            path.components().filter(|it| matches!(it, std::path::Component::Normal(_))).collect()
        };
        let name = clean(&entry.path()?);
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let place = scratch.join(number.to_string());
            io::copy(entry, &mut File::create(&place)?)?;
            files.insert(name, place);
        } else if kind.is_symlink() || kind.is_hard_link() {
            // Older archives name the same layer twice by a link.
            let target = entry.link_name().ok().flatten().unwrap_or_default().into_owned();
            let target = match kind.is_symlink() {
                true => clean(
                    &name.parent().unwrap_or(FilePath::new("")).join(
                        target
                            .components()
                            .filter(|it| !matches!(it, std::path::Component::ParentDir))
                            .collect::<PathBuf>(),
                    ),
                ),
                false => clean(&target),
            };
            let found = files.get(&target).or_else(|| {
                // `../<layer>/layer.tar`, as Docker's old archives have it.
                let tail: PathBuf =
                    target.iter().rev().take(2).collect::<Vec<_>>().into_iter().rev().collect();
                files.get(&tail)
            });
            if let Some(found) = found.cloned() {
                files.insert(name, found);
            }
        }
        Ok(())
    })
    .map_err(|it| wrong(&it.to_string()))?;
    let read = |name: &FilePath| -> Result<Vec<u8>> {
        let place = files.get(name).ok_or_else(|| wrong(&format!("it has no {}", name.display())))?;
        if place.metadata()?.len() > DOCUMENT_BYTES_MAX {
            return Err(wrong(&format!("{} is too large", name.display())));
        }
        Ok(std::fs::read(place)?)
    };
    if files.contains_key(FilePath::new("manifest.json")) {
        return read_docker_archive(store, &files, &read, &wrong);
    }
    if files.contains_key(FilePath::new("index.json")) {
        return read_layout(store, &files, &read, &wrong);
    }
    Err(wrong("it has neither a manifest.json nor an index.json"))
}

/// Copies a file into the store, checked against its digest if there is one.
fn put_file(store: &ImageStore, path: &FilePath, expected: Option<&Digest>) -> Result<(Digest, u64)> {
    let mut blob = store.begin_blob()?;
    io::copy(&mut File::open(path)?, &mut blob)?;
    Ok(blob.commit(expected)?)
}

type Files = BTreeMap<PathBuf, PathBuf>;

fn read_layout(
    store: &ImageStore,
    files: &Files,
    read: &dyn Fn(&FilePath) -> Result<Vec<u8>>,
    wrong: &dyn Fn(&str) -> Error,
) -> Result<Vec<String>> {
    let index: Value =
        serde_json::from_slice(&read(FilePath::new("index.json"))?).map_err(|it| wrong(&it.to_string()))?;
    let mut names = Vec::new();
    let place = |digest: &Digest| PathBuf::from(format!("blobs/sha256/{}", digest.hex()));
    for entry in index["manifests"].as_array().into_iter().flatten() {
        let entry: Descriptor = serde_json::from_value(entry.clone()).map_err(|it| wrong(&it.to_string()))?;
        let mut digest = entry.digest.clone();
        let mut bytes = read(&place(&digest))?;
        let document: Value = serde_json::from_slice(&bytes).map_err(|it| wrong(&it.to_string()))?;
        if document["manifests"].is_array() {
            let ours = document["manifests"].as_array().into_iter().flatten().find(|it| {
                it["platform"].is_null()
                    || (it["platform"]["architecture"] == architecture() && it["platform"]["os"] == "linux")
            });
            let ours = ours.and_then(|it| Digest::parse(it["digest"].as_str()?).ok());
            digest = ours.ok_or_else(|| wrong(&format!("{digest} has no variant for this machine")))?;
            bytes = read(&place(&digest))?;
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|it| wrong(&it.to_string()))?;
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            let place = files
                .get(&place(&blob.digest))
                .ok_or_else(|| wrong(&format!("the blob {} is missing", blob.digest)))?;
            put_file(store, place, Some(&blob.digest))?;
        }
        if Digest::of(&bytes) != digest {
            return Err(wrong(&format!("the manifest {digest} has another digest")));
        }
        store.put_blob(&bytes)?;
        let named = ["io.containerd.image.name", ANNOTATION_REF_NAME]
            .iter()
            .find_map(|it| entry.annotations.get(*it));
        match named.and_then(|it| Reference::parse(it).ok()) {
            Some(name) => {
                store.tag(&name, &digest, media_type::MANIFEST)?;
                names.push(name.familiar());
            }
            None => names.push(digest.to_string()),
        }
    }
    Ok(names)
}

fn read_docker_archive(
    store: &ImageStore,
    files: &Files,
    read: &dyn Fn(&FilePath) -> Result<Vec<u8>>,
    wrong: &dyn Fn(&str) -> Error,
) -> Result<Vec<String>> {
    let list: Value = serde_json::from_slice(&read(FilePath::new("manifest.json"))?)
        .map_err(|it| wrong(&it.to_string()))?;
    let mut names = Vec::new();
    for image in list.as_array().into_iter().flatten() {
        let config_bytes = read(FilePath::new(text(image, "/Config")))?;
        let config: ImageConfig =
            serde_json::from_slice(&config_bytes).map_err(|it| wrong(&it.to_string()))?;
        let paths = texts(&image["Layers"]);
        if paths.len() != config.rootfs.diff_ids.len() {
            return Err(wrong("its configuration and its list of layers disagree"));
        }
        let mut layers = Vec::new();
        for (path, diff_id) in paths.iter().zip(&config.rootfs.diff_ids) {
            let place = files
                .get(FilePath::new(path))
                .ok_or_else(|| wrong(&format!("the layer {path} is missing")))?;
            let mut head = [0; 8];
            let count = File::open(place)?.read(&mut head)?;
            let compressed = naru_image::Compression::sniff(&head[..count]);
            let (kind, expected) = match compressed {
                naru_image::Compression::None => (media_type::LAYER, Some(diff_id)),
                naru_image::Compression::Gzip => (media_type::LAYER_GZIP, None),
                naru_image::Compression::Zstd => (media_type::LAYER_ZSTD, None),
            };
            let (digest, size) = put_file(store, place, expected)?;
            layers.push(Descriptor::new(kind, digest, size));
        }
        let config_digest = store.put_blob(&config_bytes)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::MANIFEST.into(),
            config: Descriptor::new(media_type::CONFIG, config_digest, config_bytes.len() as u64),
            layers,
            annotations: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|it| wrong(&it.to_string()))?;
        let digest = store.put_blob(&bytes)?;
        let tags = texts(&image["RepoTags"]);
        if tags.is_empty() {
            names.push(digest.to_string());
        }
        for tag in tags {
            let name = Reference::parse(&tag).map_err(|error| wrong(&error.to_string()))?;
            store.tag(&name, &digest, media_type::MANIFEST)?;
            names.push(name.familiar());
        }
        // Unpacked now: a layer that lies about its digest is told at once.
        store.load("loaded", &digest)?;
    }
    Ok(names)
}
