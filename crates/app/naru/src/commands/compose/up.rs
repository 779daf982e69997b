//! `naru up`: a compose project made true, service after service, by server-side apply.

use super::progress::Progress;
use super::state::{State, state};
use super::{MANAGER, ProjectArgs, kind_of, load, load_everything, objects_of};
use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use clap::Args;
use naru_client::{Cache, Client, LogOptions};
use naru_objects::{kinds, name_of};
use naru_spec::compose::{self, PROJECT_LABEL, Project, Rendered, RenderedService};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub project: ProjectArgs,
    /// Do not wait for more than `depends_on` asks for.
    #[arg(short, long, conflicts_with = "wait")]
    pub detach: bool,
    /// Wait until every service is well. This is what happens anyway.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, default_value_t = 300)]
    pub wait_timeout: u64,
    /// Only these services, and what they depend on.
    pub services: Vec<String>,
}

pub async fn run(global: &Global, args: &UpArgs) -> Result<ExitCode> {
    let project = load(&args.project, &args.services)?;
    let client = connection::client(global).await?;
    let images = super::build::build(global, &project).await?;
    let rendered = compose::render(&project, &images);
    ensure_namespace(&client, &project.namespace).await?;
    let existing = check_owners(&client, &project, &rendered).await?;
    for object in &rendered.shared {
        apply(&client, object).await?;
    }
    let watch = Watch::start(&client, &project).await;
    let mut up = Up {
        client: &client,
        watch,
        progress: Progress::new(rendered.services.iter().map(|it| it.name.as_str())),
        deadline: Instant::now() + Duration::from_secs(args.wait_timeout),
        applied: BTreeSet::new(),
    };
    println!("{}: {} in the namespace {}", project.name, count(rendered.services.len()), project.namespace);
    up.services(&rendered, args.detach).await?;
    prune(&client, args, &project, existing).await?;
    if !args.detach {
        up.published(&rendered).await?;
    }
    addresses(global, &client, &project, &rendered).await?;
    Ok(ExitCode::SUCCESS)
}

fn count(services: usize) -> String {
    format!("{services} {}", if services == 1 { "service" } else { "services" })
}

async fn ensure_namespace(client: &Client, name: &str) -> Result<()> {
    if client.get(&kinds::NAMESPACE, "", name).await?.is_none() {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        client.apply(&kinds::NAMESPACE, &namespace, MANAGER).await?;
    }
    Ok(())
}

/// What there is of the project. Objects of others are not taken over.
async fn check_owners(
    client: &Client,
    project: &Project,
    rendered: &Rendered,
) -> Result<Vec<(&'static naru_objects::Kind, Value)>> {
    let existing = objects_of(client, &project.namespace, &project.name).await?;
    for object in rendered.objects() {
        let kind = kind_of(object)?;
        let name = name_of(object);
        if existing.iter().any(|(it, other)| *it == kind && name_of(other) == name) {
            continue;
        }
        if let Some(other) = client.get(kind, &project.namespace, name).await? {
            let owner = match other["metadata"]["labels"][PROJECT_LABEL].as_str() {
                Some(it) => format!("belongs to the project {it}"),
                None => "was not made by `naru up`".to_owned(),
            };
            return Err(Error::new(format!("the {} {name} is there already and {owner}", kind.kind))
                .hint("choose another namespace with --namespace, or rename the service"));
        }
    }
    Ok(existing)
}

/// Applies an object. What can only be changed by making it anew is made anew: a Job's pods, the address
/// of a Service.
async fn apply(client: &Client, object: &Value) -> Result<()> {
    let kind = kind_of(object)?;
    let Err(error) = client.apply(kind, object, MANAGER).await else { return Ok(()) };
    let may_be_replaced = matches!(kind.kind, "Job" | "Service" | "Deployment" | "DaemonSet");
    let is_fixed = ["immutable", "may not change once set"].iter().any(|it| error.message.contains(it));
    if error.code != 422 || !may_be_replaced || !is_fixed {
        return Err(error.into());
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    let gone = client.cache_named(kind, namespace, name_of(object));
    gone.synced().await;
    client.delete(kind, namespace, name_of(object), None).await?;
    let mut changes = gone.changes();
    while gone.get(namespace, name_of(object)).is_some() {
        changes.wait().await;
    }
    client.apply(kind, object, MANAGER).await?;
    Ok(())
}

/// Copies of what the project's services are judged by.
struct Watch {
    namespace: String,
    workloads: [Cache; 3],
    pods: Cache,
    services: Cache,
}

impl Watch {
    async fn start(client: &Client, project: &Project) -> Self {
        let selector = format!("{PROJECT_LABEL}={}", project.name);
        let cache = |kind| client.cache(kind, Some(&project.namespace), &selector);
        let watch = Self {
            namespace: project.namespace.clone(),
            workloads: [cache(&kinds::DEPLOYMENT), cache(&kinds::DAEMON_SET), cache(&kinds::JOB)],
            pods: cache(&kinds::POD),
            services: cache(&kinds::SERVICE),
        };
        for it in watch.caches() {
            it.synced().await;
        }
        watch
    }

    fn caches(&self) -> impl Iterator<Item = &Cache> {
        self.workloads.iter().chain([&self.pods, &self.services])
    }

    fn state(&self, service: &RenderedService) -> State {
        let kind = &service.objects[0]["kind"];
        let found = self.workloads.iter().filter_map(|it| it.get(&self.namespace, &service.object));
        let Some(workload) = found.into_iter().find(|it| it["kind"] == *kind) else {
            return State::default();
        };
        let pods = self.pods.list();
        state(
            &workload,
            pods.iter()
                .map(|it| &**it)
                .filter(|it| it["metadata"]["labels"]["app.kubernetes.io/name"] == service.object.as_str()),
        )
    }
}

struct Up<'a> {
    client: &'a Client,
    watch: Watch,
    progress: Progress,
    deadline: Instant,
    applied: BTreeSet<String>,
}

impl Up<'_> {
    /// Applies each service as soon as what it depends on is so far, and waits for all.
    async fn services(&mut self, rendered: &Rendered, detach: bool) -> Result<()> {
        let mut changes: Vec<_> = self.watch.caches().map(Cache::changes).collect();
        loop {
            let states: BTreeMap<&str, State> =
                rendered.services.iter().map(|it| (it.name.as_str(), self.watch.state(it))).collect();
            let mut something = false;
            for service in &rendered.services {
                if self.applied.contains(&service.name) {
                    continue;
                }
                // What was applied in this round is judged in the next.
                let is_time = service.depends_on.iter().all(|(name, condition)| {
                    self.applied.contains(name)
                        && states.get(name.as_str()).is_some_and(|it| it.meets(*condition))
                });
                if is_time {
                    for object in &service.objects {
                        apply(self.client, object).await?;
                    }
                    self.applied.insert(service.name.clone());
                    something = true;
                }
            }
            if something {
                self.catch_up(rendered, &mut changes).await?;
                continue;
            }
            for service in rendered.services.iter().filter(|it| self.applied.contains(&it.name)) {
                let state = &states[service.name.as_str()];
                self.progress.show(&service.name, state);
                if let Some(why) = &state.failed {
                    return Err(self.failure(service, why).await);
                }
            }
            let is_done = self.applied.len() == rendered.services.len()
                && (detach || states.values().all(State::is_well));
            if is_done {
                return Ok(());
            }
            if !self.wait(&mut changes).await {
                return Err(self.timeout(rendered, &states).await);
            }
        }
    }

    /// Waits until the copies know what was just applied; false when the time is up.
    async fn catch_up(&self, rendered: &Rendered, changes: &mut [naru_client::Change]) -> Result<()> {
        for service in rendered.services.iter().filter(|it| self.applied.contains(&it.name)) {
            let kind = kind_of(&service.objects[0])?;
            let Some(now) = self.client.get(kind, &self.watch.namespace, &service.object).await? else {
                continue;
            };
            let generation = now["metadata"]["generation"].as_u64();
            let uid = &now["metadata"]["uid"];
            let knows = || {
                self.watch
                    .workloads
                    .iter()
                    .filter_map(|it| it.get(&self.watch.namespace, &service.object))
                    .any(|it| {
                        it["metadata"]["uid"] == *uid && it["metadata"]["generation"].as_u64() >= generation
                    })
            };
            while !knows() {
                if !self.wait(changes).await {
                    return Err(Error::new("the daemon is too slow to follow"));
                }
            }
        }
        Ok(())
    }

    async fn wait(&self, changes: &mut [naru_client::Change]) -> bool {
        let any = futures::future::select_all(changes.iter_mut().map(|it| Box::pin(it.wait())));
        tokio::time::timeout_at(self.deadline, any).await.is_ok()
    }

    /// Waits until published ports are open, and says which are not.
    async fn published(&mut self, rendered: &Rendered) -> Result<()> {
        let mut changes: Vec<_> = self.watch.caches().map(Cache::changes).collect();
        let wanted: Vec<&Value> =
            rendered.objects().filter(|it| it["spec"]["type"] == "LoadBalancer").collect();
        for service in wanted {
            loop {
                let now = self.watch.services.get(&self.watch.namespace, name_of(service));
                let balancer = now
                    .as_ref()
                    .map(|it| it["status"]["loadBalancer"]["ingress"].clone())
                    .unwrap_or_default();
                if balancer.as_array().is_some_and(|it| !it.is_empty()) {
                    let ports = balancer[0]["ports"].as_array().cloned().unwrap_or_default();
                    if let Some(port) = ports.iter().find(|it| it["error"].is_string()) {
                        let message = format!(
                            "port {} of the machine is taken: {} is not reached by it",
                            port["port"],
                            name_of(service)
                        );
                        return Err(
                            Error::new(message).hint("stop what listens there, or publish another port")
                        );
                    }
                    knock(&ports).await;
                    break;
                }
                if !self.wait(&mut changes).await {
                    return Err(Error::new(format!("the ports of {} were not opened", name_of(service)))
                        .hint(format!("`kubectl describe service {}` may know why", name_of(service))));
                }
            }
        }
        Ok(())
    }

    async fn failure(&self, service: &RenderedService, why: &str) -> Error {
        let error = Error::new(format!("the service `{}` does not run: {why}", service.name));
        match self.last_words(service).await {
            Some(words) => error.hint(format!("its last words were\n{words}")),
            None => error.hint(format!(
                "`kubectl describe pods -l app.kubernetes.io/name={}` tells more",
                service.object
            )),
        }
    }

    async fn timeout(&self, rendered: &Rendered, states: &BTreeMap<&str, State>) -> Error {
        let late: Vec<&RenderedService> =
            rendered.services.iter().filter(|it| !states[it.name.as_str()].is_well()).collect();
        let Some(first) = late.iter().find(|it| self.applied.contains(&it.name)) else {
            return Error::new("the time is up");
        };
        let names: Vec<&str> = late.iter().map(|it| it.name.as_str()).collect();
        let why = states[first.name.as_str()].waits.clone().unwrap_or_else(|| "it is not ready".into());
        self.failure(first, &why)
            .await
            .under(format!("not all services were well in time: {}", names.join(", ")))
    }

    /// The end of the log of one of its pods.
    async fn last_words(&self, service: &RenderedService) -> Option<String> {
        use futures::AsyncReadExt;
        let pods = self.watch.pods.list();
        let pod = pods
            .iter()
            .rev()
            .find(|it| it["metadata"]["labels"]["app.kubernetes.io/name"] == service.object.as_str())?;
        let options = LogOptions { tail_lines: Some(10), ..LogOptions::default() };
        let mut log = self.client.logs(&self.watch.namespace, name_of(pod), "", &options).await.ok()?;
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes).await.ok()?;
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        (!text.is_empty()).then(|| text.lines().map(|it| format!("    {it}")).collect::<Vec<_>>().join("\n"))
    }
}

/// Waits for a moment until the machine's ports answer, so that an address that is told can be used. A
/// service without a health check may take longer, and is not waited for.
async fn knock(ports: &[Value]) {
    const PATIENCE: Duration = Duration::from_secs(2);
    for port in ports.iter().filter(|it| it["protocol"] == "TCP") {
        let number = port["port"].as_u64().and_then(|it| u16::try_from(it).ok()).unwrap_or_default();
        let answers = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", number)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, answers).await.is_err() {
            eprintln!("warning: nothing answers at port {number} yet");
        }
    }
}

/// Removes what the project had and its files do not name any more. Claims hold data, so they stay.
async fn prune(
    client: &Client,
    args: &UpArgs,
    project: &Project,
    existing: Vec<(&'static naru_objects::Kind, Value)>,
) -> Result<()> {
    // Services of other profiles, and those that were not asked for, are still of the project.
    let Some(everything) = load_everything(&args.project) else {
        eprintln!("warning: not all profiles can be read, so nothing old is removed");
        return Ok(());
    };
    let everything = compose::render(&everything, &BTreeMap::new());
    for (kind, object) in existing.iter().filter(|it| it.0.kind != "PersistentVolumeClaim") {
        let name = name_of(object);
        let is_named = everything.objects().any(|it| it["kind"] == kind.kind && name_of(it) == name);
        if !is_named {
            client.delete(kind, &project.namespace, name, None).await?;
            println!("  {} {name} is no longer in the file: removed", kind.kind);
        }
    }
    Ok(())
}

/// Tells where the services are reached.
async fn addresses(global: &Global, client: &Client, project: &Project, rendered: &Rendered) -> Result<()> {
    let endpoints = connection::endpoints(global)?;
    let gateway = endpoints.gateway.rsplit(':').next().unwrap_or_default().to_owned();
    for service in &rendered.services {
        for object in &service.objects {
            let spec = &object["spec"];
            if object["kind"] == "HTTPRoute" {
                for host in spec["hostnames"].as_array().into_iter().flatten() {
                    println!("  {} at http://{}:{gateway}", service.name, host.as_str().unwrap_or_default());
                }
            }
            let (host, live) = match (spec["type"].as_str(), spec["externalIPs"][0].as_str()) {
                (Some("LoadBalancer"), _) => ("localhost", object.clone()),
                (_, Some(address)) => (address, object.clone()),
                (Some("NodePort"), _) => {
                    let live = client.get(&kinds::SERVICE, &project.namespace, name_of(object)).await?;
                    ("localhost", live.unwrap_or_default())
                }
                _ => continue,
            };
            let is_chosen = spec["type"] == "NodePort";
            for port in live["spec"]["ports"].as_array().into_iter().flatten() {
                let number = if is_chosen { &port["nodePort"] } else { &port["port"] };
                let protocol = port["protocol"]
                    .as_str()
                    .filter(|it| *it != "TCP")
                    .map(|it| format!("/{}", it.to_lowercase()));
                println!("  {} at {host}:{number}{}", service.name, protocol.unwrap_or_default());
            }
        }
    }
    Ok(())
}
