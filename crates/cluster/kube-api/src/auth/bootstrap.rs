//! Roles that every cluster has, written at each start as they are here unless someone took them out of
//! our hands with the annotation `rbac.authorization.kubernetes.io/autoupdate: "false"`.

use kube_kinds::{Failure, table, text};
use kube_objects::{Door, Writer};
use serde_json::{Value, json};

use crate::Api;

const GROUP: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

pub(crate) async fn write(api: &Api) -> Result<(), Failure> {
    let writer = Writer::new("naru");
    for mut wanted in roles().into_iter().chain(bindings()) {
        let kind =
            table::of(GROUP, text(&wanted, "/kind")).expect("the table of kinds has roles and bindings");
        wanted["metadata"]["annotations"] = json!({AUTOUPDATE: "true"});
        wanted["metadata"]["labels"]["kubernetes.io/bootstrapping"] = json!("rbac-defaults");
        let name = text(&wanted, "/metadata/name").to_string();
        match api.objects().find(kind, "", &name) {
            None => {
                api.objects().create(kind, "", wanted, &writer).await?;
            }
            Some(live) if live["metadata"]["annotations"][AUTOUPDATE] == "false" => {}
            Some(live) => {
                let own = ["rules", "aggregationRule", "subjects", "roleRef"];
                if own.iter().any(|it| live[*it] != wanted[*it]) {
                    let edit = |object: &mut Value| {
                        for field in own.iter().filter(|it| !wanted[**it].is_null()) {
                            object[*field] = wanted[*field].clone();
                        }
                    };
                    api.objects().edit(kind, "", &name, Door::Object, &writer, edit).await?;
                }
            }
        }
    }
    Ok(())
}

fn rule(verbs: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": resources})
}

fn paths(paths: &[&str]) -> Value {
    json!({"verbs": ["get"], "nonResourceURLs": paths})
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules})
}

/// A role that is put together from all roles with its label.
fn aggregate(name: &str) -> Value {
    let label = format!("{GROUP}/aggregate-to-{name}");
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole", "metadata": {"name": name},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]}})
}

/// Rules that `view`, `edit` or `admin` are put together from; who edits may view, who administers may both.
fn part(of: &str, rules: Vec<Value>) -> Value {
    let mut role = role(&format!("system:aggregate-to-{of}"), rules);
    let above: &[&str] = match of {
        "view" => &["view", "edit", "admin"],
        "edit" => &["edit", "admin"],
        _ => &["admin"],
    };
    for it in above {
        role["metadata"]["labels"][format!("{GROUP}/aggregate-to-{it}")] = json!("true");
    }
    role
}

/// What an app is made of, by group. Secrets are not here: to see them is more than to view.
const APP_KINDS: [(&str, &[&str]); 7] = [
    (
        "",
        &[
            "configmaps",
            "endpoints",
            "persistentvolumeclaims",
            "pods",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "serviceaccounts",
            "services",
        ],
    ),
    (
        "apps",
        &[
            "controllerrevisions",
            "daemonsets",
            "deployments",
            "deployments/scale",
            "replicasets",
            "replicasets/scale",
            "statefulsets",
            "statefulsets/scale",
        ],
    ),
    ("autoscaling", &["horizontalpodautoscalers"]),
    ("batch", &["cronjobs", "jobs"]),
    ("networking.k8s.io", &["ingresses", "networkpolicies"]),
    ("policy", &["poddisruptionbudgets"]),
    ("discovery.k8s.io", &["endpointslices"]),
];

fn roles() -> Vec<Value> {
    const READ: &[&str] = &["get", "list", "watch"];
    const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
    let of_app = |verbs: &[&str]| -> Vec<Value> {
        APP_KINDS.iter().map(|(group, resources)| rule(verbs, group, resources)).collect()
    };
    let mut view = of_app(READ);
    view.push(rule(
        READ,
        "",
        &[
            "bindings",
            "events",
            "limitranges",
            "namespaces",
            "namespaces/status",
            "pods/log",
            "pods/status",
            "resourcequotas",
            "resourcequotas/status",
            "services/status",
        ],
    ));
    view.push(rule(READ, "metrics.k8s.io", &["pods"]));
    let mut edit = of_app(WRITE);
    edit.push(rule(
        READ,
        "",
        &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"],
    ));
    edit.push(rule(
        WRITE,
        "",
        &[
            "pods/attach",
            "pods/exec",
            "pods/portforward",
            "pods/proxy",
            "secrets",
            "services/proxy",
            "events",
        ],
    ));
    edit.push(rule(&["create"], "", &["pods/eviction", "serviceaccounts/token"]));
    edit.push(rule(&["patch", "update"], "", &["pods/ephemeralcontainers", "pods/resize"]));
    edit.push(rule(&["impersonate"], "", &["serviceaccounts"]));
    edit.push(rule(
        &["create", "delete", "get", "list", "patch", "update", "watch"],
        "coordination.k8s.io",
        &["leases"],
    ));
    let admin = vec![
        rule(&[READ, WRITE].concat(), GROUP, &["rolebindings", "roles"]),
        rule(&["create"], "authorization.k8s.io", &["localsubjectaccessreviews"]),
    ];
    vec![
        role(
            "cluster-admin",
            vec![rule(&["*"], "*", &["*"]), json!({"verbs": ["*"], "nonResourceURLs": ["*"]})],
        ),
        aggregate("admin"),
        aggregate("edit"),
        aggregate("view"),
        part("view", view),
        part("edit", edit),
        part("admin", admin),
        role(
            "system:discovery",
            vec![paths(&[
                "/api",
                "/api/*",
                "/apis",
                "/apis/*",
                "/healthz",
                "/livez",
                "/openapi",
                "/openapi/*",
                "/readyz",
                "/version",
                "/version/",
            ])],
        ),
        role(
            "system:basic-user",
            vec![
                rule(
                    &["create"],
                    "authorization.k8s.io",
                    &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                ),
                rule(&["create"], "authentication.k8s.io", &["selfsubjectreviews"]),
            ],
        ),
        role(
            "system:public-info-viewer",
            vec![paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])],
        ),
        role(
            "system:service-account-issuer-discovery",
            vec![paths(&[
                "/.well-known/openid-configuration",
                "/.well-known/openid-configuration/",
                "/openid/v1/jwks",
                "/openid/v1/jwks/",
            ])],
        ),
        role(
            "system:auth-delegator",
            vec![
                rule(&["create"], "authentication.k8s.io", &["tokenreviews"]),
                rule(&["create"], "authorization.k8s.io", &["subjectaccessreviews"]),
            ],
        ),
    ]
}

fn bindings() -> Vec<Value> {
    let binding = |name: &str, role: &str, groups: &[&str]| {
        let subjects: Vec<Value> =
            groups.iter().map(|it| json!({"kind": "Group", "apiGroup": GROUP, "name": it})).collect();
        json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role}, "subjects": subjects})
    };
    const EVERYONE: &[&str] = &["system:authenticated", "system:unauthenticated"];
    vec![
        binding("cluster-admin", "cluster-admin", &["system:masters"]),
        binding("system:discovery", "system:discovery", &["system:authenticated"]),
        binding("system:basic-user", "system:basic-user", &["system:authenticated"]),
        binding("system:public-info-viewer", "system:public-info-viewer", EVERYONE),
        binding(
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            &["system:serviceaccounts"],
        ),
    ]
}
