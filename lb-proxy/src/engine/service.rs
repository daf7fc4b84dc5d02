//! The state of a service while the balancer runs: its current backends and the choice among them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::admission::{Limits, Open, Refusals};
use super::backend::{LiveBackend, Tier};
use super::chooser::{Candidate, Chooser, client_key};
use super::config::{Backend, Service};
use crate::balance::Balance;

/// A backend with its configured weight and name.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub backend: Arc<LiveBackend>,
    pub weight: u32,
    pub name: Option<String>,
}

/// The part of a service that a reconfiguration replaces as a whole.
#[derive(Debug)]
pub(crate) struct Backends {
    pub members: Vec<Member>,
    pub balance: Balance,
    pub connect_timeout: Duration,
    pub hedge_after: Duration,
    pub slow_start: Duration,
    pub max_connections: Option<usize>,
    pub max_connections_per_client: Option<usize>,
    choice: Mutex<(Chooser, Vec<Candidate>)>,
}

impl Backends {
    pub(crate) fn new(service: &Service, members: Vec<Member>) -> Self {
        Backends {
            balance: service.balance,
            connect_timeout: service.connect_timeout,
            hedge_after: service.hedge_after,
            slow_start: service.slow_start,
            max_connections: service.max_connections,
            max_connections_per_client: service.max_connections_per_client,
            choice: Mutex::new((Chooser::new(service.balance, members.len()), Vec::new())),
            members,
        }
    }

    /// Returns whether a configuration equals this one.
    pub(crate) fn is_as_configured(&self, service: &Service) -> bool {
        let same_settings = (self.balance, self.connect_timeout, self.hedge_after, self.slow_start)
            == (service.balance, service.connect_timeout, service.hedge_after, service.slow_start)
            && (self.max_connections, self.max_connections_per_client)
                == (service.max_connections, service.max_connections_per_client);
        let same = |member: &Member, config: &Backend| {
            (member.backend.addr, member.weight, &member.name) == (config.addr, config.weight, &config.name)
        };
        same_settings
            && self.members.len() == service.backends.len()
            && self.members.iter().zip(&service.backends).all(|(member, config)| same(member, config))
    }

    /// Returns the limits on open connections, where all services together may have `total`.
    pub(crate) fn limits(&self, total: usize) -> Limits {
        Limits::new(total, self.max_connections, self.max_connections_per_client)
    }

    /// Chooses a backend for a client, except those `tried` (ids); `None` when none is left.
    ///
    /// Preferred backends first, then fallbacks, excluded ones last: if all are down, all are tried.
    pub(crate) fn choose(&self, now: u64, client: IpAddr, tried: &[u32]) -> Option<&Arc<LiveBackend>> {
        let mut choice = self.choice.lock().unwrap_or_else(PoisonError::into_inner);
        let (chooser, candidates) = &mut *choice;
        for tier in [Tier::Preferred, Tier::Fallback, Tier::LastResort] {
            candidates.clear();
            candidates.extend(self.members.iter().map(|member| {
                let backend = &member.backend;
                let ready = backend.readiness(now, self.slow_start);
                let usable = backend.tier(now, ready) == tier && !tried.contains(&backend.id);
                let load = backend.active.load(Relaxed) + backend.connecting.load(Relaxed);
                Candidate {
                    weight: member.weight,
                    ready: if usable { ready } else { 0 },
                    load,
                    key: backend.key,
                }
            }));
            if let Some(chosen) = chooser.choose(candidates, client_key(client)) {
                let backend = &self.members[chosen].backend;
                backend.record_choice(now);
                return Some(backend);
            }
        }
        None
    }
}

/// A service, shared by all workers.
#[derive(Debug)]
pub(crate) struct LiveService {
    pub name: Arc<str>,
    pub backends: ArcSwap<Backends>,
    /// Removed backends that may still have sessions, for the snapshot.
    pub removed: Mutex<Vec<Member>>,
    pub accepted: AtomicU64,
    pub refusals: Refusals,
    pub redispatched: AtomicU64,
    pub open: Open,
}

impl LiveService {
    /// `open` counts the connections of all services.
    pub(crate) fn new(name: Arc<str>, backends: Backends, open: Arc<AtomicUsize>) -> Self {
        LiveService {
            name,
            backends: ArcSwap::from_pointee(backends),
            removed: Mutex::new(Vec::new()),
            accepted: AtomicU64::new(0),
            refusals: Refusals::default(),
            redispatched: AtomicU64::new(0),
            open: Open::new(open),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::backend::BackendHealth;
    use crate::engine::event::Failure;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn backends(weights: &[u32]) -> Backends {
        let service = Service::new("api", Vec::new(), Vec::new());
        let member = |(i, &weight): (usize, &u32)| {
            let addr = ([10, 0, 0, i as u8], 6443).into();
            let config = Backend { addr, weight, name: None };
            Member { backend: Arc::new(LiveBackend::new(i as u32, config.addr)), weight, name: None }
        };
        let members = weights.iter().enumerate().map(member).collect();
        Backends::new(&service, members)
    }

    fn order(backends: &Backends, now: u64) -> Vec<u32> {
        let mut tried = Vec::new();
        while let Some(backend) = backends.choose(now, CLIENT, &tried) {
            assert!(!tried.contains(&backend.id));
            tried.push(backend.id);
        }
        tried
    }

    #[test]
    fn preferred_backends_come_first_excluded_ones_last_and_drained_ones_never() {
        let set = backends(&[1, 1, 0, 1]);
        set.members[0].backend.record_health(BackendHealth::Down, 1, "connection refused");
        set.members[1].backend.failed(1, Failure::Slow);
        assert_eq!(order(&set, 2), [3, 1, 0]);
    }

    #[test]
    fn the_trial_of_a_suspect_goes_to_one_client() {
        let set = backends(&[1, 1]);
        set.members[0].backend.failed(1, Failure::Slow);
        let firsts: Vec<u32> = (0..10).map(|_| set.choose(1_500, CLIENT, &[]).unwrap().id).collect();
        assert_eq!(firsts.iter().filter(|&&id| id == 0).count(), 1, "{firsts:?}");
    }

    #[test]
    fn choose_returns_none_when_no_backend_is_left() {
        assert!(backends(&[]).choose(1, CLIENT, &[]).is_none());
        assert!(backends(&[0]).choose(1, CLIENT, &[]).is_none());
        assert!(backends(&[1]).choose(1, CLIENT, &[0]).is_none());
    }
}
