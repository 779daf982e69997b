//! A job's way from "it may begin" to its pod: its place in groups, the environment's rules, its secrets, its
//! token, and a pod that waits already or is made.

use super::already_there_is_fine;
use super::driver::{Acted, Driver};
use super::egress::Bounds;
use super::environments::{self, Gate, approval_annotation};
use super::follow::now;
use super::groups::Standing;
use super::places::Placing;
use super::plans::Planned;
use super::pod::{self, JobPod};
use super::warm;
use crate::job::JobFile;
use naru_objects::{Environment, JobPhase, JobStatus, dns_label, dns_label_unique, kinds, labels};
use naru_plan::{Container, EvaluateError, Job};
use naru_token::{Identity, JobClaims};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A job's token outlives its time limit by this: it starts a little late, and packaged steps tidy up.
const TOKEN_MINUTES_MORE: u64 = 15;

/// What a job's pod is made of.
struct Made {
    /// Without the nonce, which follows from the pod's name.
    file: JobFile,
    metadata: Value,
    image: String,
    container: Option<Container>,
    services: Vec<(String, Container)>,
    cancel_timeout_minutes: u64,
    /// Where the workflow is, for what is refused.
    workflow: String,
}

impl Driver {
    /// Gives the job a pod, if nothing holds it back.
    pub(super) async fn start(&mut self, at: usize, index: usize) -> Result<Acted, naru_client::Error> {
        let environment = match self.admit(at, index).await? {
            Ok(environment) => environment,
            Err(acted) => return Ok(acted),
        };
        let made = match self.make(at, index, &environment).await? {
            Ok(made) => made,
            Err(why) => {
                self.close(at, index, JobPhase::Failed, &why);
                return Ok(Acted::Moved);
            }
        };
        let held = match self.shared.hold(&self.run.spec.repository).await? {
            Ok(held) => held,
            Err(why) => {
                self.close(at, index, JobPhase::Failed, &why);
                return Ok(Acted::Moved);
            }
        };
        let plain = made.container.is_none()
            && made.services.is_empty()
            && matches!(made.cancel_timeout_minutes, 0 | warm::CANCEL_MINUTES)
            && held.disk.is_empty();
        if plain && let Some(pod) = self.left_behind(&self.plans[at].keys[index]) {
            self.started(at, index, pod.clone(), environment).await?;
            self.offer(&pod, made.file, held.egress);
            return Ok(Acted::Moved);
        }
        if plain && let Some(pod) = self.shared.claim(&made.image) {
            match self.shared.adopt(&pod, &made.metadata).await {
                Ok(()) => {
                    self.started(at, index, pod.clone(), environment).await?;
                    self.offer(&pod, made.file, held.egress);
                    return Ok(Acted::Moved);
                }
                // It went just now.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        self.make_pod(at, index, made, environment, held).await
    }

    /// Whether the job may begin: the environment that it deploys to, or what came of it instead.
    async fn admit(&mut self, at: usize, index: usize) -> Result<Result<String, Acted>, naru_client::Error> {
        let planned = &self.plans[at];
        let evaluator = planned.dialect.evaluator;
        let job = planned.plan.jobs[index].clone();
        let views = self.views(planned);
        let contexts = json!(self.contexts_of(planned, &job, &views));
        if let Some(held_back) = self.held_back(at, index, &contexts).await? {
            return Ok(Err(held_back));
        }
        let Some(environment) = &job.environment else { return Ok(Ok(String::new())) };
        let environment = match evaluator.text(&environment.name, &contexts) {
            Ok(name) => name,
            Err(error) => {
                self.close(at, index, JobPhase::Failed, &format!("its environment's name: {error}"));
                return Ok(Err(Acted::Moved));
            }
        };
        if environment.is_empty() {
            return Ok(Ok(environment));
        }
        match self.gate(at, index, &environment).await? {
            Gate::Open => Ok(Ok(environment)),
            Gate::Waits(why) => Ok(Err(self.waits(at, index, &why))),
            Gate::Closed(why) => {
                self.close(at, index, JobPhase::Failed, &why);
                Ok(Err(Acted::Moved))
            }
        }
    }

    /// Everything that the job's pod needs; `Err` says why it cannot have it.
    async fn make(
        &self,
        at: usize,
        index: usize,
        environment: &str,
    ) -> Result<Result<Made, String>, naru_client::Error> {
        let planned = &self.plans[at];
        let (job, key) = (&planned.plan.jobs[index], &planned.keys[index]);
        let views = self.views(planned);
        let mut contexts = self.contexts_of(planned, job, &views);
        let repository = &self.run.spec.repository;
        if !environment.is_empty() {
            let namespace = &self.config.namespace;
            let more = environments::variables(&self.client, namespace, repository, environment).await?;
            if let Some(Value::Object(vars)) = contexts.get_mut("vars") {
                vars.extend(more);
            }
        }
        let token = self.config.job_tokens.mint(&self.claims(planned, job, key, environment));
        let mut secrets = match self.secrets(at, job, environment, &contexts).await? {
            Ok(secrets) => secrets,
            Err(error) => return Ok(Err(format!("its secrets: {error}"))),
        };
        secrets.insert("GITHUB_TOKEN".into(), json!(token));
        contexts.insert("secrets".into(), Value::Object(secrets));
        Ok(self.parts(planned, job, key, token, contexts))
    }

    fn parts(
        &self,
        planned: &Planned,
        job: &Job,
        key: &str,
        token: String,
        mut contexts: Map<String, Value>,
    ) -> Result<Made, String> {
        let spec = &self.run.spec;
        let workflow = planned.plan.file.clone();
        let all = Value::Object(contexts.clone());
        let text = |it: &str| planned.dialect.evaluator.text(it, &all).map_err(|it| it.to_string());
        let mut services = Vec::new();
        for (name, service) in &job.services {
            let service = computed(service, &text)?;
            // A service without an image is left out, which is how a matrix leaves one out.
            if !service.image.is_empty() {
                services.push((name.clone(), service));
            }
        }
        let container = job.container.as_ref().map(|it| computed(it, &text)).transpose()?;
        let container = container.filter(|it| !it.image.is_empty());
        let image = self.image_of(job).map(str::to_owned);
        let (forwards, described) =
            pod::reached(&services, container.is_some()).map_err(|it| it.at(&workflow))?;
        contexts.insert("job".into(), described);
        Ok(Made {
            metadata: json!({
                "namespace": self.config.namespace,
                "labels": {
                    labels::RUN: self.run.metadata.name, labels::CHANGE: spec.change,
                    labels::APP: spec.repository, labels::JOB: dns_label(key, 63),
                    labels::SLICE: "pipelines"},
                "ownerReferences": [naru_objects::owner_reference(&self.object)],
            }),
            file: JobFile {
                dialect: planned.dialect.name.into(),
                nonce: String::new(),
                job: job.clone(),
                contexts,
                checkout_url: format!("{}/{}.git", self.config.pod_git_url, spec.repository),
                checkout_token: (self.config.run_token)(&spec.repository),
                sha: spec.sha.clone(),
                git_ref: spec.git_ref.clone(),
                workspace: PathBuf::from(format!("/workspace/{}", spec.repository)),
                services: self.services(job, token),
                forwards,
                actions_dirs: Vec::new(),
                ..JobFile::default()
            },
            image: image.unwrap_or_default(),
            container,
            services,
            cancel_timeout_minutes: job.cancel_timeout_minutes,
            workflow,
        })
    }

    /// Creates a pod for the job. Its name follows from the run, so that starting twice starts once.
    async fn make_pod(
        &mut self,
        at: usize,
        index: usize,
        made: Made,
        environment: String,
        held: Bounds,
    ) -> Result<Acted, naru_client::Error> {
        let key = &self.plans[at].keys[index];
        let mut pod = format!("{}-{key}", self.run.metadata.name);
        let lost = self.job(key).map_or(0, |it| it.lost.len());
        if lost > 0 {
            pod.push_str(&format!("-again{lost}"));
        }
        let pod = dns_label_unique(&pod, 60);
        let mut metadata = made.metadata;
        metadata["name"] = json!(pod);
        let (url, token) = (self.shared.url_of(&pod), self.shared.token_of(&pod));
        let object = pod::job_pod(&JobPod {
            metadata,
            image: &made.image,
            container: made.container.as_ref(),
            services: &made.services,
            url: &url,
            token: &token,
            launch: &self.config.launch,
            server: self.config.pod_http.ip(),
            cancel_timeout_minutes: made.cancel_timeout_minutes,
            disk: if held.disk.is_empty() { pod::JOB_DISK } else { &held.disk },
        });
        let object = match object {
            Ok(object) => object,
            Err(refused) => {
                self.close(at, index, JobPhase::Failed, &refused.at(&made.workflow));
                return Ok(Acted::Moved);
            }
        };
        already_there_is_fine(self.client.create(&kinds::POD, &object).await)?;
        self.started(at, index, pod.clone(), environment).await?;
        self.offer(&pod, made.file, held.egress);
        Ok(Acted::Moved)
    }

    async fn started(
        &mut self,
        at: usize,
        index: usize,
        pod: String,
        environment: String,
    ) -> Result<(), naru_client::Error> {
        let status = self.job_mut(at, index);
        status.phase = JobPhase::Running;
        status.message.clear();
        status.pod = pod;
        status.environment = environment;
        status.started_at = now();
        self.write().await
    }

    /// Gives a pod its job; one that is to be held once it is.
    fn offer(&self, pod: &str, file: JobFile, held: bool) {
        let file = JobFile {
            nonce: self.nonce(pod),
            beside_url: self.shared.url_of(pod),
            beside_token: self.shared.token_of(pod),
            docker: self.config.job_docker && !self.run.spec.untrusted,
            ..file
        };
        let text = serde_json::to_string(&file).expect("a job file always serialises");
        if !held {
            return self.shared.waiting.offer(pod, text);
        }
        let (shared, pod) = (self.shared.clone(), pod.to_owned());
        tokio::spawn(async move {
            if shared.is_held(&pod).await {
                shared.waiting.offer(&pod, text);
            }
        });
    }

    /// Jobs whose pods may not have heard of them before this process began. A pod that has its job asks for no
    /// other.
    pub(super) async fn offer_again(&mut self) -> Result<(), naru_client::Error> {
        for at in 0..self.plans.len() {
            for index in 0..self.plans[at].keys.len() {
                let Some(job) = self.job(&self.plans[at].keys[index]) else { continue };
                let begun = job.steps.iter().any(|it| it.phase != JobPhase::Pending);
                if job.phase != JobPhase::Running || job.pod.is_empty() || begun {
                    continue;
                }
                let (pod, environment) = (job.pod.clone(), job.environment.clone());
                let made = match self.make(at, index, &environment).await? {
                    Ok(made) => self.shared.hold(&self.run.spec.repository).await?.map(|held| (made, held)),
                    Err(why) => Err(why),
                };
                match made {
                    Ok((made, held)) => self.offer(&pod, made.file, held.egress),
                    Err(why) => self.close(at, index, JobPhase::Failed, &why),
                }
            }
        }
        Ok(())
    }

    /// Whether a job's concurrency group keeps it from beginning now.
    pub(super) async fn held_back(
        &mut self,
        at: usize,
        index: usize,
        contexts: &Value,
    ) -> Result<Option<Acted>, naru_client::Error> {
        let planned = &self.plans[at];
        let Some(concurrency) = planned.plan.jobs[index].concurrency.clone() else { return Ok(None) };
        let key = planned.keys[index].clone();
        match self.place(&concurrency, at, contexts, &key).await {
            Ok(Standing::Holds) => return Ok(None),
            Ok(Standing::Waits) => {
                return Ok(Some(self.waits(at, index, "waits for another job of its concurrency group")));
            }
            Ok(Standing::Displaced) => {
                let why = "a newer job of its concurrency group took its place";
                self.close(at, index, JobPhase::Cancelled, why);
            }
            Err(Placing::Api(error)) => return Err(error),
            Err(Placing::Text(error)) => {
                self.close(at, index, JobPhase::Failed, &format!("its concurrency group: {error}"));
            }
        }
        Ok(Some(Acted::Moved))
    }

    fn waits(&mut self, at: usize, index: usize, why: &str) -> Acted {
        why.clone_into(&mut self.job_mut(at, index).message);
        Acted::Waits
    }

    /// Whether the environment lets the job in.
    async fn gate(&mut self, at: usize, index: usize, name: &str) -> Result<Gate, naru_client::Error> {
        // A job that waits is looked at often, by the copy; what lets one in is asked of the API itself.
        let copies = self.shared.environments.list();
        let by_copy = self.gate_of(at, index, name, copies.iter().map(|it| (**it).clone()));
        if by_copy != Gate::Open {
            return Ok(by_copy);
        }
        let objects = self.client.list(&kinds::ENVIRONMENT, Some(&self.config.namespace), "").await?;
        Ok(self.gate_of(at, index, name, objects.into_iter()))
    }

    fn gate_of(&mut self, at: usize, index: usize, name: &str, objects: impl Iterator<Item = Value>) -> Gate {
        let repository = &self.run.spec.repository;
        let mut objects = objects.filter(|it| it["spec"]["repository"] == repository.as_str());
        let environment = objects.find_map(|it| {
            let it = serde_json::from_value::<Environment>(it).ok()?;
            it.spec.name.eq_ignore_ascii_case(name).then_some(it)
        });
        let Some(environment) = environment else { return Gate::Open };
        let ref_name = self.contexts.event["ref_name"].as_str().unwrap_or_default().to_owned();
        let run = self.run.metadata.name.clone();
        let decision =
            self.run.metadata.annotations.get(&approval_annotation(&environment.spec.name)).cloned();
        let job = self.job_mut(at, index);
        // Until it starts this is when it could have.
        if job.started_at.is_empty() {
            job.started_at = now();
        }
        let since = job.started_at.parse::<jiff::Timestamp>().unwrap_or_default();
        let waited = jiff::Timestamp::now().duration_since(since).as_mins();
        environments::gate(&environment, &run, decision.as_deref(), &ref_name, waited)
    }

    /// The secrets that a job sees. A change from outside sees none but its own token.
    async fn secrets(
        &self,
        at: usize,
        job: &Job,
        environment: &str,
        contexts: &Map<String, Value>,
    ) -> Result<Result<Map<String, Value>, EvaluateError>, naru_client::Error> {
        let repository = &self.run.spec.repository;
        let namespace = &self.config.namespace;
        let mut secrets = Map::new();
        if !self.run.spec.untrusted {
            secrets = environments::secrets(&self.client, namespace, repository, "").await?;
            let mut contexts = contexts.clone();
            for handed in &job.secrets {
                contexts.insert("secrets".into(), json!(secrets));
                let mut named = Map::new();
                for (name, text) in handed {
                    match self.plans[at].dialect.evaluator.text(text, &json!(contexts)) {
                        Ok(value) => named.insert(name.clone(), json!(value)),
                        Err(error) => return Ok(Err(error)),
                    };
                }
                secrets = named;
            }
            if !environment.is_empty() {
                secrets
                    .extend(environments::secrets(&self.client, namespace, repository, environment).await?);
            }
        }
        Ok(Ok(secrets))
    }

    /// What packaged steps find the daemon's services by, in the words of GitHub's runner.
    fn services(&self, job: &Job, token: String) -> BTreeMap<String, String> {
        let server = self.contexts.event["server_url"].as_str().unwrap_or_default().to_owned();
        let may_identify = self.permissions(job).get("id-token").is_some_and(|it| it == "write");
        let mut services = vec![
            ("ACTIONS_RUNTIME_TOKEN", token.clone()),
            ("ACTIONS_RUNTIME_URL", format!("{server}/")),
            ("ACTIONS_RESULTS_URL", format!("{server}/")),
            ("ACTIONS_CACHE_URL", format!("{server}/")),
            ("ACTIONS_CACHE_SERVICE_V2", "true".into()),
        ];
        if may_identify {
            services
                .push(("ACTIONS_ID_TOKEN_REQUEST_URL", format!("{server}/_apis/oidc/token?api-version=2.0")));
            services.push(("ACTIONS_ID_TOKEN_REQUEST_TOKEN", token));
        }
        services.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// What the job's token may do. A change from outside reads.
    fn permissions(&self, job: &Job) -> BTreeMap<String, String> {
        let default = || {
            let scopes = ["contents", "packages", "metadata"];
            scopes.iter().map(|it| ((*it).to_owned(), "read".to_owned())).collect()
        };
        let mut permissions = job.permissions.clone().unwrap_or_else(default);
        if self.run.spec.untrusted {
            permissions.retain(|name, _| name != "id-token");
            permissions.values_mut().filter(|it| *it == "write").for_each(|it| *it = "read".into());
        }
        permissions
    }

    /// Who the job is and what it may do.
    fn claims(&self, planned: &Planned, job: &Job, key: &str, environment: &str) -> JobClaims {
        let spec = &self.run.spec;
        let github = |name: &str| self.contexts.event[name].as_str().unwrap_or_default().to_owned();
        let branch = |name: &str| if name.is_empty() { String::new() } else { format!("refs/heads/{name}") };
        let repository = github("repository");
        let called = job.scope_uses(&planned.plan.jobs).unwrap_or_default();
        let now = jiff::Timestamp::now().as_second();
        let minutes = job.timeout_minutes + job.cancel_timeout_minutes + TOKEN_MINUTES_MORE;
        JobClaims {
            repository: spec.repository.clone(),
            run: self.run.metadata.name.clone(),
            run_uid: self.run.metadata.uid.clone(),
            job: key.to_owned(),
            attempt: self.job(key).map_or(1, JobStatus::attempt),
            permissions: self.permissions(job),
            untrusted: spec.untrusted,
            git_ref: spec.git_ref.clone(),
            base_ref: branch(&spec.base_ref),
            default_ref: self.shared.default_ref(spec),
            iat: now,
            exp: now + 60 * i64::try_from(minutes).unwrap_or(i64::MAX / 120),
            identity: Identity {
                sha: spec.sha.clone(),
                event_name: spec.event.clone(),
                actor: spec.author.clone(),
                base_ref: spec.base_ref.clone(),
                head_ref: spec.head_ref.clone(),
                workflow: planned.plan.name.clone(),
                workflow_file: planned.plan.file.clone(),
                job_workflow_ref: match called.strip_prefix("./") {
                    Some(path) => format!("{repository}/{path}@{}", spec.git_ref),
                    None => called,
                },
                environment: environment.to_owned(),
                run_number: github("run_number"),
                run_attempt: github("run_attempt"),
            },
        }
    }
}

/// A container with every text computed.
fn computed(it: &Container, text: &dyn Fn(&str) -> Result<String, String>) -> Result<Container, String> {
    let all = |of: &[String]| of.iter().map(|it| text(it)).collect::<Result<Vec<_>, _>>();
    Ok(Container {
        image: text(&it.image)?,
        env: it.env.iter().map(|(a, b)| Ok((a.clone(), text(b)?))).collect::<Result<_, String>>()?,
        ports: all(&it.ports)?,
        volumes: all(&it.volumes)?,
        options: text(&it.options)?,
        entrypoint: text(&it.entrypoint)?,
        command: text(&it.command)?,
        credentials: it
            .credentials
            .as_ref()
            .map(|(user, password)| Ok::<_, String>((text(user)?, text(password)?)))
            .transpose()?,
        line: it.line,
    })
}
