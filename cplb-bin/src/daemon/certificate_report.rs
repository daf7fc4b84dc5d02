//! The comparison of the API servers' certificates with the names that clients use: what is compared, and what follows from it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use cplb_config::Host;
use lb_proxy::{HealthKind, MARK};

use super::Daemon;
use super::certificates::{Compared, Wanted, client_names, compare};
use super::problems::Cause;
use super::sender::EventSender;

impl Daemon {
    /// Starts a comparison if one is due, and reports the servers that clients reject.
    pub(super) fn update_certificates(&mut self) {
        let wanted = if self.stopping { Wanted::default() } else { self.compared_servers() };
        self.certificates.set(wanted);
        if let Some(round) = self.certificates.poll_round(Instant::now()) {
            let events = EventSender::<Compared>::new(&self.channel);
            tokio::spawn(async move {
                let _ = events.send(compare(round, MARK).await);
            });
        }
        let texts = self.certificates.texts();
        if self.problems.raise_all(Cause::Certificates, texts.clone()) {
            texts.iter().for_each(|text| tracing::warn!("{text}"));
        }
    }

    pub(super) fn on_compared(&mut self, compared: Compared) {
        self.certificates.handle_result(compared);
    }

    /// The API servers and the names that clients use; none without virtual IPs, since the clients of a load balancer alone
    /// may use any name for it.
    fn compared_servers(&self) -> Wanted {
        let Some(service) = self.config.api_service() else { return Wanted::default() };
        let balanced = self.desired.proxy.services.iter().find(|found| *found.name == *service.name);
        let Some(balanced) = balanced.filter(|found| found.health.kind != HealthKind::Tcp) else {
            return Wanted::default();
        };
        let servers: BTreeSet<_> = balanced.backends.iter().map(|backend| backend.addr).collect();
        let kubeconfig = self.config.backends_of(service).kubeconfig.as_ref();
        let cluster = kubeconfig.and_then(|path| self.backends.resolved.discovered(path));
        let identity = cluster.and_then(|cluster| cluster.identity.as_ref());
        if kubeconfig.is_some() && identity.is_none() && self.config.external_address.is_none() {
            // The name that clients use is known once a server was verified.
            return Wanted::default();
        }
        let addresses = servers.iter().map(|server| server.ip().to_canonical());
        let controllers: BTreeSet<IpAddr> = addresses.chain(self.all_own_addresses()).collect();
        let listed = self.config.backends_of(service).fixed.iter().map(|backend| backend.host.clone());
        let own_name = Host::Name(self.node_name.clone());
        let known = controllers.iter().copied().map(Host::Address).chain(listed).chain([own_name]).collect();
        let names = client_names(&self.config, identity.map(|identity| identity.host.as_str()), &known);
        // A name that is configured is what clients use, whatever it leads to.
        let controllers = if self.config.external_address.is_none() { controllers } else { BTreeSet::new() };
        let virtual_ips = self.config.virtual_ips().collect();
        Wanted { servers, names, controllers, virtual_ips }
    }
}
