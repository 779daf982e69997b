//! Does what [`crate::plan`] decided. Every effect is idempotent and is recorded in the release's status
//! only after it was done, so a daemon that dies in between does it again and nothing changes.

use crate::Config;
use crate::plan::{Step, Workload, Workloads, is_judged, plan_next, steps};
use naru_client::{Cache, Client, EventKind};
use naru_objects::release::HistoryEntry;
use naru_objects::{Release, ReleasePhase, ReleaseStatus, kinds, labels, timestamp};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// While something is waited for, deadlines are looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// So often a container of a new release may end before the release has failed.
const RESTARTS_MAX: u64 = 3;

struct Caches {
    releases: Cache,
    deployments: Cache,
    pods: Cache,
    slices: Cache,
}

pub async fn run(client: Client, config: Config) {
    let namespace = Some(config.namespace.as_str());
    let mut caches = Caches {
        releases: client.cache(&kinds::RELEASE, namespace, ""),
        deployments: client.cache(&kinds::DEPLOYMENT, namespace, labels::RELEASE),
        pods: client.cache(&kinds::POD, namespace, labels::RELEASE),
        slices: client.cache(&kinds::ENDPOINT_SLICE, namespace, ""),
    };
    for cache in [&caches.releases, &caches.deployments, &caches.pods, &caches.slices] {
        cache.synced().await;
    }
    let written = Written::default();
    loop {
        let mut apps: BTreeMap<String, Vec<Release>> = BTreeMap::new();
        for object in caches.releases.list() {
            if let Ok(release) = serde_json::from_value::<Release>((*object).clone()) {
                apps.entry(release.spec.app.clone()).or_default().push(release);
            }
        }
        let mut busy = false;
        for releases in apps.values_mut() {
            releases.sort_by_key(|it| it.spec.number);
            let executor = Executor { client: &client, config: &config, caches: &caches, written: &written };
            if releases.iter().any(|it| executor.is_stale(it)) {
                // The copy does not show our own last write yet; deciding by it could undo what was decided.
                busy = true;
                continue;
            }
            match executor.app(releases).await {
                Ok(more) => busy |= more,
                Err(error) => {
                    tracing::warn!(%error, "the rollout is tried again");
                    busy = true;
                }
            }
        }
        let Caches { releases, deployments, pods, slices } = &mut caches;
        tokio::select! {
            () = releases.changed() => {}
            () = deployments.changed() => {}
            () = pods.changed() => {}
            () = slices.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN), if busy => {}
        }
    }
}

/// The resource version of our last write, by release. Versions of one kind can be compared as numbers.
type Written = std::sync::Mutex<BTreeMap<String, u64>>;

struct Executor<'a> {
    client: &'a Client,
    config: &'a Config,
    caches: &'a Caches,
    written: &'a Written,
}

impl Executor<'_> {
    /// One step of an app's releases; true if there is more to come.
    async fn app(&self, releases: &[Release]) -> Result<bool, naru_client::Error> {
        for workload in self.leftovers(releases) {
            self.scale_to_zero(workload).await?;
        }
        let current = releases.iter().rev().find(|it| it.status.phase == ReleasePhase::Promoted);
        let active = releases.iter().find(|it| it.status.phase == ReleasePhase::Progressing);
        let waiting: Vec<&Release> = releases
            .iter()
            .filter(|it| it.status.phase == ReleasePhase::Pending && !it.spec.services.is_empty())
            .collect();
        let next = match (active, waiting.split_last()) {
            (Some(active), _) => active,
            (None, Some((newest, older))) => {
                for release in older {
                    let why = format!("{} was ready before its turn came", newest.metadata.name);
                    self.finish(release, ReleasePhase::Superseded, &why).await?;
                }
                newest
            }
            (None, None) => {
                // A promotion that was interrupted: only one release has the traffic.
                for old in releases.iter().filter(|it| it.status.phase == ReleasePhase::Promoted) {
                    if let Some(current) = current.filter(|it| it.spec.number != old.spec.number) {
                        self.retire(old, current).await?;
                    }
                }
                return Ok(false);
            }
        };
        let previous = current.filter(|it| it.metadata.name != next.metadata.name);
        let step =
            plan_next(next, previous, &self.workloads(&[Some(next), previous]), jiff::Timestamp::now());
        tracing::debug!(release = %next.metadata.name, ?step, "rollout");
        self.execute(next, previous, step).await?;
        Ok(true)
    }

    async fn execute(
        &self,
        release: &Release,
        previous: Option<&Release>,
        step: Step,
    ) -> Result<(), naru_client::Error> {
        let mut status = release.status.clone();
        match step {
            Step::Apply { replicas } => {
                self.apply(release, previous, &replicas).await?;
                status.phase = ReleasePhase::Progressing;
                status.previous = previous.map(|it| it.metadata.name.clone()).unwrap_or_default();
                status.started_at = now();
                note(&mut status, "objects applied");
            }
            Step::Scale { workload, replicas } => {
                self.client.scale(&kinds::DEPLOYMENT, &self.config.namespace, &workload, replicas).await?;
                return Ok(());
            }
            Step::SetWeight { weight } => {
                self.set_weight(release, previous, weight).await?;
                status.weight = weight;
                status.step_started_at = now();
                if status.live_at.is_empty() {
                    status.live_at = now();
                }
                note(&mut status, &format!("{weight} % of the traffic"));
            }
            Step::NextStep => status.step += 1,
            Step::Wait { why } => {
                if status.message == why {
                    return Ok(());
                }
                status.message = why;
            }
            Step::Promote => {
                status.phase = ReleasePhase::Promoted;
                status.promoted_at = now();
                status.step = steps(release, previous).len() as u32;
                status.message = if is_judged(release, previous) {
                    "every step was judged good".into()
                } else {
                    String::new()
                };
                note(&mut status, "promoted");
                self.write(release, &status).await?;
                self.tell(release, EventKind::Normal, "Promoted", &status.message).await;
                if let Some(previous) = previous {
                    self.retire(previous, release).await?;
                }
                return Ok(());
            }
            Step::RollBack { why } => {
                self.restore(release, previous).await?;
                status.weight = 0;
                note(&mut status, "all traffic back on the release before");
                self.write(release, &status).await?;
                self.end(release, status, ReleasePhase::RolledBack, &why).await?;
                return Ok(());
            }
            Step::Fail { why } => {
                self.restore(release, previous).await?;
                self.end(release, status, ReleasePhase::Failed, &why).await?;
                return Ok(());
            }
        }
        self.write(release, &status).await
    }

    async fn end(
        &self,
        release: &Release,
        mut status: ReleaseStatus,
        phase: ReleasePhase,
        why: &str,
    ) -> Result<(), naru_client::Error> {
        for service in &release.spec.services {
            self.scale_to_zero(&service.workload).await?;
        }
        status.phase = phase;
        why.clone_into(&mut status.message);
        status.finished_at = now();
        note(&mut status, if phase == ReleasePhase::RolledBack { "rolled back" } else { "failed" });
        self.write(release, &status).await?;
        self.tell(release, EventKind::Warning, &format!("{phase:?}"), why).await;
        Ok(())
    }

    /// The old release makes room: its pods go, and the routes of services that are no more.
    async fn retire(&self, old: &Release, new: &Release) -> Result<(), naru_client::Error> {
        for service in &old.spec.services {
            self.scale_to_zero(&service.workload).await?;
            if let Some(route) = &service.route
                && !new.spec.services.iter().any(|it| it.route.as_ref() == Some(route))
            {
                self.client.delete(&kinds::HTTP_ROUTE, &self.config.namespace, route, None).await?;
            }
        }
        self.finish(old, ReleasePhase::Superseded, &format!("{} took over", new.metadata.name)).await
    }

    async fn finish(
        &self,
        release: &Release,
        phase: ReleasePhase,
        why: &str,
    ) -> Result<(), naru_client::Error> {
        let mut status = release.status.clone();
        status.phase = phase;
        status.weight = 0;
        why.clone_into(&mut status.message);
        status.finished_at = now();
        self.write(release, &status).await
    }

    /// Workloads of releases that are over which still want pods: the daemon was killed after it had applied a
    /// release and before it wrote so down, and another release came first. Their pods would hold what they
    /// request for ever.
    fn leftovers<'r>(&self, releases: &'r [Release]) -> Vec<&'r str> {
        let workloads = |over| {
            let chosen = releases.iter().filter(move |it| it.status.phase.is_final() == over);
            chosen.flat_map(|it| &it.spec.services).map(|it| it.workload.as_str())
        };
        let used: BTreeSet<&str> = workloads(false).collect();
        let wants_pods = |it: &&str| {
            let deployment = self.caches.deployments.get(&self.config.namespace, it);
            deployment.is_some_and(|it| it["spec"]["replicas"].as_u64() != Some(0))
        };
        workloads(true).filter(|it| !used.contains(it)).filter(wants_pods).collect()
    }

    async fn scale_to_zero(&self, workload: &str) -> Result<(), naru_client::Error> {
        match self.client.scale(&kinds::DEPLOYMENT, &self.config.namespace, workload, 0).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn apply(
        &self,
        release: &Release,
        previous: Option<&Release>,
        replicas: &[(String, u32)],
    ) -> Result<(), naru_client::Error> {
        for object in &release.spec.objects {
            let Some(kind) = kinds::of(object) else {
                tracing::error!(kind = %object["kind"], "this is a bug in Naru: a rendered object of no known kind");
                continue;
            };
            let mut object = object.clone();
            let name = naru_objects::name_of(&object).to_owned();
            if release.spec.services.iter().any(|it| it.workload == name) {
                object["metadata"]["ownerReferences"] = json!([owner_of(release)]);
            }
            if *kind == kinds::DEPLOYMENT
                && let Some((_, count)) = replicas.iter().find(|(workload, _)| *workload == name)
            {
                object["spec"]["replicas"] = json!(count);
            }
            if *kind == kinds::HTTP_ROUTE {
                // Traffic stays where it is until the pods are ready. A first release has nowhere to stay.
                let on_old = previous
                    .is_some_and(|it| it.spec.services.iter().any(|it| it.route.as_deref() == Some(&name)));
                set_backends(&mut object, release, previous, &name, if on_old { 0 } else { 100 });
            }
            self.client.apply(kind, &object, labels::MANAGER).await?;
        }
        Ok(())
    }

    async fn set_weight(
        &self,
        release: &Release,
        previous: Option<&Release>,
        weight: u32,
    ) -> Result<(), naru_client::Error> {
        for object in release.spec.objects.iter().filter(|it| kinds::of(it) == Some(&kinds::HTTP_ROUTE)) {
            let mut object = object.clone();
            let name = naru_objects::name_of(&object).to_owned();
            set_backends(&mut object, release, previous, &name, weight);
            self.client.apply(&kinds::HTTP_ROUTE, &object, labels::MANAGER).await?;
        }
        Ok(())
    }

    /// What releases share (the routes with their host names, the stable services) is as the release
    /// before had it; what only the new one has goes.
    async fn restore(&self, release: &Release, previous: Option<&Release>) -> Result<(), naru_client::Error> {
        let Some(previous) = previous else { return Ok(()) };
        for object in shared_objects(previous) {
            let kind = kinds::of(object).expect("shared objects are of known kinds");
            let mut object = object.clone();
            if *kind == kinds::HTTP_ROUTE {
                let name = naru_objects::name_of(&object).to_owned();
                set_backends(&mut object, previous, None, &name, 100);
            }
            self.client.apply(kind, &object, labels::MANAGER).await?;
        }
        for object in shared_objects(release) {
            let kind = kinds::of(object).expect("shared objects are of known kinds");
            let name = naru_objects::name_of(object);
            let stays = |it: &&Value| kinds::of(it) == Some(kind) && naru_objects::name_of(it) == name;
            if !shared_objects(previous).any(|it| stays(&it)) {
                self.client.delete(kind, &self.config.namespace, name, None).await?;
            }
        }
        Ok(())
    }

    /// What the cluster says about the workloads of these releases.
    fn workloads(&self, releases: &[Option<&Release>]) -> Workloads {
        let namespace = &self.config.namespace;
        let pods = self.caches.pods.list();
        let slices = self.caches.slices.list();
        let mut workloads = Workloads::new();
        for service in releases.iter().flatten().flat_map(|it| &it.spec.services) {
            let deployment = self.caches.deployments.get(namespace, &service.workload);
            let status = deployment.as_ref().map(|it| &it["status"]);
            let current = deployment.as_ref().is_some_and(|it| {
                it["status"]["observedGeneration"].as_u64() >= it["metadata"]["generation"].as_u64()
            });
            let pods_ready =
                status.filter(|_| current).and_then(|it| it["readyReplicas"].as_u64()).unwrap_or_default();
            let endpoints = slices
                .iter()
                .filter(|it| naru_objects::label_of(it, "kubernetes.io/service-name") == service.workload)
                .flat_map(|it| it["endpoints"].as_array().into_iter().flatten())
                .filter(|it| it["conditions"]["ready"].as_bool() != Some(false))
                .count() as u64;
            let ready = if service.port == 0 { pods_ready } else { pods_ready.min(endpoints) };
            let late = status
                .and_then(|it| it["conditions"].as_array())
                .into_iter()
                .flatten()
                .find(|it| it["reason"] == "ProgressDeadlineExceeded")
                .map(|it| it["message"].as_str().unwrap_or("its pods did not get ready in time").to_owned());
            let broken = pods
                .iter()
                .filter(|it| {
                    it["metadata"]["ownerReferences"][0]["name"].as_str().is_some_and(|owner| {
                        owner.strip_prefix(&service.workload).is_some_and(|it| it.starts_with('-'))
                    })
                })
                .find_map(|it| broken_reason(it))
                .or(late);
            workloads.insert(
                service.workload.clone(),
                Workload {
                    wanted: deployment.as_ref().map(|it| it["spec"]["replicas"].as_u64().unwrap_or(1) as u32),
                    ready: ready as u32,
                    broken,
                },
            );
        }
        workloads
    }

    async fn write(&self, release: &Release, status: &ReleaseStatus) -> Result<(), naru_client::Error> {
        let mut status = serde_json::to_value(status).expect("a status always serialises");
        // Verdicts are monitor's to write.
        if let Some(map) = status.as_object_mut() {
            map.remove("verdicts");
        }
        let name = &release.metadata.name;
        let object = self.client.patch_status(&kinds::RELEASE, &self.config.namespace, name, &status).await?;
        let version = object["metadata"]["resourceVersion"].as_str().and_then(|it| it.parse().ok());
        if let Some(version) = version {
            self.written.lock().expect("no holder panics").insert(name.clone(), version);
        }
        Ok(())
    }

    /// Whether a release of the cache is older than what we wrote.
    fn is_stale(&self, release: &Release) -> bool {
        let seen = release.metadata.resource_version.parse::<u64>();
        let written = self.written.lock().expect("no holder panics").get(&release.metadata.name).copied();
        written.zip(seen.ok()).is_some_and(|(written, seen)| seen < written)
    }

    async fn tell(&self, release: &Release, kind: EventKind, reason: &str, message: &str) {
        let about = serde_json::to_value(release).expect("a release always serialises");
        self.client.event(&about, kind, reason, message).await;
    }
}

/// The objects that a release does not have for itself.
fn shared_objects(release: &Release) -> impl Iterator<Item = &Value> {
    release.spec.objects.iter().filter(|it| {
        kinds::of(it).is_some()
            && !release.spec.services.iter().any(|service| service.workload == naru_objects::name_of(it))
    })
}

/// Why a pod of a new release cannot run, if it cannot.
fn broken_reason(pod: &Value) -> Option<String> {
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return None;
    }
    pod["status"]["containerStatuses"].as_array()?.iter().find_map(|container| {
        let waiting = &container["state"]["waiting"];
        let reason = waiting["reason"].as_str().unwrap_or_default();
        let hopeless = matches!(
            reason,
            "ErrImagePull"
                | "ImagePullBackOff"
                | "InvalidImageName"
                | "ErrImageNeverPull"
                | "SignatureValidationFailed"
                | "CreateContainerConfigError"
                | "CreateContainerError"
                | "RunContainerError"
        );
        let restarts = container["restartCount"].as_u64().unwrap_or_default();
        let crashes =
            container["ready"] != true && (reason == "CrashLoopBackOff" || restarts >= RESTARTS_MAX);
        if !hopeless && !crashes {
            return None;
        }
        let last = &container["lastState"]["terminated"];
        let message = waiting["message"].as_str().unwrap_or_default();
        Some(match last["exitCode"].as_i64() {
            Some(code) if crashes => {
                format!("the container ends again and again, last with exit code {code}")
            }
            _ => format!("{reason}: {message}"),
        })
    })
}

/// Splits a route's traffic between the release and the one before it.
fn set_backends(route: &mut Value, release: &Release, previous: Option<&Release>, name: &str, weight: u32) {
    let of = |release: &Release| {
        release
            .spec
            .services
            .iter()
            .find(|it| it.route.as_deref() == Some(name))
            .map(|it| (it.workload.clone(), it.port))
    };
    let mut backends = Vec::new();
    let new = of(release);
    if let Some((old, port)) = previous.and_then(of).filter(|it| new.as_ref() != Some(it)) {
        backends.push(json!({"name": old, "port": port, "weight": 100 - weight}));
    }
    if let Some((new, port)) = new {
        let weight = if backends.is_empty() { 100 } else { weight };
        backends.push(json!({"name": new, "port": port, "weight": weight}));
    }
    route["spec"]["rules"][0]["backendRefs"] = json!(backends);
}

fn note(status: &mut ReleaseStatus, what: &str) {
    status.history.push(HistoryEntry { at: now(), what: what.to_owned() });
}

fn owner_of(release: &Release) -> Value {
    json!({"apiVersion": kinds::RELEASE.api_version(), "kind": kinds::RELEASE.kind,
           "name": release.metadata.name, "uid": release.metadata.uid, "controller": true, "blockOwnerDeletion": false})
}

fn now() -> String {
    timestamp(jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_releases_share_is_told_from_what_is_their_own() {
        let object = |api: &str, kind: &str, name: &str| json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}});
        let release: Release = serde_json::from_value(json!({
            "apiVersion": "naru.dev/v1", "kind": "Release", "metadata": {"name": "shop-r3"},
            "spec": {"app": "shop", "number": 3, "change": "c", "images": {},
                     "services": [{"service": "web", "workload": "shop-web-r3", "replicas": 1, "port": 80,
                                   "strategy": {"type": "rolling"}}],
                     "objects": [
                        object("apps/v1", "Deployment", "shop-web-r3"), object("v1", "Service", "shop-web-r3"),
                        object("v1", "Service", "shop-web"),
                        object("gateway.networking.k8s.io/v1", "HTTPRoute", "shop-web")]},
        }))
        .unwrap();
        let shared: Vec<_> = shared_objects(&release).map(|it| it["kind"].as_str().unwrap()).collect();
        assert_eq!(shared, ["Service", "HTTPRoute"]);
    }
}
