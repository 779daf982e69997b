use naru_kube_tests::{Group::D, Scenario, scenario};
use serde_json::json;

use super::{curl, start_client, start_server, text, try_in_client};

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            D,
            "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: http [NodeConformance] [Conformance]",
            |case| {
                let server = start_server(case, "server", json!({}));
                start_client(case);
                let url = format!("http://{}:8080/", text(&server, "/status/podIP"));
                let said = try_in_client(case, &format!("timeout 5 wget -q -O- {url}"));
                assert_eq!(said.as_deref(), Some("server"));
            },
        ),
        scenario(
            D,
            "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: http [LinuxOnly] [NodeConformance] [Conformance]",
            |case| {
                let server = start_server(case, "server", json!({}));
                let said = curl(&format!("http://{}:8080/", text(&server, "/status/podIP")));
                assert_eq!(said.as_deref(), Some("server"));
            },
        ),
        scenario(
            D,
            "[sig-network] HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol [LinuxOnly] [Conformance]",
            |case| {
                // One port of the machine, three times: by its loopback address, by another one, and by UDP.
                let pod = |name: &str, address: &str, protocol: &str| {
                    let mut pod = super::server(case, name, json!({}));
                    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": 54323, "hostIP": address, "protocol": protocol}]);
                    case.create(&case.path("v1", "pods"), &pod);
                };
                pod("one", "127.0.0.1", "TCP");
                let node =
                    case.get(&format!("/api/v1/nodes/{}", text(&case.wait_running("one"), "/spec/nodeName")));
                let address = super::list(&node, "/status/addresses")
                    .iter()
                    .find(|it| it["type"] == "InternalIP")
                    .map(|it| text(it, "/address").to_string())
                    .expect("the node's address");
                pod("two", &address, "TCP");
                pod("three", &address, "UDP");
                case.wait_running("two");
                case.wait_running("three");
                for (address, expected) in [("127.0.0.1", "one"), (address.as_str(), "two")] {
                    case.wait(&format!("{expected} to answer"), || {
                        (curl(&format!("http://{address}:54323/")).as_deref() == Some(expected)).then_some(())
                    });
                }
            },
        ),
    ]
}
