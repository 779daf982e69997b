//! How a client has an image built: it puts the context's archive into the image store, submits an
//! [`Order`], follows the events, and reads the outcome from the `Image` object.
//!
//! In the daemon's own process (the Docker Engine API, `naru up`):
//!
//! ```no_run
//! # use futures::StreamExt;
//! # async fn example(
//! #     client: naru_client::Client, store: naru_image::ImageStore, logs: naru_builder::BuildLogs,
//! #     context_tar: Vec<u8>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! use naru_builder::{Event, Order, submit};
//! use naru_objects::{ImageSpec, Upload};
//! let digest = store.put_blob(&context_tar)?; // or `begin_blob`, for one that comes in pieces
//! let spec = ImageSpec {
//!     upload: Some(Upload { digest: digest.to_string(), ..Upload::default() }),
//!     service: "web".into(), tags: vec!["web:1".into()], ..ImageSpec::default()
//! };
//! let image = submit(&client, "default", Order { spec, ..Order::default() }).await?;
//! let mut events = std::pin::pin!(logs.follow(naru_objects::name_of(&image)));
//! while let Some(line) = events.next().await {
//!     match serde_json::from_str(&line)? {
//!         Event::Done(image) => println!("{}", image.digest),
//!         Event::Failed { report } => println!("{report}"),
//!         event => println!("{event}"),
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! From elsewhere the archive goes through the registry (`POST /v2/naru/contexts/blobs/uploads/?digest=..`)
//! and the events come from `GET /builds/<image>/events`, both with the push token. Deleting the `Image`
//! object stops its build.

use base64::Engine as _;
use naru_client::Client;
use naru_objects::{ImageSpec, kinds};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The repository that contexts are uploaded to.
pub const CONTEXTS_REPOSITORY: &str = "naru/contexts";

/// What to build, and what must not stand in an object that everybody may read.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// With an `upload`. Its `secrets` is filled in here.
    pub spec: ImageSpec,
    /// By id, for `RUN --mount=type=secret`. They travel as a Secret that goes with the build.
    pub secrets: BTreeMap<String, Vec<u8>>,
    pub labels: BTreeMap<String, String>,
}

/// Creates the `Image` object, which the controller then makes true, and returns it.
pub async fn submit(client: &Client, namespace: &str, order: Order) -> naru_client::Result<Value> {
    let Order { mut spec, secrets, labels } = order;
    let name = format!(
        "build-{}-{}",
        naru_objects::dns_label(&spec.service, 30),
        &naru_objects::ChangeId::mint().as_str()[2..]
    );
    if let Some(upload) = spec.upload.as_mut().filter(|_| !secrets.is_empty()) {
        upload.secrets = Some(name.clone());
    }
    let image = json!({
        "apiVersion": kinds::IMAGE.api_version(), "kind": kinds::IMAGE.kind,
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": spec,
    });
    let image = client.create(&kinds::IMAGE, &image).await?;
    if !secrets.is_empty() {
        let encode = |it: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(it);
        let data: BTreeMap<&String, String> = secrets.iter().map(|(id, it)| (id, encode(it))).collect();
        // After its owner, so that it cannot be left behind; the build waits for it.
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": true,
            "metadata": {"name": name, "namespace": namespace,
                         "ownerReferences": [naru_objects::owner_reference(&image)]},
            "data": data,
        });
        client.create(&kinds::SECRET, &secret).await?;
    }
    Ok(image)
}
