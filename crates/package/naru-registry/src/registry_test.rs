//! With stock clients: skopeo pushes and pulls, curl asks, and our own puller fetches what skopeo pushed.

use crate::{Auth, Config, Registry};
use naru_image::oci::{self, ImageConfig, media_type};
use naru_image::{Base, CommitOptions, Credential, Digest, ImageStore, PullPolicy, PushEvent, Reference};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use tokio::process::Command;

const TOKEN: &str = "secret";

struct Fixture {
    dir: tempfile::TempDir,
    store: ImageStore,
    address: SocketAddr,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), false, vec![]).await
    }

    async fn start_in(dir: tempfile::TempDir, is_private: bool, upstreams: Vec<String>) -> Self {
        let store =
            ImageStore::open(naru_image::Config { dir: dir.path().join("images"), ..Default::default() })
                .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let auth = Auth { token: TOKEN.into(), client: None, jobs: None, is_private };
        let router =
            Registry::open(store.clone(), Config { auth, upstreams, quotas: Vec::new() }).unwrap().router();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { dir, store, address }
    }

    fn image(&self, name: &str, content: &[u8], base: Base) -> Digest {
        let root = self.store.scratch_dir().unwrap();
        fs::write(root.path().join("file"), content).unwrap();
        let layer = self.store.add_layer(root, CommitOptions::default()).unwrap();
        let config = ImageConfig {
            os: "linux".into(),
            architecture: oci::architecture().into(),
            ..Default::default()
        };
        let digest = self.store.put_image(&config, &[layer], base).unwrap();
        self.store.tag(&Reference::parse(name).unwrap(), &digest, media_type::MANIFEST).unwrap();
        digest
    }

    /// Status and body of a request.
    async fn curl(&self, args: &[&str], path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.address);
        let output = Command::new("curl")
            .args(["-s", "-o", "-", "-w", "\n%{http_code}"])
            .args(args)
            .arg(url)
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }
}

async fn skopeo(args: &[&str]) -> Output {
    Command::new("skopeo").arg("--insecure-policy").args(args).output().await.unwrap()
}

fn is_success(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pulls_pushes_and_lists() {
    let it = Fixture::start().await;
    let digest = it.image("naru.local/shop/web:1", b"hello", Base::Own);
    let ours = format!("docker://{}/shop/web:1", it.address);
    let out = it.dir.path().join("out");
    is_success(&skopeo(&["copy", "--src-tls-verify=false", &ours, &format!("dir:{}", out.display())]).await);
    assert_eq!(Digest::of(fs::read(out.join("manifest.json")).unwrap()), digest);

    let other = format!("docker://{}/copied/web:2", it.address);
    let denied = skopeo(&["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &ours, &other]).await;
    assert!(
        !denied.status.success() && String::from_utf8_lossy(&denied.stderr).contains("unauthorized"),
        "no token"
    );
    let pushed = skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        "--dest-creds",
        "any:secret",
        &format!("dir:{}", out.display()),
        &other,
    ])
    .await;
    is_success(&pushed);
    let wrong = skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        "--dest-creds",
        "any:wrong",
        &format!("dir:{}", out.display()),
        &other,
    ])
    .await;
    assert!(!wrong.status.success());
    let (status, body) = it.curl(&[], "/v2/copied/web/tags/list").await;
    assert_eq!((status, body.as_str()), (200, r#"{"name":"copied/web","tags":["2"]}"#));
    let (_, body) = it.curl(&[], "/v2/_catalog?n=1").await;
    assert_eq!(body, r#"{"repositories":["copied/web"]}"#);
    let image = it.store.ensure("naru.local/copied/web:2", PullPolicy::Never).await.unwrap();
    assert_eq!(image.view().read(Path::new("file"), 10).unwrap().unwrap(), b"hello");
    assert_eq!(fs::read_dir(it.store.dir().join("tmp")).unwrap().count(), 0, "no upload is left behind");

    // Deleting a name leaves the other.
    let auth = ["-u", "any:secret", "-X", "DELETE"];
    assert_eq!(it.curl(&auth, "/v2/copied/web/manifests/2").await.0, 202);
    assert_eq!(it.curl(&[], "/v2/copied/web/manifests/2").await.0, 404);
    assert_eq!(it.curl(&[], "/v2/shop/web/manifests/1").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_puller_fetches_resumes_and_checks() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let it = Fixture::start().await;
    let random: Vec<u8> = (0..300_000u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let digest = it.image("naru.local/shop/web:1", &random, Base::Own);
    let second =
        ImageStore::open(naru_image::Config { dir: it.dir.path().join("second"), ..Default::default() })
            .unwrap();
    // Half of the layer came before the line broke.
    let manifest = it.store.manifest(&digest).unwrap();
    let layer = &manifest.layers[0].digest;
    let bytes = fs::read(it.store.blob_path(layer)).unwrap();
    fs::write(second.dir().join("tmp").join(format!("pull-{}", layer.hex())), &bytes[..bytes.len() / 2])
        .unwrap();
    let name = format!("{}/shop/web:1", it.address);
    let image = second.ensure(&name, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(image.digest, digest);
    assert_eq!(image.view().read(Path::new("file"), 1 << 20).unwrap().unwrap(), random);
    assert!(
        second
            .ensure(&format!("{}/shop/none:1", it.address), PullPolicy::IfNotPresent)
            .await
            .unwrap_err()
            .to_string()
            .contains("no image")
    );

    // A registry that sends other bytes than it promised is not believed.
    let mut lie = bytes.clone();
    lie[1000] ^= 1;
    fs::write(it.store.blob_path(layer), &lie).unwrap();
    let third =
        ImageStore::open(naru_image::Config { dir: it.dir.path().join("third"), ..Default::default() })
            .unwrap();
    let error = third.ensure(&name, PullPolicy::IfNotPresent).await.unwrap_err();
    assert!(error.to_string().contains("has other content"), "{error}");
    assert_eq!(third.blob_size(layer), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_to_another_registry_is_there_whole_and_sent_once() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (ours, other) = (Fixture::start().await, Fixture::start().await);
    let digest = ours.image("naru.local/shop/web:1", b"hello", Base::Own);
    let target = Reference::parse(&format!("{}/copied/web:2", other.address)).unwrap();
    let nobody = ours.store.push(&digest, &target, &[], &|_| ()).await.unwrap_err();
    assert!(nobody.to_string().contains("does not let us write"), "{nobody}");
    let credential =
        Credential { registry: target.registry.clone(), user: "any".into(), password: TOKEN.into() };
    let events = std::sync::Mutex::new(Vec::new());
    let push = async || {
        events.lock().unwrap().clear();
        let hear = |it| events.lock().unwrap().push(it);
        ours.store.push(&digest, &target, std::slice::from_ref(&credential), &hear).await.unwrap();
        events.lock().unwrap().iter().filter(|it| matches!(it, PushEvent::Pushed(_))).count()
    };
    assert_eq!(push().await, 2, "a layer and a configuration");
    assert_eq!(push().await, 0, "everything is there already");
    let image = other.store.ensure("naru.local/copied/web:2", PullPolicy::Never).await.unwrap();
    assert_eq!(image.view().read(Path::new("file"), 10).unwrap().unwrap(), b"hello");
    let host = ours.image("naru.local/shop/web:host", b"x", Base::Host);
    let refused =
        ours.store.push(&host, &target, std::slice::from_ref(&credential), &|_| ()).await.unwrap_err();
    assert!(refused.to_string().contains("lies over this machine's own root"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_follow_the_specification() {
    let it = Fixture::start().await;
    let auth = ["-H", "Authorization: Bearer secret"];
    let begin = async || {
        let (status, text) =
            it.curl(&[&auth[..], &["-i", "-X", "POST"]].concat(), "/v2/a/b/blobs/uploads/").await;
        assert_eq!(status, 202);
        let line =
            text.lines().find_map(|it| it.to_ascii_lowercase().strip_prefix("location: ").map(str::to_owned));
        line.unwrap().trim().to_owned()
    };
    let digest = Digest::of("hello world");
    let path = begin().await;
    let chunk = |range: &'static str, data: &'static str| {
        let header = format!("Content-Range: {range}");
        let (path, it) = (path.clone(), &it);
        async move {
            it.curl(
                &[
                    "-H",
                    "Authorization: Bearer secret",
                    "-H",
                    &header,
                    "-H",
                    "Expect:",
                    "-X",
                    "PATCH",
                    "--data-binary",
                    data,
                ],
                &path,
            )
            .await
            .0
        }
    };
    assert_eq!(chunk("0-4", "hello").await, 202);
    assert_eq!(chunk("3-8", "lo wor").await, 416, "overlapping");
    assert_eq!(chunk("7-9", "xyz").await, 416, "out of order");
    assert_eq!(chunk("5-10", " world").await, 202);
    let put = [&auth[..], &["-X", "PUT"]].concat();
    assert_eq!(
        it.curl(&put, &format!("{path}?digest={}", Digest::of("other"))).await.0,
        400,
        "not what was promised"
    );
    assert_eq!(it.curl(&put, &format!("{path}?digest={digest}")).await.0, 404, "a refused upload is over");
    let path = begin().await;
    let whole = [&put[..], &["--data-binary", "hello world"]].concat();
    assert_eq!(it.curl(&whole, &format!("{path}?digest={digest}")).await.0, 201);
    let (status, body) = it.curl(&["-H", "Range: bytes=6-"], &format!("/v2/a/b/blobs/{digest}")).await;
    assert_eq!((status, body.as_str()), (206, "world"));
    assert_eq!(it.curl(&["-H", "Range: bytes=99-"], &format!("/v2/a/b/blobs/{digest}")).await.0, 416);
    assert_eq!(it.curl(&["-I"], &format!("/v2/a/b/blobs/{digest}")).await.0, 200);
    let once = [&auth[..], &["-X", "POST", "--data-binary", "once"]].concat();
    assert_eq!(it.curl(&once, &format!("/v2/a/b/blobs/uploads/?digest={}", Digest::of("once"))).await.0, 201);
    let mount = [&auth[..], &["-X", "POST"]].concat();
    assert_eq!(it.curl(&mount, &format!("/v2/c/blobs/uploads/?mount={digest}&from=a/b")).await.0, 201);
    assert_eq!(it.curl(&mount, &format!("/v2/d/blobs/uploads/?mount={digest}&from=a/none")).await.0, 202);
    assert_eq!(it.curl(&["-I"], &format!("/v2/c/blobs/{digest}")).await.0, 200);
    assert_eq!(it.curl(&["-I"], &format!("/v2/d/blobs/{digest}")).await.0, 404, "in another repository only");

    let long_tag = "t".repeat(129);
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{digest}"}},"layers":[{{"digest":"{}"}}]}}"#,
        Digest::of("absent")
    );
    let put_manifest = [&put[..], &["--data-binary", &manifest]].concat();
    for (args, path, status, code) in [
        (&put_manifest, "/v2/a/b/manifests/v1".to_owned(), 404, "MANIFEST_BLOB_UNKNOWN"),
        (&put_manifest, format!("/v2/a/b/manifests/{long_tag}"), 400, "MANIFEST_INVALID"),
        (&put_manifest, "/v2/A/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        (&put_manifest, "/v2/a/%2e%2e/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        (&put_manifest, format!("/v2/a/b/manifests/{}", Digest::of("x")), 400, "DIGEST_INVALID"),
        (&put_manifest, "/v2/a/b/manifests/sha512:abc".to_owned(), 400, "DIGEST_INVALID"),
        (&vec![], "/v2/a/b/manifests/v1".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (&vec![], format!("/v2/a/b/manifests/{digest}"), 404, "MANIFEST_UNKNOWN"),
        (&vec![], format!("/v2/a/b/blobs/{}", Digest::of("absent")), 404, "BLOB_UNKNOWN"),
        (&vec![], "/v2/none/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        (&vec!["-X", "PATCH"], "/v2/a/b/blobs/uploads/x".to_owned(), 401, "UNAUTHORIZED"),
        (&put, format!("/v2/a/b/blobs/uploads/no-such?digest={digest}"), 404, "BLOB_UPLOAD_UNKNOWN"),
    ] {
        let (got, body) = it.curl(args, &path).await;
        assert!(got == status && body.contains(code), "{path}: {got} {body}, want {status} {code}");
    }
    let bad = [&put[..], &["--data-binary", "{"]].concat();
    assert_eq!(it.curl(&bad, "/v2/a/b/manifests/v1").await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_over_the_host_does_not_leave() {
    let it = Fixture::start().await;
    it.image("naru.local/shop/web:host", b"x", Base::Host);
    let (status, body) = it.curl(&[], "/v2/shop/web/manifests/host").await;
    assert!(status == 403 && body.contains("lies over this machine's own root"), "{status} {body}");
}

fn bearer() -> [&'static str; 2] {
    ["-H", "Authorization: Bearer secret"]
}

impl Fixture {
    async fn send(&self, method: &str, path: &str, kind: &str, body: &str) -> (u16, String) {
        let kind = format!("Content-Type: {kind}");
        let args = [&bearer()[..], &["-X", method, "-H", &kind, "-i", "--data-binary", body]].concat();
        self.curl(&args, path).await
    }

    /// Pushes a blob and returns its descriptor.
    async fn blob(&self, name: &str, kind: &str, content: &str) -> serde_json::Value {
        let digest = Digest::of(content);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        assert_eq!(self.send("POST", &path, "application/octet-stream", content).await.0, 201);
        serde_json::json!({"mediaType": kind, "digest": digest, "size": content.len()})
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_after_a_restart() {
    let it = Fixture::start().await;
    let begun = it.send("POST", "/v2/a/blobs/uploads/", "text/plain", "").await.1;
    let location = begun.lines().find_map(|it| it.strip_prefix("location: ")).unwrap().trim().to_owned();
    assert_eq!(it.send("PATCH", &location, "application/octet-stream", "hello").await.0, 202);
    let it = Fixture::start_in(it.dir, false, vec![]).await;
    let (status, text) = it.curl(&[&bearer()[..], &["-i"]].concat(), &location).await;
    assert!(status == 204 && text.contains("range: 0-4"), "{text}");
    assert_eq!(it.send("PATCH", &location, "application/octet-stream", " world").await.0, 202);
    let digest = Digest::of("hello world");
    assert_eq!(it.send("PUT", &format!("{location}?digest={digest}"), "text/plain", "").await.0, 201);
    assert_eq!(it.curl(&[], &format!("/v2/a/blobs/{digest}")).await, (200, "hello world".into()));
    assert_eq!(fs::read_dir(it.store.dir().join("registry/uploads")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_refers_to_an_image_is_listed_kept_with_it_and_forgotten_with_it() {
    let it = Fixture::start().await;
    let config = it.blob("a", "application/vnd.oci.empty.v1+json", "{}").await;
    let layer = it.blob("a", "text/spdx+json", r#"{"spdxVersion":"SPDX-2.3"}"#).await;
    let digest = it.image("naru.local/a:1", b"hello", Base::Own);
    let size = it.store.blob_size(&digest).unwrap();
    let subject = serde_json::json!({"mediaType": media_type::MANIFEST, "digest": digest, "size": size});
    let sbom = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": config,
        "artifactType": "application/spdx+json", "layers": [layer], "subject": subject,
        "annotations": {"who": "test"}})
    .to_string();
    let name = Digest::of(&sbom);
    let (status, text) =
        it.send("PUT", &format!("/v2/a/manifests/{name}"), media_type::MANIFEST, &sbom).await;
    assert!(status == 201 && text.contains(&format!("oci-subject: {digest}")), "{text}");
    let list = async |query: &str| {
        let (status, text) = it.curl(&[], &format!("/v2/a/referrers/{digest}{query}")).await;
        assert_eq!(status, 200);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["manifests"].clone()
    };
    let listed = list("").await;
    assert_eq!(listed[0]["digest"], name.as_str());
    assert_eq!(
        (&listed[0]["artifactType"], &listed[0]["annotations"]["who"]),
        (&"application/spdx+json".into(), &"test".into())
    );
    assert_eq!(list("?artifactType=other").await, serde_json::json!([]));

    let gc = || it.store.gc(&Default::default(), std::time::Duration::ZERO).unwrap();
    gc();
    assert!(it.store.blob_size(&name).is_some(), "it lives as long as its image");
    let auth = [&bearer()[..], &["-X", "DELETE"]].concat();
    assert_eq!(it.curl(&auth, "/v2/a/manifests/1").await.0, 202);
    gc();
    assert!(it.store.blob_size(&name).is_none());
    assert_eq!(it.curl(&[], &format!("/v2/a/manifests/{name}")).await.0, 404);
    assert_eq!(list("").await, serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_a_type_that_it_accepts() {
    let it = Fixture::start().await;
    let digest = it.image("naru.local/a:1", b"hello", Base::Own);
    let size = it.store.blob_size(&digest).unwrap();
    let platform = |architecture: &str| serde_json::json!({"os": "linux", "architecture": architecture});
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": [
        {"mediaType": media_type::MANIFEST, "digest": digest, "size": size, "platform": platform(oci::architecture())}]})
    .to_string();
    let (status, text) = it.send("PUT", "/v2/a/manifests/many", media_type::INDEX, &index).await;
    assert_eq!(status, 201, "{text}");
    let get = async |accept: &str| {
        let accept = format!("Accept: {accept}");
        let (status, text) = it.curl(&["-i", "-H", &accept], "/v2/a/manifests/many").await;
        let found = text.lines().find_map(|it| it.strip_prefix("docker-content-digest: "));
        (status, found.map(|it| it.trim().to_owned()))
    };
    let both = format!("{}, {}", media_type::MANIFEST, media_type::INDEX);
    assert_eq!(get(&both).await, (200, Some(Digest::of(&index).to_string())));
    assert_eq!(get("*/*").await, (200, Some(Digest::of(&index).to_string())));
    assert_eq!(get(media_type::MANIFEST).await, (200, Some(digest.to_string())), "the one for this machine");
    assert_eq!(get("application/vnd.docker.distribution.manifest.v1+json").await.0, 404);
    let image = it.store.ensure("naru.local/a:many", PullPolicy::Never).await.unwrap();
    assert_eq!(image.digest, digest, "and so do our own containers");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_another_registry_come_through_ours_and_stay() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let far = Fixture::start().await;
    let digest = far.image("naru.local/library/box:1", b"hello", Base::Own);
    let upstream = far.address.to_string();
    let near = Fixture::start_in(tempfile::tempdir().unwrap(), false, vec![upstream.clone()]).await;
    let manifest = format!("/v2/{upstream}/library/box/manifests/1");
    let (status, text) = near.curl(&["-i"], &manifest).await;
    assert!(status == 400, "a port is no part of a repository's name: {status} {text}");
    // As containerd asks a mirror.
    let manifest = format!("/v2/library/box/manifests/1?ns={upstream}");
    let (status, text) = near.curl(&["-i"], &manifest).await;
    assert!(status == 200 && text.contains(digest.as_str()), "{status} {text}");
    let layer = far.store.manifest(&digest).unwrap().layers[0].digest.clone();
    assert_eq!(near.curl(&["-I"], &format!("/v2/library/box/blobs/{layer}?ns={upstream}")).await.0, 200);
    assert_eq!(near.store.blob_size(&layer), far.store.blob_size(&layer));
    // What is here is served while the other registry has lost it.
    far.store.untag(&Reference::parse("naru.local/library/box:1").unwrap()).unwrap();
    assert_eq!(near.curl(&[], &manifest).await.0, 200);
    assert_eq!(near.curl(&[], &format!("/v2/library/none/manifests/1?ns={upstream}")).await.0, 404);
    let other = "/v2/library/box/manifests/1?ns=127.0.0.1:9";
    assert_eq!(near.curl(&[], other).await.0, 404, "a registry that nobody named is not asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_registry_shows_nothing_to_strangers() {
    let it = Fixture::start_in(tempfile::tempdir().unwrap(), true, vec![]).await;
    let digest = it.image("naru.local/a:1", b"hello", Base::Own);
    let layer = it.store.manifest(&digest).unwrap().layers[0].digest.clone();
    for path in ["/v2/a/manifests/1", &format!("/v2/a/blobs/{layer}"), "/v2/a/tags/list", "/v2/_catalog"] {
        assert_eq!(it.curl(&[], path).await.0, 401, "{path}");
        assert_eq!(it.curl(&bearer(), path).await.0, 200, "{path}");
        assert_eq!(it.curl(&["-H", "Authorization: Bearer wrong"], path).await.0, 401, "{path}");
    }
    let (_, text) = it.curl(&["-i"], "/v2/a/manifests/1").await;
    assert!(text.contains(r#"scope="repository:a:pull""#), "{text}");
    // A token for one repository opens this one alone.
    let token = async |scope: &str| {
        let (status, text) =
            it.curl(&["-u", "me:secret"], &format!("/v2/token?service=naru&scope={scope}")).await;
        assert_eq!(status, 200);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        format!("Authorization: Bearer {}", answer["token"].as_str().unwrap())
    };
    let for_a = token("repository:a:pull").await;
    assert_eq!(it.curl(&["-H", &for_a], "/v2/a/manifests/1").await.0, 200);
    assert_eq!(it.curl(&["-H", &for_a, "-X", "DELETE"], "/v2/a/manifests/1").await.0, 401);
    let for_b = token("repository:b:pull,push").await;
    assert_eq!(it.curl(&["-H", &for_b], "/v2/a/manifests/1").await.0, 401);
    // Mounting needs the right to read where the blob is.
    let mount = format!("/v2/b/blobs/uploads/?mount={layer}&from=a");
    assert_eq!(it.curl(&["-H", &for_b, "-X", "POST"], &mount).await.0, 202);
    let form =
        ["-d", "grant_type=password&username=x&password=secret&service=naru&scope=repository%3Aa%3Apull"];
    let (status, text) = it.curl(&form, "/v2/token").await;
    assert!(status == 200 && text.contains("naru1."), "{text}");
}
