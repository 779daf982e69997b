//! Where an image goes: an archive that other tools load, or its files.

use super::remote::Remote;
use crate::error::{Context, Error, Result};
use naru_builder::BuiltImage;
use naru_image::oci::{Index, Manifest, media_type};
use naru_image::{Digest, Platform};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

pub struct Output {
    kind: Kind,
    /// `-` is standard output.
    dest: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An OCI layout in an archive.
    Oci,
    /// What `docker load` takes.
    Docker,
    /// The files, as an archive.
    Tar,
    /// The files.
    Local,
    /// The registries of the image's names, which the daemon sends it to.
    Registry,
}

impl Output {
    /// `type=oci,dest=image.tar`, or a directory.
    pub fn parse(text: &str) -> Result<Self> {
        if !text.contains('=') {
            let kind = if text == "-" { Kind::Tar } else { Kind::Local };
            return Ok(Self { kind, dest: text.into() });
        }
        let (mut kind, mut dest) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("type", it)) => {
                    kind = Some(match it {
                        "oci" => Kind::Oci,
                        "docker" => Kind::Docker,
                        "tar" => Kind::Tar,
                        "local" => Kind::Local,
                        "registry" => Kind::Registry,
                        other => {
                            return Err(Error::new(format!("`type={other}` is not an output")).hint(
                                "oci, docker, tar, local and registry are; the image is in the daemon's store anyway",
                            ));
                        }
                    });
                }
                Some(("dest", it)) => dest = Some(PathBuf::from(it)),
                _ => {
                    return Err(Error::new(format!("`{part}` of the output `{text}` is not understood"))
                        .hint("write `type=oci,dest=image.tar`"));
                }
            }
        }
        match (kind, dest) {
            (Some(Kind::Registry), None) => Ok(Self { kind: Kind::Registry, dest: PathBuf::new() }),
            (Some(kind), Some(dest)) => Ok(Self { kind, dest }),
            (Some(Kind::Local), None) | (None, _) => {
                Err(Error::new(format!("the output `{text}` is not complete"))
                    .hint("write `type=local,dest=DIRECTORY`"))
            }
            (Some(kind), None) => Ok(Self { kind, dest: "-".into() }),
        }
    }

    pub fn is_registry(&self) -> bool {
        self.kind == Kind::Registry
    }

    /// What this output cannot hold is said before anything is built.
    pub fn check(&self, platforms: usize) -> Result<()> {
        if platforms > 1 && matches!(self.kind, Kind::Docker | Kind::Tar) {
            return Err(Error::new("this output holds an image for one platform only").hint(
                "write `-o type=oci,dest=image.tar`, `-o type=local,dest=DIRECTORY`, or build one platform",
            ));
        }
        Ok(())
    }

    pub async fn write(&self, remote: &Remote, image: &BuiltImage) -> Result<()> {
        let top = document(remote, &image.digest).await?;
        let index: Option<Index> = match top.0["manifests"].is_array() {
            true => Some(serde_json::from_value(top.0.clone())?),
            false => None,
        };
        // Bottom of everything: manifests with their blobs.
        let mut manifests = Vec::new();
        match &index {
            None => manifests.push((None, image.digest.clone(), top.1.clone())),
            Some(index) => {
                for it in &index.manifests {
                    let bytes = document(remote, &it.digest).await?.1;
                    manifests.push((it.platform.clone(), it.digest.clone(), bytes));
                }
            }
        }
        let mut parts = Vec::new();
        for (platform, digest, bytes) in manifests {
            let manifest: Manifest = serde_json::from_slice(&bytes)?;
            let mut blobs = Vec::new();
            for descriptor in std::iter::once(&manifest.config).chain(&manifest.layers) {
                let mut file = tempfile::tempfile()?;
                remote.blob(&descriptor.digest, &mut file).await?;
                file.rewind()?;
                blobs.push((descriptor.digest.clone(), descriptor.size, file));
            }
            parts.push(Part { platform, digest, bytes, manifest, blobs });
        }
        let dest = self.dest.clone();
        match self.kind {
            Kind::Registry => Ok(()), // the daemon did it
            Kind::Oci => oci(&top.1, index.is_some(), image, parts, self.open()?).context(|| cannot(&dest)),
            Kind::Docker => {
                let part = parts.swap_remove(0);
                docker(&part.manifest, &image.names, part.blobs, self.open()?).context(|| cannot(&dest))
            }
            Kind::Tar => {
                let part = parts.swap_remove(0);
                naru_image::flatten(&part.layers(), self.open()?).context(|| cannot(&dest))
            }
            Kind::Local => {
                for part in parts {
                    // A directory for each, as BuildKit names them.
                    let dest = match (&index, &part.platform) {
                        (Some(_), Some(it)) => dest.join(it.to_string().replace('/', "_")),
                        _ => dest.clone(),
                    };
                    local(part, &dest).context(|| cannot(&dest))?;
                }
                Ok(())
            }
        }
    }

    fn open(&self) -> Result<Box<dyn Write>> {
        if self.dest == Path::new("-") {
            return Ok(Box::new(std::io::stdout()));
        }
        let file = File::create(&self.dest).context(|| cannot(&self.dest))?;
        Ok(Box::new(std::io::BufWriter::new(file)))
    }
}

/// An image with everything that it is made of.
struct Part {
    platform: Option<Platform>,
    digest: Digest,
    bytes: Vec<u8>,
    manifest: Manifest,
    blobs: Vec<Blob>,
}

impl Part {
    fn layers(self) -> Vec<File> {
        self.blobs.into_iter().skip(1).map(|it| it.2).collect()
    }
}

async fn document(remote: &Remote, digest: &Digest) -> Result<(Value, Vec<u8>)> {
    let mut bytes = Vec::new();
    remote.blob(digest, &mut bytes).await?;
    Ok((serde_json::from_slice(&bytes)?, bytes))
}

fn local(part: Part, dest: &Path) -> Result<()> {
    let mut archive = tempfile::tempfile()?;
    naru_image::flatten(&part.layers(), std::io::BufWriter::new(&mut archive))?;
    archive.rewind()?;
    std::fs::create_dir_all(dest)?;
    // `unpack` never leaves the directory. The files are ours, as when docker writes them.
    let mut archive = tar::Archive::new(std::io::BufReader::new(archive));
    archive.set_preserve_permissions(true);
    Ok(archive.unpack(dest)?)
}

fn cannot(dest: &Path) -> String {
    format!("cannot write {}", dest.display())
}

type Blob = (Digest, u64, File);

fn append(builder: &mut tar::Builder<impl Write>, name: &str, size: u64, content: impl Read) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    Ok(builder.append_data(&mut header, name, content)?)
}

fn oci(top: &[u8], is_index: bool, image: &BuiltImage, parts: Vec<Part>, out: impl Write) -> Result<()> {
    let mut builder = tar::Builder::new(out);
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    append(&mut builder, "oci-layout", layout.len() as u64, layout.as_slice())?;
    let entry = |name: Option<&String>| {
        let mut entry = json!({
            "mediaType": if is_index { media_type::INDEX } else { media_type::MANIFEST },
            "digest": image.digest, "size": top.len(),
        });
        if let Some(name) = name {
            // containerd takes the whole name, everybody else the tag.
            let tag = name.rsplit('/').next().and_then(|it| it.split_once(':')).map_or("latest", |it| it.1);
            entry["annotations"] = json!({
                "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag,
            });
        }
        entry
    };
    let entries: Vec<_> = match image.names.as_slice() {
        [] => vec![entry(None)],
        names => names.iter().map(|it| entry(Some(it))).collect(),
    };
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": entries,
    }))?;
    append(&mut builder, "index.json", index.len() as u64, index.as_slice())?;
    let blob = |it: &Digest| format!("blobs/sha256/{}", it.hex());
    if is_index {
        append(&mut builder, &blob(&image.digest), top.len() as u64, top)?;
    }
    let mut blobs = Vec::new();
    for part in parts {
        append(&mut builder, &blob(&part.digest), part.bytes.len() as u64, part.bytes.as_slice())?;
        blobs.extend(part.blobs);
    }
    for (digest, size, file) in unique(blobs) {
        append(&mut builder, &blob(&digest), size, file)?;
    }
    Ok(builder.into_inner()?.flush()?)
}

fn docker(manifest: &Manifest, names: &[String], blobs: Vec<Blob>, out: impl Write) -> Result<()> {
    let mut builder = tar::Builder::new(out);
    let layers: Vec<String> =
        manifest.layers.iter().map(|it| format!("{}.tar.gz", it.digest.hex())).collect();
    let config = format!("{}.json", manifest.config.digest.hex());
    let list = serde_json::to_vec(&json!([{"Config": config, "RepoTags": names, "Layers": layers}]))?;
    append(&mut builder, "manifest.json", list.len() as u64, list.as_slice())?;
    for (digest, size, file) in unique(blobs) {
        let name = match digest == manifest.config.digest {
            true => config.clone(),
            false => format!("{}.tar.gz", digest.hex()),
        };
        append(&mut builder, &name, size, file)?;
    }
    Ok(builder.into_inner()?.flush()?)
}

/// An image may hold the same layer twice; an archive should not.
fn unique(mut blobs: Vec<Blob>) -> Vec<Blob> {
    let mut seen = std::collections::BTreeSet::new();
    blobs.retain(|it| seen.insert(it.0.to_string()));
    blobs
}
