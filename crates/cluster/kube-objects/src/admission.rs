//! What happens to an object between a client's wish and the store, beyond its own rules: decisions
//! that look at other objects.
//!
//! What several writers share (addresses, quotas) is decided and written under one lock, so that it
//! is never given twice.

mod definitions;
mod services;

use std::sync::Arc;

use kube_kinds::{Failure, Kind};
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use crate::Objects;

/// Held from the decision to the write.
#[derive(Default)]
pub(crate) struct Held {
    _locks: Vec<OwnedMutexGuard<()>>,
}

/// One lock for each thing that is shared out.
#[derive(Clone, Default)]
pub(crate) struct Locks {
    services: Arc<tokio::sync::Mutex<()>>,
    definitions: Arc<tokio::sync::Mutex<()>>,
}

impl Objects {
    /// The last decisions before the write. `new` is valid by itself.
    pub(crate) async fn settle(
        &self,
        kind: &Kind,
        old: Option<&Value>,
        new: &mut Value,
    ) -> Result<Held, Failure> {
        let mut held = Held::default();
        if kind.group.is_empty() && kind.plural == "services" {
            held._locks.push(self.locks.services.clone().lock_owned().await);
            services::allocate(self, kind, old, new)?;
        }
        if kind.is_crd() {
            held._locks.push(self.locks.definitions.clone().lock_owned().await);
            definitions::check_names(self, kind, old, new);
        }
        Ok(held)
    }
}
