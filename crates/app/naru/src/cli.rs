//! What people type. Help, completions and the parser come from this one definition.

use crate::commands;
use crate::error::Result;
use crate::serve;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// The whole DevOps loop in one binary: push, test, build, deploy, watch, improve.
///
/// Start the daemon on a server, push a repository to it, and see it live:
///
///   naru serve
///   git push http://naru:$(naru token)@localhost:7070/git/shop.git main
///   naru status
///
/// kubectl works against it, too: export KUBECONFIG=$(naru kubeconfig --path)
#[derive(Parser)]
#[command(name = "naru", version, max_term_width = 100, verbatim_doc_comment)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Clone)]
pub struct Global {
    /// Where the daemon keeps everything, and where its clients find it.
    #[arg(long, global = true, env = "NARU_DATA_DIR", default_value = "/var/lib/naru")]
    pub data_dir: PathBuf,
    /// How much to log: error, warn, info, debug, or a filter such as `naru_rollout=debug`.
    #[arg(long, global = true, env = "NARU_LOG", default_value = "info")]
    pub log: String,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the daemon: git server, pipelines, image store, Kubernetes API, node, gateway.
    Serve(ServeArgs),
    /// What runs, and how the latest releases went.
    Status,
    /// The log of a run or of an app's pods: `naru logs shop`, `naru logs -f run/shop-main-3`.
    Logs(commands::logs::LogsArgs),
    /// Build an image from a Dockerfile: `naru build -t web:1 .`.
    Build(commands::build::BuildArgs),
    /// Bring a compose file to life: `naru up`, `naru up -f compose.yaml web`.
    Up(commands::compose::up::UpArgs),
    /// Remove what `naru up` made; with -v its volumes, too.
    Down(commands::compose::down::DownArgs),
    /// A compose file as plain Kubernetes YAML: `naru export | kubectl diff -f -`.
    Export(commands::compose::export::ExportArgs),
    /// What an image wastes and gives away, and what it is made of.
    Image {
        #[command(subcommand)]
        command: commands::image::ImageCommand,
    },
    /// Run a command in one of an app's pods: `naru exec shop -- ls /`.
    Exec(commands::exec::ExecArgs),
    /// Bring an earlier release back as a whole: `naru rollback shop`.
    Rollback {
        app: String,
        /// The release to bring back, such as `shop-r3`. Without it: the one before the present one.
        #[arg(long)]
        to: Option<String>,
    },
    /// The walk of one change through the loop, with times.
    Trace {
        /// The change's id (`c-...`), or the name of a run or release.
        change: String,
    },
    /// The four delivery figures of the last days.
    Dora {
        /// Only this app.
        app: Option<String>,
        #[arg(long, default_value_t = 30)]
        days: u32,
        #[arg(long)]
        json: bool,
    },
    /// CPU and memory of what runs, and requests per second of each service.
    Top,
    /// Who uses the disk, what of it goes by itself when room is needed, and when it will be full.
    Df {
        #[arg(long)]
        json: bool,
        /// Bring it within its budget now.
        #[arg(long)]
        tidy: bool,
    },
    /// Workflows and their runs.
    Ci {
        #[command(subcommand)]
        command: commands::ci::CiCommand,
    },
    /// Secrets of a repository's pipeline: `naru secret shop NAME < value`.
    Secret(commands::secret::SecretArgs),
    /// Follow a repository on GitHub, GitLab, Gitea or Forgejo: `naru upstream shop URL < token`.
    Upstream(commands::upstream::UpstreamArgs),
    /// Git over SSH, through the system's own sshd: `naru ssh add ann < ann.pub`, `naru ssh config`.
    Ssh {
        #[command(subcommand)]
        command: commands::ssh::SshCommand,
    },
    /// Pull requests on this server: `naru pr list shop`, `naru pr merge shop 3`. One is made by
    /// `git push origin HEAD:refs/for/main/topic`.
    Pr {
        #[command(subcommand)]
        command: commands::pr::PrCommand,
    },
    /// Check files before they run: workflows and naru.yaml, or a repository's directory. Exit code 1 if one cannot be honoured.
    Check {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// The administrator's kubeconfig, for kubectl, helm and everything else.
    Kubeconfig {
        /// Print where the file is instead of what is in it.
        #[arg(long)]
        path: bool,
    },
    /// The socket for Docker's clients: `export $(naru docker-socket)`.
    DockerSocket {
        /// Print the path alone.
        #[arg(long)]
        path: bool,
    },
    /// The token that may push, as git's password.
    Token,
    /// Take an example through the whole loop under load, and show what happened.
    Demo(commands::demo::DemoArgs),
    /// The Kubernetes API on simulated nodes, for trying manifests, charts and operators. Runs no containers.
    Dev(DevArgs),
    /// What of the Kubernetes API is acted on, kept, or refused.
    Api {
        #[command(subcommand)]
        command: ApiCommand,
    },
    /// The container runtime by itself, with runc's command line, for podman, containerd and others. A link to
    /// this program with the name `naru-oci` is the same.
    Oci(commands::oci::OciArgs),
    /// Remove every container, mount, link and cgroup of the daemon with this data directory.
    Destroy,
    /// Shell completions: `naru completions bash > /etc/bash_completion.d/naru`.
    Completions { shell: clap_complete::Shell },
    /// What git runs after a push.
    #[command(name = "__post-receive", hide = true)]
    PostReceive,
}

const LOOPBACK: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const GATEWAY: SocketAddr = SocketAddr::new(LOOPBACK, 8080);
const GATEWAY_TLS: SocketAddr = SocketAddr::new(LOOPBACK, 8443);

impl ServeArgs {
    /// Whoever chose where HTTP is served also chooses for HTTPS.
    pub fn gateway_tls(&self) -> Option<SocketAddr> {
        self.gateway_tls.or((self.gateway == GATEWAY).then_some(GATEWAY_TLS))
    }
}

#[derive(Args, Clone)]
pub struct ServeArgs {
    /// Git, registry, metrics and health over HTTP.
    #[arg(long, default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,
    /// The Kubernetes API over TLS.
    #[arg(long, default_value = "127.0.0.1:6443")]
    pub api: SocketAddr,
    /// The apps' traffic.
    #[arg(long, default_value_t = GATEWAY)]
    pub gateway: SocketAddr,
    /// The apps' traffic over TLS, with the certificates of Gateways and Ingresses. [default: 127.0.0.1:8443,
    /// or nowhere if --gateway is given without it]
    #[arg(long)]
    pub gateway_tls: Option<SocketAddr>,
    /// The bridge that pods are connected to.
    #[arg(long, default_value = "naru0")]
    pub bridge: String,
    /// The addresses that pods get.
    #[arg(long, default_value = "10.88.0.0/16")]
    pub subnet: String,
    /// Let a name of an image mean another: `rust:1=host` builds with what is installed here.
    #[arg(long, value_name = "NAME=IMAGE")]
    pub image: Vec<String>,
    /// What a `runs-on` label runs in. `host` is this machine's own tools, read-only, without its secrets; jobs
    /// of a label that is `skip` are left out: `windows-latest=skip`.
    #[arg(long, value_name = "LABEL=IMAGE")]
    pub runner: Vec<String>,
    /// So many pods wait for jobs on the image that was used last, so that a job begins at once. Each takes about
    /// as much memory as a small program.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub warm_pods: usize,
    /// Steps of jobs find no Docker socket. With it they build, pull, tag and push images, and nothing else; those of
    /// changes from outside never have it.
    #[arg(long)]
    pub no_job_docker: bool,
    /// Registries that are spoken to without TLS: `localhost:5000`.
    #[arg(long, value_name = "HOST")]
    pub insecure_registry: Vec<String>,
    /// What images, layers, build caches, containers' own files and the registry may take of the disk: `50Gi`, or
    /// `60%`. What was not used for the longest goes first, what runs never. Default: 80%.
    #[arg(long, value_name = "SIZE")]
    pub disk_budget: Option<String>,
    /// The owner that repositories have in URLs and in `github.repository`: `naru` of `naru/shop`.
    #[arg(long, value_name = "NAME", default_value = "naru")]
    pub owner: String,
    /// The URL under which others reach `--listen`: the issuer of id-tokens. Without it, the address itself.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Vendored actions: `actions/checkout` is looked for in DIR/actions/checkout@<ref>, then DIR/actions/checkout.
    #[arg(long, value_name = "DIR")]
    pub actions_dir: Option<PathBuf>,
    /// Where actions are fetched from that are neither vendored nor on our git server; `none` is nowhere.
    #[arg(long, value_name = "URL", default_value = "https://github.com")]
    pub actions_from: String,
    /// What the caches of jobs may take together: `10Gi`, or `5%` of the disk. Those not used for the longest go
    /// first.
    #[arg(long, value_name = "SIZE", default_value = "10Gi")]
    pub cache_budget: String,
    /// Serve images of this registry through ours, and keep them: `docker.io`. Whoever reaches the port may
    /// make us fetch them.
    #[arg(long, value_name = "REGISTRY")]
    pub registry_proxy: Vec<String>,
    /// Reading from our registry needs a right, too: `get` on `repositories` of the group `naru.dev`.
    #[arg(long)]
    pub registry_private: bool,
    /// What repositories of our registry may hold together: `shop/*=10Gi`, `shop/web=2Gi,tags=50`. What is more is
    /// refused; `naru df` shows how much is used.
    #[arg(long, value_name = "NAMES=SIZE[,tags=COUNT]")]
    pub registry_quota: Vec<String>,
    /// Ask a mirror before a registry itself: `docker.io=https://mirror.example.com`.
    #[arg(long, value_name = "REGISTRY=MIRROR")]
    pub registry_mirror: Vec<String>,
    /// Docker's configuration, whose credentials and credential helpers open registries.
    /// Default: ~/.docker/config.json.
    #[arg(long, value_name = "FILE")]
    pub docker_config: Option<PathBuf>,
    /// The socket for docker, docker compose and other clients of the Docker Engine API. Without this it is
    /// `docker.sock` in the data directory.
    #[arg(long, value_name = "PATH")]
    pub docker_socket: Option<PathBuf>,
    /// Name the service that answered in the header `x-naru-backend`.
    #[arg(long)]
    pub backend_header: bool,
    /// Print one line of JSON with all addresses as soon as everything answers.
    #[arg(long)]
    pub print_endpoints: bool,
}

#[derive(Args, Clone)]
pub struct DevArgs {
    /// How many nodes to pretend.
    #[arg(long, default_value_t = 1)]
    pub nodes: usize,
    /// Nodes that say that their pods run, and run nothing.
    #[arg(long)]
    pub simulate: bool,
    /// The Kubernetes API over TLS.
    #[arg(long, default_value = "127.0.0.1:6443")]
    pub api: SocketAddr,
    /// Print one line of JSON with the address and the kubeconfig instead of instructions.
    #[arg(long)]
    pub print_endpoints: bool,
}

#[derive(Subcommand, Clone)]
pub enum ApiCommand {
    /// Every kind with its tier, and what is refused.
    Tiers {
        #[arg(long)]
        json: bool,
    },
}

pub fn run(cli: Cli) -> Result<ExitCode> {
    let Cli { global, command } = cli;
    // A daemon, a demo and a hook go on when nobody listens.
    if !matches!(command, Command::Serve(_) | Command::Dev(_) | Command::Demo(_) | Command::PostReceive) {
        naru_runtime::end_on_broken_pipe();
    }
    if let Command::Completions { shell } = command {
        clap_complete::generate(shell, &mut Cli::command(), "naru", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Check { files } = command {
        return commands::check::run(&files);
    }
    if let Command::Api { command: ApiCommand::Tiers { json } } = command {
        return commands::api::tiers(json);
    }
    if let Command::Oci(args) = command {
        return commands::oci::run(args);
    }
    let is_daemon = matches!(command, Command::Serve(_) | Command::Dev(_));
    start_log(&global.log, is_daemon);
    // Two workers: the daemon waits far more than it computes, and each further thread costs memory.
    let workers =
        if is_daemon { std::thread::available_parallelism().map_or(2, |it| it.get().clamp(2, 4)) } else { 1 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let code = runtime.block_on(async {
        match command {
            Command::Serve(args) => serve::run(&global, &args).await,
            Command::Df { json, tidy } => commands::df::run(&global, json, tidy).await,
            Command::Status => commands::status::run(&global).await,
            Command::Logs(args) => commands::logs::run(&global, &args).await,
            Command::Build(args) => commands::build::run(&global, &args).await,
            Command::Up(args) => commands::compose::up::run(&global, &args).await,
            Command::Down(args) => commands::compose::down::run(&global, &args).await,
            Command::Export(args) => commands::compose::export::run(&global, &args).await,
            Command::Image { command } => commands::image::run(&global, &command).await,
            Command::Exec(args) => commands::exec::run(&global, &args).await,
            Command::Rollback { app, to } => commands::rollback::run(&global, &app, to.as_deref()).await,
            Command::Trace { change } => commands::trace::run(&global, &change).await,
            Command::Dora { app, days, json } => {
                commands::dora::run(&global, app.as_deref(), days, json).await
            }
            Command::Ci { command } => commands::ci::run(&global, &command).await,
            Command::Top => commands::top::run(&global).await,
            Command::Secret(args) => commands::secret::run(&global, &args).await,
            Command::Upstream(args) => commands::upstream::run(&global, &args).await,
            Command::Ssh { command } => commands::ssh::run(&global, &command).await,
            Command::Pr { command } => commands::pr::run(&global, &command).await,
            Command::Kubeconfig { path } => commands::connect::kubeconfig(&global, path),
            Command::DockerSocket { path } => commands::connect::docker_socket(&global, path),
            Command::Token => commands::connect::token(&global),
            Command::Demo(args) => commands::demo::run(&args).await,
            Command::Destroy => commands::destroy::run(&global).await,
            Command::PostReceive => commands::hook::run(&global).await,
            Command::Dev(args) => serve::dev::run(&global, &args).await,
            Command::Completions { .. } | Command::Check { .. } | Command::Api { .. } | Command::Oci(_) => {
                unreachable!("answered above")
            }
        }
    });
    // A blocking read of standard input must not keep a finished command from ending.
    runtime.shutdown_background();
    code
}

fn start_log(filter: &str, is_daemon: bool) {
    let filter = tracing_subscriber::EnvFilter::try_new(if is_daemon { filter } else { "warn" })
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
