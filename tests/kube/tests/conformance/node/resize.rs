//! Resources of running containers change without a restart, as the kernel's control groups show.

use std::path::{Path, PathBuf};

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

use super::{main_of, node};

/// Processor and memory, as requests and as limits; empty for none.
type Sizes = [&'static str; 4];

fn resources([cpu, memory, cpu_max, memory_max]: Sizes) -> Value {
    let mut found = json!({});
    for (kind, resource, size) in [
        ("requests", "cpu", cpu),
        ("requests", "memory", memory),
        ("limits", "cpu", cpu_max),
        ("limits", "memory", memory_max),
    ] {
        if !size.is_empty() {
            found[kind][resource] = json!(size);
        }
    }
    found
}

fn pod(case: &Case, sizes: &[Sizes]) -> Value {
    let mut pod = case.pod("sized", "sleep 1000");
    let main = main_of(&mut pod).clone();
    let containers = sizes.iter().enumerate().map(|(at, sizes)| {
        let mut container = main.clone();
        container["name"] = json!(format!("c{}", at + 1));
        container["resources"] = resources(*sizes);
        container
    });
    pod["spec"]["containers"] = containers.collect();
    pod
}

fn at(case: &Case) -> String {
    case.path("v1", "pods/sized")
}

/// Waits until the status tells these resources, and checks that nothing began anew.
fn holds(case: &Case, sizes: &[Sizes]) {
    let pod = case.wait_for("the new sizes", &at(case), |it| {
        let statuses = it["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
        statuses.len() == sizes.len()
            && statuses.iter().zip(sizes).all(|(status, sizes)| {
                let wanted = resources(*sizes);
                wanted.as_object().unwrap().iter().all(|(kind, wanted)| {
                    let told = &status["resources"][kind];
                    wanted.as_object().unwrap().iter().all(|(resource, size)| told[resource] == *size)
                })
            })
    });
    for (status, sizes) in pod["status"]["containerStatuses"].as_array().unwrap().iter().zip(sizes) {
        assert_eq!(status["restartCount"], 0, "{pod:#}");
        let (uid, name) = (pod["metadata"]["uid"].as_str().unwrap(), status["name"].as_str().unwrap());
        kernel_knows(uid, name, *sizes);
    }
}

/// What the control group of a container says, in either version.
fn kernel_knows(uid: &str, container: &str, [cpu, memory, cpu_max, memory_max]: Sizes) {
    let group = format!("naru/apps/{uid}/{container}-0");
    let read = |controller: &str, file: &str| {
        let root = Path::new("/sys/fs/cgroup");
        let places: [PathBuf; 2] =
            [root.join(controller).join(&group).join(file), root.join(&group).join(file)];
        places.iter().find_map(|it| std::fs::read_to_string(it).ok()).map(|it| it.trim().to_owned())
    };
    if let Some(bytes) = read("memory", "memory.limit_in_bytes").or_else(|| read("memory", "memory.max")) {
        match memory_max.strip_suffix("Mi").map(|it| it.parse::<u64>().unwrap() << 20) {
            Some(wanted) => assert_eq!(bytes, wanted.to_string(), "memory of {container}"),
            None => assert!(bytes == "max" || bytes.len() > 15, "memory of {container}: {bytes}"),
        }
    }
    let millis = |size: &str| size.strip_suffix('m').map(|it| it.parse::<i64>().unwrap());
    if let Some(quota) = read("cpu", "cpu.cfs_quota_us") {
        assert_eq!(quota, millis(cpu_max).map_or(-1, |it| (it * 100).max(1000)).to_string());
        let asked = millis(cpu).or(millis(cpu_max)).unwrap_or(0);
        assert_eq!(read("cpu", "cpu.shares"), Some((asked * 1024 / 1000).max(2).to_string()));
    }
    let _ = memory;
}

fn resized(before: &'static [Sizes], after: &'static [Sizes]) -> impl Fn(&Case) {
    move |case| {
        case.create(&case.path("v1", "pods"), &pod(case, before));
        case.wait_running("sized");
        holds(case, before);
        let containers: Vec<Value> = after
            .iter()
            .enumerate()
            .map(|(at, sizes)| json!({"name": format!("c{}", at + 1), "resources": resources(*sizes)}))
            .collect();
        let change = json!({"spec": {"containers": containers}});
        case.patch("strategic-merge-patch", &format!("{}/resize", at(case)), &change);
        holds(case, after);
    }
}

fn replaced(case: &Case) {
    let (before, after) = ([["100m", "64Mi", "100m", "64Mi"]], [["150m", "96Mi", "150m", "96Mi"]]);
    case.create(&case.path("v1", "pods"), &pod(case, &before));
    case.wait_running("sized");
    case.wait("the replacement to find nobody in between", || {
        let mut pod = case.get(&format!("{}/resize", at(case)));
        main_of(&mut pod)["resources"] = resources(after[0]);
        (case.ask("PUT", &format!("{}/resize", at(case)), &pod).code == 200).then_some(())
    });
    holds(case, &after);
    // Everything else of the pod stays, and its class with it.
    let mut pod = case.get(&at(case));
    main_of(&mut pod)["resources"] =
        json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "150m", "memory": "96Mi"}});
    case.expect("PUT", &format!("{}/resize", at(case)), &pod, 422);
}

pub fn all() -> Vec<Scenario> {
    const THREE: &[Sizes] = &[
        ["100m", "64Mi", "100m", "64Mi"],
        ["200m", "96Mi", "200m", "96Mi"],
        ["300m", "128Mi", "300m", "128Mi"],
    ];
    vec![
        node(
            "[sig-node] Pod InPlace Resize Container burstable pods - extended 6 containers - various operations performed (including adding limits and requests) [MinimumKubeletVersion:1.34] [Conformance]",
            resized(
                &[
                    ["", "", "", ""],
                    ["20m", "32Mi", "", ""],
                    ["20m", "", "40m", ""],
                    ["20m", "32Mi", "40m", "64Mi"],
                    ["", "", "40m", "64Mi"],
                    ["20m", "32Mi", "40m", "64Mi"],
                ],
                &[
                    ["10m", "16Mi", "", ""],
                    ["20m", "32Mi", "60m", "96Mi"],
                    ["30m", "48Mi", "50m", "80Mi"],
                    ["10m", "16Mi", "30m", "48Mi"],
                    ["30m", "48Mi", "60m", "96Mi"],
                    ["30m", "48Mi", "60m", "96Mi"],
                ],
            ),
        ),
        node(
            "[sig-node] Pod InPlace Resize Container burstable pods - extended resize with equivalents [MinimumKubeletVersion:1.34] [Conformance]",
            resized(&[["2m", "", "10m", ""]], &[["1m", "", "5m", ""]]),
        ),
        node(
            "[sig-node] Pod InPlace Resize Container guaranteed pods with multiple containers 3 containers - increase cpu & mem on c1, c2, decrease cpu & mem on c3 - net increase [MinimumKubeletVersion:1.34] [Conformance]",
            resized(
                THREE,
                &[
                    ["140m", "96Mi", "140m", "96Mi"],
                    ["250m", "128Mi", "250m", "128Mi"],
                    ["280m", "112Mi", "280m", "112Mi"],
                ],
            ),
        ),
        node(
            "[sig-node] Pod InPlace Resize Container guaranteed pods with multiple containers 3 containers - increase cpu & mem on c1, decrease cpu & mem on c2, c3 - net decrease [MinimumKubeletVersion:1.34] [Conformance]",
            resized(
                THREE,
                &[
                    ["130m", "80Mi", "130m", "80Mi"],
                    ["170m", "64Mi", "170m", "64Mi"],
                    ["250m", "96Mi", "250m", "96Mi"],
                ],
            ),
        ),
        node(
            "[sig-node] Pod InPlace Resize Container guaranteed pods with multiple containers 3 containers - increase: CPU (c1,c3), memory (c2, c3) ; decrease: CPU (c2) [MinimumKubeletVersion:1.34] [Conformance]",
            resized(
                THREE,
                &[
                    ["140m", "64Mi", "140m", "64Mi"],
                    ["150m", "128Mi", "150m", "128Mi"],
                    ["350m", "160Mi", "350m", "160Mi"],
                ],
            ),
        ),
        node(
            "[sig-node] Pod InPlace Resize Container resize pod via the replace endpoint [MinimumKubeletVersion:1.34] [Conformance]",
            replaced,
        ),
    ]
}
