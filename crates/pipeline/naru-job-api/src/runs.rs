//! What the services ask of the `Run` objects.

use async_trait::async_trait;
use naru_client::Client;
use naru_objects::kinds;
use serde_json::Value;

/// The runs as objects, whoever keeps them.
#[async_trait]
pub trait Runs: Send + Sync {
    async fn get(&self, name: &str) -> Result<Option<Value>, String>;
}

/// The runs of a namespace behind a Kubernetes client.
pub struct RunsOfClient {
    pub client: Client,
    pub namespace: String,
}

#[async_trait]
impl Runs for RunsOfClient {
    async fn get(&self, name: &str) -> Result<Option<Value>, String> {
        self.client.get(&kinds::RUN, &self.namespace, name).await.map_err(|it| naru_client::chain(&it))
    }
}
