//! The control plane's own certificate authority, and the certificate that it presents to agents.
//!
//! Agents receive `ca.pem` when they start, so the authority's key stays as long as the data
//! directory. A missing `ca.pem` is created again from the key, and agents with the former one
//! accept that. The control plane replaces its certificate at a start in the certificate's last
//! month.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

use super::{CA_KEY, ControlIdentityError, secret_file, unusable};

/// Names in the certificate; agents verify the first.
const NAMES: [&str; 4] = ["podling-control", "localhost", "127.0.0.1", "::1"];
/// Lifetime of the certificate: one year.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// A start of the control plane replaces a certificate that expires within this time, so that a
/// control plane that runs for weeks does not outlive its certificate.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Lifetime of the authority: twenty years, longer than a data directory is used.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);
/// A certificate is valid from this long before its creation, because clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 60 * 60);

/// The certificate for the agents' listener and the authority that agents verify it with.
#[derive(Debug)]
pub(super) struct ControlCertificate {
    pub(super) ca_file: PathBuf,
    pub(super) server: Arc<ServerConfig>,
}

impl ControlCertificate {
    /// Reads the authority and the certificate from `directory`, and creates missing ones. Replaces
    /// a certificate that an agent would reject within [`RENEW_BEFORE`] of `now`.
    pub(super) fn open(directory: &Path, now: SystemTime) -> Result<Self, ControlIdentityError> {
        let ca_file = directory.join("ca.pem");
        let (authority, ca_pem) = authority(directory, &ca_file, now)?;
        if !is_signed_by(&ca_pem, &authority, now)? {
            return Err(ControlIdentityError::Mismatch { authority: ca_file, key: directory.join("ca.key") });
        }
        let (certificate, key) = (directory.join("tls.pem"), directory.join("tls.key"));
        if !is_accepted(&ca_pem, &certificate, &key, now + RENEW_BEFORE) {
            let pair = KeyPair::generate().map_err(ControlIdentityError::CreateCertificate)?;
            let issued = certificate_params(now)
                .and_then(|params| params.signed_by(&pair, &authority))
                .map_err(ControlIdentityError::CreateCertificate)?;
            secret_file::write(&key, pair.serialize_pem().as_bytes())?;
            secret_file::write(&certificate, issued.pem().as_bytes())?;
        }
        let server = server_config(&certificate, &key).map_err(ControlIdentityError::UseCertificate)?;
        Ok(Self { ca_file, server: Arc::new(server) })
    }
}

fn authority(
    directory: &Path,
    ca_file: &Path,
    now: SystemTime,
) -> Result<(Issuer<'static, KeyPair>, String), ControlIdentityError> {
    let key_file = directory.join("ca.key");
    let (pair, is_new) = match secret_file::read(&key_file)? {
        Some(pem) => {
            let what = "a private key in PEM form";
            let unusable = || unusable(&key_file, CA_KEY, &pem, what);
            (authority_key(&pem).ok_or_else(unusable)?, false)
        }
        None => (KeyPair::generate().map_err(ControlIdentityError::CreateCertificate)?, true),
    };
    let params = authority_params(now);
    let pem = match secret_file::read(ca_file)? {
        Some(pem) if !is_new => String::from_utf8_lossy(&pem).into_owned(),
        _ => {
            // The key last: if the process ends in between, the next start replaces both.
            let pem = params.self_signed(&pair).map_err(ControlIdentityError::CreateCertificate)?.pem();
            secret_file::write(ca_file, pem.as_bytes())?;
            if is_new {
                secret_file::write(&key_file, pair.serialize_pem().as_bytes())?;
            }
            pem
        }
    };
    Ok((Issuer::new(params, pair), pem))
}

/// Returns the key in the content of `ca.key`. `None` if it is not a private key in PEM form.
pub(super) fn authority_key(pem: &[u8]) -> Option<KeyPair> {
    KeyPair::from_pem(std::str::from_utf8(pem).ok()?).ok()
}

/// Returns whether the content is a certificate in PEM form.
pub(super) fn is_certificate(pem: &[u8]) -> bool {
    let parsed = CertificateDer::from_pem_slice(pem);
    parsed.is_ok_and(|certificate| RootCertStore::empty().add(certificate).is_ok())
}

/// Returns whether the content is a private key in PEM form.
pub(super) fn is_key(pem: &[u8]) -> bool {
    PrivateKeyDer::from_pem_slice(pem).is_ok_and(|key| ring::sign::any_supported_type(&key).is_ok())
}

/// Returns whether agents that trust `ca_pem` accept certificates that the key signs.
pub(super) fn is_authority(ca_pem: &[u8], key: &[u8]) -> bool {
    let now = SystemTime::now();
    let (Some(pair), Ok(ca_pem)) = (authority_key(key), std::str::from_utf8(ca_pem)) else { return false };
    is_signed_by(ca_pem, &Issuer::new(authority_params(now), pair), now).unwrap_or(false)
}

/// Returns whether the certificate is that of the key, at any time.
pub(super) fn is_pair(certificate: &[u8], key: &[u8]) -> bool {
    let parse = || {
        let certificate = CertificateDer::from_pem_slice(certificate).ok()?;
        let key = PrivateKeyDer::from_pem_slice(key).ok()?;
        CertifiedKey::from_der(vec![certificate], key, &provider()).ok()
    };
    parse().is_some()
}

fn authority_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("Podling control plane");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + AUTHORITY_LIFETIME).into();
    params
}

fn certificate_params(now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
    params.distinguished_name = common_name(NAMES[0]);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + CERTIFICATE_LIFETIME).into();
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Returns whether agents that trust `ca_pem` accept certificates of this authority. Verifies a new
/// one as an agent does, because an authority of the right key may have another name.
fn is_signed_by(
    ca_pem: &str,
    authority: &Issuer<'_, KeyPair>,
    now: SystemTime,
) -> Result<bool, ControlIdentityError> {
    let pair = KeyPair::generate().map_err(ControlIdentityError::CreateCertificate)?;
    let issued = certificate_params(now)
        .and_then(|params| params.signed_by(&pair, authority))
        .map_err(ControlIdentityError::CreateCertificate)?;
    Ok(is_verified(ca_pem, issued.der(), now).is_some())
}

/// Returns whether an agent would accept the certificate at time `at`. Verifies the certificate as
/// an agent does, which also detects damaged files and files of another authority.
fn is_accepted(ca_pem: &str, certificate: &Path, key: &Path, at: SystemTime) -> bool {
    let check = || {
        is_verified(ca_pem, &CertificateDer::from_pem_file(certificate).ok()?, at)?;
        secret_file::read(key).ok()??;
        server_config(certificate, key).ok()
    };
    check().is_some()
}

/// Verifies the certificate as an agent that trusts `ca_pem` does. `None` if it is rejected.
fn is_verified(ca_pem: &str, leaf: &CertificateDer<'_>, at: SystemTime) -> Option<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).ok()?).ok()?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok()?;
    let name = ServerName::try_from(NAMES[0]).ok()?;
    let since_1970 = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    verifier.verify_server_cert(leaf, &[], &name, &[], UnixTime::since_unix_epoch(since_1970)).ok()?;
    Some(())
}

/// Returns a TLS configuration for HTTP/2 and HTTP/1.1 with the certificate chain and the key of
/// these PEM files.
pub fn server_config(certificate: &Path, key: &Path) -> Result<ServerConfig, rustls::Error> {
    let broken = |e| rustls::Error::General(format!("{e}"));
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(broken)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(broken)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Returns the cryptography provider of all TLS in this program.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::checks;

    #[test]
    fn certificate_is_renewed_before_expiry() {
        let directory = tempfile::tempdir().expect("directory");
        let read = || std::fs::read(directory.path().join("tls.pem")).expect("certificate");
        let now = SystemTime::now();
        ControlCertificate::open(directory.path(), now).expect("first start");
        let (first, ca) = (read(), std::fs::read(directory.path().join("ca.pem")).expect("ca"));
        ControlCertificate::open(directory.path(), now + Duration::from_secs(300 * 86400)).expect("same");
        assert_eq!(read(), first);
        ControlCertificate::open(directory.path(), now + Duration::from_secs(340 * 86400)).expect("renewed");
        assert_ne!(read(), first);
        std::fs::write(directory.path().join("tls.pem"), "rubbish").expect("damage");
        ControlCertificate::open(directory.path(), now).expect("a damaged certificate is replaced");
        assert_eq!(std::fs::read(directory.path().join("ca.pem")).expect("ca"), ca, "the authority stays");
    }

    #[test]
    fn lost_authority_certificate_is_created_from_its_key() {
        let directory = tempfile::tempdir().expect("directory");
        let path = |name| directory.path().join(name);
        let now = SystemTime::now();
        ControlCertificate::open(directory.path(), now).expect("first start");
        let former = std::fs::read_to_string(path("ca.pem")).expect("ca");
        for lost in ["ca.pem", "tls.pem", "tls.key"] {
            std::fs::remove_file(path(lost)).expect("removed");
        }
        let later = now + Duration::from_secs(60);
        ControlCertificate::open(directory.path(), later).expect("second start");
        let accepts = |ca: &str| is_accepted(ca, &path("tls.pem"), &path("tls.key"), later);
        assert!(accepts(&former), "an agent with the former authority accepts the new certificate");
        assert!(accepts(&std::fs::read_to_string(path("ca.pem")).expect("ca")));
    }

    #[test]
    fn authority_of_another_key_is_refused() {
        let [own, other] = [(); 2].map(|()| tempfile::tempdir().expect("directory"));
        let now = SystemTime::now();
        for directory in [&own, &other] {
            ControlCertificate::open(directory.path(), now).expect("first start");
        }
        std::fs::copy(other.path().join("ca.key"), own.path().join("ca.key")).expect("copied");
        let error = ControlCertificate::open(own.path(), now).expect_err("they differ").to_string();
        assert!(error.contains("reject certificates that the key"), "{error}");
    }

    #[test]
    fn authority_that_agents_reject_is_refused() {
        let directory = tempfile::tempdir().expect("directory");
        let path = |name| directory.path().join(name);
        let now = SystemTime::now();
        ControlCertificate::open(directory.path(), now).expect("first start");
        let key = authority_key(&std::fs::read(path("ca.key")).expect("key")).expect("a key");
        let former = std::fs::read(path("tls.pem")).expect("certificate");
        // Agents check neither the validity nor the CA flag of the authority.
        let mut renamed = authority_params(now);
        renamed.distinguished_name = common_name("Other");
        let pem = renamed.self_signed(&key).expect("signed").pem();
        secret_file::write(&path("ca.pem"), pem.as_bytes()).expect("written");
        let opened = ControlCertificate::open(directory.path(), now);
        assert!(matches!(opened, Err(ControlIdentityError::Mismatch { .. })), "{opened:?}");
        assert_eq!(std::fs::read(path("tls.pem")).expect("certificate"), former, "nothing is replaced");

        let shared = [("control/ca.pem", pem.into_bytes()), (CA_KEY, key.serialize_pem().into_bytes())];
        let unusable = checks::unusable(&shared.into());
        assert_eq!(unusable.into_keys().collect::<Vec<_>>(), ["control/ca.pem"]);
    }
}
