//! Compose files: the projects that people have, as Kubernetes objects.
//!
//! Pure: files and variables come in as values. What the specification knows is honoured, told or refused,
//! each with its place; [`keys`] is the table.
//!
//! ```
//! use naru_spec::compose::{self, Input, Files, PathKind};
//! struct One;
//! impl Files for One {
//!     fn read(&self, _: &str) -> Result<Vec<u8>, String> {
//!         Ok(b"services: {web: {image: nginx, ports: ['8080:80']}}".to_vec())
//!     }
//!     fn kind(&self, _: &str) -> PathKind { PathKind::Missing }
//!     fn home(&self) -> Option<String> { None }
//! }
//! let input = Input { files: vec!["/srv/shop/compose.yaml".into()], ..Input::new(&One) };
//! let (project, reports) = compose::load(&input);
//! assert!(reports.is_empty(), "{reports:?}");
//! let rendered = compose::render(&project.unwrap(), &Default::default());
//! assert_eq!(rendered.services[0].objects[0]["kind"], "Deployment");
//! ```

mod interpolate;
pub mod keys;
mod load;
mod merge;
mod mounts;
mod pod_keys;
mod ports;
mod project;
mod render;
mod service;
#[cfg(test)]
mod tests;
mod tree;
mod values;

pub use interpolate::Variables;
pub use mounts::Grant;
pub use project::{Choice, Project};
pub use render::{KINDS, PROJECT_LABEL, Rendered, RenderedService, default_image, in_reading_order, render};
pub use service::{Build, Condition, Mode, Service};

use load::Loader;
use naru_text::{Finding, Place};

/// The names that are looked for when none is given.
pub const FILES: &[&str] = &["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// What a project reads besides its own text.
pub trait Files {
    fn read(&self, path: &str) -> Result<Vec<u8>, String>;
    fn kind(&self, path: &str) -> PathKind;
    /// The home directory of whoever asks, for paths that begin with `~`.
    fn home(&self) -> Option<String>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    File,
    Directory,
    Missing,
}

/// A finding and its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub file: String,
    pub finding: Finding,
}

impl Report {
    pub fn render(&self) -> String {
        self.finding.render(&self.file)
    }
}

pub struct Input<'a> {
    /// Whole paths; each changes those before it.
    pub files: Vec<String>,
    /// Where relative paths start; without it the first file's directory.
    pub directory: Option<String>,
    /// Without one: what the file says, or the directory's name.
    pub name: Option<String>,
    pub namespace: String,
    pub choice: Choice,
    /// Those of whoever asks; they win over files.
    pub variables: Variables,
    /// Instead of `.env`.
    pub env_files: Vec<String>,
    pub reader: &'a dyn Files,
}

impl<'a> Input<'a> {
    pub fn new(reader: &'a dyn Files) -> Self {
        Self {
            files: Vec::new(),
            directory: None,
            name: None,
            namespace: "default".into(),
            choice: Choice::default(),
            variables: Variables::new(),
            env_files: Vec::new(),
            reader,
        }
    }
}

/// Reads a project. `None` if any report is an error.
pub fn load(input: &Input<'_>) -> (Option<Project>, Vec<Report>) {
    let mut loader = Loader { files: input.reader, read: Vec::new(), reports: Vec::new() };
    let first = input.files.first().cloned().unwrap_or_default();
    let directory = input.directory.clone().unwrap_or_else(|| load::parent(&first));
    let variables = variables(&mut loader, input, &directory);
    let Some(root) = loader.project(&input.files, &directory, &variables, 0) else {
        return (None, loader.reports);
    };
    let name = match (&input.name, root.get("name").and_then(tree::Node::as_str)) {
        (Some(name), _) => name.clone(),
        (None, Some(name)) => name.to_owned(),
        (None, None) => values::dns_name(directory.rsplit('/').next().unwrap_or_default(), 40),
    };
    if values::dns_name(&name, 40) != name {
        let at = root.get("name").map_or(root.at, |it| it.at);
        let hint = format!("write `name: {}`", values::dns_name(&name, 40));
        loader.error(
            at,
            format!("`{name}` cannot name a project: lower-case letters, digits and dashes, at most 40"),
            hint,
        );
    }
    let project = loader.whole(&root, &name, &input.namespace, &input.choice, &variables);
    let project = project.filter(|_| !loader.is_broken());
    (project, loader.reports)
}

/// The variables that files may use: those of `.env`, under those of whoever asks.
fn variables(loader: &mut Loader<'_>, input: &Input<'_>, directory: &str) -> Variables {
    let mut all = Variables::new();
    let named = input.env_files.iter().map(|it| (it.clone(), true));
    let usual = input.env_files.is_empty().then(|| (load::join(directory, ".env"), false));
    for (path, required) in named.chain(usual) {
        let known: Variables = all.clone().into_iter().chain(input.variables.clone()).collect();
        if required && let Err(why) = input.reader.read(&path) {
            let finding =
                Finding::error(Place::new(1, 1), format!("cannot read the environment file: {why}"));
            loader.reports.push(Report { file: path, finding });
            continue;
        }
        let at = tree::At::default();
        all.extend(loader.env_file(&path, at, false, &known));
    }
    all.extend(input.variables.clone());
    all
}
