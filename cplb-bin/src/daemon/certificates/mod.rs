//! The names in the API servers' certificates: a server whose certificate has not the name that clients use is rejected by
//! them, and the health checks, which accept any name, call it healthy.
//!
//! [`Certificates`] does no I/O: the servers and names go in, the rounds that are due come out.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use cplb_config::{Config, Host};
use lb_proxy::health::rustls::pki_types::ServerName;
use lb_proxy::health::{Misnamed, misnamed};

/// The time between two rounds.
const INTERVAL: Duration = Duration::from_secs(60);
/// The time limit of a connection.
const LIMIT: Duration = Duration::from_secs(3);

/// The servers, and the names by which clients verify them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) servers: BTreeSet<SocketAddr>,
    pub(crate) names: Vec<ServerName<'static>>,
    /// The addresses of controllers: a name that leads to one is that controller's own, and clients use the virtual IPs.
    pub(crate) controllers: BTreeSet<IpAddr>,
    pub(crate) virtual_ips: Vec<IpAddr>,
}

/// The end of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compared {
    pub(crate) wanted: Wanted,
    /// The servers that clients reject, with the names and the reasons.
    pub(crate) rejected: Vec<(SocketAddr, Misnamed)>,
    /// The servers that showed no certificate.
    pub(crate) silent: BTreeSet<SocketAddr>,
}

/// The comparison of all servers.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    wanted: Wanted,
    /// The start of the next round; `None` at once.
    next: Option<Instant>,
    is_running: bool,
    rejected: Vec<(SocketAddr, Misnamed)>,
}

impl Certificates {
    /// Replaces the servers and names. After a change a round is due.
    pub(crate) fn set(&mut self, wanted: Wanted) {
        if wanted != self.wanted {
            let Wanted { servers, names, virtual_ips, .. } = &wanted;
            let is_wanted = |name: &ServerName<'_>| {
                names.contains(name)
                    || matches!(name, ServerName::IpAddress(ip) if virtual_ips.contains(&(*ip).into()))
            };
            self.rejected.retain(|(server, found)| servers.contains(server) && is_wanted(&found.name));
            (self.wanted, self.next) = (wanted, None);
        }
    }

    /// The round that is due.
    pub(crate) fn poll_round(&mut self, now: Instant) -> Option<Wanted> {
        let is_due = self.next.is_none_or(|next| next <= now);
        if self.is_running || !is_due || self.wanted.servers.is_empty() || self.wanted.names.is_empty() {
            return None;
        }
        (self.is_running, self.next) = (true, Some(now + INTERVAL));
        Some(self.wanted.clone())
    }

    /// Takes the result of a round. One of former servers or names does not count.
    pub(crate) fn handle_result(&mut self, compared: Compared) {
        self.is_running = false;
        if compared.wanted == self.wanted {
            self.rejected.retain(|(server, _)| compared.silent.contains(server));
            self.rejected.extend(compared.rejected);
        }
    }

    /// The texts for the operator.
    pub(crate) fn texts(&self) -> Vec<String> {
        let text = |(server, Misnamed { name, reason }): &(SocketAddr, Misnamed)| {
            let name = name.to_str();
            format!(
                "clients of {name} reject the certificate of the API server {server}: {reason} (its certificate should have \
                 {name}; if clients use another name, set externalAddress)"
            )
        };
        self.rejected.iter().map(text).collect()
    }
}

/// The names that clients use: the one that is configured; else the kubeconfig's host, unless that is a controller; else the
/// virtual IPs. `controllers` are the addresses and names of controllers.
pub(crate) fn client_names(
    config: &Config,
    kubeconfig_host: Option<&str>,
    controllers: &BTreeSet<Host>,
) -> Vec<ServerName<'static>> {
    let name = |host: &str| ServerName::try_from(host.to_owned()).ok();
    let configured = config.external_address.as_ref().map(|host| match host {
        Host::Address(ip) => ip.to_string(),
        Host::Name(name) => name.clone(),
    });
    if let Some(configured) = configured {
        return name(&configured).into_iter().collect();
    }
    let is_common = |host: &&str| match host.parse::<IpAddr>() {
        Ok(ip) => !ip.is_loopback() && !controllers.contains(&Host::Address(ip.to_canonical())),
        Err(_) => *host != "localhost" && !controllers.contains(&Host::Name((*host).to_owned())),
    };
    match kubeconfig_host.filter(is_common).and_then(name) {
        Some(name) => vec![name],
        None => config.virtual_ips().map(|ip| ServerName::IpAddress(ip.into())).collect(),
    }
}

/// Compares the certificates of all servers. What a server that cannot be reached would show is not known.
pub(crate) async fn compare(wanted: Wanted, mark: u32) -> Compared {
    let (mut rejected, mut silent) = (Vec::new(), BTreeSet::new());
    let mut names = Vec::new();
    for name in &wanted.names {
        if leads_to_a_controller(name, &wanted.controllers).await {
            names.extend(wanted.virtual_ips.iter().map(|ip| ServerName::IpAddress((*ip).into())));
        } else {
            names.push(name.clone());
        }
    }
    for server in &wanted.servers {
        match misnamed(*server, mark, &names, LIMIT).await {
            Ok(found) => rejected.extend(found.into_iter().map(|found| (*server, found))),
            Err(_) => drop(silent.insert(*server)),
        }
    }
    Compared { wanted, rejected, silent }
}

/// Returns whether a DNS name has the address of a controller, as that of a kubeconfig on the controller may.
async fn leads_to_a_controller(name: &ServerName<'_>, controllers: &BTreeSet<IpAddr>) -> bool {
    let ServerName::DnsName(name) = name else { return false };
    let lookup = tokio::time::timeout(LIMIT, tokio::net::lookup_host((name.as_ref(), 0)));
    let found = lookup.await.ok().and_then(Result::ok);
    found.into_iter().flatten().any(|found| controllers.contains(&found.ip().to_canonical()))
}
