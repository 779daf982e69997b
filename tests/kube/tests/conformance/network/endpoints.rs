use naru_kube_tests::{Case, Group::D, Scenario, scenario};
use serde_json::{Value, json};

use super::{addresses, list, name, service, start_client, start_server, text, try_in_client};

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            D,
            "[sig-network] API Server should have Endpoints and EndpointSlices pointing to API Server [Conformance]",
            |case| {
                let of = "/api/v1/namespaces/default";
                let service = case.get(&format!("{of}/services/kubernetes"));
                assert_eq!(text(&service, "/spec/ports/0/name"), "https");
                let endpoints = case.get(&format!("{of}/endpoints/kubernetes"));
                assert!(!list(&endpoints, "/subsets/0/addresses").is_empty());
                let slices = case.list(
                    "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                    ?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes",
                );
                assert_eq!(
                    text(&slices[0], "/endpoints/0/addresses/0"),
                    text(&endpoints, "/subsets/0/addresses/0/ip")
                );
            },
        ),
        scenario(D, "[sig-network] API Server should provide secure master service [Conformance]", |case| {
            let service = case.get("/api/v1/namespaces/default/services/kubernetes");
            let port = &service["spec"]["ports"][0];
            assert_eq!((text(port, "/name"), port["port"].as_i64()), ("https", Some(443)));
            start_client(case);
            let address = text(&service, "/spec/clusterIP").to_string();
            case.wait("the API to be reached by its address", || {
                try_in_client(case, &format!("nc -w 2 {address} 443 < /dev/null")).map(drop)
            });
        }),
        scenario(
            D,
            "[sig-network] EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service [Conformance]",
            |case| {
                let one = start_server(case, "one", json!({"app": "web"}));
                let ports = json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}]);
                service(case, "web", json!({"selector": {"app": "web"}, "ports": ports}));
                service(
                    case,
                    "flat",
                    json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": ports}),
                );
                for web in ["web", "flat"] {
                    wait_addresses(case, web, &[&one]);
                    wait_endpoints(case, web, &[text(&one, "/status/podIP")]);
                }
                let two = start_server(case, "two", json!({"app": "web"}));
                wait_addresses(case, "web", &[&one, &two]);
                case.delete(&case.path("v1", "pods/one"));
                wait_addresses(case, "web", &[&two]);
                wait_endpoints(case, "web", &[text(&two, "/status/podIP")]);
            },
        ),
        scenario(
            D,
            "[sig-network] EndpointSlice should create and delete EndpointSlices for a Service with a selector that matches no pods [Conformance]",
            |case| {
                service(case, "none", json!({"selector": {"app": "none"}, "ports": [{"port": 80}]}));
                let slices = case.path("discovery.k8s.io/v1", "endpointslices");
                let slices = format!("{slices}?labelSelector=kubernetes.io%2Fservice-name%3Dnone");
                case.wait("a slice", || {
                    let found = case.list(&slices);
                    (found.len() == 1 && list(&found[0], "/endpoints").is_empty()).then_some(())
                });
                case.delete(&case.path("v1", "services/none"));
                case.wait("the slice to go", || case.list(&slices).is_empty().then_some(()));
            },
        ),
        scenario(
            D,
            "[sig-network] EndpointSlice should support a Service with multiple endpoint IPs specified in multiple EndpointSlices [Conformance]",
            |case| check_slices_by_hand(case, [8080, 8080]),
        ),
        scenario(
            D,
            "[sig-network] EndpointSlice should support a Service with multiple ports specified in multiple EndpointSlices [Conformance]",
            |case| check_slices_by_hand(case, [8080, 8081]),
        ),
        scenario(
            D,
            "[sig-network] EndpointSliceMirroring should mirror a custom Endpoints resource through create update and delete [Conformance]",
            |case| {
                service(case, "custom", json!({"ports": [{"name": "http", "port": 80}]}));
                let endpoints = |address: &str| {
                    json!({"metadata": {"name": "custom"}, "subsets": [
                    {"addresses": [{"ip": address}], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}]})
                };
                case.create(&case.path("v1", "endpoints"), &endpoints("10.1.2.3"));
                case.wait("the mirror", || (addresses(case, "custom") == ["10.1.2.3"]).then_some(()));
                let path = case.path("v1", "endpoints/custom");
                case.wait("the update", || {
                    let mut live = case.get(&path);
                    live["subsets"] = endpoints("10.2.3.4")["subsets"].clone();
                    (case.ask("PUT", &path, &live).code == 200).then_some(())
                });
                case.wait("the mirror to follow", || {
                    (addresses(case, "custom") == ["10.2.3.4"]).then_some(())
                });
                case.delete(&path);
                let slices = case.path("discovery.k8s.io/v1", "endpointslices");
                case.wait("the mirror to go", || case.list(&slices).is_empty().then_some(()));
            },
        ),
        scenario(
            D,
            "[sig-network] EndpointsController should create Endpoints for Pods matching a Service [Conformance]",
            |case| {
                let one = start_server(case, "one", json!({"app": "web"}));
                service(
                    case,
                    "web",
                    json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}),
                );
                wait_endpoints(case, "web", &[text(&one, "/status/podIP")]);
                let endpoints = case.get(&case.path("v1", "endpoints/web"));
                assert_eq!(endpoints["subsets"][0]["ports"][0]["port"], 8080);
                let reference = &endpoints["subsets"][0]["addresses"][0]["targetRef"];
                assert_eq!(
                    (text(reference, "/name"), text(reference, "/uid")),
                    ("one", text(&one, "/metadata/uid"))
                );
                case.delete(&case.path("v1", "pods/one"));
                wait_endpoints(case, "web", &[]);
            },
        ),
        scenario(
            D,
            "[sig-network] EndpointsController should create and delete Endpoints for a Service with a selector that matches no pods [Conformance]",
            |case| {
                service(case, "none", json!({"selector": {"app": "none"}, "ports": [{"port": 80}]}));
                let path = case.path("v1", "endpoints/none");
                case.wait_for("the endpoints", &path, |it| list(it, "/subsets").is_empty());
                case.delete(&case.path("v1", "services/none"));
                case.wait_gone(&path);
            },
        ),
    ]
}

fn wait_addresses(case: &Case, service: &str, pods: &[&Value]) {
    let mut expected: Vec<String> = pods.iter().map(|it| text(it, "/status/podIP").to_string()).collect();
    expected.sort();
    case.wait(&format!("the slices of {service} to have {expected:?}"), || {
        (addresses(case, service) == expected).then_some(())
    });
}

fn wait_endpoints(case: &Case, service: &str, expected: &[&str]) {
    case.wait_for(
        &format!("{service} to have {expected:?}"),
        &case.path("v1", &format!("endpoints/{service}")),
        |it| {
            let all: Vec<&str> = list(it, "/subsets")
                .iter()
                .flat_map(|it| list(it, "/addresses"))
                .map(|it| text(it, "/ip"))
                .collect();
            all == expected
        },
    );
}

/// Two slices that somebody wrote for a service without a selector; both places are reached by its address.
fn check_slices_by_hand(case: &Case, ports: [i64; 2]) {
    let service_ports: Vec<Value> = match ports[0] == ports[1] {
        true => vec![json!({"name": "http0", "port": 80, "protocol": "TCP"})],
        false => vec![
            json!({"name": "http0", "port": 80, "protocol": "TCP"}),
            json!({"name": "http1", "port": 81, "protocol": "TCP"}),
        ],
    };
    let own = service(case, "custom", json!({"ports": service_ports}));
    for (at, port) in ports.into_iter().enumerate() {
        let mut pod = super::server(case, &format!("pod{at}"), json!({}));
        let script = pod["spec"]["containers"][0]["command"][2].as_str().expect("a script");
        pod["spec"]["containers"][0]["command"][2] = json!(script.replace("8080", &port.to_string()));
        pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] = json!(port);
        case.create(&case.path("v1", "pods"), &pod);
        let address = text(&case.wait_running(&format!("pod{at}")), "/status/podIP").to_string();
        let port_name = if service_ports.len() == 1 { "http0".to_string() } else { format!("http{at}") };
        let slice = json!({"metadata": {"name": format!("slice{at}"), "labels": {"kubernetes.io/service-name": "custom"}},
            "addressType": "IPv4", "endpoints": [{"addresses": [address]}],
            "ports": [{"name": port_name, "port": port, "protocol": "TCP"}]});
        case.create(&case.path("discovery.k8s.io/v1", "endpointslices"), &slice);
    }
    start_client(case);
    let address = text(&own, "/spec/clusterIP").to_string();
    for at in 0..2 {
        let port = if service_ports.len() == 1 { 80 } else { 80 + at };
        let expected = format!("pod{at}");
        case.wait(&format!("{expected} to answer"), || {
            let said = try_in_client(case, &format!("timeout 2 wget -q -O- http://{address}:{port}/"))?;
            (said == expected).then_some(())
        });
    }
    assert_eq!(name(&own), "custom");
}
