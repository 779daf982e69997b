//! What the services ask of the objects: runs, and the workflows that can be started.

use async_trait::async_trait;
use naru_client::{Client, chain};
use naru_objects::{kinds, labels};
use serde_json::Value;

/// The runs as objects, whoever keeps them.
#[async_trait]
pub trait Runs: Send + Sync {
    async fn get(&self, name: &str) -> Result<Option<Value>, String>;
    /// The runs of a repository, in no order.
    async fn list(&self, repository: &str) -> Result<Vec<Value>, String>;
    /// The workflows that the default branch of a repository has.
    async fn workflows(&self, repository: &str) -> Result<Vec<Value>, String>;
    async fn create(&self, run: &Value) -> Result<(), String>;
}

/// The runs of a namespace behind a Kubernetes client.
pub struct RunsOfClient {
    pub client: Client,
    pub namespace: String,
}

#[async_trait]
impl Runs for RunsOfClient {
    async fn get(&self, name: &str) -> Result<Option<Value>, String> {
        self.client.get(&kinds::RUN, &self.namespace, name).await.map_err(|it| chain(&it))
    }

    async fn list(&self, repository: &str) -> Result<Vec<Value>, String> {
        let selector = format!("{}={repository}", labels::APP);
        self.client.list(&kinds::RUN, Some(&self.namespace), &selector).await.map_err(|it| chain(&it))
    }

    async fn workflows(&self, repository: &str) -> Result<Vec<Value>, String> {
        let all = self.client.list(&kinds::WORKFLOW, Some(&self.namespace), "").await;
        let mut all = all.map_err(|it| chain(&it))?;
        all.retain(|it| it["spec"]["repository"] == repository);
        Ok(all)
    }

    async fn create(&self, run: &Value) -> Result<(), String> {
        let mut run = run.clone();
        run["metadata"]["namespace"] = Value::from(self.namespace.as_str());
        self.client.create(&kinds::RUN, &run).await.map(|_| ()).map_err(|it| chain(&it))
    }
}
