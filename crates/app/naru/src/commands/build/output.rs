//! Where an image goes: an archive that other tools load, or its files.

use super::remote::Remote;
use crate::error::{Context, Error, Result};
use naru_builder::BuiltImage;
use naru_image::oci::Manifest;
use serde_json::json;
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

    pub async fn write(&self, remote: &Remote, image: &BuiltImage) -> Result<()> {
        let mut bytes = Vec::new();
        remote.blob(&image.digest, &mut bytes).await?;
        let manifest: Manifest = serde_json::from_slice(&bytes)?;
        let mut blobs = Vec::new();
        for descriptor in std::iter::once(&manifest.config).chain(&manifest.layers) {
            let mut file = tempfile::tempfile()?;
            remote.blob(&descriptor.digest, &mut file).await?;
            file.rewind()?;
            blobs.push((descriptor.digest.clone(), descriptor.size, file));
        }
        let (name, dest) = (image.names.clone(), self.dest.clone());
        match self.kind {
            Kind::Registry => Ok(()), // the daemon did it
            Kind::Oci => oci(&bytes, image, blobs, self.open()?).context(|| cannot(&dest)),
            Kind::Docker => docker(&manifest, &name, blobs, self.open()?).context(|| cannot(&dest)),
            Kind::Tar => {
                let layers: Vec<File> = blobs.into_iter().skip(1).map(|it| it.2).collect();
                naru_image::flatten(&layers, self.open()?).context(|| cannot(&dest))
            }
            Kind::Local => {
                let layers: Vec<File> = blobs.into_iter().skip(1).map(|it| it.2).collect();
                let mut archive = tempfile::tempfile()?;
                naru_image::flatten(&layers, std::io::BufWriter::new(&mut archive))?;
                archive.rewind()?;
                std::fs::create_dir_all(&dest).context(|| cannot(&dest))?;
                // `unpack` never leaves the directory. The files are ours, as when docker writes them.
                let mut archive = tar::Archive::new(std::io::BufReader::new(archive));
                archive.set_preserve_permissions(true);
                archive.unpack(&dest).context(|| cannot(&dest))
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

fn cannot(dest: &Path) -> String {
    format!("cannot write {}", dest.display())
}

type Blob = (naru_image::Digest, u64, File);

fn append(builder: &mut tar::Builder<impl Write>, name: &str, size: u64, content: impl Read) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    Ok(builder.append_data(&mut header, name, content)?)
}

fn oci(manifest: &[u8], image: &BuiltImage, blobs: Vec<Blob>, out: impl Write) -> Result<()> {
    let mut builder = tar::Builder::new(out);
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    append(&mut builder, "oci-layout", layout.len() as u64, layout.as_slice())?;
    let entry = |name: Option<&String>| {
        let mut entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.digest, "size": manifest.len(),
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
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries,
    }))?;
    append(&mut builder, "index.json", index.len() as u64, index.as_slice())?;
    append(&mut builder, &format!("blobs/sha256/{}", image.digest.hex()), manifest.len() as u64, manifest)?;
    for (digest, size, file) in unique(blobs) {
        append(&mut builder, &format!("blobs/sha256/{}", digest.hex()), size, file)?;
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
