//! The image that scenarios run: Debian's static busybox with a link for each of its programs, pushed to the
//! daemon's own registry.

use std::path::Path;
use std::process::Command;

use naru_loop_tests::harness::{busybox, text};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Pushes the image and returns nothing: it is `REGISTRY/test/busybox:1` from then on.
pub(crate) fn push(registry: &str, token: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let (root, layout) = (scratch.path().join("root"), scratch.path().join("layout"));
    for dir in ["bin", "etc", "tmp", "home", "www"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::copy(busybox(), root.join("bin/busybox")).unwrap();
    let programs = Command::new(busybox()).arg("--list").output().unwrap();
    for program in text(&programs).lines().filter(|it| *it != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(program)).unwrap();
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n").unwrap();
    std::fs::write(root.join("www/index.html"), "hello\n").unwrap();
    run("chmod", &["1777", &show(&root.join("tmp"))]);

    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let tar = scratch.path().join("layer.tar");
    run("tar", &["-C", &show(&root), "--owner=0", "--group=0", "--numeric-owner", "-cf", &show(&tar), "."]);
    let (layer, size) = blob(&layout, &std::fs::read(&tar).unwrap());
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    let (config, config_size) = blob(&layout, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size}],
    });
    let (manifest, size) = blob(&layout, manifest.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size,
            "annotations": {"org.opencontainers.image.ref.name": "1"}}],
    });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    let source = format!("oci:{}:1", show(&layout));
    let target = format!("docker://{registry}/test/busybox:1");
    let credentials = format!("naru:{token}");
    run(
        "skopeo",
        &["copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", &credentials, &source, &target],
    );
}

fn blob(layout: &Path, content: &[u8]) -> (String, usize) {
    let digest: String = Sha256::digest(content).iter().map(|it| format!("{it:02x}")).collect();
    std::fs::write(layout.join("blobs/sha256").join(&digest), content).unwrap();
    (format!("sha256:{digest}"), content.len())
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).env_remove("http_proxy").output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
