//! With stock clients: skopeo pushes and pulls, curl asks, and our own puller fetches what skopeo pushed.

use crate::Registry;
use naru_image::oci::{self, ImageConfig, media_type};
use naru_image::{
    Base, CommitOptions, Config, Credential, Digest, ImageStore, PullPolicy, PushEvent, Reference,
};
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
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(Config { dir: dir.path().join("images"), ..Config::default() }).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Registry::new(store.clone(), TOKEN.into()).router();
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
    let second = ImageStore::open(Config { dir: it.dir.path().join("second"), ..Config::default() }).unwrap();
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
    let third = ImageStore::open(Config { dir: it.dir.path().join("third"), ..Config::default() }).unwrap();
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
