//! Self-signed certificates for backends.

use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::Error;

/// Returns an acceptor with a new self-signed certificate, common name and subject alternative name `name`, and the
/// certificate as PEM.
pub(super) fn acceptor(name: &str) -> Result<(TlsAcceptor, String), Error> {
    let failed = |reason: String| Error::Certificate { name: name.to_owned(), reason };
    let key = KeyPair::generate().map_err(|error| failed(error.to_string()))?;
    let mut parameters =
        CertificateParams::new([name.to_owned()]).map_err(|error| failed(error.to_string()))?;
    parameters.distinguished_name.push(DnType::CommonName, name);
    let certificate = parameters.self_signed(&key).map_err(|error| failed(error.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .map_err(|error| failed(error.to_string()))?;
    Ok((TlsAcceptor::from(Arc::new(config)), certificate.pem()))
}
