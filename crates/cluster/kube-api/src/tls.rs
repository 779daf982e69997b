//! Keys and certificates: our own authority, a certificate for the server, one for the
//! administrator. Made at the first start, readable by the owner only.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::Error;

/// Years that the authority and the administrator's certificate are good for.
const YEARS: i32 = 10;

pub(crate) struct Identity {
    dir: PathBuf,
    pub ca_pem: String,
    admin_pem: String,
    admin_key_pem: String,
    pub token: String,
    pub server: Arc<rustls::ServerConfig>,
}

impl Identity {
    pub fn open(data_dir: &Path, extra_sans: &[String]) -> Result<Identity, Error> {
        let dir = data_dir.join("pki");
        fs::create_dir_all(&dir).map_err(|source| Error::File { path: dir.clone(), source })?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
            .map_err(|source| Error::File { path: dir.clone(), source })?;
        let (ca_pem, ca_key) = pair(&dir, "ca", |key| {
            let params = authority_params();
            params.self_signed(key).map(|it| it.pem())
        })?;
        let in_ca = |source| Error::Certificate { what: "the authority", source };
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).map_err(in_ca)?;
        let (admin_pem, admin_key) = pair(&dir, "admin", |key| {
            let mut params = leaf_params("admin", ExtendedKeyUsagePurpose::ClientAuth, &[])?;
            params.distinguished_name.push(DnType::OrganizationName, "system:masters");
            params.signed_by(key, &issuer).map(|it| it.pem())
        })?;
        let server = server_config(&dir, &ca_pem, &issuer, extra_sans)?;
        let token = token(&dir.join("admin.token"))?;
        let admin_key_pem = admin_key.serialize_pem();
        Ok(Identity { dir: data_dir.to_path_buf(), ca_pem, admin_pem, admin_key_pem, token, server })
    }

    pub fn kubeconfig(&self, server_url: &str) -> String {
        let data = |pem: &str| STANDARD.encode(pem);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: naru\nclusters:\n- name: naru\n  cluster:\n    server: {server_url}\n    certificate-authority-data: {}\ncontexts:\n- name: naru\n  context:\n    cluster: naru\n    user: admin\n    namespace: default\nusers:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            data(&self.ca_pem),
            data(&self.admin_pem),
            data(&self.admin_key_pem),
        )
    }

    pub fn write_kubeconfig(&self, server_url: &str) -> Result<PathBuf, Error> {
        let path = self.dir.join("admin.kubeconfig");
        write_private(&path, &self.kubeconfig(server_url))?;
        Ok(path)
    }
}

/// The certificate and key `NAME.crt` and `NAME.key`, made when they are not there.
fn pair(
    dir: &Path,
    name: &str,
    make: impl FnOnce(&KeyPair) -> Result<String, rcgen::Error>,
) -> Result<(String, KeyPair), Error> {
    let in_key = |source| Error::Certificate { what: "a key", source };
    let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if let (Ok(certificate), Ok(key)) = (fs::read_to_string(&certificate), fs::read_to_string(&key)) {
        return Ok((certificate, KeyPair::from_pem(&key).map_err(in_key)?));
    }
    let pair = KeyPair::generate().map_err(in_key)?;
    let pem = make(&pair).map_err(|source| Error::Certificate { what: "a first start", source })?;
    // The key first: a certificate without its key would be taken for complete.
    write_private(&key, &pair.serialize_pem())?;
    write_private(&certificate, &pem)?;
    Ok((pem, pair))
}

/// The server's certificate is made anew at every start: addresses change, and it costs nothing.
fn server_config(
    dir: &Path,
    ca_pem: &str,
    issuer: &Issuer<'_, KeyPair>,
    extra_sans: &[String],
) -> Result<Arc<rustls::ServerConfig>, Error> {
    let in_certificate = |source| Error::Certificate { what: "the server", source };
    let in_tls = |source| Error::Key { path: dir.to_path_buf(), source };
    let mut names: Vec<String> =
        ["localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(String::from)
            .to_vec();
    names.extend(extra_sans.iter().filter(|it| !names.contains(it)).cloned().collect::<Vec<_>>());
    let key = KeyPair::generate().map_err(in_certificate)?;
    let params = leaf_params("naru", ExtendedKeyUsagePurpose::ServerAuth, &names).map_err(in_certificate)?;
    let certificate = params.signed_by(&key, issuer).map_err(in_certificate)?;

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let authority = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|_| in_tls(rustls::Error::General("the authority's certificate is not PEM".into())))?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).map_err(in_tls)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| in_tls(rustls::Error::General(error.to_string())))?;
    let key = PrivateKeyDer::try_from(key.serialize_der())
        .map_err(|error| in_tls(rustls::Error::General(error.to_string())))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(in_tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], key)
        .map_err(in_tls)?;
    // Upgrades (exec) need HTTP/1.1; everything else likes HTTP/2.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "naru authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    date(&mut params);
    params
}

fn leaf_params(
    name: &str,
    usage: ExtendedKeyUsagePurpose,
    names: &[String],
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    date(&mut params);
    Ok(params)
}

fn date(params: &mut CertificateParams) {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let year = i32::from(today.year());
    // From the month's first day: a clock that is a little behind must not refuse it. The first
    // day of a month exists in every year.
    let month = today.month().unsigned_abs();
    params.not_before = date_time_ymd(year, month, 1);
    params.not_after = date_time_ymd(year + YEARS, month, 1);
}

fn token(path: &Path) -> Result<String, Error> {
    if let Ok(token) = fs::read_to_string(path)
        && token.trim().len() >= 32
    {
        return Ok(token.trim().to_string());
    }
    let mut bytes = [0u8; 32];
    rand::rng().fill(&mut bytes);
    let token: String = bytes.iter().map(|it| format!("{it:02x}")).collect();
    write_private(path, &token)?;
    Ok(token)
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    write_private_bytes(path, text.as_bytes())
}

pub(crate) fn write_private_bytes(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| Error::File { path: path.to_path_buf(), source })
}
