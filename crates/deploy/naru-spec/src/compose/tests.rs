//! Compose files as people write them, and what becomes of them.

use super::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Files by their path; what is no file is a directory if something is below it.
struct Tree(BTreeMap<String, String>);

impl Files for Tree {
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        self.0.get(path).map(|it| it.clone().into_bytes()).ok_or_else(|| "No such file or directory".into())
    }
    fn kind(&self, path: &str) -> PathKind {
        if self.0.contains_key(path) {
            PathKind::File
        } else if self.0.keys().any(|it| it.starts_with(&format!("{path}/"))) {
            PathKind::Directory
        } else {
            PathKind::Missing
        }
    }
    fn home(&self) -> Option<String> {
        Some("/home/me".into())
    }
}

fn tree(files: &[(&str, &str)]) -> Tree {
    Tree(files.iter().map(|(path, text)| (format!("/srv/shop/{path}"), (*text).to_owned())).collect())
}

fn load_files(files: &[(&str, &str)], change: impl FnOnce(&mut Input<'_>)) -> (Option<Project>, Vec<String>) {
    let tree = tree(files);
    let mut input = Input { files: vec!["/srv/shop/compose.yaml".into()], ..Input::new(&tree) };
    input.variables = Variables::from([("OUTER".to_owned(), "outside".to_owned())]);
    change(&mut input);
    let (project, reports) = load(&input);
    (project, reports.iter().map(Report::render).collect())
}

/// The objects of a file that says nothing odd.
fn objects(files: &[(&str, &str)]) -> Vec<Value> {
    let (project, reports) = load_files(files, |_| {});
    assert!(reports.is_empty(), "{}", reports.join("\n"));
    render(&project.unwrap(), &BTreeMap::new()).objects().cloned().collect()
}

fn object(objects: &[Value], kind: &str, name: &str) -> Value {
    let found = objects.iter().find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    found.cloned().unwrap_or_else(|| panic!("no {kind} {name}: {objects:#?}"))
}

/// One service's pod, for a line of the file.
fn pod(line: &str) -> Value {
    let text = format!("services:\n  web:\n    image: i\n    {}\n", line.replace('\n', "\n    "));
    let objects = objects(&[("compose.yaml", &text), ("conf/a", "b"), ("web.env", "E=file\nF=more\n")]);
    let workload = objects.iter().find(|it| !it["spec"]["template"].is_null()).unwrap();
    workload["spec"]["template"].clone()
}

#[test]
fn keys_of_a_service_and_what_they_become() {
    let container = [
        (
            "entrypoint: [/bin/a, b]\ncommand: run 'it all'",
            json!({"command": ["/bin/a", "b"], "args": ["run", "it all"]}),
        ),
        (
            "environment: {A: 1, B: , OUTER: }",
            json!({"env": [{"name": "A", "value": "1"}, {"name": "OUTER", "value": "outside"}]}),
        ),
        (
            "env_file: web.env\nenvironment: [E=own]",
            json!({"env": [{"name": "F", "value": "more"}, {"name": "E", "value": "own"}]}),
        ),
        ("environment: {A: x}\ncommand: [echo, \"$$(A) $$(B)\"]", json!({"args": ["echo", "$$(A) $(B)"]})),
        (
            "working_dir: /app\ntty: true\nstdin_open: true",
            json!({"workingDir": "/app", "tty": true, "stdin": true}),
        ),
        (
            "user: '1000:100'\nread_only: true\ncap_add: [NET_ADMIN]\ncap_drop: [ALL]",
            json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 100, "readOnlyRootFilesystem": true,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}}),
        ),
        (
            "security_opt: ['no-new-privileges:true']",
            json!({"securityContext": {"allowPrivilegeEscalation": false}}),
        ),
        (
            "deploy: {resources: {limits: {cpus: '0.50', memory: 512M}, reservations: {cpus: '0.25'}}}",
            json!({"resources": {"limits": {"cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "250m", "memory": "0"}}}),
        ),
        (
            "mem_limit: 1g\ncpus: 2",
            json!({"resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "0", "memory": "0"}}}),
        ),
        ("init: false", json!({"imagePullPolicy": "IfNotPresent"})),
        ("pull_policy: always", json!({"imagePullPolicy": "Always"})),
        ("tmpfs: /run:size=64m", json!({"volumeMounts": [{"name": "scratch-1", "mountPath": "/run"}]})),
        ("stop_signal: INT", json!({"lifecycle": {"stopSignal": "SIGINT"}})),
        (
            "post_start: [{command: [a, b]}]",
            json!({"lifecycle": {"postStart": {"exec": {"command": ["a", "b"]}}}}),
        ),
        (
            "healthcheck: {test: [CMD, ok], interval: 10s, timeout: 2s, retries: 5, start_period: 20s}",
            json!({"readinessProbe": {"exec": {"command": ["ok"]}, "periodSeconds": 10, "timeoutSeconds": 2, "failureThreshold": 5},
                   "startupProbe": {"exec": {"command": ["ok"]}, "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 70}}),
        ),
        (
            "healthcheck: {test: 'curl -f x'}",
            json!({"livenessProbe": {"exec": {"command": ["/bin/sh", "-c", "curl -f x"]},
            "periodSeconds": 30, "timeoutSeconds": 30, "failureThreshold": 3}}),
        ),
    ];
    for (line, want) in container {
        let template = pod(line);
        let got = &template["spec"]["containers"][0];
        for (key, value) in want.as_object().unwrap() {
            assert_eq!(&got[key], value, "{line}: {key}");
        }
    }
    let spec = [
        (
            "hostname: box\nstop_grace_period: 1m30s\ninit: true",
            json!({"hostname": "box", "terminationGracePeriodSeconds": 90, "shareProcessNamespace": true}),
        ),
        (
            "extra_hosts: ['a:192.0.2.1', 'b=192.0.2.1']",
            json!({"hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a", "b"]}]}),
        ),
        (
            "sysctls: {net.core.somaxconn: 1024}\ngroup_add: [7]",
            json!({"securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1024"}], "supplementalGroups": [7]}}),
        ),
        ("network_mode: host", json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})),
        ("platform: linux/arm64", json!({"nodeSelector": {"kubernetes.io/arch": "arm64"}})),
        (
            "volumes: ['./conf/a:/etc/a:ro', '~/d:/d', /scratch]",
            json!({"volumes": [
            {"name": "host-1", "hostPath": {"path": "/srv/shop/conf/a", "type": "File"}},
            {"name": "host-2", "hostPath": {"path": "/home/me/d", "type": "DirectoryOrCreate"}},
            {"name": "scratch-3", "emptyDir": {}}]}),
        ),
        (
            "shm_size: 64m",
            json!({"volumes": [{"name": "scratch-1", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}]}),
        ),
        (
            "dns_search: [a.test]\ndns_opt: ['ndots:1']",
            json!({"dnsConfig": {"searches": ["a.test"], "options": [{"name": "ndots", "value": "1"}]}}),
        ),
        (
            "privileged: false",
            json!({"terminationGracePeriodSeconds": 10, "automountServiceAccountToken": false, "enableServiceLinks": false}),
        ),
    ];
    for (line, want) in spec {
        let template = pod(line);
        for (key, value) in want.as_object().unwrap() {
            assert_eq!(&template["spec"][key], value, "{line}: {key}");
        }
    }
    assert_eq!(pod("labels: {com.example.a: 'b c'}")["metadata"]["annotations"]["com.example.a"], "b c");
}

const SHOP: &str = "name: shop
services:
  web:
    image: shop/web:1
    build: ./web
    ports: ['8080:80', '127.0.0.1:9000-9001:9000-9001', '53/udp']
    depends_on:
      db: {condition: service_healthy}
      migrate: {condition: service_completed_successfully}
    configs: [{source: page, target: /www/page.html, mode: 0440}]
    secrets: [token]
    x-naru: {host: shop.test, port: 80}
    networks: [front, back]
  db:
    image: postgres:16
    volumes: ['data:/var/lib/postgresql']
    healthcheck: {test: [CMD, pg_isready]}
    networks: {back: {aliases: [database]}}
  migrate:
    image: shop/web:1
    command: migrate
    restart: on-failure:3
    networks: [back]
  agent:
    image: agent
    deploy: {mode: global}
    networks: [front]
  debug:
    image: tools
    profiles: [debug]
    networks: [front]
volumes: {data: {x-naru: {size: 5g}}}
configs: {page: {content: 'hello ${OUTER}'}}
secrets: {token: {file: ./token}}
networks: {front: , back: {internal: true}}
";

fn shop() -> Vec<Value> {
    objects(&[("compose.yaml", SHOP), ("token", "s3cret")])
}

#[test]
fn a_project_becomes_standard_objects() {
    let all = shop();
    let web = object(&all, "Deployment", "web");
    assert_eq!(web["metadata"]["labels"][PROJECT_LABEL], "shop");
    assert!(web["spec"].get("strategy").is_none(), "{web}");
    assert_eq!(
        web["spec"]["template"]["spec"]["containers"][0]["volumeMounts"],
        json!([
        {"name": "config-page-440", "mountPath": "/www/page.html", "subPath": "page", "readOnly": true},
        {"name": "secret-token", "mountPath": "/run/secrets/token", "subPath": "token", "readOnly": true}])
    );
    assert_eq!(object(&all, "ConfigMap", "shop-page")["data"]["page"], "hello outside");
    assert_eq!(object(&all, "Secret", "shop-token")["data"]["token"], "czNjcmV0");
    let named = object(&all, "Service", "web");
    assert_eq!(named["spec"]["ports"][0], json!({"name": "udp-53", "port": 53, "protocol": "UDP"}));
    assert_eq!(named["spec"]["ports"][1], json!({"name": "tcp-80", "port": 80}));
    let published = object(&all, "Service", "web-published");
    assert_eq!(published["spec"]["type"], "LoadBalancer");
    assert_eq!(published["spec"]["ports"], json!([{"name": "tcp-8080", "port": 8080, "targetPort": 80}]));
    assert_eq!(
        object(&all, "Service", "web-local")["spec"]["loadBalancerSourceRanges"],
        json!(["127.0.0.0/8"])
    );
    assert_eq!(object(&all, "Service", "web-any-port")["spec"]["type"], "NodePort");
    let route = object(&all, "HTTPRoute", "web");
    assert_eq!(route["spec"]["hostnames"], json!(["shop.test"]));
    assert_eq!(route["spec"]["rules"][0]["backendRefs"], json!([{"name": "web", "port": 80}]));

    let db = object(&all, "Deployment", "db");
    assert_eq!(db["spec"]["strategy"]["type"], "Recreate");
    assert_eq!(
        db["spec"]["template"]["spec"]["volumes"],
        json!([{"name": "data", "persistentVolumeClaim": {"claimName": "shop-data"}}])
    );
    assert_eq!(
        object(&all, "PersistentVolumeClaim", "shop-data")["spec"]["resources"]["requests"]["storage"],
        "5Gi"
    );
    assert_eq!(object(&all, "Service", "db")["spec"]["clusterIP"], "None");
    assert_eq!(object(&all, "Service", "database")["spec"], object(&all, "Service", "db")["spec"]);
    let migrate = object(&all, "Job", "migrate");
    assert_eq!(migrate["spec"]["backoffLimit"], 3);
    assert_eq!(migrate["spec"]["template"]["spec"]["restartPolicy"], "OnFailure");
    object(&all, "DaemonSet", "agent");
    assert!(!all.iter().any(|it| it["metadata"]["name"] == "debug"));

    // `agent` and `db` share no network, so networks are kept apart; `db` reaches nothing else.
    let back = object(&all, "NetworkPolicy", "shop-network-back");
    assert_eq!(back["spec"]["podSelector"]["matchLabels"]["network.naru.dev/back"], "true");
    assert_eq!(back["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    let open = object(&all, "NetworkPolicy", "web-published");
    assert!(
        open["spec"]["ingress"][0]["ports"]
            .as_array()
            .unwrap()
            .contains(&json!({"port": 80, "protocol": "TCP"}))
    );
}

#[test]
fn dependencies_come_first_and_profiles_choose() {
    let names = |change: &dyn Fn(&mut Input<'_>)| -> Vec<String> {
        let (project, reports) = load_files(&[("compose.yaml", SHOP), ("token", "t")], |it| change(it));
        assert!(reports.is_empty(), "{reports:?}");
        project.unwrap().services.iter().map(|it| it.name.clone()).collect()
    };
    assert_eq!(names(&|_| {}), ["agent", "db", "migrate", "web"]);
    assert_eq!(names(&|it| it.choice.services = vec!["web".into()]), ["db", "migrate", "web"]);
    assert_eq!(
        names(&|it| it.choice.profiles = vec!["debug".into()]),
        ["agent", "db", "debug", "migrate", "web"]
    );
    assert_eq!(names(&|it| it.choice.services = vec!["debug".into()]), ["debug"]);
}

#[test]
fn builds_keep_what_a_builder_understands() {
    let text = "services:\n  web:\n    build:\n      context: ./app\n      target: dev\n      args: [A=1]\n      cache_from: [reg.test/cache]\n      ssh: [default=./key]\n      secrets: [token, {source: token, target: other}]\nsecrets: {token: {environment: OUTER}}\n";
    let (project, reports) = load_files(&[("compose.yaml", text)], |_| {});
    assert!(reports.is_empty(), "{reports:?}");
    let project = project.unwrap();
    let build = project.services[0].build.clone().unwrap();
    assert_eq!((build.context.as_str(), build.target.as_deref()), ("/srv/shop/app", Some("dev")));
    assert_eq!(build.cache_from, ["type=registry,ref=reg.test/cache"]);
    assert_eq!(build.ssh, ["default=/srv/shop/key"]);
    let ids: Vec<&str> = build.secrets.iter().map(|it| it.0.as_str()).collect();
    assert_eq!(ids, ["token", "other"]);
    assert_eq!(project.build_secrets["token"], b"outside");
    let all: Vec<Value> = render(&project, &BTreeMap::new()).objects().cloned().collect();
    assert!(!all.iter().any(|it| it["kind"] == "Secret"), "a build's secret is no object");
}

#[test]
fn a_changed_file_replaces_the_pods_that_mount_it() {
    let web = |page: &str| {
        let all = objects(&[("compose.yaml", &SHOP.replace("hello", page)), ("token", "t")]);
        (object(&all, "Deployment", "web"), object(&all, "Deployment", "db"))
    };
    let (before, after) = (web("hello"), web("hi"));
    assert_ne!(before.0["spec"]["template"], after.0["spec"]["template"]);
    assert_eq!(before.1, after.1);
}

#[test]
fn files_extend_include_and_change_each_other() {
    let files = [
        (
            "compose.yaml",
            "include: [other/compose.yaml]\nservices:\n  web:\n    extends: {file: base/base.yaml, service: app}\n    image: ${TAG:-none}\n",
        ),
        (
            "base/base.yaml",
            "services:\n  app:\n    extends: root\n    env_file: app.env\n    volumes: ['./data:/data']\n  root: {image: r, environment: {A: 1}, restart: always}\n",
        ),
        ("base/app.env", "FROM=base\n"),
        ("other/compose.yaml", "services:\n  cache: {image: \"${CACHE}\", volumes: ['./c:/c']}\n"),
        ("other/.env", "CACHE=redis\n"),
        (".env", "TAG=fromdotenv\n"),
        ("prod.yaml", "services:\n  web: {environment: {A: 2}, ports: ['80:80']}\n"),
    ];
    let (project, reports) = load_files(&files, |it| it.files.push("/srv/shop/prod.yaml".into()));
    assert!(reports.is_empty(), "{}", reports.join("\n"));
    let all: Vec<Value> = render(&project.unwrap(), &BTreeMap::new()).objects().cloned().collect();
    let web = object(&all, "Deployment", "web");
    let container = &web["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "fromdotenv");
    assert_eq!(container["env"], json!([{"name": "FROM", "value": "base"}, {"name": "A", "value": "2"}]));
    assert_eq!(web["spec"]["template"]["spec"]["volumes"][0]["hostPath"]["path"], "/srv/shop/base/data");
    let cache = object(&all, "Deployment", "cache");
    assert_eq!(cache["spec"]["template"]["spec"]["containers"][0]["image"], "redis");
    assert_eq!(cache["spec"]["template"]["spec"]["volumes"][0]["hostPath"]["path"], "/srv/shop/other/c");
    object(&all, "Service", "web-published");
    assert_eq!(web["metadata"]["labels"][PROJECT_LABEL], "shop");
}

#[test]
fn what_cannot_be_kept_is_said_with_its_place() {
    let cases = [
        ("image: i\nnetwork_mode: container:x", "compose.yaml:4:19", "a network interface of its own"),
        ("image: i\ndevices: [/dev/x]", "compose.yaml:4:5", "`devices` of the service `web` cannot be kept"),
        ("image: i\nlinks: [db]", "compose.yaml:4:5", "reached by its name without links"),
        ("image: i\npid: host", "compose.yaml:4:5", "does not see the processes"),
        ("image: i\nipc: host", "compose.yaml:4:10", "shares its memory with no other"),
        ("imgae: i", "compose.yaml:3:5", "did you mean `image`?"),
        ("command: x", "compose.yaml:2:3", "needs `image` or `build`"),
        ("image: i\nports: ['80:http']", "compose.yaml:4:13", "is not a port"),
        ("image: i\nports: ['1-9:1-5']", "compose.yaml:4:13", "9 ports on one side"),
        ("image: i\nports: ['80:1', '80:2']", "compose.yaml:4:21", "published twice"),
        ("image: i\nvolumes: ['data:/d']", "compose.yaml:4:15", "the volume `data` is not declared"),
        ("image: i\nvolumes: [{type: npipe, target: /x}]", "compose.yaml:4:15", "of the type `npipe`"),
        ("image: i\nvolumes: ['./a:/x', './b:/x']", "compose.yaml:4:25", "two things are mounted at /x"),
        ("image: i\nuser: www-data", "compose.yaml:4:11", "pods know users by number"),
        ("image: i\nrestart: sometimes", "compose.yaml:4:14", "unknown restart policy"),
        ("image: i\ndepends_on: [db]", "compose.yaml:4:18", "depends on `db`, which does not exist"),
        ("image: i\ndepends_on: [web]", "compose.yaml:4:18", "wait for each other: web"),
        ("image: i\nhealthcheck: {test: [ok]}", "compose.yaml:4:25", "begins with CMD, CMD-SHELL or NONE"),
        ("image: i\nhealthcheck: {interval: soon, test: x}", "compose.yaml:4:29", "`interval` is not a time"),
        ("image: i\nmem_limit: lots", "compose.yaml:4:16", "`mem_limit` is not a size"),
        ("image: i\nscale: many", "compose.yaml:4:12", "`scale` must be a whole number"),
        ("image: i\nsecrets: [x]", "compose.yaml:4:15", "the secret `x` is not declared"),
        ("image: i\nnetworks: [x]", "compose.yaml:4:16", "the network `x` is not declared"),
        (
            "image: i\nenv_file: none.env",
            "compose.yaml:4:15",
            "cannot read the environment file /srv/shop/none.env",
        ),
        ("image: '${X:?set it}'", "compose.yaml:3:12", "the variable `X` is required: set it"),
        ("image: i\nextends: other", "compose.yaml:4:14", "names the service `other`, which is not there"),
        ("image: i\nextends: web", "compose.yaml:4:14", "goes in a circle: web -> web"),
        ("image: i\nbuild: https://example.com/a.git", "compose.yaml:4:12", "is not on this machine"),
        ("image: i\ndeploy: {mode: sideways}", "compose.yaml:4:20", "the mode `sideways` cannot be kept"),
        ("image: i\nextra_hosts: ['h:host-gateway']", "compose.yaml:4:19", "no name for the machine"),
        ("image: i\nx-naru: {host: a.test}", "compose.yaml:4:13", "which port of `web`"),
        ("image: i\nlabels: {'a b': c}", "compose.yaml:4:14", "cannot be kept as an annotation"),
        (
            "image: i\nblkio_config: {weight: 10}",
            "compose.yaml:4:5",
            "warning: `blkio_config` of the service `web` has no effect",
        ),
        ("image: i\nulimits: {nofile: 10}", "compose.yaml:4:5", "warning: `ulimits`"),
        ("image: $GONE", "compose.yaml:3:12", "warning: the variable `GONE` is not set"),
        ("image: !secret i", "compose.yaml:3:", "the tag `!secret` is not understood"),
    ];
    for (lines, place, words) in cases {
        let text = format!("services:\n  web:\n    {}\n", lines.replace('\n', "\n    "));
        let (project, reports) = load_files(&[("compose.yaml", &text)], |_| {});
        let all = reports.join("\n");
        assert!(all.contains(place) && all.contains(words), "{lines}\nwant {words} at {place}\ngot {all}");
        assert_eq!(project.is_some(), reports.iter().all(|it| it.starts_with("warning")), "{lines}");
    }
    for (text, words) in [
        ("services: []\n", "`services` must be a mapping"),
        ("version: '3'\nservices: {a: {image: x}}\n", "warning: `version` of the file has no effect"),
        ("name: My Shop\nservices: {a: {image: x}}\n", "write `name: my-shop`"),
        (
            "volumes: {a: {driver: nfs}}\nservices: {a: {image: x}}\n",
            "the volume driver `nfs` cannot be kept",
        ),
        ("services: {a_b: {image: x}}\n", "warning: the service `a_b` is known to the others as `a-b`"),
        ("services: {a_b: {image: x}, a-b: {image: x}}\n", "would both be called `a-b`"),
        ("services: {a: {image: x}, b: {image: x, container_name: a}}\n", "`a` means both `b` and `a`"),
        (
            "services: {a: {image: x, depends_on: {b: {condition: service_healthy}}}, b: {image: x}}\n",
            "has no `healthcheck`",
        ),
        (
            "services: {a: {image: x, depends_on: {b: {condition: service_completed_successfully}}}, b: {image: x, restart: always}}\n",
            "is always started again",
        ),
        ("include: [gone.yaml]\nservices: {a: {image: x}}\n", "cannot read /srv/shop/gone.yaml"),
        ("include: [compose.yaml]\nservices: {a: {image: x}}\n", "goes in a circle"),
    ] {
        let (_, reports) = load_files(&[("compose.yaml", text)], |_| {});
        assert!(reports.join("\n").contains(words), "{text}\nwant {words}\ngot {}", reports.join("\n"));
    }
}

/// Whatever comes in, something is said and nothing falls over.
#[test]
fn odd_values_at_every_key() {
    let odd = [
        "~",
        "[]",
        "{}",
        "x",
        "[[1], {a: b}]",
        "{a: [b], c: {d: e}}",
        "-1",
        "'::::'",
        "[~, '', {}]",
        "\"\\u0000\"",
    ];
    let sections = [
        ("services", keys::SERVICE),
        ("volumes", keys::VOLUME),
        ("networks", keys::NETWORK),
        ("configs", keys::CONFIG),
        ("secrets", keys::SECRET),
    ];
    for (section, table) in sections {
        for (key, _) in table {
            for value in odd {
                let text = match section {
                    "services" => format!("services: {{web: {{image: i, {key}: {value}}}}}\n"),
                    _ => format!(
                        "services: {{web: {{image: i, volumes: ['v:/v'], networks: [v], configs: [v], secrets: [v]}}}}\n{section}: {{v: {{{key}: {value}}}}}\n"
                    ),
                };
                if let (Some(project), _) = load_files(&[("compose.yaml", &text)], |_| {}) {
                    render(&project, &BTreeMap::new());
                }
            }
        }
    }
    for (place, table) in keys::ALL.iter().filter(|it| it.0.starts_with("services.*.")) {
        let parent = place.trim_start_matches("services.*.").trim_end_matches(".*").trim_end_matches("[]");
        for (key, _) in *table {
            for value in odd {
                for shape in [
                    format!("{{{key}: {value}}}"),
                    format!("[{{{key}: {value}}}]"),
                    format!("{{a: {{{key}: {value}}}}}"),
                ] {
                    let path: Vec<&str> = parent.split(['.', ',']).map(str::trim).collect();
                    let nested = path
                        .iter()
                        .rev()
                        .fold(shape, |inner, part| format!("{{{}: {inner}}}", part.trim_end_matches("[]")));
                    let text = format!("services: {{web: {{image: i, <<: {nested}}}}}\n");
                    if let (Some(project), _) = load_files(&[("compose.yaml", &text)], |_| {}) {
                        render(&project, &BTreeMap::new());
                    }
                }
            }
        }
    }
}

#[test]
fn the_documentation_has_every_key() {
    let page = include_str!("../../../../../docs/compose.md");
    let table = keys::markdown();
    for line in table.lines() {
        assert!(
            page.contains(line),
            "docs/compose.md lacks this row (of the table in keys.rs):\n{line}\nall rows:\n{table}"
        );
    }
    for (_, keys) in keys::ALL {
        assert!(keys.is_sorted_by_key(|it| it.0) || keys.len() < 10, "{keys:?}");
    }
}
