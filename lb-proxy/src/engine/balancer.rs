//! The load balancer's public handle.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{mpsc as tokio_mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::command::{Command, Listed, WorkerHandle};
use super::config::{Options, Service};
use super::error::{HeartbeatError, ReconfigureError, StartError};
use super::event::Event;
use super::health_change;
use super::heartbeat;
use super::lingering::wait_closed;
use super::listeners::close_all;
use super::local::{is_local, local_addresses};
use super::reconfigure::Configuration;
use super::service::LiveService;
use super::shared::Shared;
use super::snapshot::{
    BackendSnapshot, Connection, ServiceSnapshot, ServingEvidence, Snapshot, WorkerSnapshot,
};
use super::worker_thread;
use crate::health::{LastCheck, Monitor, MonitorError, MonitorOptions, TargetKey};

/// Number of workers if [`Options::workers`] is 0 and there are more processors.
const DEFAULT_WORKERS: usize = 4;
const MAX_WORKERS: usize = 64;
/// Time that [`LoadBalancer::stop`] and [`LoadBalancer::reset_sessions`] give a worker that does not respond.
const WORKER_TIMEOUT: Duration = Duration::from_secs(2);

/// A running load balancer.
///
/// The methods may be called from any thread, the asynchronous ones within a tokio runtime with I/O and time enabled.
/// Dropping it stops it like [`LoadBalancer::stop`].
///
/// ```no_run
/// use lb_proxy::{LoadBalancer, Options, Service};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let backends = vec!["10.0.0.11:6443".parse()?, "10.0.0.12:6443".parse()?];
/// let backends = backends.into_iter().map(|addr: std::net::SocketAddr| addr.into()).collect();
/// let service = Service::new("kube-apiserver", vec!["[::]:6444".parse()?], backends);
/// let events = Box::new(|event| eprintln!("{event:?}"));
/// let balancer = LoadBalancer::start(Options::default(), vec![service], events)?;
/// balancer.drain(std::time::Duration::from_secs(30)).await;
/// balancer.stop();
/// # Ok(())
/// # }
/// ```
pub struct LoadBalancer {
    shared: Arc<Shared>,
    configuration: Mutex<Configuration>,
    stopping: AtomicBool,
    threads: Mutex<Threads>,
}

struct Threads {
    handles: Vec<JoinHandle<()>>,
    /// Disconnected when all threads have ended; nothing is ever sent.
    ended: Receiver<Infallible>,
}

impl LoadBalancer {
    /// Binds all listeners, starts the workers and begins to accept.
    ///
    /// `events` is called from the balancer's threads. It must not block or call the balancer.
    ///
    /// # Errors
    ///
    /// See [`StartError`]. Nothing is left bound or running.
    pub fn start(
        options: Options,
        services: Vec<Service>,
        events: Box<dyn Fn(Event) + Send + Sync>,
    ) -> Result<Self, StartError> {
        let workers = match options.workers {
            0 => thread::available_parallelism().map_or(1, usize::from).min(DEFAULT_WORKERS),
            workers => workers.min(MAX_WORKERS),
        };
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| tokio_mpsc::unbounded_channel()).unzip();
        let shared = Arc::new(Shared::new(&options, senders, events));
        start_monitor(&shared)?;
        let mut configuration = Configuration::new(options.forbidden);
        if let Err(error) = configuration.reconfigure(&shared, services) {
            stop_monitor(&shared);
            return Err(error.into());
        }
        let threads = spawn_workers(&shared, receivers).map_err(|error| {
            stop_monitor(&shared);
            StartError::Worker(error)
        })?;
        Ok(LoadBalancer {
            shared,
            configuration: Mutex::new(configuration),
            stopping: AtomicBool::new(false),
            threads: Mutex::new(threads),
        })
    }

    /// Makes `services` the running ones.
    ///
    /// A service is identified by its name, a backend and a listener by their addresses; those present before and after
    /// keep their state. No session ends: a backend that is no longer listed only gets no new ones. A listener that is
    /// no longer listed goes on for [`Options::linger`], so that clients can be redirected to another port meanwhile; a
    /// later call that lists its address takes it over. Blocks briefly if a listener has to be closed for a new one.
    ///
    /// # Errors
    ///
    /// See [`ReconfigureError`]. The running services are unchanged then.
    pub fn reconfigure(&self, services: Vec<Service>) -> Result<(), ReconfigureError> {
        let mut configuration = self.configuration();
        if self.stopping.load(Relaxed) {
            return Err(ReconfigureError::Stopping);
        }
        configuration.reconfigure(&self.shared, services)
    }

    /// Replaces [`Options::forbidden`]; takes effect with the next [`LoadBalancer::reconfigure`].
    pub fn forbid(&self, addresses: Vec<IpAddr>) {
        self.configuration().forbidden = addresses;
    }

    /// Returns state and counters of this moment. Does not wait for any worker.
    pub fn snapshot(&self) -> Snapshot {
        let listeners = self.shared.listeners.load();
        let services = self.shared.services.load();
        let checks = self.shared.with_monitor(Monitor::snapshot).unwrap_or_default();
        let checks = checks.into_iter().filter_map(|found| Some((found.target, found.last_check?))).collect();
        let snapshot = |service: &Arc<LiveService>| {
            let own = listeners.iter().filter(|l| Arc::ptr_eq(&l.listening.service.load(), service));
            self.snapshot_service(service, own.map(|listener| listener.actual).collect(), &checks)
        };
        let worker = |worker: &WorkerHandle| WorkerSnapshot {
            sessions: worker.load.load(Relaxed),
            accepted: worker.accepted.load(Relaxed),
            handed_off: worker.handed_off.load(Relaxed),
        };
        Snapshot {
            services: services.iter().map(snapshot).collect(),
            workers: self.shared.workers.iter().map(worker).collect(),
            draining: self.stopping.load(Relaxed),
        }
    }

    fn snapshot_service(
        &self,
        service: &LiveService,
        listen: Vec<SocketAddr>,
        checks: &HashMap<TargetKey, LastCheck>,
    ) -> ServiceSnapshot {
        let now = self.shared.clock.now();
        let backends = service.backends.load();
        let staying = backends.members.iter().map(|member| {
            let key = TargetKey { service: Arc::clone(&service.name), backend: member.backend.addr };
            let last_check = checks.get(&key).cloned();
            let found = member.backend.snapshot(now, member.weight, member.name.clone());
            BackendSnapshot { last_check, ..found }
        });
        let removed = service.removed.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = removed.iter().filter(|member| member.backend.active.load(Relaxed) > 0);
        let removed = removed.map(|m| m.backend.snapshot(now, 0, m.name.clone()));
        let limits = backends.limits(self.shared.descriptors.sessions);
        let refusals = service.refusals.snapshot();
        ServiceSnapshot {
            name: Arc::clone(&service.name),
            listen,
            balance: backends.balance,
            accepted: service.accepted.load(Relaxed),
            refused: refusals.iter().map(|(_, count)| count).sum(),
            refusals,
            max_connections: limits.service,
            max_connections_per_client: limits.client,
            redispatched: service.redispatched.load(Relaxed),
            backends: staying.chain(removed).collect(),
        }
    }

    /// Returns for each service how many of its backends are healthy, and how many of those are on other nodes.
    pub fn serving_evidence(&self) -> Vec<ServingEvidence> {
        let own = local_addresses();
        let now = self.shared.clock.now();
        let evidence = |service: &Arc<LiveService>| {
            let backends = service.backends.load();
            let mut evidence = ServingEvidence {
                service: Arc::clone(&service.name),
                backends: 0,
                unchecked: 0,
                remote: 0,
                healthy: 0,
                healthy_remote: 0,
            };
            for member in backends.members.iter().filter(|member| member.weight > 0) {
                let remote = usize::from(!is_local(member.backend.addr.ip(), &own));
                let healthy = usize::from(member.backend.is_presumed_up(now));
                evidence.backends += 1;
                evidence.unchecked += usize::from(member.backend.is_unchecked(now));
                evidence.remote += remote;
                evidence.healthy += healthy;
                evidence.healthy_remote += remote * healthy;
            }
            evidence
        };
        self.shared.services.load().iter().map(evidence).collect()
    }

    /// Resets all sessions whose client connected to one of these addresses, towards both sides. Returns their number.
    ///
    /// Call it before a virtual IP is removed: afterwards not even a reset would reach its clients. When it returns the
    /// resets are sent, except those of a worker that does not respond within 2 s.
    pub async fn reset_sessions(&self, addresses: &[IpAddr]) -> usize {
        let addresses: Arc<[IpAddr]> = addresses.iter().map(IpAddr::to_canonical).collect();
        let ask = |reply| Command::ResetLocal(Arc::clone(&addresses), reply);
        self.query_workers(ask, WORKER_TIMEOUT).await.into_iter().flatten().sum()
    }

    /// Returns the open connections of all clients, in no order, except those of a worker that does not respond within 2 s. It
    /// costs two system calls for each.
    pub async fn connections(&self) -> Vec<Connection> {
        let listed = self.query_workers(Command::List, WORKER_TIMEOUT).await;
        let mut backends = HashMap::new();
        for service in self.shared.services.load().iter() {
            let members = service.backends.load();
            let removed = service.removed.lock().unwrap_or_else(PoisonError::into_inner);
            let all = members.members.iter().chain(removed.iter());
            backends.extend(all.map(|member| (member.backend.id, member.backend.addr)));
        }
        let connection = |listed: Listed| Connection {
            service: listed.service,
            client: listed.client,
            local: listed.local,
            backend: backends.get(&listed.backend).copied(),
        };
        listed.into_iter().flatten().flatten().map(connection).collect()
    }

    /// Proves that the balancer can serve: every worker handles a command, and on each listener one connection made
    /// through the loopback is accepted and answered by a worker. No backend is involved and no session counted.
    ///
    /// # Errors
    ///
    /// See [`HeartbeatError`]; after `timeout` at the latest.
    pub async fn heartbeat(&self, timeout: Duration) -> Result<(), HeartbeatError> {
        if self.stopping.load(Relaxed) {
            return Err(HeartbeatError::Stopping);
        }
        let listeners: Vec<SocketAddr> = self.shared.listeners.load().iter().map(|l| l.actual).collect();
        heartbeat::heartbeat(&self.shared, &listeners, timeout).await
    }

    /// Closes the listeners, serves the clients that are queued, and waits until all sessions have ended, but no longer
    /// than `timeout`. Returns the number of sessions left. The balancer accepts no connections afterwards.
    pub async fn drain(&self, timeout: Duration) -> usize {
        let deadline = Instant::now() + timeout;
        self.stopping.store(true, Relaxed);
        let closed = {
            let _no_reconfiguration = self.configuration();
            close_all(&self.shared)
        };
        // A blocking wait, but on its own thread and bounded.
        let _ = tokio::task::spawn_blocking(move || wait_closed(&closed, timeout.min(WORKER_TIMEOUT))).await;
        self.query_workers(Command::Drain, deadline.saturating_duration_since(Instant::now())).await;
        self.shared.workers.iter().map(|worker| worker.load.load(Relaxed)).sum()
    }

    /// Resets all sessions, closes everything and waits up to 2 s for the threads. A second call does nothing.
    pub fn stop(&self) {
        self.stopping.store(true, Relaxed);
        stop_monitor(&self.shared);
        for worker in &self.shared.workers {
            let _ = worker.commands.send(Command::Stop);
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        // This waits until the last sender is dropped, with its thread.
        let _ = threads.ended.recv_timeout(WORKER_TIMEOUT);
        for handle in threads.handles.drain(..) {
            if handle.is_finished() {
                let _ = handle.join();
            }
        }
    }

    /// Sends each worker a command and collects the replies that arrive in time.
    async fn query_workers<T>(
        &self,
        command: impl Fn(oneshot::Sender<T>) -> Command,
        timeout: Duration,
    ) -> Vec<Option<T>> {
        let deadline = Instant::now() + timeout;
        let ask = |worker: &WorkerHandle| {
            let (reply, answer) = oneshot::channel();
            worker.commands.send(command(reply)).ok().map(|()| answer)
        };
        let asked: Vec<_> = self.shared.workers.iter().map(ask).collect();
        let mut answers = Vec::with_capacity(asked.len());
        for answer in asked {
            answers.push(match answer {
                Some(answer) => timeout_at(deadline, answer).await.ok().and_then(Result::ok),
                None => None,
            });
        }
        answers
    }

    fn configuration(&self) -> MutexGuard<'_, Configuration> {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LoadBalancer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for LoadBalancer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadBalancer").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}

/// Starts the health checks, which report to the workers as long as these exist.
fn start_monitor(shared: &Arc<Shared>) -> Result<(), MonitorError> {
    // Randomly keyed, so that the checks of different nodes do not coincide.
    let seed = std::hash::RandomState::new().build_hasher().finish();
    let options = MonitorOptions { mark: shared.tuning.mark, seed };
    let workers = Arc::downgrade(shared);
    let sink = move |change| {
        if let Some(shared) = workers.upgrade() {
            health_change::apply(&shared, &change);
        }
    };
    let monitor = Monitor::spawn(options, Box::new(sink))?;
    *shared.monitor.lock().unwrap_or_else(PoisonError::into_inner) = Some(monitor);
    Ok(())
}

fn stop_monitor(shared: &Shared) {
    let monitor = shared.monitor.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(monitor) = monitor {
        monitor.stop();
    }
}

fn spawn_workers(
    shared: &Arc<Shared>,
    receivers: Vec<tokio_mpsc::UnboundedReceiver<Command>>,
) -> std::io::Result<Threads> {
    let (alive, ended) = mpsc::channel();
    let mut handles = Vec::with_capacity(receivers.len());
    for (index, commands) in receivers.into_iter().enumerate() {
        let (ready, started) = mpsc::sync_channel(1);
        let (worker_shared, alive) = (Arc::clone(shared), alive.clone());
        let thread = thread::Builder::new().name(format!("lb-worker-{index}")).spawn(move || {
            worker_thread::run(index, worker_shared, commands, &ready);
            drop::<mpsc::Sender<Infallible>>(alive);
        });
        let started = thread.and_then(|thread| {
            handles.push(thread);
            started.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))
        });
        if let Err(error) = started {
            shared.workers.iter().for_each(|worker| drop(worker.commands.send(Command::Stop)));
            return Err(error);
        }
    }
    Ok(Threads { handles, ended })
}
