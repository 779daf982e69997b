use super::*;
use crate::mounts::mount_points;

fn config() -> Config {
    Config {
        namespace: "docker".into(),
        node_name: "box".into(),
        data_dir: "/d".into(),
        name_server: Some([10, 96, 0, 10].into()),
        gateway: [10, 88, 0, 1].into(),
        subnet: "10.88.0.0/16".into(),
        version: "0".into(),
        builds_namespace: "default".into(),
    }
}

fn pod(request: Value, image: Value) -> Result<Value> {
    let merged = merge_config(&request, &image);
    let record = Record {
        id: "a".repeat(64),
        created: String::new(),
        image: "i".into(),
        image_id: String::new(),
        digest: String::new(),
        mounts: mount_points(&merged, &request["HostConfig"])?,
        config: merged,
        host_config: request["HostConfig"].clone(),
        ports: Map::new(),
    };
    let claims = record.mounts.iter().map(|it| (it.name.clone(), json!("claim"))).collect();
    lower(&Parts {
        name: "web_1",
        record: &record,
        memberships: &[],
        endpoints: &Map::new(),
        image_environment: &texts(&image["Env"]),
        pod_image: "i@sha256:0",
        claims: &claims,
        config: &config(),
        searches: &[],
    })
}

#[test]
fn commands_and_variables_of_request_and_image_meet_as_in_docker() {
    let image = json!({"Entrypoint": ["/entry"], "Cmd": ["serve"], "Env": ["PATH=/bin", "A=1", "B=2"]});
    for (request, command) in [
        (json!({}), json!(["/entry", "serve"])),
        (json!({"Cmd": ["x"]}), json!(["/entry", "x"])),
        (json!({"Entrypoint": ["/other"]}), json!(["/other"])),
        (json!({"Entrypoint": [""], "Cmd": ["sh", "$(HOME)$"]}), json!(["sh", "$$(HOME)$$"])),
    ] {
        assert_eq!(pod(request, image.clone()).unwrap()["spec"]["containers"][0]["command"], command);
    }
    assert_eq!(pod(json!({}), json!({})).unwrap_err().message, "no command specified");
    let made = pod(json!({"Env": ["A=x=$y", "B"], "Cmd": ["x"]}), image).unwrap();
    let variables = &made["spec"]["containers"][0]["env"];
    assert_eq!(*variables, json!([{"name": "PATH", "value": "/bin"}, {"name": "A", "value": "x=$$y"}]));
    let options = made["metadata"]["annotations"][naru_objects::labels::OPTIONS].as_str().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(options).unwrap(),
        json!({"plainEnvironment": true, "unset": ["B"]})
    );
}

#[test]
fn flags_become_fields_of_the_pod() {
    let made = pod(
        json!({"Cmd": ["x"], "User": "app", "StopSignal": "QUIT", "Tty": true, "OpenStdin": true, "StdinOnce": true,
            "HostConfig": {"Memory": 64 << 20, "NanoCpus": 500_000_000, "CapAdd": ["CAP_NET_ADMIN"], "Init": true,
                "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}, "ReadonlyRootfs": true,
                "SecurityOpt": ["no-new-privileges"], "ShmSize": 1 << 20, "ExtraHosts": ["h:host-gateway"],
                "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": -1}], "PidsLimit": 9,
                "Binds": ["/a/../b:/c:ro", "data:/d"], "Tmpfs": {"/t": "size=1m"}}}),
        json!({"Volumes": {"/d": {}, "/anonymous/": {}}}),
    )
    .unwrap();
    let (spec, container) = (&made["spec"], &made["spec"]["containers"][0]);
    assert_eq!(container["resources"]["limits"], json!({"memory": "67108864", "cpu": "500m"}));
    assert_eq!(
        container["resources"]["requests"],
        json!({"memory": "0", "cpu": "1m"}),
        "next to nothing is reserved"
    );
    assert_eq!(container["lifecycle"]["stopSignal"], "SIGQUIT");
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!((&container["tty"], &container["stdinOnce"]), (&json!(true), &json!(false)));
    assert_eq!(spec["hostAliases"], json!([{"ip": "10.88.0.1", "hostnames": ["h"]}]));
    assert_eq!((&spec["restartPolicy"], &spec["shareProcessNamespace"]), (&json!("OnFailure"), &json!(true)));
    let paths: Vec<&str> =
        container["volumeMounts"].as_array().unwrap().iter().map(|it| text(it, "/mountPath")).collect();
    assert_eq!(paths, ["/c", "/d", "/t", "/anonymous", "/dev/shm"]);
    assert_eq!(spec["volumes"][0]["hostPath"]["path"], "/b");
    assert_eq!(spec["volumes"][2]["emptyDir"]["sizeLimit"], "1048576");
    let annotations = &made["metadata"]["annotations"];
    let read = |name: &str| serde_json::from_str::<Value>(annotations[name].as_str().unwrap()).unwrap();
    assert_eq!(read(naru_objects::labels::LIFE)["retries"], 3);
    let options = read(naru_objects::labels::OPTIONS);
    assert_eq!((&options["user"], &options["pidsMax"]), (&json!("app"), &json!(9)));
    assert_eq!(options["limits"][0]["hard"], u64::MAX);
    assert!(made["metadata"]["name"].as_str().unwrap().starts_with("web-1-"));
}

#[test]
fn mounts_that_mean_nothing_are_refused() {
    for (host, said) in [
        (json!({"Binds": ["a/b:/c"]}), "includes invalid characters"),
        (json!({"Binds": ["/a:/c", "/b:/c/"]}), "Duplicate mount point: /c"),
        (json!({"Binds": ["/a:c"]}), "must be absolute"),
        (json!({"Binds": ["/a:/c:rshared"]}), "propagation"),
        (json!({"Tmpfs": {"/t": "mode=700"}}), "mode=700"),
        (json!({"Mounts": [{"Type": "npipe", "Target": "/x"}]}), "npipe"),
    ] {
        assert!(mount_points(&json!({}), &host).unwrap_err().message.contains(said), "{said}");
    }
}

#[test]
fn signals_have_many_names() {
    for (name, number) in [("TERM", 15), ("sigkill", 9), ("1", 1), ("RTMIN+3", 37), ("SIGRTMAX", 64)] {
        assert_eq!(signal_number(name).unwrap(), number);
    }
    assert_eq!(signal_name("RTMIN+3").unwrap(), "SIGRTMIN+3");
    assert!(signal_number("NONE").is_err() && signal_number("0").is_err());
}
