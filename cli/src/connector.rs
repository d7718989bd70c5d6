//! Opens connections to a control plane, by TCP or by TLS. Trusts the certificates of `--ca`, or the
//! certificate that a control plane on this machine announced.
//!
//! A data directory contains the address of its control plane. This address is read again for each
//! connection, because a restarted control plane may listen elsewhere.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use podling_control::pinned_certificate::PinnedCertificateVerifier;
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tower::util::BoxCloneService;

use crate::{
    failure::CommandFailure,
    target::{self, ControlPlaneTarget},
};

/// TCP or TLS stream.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

pub type Connector = BoxCloneService<Uri, TokioIo<Box<dyn ByteStream>>, io::Error>;

/// Returns a connector for this control plane. Fails if the certificates cannot be loaded.
pub fn for_target(target: &ControlPlaneTarget) -> Result<Connector, CommandFailure> {
    let tls = match target.url.starts_with("https://") {
        true => Some(tls(target.ca.as_deref(), target.certificate.as_deref())?),
        false => None,
    };
    let data = target.data.clone();
    let connect = move |uri: Uri| -> BoxFuture<'static, io::Result<TokioIo<Box<dyn ByteStream>>>> {
        let (tls, data) = (tls.clone(), data.clone());
        Box::pin(async move { Ok(TokioIo::new(dial(resolve_address(uri, data)?, tls).await?)) })
    };
    Ok(BoxCloneService::new(tower::service_fn(connect)))
}

fn resolve_address(uri: Uri, data: Option<PathBuf>) -> io::Result<Uri> {
    let Some(data) = data else { return Ok(uri) };
    match target::running(&data) {
        Ok(Some(running)) => running.url.parse().map_err(io::Error::other),
        Ok(None) => Err(io::ErrorKind::ConnectionRefused.into()),
        Err(failure) => Err(io::Error::other(failure.describe())),
    }
}

async fn dial(uri: Uri, tls: Option<TlsConnector>) -> io::Result<Box<dyn ByteStream>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    // Keystrokes are small packets and must be sent at once.
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    Ok(Box::new(tls.connect(name, stream).await?))
}

/// Trusts the certificates in `ca`, or else the `certificate` of the control plane on this machine.
fn tls(ca: Option<&Path>, certificate: Option<&Path>) -> Result<TlsConnector, CommandFailure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| CommandFailure::Other(format!("cannot set up TLS: {error}")))?;
    let builder = match (ca, certificate) {
        (Some(ca), _) => builder.with_root_certificates(roots(ca)?),
        (None, Some(certificate)) => {
            let certificate = certificate.to_owned();
            let verifier = PinnedCertificateVerifier::new(provider, move |shown: &CertificateDer<'_>| {
                check_announced(&certificate, shown)
            });
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        (None, None) => {
            let message = "an https address requires a file of certificates to trust; pass --ca FILE or set \
                           PODLING_CA";
            return Err(CommandFailure::Usage(message.to_owned()));
        }
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Fails unless the server shows the first certificate of the file that `podling up` announced in
/// its data directory, which only its user can write. The certificate may be self-signed or name
/// another host, because commands on this machine connect to a loopback address. The file is read at
/// each connection, because a restarted `podling up` may have a new certificate.
fn check_announced(file: &Path, shown: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    let announced = CertificateDer::from_pem_file(file)
        .map_err(|error| rustls::Error::General(format!("cannot read {}: {error}", file.display())))?;
    match announced == *shown {
        true => Ok(()),
        false => Err(CertificateError::ApplicationVerificationFailure.into()),
    }
}

fn roots(ca: &Path) -> Result<RootCertStore, CommandFailure> {
    let bad = |what: String| {
        CommandFailure::Usage(format!("cannot load certificates from {}: {what}", ca.display()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| bad(error.to_string()))? {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("the file contains no certificate".to_owned()));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn announced_certificate_is_read_at_each_connection() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("tls.pem");
        let announce = |base64: &str| {
            let pem = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
            fs::write(&file, pem).expect("written");
        };
        let (old, new) = (CertificateDer::from(vec![0; 3]), CertificateDer::from(vec![4; 3]));
        announce("AAAA");
        assert!(check_announced(&file, &old).is_ok() && check_announced(&file, &new).is_err());
        announce("BAQE");
        assert!(check_announced(&file, &old).is_err() && check_announced(&file, &new).is_ok());
        fs::remove_file(&file).expect("removed");
        let error = check_announced(&file, &new).expect_err("no file").to_string();
        assert!(error.contains("tls.pem"), "{error}");
    }
}
