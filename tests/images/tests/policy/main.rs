//! Which images may run, as a team sees it: an ImagePolicy by kubectl, images signed with openssl in cosign's form
//! and carried by skopeo and crane, pods that are refused before anything of them runs, and Naru's own builds.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use base64::Engine as _;
use naru_image_tests::harness::{Daemon, busybox, text, tool};
use naru_image_tests::layout::{done, finish, layout, push_args, put, run};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

struct Team {
    daemon: Daemon,
    scratch: tempfile::TempDir,
    host: String,
    credentials: String,
}

impl Team {
    fn start() -> Self {
        let daemon = Daemon::start();
        let host = daemon.http().trim_start_matches("http://").to_owned();
        let credentials = format!("naru:{}", daemon.push_token());
        Self { daemon, scratch: tempfile::tempdir().unwrap(), host, credentials }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn kubectl(&self, args: &[&str]) -> String {
        done(self.daemon.kubectl(args))
    }

    /// A key pair; returns the file of the private half and the public half as PEM.
    fn key(&self, name: &str) -> (PathBuf, String) {
        let path = self.path(name);
        let file = path.display().to_string();
        let curve = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &file];
        done(run("openssl", &curve));
        let public = done(run("openssl", &["pkey", "-in", &file, "-pubout"]));
        (path, public)
    }

    /// Pushes an image that says `word` and returns its digest.
    fn push(&self, name: &str, word: &str) -> String {
        let program = fs::read(busybox()).unwrap();
        let dir = self.path(&name.replace(['/', ':'], "-"));
        let image =
            layout(&dir, &[&[("bin/busybox", &program)]], json!({"Cmd": ["/bin/busybox", "echo", word]}));
        self.copy(&image, name);
        done(run(tool("crane"), &["digest", "--insecure", &format!("{}/{name}", self.host)]))
            .trim()
            .to_owned()
    }

    fn copy(&self, layout: &Path, name: &str) {
        let source = format!("oci:{}:1", layout.display());
        let target = format!("docker://{}/{name}", self.host);
        done(run("skopeo", &push_args(&source, &target, &self.credentials)));
    }

    /// Signs `digest` and puts the signature where cosign puts that of `beside`.
    fn sign(&self, repository: &str, beside: &str, digest: &str, key: &Path) {
        let payload = json!({"critical": {"identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": digest}, "type": "cosign container image signature"},
            "optional": null})
        .to_string();
        let (text, signature) = (self.path("payload"), self.path("signature"));
        fs::write(&text, &payload).unwrap();
        let [key, out, text] = [key, &signature, &text].map(|it| it.display().to_string());
        done(run("openssl", &["dgst", "-sha256", "-sign", &key, "-out", &out, &text]));
        let signature = base64::engine::general_purpose::STANDARD.encode(fs::read(&signature).unwrap());

        let dir = tempfile::tempdir_in(self.scratch.path()).unwrap();
        let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
        let mut layer = put(dir.path(), kind, payload.as_bytes());
        let config = json!({"architecture": "", "os": "", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
        finish(dir.path(), config, vec![layer]);
        self.copy(dir.path(), &format!("{repository}:{}.sig", beside.replace(':', "-")));
    }

    fn policy(&self, name: &str, spec: Value) {
        let object = json!({"apiVersion": "naru.dev/v1", "kind": "ImagePolicy", "metadata": {"name": name}, "spec": spec});
        done(self.daemon.kubectl_with_input(&["apply", "-f", "-"], &object.to_string()));
    }

    fn start_pod(&self, namespace: &str, name: &str, image: &str) {
        self.kubectl(&["run", name, "-n", namespace, "--restart=Never", "--image", image]);
    }

    /// The message of a pod that was refused.
    fn refused(&self, namespace: &str, name: &str) -> String {
        let reason = "{.status.containerStatuses[0].state.waiting.reason}";
        let wait = format!("--for=jsonpath={reason}=SignatureValidationFailed");
        self.kubectl(&["wait", "-n", namespace, &format!("pod/{name}"), &wait, "--timeout=30s"]);
        let message = "jsonpath={.status.containerStatuses[0].state.waiting.message}";
        let message = self.kubectl(&["get", "pod", name, "-n", namespace, "-o", message]);
        let started = self.kubectl(&["get", "pod", name, "-n", namespace, "-o", "jsonpath={.status.phase}"]);
        assert_eq!(started, "Pending", "nothing of it ran: {message}");
        message
    }

    /// What a pod printed that came to its end.
    fn said(&self, namespace: &str, name: &str) -> String {
        let ended = "--for=jsonpath={.status.phase}=Succeeded";
        let waited =
            self.daemon.kubectl(&["wait", "-n", namespace, &format!("pod/{name}"), ended, "--timeout=60s"]);
        if !waited.status.success() {
            panic!("{}\n{}", text(&waited), self.kubectl(&["describe", "pod", name, "-n", namespace]));
        }
        self.kubectl(&["logs", "-n", namespace, name])
    }
}

#[test]
fn only_what_is_signed_runs_where_a_policy_says_so() {
    let team = Team::start();
    team.kubectl(&["create", "namespace", "prod"]);
    let ((key, public), (strange, _)) = (team.key("key"), team.key("strange"));
    let web = team.push("shop/web:1", "one");
    let image = format!("{}/shop/web", team.host);
    let authority = json!({"name": "release", "key": {"data": public}});
    team.policy("signed", json!({"namespaces": ["prod"], "authorities": [authority]}));

    team.start_pod("prod", "unsigned", &format!("{image}:1"));
    let message = team.refused("prod", "unsigned");
    for part in ["ImagePolicy `signed`", &web, "nothing is signed about it", "cosign sign --key KEY"] {
        assert!(message.contains(part), "{message}");
    }
    team.start_pod("default", "elsewhere", &format!("{image}:1"));
    assert_eq!(team.said("default", "elsewhere"), "one\n", "the policy is about another namespace");
    let asked = team.daemon.naru(&["image", "verify", "-n", "prod", &format!("{image}:1")]);
    assert!(!asked.status.success() && text(&asked).contains("signed: refuses"), "{}", text(&asked));

    // Signed by somebody else; then by whom the policy names, and the pod that was refused starts by itself.
    team.sign("shop/web", &web, &web, &strange);
    team.start_pod("prod", "strange", &format!("{image}:1"));
    assert!(team.refused("prod", "strange").contains("not signed with its key"));
    team.sign("shop/web", &web, &web, &key);
    assert_eq!(team.said("prod", "unsigned"), "one\n");
    let asked = team.daemon.naru(&["image", "verify", "-n", "prod", &format!("{image}@{web}")]);
    assert!(asked.status.success() && text(&asked).contains("vouched for (release)"), "{}", text(&asked));

    // The name is moved to other content, and the good signature put beside it.
    let other = team.push("shop/web:1", "changed");
    assert_ne!(other, web);
    team.sign("shop/web", &other, &web, &key);
    team.kubectl(&[
        "run",
        "moved",
        "-n",
        "prod",
        "--restart=Never",
        "--image",
        &format!("{image}:1"),
        "--image-pull-policy=Always",
    ]);
    let message = team.refused("prod", "moved");
    assert!(message.contains("about another image") && message.contains(&web), "{message}");

    // A policy that only warns.
    team.kubectl(&["patch", "imagepolicy", "signed", "--type=merge", "-p", r#"{"spec":{"mode":"warn"}}"#]);
    team.kubectl(&[
        "run",
        "warned",
        "-n",
        "prod",
        "--restart=Never",
        "--image",
        &format!("{image}:1"),
        "--image-pull-policy=Always",
    ]);
    assert_eq!(team.said("prod", "warned"), "changed\n");
    let events =
        team.kubectl(&["get", "events", "-n", "prod", "--field-selector=involvedObject.name=warned"]);
    assert!(events.contains("PolicyViolation") && events.contains("about another image"), "{events}");
    team.daemon.destroy();
}

#[test]
fn what_this_daemon_built_vouches_for_itself() {
    let team = Team::start();
    let pushed = team.push("shop/web:1", "pushed");
    let context = team.path("context");
    fs::create_dir_all(&context).unwrap();
    fs::copy(busybox(), context.join("busybox")).unwrap();
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"true\"]\nCMD [\"/bin/busybox\", \"echo\", \"built\"]\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    // Everywhere, so that the build's own steps are judged, too.
    team.policy("ours", json!({"authorities": [{"name": "naru", "builtHere": true}]}));
    done(team.daemon.naru(&["build", "-q", "-t", "web:built", &context.display().to_string()]));
    team.kubectl(&["run", "built", "--restart=Never", "--image-pull-policy=Never", "--image=web:built"]);
    assert_eq!(team.said("default", "built"), "built\n");
    team.start_pod("default", "pushed", &format!("{}/shop/web@{pushed}", team.host));
    let message = team.refused("default", "pushed");
    assert!(
        message.contains("it was not built by this daemon") && message.contains("naru build"),
        "{message}"
    );

    // With its own key, only for some sources.
    let attestation = json!({"predicateType": "https://slsa.dev/provenance/v1", "sources": ["git+https://git.example.com/*"]});
    let authority = json!({"name": "naru", "builtHere": true, "attestations": [attestation]});
    team.policy("ours", json!({"authorities": [authority]}));
    team.kubectl(&["run", "again", "--restart=Never", "--image-pull-policy=Never", "--image=web:built"]);
    let message = team.refused("default", "again");
    assert!(message.contains("its attested source (none) is none of"), "{message}");

    // What nobody would read is not taken.
    for (spec, why) in [
        (json!({"authorities": [{"name": "x", "builtHere": true}], "nodes": ["a"]}), "unknown field"),
        (
            json!({"authorities": [{"name": "x", "builtHere": true, "key": {"data": "-----BEGIN PUBLIC KEY-----"}}]}),
            "either a key",
        ),
        (json!({"authorities": []}), "authorities"),
        (json!({"mode": "audit", "authorities": [{"name": "x", "builtHere": true}]}), "mode"),
    ] {
        let object = json!({"apiVersion": "naru.dev/v1", "kind": "ImagePolicy", "metadata": {"name": "bad"}, "spec": spec});
        let output = team.daemon.kubectl_with_input(&["apply", "-f", "-"], &object.to_string());
        assert!(!output.status.success() && text(&output).contains(why), "{spec}: {}", text(&output));
    }
    team.daemon.destroy();
}
