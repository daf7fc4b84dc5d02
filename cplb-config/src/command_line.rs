//! The servers that the command line adds to a configuration.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::model::{Backend, Config, Host, LbKind, Port, Service, VirtualServer};

impl Config {
    /// Adds a server to those that all services share, as `cplb run --backend` does.
    ///
    /// # Errors
    /// [`RefusedBackend`] if the proxy would connect to itself or to another node's, if no service would use the
    /// server, or if IPVS could not direct to it: a server that is added loads again as part of the effective document.
    pub fn add_backend(&mut self, backend: Backend) -> Result<(), RefusedBackend> {
        if let Host::Address(address) = backend.host
            && self.backend_rule().moves(address)
        {
            return Err(RefusedBackend::VirtualIp(address));
        }
        if self.disable_load_balancer || self.sharing().next().is_none() {
            return Err(RefusedBackend::Unused(backend));
        }
        let rule = self.backend_rule();
        let port = |service: &Service| backend.port.unwrap_or(service.backend_port);
        if self.sharing().any(|service| rule.leads_elsewhere(&backend.host, port(service)).is_err()) {
            return Err(RefusedBackend::Proxy(backend));
        }
        if backend.port.is_some() && self.sharing().count() > 1 {
            return Err(RefusedBackend::SharedPort(backend));
        }
        if self.virtual_servers.iter().any(|server| backend.host.is_loopback_for(server.address)) {
            return Err(RefusedBackend::Loopback(backend));
        }
        if let Some((server, port)) = self.keeps_other_port(&backend) {
            let (kind, vip) = (server.kind, server.address);
            return Err(RefusedBackend::VirtualServerPort { backend, kind, vip, port });
        }
        let same = |other: &Backend| other.host == backend.host && other.port == backend.port;
        if !self.backends.fixed.iter().any(same) {
            self.backends.fixed.push(backend);
        }
        Ok(())
    }

    /// Sets the kubeconfig with which the servers that all services share are discovered, as `cplb run --kubeconfig`
    /// does; it replaces one of the file.
    ///
    /// # Errors
    /// [`UnusedKubeconfig`].
    pub fn set_kubeconfig(&mut self, path: PathBuf) -> Result<(), UnusedKubeconfig> {
        if self.disable_load_balancer || self.sharing().next().is_none() {
            return Err(UnusedKubeconfig);
        }
        self.backends.kubeconfig = Some(path);
        Ok(())
    }

    /// The virtual server that would forward packets to the backend without a change of their port, and the port.
    fn keeps_other_port(&self, backend: &Backend) -> Option<(&VirtualServer, Port)> {
        let own = backend.port?;
        let port = self.sharing().map(|service| service.port).find(|port| *port != own)?;
        let server = self.virtual_servers.iter().find(|server| server.kind.keeps_destination())?;
        Some((server, port))
    }
}

/// No service connects to the shared servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no service would use the servers that it finds: each has backends of its own, or nothing is balanced at all"
)]
pub struct UnusedKubeconfig;

/// The reason why a server may not be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedBackend {
    /// It is a virtual IP: the node that holds it would connect to itself.
    #[error("{0} is a virtual IP of this configuration; name the controllers' own addresses")]
    VirtualIp(IpAddr),
    /// It is this node's own proxy, or another node's.
    #[error("{0} is where a proxy of this configuration listens, on every node; name the server's own port")]
    Proxy(Backend),
    /// No service connects to the shared servers.
    #[error("no service would use {0}: each has backends of its own, or nothing is balanced at all")]
    Unused(Backend),
    /// A loopback address, behind a virtual IP that IPVS balances.
    #[error(
        "{0} is the local node, on every node: with virtualServers a node would direct connections to itself; name the \
         controllers' own addresses"
    )]
    Loopback(Backend),
    /// Direct routing and tunnels do not rewrite packets, so its port has to be that of the service.
    #[error(
        "lbKind {kind} cannot change the port: connections to {vip} on port {port} arrive on port {port} of a server, not \
         on that of {backend}; leave the port out, or write `lbKind: NAT`"
    )]
    VirtualServerPort {
        /// The server.
        backend: Backend,
        /// The forwarding method.
        kind: LbKind,
        /// The virtual IP.
        vip: IpAddr,
        /// The port of the service.
        port: Port,
    },
    /// Several services would connect to its one port.
    #[error("{0} names one port, and several services share it; leave the port out")]
    SharedPort(Backend),
}
