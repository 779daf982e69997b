use naru_kube_tests::{Case, Group::D, Scenario, scenario};
use serde_json::json;

use super::{service, start_client, start_server, text, try_in_client};

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            D,
            "[sig-network] DNS should provide /etc/hosts entries for the cluster [Conformance]",
            |case| {
                let mut pod = case.pod("hosts", "cat /etc/hosts; hostname; hostname -i");
                pod["spec"]["hostname"] = json!("querier-1");
                pod["spec"]["subdomain"] = json!("sub");
                let said = case.output_of(&pod);
                let full = format!("querier-1.sub.{}.svc.cluster.local", case.namespace);
                let line = said.lines().find(|it| it.contains(&full)).expect("a line of the pod's own");
                assert!(line.split_whitespace().any(|it| it == "querier-1"), "{said}");
                assert_eq!(said.lines().filter(|it| *it == "querier-1").count(), 1, "{said}");
            },
        ),
        scenario(D, "[sig-network] DNS should provide DNS for ExternalName services [Conformance]", |case| {
            start_client(case);
            let alias = "kubernetes.default.svc.cluster.local";
            service(case, "far", json!({"type": "ExternalName", "externalName": alias}));
            wait_lookup(case, "far", "cname", alias);
            let path = case.path("v1", "services/far");
            case.merge(&path, &json!({"spec": {"externalName": "kube-dns.kube-system.svc.cluster.local"}}));
            wait_lookup(case, "far", "cname", "kube-dns.kube-system.svc.cluster.local");
            let port = json!([{"port": 80, "targetPort": 80}]);
            case.merge(&path, &json!({"spec": {"type": "ClusterIP", "externalName": null, "ports": port}}));
            let address = text(&case.get(&path), "/spec/clusterIP").to_string();
            wait_lookup(case, "far", "a", &address);
        }),
        scenario(D, "[sig-network] DNS should provide DNS for pods for Hostname [Conformance]", |case| {
            headless_pod(case, "querier");
            start_client(case);
            let pod = case.wait_running("server");
            wait_lookup(case, "querier.sub", "a", text(&pod, "/status/podIP"));
            assert_eq!(case.exec("server", &["hostname"]).trim(), "querier");
        }),
        scenario(D, "[sig-network] DNS should provide DNS for pods for Subdomain [Conformance]", |case| {
            headless_pod(case, "querier");
            start_client(case);
            let pod = case.wait_running("server");
            wait_lookup(case, "sub", "a", text(&pod, "/status/podIP"));
            let full = format!("querier.sub.{}.svc.cluster.local", case.namespace);
            assert!(case.exec("server", &["cat", "/etc/hosts"]).contains(&full));
            wait_lookup(case, "querier.sub", "a", text(&pod, "/status/podIP"));
        }),
        scenario(D, "[sig-network] DNS should provide DNS for services [Conformance]", |case| {
            let pod = start_server(case, "server", json!({"app": "web"}));
            let ports = json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]);
            service(case, "flat", json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": ports}));
            let own = service(case, "web", json!({"selector": {"app": "web"}, "ports": ports}));
            start_client(case);
            let (address, pod_address) = (text(&own, "/spec/clusterIP"), text(&pod, "/status/podIP"));
            wait_lookup(case, "web", "a", address);
            wait_lookup(case, "flat", "a", pod_address);
            wait_lookup(case, "_http._tcp.web", "srv", "80 web.");
            wait_lookup(case, "_http._tcp.flat", "srv", "8080 ");
            let place = &case.namespace;
            wait_reverse(case, address, &format!("web.{place}.svc.cluster.local"));
            let dashed = pod_address.replace('.', "-");
            wait_reverse(case, pod_address, &format!("{dashed}.flat.{place}.svc.cluster.local"));
        }),
        scenario(D, "[sig-network] DNS should provide DNS for the cluster [Conformance]", |case| {
            start_client(case);
            let address =
                case.get("/api/v1/namespaces/default/services/kubernetes")["spec"]["clusterIP"].clone();
            let address = address.as_str().expect("an address");
            for name in
                ["kubernetes.default.svc.cluster.local", "kubernetes.default.svc", "kubernetes.default"]
            {
                // By the resolver of the C library, which knows the search list.
                let said = try_in_client(case, &format!("ping -c 1 -W 1 {name} 2>&1 | head -n 1; true"));
                assert!(said.as_ref().is_some_and(|it| it.contains(address)), "{name}: {said:?}");
            }
            wait_lookup_full(case, "kubernetes.default.svc.cluster.local", "a", address);
            let pod = case.get(&case.path("v1", "pods/client"));
            let own = format!(
                "{}.{}.pod.cluster.local",
                text(&pod, "/status/podIP").replace('.', "-"),
                case.namespace
            );
            wait_lookup_full(case, &own, "a", text(&pod, "/status/podIP"));
        }),
        scenario(
            D,
            "[sig-network] DNS should resolve DNS of partial qualified names for services [LinuxOnly] [Conformance]",
            |case| {
                let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
                let own = service(case, "web", json!({"selector": {"app": "none"}, "ports": ports}));
                start_client(case);
                let place = &case.namespace;
                for name in ["web".to_string(), format!("web.{place}"), format!("web.{place}.svc")] {
                    case.wait(&format!("the name {name}"), || {
                        // By the resolver of the C library, which knows the search list.
                        let said =
                            try_in_client(case, &format!("ping -c 1 -W 1 {name} 2>&1 | head -n 1; true"))?;
                        said.contains(text(&own, "/spec/clusterIP")).then_some(())
                    });
                }
            },
        ),
        scenario(
            D,
            "[sig-network] DNS should support configurable pod DNS nameservers [Conformance]",
            |case| {
                let mut pod = case.pod("configured", "cat /etc/resolv.conf");
                pod["spec"]["dnsPolicy"] = json!("None");
                pod["spec"]["dnsConfig"] =
                    json!({"nameservers": ["1.1.1.1"], "searches": ["resolv.conf.local"]});
                let said = case.output_of(&pod);
                assert!(
                    said.contains("nameserver 1.1.1.1") && said.contains("search resolv.conf.local"),
                    "{said}"
                );
                assert!(!said.contains("10.96.0.10"), "{said}");
            },
        ),
    ]
}

/// A headless service `sub` and a pod with a host name below it.
fn headless_pod(case: &Case, hostname: &str) {
    let ports = json!([{"name": "http", "port": 1234, "protocol": "TCP"}]);
    service(case, "sub", json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": ports}));
    let mut pod = super::server(case, "server", json!({"app": "web"}));
    pod["spec"]["hostname"] = json!(hostname);
    pod["spec"]["subdomain"] = json!("sub");
    case.create(&case.path("v1", "pods"), &pod);
}

/// A name below the namespace's services leads where it should, asked as it is.
fn wait_lookup(case: &Case, name: &str, kind: &str, expected: &str) {
    wait_lookup_full(case, &format!("{name}.{}.svc.cluster.local", case.namespace), kind, expected);
}

fn wait_lookup_full(case: &Case, name: &str, kind: &str, expected: &str) {
    case.wait(&format!("{name} {kind} to be {expected}"), || {
        let said = try_in_client(case, &format!("nslookup -type={kind} {name}. 2>&1"))?;
        said.contains(expected).then_some(())
    });
}

fn wait_reverse(case: &Case, address: &str, expected: &str) {
    case.wait(&format!("{address} to be {expected}"), || {
        try_in_client(case, &format!("nslookup {address} 2>&1"))?.contains(expected).then_some(())
    });
}
