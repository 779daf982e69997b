//! The official API description of the built-in kinds as data: the schema of every definition, the
//! texts that `kubectl explain` shows, and the protobuf tags that `kubectl create` and helm need.
//!
//! Nothing here is typed by hand: a kind that the tables know needs no code to be read, checked or
//! decoded. Sources and how to renew them: the crate's README.
//!
//! ```
//! use kube_tables::{ListType, schema};
//! let pod = schema("", "v1", "Pod").expect("pods are official");
//! let containers = pod.at("spec.containers").expect("pods have containers");
//! assert_eq!(containers.list_type(), ListType::Map);
//! assert_eq!(containers.list_map_keys(), ["name"]);
//! let ports = containers.items().and_then(|it| it.property("ports")).expect("containers have ports");
//! assert_eq!(ports.list_map_keys(), ["containerPort", "protocol"]);
//! ```

mod openapi;
mod protobuf;
mod schema;

use std::io::Read;

use serde_json::Value;

pub use openapi::{DIGEST, components};
pub use protobuf::{DecodeError, decode};
pub use schema::{ListType, Schema, Type, definition, definitions, name_of, schema};

/// The version of Kubernetes whose API the tables describe.
pub const VERSION: &str = "1.35";

fn table(compressed: &[u8]) -> Value {
    let mut text = Vec::new();
    let read = flate2::read::GzDecoder::new(compressed).read_to_end(&mut text);
    read.expect("the tables are part of the program");
    serde_json::from_slice(&text).expect("the tables are part of the program")
}
