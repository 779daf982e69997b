//! Images as OCI layouts, made of nothing but files, and the programs that carry them.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use crate::harness::{busybox, text};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn run(program: impl AsRef<Path>, args: &[&str]) -> Output {
    Command::new(program.as_ref()).args(args).output().unwrap()
}

#[track_caller]
pub fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// An image of these files, as an OCI layout with the tag `1`.
pub fn layout(dir: &Path, layers: &[&[(&str, &[u8])]], config: Value) -> PathBuf {
    let put = |kind: &str, content: &[u8]| put(dir, kind, content);
    let layers: Vec<Value> = layers
        .iter()
        .map(|files| {
            let mut tar = tar::Builder::new(Vec::new());
            for (name, content) in *files {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o755);
                tar.append_data(&mut header, name, *content).unwrap();
            }
            put("application/vnd.oci.image.layer.v1.tar", &tar.into_inner().unwrap())
        })
        .collect();
    let diff_ids: Vec<&Value> = layers.iter().map(|it| &it["digest"]).collect();
    let config = json!({"architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux",
        "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    finish(dir, config, layers);
    dir.to_owned()
}

/// Puts a blob into a layout and returns its descriptor.
pub fn put(dir: &Path, kind: &str, content: &[u8]) -> Value {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let digest: String = Sha256::digest(content).iter().map(|it| format!("{it:02x}")).collect();
    fs::write(blobs.join(&digest), content).unwrap();
    json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": content.len()})
}

/// Writes configuration, manifest and index of a layout whose layers are there; the tag is `1`.
pub fn finish(dir: &Path, config: Value, layers: Vec<Value>) {
    let config = put(dir, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers});
    let mut manifest =
        put(dir, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

pub fn hello(dir: &Path) -> PathBuf {
    let program = fs::read(busybox()).unwrap();
    layout(
        dir,
        &[&[("bin/busybox", &program)], &[("hello", b"hello\n")]],
        json!({"Cmd": ["/bin/busybox", "cat", "/hello"]}),
    )
}

pub fn push_args<'a>(layout: &'a str, target: &'a str, credentials: &'a str) -> Vec<&'a str> {
    vec![
        "--insecure-policy",
        "copy",
        "--quiet",
        "--dest-tls-verify=false",
        "--dest-creds",
        credentials,
        layout,
        target,
    ]
}
