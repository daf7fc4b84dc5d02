//! A certificate authority for one cluster.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;

use crate::Error;

const SERVER: &str = "kube-apiserver";

/// Signs certificates for API servers and their clients.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Its key, PEM.
    pub key_pem: String,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

/// The validity period of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Validity {
    /// Valid for as long as tests run.
    #[default]
    Now,
    /// Expired in 2020.
    Expired,
}

impl Authority {
    /// Creates an authority with a self-signed certificate.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub fn new(name: &str) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(|error| failed(name, error))?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).map_err(|error| failed(name, error))?;
        let (pem, certificate) = (certificate.pem(), certificate.der().clone());
        Ok(Self { issuer: Issuer::new(parameters, key), certificate, pem })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate, DER.
    #[must_use]
    pub fn der(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// Issues a server certificate for these names and addresses.
    ///
    /// # Errors
    /// [`Error::Certificate`], also for a string that is not a valid name.
    pub fn server(&self, names: &[&str], validity: Validity) -> Result<Identity, Error> {
        self.sign(SERVER, names, ExtendedKeyUsagePurpose::ServerAuth, validity)
    }

    /// Issues a client certificate for this name.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub fn client(&self, name: &str, validity: Validity) -> Result<Identity, Error> {
        self.sign(name, &[], ExtendedKeyUsagePurpose::ClientAuth, validity)
    }

    fn sign(
        &self,
        name: &str,
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
        validity: Validity,
    ) -> Result<Identity, Error> {
        let key = KeyPair::generate().map_err(|error| failed(name, error))?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).map_err(|error| failed(name, error))?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![usage];
        if validity == Validity::Expired {
            (parameters.not_before, parameters.not_after) =
                (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 12, 31));
        }
        let signed = parameters.signed_by(&key, &self.issuer).map_err(|error| failed(name, error))?;
        Ok(Identity {
            certificate_pem: signed.pem(),
            key_pem: key.serialize_pem(),
            certificate: signed.der().clone(),
            key,
        })
    }

    /// Returns a TLS acceptor that presents an identity and requests client certificates of this authority. Clients
    /// without a certificate are accepted, too.
    pub(crate) fn acceptor(&self, identity: &Identity) -> Result<TlsAcceptor, Error> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).map_err(|error| failed(SERVER, error))?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| failed(SERVER, error))?;
        let key = PrivateKeyDer::Pkcs8(identity.key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(SERVER, error))?
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![identity.certificate.clone()], key)
            .map_err(|error| failed(SERVER, error))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn failed(name: &str, error: impl std::fmt::Display) -> Error {
    Error::Certificate { name: name.to_owned(), reason: error.to_string() }
}
