//! Reconfiguration: changes the running services to a new configuration without touching what both have in common.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use super::backend::LiveBackend;
use super::config::Service;
use super::error::{InvalidService, ReconfigureError};
use super::event::Event;
use super::listeners::ListenerUpdate;
use super::local::{is_local, local_addresses};
use super::service::{Backends, LiveService, Member};
use super::shared::Shared;
use crate::health::Target;

/// The current configuration. The lock around it serialises changes.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub forbidden: Vec<IpAddr>,
    /// Backends that were left out, so that each is reported once.
    left_out: Vec<(Arc<str>, SocketAddr)>,
    last_id: u32,
}

impl Configuration {
    pub(crate) fn new(forbidden: Vec<IpAddr>) -> Self {
        Configuration { forbidden, left_out: Vec::new(), last_id: 0 }
    }

    /// Replaces the running services by `services`. On error nothing has changed.
    pub(crate) fn reconfigure(
        &mut self,
        shared: &Shared,
        mut services: Vec<Service>,
    ) -> Result<(), ReconfigureError> {
        validate(&services)?;
        let left_out = self.drop_forbidden(&mut services);
        let targets = targets(&services)?;
        let listeners = ListenerUpdate::prepare(shared, &services)?;
        // Nothing below can fail.
        self.report_left_out(shared, left_out);

        let previous = shared.services.load_full();
        let mut live = Vec::with_capacity(services.len());
        for service in &services {
            let known = previous.iter().find(|known| *known.name == *service.name);
            live.push(self.update_service(shared, known, service));
        }
        shared.services.store(Arc::new(live.clone()));
        shared.with_monitor(|monitor| monitor.update(targets));
        listeners.commit(shared, &services, &live, || self.next_id());
        Ok(())
    }

    fn next_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// Removes and returns the backends through which the balancer would connect to itself.
    fn drop_forbidden(&self, services: &mut [Service]) -> Vec<(Arc<str>, SocketAddr)> {
        let ports: Vec<u16> =
            services.iter().flat_map(|service| &service.listen).map(SocketAddr::port).collect();
        let own = local_addresses();
        let mut left_out = Vec::new();
        for service in services {
            let name: Arc<str> = service.name.as_str().into();
            service.backends.retain(|backend| {
                let ip = backend.addr.ip().to_canonical();
                let is_own = || is_local(ip, &own);
                let is_forbidden =
                    self.forbidden.contains(&ip) || (ports.contains(&backend.addr.port()) && is_own());
                if is_forbidden {
                    left_out.push((Arc::clone(&name), backend.addr));
                }
                !is_forbidden
            });
        }
        left_out
    }

    fn report_left_out(&mut self, shared: &Shared, left_out: Vec<(Arc<str>, SocketAddr)>) {
        for (service, backend) in left_out.iter().filter(|found| !self.left_out.contains(found)) {
            shared.emit(Event::BackendForbidden { service: Arc::clone(service), backend: *backend });
        }
        self.left_out = left_out;
    }

    /// Updates a service, or makes it: known backends keep their state, sessions and counters.
    fn update_service(
        &mut self,
        shared: &Shared,
        known: Option<&Arc<LiveService>>,
        service: &Service,
    ) -> Arc<LiveService> {
        let previous = known.map(|known| known.backends.load_full());
        if let (Some(known), Some(previous)) = (known, &previous)
            && previous.is_as_configured(service)
        {
            // The chooser keeps its position.
            return Arc::clone(known);
        }
        let mut removed = known.map_or_else(Vec::new, |known| {
            std::mem::take(&mut *known.removed.lock().unwrap_or_else(PoisonError::into_inner))
        });
        removed.extend(previous.iter().flat_map(|previous| previous.members.iter().cloned()));
        let members = service.backends.iter().map(|config| {
            let position = removed.iter().position(|member| member.backend.addr == config.addr);
            let backend = match position {
                Some(position) => removed.swap_remove(position).backend,
                None => Arc::new(LiveBackend::new(self.next_id(), config.addr)),
            };
            backend.set_weight(config.weight);
            Member { backend, weight: config.weight, name: config.name.clone() }
        });
        let backends = Backends::new(service, members.collect());
        removed.iter().for_each(|member| member.backend.set_weight(0));
        let Some(known) = known else {
            let (name, open) = (service.name.as_str().into(), Arc::clone(&shared.open));
            return Arc::new(LiveService::new(name, backends, open));
        };
        known.backends.store(Arc::new(backends));
        removed.retain(|member| member.backend.active.load(Relaxed) > 0);
        *known.removed.lock().unwrap_or_else(PoisonError::into_inner) = removed;
        Arc::clone(known)
    }
}

fn targets(services: &[Service]) -> Result<Vec<Target>, InvalidService> {
    let mut targets = Vec::new();
    for service in services {
        let name: Arc<str> = service.name.as_str().into();
        for backend in &service.backends {
            let target = Target::new(Arc::clone(&name), backend.addr, service.health.clone());
            let target = target.map(|target| target.with_trust(service.trust.clone()));
            let invalid = |source| InvalidService::Check { name: service.name.clone(), source };
            targets.push(target.map_err(invalid)?);
        }
    }
    Ok(targets)
}

fn validate(services: &[Service]) -> Result<(), InvalidService> {
    let mut listens: HashMap<SocketAddr, &str> = HashMap::new();
    for (i, service) in services.iter().enumerate() {
        let name = || service.name.clone();
        if services[..i].iter().any(|other| other.name == service.name) {
            return Err(InvalidService::DuplicateName { name: name() });
        }
        if service.listen.is_empty() {
            return Err(InvalidService::NoListen { name: name() });
        }
        for &addr in &service.listen {
            if let Some(other) = listens.insert(addr, &service.name) {
                let other = other.to_owned();
                return Err(InvalidService::DuplicateListen { name: name(), other, addr });
            }
        }
        for (j, backend) in service.backends.iter().enumerate() {
            if service.backends[..j].iter().any(|other| other.addr == backend.addr) {
                return Err(InvalidService::DuplicateBackend { name: name(), addr: backend.addr });
            }
        }
        let timings = [
            ("connect_timeout", service.connect_timeout),
            ("hedge_after", service.hedge_after),
            ("health.interval", service.health.interval),
            ("health.timeout", service.health.timeout),
        ];
        if let Some((setting, _)) = timings.into_iter().find(|(_, timing)| timing.is_zero()) {
            return Err(InvalidService::ZeroDuration { name: name(), setting });
        }
    }
    Ok(())
}
