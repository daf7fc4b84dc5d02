//! Connecting a client to a backend, before a byte of the client is read.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::libc::{EACCES, EADDRINUSE, EADDRNOTAVAIL};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::backend::{BackendHealth, LiveBackend};
use super::event::{Event, Failure, Refusal};
use super::guard::{ConnectGuard, SessionGuard};
use super::local_ports::SEARCH_PAUSE;
use super::service::{Backends, LiveService};
use super::socket::is_self_connected;
use super::worker::Worker;
use crate::health::TargetKey;
use crate::shortage::Shortage;

/// Limit on concurrent connects of one client.
const MAX_PARALLEL_CONNECTS: usize = 4;
/// Number of connect timeouts after which a client is refused.
const GIVE_UP_TIMEOUTS: u32 = 2;

/// A backend's socket, counted as a session of the backend.
pub(crate) struct Connected {
    pub server: TcpStream,
    pub guard: SessionGuard,
}

/// One connect under way.
struct Attempt {
    stream: TcpStream,
    backend: ConnectGuard,
    started: Instant,
    expires: Instant,
    /// [`LiveBackend::downs`] when the backend was chosen.
    downs: u32,
}

/// The connects of one client: the first to succeed wins.
///
/// A refusal starts the next at once. Without an answer, the next starts beside it after a short while, as Happy
/// Eyeballs do (RFC 8305 section 5), so that a backend that lost its power costs its first clients that while and not
/// the connect timeout; the suspicion it gets by losing spares it to later clients. No backend is tried twice.
struct Race<'a> {
    worker: &'a Worker,
    service: &'a LiveService,
    backends: &'a Backends,
    client: IpAddr,
    tried: Vec<u32>,
    attempts: Vec<Attempt>,
    give_up: Instant,
    /// Time at which the next connect starts beside those under way.
    hedge: Instant,
    /// The resource that this node lacked for an attempt, while no backend has failed one.
    shortage: Option<Shortage>,
    has_failed: bool,
}

/// Connects a client to a backend of a service; `None` if the client is to be refused.
pub(crate) async fn connect(
    worker: Rc<Worker>,
    service: Arc<LiveService>,
    client: IpAddr,
) -> Option<Connected> {
    let backends = service.backends.load_full();
    let now = Instant::now();
    let mut race = Race {
        worker: &worker,
        service: &service,
        backends: &backends,
        client,
        tried: Vec::new(),
        attempts: Vec::new(),
        give_up: now + backends.connect_timeout * GIVE_UP_TIMEOUTS,
        hedge: now,
        shortage: None,
        has_failed: false,
    };
    let connected = race.run(now).await;
    if connected.is_none() {
        let reason = race.shortage.map_or(Refusal::NoBackend, Refusal::from);
        worker.shared.record_refusal(&service, reason, None);
    } else if race.tried.len() > 1 {
        service.redispatched.fetch_add(1, Relaxed);
    }
    connected
}

impl Race<'_> {
    async fn run(&mut self, now: Instant) -> Option<Connected> {
        self.start_next(now);
        let mut timer = pin!(sleep_until(now));
        while !self.attempts.is_empty() {
            timer.as_mut().reset(self.next_deadline());
            let finished = poll_fn(|cx| match self.poll_attempts(cx) {
                Poll::Ready(finished) => Poll::Ready(Some(finished)),
                Poll::Pending => timer.as_mut().poll(cx).map(|()| None),
            });
            let Some((attempt, result)) = finished.await else {
                self.handle_deadline(Instant::now());
                continue;
            };
            let result = result.and_then(|()| self.check_connection(&attempt));
            match result {
                Ok(()) => return Some(self.win(attempt)),
                Err(error) => {
                    self.fail(attempt.backend.backend(), classify(&error));
                    drop(attempt);
                    self.start_next(Instant::now());
                }
            }
        }
        None
    }

    /// Starts connects until one is under way or no backend is left.
    fn start_next(&mut self, now: Instant) {
        while self.attempts.len() < MAX_PARALLEL_CONNECTS {
            let clock = self.worker.shared.clock.now();
            let Some(backend) = self.backends.choose(clock, self.client, &self.tried) else { return };
            self.tried.push(backend.id);
            match self.start(backend, now) {
                Ok(attempt) => {
                    self.attempts.push(attempt);
                    self.hedge = now + self.backends.hedge_after;
                    return;
                }
                Err(error) => match Shortage::of(&error) {
                    // The backend is not at fault, and another may work: ports are counted by backend address.
                    Some(shortage @ Shortage::Ports) => self.record_shortage(backend.addr, shortage, &error),
                    // Any other backend would fail the same way; this one may be tried later.
                    Some(shortage) => {
                        self.record_shortage(backend.addr, shortage, &error);
                        self.tried.pop();
                        return;
                    }
                    None => self.fail(backend, classify(&error)),
                },
            }
        }
    }

    fn start(&self, backend: &Arc<LiveBackend>, now: Instant) -> io::Result<Attempt> {
        let downs = backend.downs();
        let stream = match self.connect_from(backend, None) {
            Err(error) if Shortage::of(&error) == Some(Shortage::Ports) => {
                self.search_port(backend, error)?
            }
            other => other?,
        };
        let backend = ConnectGuard::new(Arc::clone(backend));
        Ok(Attempt { stream, started: now, expires: now + self.timeout(backend.backend()), downs, backend })
    }

    fn connect_from(&self, backend: &LiveBackend, port: Option<u16>) -> io::Result<TcpStream> {
        let shared = &self.worker.shared;
        let refused = |option| shared.report_refused_option(&option);
        shared.tuning.connect(backend.addr, port, &shared.descriptors, refused)
    }

    /// Connects from the port of a closed connection; `error` is the kernel's when it was to choose a port.
    fn search_port(&self, backend: &LiveBackend, error: io::Error) -> io::Result<TcpStream> {
        let shared = &self.worker.shared;
        let now = shared.clock.now();
        if now < backend.ports_searched_until.load(Relaxed) {
            return Err(error);
        }
        for port in shared.local_ports.sweep() {
            match self.connect_from(backend, Some(port)) {
                Err(error) if matches!(error.raw_os_error(), Some(EADDRINUSE | EADDRNOTAVAIL | EACCES)) => {}
                other => return other,
            }
        }
        backend.ports_searched_until.store(now + SEARCH_PAUSE, Relaxed);
        Err(error)
    }

    /// The time limit of a connect. An excluded backend gets little: it is tried only because all others failed, and
    /// the client should get its answer soon.
    fn timeout(&self, backend: &LiveBackend) -> Duration {
        let timeout = self.backends.connect_timeout;
        if backend.health().is_excluded() { timeout.min(self.backends.hedge_after * 2) } else { timeout }
    }

    fn next_deadline(&self) -> Instant {
        let expires = self.attempts.iter().map(|attempt| attempt.expires).min();
        let deadline = expires.unwrap_or(self.give_up).min(self.give_up);
        if self.may_hedge() { deadline.min(self.hedge) } else { deadline }
    }

    fn may_hedge(&self) -> bool {
        self.attempts.len() < MAX_PARALLEL_CONNECTS && self.tried.len() < self.backends.members.len()
    }

    /// Removes and returns an attempt that has succeeded or failed.
    fn poll_attempts(&mut self, cx: &mut Context<'_>) -> Poll<(Attempt, io::Result<()>)> {
        for i in 0..self.attempts.len() {
            if let Poll::Ready(result) = self.attempts[i].poll(cx) {
                return Poll::Ready((self.attempts.swap_remove(i), result));
            }
        }
        Poll::Pending
    }

    fn handle_deadline(&mut self, now: Instant) {
        let all = now >= self.give_up;
        let expired: Vec<_> = self.attempts.extract_if(.., |a| all || now >= a.expires).collect();
        for attempt in &expired {
            self.fail(attempt.backend.backend(), Failure::TimedOut);
        }
        if all {
            return;
        }
        if !expired.is_empty() || now >= self.hedge {
            // The next connect waits its full time, also if none can start now.
            self.hedge = now + self.backends.hedge_after;
            self.start_next(now);
        }
    }

    /// Rejects an established connection that must not be used.
    fn check_connection(&self, attempt: &Attempt) -> io::Result<()> {
        let backend = attempt.backend.backend();
        // The sessions of a backend that went down meanwhile have been reset already; this one would have been missed.
        let went_down = backend.downs() != attempt.downs && backend.health() == BackendHealth::Down;
        if went_down || is_self_connected(&attempt.stream, backend.addr) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(())
    }

    fn win(&mut self, attempt: Attempt) -> Connected {
        let now = Instant::now();
        for loser in std::mem::take(&mut self.attempts) {
            if now.duration_since(loser.started) >= self.backends.hedge_after {
                self.fail(loser.backend.backend(), Failure::Slow);
            }
        }
        let Attempt { stream, backend, started, .. } = attempt;
        let backend = Arc::clone(backend.backend());
        backend.connect_times.record(now.duration_since(started));
        if backend.connected(self.worker.shared.clock.now()) {
            self.emit(|service| Event::BackendTrusted { service, backend: backend.addr });
        }
        Connected { server: stream, guard: SessionGuard::new(backend) }
    }

    fn record_shortage(&mut self, backend: SocketAddr, shortage: Shortage, error: &io::Error) {
        self.worker.shared.report_exhaustion(Some(backend), error);
        self.shortage = Some(shortage).filter(|_| !self.has_failed);
    }

    fn fail(&mut self, backend: &LiveBackend, failure: Failure) {
        (self.shortage, self.has_failed) = (None, true);
        let target = TargetKey { service: Arc::clone(&self.service.name), backend: backend.addr };
        self.worker.shared.with_monitor(|monitor| monitor.report_failure(&target));
        if backend.failed(self.worker.shared.clock.now(), failure) {
            let backend = backend.addr;
            self.emit(|service| Event::BackendSuspected { service, backend, reason: failure });
        }
    }

    fn emit(&self, event: impl FnOnce(Arc<str>) -> Event) {
        self.worker.shared.emit(event(Arc::clone(&self.service.name)));
    }
}

impl Attempt {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stream.poll_write_ready(cx))?;
        Poll::Ready(match self.stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(()),
        })
    }
}

fn classify(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Failure::Refused,
        io::ErrorKind::TimedOut => Failure::TimedOut,
        _ => Failure::Unreachable,
    }
}
