//! Any two JSON values as a live object and a patch, through all four patches and the record of owners.
#![no_main]

use kube_patch::{Apply, Fields, Owner, Shape, apply, json, merge, record_update, strategic};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: (&str, &str, bool)| {
    let (Ok(live), Ok(patch)) = (serde_json::from_str::<Value>(data.0), serde_json::from_str::<Value>(data.1)) else {
        return;
    };
    let shape = Shape::built_in("apps", "v1", "Deployment");
    let ignored = Fields::of_paths(&[&["status"]]);
    let owner = Owner { manager: "m", api_version: "apps/v1", subresource: "", now: "2026-01-01T00:00:00Z" };
    let _ = json(&live, &patch);
    let _ = strategic(&live, &patch, &shape);
    let _ = apply(Some(&live), &patch, &Apply { owner, force: data.2, shape, ignored: &ignored });
    let mut new = merge(&live, &patch);
    if live.is_object() && new.is_object() {
        record_update(Some(&live), &mut new, &owner, &shape, &ignored);
    }
});
