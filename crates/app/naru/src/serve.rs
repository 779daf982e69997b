//! `naru serve`: every wing started and wired, in the order in which they need each other.
//!
//! What is held here is handles; everything that must not be lost is in the data directory.

mod beside;
pub mod dev;
mod http;
mod images;

use crate::adapters::{Images, Measured, Repositories, Streams};
use crate::cli::{Global, ServeArgs};
use crate::connection::{self, Endpoints};
use crate::engine_node::EngineNode;
use crate::error::{Context, Error, Result};
use kube_api::Api;
use naru_builder::{BuildLogs, Builder, ControllerConfig, Keeper, KeeperConfig};
use naru_client::Client;
use naru_engine_api::Engine;
use naru_gateway::Gateway;
use naru_git::Tokens;
use naru_image::{HostImageConfig, ImageStore};
use naru_node::Node;
use naru_objects::{NAMESPACE, crds, kinds};
use naru_registry::Registry;
use naru_runner::controller::beside::Beside;
use naru_source::Source;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Where the pods of Docker's containers are.
const DOCKER_NAMESPACE: &str = "docker";

/// How long an artifact is kept that asks for nothing else; as on GitHub.
const ARTIFACT_DAYS: u32 = 90;

/// Builds side by side: they share the machine with the apps.
const BUILDS_PARALLEL: usize = 2;

/// How often the program's pages are given back. Those in use are mapped again within a millisecond, all together.
const REST_PERIOD: std::time::Duration = std::time::Duration::from_secs(15);

/// Keeps only that of the program in memory which is used from one time to the next.
async fn rest() {
    loop {
        tokio::time::sleep(REST_PERIOD).await;
        let _ = tokio::task::spawn_blocking(naru_runtime::let_go_of_program).await;
    }
}

pub async fn run(global: &Global, args: &ServeArgs) -> Result<ExitCode> {
    naru_runtime::without_huge_pages();
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::new(
            "naru serve needs root: it makes networks, mounts and control groups for pods",
        )
        .hint("start it with sudo; `naru dev` serves the API alone without root"));
    }
    let data_dir = &global.data_dir;
    std::fs::create_dir_all(data_dir).context(|| format!("cannot use {}", data_dir.display()))?;
    let data_dir = &data_dir.canonicalize()?;
    let _lock = lock(data_dir)?;
    let shutdown = CancellationToken::new();
    let run_key = secret_text(&data_dir.join("run-key"))?;
    let job_tokens = naru_token::TokenKey::new(run_key.as_bytes());
    let tokens = Tokens::new(secret_text(&connection::push_token_path(data_dir))?, run_key.into_bytes());

    // The API, in-process first: nothing below knows that there is no network between.
    let exe = std::env::current_exe().context(|| "cannot find our own program".into())?;
    let node_settings = NodeSettings { bridge: args.bridge.clone(), subnet: args.subnet.clone() };
    node_settings.save(data_dir)?;
    let mut node_config = node_settings.to_config(data_dir, exe.clone())?;
    let filtering = naru_net::can_filter().await;
    node_config.cluster_dns = filtering.then_some(naru_net::DNS_ADDRESS.into());
    let (name_server, subnet) = (node_config.cluster_dns, node_config.subnet);
    let network_config = naru_net::Config::new(&node_config.bridge, node_config.subnet);
    let node_name = node_config.node_name.clone();
    let mut api_config = kube_api::Config::new(data_dir.join("api"), env!("CARGO_PKG_VERSION"));
    // Pods know the API by these.
    api_config.extra_sans = vec![node_config.subnet.gateway().to_string(), kube_api::SERVICE_ADDRESS.into()];
    let api = Api::open(api_config)?;
    api.prepare().await?;
    let client = in_process_client(&api);
    install_kinds(&client).await?;
    let measured = Arc::new(Measured::default());
    let settings = kube_controllers::Settings {
        cluster_ca: Some(api.ca_certificate().to_string()),
        volumes: Some(data_dir.join("volumes")),
        usage: Some(measured.clone()),
    };
    let controllers = kube_controllers::start(api.store(), settings, shutdown.clone());

    // Images, then the node that runs them.
    let images = ImageStore::open(image_config(data_dir, args)?)?;
    let builder = Builder::new(images.clone(), client.clone(), builder_config(data_dir))?;
    let gate = naru_policy::Gate::new(images.clone(), client.clone(), own(&builder));
    let service = Arc::new(Images { store: images.clone(), gate: gate.clone() });
    let node = Node::start(node_config, client.clone(), service).await;
    let node = node.context(|| "the node cannot start".into())?;
    api.set_streams(Arc::new(Streams(node.clone())));
    let held = naru_net::Held::default();
    let network = match filtering {
        true => {
            let (held, shutdown) = (held.clone(), shutdown.clone());
            naru_net::start_cluster(client.clone(), network_config, node_name.clone(), held, shutdown).await
        }
        false => {
            tracing::warn!("nft cannot be used: services have no addresses and network policies no effect");
            Vec::new()
        }
    };
    let measuring = tokio::spawn(measured.measure(node.clone()));
    let resting = tokio::spawn(rest());

    // What listens. Pods reach git under the bridge's address.
    let listener = listen(args.listen).await?;
    let http_address = listener.local_addr()?;
    let for_pods = SocketAddr::new(IpAddr::V4(node.bridge_address()), http_address.port());
    let pod_listener = if args.listen.ip().is_unspecified() { None } else { Some(listen(for_pods).await?) };
    let api_listener = listen(args.api).await?;
    let api_address = api_listener.local_addr()?;
    // Pods reach the API by the service `kubernetes`, whose endpoint is the bridge's address.
    let api_for_pods = SocketAddr::new(IpAddr::V4(node.bridge_address()), api_address.port());
    let api_pod_listener =
        if args.api.ip().is_unspecified() { None } else { Some(listen(api_for_pods).await?) };
    api.publish(api_for_pods).await?;
    let gateway_listener = listen(args.gateway).await?;
    let gateway_address = gateway_listener.local_addr()?;
    let tls_listener = match args.gateway_tls() {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let tls_address = tls_listener.as_ref().map(TcpListener::local_addr).transpose()?;

    let gateway = Gateway::start(
        naru_gateway::Config { backend_header: args.backend_header, ..naru_gateway::Config::default() },
        gateway_listener,
        tls_listener,
        client.clone(),
        shutdown.clone(),
    );
    let builds = BuildLogs::open(data_dir.join("builds/logs"));
    let builds = builds.context(|| "cannot create the directory of build logs".into())?;
    let docker = args.docker_socket.clone().unwrap_or_else(|| data_dir.join("docker.sock"));
    let docker_listener = naru_engine_api::listen(&docker).map_err(|it| {
        Error::new(format!("cannot listen on {}: {it}", docker.display()))
            .hint("choose another path with --docker-socket; it has at most 107 bytes")
    })?;
    let docker_config = naru_engine_api::Config {
        namespace: DOCKER_NAMESPACE.into(),
        node_name,
        data_dir: data_dir.clone(),
        name_server,
        gateway: node.bridge_address(),
        subnet: subnet.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        builds_namespace: NAMESPACE.into(),
    };
    let engine_node = Arc::new(EngineNode(node.clone()));
    let engine =
        Engine::start(docker_config, client.clone(), images.clone(), builds.clone(), engine_node).await;
    let engine = engine.context(|| "Docker's clients cannot be served".into())?;
    let kubeconfig = api.write_kubeconfig(&format!("https://{api_address}"))?;
    let endpoints = Endpoints {
        pid: std::process::id(),
        api: format!("https://{api_address}"),
        http: format!("http://{}", reachable(http_address)),
        gateway: format!("http://{}", reachable(gateway_address)),
        gateway_tls: tls_address.map(|it| format!("https://{}", reachable(it))),
        kubeconfig,
        docker,
        owner: owner(args)?.to_owned(),
    };
    write_private(&connection::endpoints_path(data_dir), &serde_json::to_string(&endpoints)?)?;

    let git_root = data_dir.join("git");
    let job_api = naru_job_api::Services::open(naru_job_api::Config {
        dir: data_dir.join("ci"),
        key: job_tokens.clone(),
        admin_token: secret_text(&connection::push_token_path(data_dir))?,
        runs: Arc::new(naru_job_api::RunsOfClient { client: client.clone(), namespace: NAMESPACE.into() }),
        code: Arc::new(Repositories(git_root.clone())),
        owner: owner(args)?.to_owned(),
        public_url: args.url.clone().unwrap_or_else(|| endpoints.http.clone()),
        actions_dir: args.actions_dir.clone(),
        actions_from: Some(args.actions_from.clone()).filter(|it| it != "none"),
        cache_bytes_max: disk_budget(&args.cache_budget, data_dir)?,
        retention_days: ARTIFACT_DAYS,
    });
    let job_api = job_api.context(|| "cannot open the artifacts and caches of jobs".into())?;
    let git = naru_git::Config {
        root: git_root,
        tokens: tokens.clone(),
        jobs: job_tokens_of(&job_api),
        hook_command: vec![exe.display().to_string(), "__post-receive".into()],
        hook_env: vec![("NARU_DATA_DIR".into(), data_dir.display().to_string())],
    };
    let hooks_config = naru_hooks::Config {
        client: client.clone(),
        namespace: NAMESPACE.into(),
        git: git.clone(),
        dir: data_dir.join("hooks"),
        public_url: args.url.clone().unwrap_or_else(|| endpoints.http.clone()),
    };
    let hooks = naru_hooks::Hooks::open(hooks_config.clone());
    let hooks = hooks.context(|| "cannot open the directory of deliveries".into())?;
    let auth = naru_registry::Auth {
        token: secret_text(&connection::push_token_path(data_dir))?,
        client: Some(client.clone()),
        jobs: Some(registry_rights_of(&job_api, owner(args)?)),
        is_private: args.registry_private,
    };
    let quotas = quotas(args, data_dir)?;
    let registry =
        naru_registry::Config { auth, upstreams: args.registry_proxy.clone(), quotas: quotas.clone() };
    let registry = Registry::open(images.clone(), registry)
        .context(|| "cannot open what belongs to the registry".into())?;
    let keeper_config = KeeperConfig {
        data_dir: data_dir.clone(),
        namespace: NAMESPACE.into(),
        budget_bytes: args.disk_budget.as_deref().map(|it| disk_budget(it, data_dir)).transpose()?,
        node_name: hostname(),
        quotas,
    };
    let (keeper, keeping) = Keeper::start(builder.clone(), client.clone(), keeper_config, shutdown.clone());
    let tidying = job_api.tidy();
    let launch = naru_runner::launch::of(&exe)
        .context(|| format!("cannot tell what {} needs to start", exe.display()))?;
    let waiting = Arc::new(naru_runner::warm::Waiting::default());
    let run_tokens = tokens.clone();
    let run_token: Arc<dyn Fn(&str) -> String + Send + Sync> = Arc::new(move |it| run_tokens.for_reading(it));
    let router = http::router(http::Parts {
        waiting: waiting.clone(),
        run_token: run_token.clone(),
        docker: (!args.no_job_docker).then(|| (engine.clone(), shutdown.clone())),
        beside: Arc::new(Beside {
            client: client.clone(),
            namespace: NAMESPACE.into(),
            launch: launch.clone(),
        }),
        client: client.clone(),
        keeper,
        git: git.clone(),
        registry,
        job_api,
        hooks: hooks.router(),
        owner: args.owner.clone(),
        gateway: gateway.clone(),
        node: node.clone(),
        builds: builds.clone(),
        builder: builder.clone(),
        gate,
        token: secret_text(&connection::push_token_path(data_dir))?,
    });
    let mut servers = vec![tokio::spawn(http::serve(listener, router.clone(), shutdown.clone()))];
    servers.push(tokio::spawn(engine.serve(docker_listener, shutdown.clone())));
    if let Some(listener) = pod_listener {
        servers.push(tokio::spawn(http::serve(listener, router, shutdown.clone())));
    }
    if let Some(listener) = api_pod_listener {
        let (api, shutdown) = (api.clone(), shutdown.clone());
        servers.push(tokio::spawn(async move { api.serve(listener, shutdown).await }));
    }
    servers.push({
        let (api, shutdown) = (api.clone(), shutdown.clone());
        tokio::spawn(async move { api.serve(api_listener, shutdown).await })
    });

    // The stages of the loop. Each holds a client and its own few settings, and nothing of the others.
    let scratch = data_dir.join("scratch");
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir_all(&scratch).context(|| format!("cannot make {}", scratch.display()))?;
    let source =
        Source::new(format!("{}/git", endpoints.http), tokens.for_reading_all()).with_scratch(scratch);
    let source = source.near(git.root.clone());
    let mut stages = vec![
        keeping,
        tidying,
        naru_builder::start(
            builder,
            client.clone(),
            ControllerConfig {
                namespace: NAMESPACE.into(),
                source: source.clone(),
                logs: builds,
                contexts_dir: data_dir.join("builds/contexts"),
                parallel: BUILDS_PARALLEL,
            },
            shutdown.clone(),
        ),
    ];
    stages.push(naru_runner::start(
        client.clone(),
        naru_runner::Config {
            namespace: NAMESPACE.into(),
            source: source.clone(),
            pod_git_url: format!("http://{for_pods}/git"),
            pod_http: for_pods,
            owner: owner(args)?.to_owned(),
            job_tokens,
            run_token,
            warm_pods: args.warm_pods,
            job_docker: !args.no_job_docker,
            waiting,
            runners: runners(args)?,
            held: filtering
                .then(|| -> naru_runner::controller::Held { Arc::new(move |address| held.holds(address)) }),
            launch,
        },
    ));
    stages.extend(naru_rollout::start(
        client.clone(),
        naru_rollout::Config { namespace: NAMESPACE.into(), source },
    ));
    let (_samples, scrapers) = naru_series::start(
        client.clone(),
        naru_series::Config {
            namespace: NAMESPACE.into(),
            targets: vec![format!("{}/metrics", endpoints.http)],
        },
    );
    stages.extend(scrapers);

    // Pushes that were acknowledged when we were killed, but had no run yet.
    naru_git::record_all(&client, &git.root, NAMESPACE).await?;
    stages.push(tokio::spawn(async move { hooks.resume().await }));
    stages.push(naru_hooks::start_statuses(hooks_config));

    tracing::info!(api = %endpoints.api, http = %endpoints.http, gateway = %endpoints.gateway, "naru serves");
    tracing::info!("for docker and docker compose: export DOCKER_HOST=unix://{}", endpoints.docker.display());
    if args.print_endpoints {
        let mut out = std::io::stdout();
        writeln!(out, "{}", serde_json::to_string(&endpoints)?)?;
        out.flush()?;
    }
    wait_for_signal().await?;
    tracing::info!("stopping; containers go on");
    shutdown.cancel();
    measuring.abort();
    resting.abort();
    for stage in &stages {
        stage.abort();
    }
    node.drain().await;
    for server in servers {
        let _ = server.await;
    }
    let _ = controllers.await;
    for task in network {
        let _ = task.await;
    }
    api.close().await;
    Ok(ExitCode::SUCCESS)
}

/// The owner that stands before every repository's name in URLs; it shares the port with our own paths.
fn owner(args: &ServeArgs) -> Result<&str> {
    const OURS: &[&str] =
        &["git", "v2", "api", "builds", "disk", "images", "metrics", "healthz", "twirp", "runs"];
    let is_name = !args.owner.is_empty()
        && args.owner.len() <= 39
        && args.owner.chars().all(|it| it.is_ascii_alphanumeric() || it == '-')
        && !args.owner.starts_with('-');
    match is_name && !OURS.contains(&args.owner.as_str()) {
        true => Ok(&args.owner),
        false => Err(Error::new(format!("`{}` cannot be the owner of repositories", args.owner))
            .hint("write letters, digits and dashes, such as `--owner acme`")),
    }
}

/// Git asks the services of jobs whose a token is.
fn job_tokens_of(job_api: &naru_job_api::Services) -> naru_git::JobTokens {
    let job_api = job_api.clone();
    naru_git::JobTokens(Arc::new(move |token| {
        let job_api = job_api.clone();
        Box::pin(async move { job_api.claims(&token).await })
    }))
}

/// As GitHub's `packages` permission, for repositories of the registry that are named after the job's own.
fn registry_rights_of(job_api: &naru_job_api::Services, owner: &str) -> naru_registry::Jobs {
    let (job_api, owner) = (job_api.clone(), owner.to_owned());
    Arc::new(move |token| {
        let (job_api, owner) = (job_api.clone(), owner.clone());
        Box::pin(async move {
            let claims = job_api.claims(&token).await.ok()?;
            let packages = claims.permissions.get("packages").map_or("", String::as_str);
            Some(naru_registry::JobRights {
                name: format!("{owner}/{}", claims.repository),
                reads: packages == "read",
                writes: packages == "write",
            })
        })
    })
}

fn builder_config(data_dir: &Path) -> naru_builder::Config {
    naru_builder::Config {
        secrets_dir: run_dir(data_dir).join("build-secrets"),
        signing_key: Some(data_dir.join("attest-key")),
        ..naru_builder::Config::new(data_dir.join("builds"), NAMESPACE)
    }
}

/// How what this daemon builds is known again.
fn own(builder: &Builder) -> Option<naru_policy::Own> {
    let repository = naru_builder::provenance::ATTESTATIONS.to_owned();
    builder.public_key().map(|public_key| naru_policy::Own { public_key, repository })
}

/// In memory, and gone with the machine's next start.
fn run_dir(data_dir: &Path) -> PathBuf {
    PathBuf::from("/run/naru").join(short_hash(data_dir))
}

/// Stops and removes every container, mount, link and cgroup of the daemon with this data directory.
pub async fn destroy(data_dir: &Path) -> Result<()> {
    if !data_dir.exists() {
        return Ok(());
    }
    let data_dir = data_dir.canonicalize()?;
    let _lock = lock(&data_dir)?;
    let settings = NodeSettings::load(&data_dir)?;
    let config = settings.to_config(&data_dir, std::env::current_exe()?)?;
    naru_node::destroy(config).await.context(|| "not everything could be removed".into())
}

/// What of the node's settings must be known to remove what it made.
#[derive(serde::Serialize, serde::Deserialize)]
struct NodeSettings {
    bridge: String,
    subnet: String,
}

impl NodeSettings {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("node-settings.json")
    }

    fn save(&self, data_dir: &Path) -> Result<()> {
        write_private(&Self::path(data_dir), &serde_json::to_string(self)?)
    }

    fn load(data_dir: &Path) -> Result<Self> {
        let path = Self::path(data_dir);
        let text = std::fs::read_to_string(&path).map_err(|it| {
            Error::new(format!("{} is no data directory of naru: {it}", data_dir.display()))
                .hint("say where the daemon's data is with --data-dir")
        })?;
        Ok(serde_json::from_str(&text)?)
    }

    fn to_config(&self, data_dir: &Path, exe: PathBuf) -> Result<naru_node::Config> {
        let subnet = self.subnet.parse().map_err(|_| {
            Error::new(format!("`{}` is not a subnet", self.subnet)).hint("write it like 10.88.0.0/16")
        })?;
        let run_dir = run_dir(data_dir);
        Ok(naru_node::Config {
            bridge: self.bridge.clone(),
            subnet,
            exe,
            ..naru_node::Config::new(&hostname(), data_dir.join("node"), run_dir)
        })
    }
}

/// A short name for a path: socket paths have little room (108 bytes).
fn short_hash(path: &Path) -> String {
    use std::hash::{Hash, Hasher};
    // FNV-1a by the standard hasher's interface would change between Rust versions; this one is ours.
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    path.hash(&mut hasher);
    format!("{:08x}", hasher.finish() >> 32)
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    naru_objects::dns_label(&name, 63)
}

/// The API's router as the transport of a Kubernetes client: no socket, no TLS.
fn in_process_client(api: &Api) -> Client {
    let router = api.router();
    let service = tower::service_fn(move |request: ::http::Request<kube::client::Body>| {
        let router = router.clone();
        async move {
            use tower::ServiceExt;
            router.oneshot(request.map(axum::body::Body::new)).await
        }
    });
    Client::new(kube::Client::new(service, NAMESPACE))
}

/// Our kinds, and the Gateway that routes are attached to.
async fn install_kinds(client: &Client) -> Result<()> {
    for crd in crds::all() {
        client.apply(&kinds::CRD, &crd, "naru").await?;
    }
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "naru", "namespace": NAMESPACE},
        "spec": {"gatewayClassName": "naru",
                 "listeners": [{"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": {"namespaces": {"from": "All"}}}]},
    });
    client.apply(&kinds::GATEWAY, &gateway, "naru").await?;
    Ok(())
}

fn image_config(data_dir: &Path, args: &ServeArgs) -> Result<naru_image::Config> {
    let mut aliases = Vec::new();
    for pair in &args.image {
        let (name, target) = split(pair, "--image rust:1=host")?;
        aliases.push((name, target));
    }
    let mirrors = args.registry_mirror.iter();
    let mirrors = mirrors.map(|it| split(it, "--registry-mirror docker.io=https://mirror.example.com"));
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| "/root".into());
    Ok(naru_image::Config {
        dir: data_dir.join("images"),
        docker_config: Some(args.docker_config.clone().unwrap_or_else(|| home.join(".docker/config.json"))),
        mirrors: mirrors.collect::<Result<_>>()?,
        host: HostImageConfig {
            data_dir: data_dir.to_owned(),
            home,
            path: std::env::var("PATH").unwrap_or_default(),
            ..HostImageConfig::default()
        },
        aliases,
        insecure_registries: args.insecure_registry.clone(),
        ..naru_image::Config::default()
    })
}

fn runners(args: &ServeArgs) -> Result<BTreeMap<String, String>> {
    let mut runners: BTreeMap<String, String> = naru_runner::labels::of_this_machine()
        .map(|it| (it.to_owned(), naru_image::HOST_IMAGE.to_owned()))
        .collect();
    for pair in &args.runner {
        let (label, image) = split(pair, "--runner gpu=registry.example.com/gpu:1")?;
        let image = if image == "host" { naru_image::HOST_IMAGE.to_owned() } else { image };
        runners.insert(label, image);
    }
    let host: Vec<&str> = runners
        .iter()
        .filter(|(_, it)| *it == naru_image::HOST_IMAGE)
        .map(|(label, _)| label.as_str())
        .collect();
    // A choice that people should know of.
    tracing::info!(labels = host.join(", "), "these runners use this machine's own tools (the host image)");
    Ok(runners)
}

fn split(pair: &str, example: &str) -> Result<(String, String)> {
    pair.split_once('=')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .ok_or_else(|| Error::new(format!("`{pair}` has no `=`")).hint(format!("write it like `{example}`")))
}

/// `shop/*=10Gi,tags=50`.
fn quotas(args: &ServeArgs, data_dir: &Path) -> Result<Vec<naru_image::Quota>> {
    const EXAMPLE: &str = "--registry-quota 'shop/*=10Gi,tags=50'";
    let read = |text: &String| {
        let (repositories, limits) = split(text, EXAMPLE)?;
        let mut quota = naru_image::Quota { repositories, bytes_max: None, tags_max: None };
        for limit in limits.split(',') {
            match limit.split_once('=') {
                None => quota.bytes_max = Some(disk_budget(limit, data_dir)?),
                Some(("tags", count)) => {
                    let wrong = || Error::new(format!("`{count}` is no number of tags"));
                    quota.tags_max = Some(count.parse().map_err(|_| wrong().hint(EXAMPLE))?);
                }
                Some((other, _)) => {
                    return Err(Error::new(format!("`{other}` is nothing that a quota limits")).hint(EXAMPLE));
                }
            }
        }
        Ok(quota)
    };
    args.registry_quota.iter().map(read).collect()
}

/// `50Gi`, `500M`, or a share of the file system: `60%`.
fn disk_budget(text: &str, data_dir: &Path) -> Result<u64> {
    let wrong = || Error::new(format!("`{text}` is no size")).hint("write it like 50Gi, 500G or 60%");
    let split = text.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "" => 1.0,
        "Ki" | "KiB" => 1024.0,
        "Mi" | "MiB" => 1024.0 * 1024.0,
        "Gi" | "GiB" => 1024.0 * 1024.0 * 1024.0,
        "Ti" | "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "k" | "K" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        "T" | "TB" => 1e12,
        "%" if number <= 100.0 => {
            let (_, all) = naru_node::disk_free(data_dir).ok_or_else(wrong)?;
            all as f64 / 100.0
        }
        _ => return Err(wrong()),
    };
    Ok((number * factor) as u64)
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    // A successor of a killed daemon may find the address in use for a moment only by another program.
    TcpListener::bind(address).await.map_err(|it| {
        Error::new(format!("cannot listen on {address}: {it}")).hint(
            "stop what uses the port, or choose another with --listen, --api, --gateway or --gateway-tls",
        )
    })
}

/// An address that a client on this machine can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::from([127, 0, 0, 1]), address.port())
    } else {
        address
    }
}

/// One daemon per data directory. The lock goes with the process, however it ends.
fn lock(data_dir: &Path) -> Result<nix::fcntl::Flock<std::fs::File>> {
    let path = data_dir.join("naru.lock");
    let file = std::fs::File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
    match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)?;
            write!(&mut *lock, "{}", std::process::id())?;
            Ok(lock)
        }
        Err(_) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default();
            Err(Error::new(format!("a naru with pid {pid} uses {} already", data_dir.display()))
                .hint("stop it first, or use another directory with --data-dir"))
        }
    }
}

/// A random secret, made at the first start; mode 0600.
fn secret_text(path: &Path) -> Result<String> {
    if let Ok(text) = std::fs::read_to_string(path) {
        return Ok(text.trim().to_owned());
    }
    let bytes: [u8; 24] = rand::random();
    let text: String = bytes.iter().map(|it| format!("{it:02x}")).collect();
    write_private(path, &text)?;
    Ok(text)
}

/// A file that only we can read, complete or not there.
fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("new");
    let mut file =
        std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    Ok(())
}

async fn wait_for_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
