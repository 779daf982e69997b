//! What is in an image: what it wastes, which secrets it gives away, which packages it is made of. Reads the
//! unpacked layers; runs nothing of the image.

mod fix;
mod sbom;
mod secrets;
mod waste;

pub use fix::{Fix, fixes, patch};
pub use sbom::{Component, Format, components, document};

use naru_image::{LocalImage, View};
use serde::{Deserialize, Serialize};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A whole distribution has about 200,000 files; an image that needs more is cut off and said to be.
const FILES_MAX: usize = 2_000_000;

/// Something to do better, with what it brings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// A short word for the kind: `deleted-later`, `secret`, `root`.
    pub rule: String,
    pub message: String,
    /// What to write instead.
    pub hint: String,
    /// What the image would be smaller by, unpacked.
    pub saves_bytes: u64,
    /// The layer, from 1 at the bottom, and what made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub created_by: String,
    /// The files that it is about, the largest first; not all if there are many.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub files: Vec<FileUse>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileUse {
    pub path: String,
    pub bytes: u64,
}

/// What [`advise`] found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub image: String,
    pub digest: String,
    /// Of all layers, unpacked.
    pub bytes: u64,
    pub saves_bytes: u64,
    pub advice: Vec<Advice>,
}

/// A file of one layer.
pub(crate) struct LayerFile {
    /// Relative to the image's root.
    pub path: PathBuf,
    pub real: PathBuf,
    pub meta: Metadata,
    /// Index of its layer, from the bottom.
    pub layer: usize,
}

/// All layers' files, bottom first, and how they hide each other.
pub(crate) struct Layers {
    pub files: Vec<LayerFile>,
    /// What made each layer.
    pub created_by: Vec<String>,
    pub view: View,
}

impl Layers {
    pub fn read(image: &LocalImage, layer_dir: impl Fn(usize) -> PathBuf) -> io::Result<Self> {
        let made = image.config.history.iter().filter(|it| !it.empty_layer).map(|it| it.created_by.clone());
        let mut created_by: Vec<String> = made.collect();
        created_by.resize(image.layers.len(), String::new());
        let mut files = Vec::new();
        for (index, layer) in image.layers.iter().enumerate() {
            if !layer.is_empty {
                walk(&layer_dir(index), Path::new(""), index, &mut files)?;
            }
        }
        Ok(Self { files, created_by, view: image.view() })
    }

    /// Whether a container sees this very file.
    pub fn is_seen(&self, file: &LayerFile) -> bool {
        matches!(self.view.entry(&file.path), Ok(Some(found)) if found.real == file.real)
    }
}

fn walk(root: &Path, below: &Path, layer: usize, out: &mut Vec<LayerFile>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let meta = entry.path().symlink_metadata()?;
        let path = below.join(entry.file_name());
        if out.len() >= FILES_MAX {
            return Err(io::Error::other("the image has more than two million files"));
        }
        let is_whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
        if meta.is_dir() {
            walk(root, &path, layer, out)?;
        } else if !is_whiteout {
            out.push(LayerFile { path, real: entry.path(), meta, layer });
        }
    }
    Ok(())
}

/// Everything that is worth saying about an image. Blocks.
pub fn advise(store: &naru_image::ImageStore, image: &LocalImage) -> io::Result<Report> {
    let layers = Layers::read(image, |index| store.layer_dir(&image.layers[index].diff_id))?;
    let mut advice = waste::find(&layers)?;
    advice.extend(secrets::find(&layers, &image.config)?);
    advice.extend(settings(image));
    advice.sort_by_key(|it| std::cmp::Reverse(it.saves_bytes));
    // Bytes that two pieces of advice would both save count once: waste finds disjoint sets.
    let saves_bytes = advice.iter().map(|it| it.saves_bytes).sum();
    let bytes = layers.files.iter().filter(|it| it.meta.is_file()).map(|it| it.meta.len()).sum();
    Ok(Report {
        image: image.reference.clone(),
        digest: image.digest.to_string(),
        bytes,
        saves_bytes,
        advice,
    })
}

/// What the configuration alone tells.
fn settings(image: &LocalImage) -> Vec<Advice> {
    let config = &image.config.config;
    let mut advice = Vec::new();
    let mut say = |rule: &str, message: String, hint: &str| {
        let (rule, hint) = (rule.to_owned(), hint.to_owned());
        advice.push(Advice { rule, message, hint, ..Advice::default() });
    };
    let user = config.user.split(':').next().unwrap_or_default();
    if matches!(user, "" | "0" | "root") {
        let hint = "add `USER 65534:65534` before the `CMD` if the program needs no privileges";
        say("root", "its containers run as root".into(), hint);
    }
    let has_check = config.healthcheck.as_ref().is_some_and(|it| it["Test"][0] != "NONE");
    if !has_check && !config.exposed_ports.is_empty() {
        let ports: Vec<&str> = config.exposed_ports.keys().map(String::as_str).collect();
        let message = format!("it listens on {} and has no HEALTHCHECK", ports.join(", "));
        let hint = "add `HEALTHCHECK CMD [\"/app\", \"--check\"]`, or a probe to the pod";
        say("no-healthcheck", message, hint);
    }
    if image.host.is_some() {
        let message =
            "it lies over this machine's own root: it runs here only and holds every tool".to_owned();
        say("over-host", message, "name a base image of its own in the last `FROM`");
    }
    advice
}
