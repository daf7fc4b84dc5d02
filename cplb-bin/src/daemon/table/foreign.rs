//! Services of other software in the kernel's IPVS.
//!
//! IPVS handles packets for the address and port of a service before the socket that `tproxy` has assigned; kube-proxy
//! creates such services for a Kubernetes Service whose `externalIPs` has a virtual IP.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ipvs::{Client, RequestError, ServiceKey};

/// The file that exists in a network namespace while the kernel's module is loaded. A request for the module's netlink
/// family would load it.
const MODULE: &str = "/proc/net/ip_vs";

/// The timeout of a request; the serving verdict waits for it.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Lists the services of IPVS.
#[derive(Debug, Default)]
pub(super) struct ForeignServices {
    client: Option<Client>,
}

impl ForeignServices {
    /// The addresses and TCP ports of IPVS services. Services of this daemon match marks, so they are not among them.
    /// `None` if the kernel does not answer.
    pub(super) async fn list(&mut self) -> Option<BTreeSet<SocketAddr>> {
        if !Path::new(MODULE).exists() {
            self.client = None;
            return Some(BTreeSet::new());
        }
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::spawn().ok()?.with_timeout(TIMEOUT)),
        };
        let services = match client.services().await {
            Ok(services) => services,
            Err(RequestError::NoFamily) => Vec::new(),
            Err(error) => {
                tracing::debug!(%error, "IPVS services cannot be listed");
                if error == RequestError::Closed {
                    self.client = None;
                }
                return None;
            }
        };
        Some(services.iter().filter_map(|entry| endpoint(&entry.service.key())).collect())
    }
}

fn endpoint(key: &ServiceKey) -> Option<SocketAddr> {
    match key {
        ServiceKey::Address { protocol: ipvs::Protocol::TCP, address, port } => {
            Some(SocketAddr::new(address.to_canonical(), *port))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tcp_services_by_address_are_endpoints() {
        let vip = "10.0.0.100".parse().unwrap();
        assert_eq!(endpoint(&ServiceKey::tcp(vip, 6443)), Some(SocketAddr::new(vip, 6443)));
        assert_eq!(endpoint(&ServiceKey::udp(vip, 6443)), None);
        let mark = std::num::NonZeroU32::new(0x1001).unwrap();
        assert_eq!(endpoint(&ServiceKey::Fwmark { family: ipvs::AddressFamily::V4, mark }), None);
    }
}
