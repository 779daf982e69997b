//! The schemas as OpenAPI v3 components, with the texts that people read.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Map, Value};

/// `components.schemas` of a document: these definitions (`io.k8s.api.core.v1.Pod`) and everything that
/// they refer to, each with its texts. Names that are not official are left out.
pub fn components(names: &[&str]) -> Map<String, Value> {
    // Read anew each time: the texts are needed a few times in the life of a server, and are large.
    let mut definitions = crate::table(include_bytes!("../data/schema.json.gz"));
    let mut texts = crate::table(include_bytes!("../data/descriptions.json.gz"));
    let mut wanted: Vec<String> = names.iter().map(|it| it.to_string()).collect();
    let mut components = Map::new();
    while let Some(name) = wanted.pop() {
        if components.contains_key(&name) || definitions.get(&name).is_none() {
            continue;
        }
        let mut definition = definitions[&name].take();
        describe(&mut definition, texts[&name].take());
        let mut references = BTreeSet::new();
        collect_references(&definition, &mut references);
        wanted.extend(references);
        components.insert(name, definition);
    }
    components
}

/// Names the tables' content, so that clients may keep what they have.
pub static DIGEST: LazyLock<u64> = LazyLock::new(|| {
    // FNV-1a: the same in every process and on every machine.
    include_bytes!("../data/schema.json.gz")
        .iter()
        .chain(include_bytes!("../data/descriptions.json.gz"))
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
});

fn describe(definition: &mut Value, texts: Value) {
    let Value::Object(texts) = texts else { return };
    for (field, text) in texts {
        match field.as_str() {
            "" => definition["description"] = text,
            _ => definition["properties"][&field]["description"] = text,
        }
    }
}

fn collect_references(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(name) =
                fields.get("$ref").and_then(Value::as_str).and_then(|it| it.rsplit('/').next())
            {
                references.insert(name.to_string());
            }
            fields.values().for_each(|it| collect_references(it, references));
        }
        Value::Array(items) => items.iter().for_each(|it| collect_references(it, references)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_closed_under_references_and_has_texts() {
        let components = components(&["io.k8s.api.apps.v1.Deployment", "com.example.v1.Unknown"]);
        assert!(components.contains_key("io.k8s.api.core.v1.Container"));
        assert!(!components.contains_key("io.k8s.api.core.v1.Node"));
        let replicas = &components["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["replicas"];
        assert_eq!(replicas["type"], "integer");
        assert!(replicas["description"].as_str().is_some_and(|it| it.contains("pods")));
    }
}
