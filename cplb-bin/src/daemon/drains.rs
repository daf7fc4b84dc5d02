//! The backends that operators drain: pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A backend by address, of every service or of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Selector {
    pub(crate) ip: IpAddr,
    /// `None` for every port.
    pub(crate) port: Option<u16>,
    /// `None` for every service.
    pub(crate) service: Option<String>,
}

impl Selector {
    /// Reads an address with or without a port.
    ///
    /// # Errors
    /// A text for the operator.
    pub(crate) fn parse(backend: &str, service: Option<&str>) -> Result<Self, String> {
        let address = || Some((backend.parse::<SocketAddr>().ok()?, ()));
        let (ip, port) = match (backend.trim_matches(['[', ']']).parse(), address()) {
            (Ok(ip), _) => (ip, None),
            (_, Some((address, ()))) => (address.ip(), Some(address.port())),
            _ => return Err(format!("{backend} is no address: give it as `cplb status` shows it")),
        };
        Ok(Self { ip: ip.to_canonical(), port, service: service.map(str::to_owned) })
    }

    pub(crate) fn selects(&self, service: &str, backend: SocketAddr) -> bool {
        backend.ip().to_canonical() == self.ip
            && self.port.is_none_or(|port| port == backend.port())
            && self.service.as_deref().is_none_or(|name| name == service)
    }
}

/// The drains in effect. They outlast a reload, and end with the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Drains {
    /// With their ends.
    drains: BTreeMap<Selector, Option<Instant>>,
}

impl Drains {
    /// Drains a backend until `until`, or until [`Drains::remove`]. A later one for the same backend replaces the end.
    pub(crate) fn add(&mut self, selector: Selector, until: Option<Instant>) {
        self.drains.insert(selector, until);
    }

    /// Ends a drain.
    pub(crate) fn remove(&mut self, selector: &Selector) {
        self.drains.remove(selector);
    }

    /// The drains in effect.
    pub(crate) fn selectors(&self) -> impl Iterator<Item = &Selector> {
        self.drains.keys()
    }

    /// Ends the drains whose time is over. Returns whether there were any.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let before = self.drains.len();
        self.drains.retain(|_, until| until.is_none_or(|until| until > now));
        self.drains.len() < before
    }

    /// Returns whether a backend of a service is drained, and the rest of the time if that has an end.
    pub(crate) fn of(&self, service: &str, backend: SocketAddr, now: Instant) -> Option<Option<Duration>> {
        let all = self.drains.iter().filter(|(selector, _)| selector.selects(service, backend));
        // The one that lasts longest counts.
        let rest = |until: &Option<Instant>| until.map(|until| until.saturating_duration_since(now));
        all.map(|(_, until)| rest(until)).max_by_key(|rest| rest.unwrap_or(Duration::MAX))
    }

    /// Takes new connections away from the drained backends: weight 0.
    pub(crate) fn apply(&self, services: &mut [lb_proxy::Service]) {
        if self.drains.is_empty() {
            return;
        }
        for service in services {
            for backend in &mut service.backends {
                if self.drains.keys().any(|selector| selector.selects(&service.name, backend.addr)) {
                    backend.weight = 0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(backend: &str, service: Option<&str>) -> Selector {
        Selector::parse(backend, service).unwrap()
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_backend_is_selected_by_address_port_and_service() {
        let selects = |text: &str, service| selector(text, service).selects("api", address("10.0.0.12:6443"));
        assert!(selects("10.0.0.12", None) && selects("10.0.0.12:6443", None));
        assert!(selects("::ffff:10.0.0.12", Some("api")));
        assert!(!selects("10.0.0.13", None) && !selects("10.0.0.12:6444", None));
        assert!(!selects("10.0.0.12", Some("other")));
        for text in ["fd00::12", "[fd00::12]", "[fd00::12]:6443"] {
            assert!(selector(text, None).selects("api", address("[fd00::12]:6443")), "{text}");
        }
        for wrong in ["", "node-2", "10.0.0", "10.0.0.12:", "10.0.0.12:99999"] {
            assert!(Selector::parse(wrong, None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_drain_lasts_until_it_ends_or_is_removed() {
        let (now, mut drains) = (Instant::now(), Drains::default());
        let second = Duration::from_secs(1);
        let backend = address("10.0.0.12:6443");
        drains.add(selector("10.0.0.12", None), None);
        drains.add(selector("10.0.0.12:6443", Some("api")), Some(now + second));
        assert_eq!(drains.of("api", backend, now), Some(None), "the longest counts");
        assert_eq!(drains.of("other", backend, now), Some(None));
        assert!(!drains.expire(now) && drains.expire(now + second));
        drains.remove(&selector("10.0.0.13", None));
        assert_eq!(drains.selectors().count(), 1);
        drains.remove(&selector("10.0.0.12", None));
        assert_eq!(drains, Drains::default());
        drains.add(selector("10.0.0.12:6443", Some("api")), Some(now + second));
        assert_eq!(drains.of("api", backend, now), Some(Some(second)));
    }

    #[test]
    fn drained_backends_have_weight_0() {
        let backend = |text: &str| lb_proxy::Backend::new(address(text));
        let backends = vec![backend("10.0.0.11:6443"), backend("10.0.0.12:6443")];
        let mut services = vec![lb_proxy::Service::new("api", Vec::new(), backends)];
        let mut drains = Drains::default();
        drains.apply(&mut services);
        drains.add(selector("10.0.0.12", None), None);
        drains.apply(&mut services);
        let weights: Vec<u32> = services[0].backends.iter().map(|backend| backend.weight).collect();
        assert_eq!(weights, [1, 0]);
    }
}
