//! Volumes: PersistentVolumeClaims of the class `local-path`, so that `kubectl get pvc` shows them and a pod of
//! Kubernetes may use them, too.

use std::path::{Path as FilePath, PathBuf};

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use naru_image::LocalImage;
use naru_objects::{kinds, name_of};
use serde_json::{Map, Value, json};

use crate::answer::{Query, created, is_set, json as answer, json_body, nothing, text};
use crate::container::MountPoint;
use crate::engine::{Engine, PATIENCE};
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::names::{is_name, object_name, random_id};

/// On a claim that is a volume: its record as JSON.
const RECORD: &str = "docker.naru.dev/volume";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Claims must ask for something; directories are not limited.
const NOMINAL_SIZE: &str = "1Gi";
/// Made without a name: removed with its container where Docker does so.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

#[derive(Debug, Clone)]
pub struct Volume {
    pub name: String,
    pub claim: String,
    pub created: String,
    pub labels: Value,
    pub options: Value,
    /// Empty until it is bound.
    pub path: PathBuf,
}

impl Volume {
    pub fn is_anonymous(&self) -> bool {
        self.labels.get(ANONYMOUS).is_some()
    }

    fn show(&self) -> Value {
        json!({"CreatedAt": self.created, "Driver": "local", "Labels": self.labels, "Mountpoint": self.path,
            "Name": self.name, "Options": self.options, "Scope": "local"})
    }
}

impl Engine {
    pub fn volumes(&self) -> Vec<Volume> {
        let paths: Map<String, Value> = self
            .volumes
            .list()
            .iter()
            .map(|it| (name_of(it).to_owned(), it["spec"]["local"]["path"].clone()))
            .collect();
        self.claims
            .list()
            .iter()
            .filter_map(|claim| {
                let record: Value =
                    serde_json::from_str(claim["metadata"]["annotations"][RECORD].as_str()?).ok()?;
                let deleting = claim["metadata"]["deletionTimestamp"].is_string();
                let path = paths.get(text(claim, "/spec/volumeName")).and_then(Value::as_str).unwrap_or("");
                (!deleting).then(|| Volume {
                    name: text(&record, "/name").to_owned(),
                    claim: name_of(claim).to_owned(),
                    created: text(&record, "/created").to_owned(),
                    labels: record["labels"].clone(),
                    options: record["options"].clone(),
                    path: path.into(),
                })
            })
            .collect()
    }

    pub fn volume(&self, name: &str) -> Result<Volume> {
        let found = self.volumes().into_iter().find(|it| it.name == name);
        found.ok_or_else(|| Error::missing(format!("get {name}: no such volume")))
    }

    /// The volume, made if there is none; it is on the disk when this returns.
    pub async fn ensure_volume(&self, name: &str, labels: Value, anonymous: bool) -> Result<Volume> {
        let mut labels = if labels.is_object() { labels } else { json!({}) };
        if anonymous {
            labels[ANONYMOUS] = json!("");
        }
        let mut changes = (self.claims.changes(), self.volumes.changes());
        if !self.volumes().iter().any(|it| it.name == name) {
            let record =
                json!({"name": name, "created": crate::answer::now(), "labels": labels, "options": {}});
            let claim = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": object_name(name), "namespace": self.config.namespace,
                    "annotations": {RECORD: record.to_string(), SELECTED_NODE: self.config.node_name}},
                "spec": {"storageClassName": "local-path", "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": NOMINAL_SIZE}}},
            });
            match self.client.create(&kinds::PERSISTENT_VOLUME_CLAIM, &claim).await {
                // One of the same name is on its way out, or somebody was faster.
                Err(error) if error.is_already_exists() => {}
                made => {
                    made?;
                    self.events.tell("volume", "create", name, json!({"driver": "local"}));
                }
            }
        }
        let bound = async {
            loop {
                let found = self.volumes().into_iter().find(|it| it.name == name);
                if let Some(volume) = found.filter(|it| !it.path.as_os_str().is_empty()) {
                    let claim = self.claims.get(&self.config.namespace, &volume.claim);
                    if claim.is_some_and(|it| it["status"]["phase"] == "Bound") {
                        return volume;
                    }
                }
                tokio::select! {
                    () = changes.0.wait() => {}
                    () = changes.1.wait() => {}
                }
            }
        };
        let volume = tokio::time::timeout(PATIENCE, bound).await.map_err(|_| {
            Error::server(format!("the volume {name} was not made in time; see kubectl get pvc,pv"))
        })?;
        std::fs::create_dir_all(&volume.path)?;
        Ok(volume)
    }

    /// The volumes of a new container, those without a name included, filled from the image where that is due.
    pub async fn prepare_mounts(
        &self,
        points: &mut [MountPoint],
        image: &LocalImage,
    ) -> Result<Map<String, Value>> {
        let mut claims = Map::new();
        for point in points.iter_mut() {
            match point.kind.as_str() {
                "volume" => {
                    if point.name.is_empty() {
                        point.name = random_id();
                    } else if !is_name(&point.name) {
                        return Err(Error::bad(format!("invalid volume name: {:?}", point.name)));
                    }
                    let volume = self.ensure_volume(&point.name, json!({}), point.anonymous).await?;
                    point.source = volume.path.display().to_string();
                    if point.copy {
                        let (image, to, from) =
                            (image.clone(), volume.path.clone(), point.destination.clone());
                        let copied =
                            tokio::task::spawn_blocking(move || fill_from_image(&image, &from, &to)).await;
                        copied.map_err(|it| Error::server(it.to_string()))??;
                    }
                    claims.insert(point.name.clone(), json!(volume.claim));
                }
                "bind" if !FilePath::new(&point.source).exists() => {
                    if !point.copy {
                        return Err(Error::bad(format!(
                            "invalid mount config for type \"bind\": bind source path does not exist: {}",
                            point.source
                        )));
                    }
                    std::fs::create_dir_all(&point.source)?;
                }
                _ => {}
            }
        }
        Ok(claims)
    }

    async fn remove_volume(&self, volume: &Volume) -> Result<()> {
        let place = &self.config.namespace;
        self.client.delete(&kinds::PERSISTENT_VOLUME_CLAIM, place, &volume.claim, None).await?;
        let mut changes = self.claims.changes();
        let gone = async {
            while self.claims.get(place, &volume.claim).is_some() {
                changes.wait().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .map_err(|_| Error::conflict(format!("volume {} is still in use", volume.name)))?;
        self.events.tell("volume", "destroy", &volume.name, json!({"driver": "local"}));
        Ok(())
    }

    /// Those without a name that only this container had.
    pub async fn remove_anonymous(&self, points: &[MountPoint]) {
        for point in points.iter().filter(|it| it.anonymous && it.kind == "volume") {
            let Ok(volume) = self.volume(&point.name) else { continue };
            if users(self, &volume.name).is_empty()
                && let Err(error) = self.remove_volume(&volume).await
            {
                tracing::warn!(volume = volume.name, %error, "a volume without a name stays");
            }
        }
    }
}

/// Copies what the image has at a path into a volume that is empty, owners and modes included.
fn fill_from_image(image: &LocalImage, from: &str, to: &FilePath) -> std::io::Result<()> {
    use naru_image::LastLink;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
    if std::fs::read_dir(to)?.next().is_some() {
        return Ok(());
    }
    let view = image.view();
    let relative = FilePath::new(from.trim_start_matches('/'));
    let Some((path, entry)) = view.resolve(relative, LastLink::Follow)? else { return Ok(()) };
    if !entry.meta.is_dir() {
        return Ok(());
    }
    fn copy(
        view: &naru_image::View,
        from: &FilePath,
        meta: &std::fs::Metadata,
        to: &FilePath,
    ) -> std::io::Result<()> {
        for (name, entry) in view.read_directory(from)? {
            let (from, to) = (from.join(&name), to.join(&name));
            let kind = entry.meta.file_type();
            if kind.is_dir() {
                std::fs::create_dir(&to)?;
                copy(view, &from, &entry.meta, &to)?;
            } else if kind.is_symlink() {
                std::os::unix::fs::symlink(std::fs::read_link(&entry.real)?, &to)?;
                lchown(&to, Some(entry.meta.uid()), Some(entry.meta.gid()))?;
            } else if kind.is_file() {
                std::fs::copy(&entry.real, &to)?;
                lchown(&to, Some(entry.meta.uid()), Some(entry.meta.gid()))?;
                std::fs::set_permissions(&to, std::fs::Permissions::from_mode(entry.meta.mode() & 0o7777))?;
            }
        }
        lchown(to, Some(meta.uid()), Some(meta.gid()))?;
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(meta.mode() & 0o7777))
    }
    copy(&view, &path, &entry.meta, to)
}

/// Names of the containers that have a volume.
fn users(engine: &Engine, volume: &str) -> Vec<String> {
    let has = |it: &crate::container::Container| {
        it.record.mounts.iter().any(|it| it.kind == "volume" && it.name == volume)
    };
    engine.containers().iter().filter(|it| has(it)).map(|it| it.id().to_owned()).collect()
}

pub async fn list(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let filters = Filters::parse(query.get("filters"), &["dangling", "driver", "label", "label!", "name"])?;
    let dangling = filters.truth("dangling")?;
    let fits = |it: &Volume| {
        filters.any("name", |name| it.name.contains(name))
            && filters.any("driver", |driver| driver == "local")
            && filters.labels(&it.labels)
            && dangling.is_none_or(|wanted| wanted == users(&engine, &it.name).is_empty())
    };
    let found: Vec<Value> = engine.volumes().iter().filter(|it| fits(it)).map(Volume::show).collect();
    Ok(answer(json!({"Volumes": found, "Warnings": null})))
}

pub async fn create(State(engine): State<Engine>, body: Body) -> Result<Response> {
    let request = json_body(body).await?;
    let driver = text(&request, "/Driver");
    if !["", "local"].contains(&driver) {
        return Err(Error::refused(format!("--driver {driver} is not supported: volumes are local")));
    }
    for (field, flag) in [("DriverOpts", "--opt"), ("ClusterVolumeSpec", "cluster volumes")] {
        if is_set(&request[field]) {
            return Err(Error::refused(format!("{flag} is not supported for volumes: they are directories")));
        }
    }
    let given = text(&request, "/Name");
    let name = if given.is_empty() { random_id() } else { given.to_owned() };
    if !is_name(&name) {
        return Err(Error::bad(format!(
            "create {name}: {name:?} includes invalid characters for a local volume name"
        )));
    }
    let volume = engine.ensure_volume(&name, request["Labels"].clone(), given.is_empty()).await?;
    Ok(created(volume.show()))
}

pub async fn inspect(State(engine): State<Engine>, Path(name): Path<String>) -> Result<Response> {
    Ok(answer(engine.volume(&name)?.show()))
}

pub async fn remove(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let volume = match engine.volume(&name) {
        Err(_) if query.is("force") => return Ok(nothing()),
        found => found?,
    };
    let _turn = engine.creating.lock().await;
    let users = users(&engine, &name);
    if !users.is_empty() {
        return Err(Error::conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
    }
    engine.remove_volume(&volume).await?;
    Ok(nothing())
}

pub async fn prune(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let filters = Filters::parse(query.get("filters"), &["all", "label", "label!"])?;
    let all = filters.truth("all")?.unwrap_or(false);
    let _turn = engine.creating.lock().await;
    let (mut removed, mut bytes) = (Vec::new(), 0);
    for volume in engine.volumes() {
        let wanted = (all || volume.is_anonymous()) && filters.labels(&volume.labels);
        if !wanted || !users(&engine, &volume.name).is_empty() {
            continue;
        }
        bytes += crate::system::bytes_below(&volume.path);
        engine.remove_volume(&volume).await?;
        removed.push(volume.name);
    }
    engine.events.tell("volume", "prune", "", json!({"reclaimed": bytes.to_string()}));
    Ok(answer(json!({"VolumesDeleted": removed, "SpaceReclaimed": bytes})))
}

/// For `docker system df`.
pub fn usage(engine: &Engine) -> Vec<Value> {
    let with_usage = |it: &Volume| {
        let mut shown = it.show();
        shown["UsageData"] = json!({"Size": crate::system::bytes_below(&it.path),
            "RefCount": users(engine, &it.name).len()});
        shown
    };
    engine.volumes().iter().map(with_usage).collect()
}
