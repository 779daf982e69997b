//! `naru ci approve` and `naru ci reject`: what a reviewer says about a deployment to an environment.

use super::{run_named, who};
use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use naru_objects::{Environment, NAMESPACE, kinds};
use naru_runner::controller::approval_annotation;
use serde_json::json;
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct DecideArgs {
    /// Such as `shop-main-3`.
    run: String,
    /// Such as `production`.
    environment: String,
    /// Who decides, if it is not you who types.
    #[arg(long = "as", value_name = "NAME")]
    by: Option<String>,
    /// Why, for the others.
    #[arg(short, long)]
    message: Option<String>,
}

pub async fn run(global: &Global, args: &DecideArgs, word: &str) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let run = run_named(&client, &args.run).await?;
    let objects = client.list(&kinds::ENVIRONMENT, Some(NAMESPACE), "").await?;
    let environments: Vec<Environment> =
        objects.into_iter().filter_map(|it| serde_json::from_value(it).ok()).collect();
    let of_repository = || environments.iter().filter(|it| it.spec.repository == run.spec.repository);
    let Some(environment) = of_repository().find(|it| it.spec.name.eq_ignore_ascii_case(&args.environment))
    else {
        let known = of_repository().map(|it| it.spec.name.clone()).collect::<Vec<_>>().join(", ");
        return Err(Error::new(format!(
            "`{}` has no environment `{}`",
            run.spec.repository, args.environment
        ))
        .hint(if known.is_empty() {
            "an Environment object makes one; without it nothing waits".to_owned()
        } else {
            format!("it has {known}")
        }));
    };
    let by = args.by.clone().unwrap_or_else(who);
    let reviewers = &environment.spec.reviewers;
    if !reviewers.is_empty() && !reviewers.contains(&by) {
        return Err(Error::new(format!("`{by}` is no reviewer of `{}`", environment.spec.name))
            .hint(format!("these are: {}", reviewers.join(", "))));
    }
    let said = args.message.as_ref().map(|it| format!(": {it}")).unwrap_or_default();
    let annotation = approval_annotation(&environment.spec.name);
    let patch = json!({"metadata": {"annotations": {annotation: format!("{word} by {by}{said}")}}});
    client.patch_merge(&kinds::RUN, NAMESPACE, &run.metadata.name, &patch).await?;
    println!("{word}: {} to {}", run.metadata.name, environment.spec.name);
    Ok(ExitCode::SUCCESS)
}
