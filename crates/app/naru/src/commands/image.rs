//! `naru image`: what an image could do better, what it is made of, and where it comes from.

use crate::cli::Global;
use crate::commands::build::Remote;
use crate::error::{Context, Error, Result};
use clap::{Subcommand, ValueEnum};
use naru_builder::inspect::{Report, fixes, patch};
use naru_builder::provenance::Verdict;
use naru_builder::size;
use naru_objects::PolicyMode;
use naru_policy::Verdict as Judged;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const FILES_SHOWN: usize = 5;

#[derive(Subcommand, Clone)]
pub enum ImageCommand {
    /// What an image wastes and gives away, what to write instead, and what that saves.
    Advise {
        image: String,
        #[arg(long)]
        json: bool,
        /// Print the safe part of the advice as a patch for this Dockerfile.
        #[arg(long, value_name = "DOCKERFILE")]
        apply: Option<PathBuf>,
    },
    /// The packages that an image is made of, as SPDX 2.3 or CycloneDX 1.5.
    Sbom {
        image: String,
        #[arg(long, value_enum, default_value = "spdx")]
        format: SbomFormat,
    },
    /// Images for several platforms under one name.
    #[command(subcommand)]
    Index(IndexCommand),
    /// Whether an image was built by this daemon, and from what. Exit code 1 if not.
    Verify {
        image: String,
        /// Ask the ImagePolicies instead: whether a pod of this namespace may run it, and who vouches for it.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Print the signed statement (in-toto, SLSA provenance v1).
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand, Clone)]
pub enum IndexCommand {
    /// Join images for different platforms under one name.
    Create {
        name: String,
        /// Images, by name or digest; an index stands for all that it names and that is here.
        #[arg(required = true)]
        images: Vec<String>,
        /// Send it, with its images, to the registry of its name.
        #[arg(long)]
        push: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SbomFormat {
    Spdx,
    Cyclonedx,
}

pub async fn run(global: &Global, command: &ImageCommand) -> Result<ExitCode> {
    let remote = Remote::new(global)?;
    match command {
        ImageCommand::Advise { image, json, apply } => {
            if let Some(path) = apply {
                print!("{}", as_patch(&remote, path).await?);
                return Ok(ExitCode::SUCCESS);
            }
            let text = remote.about_image("advice", image, "").await?;
            match json {
                true => println!("{text}"),
                false => show(&serde_json::from_str(&text)?),
            }
        }
        ImageCommand::Sbom { image, format } => {
            let format = match format {
                SbomFormat::Spdx => "&format=spdx",
                SbomFormat::Cyclonedx => "&format=cyclonedx",
            };
            let text = remote.about_image("sbom", image, format).await?;
            let value: serde_json::Value = serde_json::from_str(&text)?;
            println!("{}", serde_json::to_string_pretty(&value)?);
        }
        ImageCommand::Index(IndexCommand::Create { name, images, push }) => {
            println!("{}", remote.create_index(name, images, *push).await?);
        }
        ImageCommand::Verify { image, namespace: Some(namespace), json } => {
            let more = format!("&namespace={}", naru_objects::percent_encode(namespace));
            let text = remote.about_image("policies", image, &more).await?;
            if *json {
                println!("{text}");
            }
            return may_run(image, namespace, &serde_json::from_str::<Vec<Judged>>(&text)?, *json);
        }
        ImageCommand::Verify { image, namespace: None, json } => {
            let verdict: Verdict = serde_json::from_str(&remote.about_image("provenance", image, "").await?)?;
            if !verdict.is_verified {
                return Err(Error::new(format!("{image}: {}", verdict.why))
                    .hint("build it here, or do not run it where its origin matters"));
            }
            match json {
                true => println!("{}", serde_json::to_string_pretty(&verdict.statement)?),
                false => show_origin(image, &verdict),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn may_run(image: &str, namespace: &str, verdicts: &[Judged], is_quiet: bool) -> Result<ExitCode> {
    if !is_quiet {
        if verdicts.is_empty() {
            println!("no ImagePolicy is about {image} in the namespace {namespace}: it may run");
        }
        for it in verdicts {
            match (&it.authority, it.mode) {
                (Some(authority), _) => println!("{}: vouched for ({authority})", it.policy),
                (None, PolicyMode::Warn) => println!("{}: warns: {}", it.policy, it.why),
                (None, PolicyMode::Enforce) => println!("{}: refuses: {}", it.policy, it.why),
            }
        }
    }
    let is_refused = verdicts.iter().any(|it| it.authority.is_none() && it.mode == PolicyMode::Enforce);
    Ok(if is_refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn show_origin(image: &str, verdict: &Verdict) {
    let definition = &verdict.statement["predicate"]["buildDefinition"];
    println!("{image} was built here (key {})", verdict.key_id.get(..16).unwrap_or(&verdict.key_id));
    for (name, value) in definition["externalParameters"]["source"].as_object().into_iter().flatten() {
        println!("  {name}: {}", value.as_str().unwrap_or_default());
    }
    for it in definition["resolvedDependencies"].as_array().into_iter().flatten() {
        if let Some(base) = it["uri"].as_str().and_then(|it| it.strip_prefix("docker-image://")) {
            println!("  base: {base}@sha256:{}", it["digest"]["sha256"].as_str().unwrap_or_default());
        }
    }
    let finished = &verdict.statement["predicate"]["runDetails"]["metadata"]["finishedOn"];
    println!("  built: {}", finished.as_str().unwrap_or_default());
}

async fn as_patch(remote: &Remote, path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?;
    if path.is_absolute() {
        return Err(Error::new("a patch names files relative to where it is applied")
            .hint("give the Dockerfile as a relative path: `--apply Dockerfile`"));
    }
    // Bases are asked for first, because what decides does not wait.
    let mut digests = BTreeMap::new();
    for stage in naru_builder::parse(&text).stages {
        if !stage.image.contains(['$', '@']) && stage.image != "scratch" {
            // One that cannot be had is not pinned.
            if let Ok(digest) = remote.about_image("digest", &stage.image, "").await {
                digests.insert(stage.image, digest);
            }
        }
    }
    let found = fixes(&text, &|image| digests.get(image).cloned());
    for fix in &found {
        eprintln!("{}:{}: {}", path.display(), fix.line, fix.why);
    }
    if found.is_empty() {
        eprintln!("nothing in {} can be changed without a person's eye", path.display());
    }
    Ok(patch(&path.display().to_string(), &text, &found))
}

fn show(report: &Report) {
    println!("{} {} unpacked", report.image, size(report.bytes));
    if report.advice.is_empty() {
        println!("nothing to say");
    }
    for it in &report.advice {
        let layer = it.layer.map(|it| format!(" (layer {it})")).unwrap_or_default();
        println!("\n{}: {}{layer}", it.rule, it.message);
        if !it.created_by.is_empty() {
            println!("  made by: {}", it.created_by);
        }
        if it.saves_bytes > 0 {
            println!("  saves:   {}", size(it.saves_bytes));
        }
        for file in it.files.iter().take(FILES_SHOWN) {
            println!("  {:>11}  {}", size(file.bytes), file.path);
        }
        println!("  hint: {}", it.hint);
    }
    if report.saves_bytes > 0 {
        println!("\ntogether this saves {} of {}", size(report.saves_bytes), size(report.bytes));
    }
}
