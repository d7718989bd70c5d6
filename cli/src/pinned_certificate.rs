//! Trusts exactly the certificate of the control plane on this machine.
//!
//! `podling up` publishes the file of its certificate in the data directory, which only its user can
//! write. The certificate may be self-signed or name another host, because commands on this machine
//! connect to a loopback address.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

/// Accepts the first certificate of a file. The file is read at each connection, because a renewed
/// certificate replaces it.
#[derive(Debug)]
pub struct PinnedCertificateVerifier {
    file: PathBuf,
    provider: Arc<CryptoProvider>,
}

impl PinnedCertificateVerifier {
    pub fn new(file: &Path, provider: Arc<CryptoProvider>) -> Self {
        Self { file: file.to_owned(), provider }
    }
}

impl ServerCertVerifier for PinnedCertificateVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let own = CertificateDer::from_pem_file(&self.file)
            .map_err(|error| Error::General(format!("cannot read {}: {error}", self.file.display())))?;
        if own == *end_entity {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
