//! Bytes from people who mean no good: Dockerfiles, layer archives, manifests and `Range` headers. Each function takes
//! anything and checks what must hold for anything. Two callers: the deterministic mutations of `tests/hostile`, and
//! the fuzz targets of the same names in `fuzz/`.

#![expect(clippy::unwrap_used, reason = "a check that cannot set itself up fails where it stands")]

use naru_image::{Digest, ImageStore, LocalImage, Platform, Whiteouts};
use naru_registry::range::{Asked, asked};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A Dockerfile is understood or refused, with places that are in it, and the same way each time.
pub fn dockerfile(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let read = naru_builder::parse(&text);
    let lines = u32::try_from(text.lines().count()).unwrap();
    for finding in &read.findings {
        assert!((1..=lines + 1).contains(&finding.place.line), "{finding:?} in {text:?}");
        assert!(!finding.message.is_empty());
        let _ = finding.render("Dockerfile");
    }
    for instruction in read.stages.iter().flat_map(|it| &it.instructions) {
        assert!((1..=lines).contains(&instruction.place.line), "{instruction:?} in {text:?}");
    }
    assert!(read.has_errors() || !read.stages.is_empty(), "nothing to build and nothing to say: {text:?}");
    assert_eq!(format!("{:?}", naru_builder::parse(&text)), format!("{read:?}"));
    let _ = naru_builder::Ignore::parse(&text);
}

/// What stands beside the directory that a layer is unpacked into.
pub struct Yard {
    dir: tempfile::TempDir,
}

const SECRET: &[u8] = b"not to be touched";

impl Yard {
    /// In memory if there is such a place: a few thousand layers are many files.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("naru-hostile-").tempdir_in(place).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), SECRET).unwrap();
        Self { dir }
    }

    /// A layer archive is unpacked or refused; nothing beside its directory is written, linked to or removed.
    pub fn layer(&self, data: &[u8]) {
        let outside = self.dir.path().join("outside");
        let root = self.dir.path().join("root");
        fs::create_dir(&root).unwrap();
        // A link that an attacker might find in the layers below.
        std::os::unix::fs::symlink("../outside", root.join("way-out")).unwrap();
        for whiteouts in [Whiteouts::Hide, Whiteouts::Refuse] {
            if let Ok(mut archive) = naru_image::decompress(data) {
                let _ = naru_image::unpack_as(&mut archive, &root, whiteouts);
            }
        }
        let names: Vec<_> = fs::read_dir(&outside).unwrap().flatten().map(|it| it.file_name()).collect();
        assert_eq!(names, ["secret"], "something was written beside the root");
        let secret = outside.join("secret");
        assert_eq!(fs::read(&secret).unwrap(), SECRET);
        let meta = fs::symlink_metadata(&secret).unwrap();
        assert_eq!(
            (meta.nlink(), meta.mode() & 0o7777, meta.uid()),
            (1, 0o644, nix::unistd::geteuid().as_raw())
        );
        let beside: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().flatten().map(|it| it.file_name()).collect();
        assert_eq!(beside.len(), 2, "{beside:?}");
        fs::remove_dir_all(&root).unwrap();
    }
}

impl Default for Yard {
    fn default() -> Self {
        Self::new()
    }
}

/// A store for documents that come and go.
pub struct Shelf {
    store: ImageStore,
    _dir: tempfile::TempDir,
}

impl Shelf {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("naru-hostile-").tempdir_in(place).unwrap();
        let config = naru_image::Config { dir: dir.path().join("images"), ..Default::default() };
        Self { store: ImageStore::open(config).unwrap(), _dir: dir }
    }

    /// A manifest, an index, a configuration, a referrer or a signature is read or refused, whatever asks for it.
    pub fn manifest(&self, data: &[u8]) {
        let store = &self.store;
        let digest = store.put_blob(data).unwrap();
        let _ = store.as_index(&digest);
        if let Ok(Some(it)) = store.for_platform(&digest, &Platform::here()) {
            assert!(store.blob_size(&it).is_some(), "a platform's image that is not there");
        }
        let image = store.load("x", &digest);
        let _ = store.put_index(std::slice::from_ref(&digest));
        let document: Value = serde_json::from_slice(data).unwrap_or_default();
        let repositories = store.repositories();
        let size = data.len() as u64;
        if let Ok(Some(subject)) =
            repositories.add_manifest("a", &digest, &document, "application/json", size)
        {
            assert!(!repositories.referrers("a", &subject).is_empty());
            let about = LocalImage { digest: subject, ..image.unwrap_or_else(|_| store.scratch_image()) };
            let _ = store.known_signed(&about, "a");
        }
        repositories.remove_manifest("a", &digest, &document).unwrap();
        let signed = [naru_image::Signed::Envelope(document)];
        let spec = naru_objects::ImagePolicySpec {
            authorities: vec![naru_objects::Authority { built_here: true, ..Default::default() }],
            ..Default::default()
        };
        let authorities = naru_policy::Authorities::read(&spec).unwrap();
        let own = naru_policy::Own { public_key: vec![7; 32], repository: String::new() };
        let finding = naru_policy::judge(&authorities, &[Digest::of("x")], &signed, Some(&own));
        assert!(matches!(finding, naru_policy::Finding::Lacking(_)), "nobody has signed it");
        fs::remove_file(store.blob_path(&digest)).unwrap();
    }
}

impl Default for Shelf {
    fn default() -> Self {
        Self::new()
    }
}

/// A part of a blob lies in the blob and is not empty.
pub fn range(data: &[u8]) {
    let (size, text) = data.split_at(data.len().min(8));
    let mut number = [0; 8];
    number[..size.len()].copy_from_slice(size);
    let text = String::from_utf8_lossy(text);
    for size in [0, 1, 10, u64::from_le_bytes(number), u64::MAX] {
        if let Asked::Part { start, bytes } = asked(&text, size) {
            assert!(bytes > 0 && start < size && bytes <= size - start, "{text} of {size}: {start}, {bytes}");
        }
    }
}
