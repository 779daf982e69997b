//! Any bytes as a body: JSON with its duplicates, protobuf, and a pod made of them.
#![no_main]

use kube_kinds::strategy::{self, Birth};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let pods = kube_kinds::table::find("", "v1", "pods").expect("pods are built in");
    let parsed = kube_kinds::decode::parse(data).map(|(value, _)| value).ok();
    for value in [parsed, kube_tables::decode(data).ok()].into_iter().flatten() {
        let Ok(mut object) = strategy::typed(pods, value) else { continue };
        if kube_kinds::decode::conform(pods, &mut object).is_ok() {
            let birth = Birth { namespace: "default", uid: "u".into(), suffix: "abcde", now: Default::default() };
            let _ = strategy::create(pods, object, &birth);
        }
    }
});
