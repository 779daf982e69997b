//! `naru up`, `naru down` and `naru export`: compose files as objects of the embedded Kubernetes.

mod build;
pub mod down;
pub mod export;
mod progress;
mod state;
pub mod up;

use crate::error::{Context, Error, Result};
use clap::Args;
use naru_client::Client;
use naru_objects::{Kind, kinds};
use naru_spec::compose::{self, Choice, Files, Input, PathKind, Project};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The field manager of what a compose file says.
const MANAGER: &str = "naru-up";

/// A larger file is no part of a project's text: a config or secret must fit into an object.
const FILE_BYTES_MAX: u64 = 5 << 20;

#[derive(Args, Clone)]
pub struct ProjectArgs {
    /// A compose file; several change each other in this order. [default: compose.yaml here or above]
    #[arg(short, long = "file", env = "COMPOSE_FILE", value_delimiter = ':')]
    pub files: Vec<PathBuf>,
    /// The project's name. [default: what the file says, or the directory's name]
    #[arg(short, long, env = "COMPOSE_PROJECT_NAME")]
    pub project_name: Option<String>,
    /// Where relative paths start. [default: the first file's directory]
    #[arg(long)]
    pub project_directory: Option<PathBuf>,
    /// Switch on the services of this profile; `*` means all.
    #[arg(long = "profile", env = "COMPOSE_PROFILES", value_delimiter = ',')]
    pub profiles: Vec<String>,
    /// Files with variables, instead of `.env`.
    #[arg(long = "env-file")]
    pub env_files: Vec<PathBuf>,
    /// The namespace that the objects are in.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

/// What a project reads, from this machine.
struct Disk;

impl Files for Disk {
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        let size = std::fs::metadata(path).map_err(|it| it.to_string())?.len();
        if size > FILE_BYTES_MAX {
            return Err(format!("it has {size} bytes; at most {FILE_BYTES_MAX} are read"));
        }
        std::fs::read(path).map_err(|it| it.to_string())
    }

    fn kind(&self, path: &str) -> PathKind {
        match std::fs::metadata(path) {
            Ok(it) if it.is_dir() => PathKind::Directory,
            Ok(_) => PathKind::File,
            Err(_) => PathKind::Missing,
        }
    }

    fn home(&self) -> Option<String> {
        std::env::var("HOME").ok()
    }
}

/// Reads the project and says on standard error what is odd about it.
pub fn load(args: &ProjectArgs, services: &[String]) -> Result<Project> {
    let (project, reports) =
        read(args, Choice { profiles: args.profiles.clone(), services: services.to_vec() })?;
    for report in &reports {
        eprintln!("{}\n", report.render());
    }
    project.ok_or_else(|| {
        let count = reports.iter().filter(|it| it.finding.is_error()).count();
        Error::new(format!(
            "the project cannot be run: {count} {}",
            if count == 1 { "error" } else { "errors" }
        ))
    })
}

/// The project with all services, whatever the profiles; `None` if that cannot be said.
fn load_everything(args: &ProjectArgs) -> Option<Project> {
    read(args, Choice { profiles: vec!["*".into()], services: Vec::new() }).ok()?.0
}

fn read(args: &ProjectArgs, choice: Choice) -> Result<(Option<Project>, Vec<compose::Report>)> {
    let files = match args.files.is_empty() {
        true => find_files(&std::env::current_dir()?)?,
        false => args.files.iter().map(|it| absolute(it)).collect::<Result<_>>()?,
    };
    let input = Input {
        files,
        directory: args.project_directory.as_deref().map(absolute).transpose()?,
        name: args.project_name.clone().filter(|it| !it.is_empty()),
        namespace: args.namespace.clone(),
        choice,
        // A variable that is not UTF-8 cannot stand in a file that is.
        variables: std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        env_files: args.env_files.iter().map(|it| absolute(it)).collect::<Result<_>>()?,
        ..Input::new(&Disk)
    };
    Ok(compose::load(&input))
}

fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).context(|| format!("cannot use {}", path.display()))?;
    path.into_os_string().into_string().map_err(|it| Error::new(format!("{it:?} is not UTF-8")))
}

/// The compose file of this directory or the nearest above, and what overrides it.
fn find_files(from: &Path) -> Result<Vec<String>> {
    for directory in from.ancestors() {
        let Some(first) = compose::FILES.iter().map(|it| directory.join(it)).find(|it| it.is_file()) else {
            continue;
        };
        let mut all = vec![absolute(&first)?];
        let name = first.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for extension in ["yaml", "yml"] {
            let over = directory.join(format!("{name}.override.{extension}"));
            if over.is_file() {
                all.push(absolute(&over)?);
                break;
            }
        }
        return Ok(all);
    }
    Err(Error::new(format!("there is no compose.yaml in {} or above", from.display()))
        .hint("say which file with `-f`"))
}

/// All kinds that a project may become, with their coordinates.
fn kinds_of_projects() -> Vec<&'static Kind> {
    let known = |(api_version, kind): &(&str, &str)| {
        kinds::ALL.iter().find(|it| it.kind == *kind && it.api_version() == *api_version)
    };
    compose::KINDS
        .iter()
        .map(|it| known(it).expect("naru-objects knows every kind of compose::KINDS"))
        .collect()
}

/// What there is of a project.
async fn objects_of(client: &Client, namespace: &str, project: &str) -> Result<Vec<(&'static Kind, Value)>> {
    let selector = format!("{}={project}", compose::PROJECT_LABEL);
    let mut all = Vec::new();
    for kind in kinds_of_projects() {
        all.extend(client.list(kind, Some(namespace), &selector).await?.into_iter().map(|it| (kind, it)));
    }
    Ok(all)
}

fn kind_of(object: &Value) -> Result<&'static Kind> {
    kinds::of(object).ok_or_else(|| Error::bug(&format!("{} is a kind that we do not know", object["kind"])))
}

/// The images of services that were built, as what runs names them; those that do not run have their names
/// without a digest.
async fn running_images(client: &Client, project: &Project) -> Result<BTreeMap<String, String>> {
    let mut images = BTreeMap::new();
    for service in project.services.iter().filter(|it| it.build.is_some()) {
        for kind in [&kinds::DEPLOYMENT, &kinds::DAEMON_SET, &kinds::JOB] {
            let object = client.get(kind, &project.namespace, &service.object).await?;
            let image =
                object.as_ref().filter(|it| it["metadata"]["labels"][compose::PROJECT_LABEL] == project.name);
            let image =
                image.and_then(|it| it["spec"]["template"]["spec"]["containers"][0]["image"].as_str());
            if let Some(image) = image {
                images.insert(service.name.clone(), image.to_owned());
            }
        }
    }
    Ok(images)
}
