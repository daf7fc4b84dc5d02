//! Self-signed certificates for backends.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::Error;

/// The host numbers of virtual IPs, which are in every certificate, as clients expect it of API servers.
const VIP_HOSTS: [u8; 5] = [100, 101, 102, 103, 200];

/// Returns an acceptor with a new self-signed certificate, and the certificate as PEM. Its common name is `name`, and its
/// subject alternative names are `name` and the virtual IPs in the networks of `addresses`.
pub(super) fn acceptor(
    name: &str,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Result<(TlsAcceptor, String), Error> {
    let failed = |reason: String| Error::Certificate { name: name.to_owned(), reason };
    let key = KeyPair::generate().map_err(|error| failed(error.to_string()))?;
    let vips = addresses.into_iter().flat_map(|own| VIP_HOSTS.map(|host| vip(own, host).to_string()));
    let names: Vec<String> = std::iter::once(name.to_owned()).chain(vips).collect();
    let mut parameters = CertificateParams::new(names).map_err(|error| failed(error.to_string()))?;
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

/// The address with a host number, in decimal digits, in the network of `own`.
fn vip(own: IpAddr, host: u8) -> IpAddr {
    match own {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            [a, b, c, host].into()
        }
        IpAddr::V6(ip) => {
            let digits = u16::from_str_radix(&host.to_string(), 16).unwrap_or_default();
            let [a, b, c, d, e, f, g, _] = ip.segments();
            [a, b, c, d, e, f, g, digits].into()
        }
    }
}
