//! The pipeline's controller: watches `Run`s and drives each that has not ended.
//!
//! One task per run. It holds nothing that is not in the objects: the plan is read again from the commit,
//! how far a job is comes from its pod's log. So a daemon that was killed takes every run up again.

mod again;
pub mod beside;
mod contexts;
mod driver;
mod egress;
mod environments;
mod expand;
mod follow;
mod groups;
mod lost;
mod places;
mod plans;
mod pod;
mod start;
mod warm;
mod workflows;

pub use egress::Held;
pub use environments::{approval_annotation, secret_name, variables_name};
pub(crate) use pod::words;
pub use pod::{SERVER_HOST, WAIT_TOKEN};
pub use warm::token_of as waiting_token_of;

use crate::launch::Launch;
use crate::warm::Waiting;
use driver::Driver;
use groups::Groups;
use naru_client::{Cache, Client};
use naru_objects::{Run, RunSpec, kinds, labels};
use naru_source::Source;
use naru_token::TokenKey;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// So many runs of a repository are kept, with their pods' logs; older ones go.
const RUNS_KEPT: usize = 30;

/// How often a status that changes all the time is written at most.
const STATUS_EVERY: Duration = Duration::from_millis(150);

/// The pause before a run whose driver met an error is driven again.
const TAKE_UP_PAUSE: Duration = Duration::from_secs(1);

/// In place of an image: jobs with this label are skipped.
pub const LEFT_OUT: &str = "skip";

#[derive(Clone)]
pub struct Config {
    pub namespace: String,
    pub source: Source,
    /// Base URL of the git server as pods reach it; a repository is at `<base>/<name>.git`.
    pub pod_git_url: String,
    /// Where pods reach the daemon's HTTP.
    pub pod_http: SocketAddr,
    /// Who owns the repositories, in GitHub's way of naming them: `<owner>/<name>`.
    pub owner: String,
    /// A keyed hash: of a repository's name, the token that may read it.
    pub run_token: Arc<dyn Fn(&str) -> String + Send + Sync>,
    /// Signs what a job proves itself with.
    pub job_tokens: TokenKey,
    /// What `runs-on` labels map to: label to image, or to [`LEFT_OUT`].
    pub runners: BTreeMap<String, String>,
    /// So many pods are kept ready for jobs on the image that was used last.
    pub warm_pods: usize,
    /// Steps of jobs may build and push images over a Docker socket.
    pub job_docker: bool,
    /// Where those pods ask for their jobs.
    pub waiting: Arc<Waiting>,
    /// Tells whether the rules of a pod's address are in force; none where policies have no effect.
    pub held: Option<Held>,
    /// Our own program on the node, which runs the steps in job pods.
    pub launch: Launch,
}

/// What the drivers of all runs share.
struct Shared {
    config: Config,
    client: Client,
    pods: Cache,
    runs: Cache,
    workflows: Cache,
    environments: Cache,
    /// Pods that wait for a job.
    warm: Cache,
    waiting: Arc<Waiting>,
    /// What the last job ran on, and whether somebody looked for a pod since.
    last_image: Mutex<Option<String>>,
    wanted: Notify,
    groups: Groups,
    /// The highest number that a run of a repository has got.
    numbers: Mutex<HashMap<String, u64>>,
}

/// Watches and drives runs until the task is aborted.
pub fn start(client: Client, config: Config) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut runs = client.cache(&kinds::RUN, Some(&config.namespace), "");
        let pods = client.cache(&kinds::POD, Some(&config.namespace), labels::RUN);
        let workflows = client.cache(&kinds::WORKFLOW, Some(&config.namespace), "");
        runs.synced().await;
        workflows.synced().await;
        pods.synced().await;
        let shared = Arc::new(Shared {
            pods,
            runs: runs.clone(),
            workflows: workflows.clone(),
            environments: client.cache(&kinds::ENVIRONMENT, Some(&config.namespace), ""),
            warm: client.cache(&kinds::POD, Some(&config.namespace), labels::WARM),
            waiting: config.waiting.clone(),
            last_image: Mutex::default(),
            wanted: Notify::new(),
            groups: Groups::default(),
            numbers: Mutex::default(),
            config,
            client,
        });
        shared.restore();
        // All end with this task: a daemon that is stopped must not fail what it can no longer reach.
        let mut clock = JoinSet::new();
        clock.spawn(workflows::run_by_the_clock(shared.clone()));
        clock.spawn(warm::keep(shared.clone()));
        let mut drivers = JoinSet::new();
        let mut driven = HashMap::<String, tokio::task::Id>::new();
        loop {
            for object in runs.list() {
                let Ok(run) = serde_json::from_value::<Run>((*object).clone()) else { continue };
                if run.status.phase.is_final() || run.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                let uid = run.metadata.uid;
                if driven.contains_key(&uid) {
                    continue;
                }
                let task = drivers.spawn(take_up(shared.clone(), run.metadata.name));
                driven.insert(uid, task.id());
            }
            prune(&shared).await;
            tokio::select! {
                () = runs.changed() => {}
                Some(ended) = drivers.join_next_with_id() => match ended {
                    Ok((id, ())) => driven.retain(|_, it| *it != id),
                    // Driving it again would break again; the next start of the daemon tries it once more.
                    Err(error) => tracing::error!(%error, "a run's driver broke (this is a bug in Naru)"),
                }
            }
        }
    })
}

impl Shared {
    /// Who holds which concurrency group, and which numbers are taken, as the objects say.
    fn restore(&self) {
        let mut numbers = self.numbers.lock().expect("nothing panics under this lock");
        for object in self.runs.list() {
            let Ok(run) = serde_json::from_value::<Run>((*object).clone()) else { continue };
            let highest = numbers.entry(run.spec.repository.clone()).or_default();
            *highest = run.status.number.max(*highest);
            if run.status.phase.is_final() {
                continue;
            }
            for it in &run.status.groups {
                let member = (run.metadata.name.clone(), it.member.clone());
                self.groups.restore(&run.spec.repository, &it.group, member, it.holds);
            }
        }
    }

    /// The default branch of a run's repository, as far as a push to it has been seen.
    fn default_ref(&self, spec: &RunSpec) -> String {
        if spec.deploy {
            return spec.git_ref.clone();
        }
        let workflows = self.workflows.list();
        let of_repository = workflows.iter().find(|it| it["spec"]["repository"] == spec.repository.as_str());
        of_repository.and_then(|it| it["spec"]["gitRef"].as_str()).unwrap_or_default().to_owned()
    }

    /// The next number of a repository's runs.
    fn number(&self, repository: &str) -> u64 {
        let mut numbers = self.numbers.lock().expect("nothing panics under this lock");
        let highest = numbers.entry(repository.to_owned()).or_default();
        *highest += 1;
        *highest
    }
}

/// Drives a run as the API has it now: the cached copy may be from before its end.
async fn take_up(shared: Arc<Shared>, name: String) {
    let object = match shared.client.get(&kinds::RUN, &shared.config.namespace, &name).await {
        Ok(Some(object)) => object,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(run = %name, %error, "the run is taken up again");
            return tokio::time::sleep(TAKE_UP_PAUSE).await;
        }
    };
    let Ok(run) = serde_json::from_value::<Run>(object.clone()) else { return };
    if run.status.phase.is_final() {
        // The cache will have it in a moment.
        return tokio::time::sleep(STATUS_EVERY).await;
    }
    Driver::new(shared, run, object).drive().await;
}

/// Old runs go, and with them, as their dependents, pods and logs.
async fn prune(shared: &Shared) {
    let mut of_repository: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for run in shared.runs.list() {
        let ended = !matches!(run["status"]["phase"].as_str(), None | Some("Pending" | "Running"));
        if ended {
            of_repository
                .entry(run["spec"]["repository"].as_str().unwrap_or_default().to_owned())
                .or_default()
                .push((
                    run["spec"]["pushedAt"].as_str().unwrap_or_default().to_owned(),
                    naru_objects::name_of(&run).to_owned(),
                ));
        }
    }
    for mut ended in of_repository.into_values() {
        ended.sort();
        let surplus = ended.len().saturating_sub(RUNS_KEPT);
        for (_, name) in ended.into_iter().take(surplus) {
            if let Err(error) = shared.client.delete(&kinds::RUN, &shared.config.namespace, &name, None).await
            {
                tracing::warn!(%error, "an old run stays");
            }
        }
    }
}

fn already_there_is_fine(result: Result<Value, naru_client::Error>) -> Result<(), naru_client::Error> {
    match result {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}
