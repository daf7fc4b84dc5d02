//! The change of the listeners by a reconfiguration: new addresses are bound before anything else changes; listeners
//! that are no longer listed go on accepting for a while.
//!
//! Call order: [`ListenerUpdate::prepare`], which may fail and then leaves everything as it was, then
//! [`ListenerUpdate::commit`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::bind::{Bound, bind, is_in_use};
use super::command::Command;
use super::config::Service;
use super::error::{ListenError, ReconfigureError};
use super::event::Event;
use super::lingering::{CLOSE_TIMEOUT, close, wait_closed};
use super::listener::{Listener, Listening};
use super::local::{is_local, local_addresses};
use super::service::LiveService;
use super::shared::Shared;

/// Time for which a child process may keep the descriptor of a closed listener.
const INHERITED_TIMEOUT: Duration = Duration::from_millis(500);

/// A change of the listeners that is under way.
#[derive(Debug)]
pub(crate) struct ListenerUpdate {
    bound: HashMap<SocketAddr, Bound>,
    current: Vec<Listener>,
    /// Removed from [`Shared::lingering`], so that no timer closes a listener that is taken over.
    lingering: Vec<(Listener, Instant)>,
}

impl ListenerUpdate {
    /// Binds the addresses that are not listened on yet. On error nothing has changed.
    pub(crate) fn prepare(shared: &Shared, services: &[Service]) -> Result<Self, ReconfigureError> {
        let current = Vec::clone(&shared.listeners.load());
        let mut update =
            ListenerUpdate { bound: HashMap::new(), current, lingering: shared.lingering.take() };
        let listed: Vec<SocketAddr> = services.iter().flat_map(|service| service.listen.clone()).collect();
        match update.bind(shared, &listed) {
            Ok(()) => Ok(update),
            Err(error) => {
                linger(shared, update.lingering);
                Err(error.into())
            }
        }
    }

    fn bind(&mut self, shared: &Shared, listed: &[SocketAddr]) -> Result<(), ListenError> {
        let is_new = |addr: &SocketAddr| self.listeners().all(|l| l.configured != *addr);
        let new: Vec<SocketAddr> = listed.iter().copied().filter(is_new).collect();
        let mut blocked = Vec::new();
        for addr in new {
            let mut result = bind(addr, shared.workers.len(), &shared.tuning);
            if result.as_ref().is_err_and(is_in_use) && shared.lingering.wait_closing() {
                result = bind_soon(shared, addr);
            }
            match result {
                Ok(bound) => drop(self.bound.insert(addr, bound)),
                Err(error) if is_in_use(&error) && !self.blockers(addr, listed).is_empty() => {
                    blocked.push(addr);
                }
                Err(error) => return Err(listen_error(addr, error)),
            }
        }
        // Only after all other addresses are bound, a listener is closed for a new one, such as 127.0.0.1 for [::].
        let mut closed: Vec<Listener> = Vec::new();
        let is_closed = |listener: &Listener, closed: &[Listener]| {
            closed.iter().any(|l| l.configured == listener.configured)
        };
        for addr in blocked {
            let mut blockers = self.blockers(addr, listed);
            blockers.retain(|listener| !is_closed(listener, &closed));
            wait_closed(&close(&shared.workers, &blockers), CLOSE_TIMEOUT);
            closed.extend(blockers);
            match bind_soon(shared, addr) {
                Ok(bound) => drop(self.bound.insert(addr, bound)),
                Err(error) => {
                    self.bound.clear();
                    reopen(shared, &closed);
                    return Err(listen_error(addr, error));
                }
            }
        }
        self.current.retain(|listener| !is_closed(listener, &closed));
        self.lingering.retain(|(listener, _)| !is_closed(listener, &closed));
        Ok(())
    }

    fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.current.iter().chain(self.lingering.iter().map(|(listener, _)| listener))
    }

    /// Listeners that are no longer listed and may keep `addr` from being bound.
    fn blockers(&self, addr: SocketAddr, listed: &[SocketAddr]) -> Vec<Listener> {
        let is_blocker = |l: &&Listener| l.actual.port() == addr.port() && !listed.contains(&l.configured);
        self.listeners().filter(is_blocker).cloned().collect()
    }

    /// Removes and returns the listener of a configured address.
    fn take(&mut self, configured: SocketAddr) -> Option<Listener> {
        if let Some(position) = self.current.iter().position(|l| l.configured == configured) {
            return Some(self.current.swap_remove(position));
        }
        let position = self.lingering.iter().position(|(l, _)| l.configured == configured)?;
        Some(self.lingering.swap_remove(position).0)
    }

    /// Assigns listeners to their services, opens new ones and lets those no longer listed linger.
    pub(crate) fn commit(
        mut self,
        shared: &Shared,
        services: &[Service],
        live: &[Arc<LiveService>],
        mut next_id: impl FnMut() -> u32,
    ) {
        let mut kept = Vec::new();
        for (service, live) in services.iter().zip(live) {
            for &configured in &service.listen {
                if let Some(listener) = self.take(configured) {
                    listener.listening.service.store(Arc::clone(live));
                    kept.push(listener);
                    continue;
                }
                let Some(Bound { actual, fallback, refused, sockets }) = self.bound.remove(&configured)
                else {
                    continue;
                };
                if let Some(refused) = refused {
                    shared.report_refused_option(&refused);
                }
                if let Some(reason) = fallback {
                    let reason = reason.to_string();
                    shared.emit(Event::ListenFallback { configured, actual, reason });
                }
                let listening =
                    Arc::new(Listening { id: next_id(), service: ArcSwap::new(Arc::clone(live)) });
                open(shared, &listening, sockets);
                kept.push(Listener { configured, actual, listening });
            }
        }
        shared.listeners.store(Arc::new(kept));
        let until = Instant::now() + shared.linger;
        let mut left = self.lingering;
        left.extend(self.current.into_iter().map(|listener| (listener, until)));
        linger(shared, close_loops(shared, left, services));
    }
}

/// Closes listeners that cannot linger, because a backend of the new services is to listen on this node on their port:
/// the balancer would connect to itself. Returns the others.
fn close_loops(
    shared: &Shared,
    mut listeners: Vec<(Listener, Instant)>,
    services: &[Service],
) -> Vec<(Listener, Instant)> {
    if listeners.is_empty() {
        return listeners;
    }
    let own = local_addresses();
    let is_backend = |port| {
        let mut backends = services.iter().flat_map(|service| &service.backends);
        backends
            .any(|backend| backend.addr.port() == port && is_local(backend.addr.ip().to_canonical(), &own))
    };
    let loops: Vec<_> =
        listeners.extract_if(.., |(l, _)| is_backend(l.actual.port())).map(|(l, _)| l).collect();
    shared.lingering.lock().close(&shared.workers, &loops);
    listeners
}

/// Lets listeners accept until their time, and arms the workers' timers that close them.
fn linger(shared: &Shared, listeners: Vec<(Listener, Instant)>) {
    if listeners.is_empty() {
        return;
    }
    {
        let mut unwanted = shared.lingering.lock();
        unwanted.open.extend(listeners);
        unwanted.close_due(&shared.workers);
    }
    // Every worker gets the command, so that one that hangs delays nothing: the first to wake closes them.
    for worker in &shared.workers {
        let _ = worker.commands.send(Command::CloseDueLater);
    }
}

/// Closes the listeners that have lingered for long enough.
pub(crate) fn close_due(shared: &Shared) {
    shared.lingering.lock().close_due(&shared.workers);
}

/// Closes all listeners, also those that linger; see [`close`].
pub(crate) fn close_all(shared: &Shared) -> Receiver<()> {
    let mut listeners = Vec::clone(&shared.listeners.swap(Arc::default()));
    listeners.extend(shared.lingering.take().into_iter().map(|(listener, _)| listener));
    close(&shared.workers, &listeners)
}

/// Binds again the listeners that were closed for a change that failed.
fn reopen(shared: &Shared, closed: &[Listener]) {
    for listener in closed {
        match bind(listener.actual, shared.workers.len(), &shared.tuning) {
            Ok(bound) => open(shared, &listener.listening, bound.sockets),
            Err(error) => shared.report_exhaustion(None, &error),
        }
    }
}

/// Hands each worker its socket.
fn open(shared: &Shared, listening: &Arc<Listening>, sockets: Vec<std::net::TcpListener>) {
    for (worker, socket) in shared.workers.iter().zip(sockets) {
        // A worker that has ended is reported by its own event and by the heartbeat.
        let _ = worker.commands.send(Command::Listen { listening: Arc::clone(listening), socket });
    }
}

/// Binds an address whose port was closed a moment ago. A process that is being started may still have the listener's
/// descriptor, until it runs another program.
fn bind_soon(shared: &Shared, addr: SocketAddr) -> io::Result<Bound> {
    let deadline = Instant::now() + INHERITED_TIMEOUT;
    loop {
        match bind(addr, shared.workers.len(), &shared.tuning) {
            Err(error) if is_in_use(&error) && Instant::now() < deadline => {
                thread::sleep(INHERITED_TIMEOUT / 50);
            }
            result => return result,
        }
    }
}

fn listen_error(addr: SocketAddr, source: io::Error) -> ListenError {
    if is_in_use(&source) { ListenError::PortInUse { addr } } else { ListenError::System { addr, source } }
}
