//! Which certificate a TLS client is shown: pure, from Gateways, Secrets and grants.
//!
//! A Secret that becomes unusable does not take its host down: what was loaded last goes on, and the
//! listener's status says what is wrong.

use crate::hosts::host_name;
use crate::ingress;
use crate::table::{Objects, items};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What of a Secret could be used, for as long as the Secret is there.
#[derive(Debug, Clone)]
struct Loaded {
    /// The Secret's resourceVersion.
    version: String,
    key: Option<Arc<CertifiedKey>>,
    expires: Option<Timestamp>,
    problem: Option<String>,
}

/// The certificates of one listener, in the order of its references.
#[derive(Debug, Default)]
struct Entry {
    keys: Vec<Arc<CertifiedKey>>,
}

/// By host name, as listeners say it.
#[derive(Debug, Default)]
pub struct Certificates {
    exact: HashMap<String, Arc<Entry>>,
    /// By suffix with its dot, longest first.
    wildcards: Vec<(String, Arc<Entry>)>,
    any: Option<Arc<Entry>>,
    /// By namespace and name of the Secret.
    loaded: HashMap<(String, String), Loaded>,
}

/// What is to be said about a listener of a Gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerFinding {
    pub namespace: String,
    pub gateway: String,
    pub listener: String,
    /// Reason and message of the first reference that does not lead to a certificate.
    pub problem: Option<(&'static str, String)>,
    /// There is a certificate to be shown.
    pub is_served: bool,
    /// A certificate that clients will not accept.
    pub warning: Option<String>,
}

impl Certificates {
    /// The certificate for a server name; without one that of listeners for any host.
    pub fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let keys = &self.entry(name)?.keys;
        let fits = |it: &&Arc<CertifiedKey>| it.key.choose_scheme(schemes).is_some();
        keys.iter().find(fits).or_else(|| keys.first()).cloned()
    }

    fn entry(&self, name: Option<&str>) -> Option<&Arc<Entry>> {
        let Some(name) = name else { return self.any.as_ref() };
        let name = name.to_ascii_lowercase();
        if let Some(it) = self.exact.get(&name) {
            return Some(it);
        }
        let wild = self
            .wildcards
            .iter()
            .find(|(suffix, _)| name.len() > suffix.len() && name.ends_with(suffix.as_str()));
        wild.map(|it| &it.1).or(self.any.as_ref())
    }

    /// Whether a connection that was made for one name may ask for another: only if that one would have
    /// been shown the same certificate.
    pub fn may_ask(&self, server_name: &str, host: &str) -> bool {
        match (self.entry(Some(server_name)), self.entry(Some(host_name(host)))) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// Whether a listener ends TLS here.
pub fn is_tls(listener: &Value) -> bool {
    listener["protocol"] == "HTTPS" && listener["tls"]["mode"] != "Passthrough"
}

/// Chooses the certificates of all listeners. `previous` lends what is loaded already.
pub fn compile(
    objects: &Objects<'_>,
    previous: &Certificates,
    now: Timestamp,
) -> (Certificates, Vec<ListenerFinding>) {
    let mut all = Certificates::default();
    let mut findings = Vec::new();
    let ours = objects.gateways.iter().filter(|it| it["spec"]["gatewayClassName"] == crate::GATEWAY_CLASS);
    for gateway in ours {
        let text =
            |pointer: &str| gateway.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        for listener in items(&gateway["spec"]["listeners"]).iter().filter(|it| is_tls(it)) {
            let mut finding = ListenerFinding {
                namespace: namespace.clone(),
                gateway: name.clone(),
                listener: listener["name"].as_str().unwrap_or_default().to_owned(),
                problem: None,
                is_served: false,
                warning: None,
            };
            let mut entry = Entry::default();
            let references = items(&listener["tls"]["certificateRefs"]);
            if references.is_empty() {
                finding.problem = Some(("InvalidCertificateRef", "the listener names no certificate".into()));
            }
            for reference in references {
                let place = reference["namespace"].as_str().unwrap_or(&namespace);
                match all.load(objects, previous, reference, place, &namespace) {
                    Ok(loaded) => {
                        if let Some(why) = loaded.problem {
                            finding.problem.get_or_insert(("InvalidCertificateRef", why));
                        }
                        if let Some(at) = loaded.expires.filter(|it| *it <= now) {
                            let secret = reference["name"].as_str().unwrap_or_default();
                            finding.warning = Some(format!(
                                "the certificate of Secret {secret} expired at {}",
                                at.strftime("%FT%TZ")
                            ));
                        }
                        entry.keys.extend(loaded.key);
                    }
                    Err(problem) => {
                        finding.problem.get_or_insert(problem);
                    }
                }
            }
            finding.is_served = !entry.keys.is_empty();
            if finding.is_served {
                all.add(listener["hostname"].as_str().unwrap_or_default(), Arc::new(entry));
            }
            findings.push(finding);
        }
    }
    all.wildcards.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
    (all, findings)
}

impl Certificates {
    /// The first listener of a name has it.
    fn add(&mut self, hostname: &str, entry: Arc<Entry>) {
        let hostname = hostname.to_ascii_lowercase();
        match hostname.strip_prefix('*') {
            None if hostname.is_empty() => {
                self.any.get_or_insert(entry);
            }
            None => {
                self.exact.entry(hostname).or_insert(entry);
            }
            Some(suffix) if self.wildcards.iter().any(|(it, _)| it == suffix) => {}
            Some(suffix) => self.wildcards.push((suffix.to_owned(), entry)),
        }
    }

    fn load(
        &mut self,
        objects: &Objects<'_>,
        previous: &Certificates,
        reference: &Value,
        place: &str,
        from: &str,
    ) -> Result<Loaded, (&'static str, String)> {
        let name = reference["name"].as_str().unwrap_or_default();
        let (kind, group) =
            (reference["kind"].as_str().unwrap_or("Secret"), reference["group"].as_str().unwrap_or(""));
        if kind != "Secret" || !group.is_empty() {
            return Err((
                "InvalidCertificateRef",
                format!("a certificate comes from a Secret, not from a {kind}"),
            ));
        }
        // Ingresses name Secrets of their own namespace only; their Gateway is nobody's object.
        if place != from && from != ingress::GATEWAY && !is_granted(objects, place, name, from) {
            let message =
                format!("no ReferenceGrant of namespace {place} lets this Gateway name Secret {name}");
            return Err(("RefNotPermitted", message));
        }
        let key = (place.to_owned(), name.to_owned());
        if let Some(it) = self.loaded.get(&key) {
            return Ok(it.clone());
        }
        let secret = objects
            .secrets
            .iter()
            .find(|it| it["metadata"]["name"] == name && it["metadata"]["namespace"] == place);
        let Some(secret) = secret else {
            let message =
                format!("there is no Secret {name} of the type kubernetes.io/tls in namespace {place}");
            return Err(("InvalidCertificateRef", message));
        };
        let version = secret["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let before = previous.loaded.get(&key);
        let loaded = match before {
            Some(it) if it.version == version && !version.is_empty() => it.clone(),
            _ => match read(secret) {
                Ok((certificate, expires)) => Loaded {
                    version: version.into(),
                    key: Some(Arc::new(certificate)),
                    expires,
                    problem: None,
                },
                Err(why) => Loaded {
                    version: version.into(),
                    key: before.and_then(|it| it.key.clone()),
                    expires: before.and_then(|it| it.expires),
                    problem: Some(match before.is_some_and(|it| it.key.is_some()) {
                        true => format!("Secret {name}: {why}; the certificate before it is served on"),
                        false => format!("Secret {name}: {why}"),
                    }),
                },
            },
        };
        self.loaded.insert(key, loaded.clone());
        Ok(loaded)
    }
}

fn is_granted(objects: &Objects<'_>, namespace: &str, secret: &str, from: &str) -> bool {
    objects.grants.iter().filter(|it| it["metadata"]["namespace"] == namespace).any(|grant| {
        let is_from = items(&grant["spec"]["from"]).iter().any(|it| {
            it["group"] == "gateway.networking.k8s.io" && it["kind"] == "Gateway" && it["namespace"] == from
        });
        is_from
            && items(&grant["spec"]["to"])
                .iter()
                .any(|it| it["kind"] == "Secret" && it["name"].as_str().is_none_or(|it| it == secret))
    })
}

/// The certificate and key of a Secret, and when it ends.
fn read(secret: &Value) -> Result<(CertifiedKey, Option<Timestamp>), String> {
    let data = |key: &str| -> Result<Vec<u8>, String> {
        let text = secret["data"][key].as_str().ok_or_else(|| format!("there is no {key}"))?;
        STANDARD.decode(text).map_err(|_| format!("{key} is not base64"))
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&data("tls.crt")?)
        .collect::<Result<_, _>>()
        .map_err(|it| format!("tls.crt is not PEM: {it}"))?;
    let first = chain.first().ok_or("tls.crt holds no certificate")?;
    let (_, parsed) =
        X509Certificate::from_der(first).map_err(|_| "tls.crt holds something else than a certificate")?;
    let expires = Timestamp::from_second(parsed.validity().not_after.timestamp()).ok();
    let key = PrivateKeyDer::from_pem_slice(&data("tls.key")?)
        .map_err(|it| format!("tls.key is not a private key in PEM: {it}"))?;
    let key = any_supported_type(&key)
        .map_err(|_| "the kind of key in tls.key is not supported; use RSA, ECDSA or Ed25519")?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok((certified, expires)),
        // Some keys cannot say what their public half is.
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok((certified, expires)),
        Err(_) => Err("tls.key is not the key of the certificate in tls.crt".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(name: &str, version: &str, crt: &str, key: &str) -> Arc<Value> {
        Arc::new(json!({"metadata": {"name": name, "namespace": "d", "resourceVersion": version},
            "data": {"tls.crt": STANDARD.encode(crt), "tls.key": STANDARD.encode(key)}}))
    }

    fn pair(host: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn gateway(listeners: Value) -> Arc<Value> {
        Arc::new(
            json!({"metadata": {"name": "g", "namespace": "d"}, "spec": {"gatewayClassName": "naru", "listeners": listeners}}),
        )
    }

    fn listener(name: &str, hostname: &str, secret: Value) -> Value {
        json!({"name": name, "protocol": "HTTPS", "port": 443, "hostname": hostname, "tls": {"certificateRefs": [secret]}})
    }

    fn compiled(
        gateway: Arc<Value>,
        secrets: &[Arc<Value>],
        grants: &[Arc<Value>],
        previous: &Certificates,
    ) -> (Certificates, Vec<ListenerFinding>) {
        let gateways = [gateway];
        let objects =
            Objects { gateways: &gateways, routes: &[], services: &[], slices: &[], grants, secrets };
        compile(&objects, previous, Timestamp::UNIX_EPOCH)
    }

    fn shown(all: &Certificates, name: &str) -> Option<Vec<u8>> {
        all.choose(Some(name), &[SignatureScheme::ECDSA_NISTP256_SHA256]).map(|it| it.cert[0].to_vec())
    }

    #[test]
    fn names_lead_to_certificates() {
        let (exact, wild) = (pair("a.shop.test"), pair("*.shop.test"));
        let secrets = [secret("a", "1", &exact.0, &exact.1), secret("w", "1", &wild.0, &wild.1)];
        let listeners = json!([
            listener("w", "*.shop.test", json!({"name": "w"})),
            listener("a", "a.shop.test", json!({"name": "a"}))
        ]);
        let (all, findings) = compiled(gateway(listeners), &secrets, &[], &Certificates::default());
        assert!(findings.iter().all(|it| it.is_served && it.problem.is_none()), "{findings:?}");
        assert_ne!(shown(&all, "a.shop.test"), shown(&all, "b.shop.test"));
        assert_eq!(shown(&all, "B.shop.test"), shown(&all, "c.shop.test"));
        assert!(shown(&all, "shop.test").is_none() && all.choose(None, &[]).is_none());
        assert!(all.may_ask("b.shop.test", "c.shop.test:8443") && !all.may_ask("b.shop.test", "a.shop.test"));
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_said_and_the_last_good_one_goes_on() {
        let (good, other) = (pair("a.test"), pair("a.test"));
        let listeners = json!([listener("a", "a.test", json!({"name": "a"}))]);
        let compile_one = |it: Arc<Value>, previous: &Certificates| {
            compiled(gateway(listeners.clone()), &[it], &[], previous)
        };
        let (first, _) = compile_one(secret("a", "1", &good.0, &good.1), &Certificates::default());
        for (crt, key, want) in [
            (good.0.as_str(), other.1.as_str(), "tls.key is not the key of the certificate"),
            ("nonsense", &good.1, "tls.crt holds no certificate"),
            (&good.0, "nonsense", "tls.key is not a private key"),
            ("", "", "tls.crt holds no certificate"),
        ] {
            let (after, findings) = compile_one(secret("a", "2", crt, key), &first);
            let problem = findings[0].problem.clone().unwrap();
            assert!(
                problem.0 == "InvalidCertificateRef"
                    && problem.1.contains(want)
                    && problem.1.contains("served on"),
                "{problem:?}"
            );
            assert_eq!(shown(&after, "a.test"), shown(&first, "a.test"));
            let (never, findings) = compile_one(secret("a", "2", crt, key), &Certificates::default());
            assert!(shown(&never, "a.test").is_none() && !findings[0].is_served);
        }
        let (renewed, _) = compile_one(secret("a", "3", &other.0, &other.1), &first);
        assert_ne!(shown(&renewed, "a.test"), shown(&first, "a.test"));
    }

    #[test]
    fn another_namespace_must_agree() {
        let (crt, key) = pair("a.test");
        let foreign =
            Arc::new(json!({"metadata": {"name": "a", "namespace": "other", "resourceVersion": "1"},
            "data": {"tls.crt": STANDARD.encode(crt), "tls.key": STANDARD.encode(key)}}));
        let listeners = json!([listener("a", "a.test", json!({"name": "a", "namespace": "other"}))]);
        let (_, findings) = compiled(
            gateway(listeners.clone()),
            std::slice::from_ref(&foreign),
            &[],
            &Certificates::default(),
        );
        assert_eq!(findings[0].problem.as_ref().unwrap().0, "RefNotPermitted");
        let grant = Arc::new(json!({"metadata": {"namespace": "other"}, "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "d"}], "to": [{"kind": "Secret", "name": "a"}]}}));
        let (_, findings) = compiled(gateway(listeners), &[foreign], &[grant], &Certificates::default());
        assert!(findings[0].problem.is_none() && findings[0].is_served);
    }

    #[test]
    fn an_expired_certificate_is_served_with_a_warning() {
        let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(1960, 1, 1);
        params.not_after = rcgen::date_time_ymd(1969, 12, 31);
        let key = rcgen::KeyPair::generate().unwrap();
        let crt = params.self_signed(&key).unwrap().pem();
        let listeners = json!([listener("a", "a.test", json!({"name": "a"}))]);
        let (_, findings) = compiled(
            gateway(listeners),
            &[secret("a", "1", &crt, &key.serialize_pem())],
            &[],
            &Certificates::default(),
        );
        assert!(findings[0].is_served);
        assert_eq!(
            findings[0].warning.as_deref(),
            Some("the certificate of Secret a expired at 1969-12-31T00:00:00Z")
        );
    }
}
