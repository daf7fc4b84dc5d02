//! Backends given by name, resolved when needed and again from time to time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use cplb_config::{Config, Host};

/// How long one look-up may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What the names of the configuration meant when they were last asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(BTreeMap<String, Vec<IpAddr>>);

impl Names {
    /// Asks the system's resolver for every name; those that it does not know have no address.
    pub(crate) async fn resolve(config: &Config) -> Self {
        let mut names = Self::default();
        let shared = config.backends.fixed.iter();
        let own =
            config.services.iter().filter_map(|service| service.backends.as_ref()).flat_map(|own| &own.fixed);
        for backend in shared.chain(own) {
            if let Host::Name(name) = &backend.host
                && !names.0.contains_key(name)
            {
                names.0.insert(name.clone(), look_up(name).await);
            }
        }
        names
    }

    /// The addresses of `name`.
    pub(crate) fn addresses(&self, name: &str) -> &[IpAddr] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether there is any name to resolve.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps what was known of names that can no longer be resolved: a backend does not die with its name server.
    pub(crate) fn keep_known(&mut self, before: &Self) {
        for (name, addresses) in &mut self.0 {
            if addresses.is_empty() {
                addresses.clone_from(before.0.get(name).unwrap_or(&Vec::new()));
            }
        }
    }
}

async fn look_up(name: &str) -> Vec<IpAddr> {
    match tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((name, 0))).await {
        Ok(Ok(found)) => {
            let mut addresses: Vec<_> = found.map(|address| address.ip()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        }
        Ok(Err(error)) => {
            tracing::warn!(name, %error, "a backend's name cannot be resolved; trying again");
            Vec::new()
        }
        Err(_) => {
            tracing::warn!(name, "a backend's name cannot be resolved in time; trying again");
            Vec::new()
        }
    }
}
