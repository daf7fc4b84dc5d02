//! Making the running services what a configuration says, without touching what stays.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::backend::LiveBackend;
use crate::config::Service;
use crate::error::{InvalidService, ReconfigureError};
use crate::event::Event;
use crate::health::Target;
use crate::listener::{Bound, bind, is_in_use};
use crate::local::{is_local, local_addresses};
use crate::service::{Backends, LiveService, Member};
use crate::shared::{Listener, Listening, Shared};
use crate::worker::Command;

/// How long workers may take to close a listener. Only one that hangs needs longer than a turn.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is configured now. Changes are serialised by the lock around it.
#[derive(Debug)]
pub(crate) struct Applied {
    pub forbidden: Vec<IpAddr>,
    /// Backends that were left out, so that each is told of once.
    left_out: Vec<(Arc<str>, SocketAddr)>,
    last_id: u32,
}

impl Applied {
    pub(crate) fn new(forbidden: Vec<IpAddr>) -> Self {
        Applied { forbidden, left_out: Vec::new(), last_id: 0 }
    }

    /// Makes `services` the running ones. On error nothing has changed.
    pub(crate) fn apply(
        &mut self,
        shared: &Shared,
        mut services: Vec<Service>,
    ) -> Result<(), ReconfigureError> {
        validate(&services)?;
        self.drop_forbidden(shared, &mut services);
        let targets = targets(&services)?;
        let bound = bind_new(shared, &services)?;

        let previous = shared.services.load_full();
        let mut live = Vec::with_capacity(services.len());
        for service in &services {
            let known = previous.iter().find(|known| *known.name == *service.name);
            live.push(self.revise(known, service));
        }
        shared.services.store(Arc::new(live.clone()));
        shared.with_monitor(|monitor| monitor.update(targets));
        self.listen(shared, &services, &live, bound);
        Ok(())
    }

    fn next_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// Leaves out backends through which the balancer would connect to itself.
    fn drop_forbidden(&mut self, shared: &Shared, services: &mut [Service]) {
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
        for (service, backend) in left_out.iter().filter(|found| !self.left_out.contains(found)) {
            shared.tell(Event::BackendForbidden { service: Arc::clone(service), backend: *backend });
        }
        self.left_out = left_out;
    }

    /// The service as it shall be: known backends keep their state, sessions and counters.
    fn revise(&mut self, known: Option<&Arc<LiveService>>, service: &Service) -> Arc<LiveService> {
        let previous = known.map(|known| known.backends.load_full());
        if let (Some(known), Some(previous)) = (known, &previous)
            && previous.is_as_configured(service)
        {
            // The choice goes on where it was.
            return Arc::clone(known);
        }
        let mut leaving = known.map_or_else(Vec::new, |known| {
            std::mem::take(&mut *known.leaving.lock().unwrap_or_else(PoisonError::into_inner))
        });
        leaving.extend(previous.iter().flat_map(|previous| previous.members.iter().cloned()));
        let members = service.backends.iter().map(|config| {
            let position = leaving.iter().position(|member| member.backend.addr == config.addr);
            let backend = match position {
                Some(position) => leaving.swap_remove(position).backend,
                None => Arc::new(LiveBackend::new(self.next_id(), config.addr)),
            };
            Member { backend, weight: config.weight, name: config.name.clone() }
        });
        let backends = Backends::new(service, members.collect());
        let Some(known) = known else {
            return Arc::new(LiveService::new(service.name.as_str().into(), backends));
        };
        known.backends.store(Arc::new(backends));
        leaving.retain(|member| member.backend.active.load(Relaxed) > 0);
        *known.leaving.lock().unwrap_or_else(PoisonError::into_inner) = leaving;
        Arc::clone(known)
    }

    /// Points listeners to their services, opens new ones and closes those no longer wanted.
    fn listen(
        &mut self,
        shared: &Shared,
        services: &[Service],
        live: &[Arc<LiveService>],
        bound: Vec<(SocketAddr, Bound)>,
    ) {
        let mut bound: HashMap<SocketAddr, Bound> = bound.into_iter().collect();
        let mut listeners = Vec::clone(&shared.listeners.load());
        let mut kept = Vec::new();
        for (service, live) in services.iter().zip(live) {
            for &configured in &service.listen {
                if let Some(position) = listeners.iter().position(|l| l.configured == configured) {
                    let listener = listeners.swap_remove(position);
                    listener.listening.service.store(Arc::clone(live));
                    kept.push(listener);
                    continue;
                }
                let Some(Bound { actual, fallback, sockets }) = bound.remove(&configured) else { continue };
                if let Some(reason) = fallback {
                    let reason = reason.to_string();
                    shared.tell(Event::ListenFallback { configured, actual, reason });
                }
                let id = self.next_id();
                let listening = Arc::new(Listening { id, service: ArcSwap::new(Arc::clone(live)) });
                open(shared, &listening, sockets);
                kept.push(Listener { configured, actual, listening });
            }
        }
        shared.listeners.store(Arc::new(kept));
        close(shared, &listeners);
    }
}

/// Sockets for the addresses that are not listened on yet.
fn bind_new(shared: &Shared, services: &[Service]) -> Result<Vec<(SocketAddr, Bound)>, ReconfigureError> {
    let wanted: Vec<SocketAddr> = services.iter().flat_map(|service| service.listen.clone()).collect();
    let before = shared.listeners.load_full();
    let mut bound = Vec::new();
    let mut closed: Vec<Listener> = Vec::new();
    for &addr in &wanted {
        if before.iter().any(|listener| listener.configured == addr) {
            continue;
        }
        let mut result = bind(addr, shared.workers.len(), &shared.tuning);
        if result.as_ref().is_err_and(is_in_use) {
            // Perhaps by an address that is to be given up, such as 127.0.0.1 when [::] is wanted now.
            let is_in_the_way = |listener: &&Listener| {
                listener.actual.port() == addr.port()
                    && !wanted.contains(&listener.configured)
                    && closed.iter().all(|closed| closed.configured != listener.configured)
            };
            let in_the_way: Vec<_> = before.iter().filter(is_in_the_way).cloned().collect();
            if !in_the_way.is_empty() {
                wait_closed(&close(shared, &in_the_way), CLOSE_TIMEOUT);
                closed.extend(in_the_way);
                result = bind(addr, shared.workers.len(), &shared.tuning);
            }
        }
        match result {
            Ok(sockets) => bound.push((addr, sockets)),
            Err(error) => {
                drop(bound);
                reopen(shared, &closed);
                return Err(listen_error(addr, error));
            }
        }
    }
    Ok(bound)
}

/// Takes back what was closed for a change that failed.
fn reopen(shared: &Shared, closed: &[Listener]) {
    for listener in closed {
        match bind(listener.actual, shared.workers.len(), &shared.tuning) {
            Ok(bound) => open(shared, &listener.listening, bound.sockets),
            Err(error) => shared.exhausted(0, &error),
        }
    }
}

/// Gives each worker its socket.
fn open(shared: &Shared, listening: &Arc<Listening>, sockets: Vec<std::net::TcpListener>) {
    for (worker, socket) in shared.workers.iter().zip(sockets) {
        // A worker that has ended is reported by its own event and by the heartbeat.
        let _ = worker.commands.send(Command::Listen { listening: Arc::clone(listening), socket });
    }
}

/// Has all workers close listeners; what they acknowledge arrives at the receiver, which ends after the last.
pub(crate) fn close(shared: &Shared, listeners: &[Listener]) -> Receiver<()> {
    let (done, closed) = mpsc::sync_channel(listeners.len() * shared.workers.len());
    for listener in listeners {
        for worker in &shared.workers {
            let command = Command::Unlisten { id: listener.listening.id, done: done.clone() };
            let _ = worker.commands.send(command);
        }
    }
    closed
}

/// Waits until all listeners of a [`close`] are closed, or for so long.
pub(crate) fn wait_closed(closed: &Receiver<()>, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    while closed.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
}

fn listen_error(addr: SocketAddr, source: io::Error) -> ReconfigureError {
    if is_in_use(&source) {
        ReconfigureError::PortInUse { addr }
    } else {
        ReconfigureError::Listen { addr, source }
    }
}

fn targets(services: &[Service]) -> Result<Vec<Target>, InvalidService> {
    let mut targets = Vec::new();
    for service in services {
        let name: Arc<str> = service.name.as_str().into();
        for backend in &service.backends {
            let target = Target::new(Arc::clone(&name), backend.addr, service.health.clone());
            let wrong = |source| InvalidService::Check { name: service.name.clone(), source };
            targets.push(target.map_err(wrong)?);
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
