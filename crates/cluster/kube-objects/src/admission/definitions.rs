//! Names of declared kinds: two definitions of a group cannot have the same.

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{Kind, crd, table, time, uid};
use serde_json::Value;

use crate::Objects;

/// A definition whose names are taken is stored, says so, and is not served.
pub(super) fn check_names(objects: &Objects, kind: &Kind, old: Option<&Value>, new: &mut Value) {
    if old.is_some_and(|it| it["spec"]["names"] == new["spec"]["names"]) {
        return;
    }
    let all = objects.list(kind, None, &LabelSelector::default());
    let others = all.iter().filter(|it| uid(it) != uid(new));
    let built_in = table::builtin().iter().find(|it| {
        it.group == new["spec"]["group"]
            && (it.plural == new["spec"]["names"]["plural"] || it.kind == new["spec"]["names"]["kind"])
    });
    let taken = match built_in {
        Some(kind) => Some(format!("{:?} is a kind of the server itself", kind.kind)),
        None => others.filter_map(|it| crd::conflict(new, it)).next(),
    };
    if taken.is_some() {
        new["status"] = crd::status_of(new, old, taken.as_deref(), &time::format(Timestamp::now()));
    }
}
