//! A TLS client that returns the server's certificate.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::Backend;

/// Longest duration of a handshake.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Backend {
    /// Returns whether `certificate`, from [`peer_certificate`], is this backend's.
    #[must_use]
    pub fn has_certificate(&self, certificate: &[u8]) -> bool {
        self.certificate_pem()
            .and_then(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok())
            .is_some_and(|own| own.as_ref() == certificate)
    }
}

/// Performs a TLS handshake with the server at `target` and returns the server's certificate (DER) without verifying
/// it.
///
/// # Errors
/// The connection or the handshake failed, or took more than five seconds.
pub async fn peer_certificate(target: SocketAddr) -> io::Result<Vec<u8>> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let handshake = async {
        let stream = TcpStream::connect(target).await?;
        let name = ServerName::from(target.ip());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate =
            chain.first().ok_or_else(|| io::Error::other("the server showed no certificate"))?;
        Ok(certificate.as_ref().to_vec())
    };
    timeout(TIMEOUT, handshake).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Accepts every certificate, provided that the server has the certificate's private key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
