//! `naru build`: the command line of `docker build` in front of an `Image` object. The context goes to the
//! daemon through its registry, the progress comes back as events, the image stays in the daemon's store
//! and, if asked for, comes out as a file, a directory or in another registry.

mod output;
mod progress;
mod remote;

use crate::cli::Global;
use crate::connection;
use crate::error::{Context, Error, Result};
use clap::{Args, ValueEnum};
use futures::StreamExt;
use naru_builder::{BuiltImage, Event, Ignore, Order};
use naru_objects::{ImageSpec, NAMESPACE, Upload, kinds};
use output::Output;
use progress::Progress;
pub use remote::Remote;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args)]
pub struct BuildArgs {
    /// The directory whose files `COPY` sees, or `-` for a Dockerfile (or a tar archive) on standard input.
    pub context: String,
    /// The image's name: `web:1`. Several are allowed.
    #[arg(short, long = "tag", value_name = "NAME")]
    pub tags: Vec<String>,
    /// The Dockerfile; `-` reads it from standard input. [default: Dockerfile in the context]
    #[arg(short, long)]
    pub file: Option<String>,
    /// The stage to build, if not the last.
    #[arg(long)]
    pub target: Option<String>,
    /// A value for an `ARG`; without `=` it is taken from the environment.
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// What `RUN --mount=type=secret` sees: `id=NAME,src=FILE` or `id=NAME,env=VARIABLE`.
    #[arg(long = "secret", value_name = "id=..,src=..")]
    pub secrets: Vec<String>,
    /// Keys for `RUN --mount=type=ssh`: `default=KEYFILE`. They go into an SSH agent for the time of the build.
    #[arg(long = "ssh", value_name = "ID=KEYFILE[,KEYFILE]")]
    pub ssh: Vec<String>,
    /// What `FROM` or `COPY --from` mean by a name: a directory, or `docker-image://name`.
    #[arg(long = "build-context", value_name = "NAME=DIRECTORY")]
    pub build_contexts: Vec<String>,
    /// The platforms to build for: `linux/amd64,linux/arm64`. Several make an index.
    #[arg(long = "platform", value_delimiter = ',')]
    pub platforms: Vec<String>,
    /// Do every step again.
    #[arg(long)]
    pub no_cache: bool,
    /// Ask the registries for newer base images.
    #[arg(long)]
    pub pull: bool,
    /// Where the image goes besides the daemon's store: `type=oci|docker|tar,dest=FILE`, or
    /// `type=local,dest=DIRECTORY` (a directory alone means that), or `type=registry` as `--push`.
    #[arg(short, long = "output", value_name = "type=..,dest=..")]
    pub outputs: Vec<String>,
    /// Look steps up in a cache of a registry: `type=registry,ref=NAME`.
    #[arg(long, value_name = "type=registry,ref=..")]
    pub cache_from: Vec<String>,
    /// Send the steps to a registry: `type=registry,ref=NAME`; with `mode=max` those of all stages.
    #[arg(long, value_name = "type=registry,ref=..")]
    pub cache_to: Vec<String>,
    /// Send the image to the registries of its names. They are asked with the credentials of Docker's
    /// configuration on the daemon's machine.
    #[arg(long)]
    pub push: bool,
    /// How to show the progress.
    #[arg(long, value_enum, default_value = "auto")]
    pub progress: ProgressKind,
    /// Print only the image's digest.
    #[arg(short, long)]
    pub quiet: bool,
    /// Write the image's digest into this file.
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressKind {
    /// `tty` on a terminal, otherwise `plain`.
    Auto,
    /// Every line, as it comes.
    Plain,
    /// Steps under way stay at the bottom.
    Tty,
    /// Events as JSON, one per line, on standard output.
    Rawjson,
}

impl BuildArgs {
    /// A build of a directory, as plain as can be.
    pub fn of(context: PathBuf) -> Self {
        Self {
            context: context.display().to_string(),
            tags: Vec::new(),
            file: None,
            target: None,
            build_args: Vec::new(),
            labels: Vec::new(),
            secrets: Vec::new(),
            ssh: Vec::new(),
            build_contexts: Vec::new(),
            platforms: Vec::new(),
            no_cache: false,
            pull: false,
            push: false,
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            outputs: Vec::new(),
            progress: ProgressKind::Auto,
            quiet: false,
            iidfile: None,
        }
    }
}

pub async fn run(global: &Global, args: &BuildArgs) -> Result<ExitCode> {
    let Some(built) = make(global, args).await? else { return Ok(ExitCode::FAILURE) };
    match (args.quiet, args.progress) {
        (true, _) => println!("{}", built.digest),
        (false, ProgressKind::Rawjson) => {}
        (false, _) => println!("{} {}", built.names.join(" "), built.digest),
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds, and shows how. `None`: it failed, and why has been said.
pub async fn make(global: &Global, args: &BuildArgs) -> Result<Option<BuiltImage>> {
    let outputs = args.outputs.iter().map(|it| Output::parse(it)).collect::<Result<Vec<_>>>()?;
    for output in &outputs {
        output.check(args.platforms.len())?;
    }
    let source = read_source(args)?;
    let remote = Remote::new(global)?;
    let client = connection::client(global).await?;
    let mut upload = Upload {
        digest: remote.upload(source.context).await?,
        dockerfile: source.dockerfile,
        ..Upload::default()
    };
    for pair in &args.build_contexts {
        let (name, value) = split(pair, "--build-context base=../base")?;
        let value = match value.split_once("://") {
            Some(("docker-image", _)) => value,
            Some((scheme, _)) => {
                return Err(Error::new(format!("`{scheme}://` cannot be a build context"))
                    .hint("a directory can, and docker-image://name"));
            }
            None => remote.upload(pack(Path::new(&value), &Ignore::default())?).await?,
        };
        upload.contexts.insert(name, value);
    }
    let first = args.tags.first().map_or("image", |it| it.as_str());
    let service = first.rsplit('/').next().unwrap_or(first).split(':').next().unwrap_or(first);
    let spec = ImageSpec {
        upload: Some(upload),
        service: naru_objects::dns_label(service, 63),
        dockerfile: source.name,
        target: args.target.clone(),
        args: build_args(&args.build_args)?,
        tags: args.tags.clone(),
        labels: args.labels.iter().map(|it| split(it, "--label a=b")).collect::<Result<_>>()?,
        platforms: args.platforms.clone(),
        no_cache: args.no_cache,
        pull: args.pull,
        cache_from: args.cache_from.iter().map(|it| cache(it)).collect::<Result<_>>()?,
        cache_to: args.cache_to.iter().map(|it| cache(it)).collect::<Result<_>>()?,
        push: args.push || outputs.iter().any(Output::is_registry),
        ..ImageSpec::default()
    };
    let order = Order { spec, secrets: given_secrets(args)?, ..Order::default() };
    let image = naru_builder::submit(&client, NAMESPACE, order).await?;
    let name = naru_objects::name_of(&image).to_owned();
    let built = tokio::select! {
        built = follow(&remote, &name, args) => built?,
        _ = tokio::signal::ctrl_c() => {
            client.delete(&kinds::IMAGE, NAMESPACE, &name, None).await?;
            return Err(Error::new("the build was stopped"));
        }
    };
    let Some(built) = built else { return Ok(None) };
    for output in outputs.iter().filter(|it| !it.is_registry()) {
        output.write(&remote, &built).await?;
    }
    if let Some(path) = &args.iidfile {
        std::fs::write(path, built.digest.as_str()).context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Some(built))
}

/// Shows the build until its end. `None`: it failed, and why has been said.
async fn follow(remote: &Remote, name: &str, args: &BuildArgs) -> Result<Option<BuiltImage>> {
    let kind = match args.progress {
        _ if args.quiet => None,
        ProgressKind::Auto if std::io::stderr().is_terminal() => Some(ProgressKind::Tty),
        ProgressKind::Auto => Some(ProgressKind::Plain),
        other => Some(other),
    };
    let mut progress = Progress::new(kind);
    let mut events = std::pin::pin!(remote.events(name).await?);
    while let Some(event) = events.next().await {
        let event = event?;
        progress.show(&event)?;
        match event {
            Event::Done(built) => return Ok(Some(built)),
            Event::Failed { .. } => return Ok(None),
            _ => {}
        }
    }
    Err(Error::new("the daemon ended the connection before the build was done")
        .hint(format!("when it is back it goes on; `kubectl get image {name}` shows how far it is")))
}

/// What is sent.
struct Source {
    context: tempfile::SpooledTempFile,
    /// What errors call the Dockerfile.
    name: String,
    /// `None`: it is in the archive.
    dockerfile: Option<String>,
}

fn read_source(args: &BuildArgs) -> Result<Source> {
    if args.context == "-" {
        return read_stdin(args);
    }
    if args.context.contains("://") || args.context.starts_with("git@") {
        return Err(Error::new(format!("`{}` is not a directory", args.context))
            .hint("clone the repository and build its directory"));
    }
    let root = Path::new(&args.context);
    if !root.is_dir() {
        return Err(Error::new(format!("`{}` is not a directory", root.display()))
            .hint("the last argument is the build context: `naru build -t web:1 .`"));
    }
    let (name, text, own_ignore) = match args.file.as_deref() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context(|| "cannot read standard input".into())?;
            ("Dockerfile".to_owned(), text, None)
        }
        file => {
            let path = file.map_or_else(|| root.join("Dockerfile"), PathBuf::from);
            let text = std::fs::read_to_string(&path).map_err(|it| {
                Error::new(format!("cannot read the Dockerfile {}: {it}", path.display()))
                    .hint("name it with --file")
            })?;
            let mut own = path.clone().into_os_string();
            own.push(".dockerignore");
            (file.unwrap_or("Dockerfile").to_owned(), text, Some(PathBuf::from(own)))
        }
    };
    let mut ignore = Ignore::default();
    for path in own_ignore.into_iter().chain([root.join(".dockerignore")]) {
        let Ok(text) = std::fs::read(&path) else { continue };
        ignore = Ignore::parse(&String::from_utf8_lossy(&text)).map_err(|(line, why)| {
            Error::new(format!("this pattern cannot be understood: {why}\n  --> {}:{line}:1", path.display()))
        })?;
        break;
    }
    Ok(Source { context: pack(root, &ignore)?, name, dockerfile: Some(text) })
}

/// A Dockerfile without a context, or a context as an archive.
fn read_stdin(args: &BuildArgs) -> Result<Source> {
    let mut input = std::io::stdin().lock();
    let mut head = Vec::new();
    (&mut input).take(512).read_to_end(&mut head).context(|| "cannot read standard input".into())?;
    let is_compressed = head.starts_with(&[0x1f, 0x8b]) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let is_archive = is_compressed || head.get(257..262) == Some(b"ustar");
    let mut context = spooled();
    if is_archive {
        let mut all = std::io::Cursor::new(head).chain(input);
        std::io::copy(&mut all, &mut context).context(|| "cannot read standard input".into())?;
        let name = args.file.clone().unwrap_or_else(|| "Dockerfile".into());
        return Ok(Source { context, name, dockerfile: None });
    }
    input.read_to_end(&mut head).context(|| "cannot read standard input".into())?;
    let text = String::from_utf8(head)
        .map_err(|_| Error::new("standard input is neither a Dockerfile nor a tar archive"))?;
    std::io::copy(&mut [0u8; 1024].as_slice(), &mut context)?; // an archive of nothing
    Ok(Source { context, name: "Dockerfile".into(), dockerfile: Some(text) })
}

fn spooled() -> tempfile::SpooledTempFile {
    const IN_MEMORY_MAX: usize = 32 << 20; // larger contexts go through a file
    tempfile::SpooledTempFile::new(IN_MEMORY_MAX)
}

fn pack(root: &Path, ignore: &Ignore) -> Result<tempfile::SpooledTempFile> {
    let mut file = spooled();
    naru_builder::pack_context(root, ignore, std::io::BufWriter::new(&mut file))
        .context(|| format!("cannot read the build context {}", root.display()))?;
    Ok(file)
}

fn build_args(given: &[String]) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for it in given {
        match it.split_once('=') {
            Some((name, value)) => drop(out.insert(name.to_owned(), value.to_owned())),
            // As docker: a name that is not set is not given.
            None => out.extend(std::env::var(it).ok().map(|value| (it.clone(), value))),
        }
    }
    // What a build asked to be reproducible says once for all tools.
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        out.entry("SOURCE_DATE_EPOCH".into()).or_insert(epoch);
    }
    Ok(out)
}

/// `type=registry,ref=NAME[,mode=max]`, or the name alone.
fn cache(text: &str) -> Result<String> {
    if !text.contains('=') {
        return Ok(text.to_owned());
    }
    let (mut name, mut mode) = (None, "");
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("type", "registry")) => {}
            Some(("ref", it)) => name = Some(it.to_owned()),
            Some(("mode", "max")) => mode = ",mode=max",
            Some(("mode", "min")) => mode = "",
            _ => {
                return Err(Error::new(format!("`{part}` of the cache `{text}` is not understood"))
                    .hint("write `type=registry,ref=NAME,mode=max`; caches are kept in registries only"));
            }
        }
    }
    let name = name.ok_or_else(|| {
        Error::new(format!("the cache `{text}` has no name")).hint("write `type=registry,ref=NAME`")
    })?;
    Ok(format!("{name}{mode}"))
}

/// Secrets, and keys under names of their own.
fn given_secrets(args: &BuildArgs) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut out = secrets(&args.secrets)?;
    for text in &args.ssh {
        let hint = "write `--ssh default=~/.ssh/id_ed25519`";
        let Some((id, files)) = text.split_once('=') else {
            // What `docker build --ssh default` means: the agent of this terminal.
            return Err(Error::new(format!(
                "`--ssh {text}` names no key: an agent's socket cannot be passed on"
            ))
            .hint(hint));
        };
        let mut keys = Vec::new();
        for file in files.split(',') {
            let bytes = std::fs::read(file).context(|| format!("cannot read the key {file}"))?;
            if !bytes.starts_with(b"-----BEGIN") {
                return Err(Error::new(format!("{file} is not a private key")).hint(hint));
            }
            keys.extend_from_slice(&bytes);
            keys.push(b'\n');
        }
        out.insert(format!("{}{id}", naru_builder::SSH_PREFIX), keys);
    }
    Ok(out)
}

/// `id=NAME,src=FILE`, `id=NAME,env=VARIABLE`, or `id=NAME`: then the variable, or else the file, of that
/// name.
fn secrets(given: &[String]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut out = BTreeMap::new();
    for text in given {
        let (mut id, mut file, mut variable) = (None, None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("id", it)) => id = Some(it.to_owned()),
                Some(("src" | "source", it)) => file = Some(PathBuf::from(it)),
                Some(("env", it)) => variable = Some(it.to_owned()),
                Some(("type", "file" | "env")) => {}
                _ => {
                    return Err(Error::new(format!("`{part}` of the secret is not understood"))
                        .hint("write `--secret id=NAME,src=FILE` or `--secret id=NAME,env=VARIABLE`"));
                }
            }
        }
        let Some(id) = id.filter(|it| !it.is_empty()) else {
            return Err(Error::new("a secret needs an id").hint("write `--secret id=NAME,src=FILE`"));
        };
        let of_variable = |name: &str| std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec);
        let value = match (file, variable) {
            (Some(path), _) => std::fs::read(&path).context(|| format!("cannot read {}", path.display()))?,
            (None, Some(name)) => of_variable(&name)
                .ok_or_else(|| Error::new(format!("the secret `{id}` is empty: `{name}` is not set")))?,
            (None, None) => match of_variable(&id) {
                Some(value) => value,
                None => std::fs::read(&id).context(|| format!("there is no variable and no file `{id}`"))?,
            },
        };
        out.insert(id, value);
    }
    Ok(out)
}

fn split(pair: &str, example: &str) -> Result<(String, String)> {
    pair.split_once('=')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .ok_or_else(|| Error::new(format!("`{pair}` has no `=`")).hint(format!("write it like `{example}`")))
}
