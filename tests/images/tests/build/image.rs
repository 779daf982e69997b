//! An image as anybody sees it: the tree that its layers make, and its configuration. Read from an OCI
//! archive with nothing of ours.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

pub struct Image {
    /// By path: what `ls -l` would tell, and the content.
    pub tree: BTreeMap<String, String>,
    pub config: Value,
    pub layers: Vec<Vec<u8>>,
}

impl Image {
    pub fn read(path: &Path) -> Self {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut archive = tar::Archive::new(std::fs::File::open(path).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(name.trim_start_matches("./").to_owned(), bytes);
        }
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let blob = |digest: &Value| {
            let digest = digest.as_str().unwrap().replace(':', "/");
            files.get(&format!("blobs/{digest}")).unwrap_or_else(|| panic!("no blob {digest}"))
        };
        let index = json(&files["index.json"]);
        let manifest = json(blob(&index["manifests"][0]["digest"]));
        let config = json(blob(&manifest["config"]["digest"]));
        let mut image = Self { tree: BTreeMap::new(), config, layers: Vec::new() };
        for layer in manifest["layers"].as_array().unwrap() {
            let bytes = blob(&layer["digest"]);
            let mut plain = Vec::new();
            flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut plain).unwrap();
            image.apply(&plain);
            image.layers.push(plain);
        }
        image
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.tree.retain(|it, _| it != path && !it.starts_with(&below));
    }

    fn apply(&mut self, plain: &[u8]) {
        for entry in tar::Archive::new(plain).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let path = path.trim_start_matches("./").trim_matches('/').to_owned();
            if path.is_empty() {
                continue;
            }
            let name = path.rsplit('/').next().unwrap();
            if let Some(hidden) = name.strip_prefix(".wh.") {
                let parent = path.rsplit_once('/').map_or("", |it| it.0);
                match hidden {
                    ".wh..opq" => {
                        let below = format!("{parent}/");
                        self.tree.retain(|it, _| !it.starts_with(&below));
                    }
                    _ => self.remove(format!("{parent}/{hidden}").trim_start_matches('/')),
                }
                continue;
            }
            let kind = entry.header().entry_type();
            if !kind.is_dir() {
                self.remove(&path);
            }
            let header = entry.header();
            let mode = header.mode().unwrap() & 0o7777;
            let owner = format!("{}:{}", header.uid().unwrap(), header.gid().unwrap());
            let target = entry.link_name().unwrap().map(|it| it.display().to_string());
            let shown = if kind.is_dir() {
                format!("directory {mode:o} {owner}")
            } else if kind.is_symlink() {
                format!("-> {} {owner}", target.unwrap())
            } else if kind.is_hard_link() {
                // What it is a link to, which is in the same layer.
                self.tree[target.unwrap().trim_start_matches("./")].clone()
            } else {
                use sha2::Digest;
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                let content = match std::str::from_utf8(&bytes) {
                    Ok(it) if it.len() < 100 => format!("{it:?}"),
                    _ => format!("{} bytes {:x}", bytes.len(), sha2::Sha256::digest(&bytes)),
                };
                format!("file {mode:o} {owner} {content}")
            };
            self.tree.insert(path, shown);
        }
    }
}
