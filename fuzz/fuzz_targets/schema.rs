//! Any definition and any object of it: nothing that a schema says makes the server stumble.
#![no_main]

use kube_kinds::strategy::{self, Birth};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: (&str, &str)| {
    let (Ok(schema), Ok(object)) = (serde_json::from_str::<Value>(data.0), serde_json::from_str::<Value>(data.1)) else {
        return;
    };
    let definitions = kube_kinds::table::of("apiextensions.k8s.io", "CustomResourceDefinition").expect("built in");
    let birth = || Birth { namespace: "", uid: "u".into(), suffix: "abcde", now: Default::default() };
    let definition = json!({"metadata": {"name": "toys.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
        "names": {"plural": "toys", "kind": "Toy"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": schema}}]}});
    let Ok(definition) = strategy::create(definitions, definition, &birth()) else { return };
    for kind in kube_kinds::crd::kinds_of(&definition) {
        let Ok(mut object) = strategy::typed(&kind, object.clone()) else { continue };
        if kube_kinds::decode::conform(&kind, &mut object).is_ok() {
            let _ = strategy::create(&kind, object, &birth());
        }
    }
});
