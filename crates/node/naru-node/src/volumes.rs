//! The files that a pod's containers share: what each kind of volume is on the disk, and the binds of a
//! container.

pub mod files;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use naru_runtime::{MemoryVolume, Mount};

use crate::environment::expand_path;
use crate::pod::{DesiredContainer, DesiredPod, FileSource, Volume};

/// Where a pod's volumes are.
#[derive(Debug, Clone)]
pub struct Places {
    /// On disk, with the pod's other files.
    pub disk: PathBuf,
    /// In memory: secrets never touch the disk.
    pub memory: PathBuf,
    /// What claims are bound to, by the claim's name.
    pub claims: BTreeMap<String, PathBuf>,
}

impl Places {
    pub fn of(&self, name: &str, volume: &Volume) -> Option<PathBuf> {
        Some(match volume {
            Volume::EmptyDir { memory: false, .. } => self.disk.join(name),
            Volume::EmptyDir { memory: true, .. } | Volume::Files { .. } => self.memory.join(name),
            Volume::HostPath { path, .. } => PathBuf::from(path),
            Volume::Claim { name, .. } => self.claims.get(name)?.clone(),
        })
    }
}

/// Names of the ConfigMaps and Secrets that the pod's volumes show.
pub fn needed_sources(pod: &DesiredPod) -> Vec<(bool, String)> {
    let sources = pod.volumes.values().flat_map(|volume| match volume {
        Volume::Files { sources, .. } => sources.as_slice(),
        _ => &[],
    });
    sources
        .filter_map(|source| match source {
            FileSource::Object(object) => Some((object.secret, object.name.clone())),
            _ => None,
        })
        .collect()
}

/// Makes every volume but those of files. Made again after a restart of the daemon it changes nothing.
pub fn prepare(pod: &DesiredPod, places: &Places) -> Result<(), String> {
    for (name, volume) in &pod.volumes {
        let failed = |error: io::Error| format!("volume {name}: {error}");
        let Some(path) = places.of(name, volume) else { continue };
        match volume {
            Volume::EmptyDir { .. } => {
                // World-writable as everywhere: the containers' users are unknown here.
                make_directory(&path, 0o777).map_err(failed)?;
                if let Some(group) = pod.fs_group {
                    std::os::unix::fs::chown(&path, None, Some(group)).map_err(failed)?;
                    fs::set_permissions(&path, Permissions::from_mode(0o2777)).map_err(failed)?;
                }
            }
            Volume::HostPath { kind, .. } => {
                prepare_host_path(&path, kind).map_err(|error| format!("volume {name}: {error}"))?
            }
            Volume::Claim { read_only, .. } => {
                make_missing(&path, 0o777).map_err(failed)?;
                if let Some(group) = pod.fs_group.filter(|_| !read_only) {
                    give_to_group(&path, group).map_err(failed)?;
                }
            }
            Volume::Files { .. } => {}
        }
    }
    Ok(())
}

/// Volumes in memory that the pod's shim mounts, so that they vanish with the pod and count as its memory.
pub fn memory_volumes(pod: &DesiredPod, places: &Places) -> Vec<MemoryVolume> {
    pod.volumes
        .iter()
        .filter_map(|(name, volume)| match volume {
            Volume::EmptyDir { memory: true, size_bytes_max } => Some(MemoryVolume {
                path: places.memory.join(name),
                bytes_max: *size_bytes_max,
                group: pod.fs_group,
            }),
            _ => None,
        })
        .collect()
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// One that is there keeps its mode: it may be somebody's.
fn make_missing(path: &Path, mode: u32) -> io::Result<()> {
    match path.exists() {
        true => Ok(()),
        false => make_directory(path, mode),
    }
}

/// The pod's group may read and write everything below; done once, which the root's group tells.
fn give_to_group(path: &Path, group: u32) -> io::Result<()> {
    let found = path.symlink_metadata()?;
    if found.gid() == group && found.mode() & 0o2060 == 0o2060 {
        return Ok(());
    }
    // The root last: an interrupted walk is begun again.
    fn walk(path: &Path, group: u32) -> io::Result<()> {
        let found = path.symlink_metadata()?;
        if found.is_dir() {
            for entry in fs::read_dir(path)? {
                walk(&entry?.path(), group)?;
            }
        }
        std::os::unix::fs::lchown(path, None, Some(group))?;
        let more = match () {
            () if found.is_dir() => 0o2770,
            () if found.is_file() => 0o660,
            () => return Ok(()),
        };
        fs::set_permissions(path, Permissions::from_mode(found.mode() & 0o7777 | more))
    }
    walk(path, group)
}

fn prepare_host_path(path: &Path, kind: &str) -> Result<(), String> {
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("hostPath {} is not an absolute path without `..`", path.display()));
    }
    use std::os::unix::fs::FileTypeExt;
    let found = path.metadata().ok().map(|metadata| metadata.file_type());
    let missing = || format!("hostPath type check failed: {} is not a {kind}", path.display());
    let io = |error: io::Error| format!("hostPath {}: {error}", path.display());
    match kind {
        // As everywhere: what is not there becomes a directory.
        "" if found.is_none() => DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(io),
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => {
            DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(io)
        }
        "FileOrCreate" if found.is_none() => {
            File::options().create_new(true).write(true).mode(0o644).open(path).map(drop).map_err(io)
        }
        "Directory" | "DirectoryOrCreate" => found.filter(fs::FileType::is_dir).map(drop).ok_or_else(missing),
        "File" | "FileOrCreate" => found.filter(fs::FileType::is_file).map(drop).ok_or_else(missing),
        "Socket" => found.filter(FileTypeExt::is_socket).map(drop).ok_or_else(missing),
        "CharDevice" => found.filter(FileTypeExt::is_char_device).map(drop).ok_or_else(missing),
        "BlockDevice" => found.filter(FileTypeExt::is_block_device).map(drop).ok_or_else(missing),
        _ => Err(format!("hostPath type {kind} is not supported by this node")),
    }
}

/// The binds of one container. Volumes of files are read-only whatever the pod says, as everywhere.
pub fn mounts(
    pod: &DesiredPod,
    container: &DesiredContainer,
    environment: &[(String, String)],
    places: &Places,
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for mount in &container.mounts {
        let volume = pod.volumes.get(&mount.volume).ok_or_else(|| {
            format!(
                "container {} mounts the volume {}, which the pod does not have",
                container.name, mount.volume
            )
        })?;
        let source = places
            .of(&mount.volume, volume)
            .ok_or_else(|| format!("the claim of volume {} is not bound", mount.volume))?;
        let sub_path = match mount.sub_path_expression.as_str() {
            "" => mount.sub_path.clone(),
            expression => expand_path(expression, environment)?,
        };
        check_sub_path(&sub_path)?;
        let read_only = match volume {
            Volume::Files { .. } => true,
            Volume::Claim { read_only, .. } => *read_only || mount.read_only,
            _ => mount.read_only,
        };
        mounts.push(Mount {
            sub_path: Some(PathBuf::from(sub_path)).filter(|it| !it.as_os_str().is_empty()),
            ..Mount::new(source, &mount.path, read_only)
        });
    }
    Ok(mounts)
}

/// kubelet's rules and words for a path below a volume.
fn check_sub_path(path: &str) -> Result<(), String> {
    if Path::new(path).is_absolute() {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if Path::new(path).components().any(|part| part == Component::ParentDir) {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::lower_pod;

    fn pod(volumes: Value, mounts: Value) -> DesiredPod {
        lower_pod(&json!({"metadata": {"name": "p"}, "spec": {"volumes": volumes, "containers": [
            {"name": "a", "image": "i", "volumeMounts": mounts}]}}))
    }

    fn places(directory: &tempfile::TempDir) -> Places {
        Places {
            disk: directory.path().join("disk"),
            memory: directory.path().join("memory"),
            claims: BTreeMap::new(),
        }
    }

    #[test]
    fn paths_below_a_volume_stay_below_it() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(&directory);
        let bind = |mount: Value| {
            let pod = pod(json!([{"name": "v", "emptyDir": {}}]), json!([mount]));
            mounts(&pod, &pod.containers[0], &[("A".into(), "x".into()), ("B".into(), "..".into())], &places)
                .map(|mounts| mounts[0].sub_path.clone())
        };
        assert_eq!(bind(json!({"name": "v", "mountPath": "/v"})), Ok(None));
        assert_eq!(bind(json!({"name": "v", "subPath": "a/b"})), Ok(Some("a/b".into())));
        assert_eq!(bind(json!({"name": "v", "subPathExpr": "$(A)/b"})), Ok(Some("x/b".into())));
        assert!(bind(json!({"name": "v", "subPathExpr": "$(B)"})).unwrap_err().contains("'..'"));
        assert!(bind(json!({"name": "v", "subPath": "/etc"})).unwrap_err().contains("absolute"));
        assert!(bind(json!({"name": "w"})).unwrap_err().contains("does not have"));
    }

    #[test]
    fn host_paths_are_what_their_type_says() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str, kind: &str| prepare_host_path(&directory.path().join(name), kind);
        at("d", "DirectoryOrCreate").unwrap();
        at("d", "Directory").unwrap();
        at("f", "FileOrCreate").unwrap();
        assert!(at("f", "Directory").unwrap_err().contains("is not a Directory"));
        assert!(at("none", "Socket").is_err());
        assert!(prepare_host_path(Path::new("/a/../b"), "").is_err());
    }

    #[test]
    fn a_group_gets_everything_of_a_claim_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir(path.join("d")).unwrap();
        fs::write(path.join("d/f"), "x").unwrap();
        if give_to_group(path, 4711).is_err() {
            return; // Without root a group cannot be given away.
        }
        let found = path.join("d/f").metadata().unwrap();
        assert_eq!((found.gid(), found.mode() & 0o777), (4711, 0o664));
        assert_eq!(path.metadata().unwrap().mode() & 0o2070, 0o2070);
    }
}
