//! Long-lived connections through the address, like those of Kubernetes watches.

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
    net::TcpStream,
    task::LocalSet,
    time::{MissedTickBehavior, interval},
};

use super::Failure;
use crate::{Error, Node, Thread, wait_until};

/// The state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionState {
    /// Not yet established.
    Opening,
    /// Established; the instant is that of the last echo.
    Alive(Instant),
    /// Ended by the peer, or by the network, at this instant.
    Ended(Instant, Failure),
}

/// Open connections to a [`crate::Backend`]: busy ones send a byte every 10 ms, which is echoed; idle ones send one and
/// then wait, as watches do.
#[derive(Debug)]
pub struct Sessions {
    shared: Arc<Shared>,
    thread: Option<Thread<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    states: Mutex<Vec<SessionState>>,
}

/// Interval at which a session sends a byte.
const SEND_INTERVAL: Duration = Duration::from_millis(10);

/// Longest time until all sessions are open, and the additional time for each of them.
const OPEN_TIMEOUT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(2));

/// The traffic of a session after the first echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Busy,
    Idle,
}

impl Sessions {
    /// Opens `count` busy sessions from a node, and waits until each has received an echo.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if that takes more than five seconds, and 2 ms for each.
    pub fn open(node: &Node, target: SocketAddr, count: usize) -> Result<Self, Error> {
        Self::start(node, target, count, Pace::Busy)
    }

    /// Like [`Sessions::open`], with idle sessions.
    ///
    /// # Errors
    /// As [`Sessions::open`].
    pub fn open_idle(node: &Node, target: SocketAddr, count: usize) -> Result<Self, Error> {
        Self::start(node, target, count, Pace::Idle)
    }

    fn start(node: &Node, target: SocketAddr, count: usize, pace: Pace) -> Result<Self, Error> {
        let states = Mutex::new(vec![SessionState::Opening; count]);
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), states });
        let worker = Arc::clone(&shared);
        let thread = node.thread("sessions", move || run(target, count, pace, &worker))?;
        let sessions = Self { shared, thread: Some(thread) };
        let limit = OPEN_TIMEOUT.0 + OPEN_TIMEOUT.1 * u32::try_from(count).unwrap_or(u32::MAX);
        wait_until(format!("{count} sessions to {target} are open"), limit, || {
            sessions.states().iter().all(|state| matches!(state, SessionState::Alive(_)))
        })?;
        Ok(sessions)
    }

    /// The state of each session.
    #[must_use]
    pub fn states(&self) -> Vec<SessionState> {
        self.shared.states().clone()
    }

    /// The number of established sessions without an echo for `silence`: their clients hang.
    #[must_use]
    pub fn hanging(&self, silence: Duration) -> usize {
        self.states()
            .iter()
            .filter(|state| matches!(state, SessionState::Alive(last) if last.elapsed() > silence))
            .count()
    }

    /// The number of sessions that have ended, for any reason.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.states().iter().filter(|state| matches!(state, SessionState::Ended(..))).count()
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn states(&self) -> MutexGuard<'_, Vec<SessionState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(target: SocketAddr, count: usize, pace: Pace, shared: &Arc<Shared>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    LocalSet::new().block_on(&runtime, async {
        for index in 0..count {
            let shared = Arc::clone(shared);
            tokio::task::spawn_local(async move {
                let failure = match run_session(target, index, pace, &shared).await {
                    Ok(()) => Failure::Closed,
                    Err(error) => Failure::from(&error),
                };
                shared.states()[index] = SessionState::Ended(Instant::now(), failure);
            });
        }
        while !shared.stop.load(Ordering::Relaxed) {
            tokio::time::sleep(SEND_INTERVAL).await;
        }
    });
}

/// Keeps one session alive until the peer ends it.
async fn run_session(target: SocketAddr, index: usize, pace: Pace, shared: &Shared) -> io::Result<()> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    // A TLS backend answers the first line of a plain connection with its name, and then echoes.
    write.write_all(b"\n").await?;
    let mut ticks = interval(SEND_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut buffer = [0; 256];
    let mut echoed = false;
    loop {
        let quiet = echoed && pace == Pace::Idle;
        tokio::select! {
            n = read.read(&mut buffer) => {
                let n = n?;
                if n == 0 {
                    return Ok(());
                }
                if buffer[..n].contains(&BYTE) {
                    echoed = true;
                    shared.states()[index] = SessionState::Alive(Instant::now());
                }
            }
            // A full send buffer must not keep the session from detecting its end.
            _ = ticks.tick(), if !quiet => match write.try_write(&[BYTE]) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            },
        }
    }
}

/// The payload of a session; it occurs in no backend's name.
const BYTE: u8 = b'\x07';
