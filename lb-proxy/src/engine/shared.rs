//! The state that the workers, the health checks and the handle of a balancer share.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedSender;

use super::admission::Descriptors;
use super::clock::Clock;
use super::command::{Command, WorkerHandle};
use super::config::{Options, RelayMode};
use super::event::{Event, Refusal};
use super::lingering::Lingering;
use super::listener::Listener;
use super::local_ports::LocalPorts;
use super::relay::pipes_allowed;
use super::service::LiveService;
use super::socket::{RefusedOption, Tuning};
use super::ticket::Ticket;
use crate::health::Monitor;
use crate::shortage::Shortage;

/// Minimum time between two events about the same problem, in milliseconds.
pub(crate) const EVENT_INTERVAL: u64 = 10_000;
/// The answer to a heartbeat connection.
pub(crate) const HEARTBEAT_REPLY: &[u8] = b"\x06";
/// Upper bound of [`Options::linger`].
const LINGER_MAX: Duration = Duration::from_secs(3600);

/// The state of a balancer, shared by all its threads.
pub(crate) struct Shared {
    pub clock: Clock,
    pub tuning: Tuning,
    pub relay: RelayMode,
    /// Limit on the pipes of each worker.
    pub pipes: usize,
    pub descriptors: Descriptors,
    pub local_ports: LocalPorts,
    /// Open client connections of all services.
    pub open: Arc<AtomicUsize>,
    pub workers: Vec<WorkerHandle>,
    pub heartbeats: Heartbeats,
    /// The current services in configuration order.
    pub services: ArcSwap<Vec<Arc<LiveService>>>,
    /// The current listeners.
    pub listeners: ArcSwap<Vec<Listener>>,
    /// Former listeners that still accept, for [`Self::linger`].
    pub lingering: Lingering,
    pub linger: Duration,
    /// Set while the balancer runs.
    pub monitor: Mutex<Option<Monitor>>,
    sink: Box<dyn Fn(Event) + Send + Sync>,
    mark_refused: AtomicBool,
    transparent_refused: AtomicBool,
    congestion_refused: AtomicBool,
    /// Time of the last event about each shortage.
    shortages_reported: [AtomicU64; Shortage::ALL.len()],
    /// Time of the last client that could not be accepted for want of a descriptor.
    last_accept_failure: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        options: &Options,
        commands: Vec<UnboundedSender<Command>>,
        sink: Box<dyn Fn(Event) + Send + Sync>,
    ) -> Self {
        let worker = |commands| WorkerHandle {
            load: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            handed_off: AtomicU64::new(0),
            commands,
        };
        let pipes = pipes_allowed(commands.len());
        Shared {
            clock: Clock::new(),
            tuning: Tuning::new(options),
            relay: options.relay,
            pipes,
            descriptors: Descriptors::of_process(pipes * commands.len()),
            local_ports: LocalPorts::of_host(),
            open: Arc::default(),
            workers: commands.into_iter().map(worker).collect(),
            heartbeats: Heartbeats::default(),
            services: ArcSwap::default(),
            listeners: ArcSwap::default(),
            lingering: Lingering::default(),
            linger: options.linger.min(LINGER_MAX),
            monitor: Mutex::new(None),
            sink,
            mark_refused: AtomicBool::new(false),
            transparent_refused: AtomicBool::new(false),
            congestion_refused: AtomicBool::new(false),
            shortages_reported: Default::default(),
            last_accept_failure: AtomicU64::new(0),
        }
    }

    pub(crate) fn emit(&self, event: Event) {
        (self.sink)(event);
    }

    /// Applies `action` to the health checks, if they run.
    pub(crate) fn with_monitor<T>(&self, action: impl FnOnce(&Monitor) -> T) -> Option<T> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(action)
    }

    /// Reports once that the system refused a socket option.
    pub(crate) fn report_refused_option(&self, refused: &RefusedOption) {
        match refused {
            RefusedOption::Mark(error) => {
                if !self.mark_refused.swap(true, Relaxed) {
                    self.emit(Event::MarkRefused { reason: error.to_string() });
                }
            }
            RefusedOption::Transparent(error) => {
                if !self.transparent_refused.swap(true, Relaxed) {
                    self.emit(Event::TransparentRefused { reason: error.to_string() });
                }
            }
            RefusedOption::Congestion(error) => {
                if !self.congestion_refused.swap(true, Relaxed) {
                    let algorithm = self.tuning.congestion.clone().unwrap_or_default();
                    self.emit(Event::CongestionRefused { algorithm, reason: error.to_string() });
                }
            }
        }
    }

    /// Reports, rate-limited, that a socket could not be made; `backend` is its destination, if any.
    pub(crate) fn report_exhaustion(&self, backend: Option<SocketAddr>, error: &io::Error) {
        let shortage = Shortage::of(error).unwrap_or(Shortage::Memory);
        if self.is_report_due(&self.shortages_reported[shortage as usize]) {
            self.emit(Event::ResourcesExhausted { shortage, backend, reason: error.to_string() });
        }
    }

    /// Records that a worker could not accept a client. Until the next success its listeners answer no heartbeat
    /// either.
    pub(crate) fn record_accept_failure(&self, error: &io::Error) {
        if matches!(Shortage::of(error), Some(Shortage::Descriptors | Shortage::HostFiles)) {
            self.last_accept_failure.store(self.clock.now(), Relaxed);
        }
        self.report_exhaustion(None, error);
    }

    /// Returns whether a client could not be accepted since `time` of the clock for want of a descriptor.
    pub(crate) fn has_accept_failed_since(&self, time: u64) -> bool {
        self.last_accept_failure.load(Relaxed) >= time
    }

    /// Admits a client that was accepted with this descriptor, or records its refusal.
    pub(crate) fn admit(
        &self,
        service: &Arc<LiveService>,
        client: IpAddr,
        descriptor: RawFd,
    ) -> Option<Ticket> {
        let limits = service.backends.load().limits(self.descriptors.sessions);
        let admitted = match self.descriptors.is_kept_back(descriptor) {
            true => Err(Refusal::Descriptors),
            false => Ticket::take(service, &limits, client),
        };
        let reason = match admitted {
            Ok(ticket) => return Some(ticket),
            Err(reason) => reason,
        };
        let limit = match reason {
            Refusal::MaxConnectionsPerClient => limits.client,
            Refusal::MaxConnections => Some(limits.service),
            _ => Some(limits.total),
        };
        self.record_refusal(service, reason, limit);
        None
    }

    /// Counts a refused client and reports it, rate-limited.
    pub(crate) fn record_refusal(&self, service: &LiveService, reason: Refusal, limit: Option<usize>) {
        let total = service.refusals.count(reason);
        if self.is_report_due(service.refusals.last_reported(reason)) {
            self.emit(Event::ClientsRefused { service: Arc::clone(&service.name), reason, limit, total });
        }
    }

    fn is_report_due(&self, last_reported: &AtomicU64) -> bool {
        let now = self.clock.now();
        let last = last_reported.load(Relaxed);
        let due = last == 0 || now >= last + EVENT_INTERVAL;
        due && last_reported.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }
}

/// Connections of the balancer to its own listeners: announced by their source address before they are made, answered
/// by the worker that accepts them, never forwarded to a backend.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats {
    count: AtomicUsize,
    sources: Mutex<HashSet<SocketAddr>>,
}

impl Heartbeats {
    pub(crate) fn announce(&self, source: SocketAddr) {
        let mut sources = self.sources();
        sources.insert(source);
        self.count.store(sources.len(), Relaxed);
    }

    /// Returns whether a connection from `source` is a heartbeat. Each is recognised once.
    pub(crate) fn take(&self, source: SocketAddr) -> bool {
        if self.count.load(Relaxed) == 0 {
            return false;
        }
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        let mut sources = self.sources();
        let known = sources.remove(&source);
        self.count.store(sources.len(), Relaxed);
        known
    }

    fn sources(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
