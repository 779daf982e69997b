//! From runs to releases: the app's file is checked when the run appears, images are asked for when it has
//! succeeded, and the release is written when they are ready.

use crate::Config;
use naru_client::{Client, EventKind};
use naru_objects::{
    Image, ImagePhase, ImageSpec, Release, ReleasePhase, ReleaseSpec, ReleaseStatus, Run, RunPhase, Strategy,
    kinds, labels, timestamp,
};
use naru_spec::{App, ImageSource, RenderInput, Rendered};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// How long a failed step of this controller waits before the next try.
const RETRY: Duration = Duration::from_secs(2);

/// So many releases of an app are kept; older ones go with their workloads.
const RELEASES_KEPT: usize = 10;

pub async fn run(client: Client, config: Config) {
    let mut runs = client.cache(&kinds::RUN, Some(&config.namespace), "");
    let images = client.cache(&kinds::IMAGE, Some(&config.namespace), "");
    let releases = client.cache(&kinds::RELEASE, Some(&config.namespace), "");
    runs.synced().await;
    images.synced().await;
    releases.synced().await;
    let mut image_changes = images.changes();
    let mut release_changes = releases.changes();
    let mut controller = Controller { client, config, apps: HashMap::new() };
    loop {
        let all_runs: Vec<Run> =
            runs.list().iter().filter_map(|it| serde_json::from_value((**it).clone()).ok()).collect();
        controller.apps.retain(|uid, _| all_runs.iter().any(|it| it.metadata.uid == *uid));
        let mut retry = false;
        for run in all_runs.iter().filter(|it| it.spec.deploy) {
            let annotations = &run.metadata.annotations;
            let no_app = annotations.get(labels::APP_FILE).is_some_and(|it| it == "none");
            if no_app || annotations.contains_key(labels::RELEASED) {
                continue;
            }
            let release = releases
                .list()
                .into_iter()
                .find(|it| naru_objects::label_of(it, labels::RUN) == run.metadata.name);
            if let Some(release) = release.filter(|it| !is_half_written(it)) {
                controller.apps.remove(&run.metadata.uid);
                // Releases are pruned before runs are; the run remembers that it had one.
                let note =
                    json!({"metadata": {"annotations": {labels::RELEASED: naru_objects::name_of(&release)}}});
                let name = &run.metadata.name;
                if let Err(error) = controller
                    .client
                    .patch_merge(&kinds::RUN, &controller.config.namespace, name, &note)
                    .await
                {
                    tracing::warn!(%error, "the run does not know its release yet");
                    retry = true;
                }
                continue;
            }
            if matches!(
                run.status.phase,
                RunPhase::Failed | RunPhase::Refused | RunPhase::Cancelled | RunPhase::Interrupted
            ) {
                controller.apps.remove(&run.metadata.uid);
                continue;
            }
            let images: Vec<Image> = images
                .list()
                .iter()
                .filter(|it| naru_objects::label_of(it, labels::RUN) == run.metadata.name)
                .filter_map(|it| serde_json::from_value((**it).clone()).ok())
                .collect();
            let newer = all_runs.iter().any(|it| {
                it.spec.repository == run.spec.repository
                    && it.spec.deploy
                    && it.spec.pushed_at > run.spec.pushed_at
                    && releases
                        .list()
                        .iter()
                        .any(|release| naru_objects::label_of(release, labels::RUN) == it.metadata.name)
            });
            if let Err(error) = controller.reconcile(run, &images, newer).await {
                tracing::warn!(run = %run.metadata.name, %error, "the release is tried again");
                retry = true;
            }
        }
        if let Err(error) = controller.prune(&releases.list()).await {
            tracing::warn!(%error, "old releases stay");
        }
        tokio::select! {
            () = runs.changed() => {}
            () = image_changes.wait() => {}
            () = release_changes.wait() => {}
            () = tokio::time::sleep(RETRY), if retry => {}
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Source(#[from] naru_source::Error),
    #[error(transparent)]
    Api(#[from] naru_client::Error),
}

struct Controller {
    client: Client,
    config: Config,
    /// What each run's `naru.yaml` says, by the run's uid: read once. `None` is a repository without one.
    apps: HashMap<String, Option<App>>,
}

impl Controller {
    async fn reconcile(&mut self, run: &Run, images: &[Image], newer: bool) -> Result<(), Error> {
        if !self.apps.contains_key(&run.metadata.uid) {
            let tree = self.config.source.checkout(&run.spec.repository, &run.spec.sha).await?;
            let app = match naru_source::read_file(tree.path(), naru_spec::FILE)? {
                None => {
                    let note = json!({"metadata": {"annotations": {labels::APP_FILE: "none"}}});
                    self.client
                        .patch_merge(&kinds::RUN, &self.config.namespace, &run.metadata.name, &note)
                        .await?;
                    None
                }
                Some(source) => {
                    let (app, findings) = naru_spec::parse(&source);
                    for finding in findings.iter().filter(|it| !it.is_error()) {
                        self.warn(run, &finding.render(naru_spec::FILE)).await;
                    }
                    if app.is_none() {
                        let text: Vec<String> =
                            findings.iter().map(|it| it.render(naru_spec::FILE)).collect();
                        return self.failed(run, &text.join("\n")).await;
                    }
                    app
                }
            };
            self.apps.insert(run.metadata.uid.clone(), app);
        }
        let Some(app) = self.apps[&run.metadata.uid].clone() else { return Ok(()) };
        if run.status.phase != RunPhase::Succeeded {
            return Ok(());
        }
        if newer {
            return self
                .ended(run, &app.name, ReleasePhase::Superseded, "a later push was released first")
                .await;
        }
        let mut references = BTreeMap::new();
        for service in &app.services {
            match &service.source {
                ImageSource::Image(reference) => {
                    references.insert(service.name.clone(), reference.clone());
                }
                ImageSource::Build { context, dockerfile, target, args } => {
                    let Some(image) = images.iter().find(|it| it.spec.service == service.name) else {
                        let spec = ImageSpec {
                            repository: run.spec.repository.clone(),
                            sha: run.spec.sha.clone(),
                            change: run.spec.change.clone(),
                            service: service.name.clone(),
                            context: context.clone(),
                            dockerfile: dockerfile.clone(),
                            target: target.clone(),
                            args: args.clone(),
                            ..ImageSpec::default()
                        };
                        self.request_image(run, &app, spec).await?;
                        continue;
                    };
                    match image.status.phase {
                        ImagePhase::Ready => {
                            references.insert(service.name.clone(), image.status.reference.clone());
                        }
                        ImagePhase::Failed => {
                            let why = format!(
                                "the image of `{}` was not built: {}",
                                service.name, image.status.message
                            );
                            return self.failed(run, &why).await;
                        }
                        ImagePhase::Pending | ImagePhase::Building => {}
                    }
                }
            }
        }
        if references.len() == app.services.len() {
            self.release(run, &app, references).await?;
        }
        Ok(())
    }

    async fn request_image(&self, run: &Run, app: &App, spec: ImageSpec) -> Result<(), Error> {
        let image = json!({
            "apiVersion": kinds::IMAGE.api_version(), "kind": kinds::IMAGE.kind,
            "metadata": {
                "name": format!("{}-{}", run.metadata.name, spec.service), "namespace": self.config.namespace,
                "labels": {labels::CHANGE: run.spec.change, labels::APP: app.name, labels::RUN: run.metadata.name,
                           labels::SERVICE: spec.service},
                "ownerReferences": [owner_of(run)]},
            "spec": spec,
        });
        match self.client.create(&kinds::IMAGE, &image).await {
            Err(error) if !error.is_already_exists() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn release(&self, run: &Run, app: &App, images: BTreeMap<String, String>) -> Result<(), Error> {
        self.create(run, &app.name, |number, name| {
            let rendered = naru_spec::render(
                app,
                &RenderInput {
                    namespace: &self.config.namespace,
                    release: name,
                    change: &run.spec.change,
                    images: &images,
                },
            );
            (self.spec(run, &app.name, number, images.clone(), rendered), ReleaseStatus::default())
        })
        .await
    }

    fn spec(
        &self,
        run: &Run,
        app: &str,
        number: u64,
        images: BTreeMap<String, String>,
        rendered: Rendered,
    ) -> ReleaseSpec {
        ReleaseSpec {
            app: app.to_owned(),
            number,
            change: run.spec.change.clone(),
            sha: run.spec.sha.clone(),
            images,
            objects: rendered.objects,
            services: rendered.services,
            rollback_of: None,
        }
    }

    /// A release that will never be: what people look at to see why.
    async fn failed(&self, run: &Run, why: &str) -> Result<(), Error> {
        self.ended(run, &run.spec.repository, ReleasePhase::Failed, why).await
    }

    async fn ended(&self, run: &Run, app: &str, phase: ReleasePhase, why: &str) -> Result<(), Error> {
        self.create(run, app, |number, _| {
            let nothing = Rendered { objects: Vec::new(), services: Vec::new() };
            let now = timestamp(jiff::Timestamp::now());
            let status = ReleaseStatus {
                phase,
                message: why.to_owned(),
                started_at: now.clone(),
                finished_at: now,
                ..ReleaseStatus::default()
            };
            (self.spec(run, app, number, BTreeMap::new(), nothing), status)
        })
        .await
    }

    /// Writes a release under the next free number of the app.
    async fn create(
        &self,
        run: &Run,
        app: &str,
        content: impl Fn(u64, &str) -> (ReleaseSpec, ReleaseStatus),
    ) -> Result<(), Error> {
        // The cache that led here may be older than our own last write: a run has one release.
        let of_run = format!("{}={}", labels::RUN, run.metadata.name);
        let there = self.client.list(&kinds::RELEASE, Some(&self.config.namespace), &of_run).await?;
        if let Some(release) = there.first() {
            if is_half_written(release) {
                let (number, name) =
                    (release["spec"]["number"].as_u64().unwrap_or_default(), naru_objects::name_of(release));
                let status =
                    serde_json::to_value(content(number, name).1).expect("a status always serialises");
                self.client.patch_status(&kinds::RELEASE, &self.config.namespace, name, &status).await?;
            }
            return Ok(());
        }
        loop {
            let number = of_app(&self.client, &self.config.namespace, app)
                .await?
                .iter()
                .map(|it| it.spec.number)
                .max();
            let number = number.unwrap_or_default() + 1;
            let name = release_name(app, number);
            let (spec, status) = content(number, &name);
            let mut object = object_of(&self.config.namespace, &name, &spec, Some(&run.metadata.name));
            // A controller that sees the object must never take an ended release for a new one.
            object["status"] = json!(status);
            match self.client.create(&kinds::RELEASE, &object).await {
                Ok(_) => {
                    if status.phase != ReleasePhase::Pending {
                        let status = serde_json::to_value(&status).expect("a status always serialises");
                        self.client
                            .patch_status(&kinds::RELEASE, &self.config.namespace, &name, &status)
                            .await?;
                    }
                    return Ok(());
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn warn(&self, run: &Run, message: &str) {
        let about = serde_json::to_value(run).expect("a run always serialises");
        self.client.event(&about, EventKind::Warning, "NaruYaml", message).await;
    }

    async fn prune(&self, releases: &[std::sync::Arc<Value>]) -> Result<(), Error> {
        let mut of_app: BTreeMap<&str, Vec<(u64, &str)>> = BTreeMap::new();
        for release in releases {
            let keeps = matches!(
                release["status"]["phase"].as_str(),
                None | Some("Pending" | "Progressing" | "Promoted")
            );
            if !keeps {
                of_app.entry(release["spec"]["app"].as_str().unwrap_or_default()).or_default().push((
                    release["spec"]["number"].as_u64().unwrap_or_default(),
                    naru_objects::name_of(release),
                ));
            }
        }
        for mut ended in of_app.into_values() {
            ended.sort_unstable();
            let surplus = ended.len().saturating_sub(RELEASES_KEPT);
            for (_, name) in ended.into_iter().take(surplus) {
                self.client.delete(&kinds::RELEASE, &self.config.namespace, name, None).await?;
            }
        }
        Ok(())
    }
}

/// Whether a release that ended before it began lacks its end: we were killed between the two writes.
fn is_half_written(release: &Value) -> bool {
    matches!(release["status"]["phase"].as_str(), None | Some("Pending"))
        && release["spec"]["services"].as_array().is_none_or(Vec::is_empty)
}

/// All releases of an app, by number.
pub async fn of_app(client: &Client, namespace: &str, app: &str) -> Result<Vec<Release>, naru_client::Error> {
    let mut all: Vec<Release> = client
        .list(&kinds::RELEASE, Some(namespace), &format!("{}={app}", labels::APP))
        .await?
        .into_iter()
        .filter_map(|it| serde_json::from_value(it).ok())
        .collect();
    all.sort_by_key(|it| it.spec.number);
    Ok(all)
}

/// The content of a release as a new one, with its pods exchanged without a judgement: it was judged when
/// it was new, and whoever rolls back is in a hurry.
pub fn again(release: &Release, number: u64) -> Value {
    let app = &release.spec.app;
    let name = release_name(app, number);
    let rendered =
        Rendered { objects: release.spec.objects.clone(), services: release.spec.services.clone() };
    let mut rendered =
        naru_spec::renumber(&rendered, app, &release.metadata.name, &name, &release.spec.change);
    for service in &mut rendered.services {
        service.strategy = Strategy::Rolling;
    }
    let spec = ReleaseSpec {
        number,
        objects: rendered.objects,
        services: rendered.services,
        rollback_of: Some(release.metadata.name.clone()),
        ..release.spec.clone()
    };
    object_of(&release.metadata.namespace, &name, &spec, None)
}

fn release_name(app: &str, number: u64) -> String {
    format!("{app}-r{number}")
}

fn object_of(namespace: &str, name: &str, spec: &ReleaseSpec, run: Option<&str>) -> Value {
    let mut labels = json!({labels::CHANGE: spec.change, labels::APP: spec.app});
    if let Some(run) = run {
        labels[labels::RUN] = json!(run);
    }
    json!({
        "apiVersion": kinds::RELEASE.api_version(), "kind": kinds::RELEASE.kind,
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": spec,
    })
}

fn owner_of(run: &Run) -> Value {
    json!({"apiVersion": kinds::RUN.api_version(), "kind": kinds::RUN.kind, "name": run.metadata.name,
           "uid": run.metadata.uid, "controller": true, "blockOwnerDeletion": false})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_release_with_nothing_to_run_and_no_end_is_half_written() {
        let release =
            |services: Value, status: Value| json!({"spec": {"services": services}, "status": status});
        assert!(is_half_written(&release(json!([]), Value::Null)));
        assert!(is_half_written(&release(json!([]), json!({"phase": "Pending"}))));
        assert!(!is_half_written(&release(json!([]), json!({"phase": "Failed"}))));
        assert!(!is_half_written(&release(json!([{"service": "web"}]), Value::Null)));
    }
}
