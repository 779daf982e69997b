//! `naru export`: a compose project as plain Kubernetes YAML.

use super::{ProjectArgs, load, running_images};
use crate::cli::Global;
use crate::connection;
use crate::error::Result;
use clap::Args;
use naru_spec::{compose, yaml_text};
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub project: ProjectArgs,
    /// Only these services, and what they depend on.
    pub services: Vec<String>,
}

pub async fn run(global: &Global, args: &ExportArgs) -> Result<ExitCode> {
    let project = load(&args.project, &args.services)?;
    let is_built = project.services.iter().any(|it| it.build.is_some());
    // A file whose images are all given needs no daemon.
    let images = match is_built {
        true => running_images(&connection::client(global).await?, &project).await?,
        false => BTreeMap::new(),
    };
    let rendered = compose::render(&project, &images);
    let secrets = rendered.shared.iter().filter(|it| it["kind"] == "Secret").count();
    if secrets > 0 {
        eprintln!("warning: {secrets} of these objects are Secrets, readable by whoever reads the output");
    }
    if !project.services.iter().all(|it| it.host_paths.is_empty()) {
        eprintln!("warning: some pods mount directories of this machine, which another does not have");
    }
    for (index, object) in rendered.objects().enumerate() {
        if index > 0 {
            println!("---");
        }
        print!("{}", yaml_text::write(object));
    }
    Ok(ExitCode::SUCCESS)
}
