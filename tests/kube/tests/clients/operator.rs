//! An operator written with kube-rs: it watches a declared kind, makes a config map for each object and says so
//! in the status; the config map goes with its owner.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Client, Config};
use naru_kube_tests::Case;
use serde_json::json;

pub fn all() -> Vec<(&'static str, fn(&Case))> {
    vec![("an operator written with kube-rs makes a declared kind true", operator)]
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    let api_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    ApiResource {
        group: group.into(),
        version: version.into(),
        api_version,
        kind: kind.into(),
        plural: plural.into(),
    }
}

fn operator(it: &Case) {
    let group = format!("{}.example.com", it.namespace);
    let definition = format!("pages.{group}");
    it.create(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &json!({"metadata": {"name": definition}, "spec": {"group": group, "scope": "Namespaced",
            "names": {"plural": "pages", "kind": "Page"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "maxLength": 20}},
                    "x-kubernetes-validations": [{"rule": "self.text != 'forbidden'", "message": "not this text"}]},
                "status": {"type": "object", "properties": {"map": {"type": "string"}}}}}}}]}}),
    );
    let pages = it.path(&format!("{group}/v1"), "pages");
    it.wait("the kind to be served", || it.find(&pages).map(drop));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let running =
        runtime.spawn(reconcile(it.cluster.kubeconfig.clone(), it.namespace.clone(), group.clone()));

    let refused = it.ask("POST", &pages, &json!({"apiVersion": format!("{group}/v1"), "kind": "Page", "metadata": {"name": "bad"}, "spec": {"text": "forbidden"}}));
    assert_eq!(refused.code, 422, "{}", refused.text);
    assert!(refused.text.contains("not this text"), "{}", refused.text);
    it.create(&pages, &json!({"apiVersion": format!("{group}/v1"), "kind": "Page", "metadata": {"name": "home"}, "spec": {"text": "one"}}));
    let map = it.path("v1", "configmaps/home-page");
    it.wait_for("the operator's config map", &map, |it| it["data"]["text"] == "one");
    it.wait_for("the status", &format!("{pages}/home"), |it| it["status"]["map"] == "home-page");
    it.merge(&format!("{pages}/home"), &json!({"spec": {"text": "two"}}));
    it.wait_for("the operator to follow", &map, |it| it["data"]["text"] == "two");
    it.delete(&format!("{pages}/home"));
    it.wait_gone(&map);
    running.abort();
    it.delete(&format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition}"));
}

async fn reconcile(kubeconfig: String, namespace: String, group: String) -> kube::Result<()> {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).expect("it is a kubeconfig");
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.expect("it can be used");
    let client = Client::try_from(config)?;
    let pages: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &namespace, &resource(&group, "v1", "Page", "pages"));
    let maps: Api<DynamicObject> =
        Api::namespaced_with(client, &namespace, &resource("", "v1", "ConfigMap", "configmaps"));
    let mut events = pages.watch(&WatchParams::default(), "0").await?.boxed();
    let apply = PatchParams::apply("page-operator").force();
    while let Some(event) = events.try_next().await? {
        let (WatchEvent::Added(page) | WatchEvent::Modified(page)) = event else { continue };
        let name = page.metadata.name.clone().unwrap_or_default();
        let map = format!("{name}-page");
        let data: BTreeMap<&str, _> = [("text", page.data["spec"]["text"].clone())].into();
        let owned = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": map, "ownerReferences": [{
            "apiVersion": format!("{group}/v1"), "kind": "Page", "name": name, "uid": page.metadata.uid, "controller": true}]},
            "data": data});
        maps.patch(&map, &apply, &Patch::Apply(owned)).await?;
        if page.data["status"]["map"] != map.as_str() {
            pages
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({"status": {"map": map}})))
                .await?;
        }
    }
    Ok(())
}
