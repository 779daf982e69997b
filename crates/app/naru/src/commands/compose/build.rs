//! The images of services with `build`.

use crate::cli::Global;
use crate::commands::build::{self, BuildArgs, ProgressKind};
use crate::error::{Context, Error, Result};
use naru_spec::compose::{Project, default_image};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Builds what is to be built; what is the same as before comes from the cache. Service -> image by digest.
pub async fn build(global: &Global, project: &Project) -> Result<BTreeMap<String, String>> {
    let mut images = BTreeMap::new();
    for service in &project.services {
        let Some(build) = &service.build else { continue };
        let name = service
            .image
            .as_ref()
            .map_or_else(|| default_image(&project.name, &service.name), |it| it.0.clone());
        eprintln!("{} builds {}", service.name, build.context);
        // Dropped after the build.
        let mut inline = None;
        let file = match &build.dockerfile_inline {
            Some(text) => {
                let file = tempfile::NamedTempFile::new()?;
                std::fs::write(file.path(), text)
                    .context(|| format!("cannot write {}", file.path().display()))?;
                inline.insert(file).path().to_owned()
            }
            None => Path::new(&build.context).join(&build.dockerfile),
        };
        // Gone after the build, and nobody else's to read.
        let (mut secret_files, mut secrets) = (Vec::new(), Vec::new());
        for (id, source, _) in &build.secrets {
            let Some(content) = project.build_secrets.get(source) else { continue };
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), content)
                .context(|| format!("cannot write {}", file.path().display()))?;
            secrets.push(format!("id={id},src={}", file.path().display()));
            secret_files.push(file);
        }
        let pairs =
            |map: &BTreeMap<String, String>| map.iter().map(|(key, it)| format!("{key}={it}")).collect();
        let args = BuildArgs {
            context: build.context.clone(),
            tags: std::iter::once(name).chain(build.tags.iter().cloned()).collect(),
            file: Some(file.display().to_string()),
            target: build.target.clone(),
            build_args: pairs(&build.args),
            labels: pairs(&build.labels),
            build_contexts: pairs(&build.additional_contexts),
            cache_from: build.cache_from.clone(),
            cache_to: build.cache_to.clone(),
            secrets,
            ssh: build.ssh.clone(),
            no_cache: build.no_cache,
            pull: build.pull,
            progress: ProgressKind::Auto,
            ..BuildArgs::of(PathBuf::from(&build.context))
        };
        let built = build::make(global, &args).await?;
        let built =
            built.ok_or_else(|| Error::new(format!("the image of `{}` could not be built", service.name)))?;
        images.insert(service.name.clone(), built.reference);
    }
    Ok(images)
}
