//! Volumes of files: ConfigMaps, Secrets, the downward API, tokens.
//!
//! [`payload`] says what should be there and is pure; [`write`] puts it there whole or not at all: files lie
//! in a directory of their own, `..data` points to it, and what a container sees are links through
//! `..data`. A change is a new directory and one rename of the link, so that a program never sees half of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use crate::environment::{Place, Sources, downward, key_of, keys_of};
use crate::pod::{FileSource, ObjectSource};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub mode: u32,
}

/// By path below the volume.
pub type Payload = BTreeMap<PathBuf, Content>;

/// The link that is swapped.
const DATA: &str = "..data";
/// What a group that is given a volume of files may always do.
const GROUP_MODE: u32 = 0o440;
/// A token is for the pod's user; without a group of the pod nobody knows who that is.
const TOKEN_MODE: u32 = 0o644;
const TOKEN_MODE_WITH_GROUP: u32 = 0o640;

/// What the volume should hold. `tokens` are those of this volume, by path.
pub fn payload(
    sources: &[FileSource],
    mode: u32,
    objects: &Sources,
    tokens: &BTreeMap<String, String>,
    place: &Place,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    let mut put = |path: &str, bytes: Vec<u8>, mode: u32| -> Result<(), String> {
        let relative = Path::new(path);
        if path.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!("`{path}` is not a relative path without `..`"));
        }
        let mode = if place.pod.fs_group.is_some() { mode | GROUP_MODE } else { mode };
        payload.insert(relative.to_owned(), Content { bytes, mode: mode & 0o777 });
        Ok(())
    };
    for source in sources {
        match source {
            FileSource::Object(source) => {
                for (path, bytes, own) in object_files(source, objects)? {
                    put(&path, bytes, own.unwrap_or(mode))?;
                }
            }
            FileSource::Downward(items) => {
                for item in items {
                    let text = downward(&item.value, None, place)?;
                    put(&item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
                }
            }
            FileSource::Token(source) => {
                let token = tokens.get(&source.path).ok_or("a service account token is missing")?;
                let mode = if place.pod.fs_group.is_some() { TOKEN_MODE_WITH_GROUP } else { TOKEN_MODE };
                put(&source.path, token.clone().into_bytes(), mode)?;
            }
        }
    }
    Ok(payload)
}

fn object_files(
    source: &ObjectSource,
    objects: &Sources,
) -> Result<Vec<(String, Vec<u8>, Option<u32>)>, String> {
    let kind = if source.secret { "secret" } else { "configmap" };
    let Some(object) = objects.get(&(source.secret, source.name.clone())).and_then(Option::as_ref) else {
        return match source.optional {
            true => Ok(Vec::new()),
            false => Err(format!("{kind} \"{}\" not found", source.name)),
        };
    };
    let items: Vec<(String, String, Option<u32>)> = match source.items.is_empty() {
        true => keys_of(object).into_iter().map(|key| (key.clone(), key, None)).collect(),
        false => source.items.clone(),
    };
    let mut files = Vec::new();
    for (key, path, mode) in items {
        match key_of(source.secret, object, &key) {
            Some(bytes) => files.push((path, bytes, mode)),
            None if source.optional => {}
            None => return Err(format!("{kind} {} references non-existent key: {key}", source.name)),
        }
    }
    Ok(files)
}

/// Makes `directory` hold `payload`. `stamp` names the new directory and is different every time.
pub fn write(directory: &Path, payload: &Payload, group: Option<u32>, stamp: &str) -> io::Result<()> {
    make(directory)?;
    let data = directory.join(DATA);
    let before = fs::read_link(&data).ok();
    let unchanged = before.as_ref().is_some_and(|it| holds(&directory.join(it), payload));
    if !unchanged {
        let fresh = format!("..{stamp}");
        let target = directory.join(&fresh);
        make(&target)?;
        for (path, content) in payload {
            write_file(&target, path, content, group)?;
        }
        let temporary = directory.join("..data_tmp");
        let _ = fs::remove_file(&temporary);
        symlink(&fresh, &temporary)?;
        fs::rename(&temporary, &data)?;
    }
    // What a container sees: a link for everything at the top.
    let top: BTreeSet<&std::ffi::OsStr> = payload.keys().filter_map(|path| path.iter().next()).collect();
    for name in &top {
        let link = directory.join(name);
        if fs::read_link(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    let current = fs::read_link(&data)?;
    for entry in fs::read_dir(directory)?.flatten() {
        let name = entry.file_name();
        if name == DATA || name == current.as_os_str() || top.contains(name.as_os_str()) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)
}

fn write_file(base: &Path, path: &Path, content: &Content, group: Option<u32>) -> io::Result<()> {
    let target = base.join(path);
    if let Some(parent) = target.parent() {
        make(parent)?;
    }
    let mut file = File::options().create_new(true).write(true).mode(0o600).open(&target)?;
    file.write_all(&content.bytes)?;
    if let Some(group) = group {
        std::os::unix::fs::fchown(&file, None, Some(group))?;
    }
    file.set_permissions(Permissions::from_mode(content.mode))
}

/// True when the directory has exactly these files.
fn holds(directory: &Path, payload: &Payload) -> bool {
    fn count(directory: &Path) -> usize {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.file_type() {
                Ok(kind) if kind.is_dir() => count(&entry.path()),
                _ => 1,
            })
            .sum()
    }
    let same = |(path, content): (&PathBuf, &Content)| {
        let file = directory.join(path);
        file.metadata().is_ok_and(|it| it.permissions().mode() & 0o777 == content.mode)
            && fs::read(&file).is_ok_and(|bytes| bytes == content.bytes)
    };
    directory.is_dir() && count(directory) == payload.len() && payload.iter().all(same)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::environment::Allocatable;
    use crate::pod::{Volume, lower_pod};

    fn check(volume: Value, objects: &Sources) -> Result<Vec<(String, String, u32)>, String> {
        let object = json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"b": "2", "a": "1"}},
            "spec": {"volumes": [volume], "containers": [
                {"name": "a", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}}}]}});
        let pod = lower_pod(&object);
        let Some(Volume::Files { sources, mode }) = pod.volumes.values().next() else {
            panic!("{:?}", pod.problems)
        };
        let allocatable = Allocatable { cpu_millis: 2000, memory_bytes: 1 << 30, disk_bytes: 1 << 40 };
        let place = Place { object: &object, pod: &pod, pod_ip: "", host_ip: "", allocatable, services: &[] };
        let tokens = [("token".to_owned(), "abc".to_owned())].into();
        let payload = payload(sources, *mode, objects, &tokens, &place)?;
        let shown = payload.into_iter().map(|(path, content)| {
            let text = String::from_utf8_lossy(&content.bytes).into_owned();
            (path.display().to_string(), text, content.mode)
        });
        Ok(shown.collect())
    }

    #[test]
    fn a_projected_volume_shows_all_its_sources() {
        let objects: Sources = [
            ((true, "s".to_owned()), Some(json!({"data": {"key": "c2VjcmV0"}}))),
            ((false, "m".to_owned()), Some(json!({"data": {"k": "v"}, "binaryData": {"b": "AAE="}}))),
        ]
        .into();
        let volume = json!({"name": "v", "projected": {"defaultMode": 256, "sources": [
            {"secret": {"name": "s", "items": [{"key": "key", "path": "d/f", "mode": 420}]}},
            {"configMap": {"name": "m"}},
            {"downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "cpu", "resourceFieldRef": {"containerName": "a", "resource": "limits.cpu"}},
                {"path": "asked", "resourceFieldRef":
                    {"containerName": "a", "resource": "requests.cpu", "divisor": "1m"}}]}},
            {"serviceAccountToken": {"path": "token"}},
        ]}});
        let file = |path: &str, text: &str, mode| (path.to_owned(), text.to_owned(), mode);
        assert_eq!(
            check(volume, &objects).unwrap(),
            [
                file("asked", "250", 0o400),
                file("b", "\0\u{1}", 0o400),
                file("cpu", "2", 0o400),
                file("d/f", "secret", 0o644),
                file("k", "v", 0o400),
                file("labels", "a=\"1\"\nb=\"2\"", 0o400),
                file("token", "abc", 0o644),
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named_unless_it_is_optional() {
        let none = Sources::new();
        let missing = json!({"name": "v", "configMap": {"name": "m"}});
        assert_eq!(check(missing, &none).unwrap_err(), "configmap \"m\" not found");
        let optional = json!({"name": "v", "configMap": {"name": "m", "optional": true}});
        assert_eq!(check(optional, &none).unwrap(), []);
        let objects: Sources = [((false, "m".to_owned()), Some(json!({"data": {"k": "v"}})))].into();
        let escaping =
            json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "../x"}]}});
        assert_eq!(check(escaping, &objects).unwrap_err(), "`../x` is not a relative path without `..`");
        let key = json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "z", "path": "x"}]}});
        assert!(check(key, &objects).unwrap_err().ends_with("references non-existent key: z"));
    }

    #[test]
    fn a_change_is_seen_whole_and_leaves_nothing_old() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("v");
        let payload = |files: &[(&str, &str)]| -> Payload {
            let content = |text: &str| Content { bytes: text.as_bytes().to_owned(), mode: 0o644 };
            files.iter().map(|(path, text)| (PathBuf::from(path), content(text))).collect()
        };
        write(&at, &payload(&[("a", "1"), ("d/b", "2")]), None, "one").unwrap();
        assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(at.join("d/b")).unwrap(), "2");
        assert_eq!(fs::read_link(at.join("..data")).unwrap(), Path::new("..one"));
        write(&at, &payload(&[("a", "1"), ("d/b", "2")]), None, "two").unwrap();
        assert_eq!(fs::read_link(at.join("..data")).unwrap(), Path::new("..one"), "nothing changed");
        write(&at, &payload(&[("a", "3"), ("c", "4")]), None, "three").unwrap();
        assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "3");
        assert!(!at.join("d").exists() && !at.join("..one").exists());
        write(&at, &payload(&[]), None, "four").unwrap();
        assert_eq!(fs::read_dir(&at).unwrap().count(), 2, "..data and what it points to");
    }
}
