//! Trusts one certificate by comparison instead of by its issuer and its names.
//!
//! The caller decides which certificate that is, once per connection. This module knows neither
//! agents nor control planes.

use std::{fmt, sync::Arc};

use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Accepts the server's own certificate if `check` does. Issuer, names and expiry do not count.
pub struct PinnedCertificateVerifier<F> {
    provider: Arc<CryptoProvider>,
    check: F,
}

impl<F> PinnedCertificateVerifier<F>
where
    F: Fn(&CertificateDer<'_>) -> Result<(), Error> + Send + Sync,
{
    /// Creates a verifier that calls `check` at each full handshake. A resumed session sends no
    /// certificate, so that `check` is not called.
    pub fn new(provider: Arc<CryptoProvider>, check: F) -> Self {
        Self { provider, check }
    }
}

impl<F> ServerCertVerifier for PinnedCertificateVerifier<F>
where
    F: Fn(&CertificateDer<'_>) -> Result<(), Error> + Send + Sync,
{
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.check)(end_entity).map(|()| ServerCertVerified::assertion())
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

impl<F> fmt::Debug for PinnedCertificateVerifier<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedCertificateVerifier").finish_non_exhaustive()
    }
}
