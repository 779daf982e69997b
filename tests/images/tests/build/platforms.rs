//! Images for several machines: built, sent, joined, and looked at with skopeo and crane.

use naru_image_tests::daemon_with_registry;
use naru_image_tests::harness::{busybox, text, tool};
use naru_image_tests::layout::{done, run};
use serde_json::Value;
use std::fs;

#[test]
fn an_image_for_two_machines_is_built_sent_and_run() {
    let (daemon, host) = daemon_with_registry();
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    fs::copy(busybox(), scratch.path().join("busybox")).unwrap();
    let dockerfile = "FROM --platform=$BUILDPLATFORM scratch AS tools\nCOPY busybox /bin/busybox\n\
        ARG TARGETARCH\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo for $TARGETARCH > /arch\"]\n\
        FROM scratch\nCOPY busybox /bin/busybox\nCOPY --from=tools /arch /arch\nCMD [\"/bin/busybox\", \"cat\", \"/arch\"]\n";
    fs::write(scratch.path().join("Dockerfile"), dockerfile).unwrap();
    let ours = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let other = if ours == "amd64" { "arm64" } else { "amd64" };
    let platforms = "linux/amd64,linux/arm64";
    let name = format!("{host}/shop/web:1");
    let archive = format!("type=oci,dest={}", at("web.tar"));
    let directory = format!("type=local,dest={}", at("files"));
    let context = scratch.path().display().to_string();
    let args = [
        "build",
        "-q",
        "--platform",
        platforms,
        "-t",
        &name,
        "--push",
        "-o",
        &archive,
        "-o",
        &directory,
        &context,
    ];
    let digest = done(daemon.naru(&args)).trim().to_owned();
    assert_eq!(fs::read_to_string(scratch.path().join("files/linux_arm64/arch")).unwrap(), "for arm64\n");

    // In the registry and in the archive it is one index of two images.
    let raw = done(run(tool("crane"), &["manifest", "--insecure", &name]));
    let index: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2, "{index}");
    assert_eq!(done(run(tool("crane"), &["digest", "--insecure", &name])).trim(), digest);
    for arch in ["amd64", "arm64"] {
        let from = format!("oci-archive:{}", at("web.tar"));
        let to = format!("dir:{}", at(arch));
        let copy = ["--insecure-policy", "--override-arch", arch, "copy", "--quiet", &from, &to];
        done(run("skopeo", &copy));
        let reference = format!("docker://{name}");
        let inspect = ["--override-arch", arch, "inspect", "--config", "--tls-verify=false", &reference];
        let config: Value = serde_json::from_str(&done(run("skopeo", &inspect))).unwrap();
        assert_eq!(config["architecture"], arch);
    }
    // A pod gets its own.
    done(daemon.kubectl(&["run", "web", "--restart=Never", "--image", &name]));
    let phase = "--for=jsonpath={.status.phase}=Succeeded";
    done(daemon.kubectl(&["wait", "pod/web", phase, "--timeout=60s"]));
    assert_eq!(done(daemon.kubectl(&["logs", "web"])), format!("for {ours}\n"));
    // Both the index and its images say where they come from.
    done(daemon.naru(&["image", "verify", &name]));

    // Images that were built apart are joined; twice the same machine is refused.
    for arch in ["amd64", "arm64"] {
        let (tag, platform) = (format!("web:{arch}"), format!("linux/{arch}"));
        done(daemon.naru(&["build", "-q", "--platform", &platform, "-t", &tag, &context]));
    }
    let joined = format!("{host}/shop/joined:1");
    done(daemon.naru(&["image", "index", "create", "--push", &joined, "web:amd64", "web:arm64"]));
    let raw = done(run(tool("crane"), &["manifest", "--insecure", &joined]));
    let again: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(again["manifests"], index["manifests"], "the same images");
    let twice = daemon.naru(&["image", "index", "create", &joined, "web:amd64", &name]);
    assert!(!twice.status.success() && text(&twice).contains("is for linux/amd64, too"), "{}", text(&twice));
    // By digest from a registry, for a machine that is not this one.
    let entry =
        index["manifests"].as_array().unwrap().iter().find(|it| it["platform"]["architecture"] == other);
    let child = entry.unwrap()["digest"].as_str().unwrap();
    let one = format!("{host}/shop/web@{child}");
    done(daemon.naru(&["image", "index", "create", "only:1", &one]));

    // What an output cannot hold, and what cannot be run, is said before anything is built.
    let refused = daemon.naru(&["build", "--platform", platforms, "-o", "type=docker,dest=-", &context]);
    assert!(text(&refused).contains("one platform only"), "{}", text(&refused));
    fs::write(scratch.path().join("Dockerfile"), "FROM scratch\nCOPY busybox /bin/sh\nRUN true\n").unwrap();
    let refused = daemon.naru(&["build", "--platform", "linux/mips64le", &context]);
    let said = text(&refused);
    for part in ["Dockerfile:3:1", "cannot be run here for linux/mips64le", "qemu-user-static"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    daemon.destroy();
}
