//! Any text as a label selector, a field selector and a quantity.
#![no_main]

use kube_kinds::selector::{FieldSelector, LabelSelector};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let pods = kube_kinds::table::find("", "v1", "pods").expect("pods are built in");
    if let Ok(selector) = LabelSelector::parse(text) {
        assert_eq!(LabelSelector::parse(&selector.to_string()).ok(), Some(selector));
    }
    let _ = FieldSelector::parse(text, pods);
    if let Some(written) = kube_kinds::quantity::canonical(text) {
        assert_eq!(kube_kinds::quantity::canonical(&written), Some(written));
    }
});
