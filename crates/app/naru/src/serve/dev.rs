//! `naru dev`: the Kubernetes API with its controllers on nodes that only pretend, for trying manifests, charts
//! and operators on a laptop. Nothing is run, and no root is needed.

use crate::cli::{DevArgs, Global};
use crate::error::{Context, Error, Result};
use crate::serve::{listen, lock, wait_for_signal};
use kube_api::Api;
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

pub async fn run(global: &Global, args: &DevArgs) -> Result<ExitCode> {
    if !args.simulate {
        return Err(Error::new("naru dev has simulated nodes only")
            .hint("say so with --simulate, or run containers with `naru serve`"));
    }
    let data_dir = &global.data_dir;
    std::fs::create_dir_all(data_dir).context(|| format!("cannot use {}", data_dir.display()))?;
    let data_dir = &data_dir.canonicalize()?;
    let _lock = lock(data_dir)?;
    let shutdown = CancellationToken::new();
    let api = Api::open(kube_api::Config::new(data_dir.join("api"), env!("CARGO_PKG_VERSION")))?;
    api.prepare().await?;
    let settings = kube_controllers::Settings {
        cluster_ca: Some(api.ca_certificate().to_string()),
        ..kube_controllers::Settings::default()
    };
    let controllers = kube_controllers::start(api.store(), settings, shutdown.clone());
    let nodes = kube_controllers::simulate::start(api.store(), args.nodes, shutdown.clone())
        .await
        .context(|| "the simulated nodes cannot be registered".into())?;
    let listener = listen(args.api).await?;
    let address = listener.local_addr()?;
    let kubeconfig = api.write_kubeconfig(&format!("https://{address}"))?;
    let serving = {
        let (api, shutdown) = (api.clone(), shutdown.clone());
        tokio::spawn(async move { api.serve(listener, shutdown).await })
    };
    let mut out = std::io::stdout();
    let endpoints =
        json!({"api": format!("https://{address}"), "kubeconfig": kubeconfig, "nodes": args.nodes});
    match args.print_endpoints {
        true => writeln!(out, "{endpoints}")?,
        false => writeln!(
            out,
            "{} simulated nodes behind https://{address}\n\n  export KUBECONFIG={}\n  kubectl get nodes",
            args.nodes,
            kubeconfig.display()
        )?,
    }
    out.flush()?;
    wait_for_signal().await?;
    shutdown.cancel();
    let _ = serving.await;
    let _ = nodes.await;
    let _ = controllers.await;
    api.close().await;
    Ok(ExitCode::SUCCESS)
}
