//! The gateway as curl and kubectl see it: shares of traffic, certificates by name, redirects.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use naru_image_tests::harness::{Daemon, naru_binary, text};
use naru_image_tests::make_busybox_image;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const SHOP: &str = "name: shop
services:
  shop:
    image: busybox
    command: [sh, -c, 'mkdir -p /www; echo old > /www/index.html; exec httpd -f -p 80 -h /www']
    healthcheck: {test: 'netstat -ltn | grep -q :80'}
    stop_grace_period: 0s
    x-naru: {host: [shop.test, a.wild.test, b.wild.test], port: 80}
  next:
    image: busybox
    command: [sh, -c, 'mkdir -p /www; echo new > /www/index.html; exec httpd -f -p 80 -h /www']
    healthcheck: {test: 'netstat -ltn | grep -q :80'}
    stop_grace_period: 0s
    expose: [80]
";

/// A daemon with the shop on it.
fn shop() -> Daemon {
    let daemon = Daemon::start();
    make_busybox_image(&daemon);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("compose.yaml"), SHOP).unwrap();
    let up = Command::new(naru_binary())
        .args(["--data-dir", &daemon.data_dir().display().to_string(), "up"])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(up.status.success(), "{}", text(&up));
    daemon
}

fn curl(args: &[&str]) -> Output {
    Command::new("curl").args(["-sS", "-m", "20", "--noproxy", "*"]).args(args).output().unwrap()
}

fn kubectl(daemon: &Daemon, args: &[&str], input: &str) {
    let output = daemon.kubectl_with_input(args, input);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
}

/// Tries until it comes true.
fn until(what: &str, mut is_true: impl FnMut() -> Result<(), String>) {
    let began = Instant::now();
    while let Err(why) = is_true() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}: {why}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[test]
fn a_weight_of_ten_is_a_tenth_of_the_requests() {
    let daemon = shop();
    let gateway = daemon.endpoints["gateway"].as_str().unwrap().to_owned();
    let answer = curl(&["-f", "-H", "Host: shop.test", &gateway]);
    assert_eq!(text(&answer), "old\n");
    let patch = r#"[{"op": "replace", "path": "/spec/rules/0/backendRefs", "value": [
        {"name": "shop", "port": 80, "weight": 90}, {"name": "next", "port": 80, "weight": 10}]}]"#;
    kubectl(&daemon, &["patch", "httproute", "shop", "--type", "json", "-p", patch], "");
    until("the new share is served", || {
        match curl(&["-H", "Host: shop.test", &format!("{gateway}/[1-20]")]).stdout {
            // Neither has these pages; who answered is in a header.
            _ if shares(&gateway, 20).1 > 0 => Ok(()),
            other => Err(String::from_utf8_lossy(&other).into_owned()),
        }
    });
    let (old, new) = shares(&gateway, 2000);
    assert_eq!(old + new, 2000);
    assert!((160..=240).contains(&new), "{new} of 2000 instead of 200");
    daemon.destroy();
}

/// How many of so many requests each of the two services answered.
fn shares(gateway: &str, count: usize) -> (usize, usize) {
    let output =
        curl(&["-D", "-", "-o", "/dev/null", "-H", "Host: shop.test", &format!("{gateway}/?n=[1-{count}]")]);
    let heads = text(&output).to_ascii_lowercase();
    let of = |name: &str| heads.lines().filter(|it| it.trim() == format!("x-naru-backend: {name}")).count();
    (of("shop"), of("next"))
}

/// An authority of our own, and its certificates.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Writes NAME.crt and NAME.key for these hosts.
    fn issue(&self, name: &str, hosts: &[&str]) {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(hosts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        std::fs::write(
            self.path(&format!("{name}.crt")),
            params.signed_by(&key, &self.issuer).unwrap().pem(),
        )
        .unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// Makes or renews a Secret as people do.
    fn secret(&self, daemon: &Daemon, secret: &str, crt: &str, key: &str) {
        let made = daemon.kubectl(&[
            "create",
            "secret",
            "tls",
            secret,
            "--dry-run=client",
            "-o",
            "yaml",
            "--cert",
            &self.path(&format!("{crt}.crt")),
            "--key",
            &self.path(&format!("{key}.key")),
        ]);
        assert!(made.status.success(), "{}", text(&made));
        kubectl(daemon, &["apply", "-f", "-"], &String::from_utf8(made.stdout).unwrap());
    }
}

/// Asks a host over TLS: protocol, code, name in the certificate; or why it did not work.
fn ask(daemon: &Daemon, authority: &Authority, host: &str, more: &[&str]) -> String {
    let address = daemon.endpoints["gateway_tls"].as_str().unwrap().trim_start_matches("https://").to_owned();
    let port = address.rsplit(':').next().unwrap();
    let output = Command::new("curl")
        .args([
            "-sS",
            "-v",
            "-m",
            "20",
            "--noproxy",
            "*",
            "-o",
            "/dev/null",
            "-w",
            "HTTP %{http_version} %{http_code}",
        ])
        .args(["--cacert", &authority.path("ca.pem"), "--resolve", &format!("{host}:{port}:127.0.0.1")])
        .args(more)
        .arg(format!("https://{host}:{port}/"))
        .output()
        .unwrap();
    let all = text(&output);
    let subject = all.lines().find_map(|it| it.split("subject: CN=").nth(1)).unwrap_or("-").trim().to_owned();
    let code =
        all.lines().find_map(|it| it.find("HTTP 1.1 ").or(it.find("HTTP 2 ")).map(|at| it[at..].to_owned()));
    match output.status.success() {
        true => {
            format!("{} by {subject}", code.unwrap_or_default().split('*').next().unwrap_or_default().trim())
        }
        false => all.lines().filter(|it| it.contains("curl: (")).collect(),
    }
}

fn condition(daemon: &Daemon, listener: &str, kind: &str) -> Option<(String, String, String)> {
    let gateways = daemon.get("gateways");
    let gateway = gateways.iter().find(|it| it["metadata"]["name"] == "tls")?;
    let listeners = gateway["status"]["listeners"].as_array()?;
    let listener = listeners.iter().find(|it| it["name"] == listener)?;
    let found = listener["conditions"].as_array()?.iter().find(|it| it["type"] == kind)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

#[test]
fn certificates_are_shown_by_name_and_change_without_a_restart() {
    let daemon = shop();
    let authority = Authority::new();
    authority.issue("shop", &["shop.test"]);
    authority.issue("wild", &["*.wild.test"]);
    authority.issue("renewed", &["shop.test"]);
    authority.secret(&daemon, "shop", "shop", "shop");
    authority.secret(&daemon, "wild", "wild", "wild");
    let gateway = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: tls}
spec:
  gatewayClassName: naru
  listeners:
  - {name: http, protocol: HTTP, port: 80}
  - {name: shop, protocol: HTTPS, port: 443, hostname: shop.test, tls: {certificateRefs: [{name: shop}]}}
  - {name: wild, protocol: HTTPS, port: 443, hostname: "*.wild.test", tls: {certificateRefs: [{name: wild}]}}
  - {name: gone, protocol: HTTPS, port: 443, hostname: gone.test, tls: {certificateRefs: [{name: gone}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: over-tls}
spec:
  parentRefs: [{name: tls, sectionName: shop}, {name: tls, sectionName: wild}]
  rules: [{backendRefs: [{name: shop, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: to-tls}
spec:
  parentRefs: [{name: tls, sectionName: http}]
  hostnames: [secure.test]
  rules: [{filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]}]
"#;
    kubectl(&daemon, &["apply", "-f", "-"], gateway);
    let asked = |host: &str, more: &[&str], want: &str| {
        until(host, || match ask(&daemon, &authority, host, more) {
            it if it.contains(want) => Ok(()),
            it => Err(format!("{it}, not {want}")),
        });
    };
    // By server name, the wildcard too; HTTP/2 if the client knows it.
    asked("shop.test", &[], "HTTP 2 200 by shop");
    asked("shop.test", &["--http1.1"], "HTTP 1.1 200 by shop");
    asked("a.wild.test", &[], "HTTP 2 200 by wild");
    asked("shop.test", &["--tlsv1.2", "--tls-max", "1.2"], "HTTP 2 200 by shop");
    // Too old, or a name that nobody has.
    let old = ask(
        &daemon,
        &authority,
        "shop.test",
        &["--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"],
    );
    assert!(old.contains("curl: (35)"), "{old}");
    let stranger = ask(&daemon, &authority, "gone.test", &[]);
    assert!(stranger.contains("curl: ("), "{stranger}");
    // A connection for one name is not used for another; under one certificate it is.
    asked("shop.test", &["-H", "Host: a.wild.test"], "421");
    asked("a.wild.test", &["-H", "Host: b.wild.test"], "200 by wild");

    // What the listeners say.
    until("the listener without a Secret says so", || match condition(&daemon, "gone", "ResolvedRefs") {
        Some((status, reason, message))
            if status == "False"
                && reason == "InvalidCertificateRef"
                && message.contains("no Secret gone") =>
        {
            Ok(())
        }
        other => Err(format!("{other:?}")),
    });
    assert_eq!(condition(&daemon, "gone", "Programmed").unwrap().0, "False");
    assert_eq!(condition(&daemon, "shop", "Programmed").unwrap().0, "True");

    // A broken renewal keeps the last good certificate; a good one is taken at once.
    authority.secret(&daemon, "shop", "renewed", "renewed");
    asked("shop.test", &[], "by renewed");
    let broken = r#"{"stringData": {"tls.key": "nonsense"}}"#;
    kubectl(&daemon, &["patch", "secret", "shop", "-p", broken], "");
    until("the broken key is named", || match condition(&daemon, "shop", "ResolvedRefs") {
        Some((status, _, message))
            if status == "False" && message.contains("tls.key is not a private key") =>
        {
            Ok(())
        }
        other => Err(format!("{other:?}")),
    });
    asked("shop.test", &[], "200 by renewed");
    authority.secret(&daemon, "shop", "shop", "shop");
    asked("shop.test", &[], "200 by shop");
    assert!(daemon.get("events").iter().any(|it| it["reason"] == "Certificate"));

    // HTTP goes to HTTPS.
    let gateway = daemon.endpoints["gateway"].as_str().unwrap();
    until("the redirect", || {
        let answer = text(&curl(&[
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{redirect_url}",
            "-H",
            "Host: secure.test",
            &format!("{gateway}/a"),
        ]));
        if answer == "301 https://secure.test/a" { Ok(()) } else { Err(answer) }
    });

    ingress(&daemon, &authority);
    // A certificate of another namespace needs its owner's word.
    for input in [
        r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "certs"}}"#,
        r#"{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "far"}, "spec": {"gatewayClassName": "naru",
            "listeners": [{"name": "far", "protocol": "HTTPS", "port": 443, "hostname": "far.test", "tls": {"certificateRefs": [{"name": "far", "namespace": "certs"}]}}]}}"#,
        r#"{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "far"}, "spec": {
            "parentRefs": [{"name": "far"}], "rules": [{"backendRefs": [{"name": "shop", "port": 80}]}]}}"#,
    ] {
        kubectl(&daemon, &["apply", "-f", "-"], input);
    }
    authority.issue("far", &["far.test"]);
    let made = daemon.kubectl(&[
        "create",
        "-n",
        "certs",
        "secret",
        "tls",
        "far",
        "--cert",
        &authority.path("far.crt"),
        "--key",
        &authority.path("far.key"),
    ]);
    assert!(made.status.success(), "{}", text(&made));
    until("the grant is missed", || {
        let all = daemon.get("gateways");
        let far = all.iter().find(|it| it["metadata"]["name"] == "far").cloned().unwrap_or(Value::Null);
        if far.to_string().contains("RefNotPermitted") { Ok(()) } else { Err(far.to_string()) }
    });
    let grant = r#"{"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant", "metadata": {"name": "g", "namespace": "certs"}, "spec": {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "default"}], "to": [{"group": "", "kind": "Secret"}]}}"#;
    kubectl(&daemon, &["apply", "-f", "-"], grant);
    asked("far.test", &[], "200 by far");
    daemon.destroy();
}

/// `spec.tls` of an Ingress.
fn ingress(daemon: &Daemon, authority: &Authority) {
    authority.issue("ingress", &["ingress.test"]);
    authority.secret(daemon, "ingress", "ingress", "ingress");
    let output = daemon.kubectl(&["create", "ingress", "web", "--rule=ingress.test/*=shop:80,tls=ingress"]);
    assert!(output.status.success() && !text(&output).contains("Warning"), "{}", text(&output));
    until("the ingress", || match ask(daemon, authority, "ingress.test", &[]) {
        it if it == "HTTP 2 200 by ingress" => Ok(()),
        it => Err(it),
    });
    let (code, _) = daemon.curl("ingress.test", "/");
    assert_eq!(code, 200);
}
