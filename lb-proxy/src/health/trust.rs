//! Mutual authentication: verifies that a server belongs to the cluster, by any of its names, and authenticates this
//! program to it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::header::HeaderValue;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::certificate;

/// The names by which servers are verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// This name at any address.
    Only(ServerName<'static>),
    /// Any of these, or the server's address.
    AnyOf(Vec<ServerName<'static>>),
}

/// The credentials of this program, presented only to verified servers.
#[derive(Default)]
#[non_exhaustive]
pub struct Credentials {
    /// A client certificate with its chain, and its key.
    pub certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// A bearer token (RFC 6750).
    pub token: Option<String>,
}

/// Unusable authorities, names or credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The certificates of the authority.
    #[error("the certificate authority is unusable: {0}")]
    Authority(String),
    /// The certificate of this program, or its key.
    #[error("the client certificate and key are unusable: {0}")]
    Identity(String),
    /// The TLS library refuses its settings.
    #[error("TLS: {0}")]
    Tls(#[from] Error),
    /// The token has characters that no header may have (RFC 9110 section 5.5).
    #[error("the token has characters that no header may have")]
    Token,
}

/// The authority that certifies the servers of a cluster, and the credentials of this program.
///
/// Two are equal if one is a clone of the other.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    verifier: AnyName,
    anonymous: ClientConfig,
    /// With the client's certificate, if there is one.
    identified: ClientConfig,
    has_certificate: bool,
    authorization: Option<HeaderValue>,
}

/// The TLS settings for one handshake with one server. For one connection.
#[derive(Debug)]
#[non_exhaustive]
pub struct ServerTls {
    /// The settings.
    pub config: Arc<ClientConfig>,
    /// The name for the server name indication.
    pub name: ServerName<'static>,
    /// Set once the server is verified; `None` if it is not to be verified.
    proved: Option<Arc<AtomicBool>>,
}

impl ServerTls {
    /// Settings without verification.
    pub(super) fn unverified(config: Arc<ClientConfig>, server: IpAddr) -> Self {
        Self { config, name: ServerName::IpAddress(server.into()), proved: None }
    }

    /// Returns whether an alert in a failed handshake may come from a server of the cluster.
    pub(super) fn is_alert_trusted(&self) -> bool {
        self.proved.as_ref().is_none_or(|proved| proved.load(Ordering::Relaxed))
    }
}

impl Trust {
    /// Trust in certificates that `authorities` signed for `names`.
    ///
    /// # Errors
    ///
    /// See [`TrustError`].
    pub fn new(
        authorities: impl IntoIterator<Item = CertificateDer<'static>>,
        names: Names,
        credentials: Credentials,
    ) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots
                .add(authority)
                .map_err(|error| TrustError::Authority(certificate::explain_error(&error)))?;
        }
        let verifier = AnyName::new(roots, names, Arc::clone(&provider))
            .map_err(|error| TrustError::Authority(certificate::explain_error(&error)))?;
        let anonymous = client_config(Arc::clone(&provider), verifier.clone(), None)?;
        let has_certificate = credentials.certificate.is_some();
        let identified = client_config(provider, verifier.clone(), credentials.certificate)
            .map_err(|error| TrustError::Identity(certificate::explain_error(&error)))?;
        let authorization = credentials.token.map(|token| authorization(&token)).transpose()?;
        Ok(Self(Arc::new(Inner { verifier, anonymous, identified, has_certificate, authorization })))
    }

    /// Returns the TLS settings that verify a server at an address. With `identified` they present the client
    /// certificate once the server is verified.
    pub fn tls_at(&self, server: IpAddr, identified: bool) -> ServerTls {
        let verifier = self.0.verifier.at(server);
        let proved = Some(Arc::clone(&verifier.proved));
        let name = verifier.server_name_indication().cloned().unwrap_or(ServerName::IpAddress(server.into()));
        let mut config = if identified { self.0.identified.clone() } else { self.0.anonymous.clone() };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        ServerTls { config: Arc::new(config), name, proved }
    }

    /// The `Authorization` header for verified servers, if there is a token. Its value is hidden in debug output.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.0.authorization.as_ref()
    }

    /// Returns whether there is a credential.
    pub fn has_credentials(&self) -> bool {
        self.0.has_certificate || self.0.authorization.is_some()
    }
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Trust {}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("names", &self.0.verifier.names).finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

fn authorization(token: &str) -> Result<HeaderValue, TrustError> {
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TrustError::Token);
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| TrustError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

fn client_config(
    provider: Arc<CryptoProvider>,
    verifier: AnyName,
    certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match certificate {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    // A resumed session may have been verified under another name.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Accepts certificates of one authority for any of several names, so that an address that merely claims to be a server
/// is rejected.
#[derive(Debug, Clone)]
struct AnyName {
    inner: Arc<WebPkiServerVerifier>,
    names: Names,
    /// Set once it has accepted a certificate.
    proved: Arc<AtomicBool>,
}

impl AnyName {
    fn new(roots: RootCertStore, names: Names, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let inner = inner.build().map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { inner, names, proved: Arc::default() })
    }

    /// Returns the verifier for a server at an address, which its certificate may name.
    fn at(&self, address: IpAddr) -> Self {
        let mut names = self.names.clone();
        if let Names::AnyOf(names) = &mut names {
            names.push(ServerName::IpAddress(address.into()));
        }
        Self { inner: Arc::clone(&self.inner), names, proved: Arc::default() }
    }

    /// The name for the server name indication: a DNS name if there is one.
    fn server_name_indication(&self) -> Option<&ServerName<'static>> {
        let names = self.names();
        names.iter().find(|name| matches!(name, ServerName::DnsName(_))).or_else(|| names.first())
    }

    /// Records the server's proof: its signature, which is verified after the certificate that it belongs to.
    fn record_proof(
        &self,
        verified: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.proved.store(verified.is_ok(), Ordering::Relaxed);
        verified
    }

    fn names(&self) -> &[ServerName<'static>] {
        match &self.names {
            Names::Only(name) => std::slice::from_ref(name),
            Names::AnyOf(names) => names,
        }
    }
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut result = Err(Error::InvalidCertificate(CertificateError::NotValidForName));
        for name in self.names() {
            result = self.inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
            let other_name = matches!(
                result,
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
                ))
            );
            if !other_name {
                break;
            }
        }
        result
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.record_proof(self.inner.verify_tls12_signature(message, cert, dss))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.record_proof(self.inner.verify_tls13_signature(message, cert, dss))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
