//! The service at an address, measured by a client.

mod report;
mod session;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    task::LocalSet,
    time::{MissedTickBehavior, interval, timeout},
};

pub use report::{Failure, Gap, ProbeReport, Sample};
pub use session::{SessionState, Sessions};

use crate::{
    Error, Node, Thread, netlink,
    node::INTERFACE,
    urgency::{self, Urgency},
    wait_until,
};

/// The settings of a probe; see [`Probe::to`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ProbeBuilder {
    target: SocketAddr,
    interval: Duration,
    timeout: Duration,
    fresh_neighbour: bool,
}

/// A series of connections to one address, each of which must return the name of a backend. It runs on a separate
/// thread, at real-time priority where that is permitted. Dropping it ends it.
///
/// Connections overlap: one that hangs does not delay the next.
#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    thread: Option<Thread<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    series: Mutex<Series>,
}

#[derive(Debug, Default)]
struct Series {
    samples: Vec<Sample>,
    launches: Vec<Instant>,
}

impl ProbeBuilder {
    /// Sets the interval between new connections, in whole milliseconds; 2 ms by default.
    pub fn every(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets the time after which a connection without an answer fails; 1 s by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Deletes the client's neighbour entry for the target before every connection, so that the connection goes to the
    /// node that answers for the address now. With a cached entry, two nodes with the same address would stay
    /// undetected.
    pub fn fresh_neighbour(mut self) -> Self {
        self.fresh_neighbour = true;
        self
    }

    /// Starts the probe in a node.
    ///
    /// # Errors
    /// [`Error::Namespace`] if the kernel refuses a thread.
    pub fn start(self, node: &Node) -> Result<Probe, Error> {
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), series: Mutex::default() });
        let worker = Arc::clone(&shared);
        let thread = node.thread("probe", move || run(&self, &worker))?;
        Ok(Probe { shared, thread: Some(thread) })
    }
}

impl Probe {
    /// A probe of this address: every 2 ms a new connection, which sends a line end, must receive a line (the answer of
    /// [`crate::Backend`]s) within 1 s, and is then reset.
    pub fn to(target: SocketAddr) -> ProbeBuilder {
        let (interval, timeout) = (Duration::from_millis(2), Duration::from_secs(1));
        ProbeBuilder { target, interval, timeout, fresh_neighbour: false }
    }

    /// The results until now.
    #[must_use]
    pub fn report(&self) -> ProbeReport {
        let series = self.shared.series();
        ProbeReport::new(series.samples.clone(), series.launches.clone(), Instant::now())
    }

    /// Waits until a connection that was started after `since` has succeeded, and returns the time of the success.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub fn wait_for_success(&self, since: Instant, timeout: Duration) -> Result<Instant, Error> {
        let mut success = None;
        wait_until("a probe succeeds", timeout, || {
            let series = self.shared.series();
            let later = series.samples.iter().rev().take_while(|sample| sample.ended >= since);
            let later = later.filter(|sample| sample.started >= since && sample.outcome.is_ok());
            success = later.last().map(|sample| sample.ended);
            success.is_some()
        })?;
        Ok(success.unwrap_or(since))
    }

    /// Waits until all connections of the last `window` have succeeded.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub fn wait_until_stable(&self, window: Duration, timeout: Duration) -> Result<(), Error> {
        let start = Instant::now();
        wait_until(format!("probes succeed for {window:?}"), timeout, || {
            let now = Instant::now();
            if now < start + window {
                return false;
            }
            let series = self.shared.series();
            let recent = series.samples.iter().rev().take_while(|sample| sample.ended + window >= now);
            let (good, bad): (Vec<_>, Vec<_>) = recent.cloned().partition(|sample| sample.outcome.is_ok());
            let gap = ProbeReport::new(good, Vec::new(), now).blackout_since(now - window);
            bad.is_empty() && gap.duration() < window / 2
        })?;
        Ok(())
    }

    /// Ends the probe and returns its results.
    #[must_use]
    pub fn stop(mut self) -> ProbeReport {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn series(&self) -> MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(plan: &ProbeBuilder, shared: &Arc<Shared>) {
    urgency::claim(Urgency::Measure);
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    LocalSet::new().block_on(&runtime, run_series(plan, shared));
}

async fn run_series(plan: &ProbeBuilder, shared: &Arc<Shared>) {
    let netlink = rtnetlink::new_connection().ok().map(|(connection, handle, _)| {
        tokio::spawn(connection);
        handle
    });
    let interface = match &netlink {
        Some(handle) => netlink::index(handle, INTERFACE).await.ok(),
        None => None,
    };
    let mut ticks = interval(plan.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !shared.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        if let (true, Some(handle), Some(interface)) = (plan.fresh_neighbour, &netlink, interface) {
            let _ = netlink::delete_neighbour(handle, interface, plan.target.ip()).await;
        }
        let started = Instant::now();
        shared.series().launches.push(started);
        let (shared, target, limit) = (Arc::clone(shared), plan.target, plan.timeout);
        tokio::task::spawn_local(async move {
            let outcome = match timeout(limit, connect_once(target)).await {
                Ok(Ok(name)) => Ok(name),
                Ok(Err(error)) => Err(Failure::from(&error)),
                Err(_) => Err(Failure::TimedOut),
            };
            shared.series().samples.push(Sample { started, ended: Instant::now(), outcome });
        });
    }
}

/// Makes one connection: sends a line end and returns the line that comes back.
async fn connect_once(target: SocketAddr) -> io::Result<Arc<str>> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A reset at the end leaves no socket in TIME_WAIT; at 500 connections a second, ports would run out.
    socket.set_zero_linger()?;
    let mut stream = socket.connect(target).await?;
    stream.write_all(b"\n").await?;
    let mut line = [0; 128];
    let mut length = 0;
    while !line[..length].contains(&b'\n') && length < line.len() {
        let n = stream.read(&mut line[length..]).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length += n;
    }
    let name = line[..length].split(|&byte| byte == b'\n').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into())
}
