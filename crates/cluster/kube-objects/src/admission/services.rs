//! Addresses and node ports of services.

use kube_kinds::selector::LabelSelector;
use kube_kinds::service::{self, InUse};
use kube_kinds::{Failure, Kind, name, uid};
use serde_json::Value;

use crate::Objects;

pub(super) fn allocate(
    objects: &Objects,
    kind: &Kind,
    old: Option<&Value>,
    new: &mut Value,
) -> Result<(), Failure> {
    let own = uid(new).to_string();
    let all = objects.list(kind, None, &LabelSelector::default());
    let in_use = InUse::of(all.iter().filter(|it| uid(it) != own).map(|it| &**it));
    service::allocate(old, new, &in_use).map_err(|causes| Failure::invalid(kind, name(new), causes))
}
