//! `naru exec APP -- COMMAND`: a command in one of an app's pods, over the same stream that kubectl uses.

use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use clap::Args;
use futures::{SinkExt, StreamExt};
use naru_objects::{NAMESPACE, kinds, labels, percent_encode};
use std::io::Write;
use std::process::ExitCode;
use tokio::io::AsyncReadExt;

#[derive(Args)]
pub struct ExecArgs {
    /// `pod/<name>`, or the name of an app: then its first ready pod.
    pub target: String,
    /// Give the command our standard input.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    #[arg(required = true, last = true)]
    pub command: Vec<String>,
}

/// Channels of the protocol `v5.channel.k8s.io`: the first byte of each message.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const CLOSE: u8 = 255;

pub async fn run(global: &Global, args: &ExecArgs) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let pod = match args.target.strip_prefix("pod/") {
        Some(pod) => pod.to_owned(),
        None => ready_pod(&client, &args.target).await?,
    };
    let command: String = args.command.iter().map(|it| format!("&command={}", percent_encode(it))).collect();
    let path = format!(
        "{}/exec?stdout=true&stderr=true&stdin={}{command}",
        kinds::POD.path(Some(NAMESPACE), Some(&pod)),
        args.stdin
    );
    let request = http::Request::get(path).body(Vec::new())?;
    let connection = client.kube().connect(request).await?;
    let (mut sink, mut stream) = connection.into_stream().split();
    if args.stdin {
        tokio::spawn(async move {
            let mut input = tokio::io::stdin();
            let mut buffer = vec![0u8; 16 * 1024];
            while let Ok(count) = input.read(&mut buffer).await {
                let mut message = vec![STDIN];
                message.extend_from_slice(&buffer[..count]);
                if count == 0 {
                    message = vec![CLOSE, STDIN];
                }
                if sink.send(binary(message)).await.is_err() || count == 0 {
                    break;
                }
            }
            // Dropping the sink would close the stream before the command has answered.
            std::future::pending::<()>().await;
        });
    }
    let mut status = serde_json::Value::Null;
    while let Some(message) = stream.next().await {
        let data = message?.into_data();
        match data.split_first() {
            Some((&STDOUT, data)) => std::io::stdout().write_all(data)?,
            Some((&STDERR, data)) => std::io::stderr().write_all(data)?,
            Some((&STATUS, data)) => {
                status = serde_json::from_slice(data)?;
                break;
            }
            _ => {}
        }
        std::io::stdout().flush()?;
    }
    if status["status"] == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let code = status["details"]["causes"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|it| it["reason"] == "ExitCode")
        .and_then(|it| it["message"].as_str()?.parse::<u8>().ok());
    match code {
        Some(code) => Ok(ExitCode::from(code)),
        None => Err(Error::new(status["message"].as_str().unwrap_or("the stream ended early").to_owned())),
    }
}

fn binary(bytes: Vec<u8>) -> tokio_tungstenite::tungstenite::Message {
    tokio_tungstenite::tungstenite::Message::Binary(bytes.into())
}

async fn ready_pod(client: &naru_client::Client, app: &str) -> Result<String> {
    let selector = format!("{}={app},{}", labels::APP, labels::SERVICE);
    let pods = client.list(&kinds::POD, Some(NAMESPACE), &selector).await?;
    let ready = pods.iter().find(|it| {
        let conditions = it["status"]["conditions"].as_array();
        it["metadata"]["deletionTimestamp"].is_null()
            && conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True")
    });
    ready.map(|it| naru_objects::name_of(it).to_owned()).ok_or_else(|| {
        Error::new(format!("no pod of an app `{app}` is ready")).hint("`naru status` shows the apps")
    })
}
