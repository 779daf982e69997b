//! Variables, commands and arguments.

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

use super::{downward, main_of, node};

/// Runs a container with these fields laid over it and returns what it printed.
fn run(case: &Case, script: &str, fields: Value) -> String {
    let mut pod = case.pod("asker", script);
    for (key, value) in fields.as_object().unwrap() {
        main_of(&mut pod)[key] = value.clone();
    }
    case.output_of(&pod)
}

fn make(case: &Case, secret: bool) -> &'static str {
    let (kind, field) = if secret { ("secrets", "stringData") } else { ("configmaps", "data") };
    case.create(
        &case.path("v1", kind),
        &json!({"metadata": {"name": "it"}, field: {"data-1": "value-1", "data_2": "value-2"}}),
    );
    if secret { "secret" } else { "configMap" }
}

fn one_key(secret: bool) -> impl Fn(&Case) {
    move |case| {
        let kind = make(case, secret);
        let env = json!([{"name": "DATA", "valueFrom": {format!("{kind}KeyRef"): {"name": "it", "key": "data-1"}}}]);
        assert_eq!(run(case, "echo $DATA", json!({"env": env})), "value-1\n");
    }
}

fn all_keys(secret: bool) -> impl Fn(&Case) {
    move |case| {
        let kind = make(case, secret);
        let from = json!([{format!("{kind}Ref"): {"name": "it"}}, {"prefix": "p-", format!("{kind}Ref"): {"name": "it"}}]);
        // Without a shell, which would lose names that it could not use.
        let shown = run(case, "", json!({"command": ["env"], "envFrom": from}));
        for line in ["data-1=value-1", "data_2=value-2", "p-data-1=value-1", "p-data_2=value-2"] {
            assert!(shown.lines().any(|it| it == line), "{line} in {shown}");
        }
    }
}

/// Prefixes of every kind of character that a variable may have.
fn prefixes(secret: bool) -> impl Fn(&Case) {
    move |case| {
        let kind = make(case, secret);
        let prefixes = ["", "p_", "1-", ".$"];
        let from: Vec<Value> =
            prefixes.iter().map(|it| json!({"prefix": it, format!("{kind}Ref"): {"name": "it"}})).collect();
        let shown = run(case, "", json!({"command": ["env"], "envFrom": from}));
        for prefix in prefixes {
            assert!(shown.lines().any(|it| it == format!("{prefix}data-1=value-1")), "{shown}");
        }
    }
}

fn empty_key(secret: bool) -> impl Fn(&Case) {
    move |case| {
        let kind = if secret { "secrets" } else { "configmaps" };
        let object = json!({"metadata": {"name": "it"}, "data": {"": "dmFsdWU="}});
        case.expect("POST", &case.path("v1", kind), &object, 422);
    }
}

fn field(fields: &'static [(&'static str, &'static str)]) -> impl Fn(&Case) {
    move |case| {
        let env: Vec<Value> = fields
            .iter()
            .map(|(name, path)| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}))
            .collect();
        let script: Vec<String> = fields.iter().map(|(name, _)| format!("echo {name}=${name}")).collect();
        let shown = run(case, &script.join("; "), json!({"env": env}));
        let pod = case.get(&case.path("v1", "pods/asker"));
        for (name, path) in fields {
            let path = path.trim_end_matches("IPs").to_owned()
                + match path.ends_with("IPs") {
                    true => "IP",
                    false => "",
                };
            let expect = pod.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str);
            // A pod that has ended has no address any more.
            match expect {
                Some(expect) => assert!(shown.contains(&format!("{name}={expect}\n")), "{shown}"),
                None => assert!(shown.contains(&format!("{name}=10.")), "{shown}"),
            }
        }
    }
}

fn resources(case: &Case) {
    let from = |resource: &str| {
        json!({"name": resource.replace('.', "_"),
        "valueFrom": {"resourceFieldRef": {"resource": resource}}})
    };
    let fields = json!({
        "env": [from("limits.cpu"), from("limits.memory"), from("requests.cpu"), from("requests.memory")],
        "resources": {"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}}});
    let shown = run(case, "env | grep -E '^(limits|requests)' | sort", fields);
    assert_eq!(shown, "limits_cpu=2\nlimits_memory=67108864\nrequests_cpu=1\nrequests_memory=33554432\n");
}

fn default_resources(case: &Case) {
    let from = |resource: &str| {
        json!({"name": resource.replace('.', "_"),
        "valueFrom": {"resourceFieldRef": {"resource": resource}}})
    };
    let fields = json!({"env": [from("limits.cpu"), from("limits.memory")]});
    let shown = run(case, "echo $limits_cpu $limits_memory", fields);
    let expect = ["limits.cpu", "limits.memory"].map(|it| downward::allocatable(case, it));
    assert_eq!(shown, format!("{} {}\n", expect[0], expect[1]));
}

/// `command` and `args` of the image and of the pod.
fn command(command: Option<Value>, args: Option<Value>, expect: &'static str) -> impl Fn(&Case) {
    move |case| {
        let mut pod = case.pod("runner", "");
        let main = main_of(&mut pod).as_object_mut().unwrap();
        main.remove("command");
        for (key, value) in [("command", &command), ("args", &args)] {
            if let Some(value) = value {
                main.insert(key.into(), value.clone());
            }
        }
        assert_eq!(case.output_of(&pod), expect);
    }
}

/// The image's own command is a shell, which ends at the end of its input and says nothing.
fn blank(case: &Case) {
    let mut pod = case.pod("runner", "");
    main_of(&mut pod).as_object_mut().unwrap().remove("command");
    main_of(&mut pod)["stdin"] = json!(true);
    main_of(&mut pod)["stdinOnce"] = json!(true);
    case.create(&case.path("v1", "pods"), &pod);
    case.wait_running("runner");
    let said = case.kubectl_with_input(&["attach", "-i", "runner"], "echo I am $0; exit\n");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("I am /bin/sh"), "{said}");
}

fn compose(case: &Case) {
    let env = json!([{"name": "FOO", "value": "foo"}, {"name": "BAR", "value": "bar"},
        {"name": "FOOBAR", "value": "$(FOO);;$(BAR) $$(FOO) $(NONE)"}]);
    assert_eq!(run(case, "echo \"$FOOBAR\"", json!({"env": env})), "foo;;bar $(FOO) $(NONE)\n");
}

fn substitute(field: &'static str) -> impl Fn(&Case) {
    move |case| {
        let env = json!([{"name": "VALUE", "value": "substituted"}]);
        let fields = match field {
            "args" => json!({"env": env, "command": ["echo"], "args": ["$(VALUE)", "$$(VALUE)"]}),
            _ => json!({"env": env, "command": ["echo", "$(VALUE)", "$$(VALUE)"]}),
        };
        assert_eq!(run(case, "", fields), "substituted $(VALUE)\n");
    }
}

/// A pod that begins after a service finds it in its environment.
fn services(case: &Case) {
    let service =
        json!({"metadata": {"name": "foo-service"}, "spec": {"ports": [{"port": 8765, "targetPort": 8080}]}});
    let made = case.create(&case.path("v1", "services"), &service);
    let address = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let mut names = vec![("FOO_SERVICE_SERVICE_HOST", address.clone())];
    names.push(("FOO_SERVICE_SERVICE_PORT", "8765".into()));
    names.push(("FOO_SERVICE_PORT", format!("tcp://{address}:8765")));
    names.push(("FOO_SERVICE_PORT_8765_TCP_PORT", "8765".into()));
    names.push(("FOO_SERVICE_PORT_8765_TCP_PROTO", "tcp".into()));
    names.push(("FOO_SERVICE_PORT_8765_TCP", format!("tcp://{address}:8765")));
    names.push(("FOO_SERVICE_PORT_8765_TCP_ADDR", address));
    let script = "env | grep FOO_SERVICE; echo KUBERNETES=$KUBERNETES_SERVICE_PORT";
    let shown = run(case, script, json!({}));
    for (name, value) in names {
        assert!(shown.lines().any(|it| it == format!("{name}={value}")), "{name}={value} in {shown}");
    }
    assert!(!shown.ends_with("KUBERNETES=\n"), "{shown}");
}

pub fn all() -> Vec<Scenario> {
    let echo = |text: &str| json!(["echo", text]);
    vec![
        node(
            "[sig-node] ConfigMap should be consumable as environment variable names with various prefixes [Conformance]",
            prefixes(false),
        ),
        node(
            "[sig-node] ConfigMap should be consumable via environment variable [NodeConformance] [Conformance]",
            one_key(false),
        ),
        node(
            "[sig-node] ConfigMap should be consumable via the environment [NodeConformance] [Conformance]",
            all_keys(false),
        ),
        node(
            "[sig-node] ConfigMap should fail to create ConfigMap with empty key [Conformance]",
            empty_key(false),
        ),
        node(
            "[sig-node] Containers should be able to override the image's default arguments (container cmd) [NodeConformance] [Conformance]",
            command(None, Some(echo("from args")), "from args\n"),
        ),
        node(
            "[sig-node] Containers should be able to override the image's default command (container entrypoint) [NodeConformance] [Conformance]",
            command(Some(echo("from command")), None, "from command\n"),
        ),
        node(
            "[sig-node] Containers should be able to override the image's default command and arguments [NodeConformance] [Conformance]",
            command(Some(json!(["echo", "command"])), Some(json!(["and args"])), "command and args\n"),
        ),
        node(
            "[sig-node] Containers should use the image defaults if command and args are blank [NodeConformance] [Conformance]",
            blank,
        ),
        node(
            "[sig-node] Downward API should provide container's limits.cpu/memory and requests.cpu/memory as env vars [NodeConformance] [Conformance]",
            resources,
        ),
        node(
            "[sig-node] Downward API should provide default limits.cpu/memory from node allocatable [NodeConformance] [Conformance]",
            default_resources,
        ),
        node(
            "[sig-node] Downward API should provide host IP as an env var [NodeConformance] [Conformance]",
            field(&[("HOST_IP", "status.hostIP")]),
        ),
        node(
            "[sig-node] Downward API should provide hostIPs as an env var [NodeConformance] [Conformance]",
            field(&[("HOST_IP", "status.hostIP"), ("HOST_IPS", "status.hostIPs")]),
        ),
        node(
            "[sig-node] Downward API should provide pod UID as env vars [NodeConformance] [Conformance]",
            field(&[("POD_UID", "metadata.uid")]),
        ),
        node(
            "[sig-node] Downward API should provide pod name, namespace and IP address as env vars [NodeConformance] [Conformance]",
            field(&[
                ("POD_NAME", "metadata.name"),
                ("POD_NAMESPACE", "metadata.namespace"),
                ("POD_IP", "status.podIP"),
            ]),
        ),
        node(
            "[sig-node] Pods should contain environment variables for services [NodeConformance] [Conformance]",
            services,
        ),
        node(
            "[sig-node] Secrets should be consumable as environment variable names variable names with various prefixes [Conformance]",
            prefixes(true),
        ),
        node(
            "[sig-node] Secrets should be consumable from pods in env vars [NodeConformance] [Conformance]",
            one_key(true),
        ),
        node(
            "[sig-node] Secrets should be consumable via the environment [NodeConformance] [Conformance]",
            all_keys(true),
        ),
        node(
            "[sig-node] Secrets should fail to create secret due to empty secret key [Conformance]",
            empty_key(true),
        ),
        node(
            "[sig-node] Variable Expansion should allow composing env vars into new env vars [NodeConformance] [Conformance]",
            compose,
        ),
        node(
            "[sig-node] Variable Expansion should allow substituting values in a container's args [NodeConformance] [Conformance]",
            substitute("args"),
        ),
        node(
            "[sig-node] Variable Expansion should allow substituting values in a container's command [NodeConformance] [Conformance]",
            substitute("command"),
        ),
    ]
}
