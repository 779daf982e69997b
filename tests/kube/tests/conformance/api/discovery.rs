use naru_kube_tests::{Group, Scenario, scenario};
use serde_json::Value;

pub fn all() -> Vec<Scenario> {
    vec![scenario(
        Group::A,
        "[sig-api-machinery] Discovery should validate PreferredVersion for each APIGroup [Conformance]",
        |it| {
            let groups = it.get("/apis")["groups"].take();
            let groups = groups.as_array().expect("there are groups");
            assert!(!groups.is_empty());
            for group in groups {
                let name = group["name"].as_str().expect("a group has a name");
                // A group of another scenario may have gone in between.
                let Some(one) = it.find(&format!("/apis/{name}")) else { continue };
                let preferred = &one["preferredVersion"]["groupVersion"];
                assert!(preferred.as_str().is_some_and(|it| it.starts_with(name)), "{one}");
                let versions = one["versions"].as_array().expect("a group has versions");
                assert!(versions.iter().any(|it| it["groupVersion"] == *preferred), "{one}");
                assert_eq!(group["preferredVersion"]["groupVersion"], *preferred);
                assert_ne!(group["preferredVersion"]["version"], Value::Null);
            }
        },
    )]
}
