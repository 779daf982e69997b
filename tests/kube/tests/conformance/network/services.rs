use naru_kube_tests::{Case, Group::D, Scenario, scenario};
use serde_json::{Value, json};

use super::{addresses, curl, service, start_client, start_server, text, try_in_client};

pub fn all() -> Vec<Scenario> {
    let mut all = vec![
        scenario(D, "[sig-network] Services should serve a basic endpoint from pods [Conformance]", |case| {
            service(
                case,
                "web",
                json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}),
            );
            assert!(addresses(case, "web").is_empty());
            start_client(case);
            let one = start_server(case, "one", json!({"app": "web"}));
            wait_addresses(case, &[&one]);
            wait_answers(case, "http://web/", &["one"]);
            let two = start_server(case, "two", json!({"app": "web"}));
            wait_addresses(case, &[&one, &two]);
            wait_answers(case, "http://web/", &["one", "two"]);
            case.delete(&case.path("v1", "pods/one"));
            wait_addresses(case, &[&two]);
            wait_answers(case, "http://web/", &["two"]);
            case.delete(&case.path("v1", "pods/two"));
            wait_addresses(case, &[]);
        }),
        scenario(
            D,
            "[sig-network] Services should serve multiport endpoints from pods [Conformance]",
            |case| {
                let ports = json!([{"name": "one", "port": 80, "targetPort": 8080}, {"name": "two", "port": 81, "targetPort": 8081}]);
                service(case, "web", json!({"selector": {"app": "web"}, "ports": ports}));
                start_client(case);
                for (name, port) in [("one", "8080"), ("two", "8081")] {
                    let mut pod = super::server(case, name, json!({"app": "web"}));
                    let script =
                        pod["spec"]["containers"][0]["command"][2].as_str().expect("a script").to_string();
                    pod["spec"]["containers"][0]["command"][2] = json!(script.replace("8080", port));
                    pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] =
                        json!(port.parse::<i64>().ok());
                    case.create(&case.path("v1", "pods"), &pod);
                    case.wait_running(name);
                }
                // Each port has one of the two pods that listens there.
                for (port, expected) in [(80, "one"), (81, "two")] {
                    case.wait(&format!("{expected} to answer"), || {
                        let said = try_in_client(case, &format!("timeout 2 wget -q -O- http://web:{port}/"))?;
                        (said == expected).then_some(())
                    });
                }
            },
        ),
        scenario(
            D,
            "[sig-network] Services should be able to create a functioning NodePort service [Conformance]",
            |case| {
                start_server(case, "one", json!({"app": "web"}));
                start_server(case, "two", json!({"app": "web"}));
                let own = service(
                    case,
                    "web",
                    json!({"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}),
                );
                start_client(case);
                wait_answers(case, "http://web/", &["one", "two"]);
                let port = own["spec"]["ports"][0]["nodePort"].as_i64().expect("a node port");
                for machine in [node_address(case), "127.0.0.1".into()] {
                    case.wait(&format!("both to answer on {machine}:{port}"), || {
                        let said: Vec<String> =
                            (0..12).filter_map(|_| curl(&format!("http://{machine}:{port}/"))).collect();
                        ["one", "two"].iter().all(|it| said.iter().any(|said| said == it)).then_some(())
                    });
                }
                wait_answers(case, &format!("http://{}:{port}/", node_address(case)), &["one", "two"]);
            },
        ),
    ];
    all.extend(types());
    all.extend(affinity());
    all
}

fn types() -> Vec<Scenario> {
    let ports = || json!([{"port": 80, "targetPort": 8080}]);
    vec![
        scenario(
            D,
            "[sig-network] Services should be able to change the type from ClusterIP to ExternalName [Conformance]",
            move |case| {
                start_client(case);
                let path = create_web(case, json!({"ports": ports()}));
                change_to_name(case, &path);
            },
        ),
        scenario(
            D,
            "[sig-network] Services should be able to change the type from NodePort to ExternalName [Conformance]",
            move |case| {
                start_client(case);
                let path = create_web(case, json!({"type": "NodePort", "ports": ports()}));
                change_to_name(case, &path);
            },
        ),
        scenario(
            D,
            "[sig-network] Services should be able to change the type from ExternalName to ClusterIP [Conformance]",
            move |case| {
                start_client(case);
                start_server(case, "one", json!({"app": "web"}));
                let path = create_web(case, json!({"type": "ExternalName", "externalName": "example.com"}));
                let selector = json!({"app": "web"});
                case.merge(&path, &json!({"spec": {"type": "ClusterIP", "externalName": null, "ports": ports(), "selector": selector}}));
                wait_answers(case, "http://web/", &["one"]);
            },
        ),
        scenario(
            D,
            "[sig-network] Services should be able to change the type from ExternalName to NodePort [Conformance]",
            move |case| {
                start_client(case);
                start_server(case, "one", json!({"app": "web"}));
                let path = create_web(case, json!({"type": "ExternalName", "externalName": "example.com"}));
                let selector = json!({"app": "web"});
                let changed = case.merge(&path, &json!({"spec": {"type": "NodePort", "externalName": null, "ports": ports(), "selector": selector}}));
                wait_answers(case, "http://web/", &["one"]);
                let port = changed["spec"]["ports"][0]["nodePort"].as_i64().expect("a node port");
                wait_answers(case, &format!("http://{}:{port}/", node_address(case)), &["one"]);
            },
        ),
    ]
}

fn affinity() -> Vec<Scenario> {
    vec![
        scenario(
            D,
            "[sig-network] Services should have session affinity work for service with type clusterIP [LinuxOnly] [Conformance]",
            |case| {
                let path = sticky_web(case, "ClusterIP", "ClientIP");
                check_sticky(case, "http://web/");
                assert_eq!(case.get(&path)["spec"]["sessionAffinity"], "ClientIP");
            },
        ),
        scenario(
            D,
            "[sig-network] Services should have session affinity work for NodePort service [LinuxOnly] [Conformance]",
            |case| {
                let path = sticky_web(case, "NodePort", "ClientIP");
                let port = case.get(&path)["spec"]["ports"][0]["nodePort"].as_i64().expect("a node port");
                check_sticky(case, &format!("http://{}:{port}/", node_address(case)));
            },
        ),
        scenario(
            D,
            "[sig-network] Services should be able to switch session affinity for service with type clusterIP [LinuxOnly] [Conformance]",
            |case| {
                let path = sticky_web(case, "ClusterIP", "None");
                wait_answers(case, "http://web/", &["one", "two", "three"]);
                case.merge(&path, &json!({"spec": {"sessionAffinity": "ClientIP"}}));
                check_sticky(case, "http://web/");
                case.merge(&path, &json!({"spec": {"sessionAffinity": "None"}}));
                wait_answers(case, "http://web/", &["one", "two", "three"]);
            },
        ),
        scenario(
            D,
            "[sig-network] Services should be able to switch session affinity for NodePort service [LinuxOnly] [Conformance]",
            |case| {
                let path = sticky_web(case, "NodePort", "None");
                let port = case.get(&path)["spec"]["ports"][0]["nodePort"].as_i64().expect("a node port");
                let url = format!("http://{}:{port}/", node_address(case));
                wait_answers(case, &url, &["one", "two", "three"]);
                case.merge(&path, &json!({"spec": {"sessionAffinity": "ClientIP"}}));
                check_sticky(case, &url);
            },
        ),
    ]
}

fn create_web(case: &Case, spec: Value) -> String {
    service(case, "web", spec);
    case.path("v1", "services/web")
}

fn change_to_name(case: &Case, path: &str) {
    let target = "kubernetes.default.svc.cluster.local";
    let changed = case.merge(
        path,
        &json!({"spec": {"type": "ExternalName", "externalName": target, "clusterIP": null,
        "clusterIPs": null, "ports": null}}),
    );
    assert_eq!(changed["spec"]["clusterIP"], Value::Null, "its address is given back");
    case.wait("the alias", || {
        let said = try_in_client(
            case,
            &format!("nslookup -type=cname web.{}.svc.cluster.local. 2>&1", case.namespace),
        )?;
        said.contains(target).then_some(())
    });
}

fn wait_addresses(case: &Case, pods: &[&Value]) {
    let mut expected: Vec<String> = pods.iter().map(|it| text(it, "/status/podIP").to_string()).collect();
    expected.sort();
    case.wait(&format!("the endpoints {expected:?}"), || (addresses(case, "web") == expected).then_some(()));
}

/// Of a dozen requests all these and no others answer.
fn wait_answers(case: &Case, url: &str, expected: &[&str]) {
    case.wait(&format!("{expected:?} to answer at {url}"), || {
        let said = try_in_client(
            case,
            &format!(
                "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do timeout 2 wget -q -O- {url} || exit 1; done"
            ),
        )?;
        let all = expected.iter().all(|it| said.lines().any(|line| line == *it));
        (all && said.lines().all(|line| expected.contains(&line))).then_some(())
    });
}

fn check_sticky(case: &Case, url: &str) {
    case.wait("always the same to answer", || {
        let said = try_in_client(
            case,
            &format!(
                "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do timeout 2 wget -q -O- {url} || exit 1; done"
            ),
        )?;
        let first = said.lines().next()?;
        (said.lines().count() == 15 && said.lines().all(|it| it == first)).then_some(())
    });
}

fn sticky_web(case: &Case, kind: &str, affinity: &str) -> String {
    start_client(case);
    for name in ["one", "two", "three"] {
        start_server(case, name, json!({"app": "web"}));
    }
    create_web(
        case,
        json!({"type": kind, "sessionAffinity": affinity, "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080}]}),
    )
}

fn node_address(case: &Case) -> String {
    let node = case.list("/api/v1/nodes").remove(0);
    let address =
        super::list(&node, "/status/addresses").iter().find(|it| it["type"] == "InternalIP").cloned();
    text(&address.expect("the node's address"), "/address").to_string()
}
