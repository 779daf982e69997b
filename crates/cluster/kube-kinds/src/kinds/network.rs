//! Ingress, NetworkPolicy, Endpoints and the addresses of services.

use serde_json::{Value, json};

use crate::columns::{AGE, Columns, NAME, created, or_none, selector, words};
use crate::defaults::{items, set, set_initial_status, spec_of};
use crate::table::Scope::{Cluster, Namespaced};
use crate::table::row;
use crate::validation::Causes;
use crate::{Cause, Kind, NameRule, Tier, int, list, text};

const GROUP: &str = "networking.k8s.io";

pub(super) fn rows() -> Vec<Kind> {
    vec![
        Kind {
            default: endpoints_defaults,
            columns: ENDPOINTS,
            ..row("", "v1", "Endpoints", "endpoints", Namespaced, &["ep"])
        },
        Kind {
            default: |object| set_initial_status(object, json!({"loadBalancer": {}})),
            validate: ingress_rules,
            columns: INGRESS,
            has_status: true,
            has_generation: true,
            ..row(GROUP, "v1", "Ingress", "ingresses", Namespaced, &["ing"])
        },
        Kind {
            default: |object| {
                if let Some(parameters) =
                    spec_of(object).and_then(|it| it.get_mut("parameters")).and_then(Value::as_object_mut)
                {
                    set(parameters, "scope", "Cluster");
                }
            },
            validate: ingress_class_rules,
            columns: INGRESS_CLASS,
            has_generation: true,
            ..row(GROUP, "v1", "IngressClass", "ingressclasses", Cluster, &[])
        },
        Kind {
            default: network_policy_defaults,
            columns: NETWORK_POLICY,
            has_generation: true,
            ..row(GROUP, "v1", "NetworkPolicy", "networkpolicies", Namespaced, &["netpol"])
        },
        Kind {
            validate: ip_address_rules,
            names: NameRule::PathSegment,
            field: |object, field| {
                let name = field.strip_prefix("spec.parentRef.")?;
                ["group", "resource", "namespace", "name"]
                    .contains(&name)
                    .then(|| text(object, &format!("/spec/parentRef/{name}")).to_string())
            },
            columns: IP_ADDRESS,
            has_generation: true,
            tier: Tier::Stored,
            ..row(GROUP, "v1", "IPAddress", "ipaddresses", Cluster, &["ip"])
        },
        Kind {
            validate: service_cidr_rules,
            columns: SERVICE_CIDR,
            has_status: true,
            has_generation: true,
            tier: Tier::Stored,
            ..row(GROUP, "v1", "ServiceCIDR", "servicecidrs", Cluster, &[])
        },
    ]
}

fn endpoints_defaults(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    for subset in items(object, "subsets") {
        for port in items(subset, "ports") {
            set(port, "protocol", "TCP");
        }
    }
}

/// One rule's paths, or the default backend, must say where requests go.
fn ingress_rules(object: &Value, _: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    let rules = list(spec, "/rules");
    if rules.is_empty() && spec["defaultBackend"].is_null() {
        causes.push(Cause::invalid(
            "spec",
            &json!([]),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    if !spec["defaultBackend"].is_null() {
        backend(&spec["defaultBackend"], "spec.defaultBackend", causes);
    }
    for (index, rule) in rules.iter().enumerate() {
        for (number, path) in list(rule, "/http/paths").iter().enumerate() {
            let at = format!("spec.rules[{index}].http.paths[{number}]");
            let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
            match path["pathType"].as_str() {
                None => causes.push(Cause::required(&format!("{at}.pathType"), "pathType must be specified")),
                Some(kind) if !kinds.contains(&kind) => {
                    causes.push(Cause::unsupported(&format!("{at}.pathType"), &path["pathType"], &kinds));
                }
                Some(kind) => {
                    let path = text(path, "/path");
                    if !path.starts_with('/') && (kind != "ImplementationSpecific" || !path.is_empty()) {
                        causes.push(Cause::invalid(
                            &format!("{at}.path"),
                            &json!(path),
                            "must be an absolute path",
                        ));
                    }
                }
            }
            backend(&path["backend"], &format!("{at}.backend"), causes);
        }
    }
}

fn backend(backend: &Value, at: &str, causes: &mut Causes) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    match (service.is_object(), resource.is_object()) {
        (true, true) => {
            causes.push(Cause::invalid(at, &json!(""), "cannot set both resource and service backends"))
        }
        (false, false) => {
            causes.push(Cause::required(&format!("{at}.service"), "resource or service backend is required"));
        }
        (true, false) => {
            if text(service, "/name").is_empty() {
                causes.push(Cause::required(&format!("{at}.service.name"), ""));
            }
            let port = &service["port"];
            if int(port, "/number") == 0 && text(port, "/name").is_empty() {
                causes
                    .push(Cause::required(&format!("{at}.service.port"), "port name or number is required"));
            }
        }
        (false, true) => {}
    }
}

fn ingress_class_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let controller = &object["spec"]["controller"];
    if text(object, "/spec/controller").is_empty() {
        causes.push(Cause::required("spec.controller", ""));
    }
    if let Some(old) = old
        && old["spec"]["controller"] != *controller
    {
        causes.push(Cause::invalid("spec.controller", controller, "field is immutable"));
    }
}

fn network_policy_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    let has_egress = spec.get("egress").and_then(Value::as_array).is_some_and(|it| !it.is_empty());
    set(spec, "podSelector", json!({}));
    set(spec, "policyTypes", if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            for port in items(rule, "ports") {
                set(port, "protocol", "TCP");
            }
        }
    }
}

fn ip_address_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    if crate::name(object).parse::<std::net::IpAddr>().is_err() {
        causes.push(Cause::invalid(
            "metadata.name",
            &object["metadata"]["name"],
            "must be a valid IP address in canonical form",
        ));
    }
    let parent = &object["spec"]["parentRef"];
    if !parent.is_object() {
        causes.push(Cause::required("spec.parentRef", ""));
    } else {
        for field in ["resource", "name"] {
            if text(parent, &format!("/{field}")).is_empty() {
                causes.push(Cause::required(&format!("spec.parentRef.{field}"), ""));
            }
        }
    }
    if let Some(old) = old
        && old["spec"]["parentRef"] != *parent
    {
        causes.push(Cause::invalid("spec.parentRef", parent, "field is immutable"));
    }
}

fn service_cidr_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let ranges = list(object, "/spec/cidrs");
    if ranges.is_empty() {
        causes.push(Cause::required("spec.cidrs", "at least one CIDR required"));
    }
    for (index, range) in ranges.iter().enumerate() {
        let fits = range.as_str().and_then(|it| it.split_once('/')).is_some_and(|(address, bits)| {
            let widest = match address.parse::<std::net::IpAddr>() {
                Ok(std::net::IpAddr::V4(_)) => 32,
                Ok(std::net::IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            bits.parse::<u8>().is_ok_and(|it| it <= widest)
        });
        if !fits {
            causes.push(Cause::invalid(&format!("spec.cidrs[{index}]"), range, "must be a valid CIDR value"));
        }
    }
    if let Some(old) = old
        && old["spec"]["cidrs"] != object["spec"]["cidrs"]
    {
        causes.push(Cause::invalid("spec.cidrs", &object["spec"]["cidrs"], "field is immutable"));
    }
}

const ENDPOINTS: Columns = Columns::BuiltIn(&[NAME, words("Endpoints"), AGE], |it, now| {
    let mut all = Vec::new();
    for subset in list(it, "/subsets") {
        for address in list(subset, "/addresses") {
            let address = text(address, "/ip");
            let ports = list(subset, "/ports");
            if ports.is_empty() {
                all.push(address.to_string());
            }
            all.extend(ports.iter().map(|port| format!("{address}:{}", int(port, "/port"))));
        }
    }
    let shown = match all.len() {
        0..=3 => all.join(","),
        more => format!("{} + {} more...", all[..3].join(","), more - 3),
    };
    vec![json!(crate::name(it)), or_none(&shown), created(it, now)]
});

const INGRESS: Columns = Columns::BuiltIn(
    &[NAME, words("Class"), words("Hosts"), words("Address"), words("Ports"), AGE],
    |it, now| {
        let hosts: Vec<&str> =
            list(it, "/spec/rules").iter().map(|it| text(it, "/host")).filter(|it| !it.is_empty()).collect();
        let addresses: Vec<&str> = list(it, "/status/loadBalancer/ingress")
            .iter()
            .map(|it| if text(it, "/ip").is_empty() { text(it, "/hostname") } else { text(it, "/ip") })
            .collect();
        let class = match text(it, "/spec/ingressClassName") {
            "" => it["metadata"]["annotations"]["kubernetes.io/ingress.class"].as_str().unwrap_or(""),
            class => class,
        };
        let ports = if list(it, "/spec/tls").is_empty() { "80" } else { "80, 443" };
        vec![
            json!(crate::name(it)),
            or_none(class),
            json!(if hosts.is_empty() { "*".to_string() } else { hosts.join(",") }),
            json!(addresses.join(",")),
            json!(ports),
            created(it, now),
        ]
    },
);

const INGRESS_CLASS: Columns =
    Columns::BuiltIn(&[NAME, words("Controller"), words("Parameters"), AGE], |it, now| {
        let parameters = &it["spec"]["parameters"];
        let shown = match parameters.is_object() {
            true => {
                let kind = text(parameters, "/kind");
                let group = text(parameters, "/apiGroup");
                let dot = if group.is_empty() { "" } else { "." };
                format!("{kind}{dot}{group}/{}", text(parameters, "/name"))
            }
            false => String::new(),
        };
        vec![json!(crate::name(it)), json!(text(it, "/spec/controller")), or_none(&shown), created(it, now)]
    });

const NETWORK_POLICY: Columns = Columns::BuiltIn(&[NAME, words("Pod-Selector"), AGE], |it, now| {
    vec![json!(crate::name(it)), selector(&it["spec"]["podSelector"]), created(it, now)]
});

const IP_ADDRESS: Columns = Columns::BuiltIn(&[NAME, words("ParentRef"), AGE], |it, now| {
    let parent = &it["spec"]["parentRef"];
    let parts = ["/resource", "/namespace", "/name"].map(|it| text(parent, it));
    let shown: Vec<&str> = parts.into_iter().filter(|it| !it.is_empty()).collect();
    vec![json!(crate::name(it)), json!(shown.join("/")), created(it, now)]
});

const SERVICE_CIDR: Columns = Columns::BuiltIn(&[NAME, words("CIDRs"), AGE], |it, now| {
    let ranges: Vec<&str> = list(it, "/spec/cidrs").iter().filter_map(Value::as_str).collect();
    vec![json!(crate::name(it)), json!(ranges.join(",")), created(it, now)]
});
