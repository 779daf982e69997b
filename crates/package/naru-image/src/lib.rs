//! Container images on one machine: names, the store, layers in and out, and pulling from registries.
//!
//! In comes an image name or a container's upper directory; out come lower directories for an overlay,
//! and blobs that any OCI tool understands. It builds nothing (naru-builder does), serves nothing
//! (naru-registry does) and mounts nothing (the node does).
//!
//! ```no_run
//! # async fn example() -> Result<(), naru_image::Error> {
//! use naru_image::{Config, ImageStore, PullPolicy};
//! let store = ImageStore::open(Config { dir: "/var/lib/naru/images".into(), ..Default::default() })?;
//! let image = store.ensure("busybox:1.36", PullPolicy::IfNotPresent).await?;
//! println!("{} from {:?}", image.digest, image.lower_dirs);
//! # Ok(()) }
//! ```

mod credentials;
mod digest;
mod flatten;
mod host;
mod images;
mod layers;
pub mod oci;
mod pack;
mod platform;
mod pull;
mod push;
mod quota;
mod reference;
mod remote;
mod repositories;
mod several;
mod signatures;
mod store;
mod unpack;
mod usage;
mod view;

#[cfg(test)]
mod layers_test;

pub use digest::{Digest, DigestError, Hashing};
pub use flatten::flatten;
pub use host::HostImageConfig;
pub use images::{Base, Collected, HostRoot, Keep, LocalImage, PullPolicy, Resolved, TransientImage};
pub use layers::{CommitOptions, Layer};
pub use pack::{PackError, pack};
pub use platform::{Platform, PlatformError};
pub use push::PushEvent;
pub use quota::{Quota, QuotaUse};
pub use reference::{HOST_IMAGE, LOCAL_REGISTRY, Reference, ReferenceError, is_repository, is_tag};
pub use remote::RegistryError;
pub use repositories::Repositories;
pub use signatures::Signed;
pub use store::{BlobWriter, Config, Credential, Error, ImageStore, LAYERS_MAX, Result};
pub use unpack::{Compression, UnpackError, Unpacked, Whiteouts, decompress, each_entry, unpack, unpack_as};
pub use usage::{ImageUse, Usage, disk_bytes};
pub use view::{Entry, LastLink, View};
