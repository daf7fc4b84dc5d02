//! Tells systemd, or another supervisor with its protocol, about the daemon: that it is ready, what it does, that it stops, and
//! for its watchdog that the event loop and the election run.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The part of the watchdog's time after which it is fed.
const SHARE: u32 = 4;

/// The least time between two lines of status.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The connection to the supervisor. Without one nothing is sent.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    socket: Option<UnixDatagram>,
    heartbeat: Heartbeat,
    /// The time between two looks at the election; `None` without a watchdog.
    interval: Option<Duration>,
    next: Option<Instant>,
    /// The status that was sent last, and when.
    status: Option<(String, Instant)>,
}

impl Supervisor {
    /// The supervisor that the environment names (sd_notify(3), sd_watchdog_enabled(3)).
    pub(crate) fn from_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|address| match connect(&address) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, "the supervisor's NOTIFY_SOCKET cannot be used");
                None
            }
        });
        let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC").filter(|limit| is_meant && *limit > 0).map(Duration::from_micros);
        Self { socket, interval: limit.map(|limit| limit / SHARE), ..Self::default() }
    }

    /// The daemon has started, as systemd's `Type=notify` waits for.
    pub(crate) fn ready(&mut self, now: Instant) {
        self.send("READY=1");
        self.next = self.interval.map(|interval| now + interval);
    }

    /// The daemon stops. The watchdog is fed no more.
    pub(crate) fn stopping(&mut self) {
        self.send("STOPPING=1");
        self.next = None;
    }

    /// Shows a line in `systemctl status`, if it is another one than before, once a second at most.
    pub(crate) fn show(&mut self, status: &str, now: Instant) {
        let line: String = status.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let is_due =
            self.status.as_ref().is_none_or(|(last, at)| *last != line && now >= *at + STATUS_INTERVAL);
        if is_due {
            self.send(&format!("STATUS={line}"));
            self.status = Some((line, now));
        }
    }

    /// A supervisor that does not read must not hold the daemon up: what it has no room for is lost.
    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::debug!(%error, "the supervisor is not told");
        }
    }

    /// The time of the next [`Supervisor::tick`].
    pub(crate) const fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Feeds the watchdog if the election has answered, and pings it again. `ping` passes a number to the election's thread, which
    /// stores it; it returns false where there is no election.
    pub(crate) fn tick(&mut self, now: Instant, ping: impl FnOnce(Arc<AtomicU64>, u64) -> bool) {
        let (Some(interval), Some(next)) = (self.interval, self.next) else { return };
        if now < next {
            return;
        }
        self.next = Some(now + interval);
        if self.heartbeat.beats(ping) {
            self.send("WATCHDOG=1");
        }
    }
}

/// The answers of the election's thread.
#[derive(Debug, Default)]
struct Heartbeat {
    answer: Arc<AtomicU64>,
    asked: u64,
}

impl Heartbeat {
    /// Returns whether the last ping was answered, or there is no thread to answer; then it pings again.
    fn beats(&mut self, ping: impl FnOnce(Arc<AtomicU64>, u64) -> bool) -> bool {
        if self.answer.load(Ordering::Relaxed) != self.asked {
            return false;
        }
        if ping(Arc::clone(&self.answer), self.asked + 1) {
            self.asked += 1;
        }
        true
    }
}

/// A socket that never blocks. An address with `@` at its begin is in the abstract namespace.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heart_beats_while_each_ping_is_answered() {
        let mut heartbeat = Heartbeat::default();
        let mut pings = Vec::new();
        assert!(heartbeat.beats(|_, _| false), "there is no election");
        assert!(heartbeat.beats(|answer, number| {
            pings.push((answer, number));
            true
        }));
        assert!(!heartbeat.beats(|_, _| panic!("the ping before is not answered")));
        let (answer, number) = pings.pop().unwrap();
        answer.store(number, Ordering::Relaxed);
        assert!(heartbeat.beats(|_, _| true));
    }

    #[test]
    fn a_supervisor_that_does_not_read_holds_nothing_up_and_lines_are_clean() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let reader = UnixDatagram::bind(&path).unwrap();
        let socket = Some(connect(path.as_os_str()).unwrap());
        let (mut supervisor, now) = (Supervisor { socket, ..Supervisor::default() }, Instant::now());
        supervisor.show("odd\nMAINPID=1", now);
        supervisor.show("other", now);
        let mut buffer = [0; 100];
        let length = reader.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STATUS=odd MAINPID=1");
        for second in 1..5_000 {
            supervisor.show(&second.to_string(), now + STATUS_INTERVAL * second);
        }
        let abstract_name = connect(OsStr::new("@no such name"));
        assert!(abstract_name.is_err(), "nobody listens");
    }

    #[test]
    fn the_watchdog_is_fed_between_the_start_and_the_stop() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut supervisor = Supervisor { interval: Some(second), ..Supervisor::default() };
        assert_eq!(supervisor.poll_timeout(), None);
        supervisor.ready(now);
        assert_eq!(supervisor.poll_timeout(), Some(now + second));
        supervisor.tick(now, |_, _| panic!("it is not time"));
        supervisor.tick(now + second, |_, _| true);
        assert_eq!(supervisor.poll_timeout(), Some(now + 2 * second));
        supervisor.stopping();
        assert_eq!(supervisor.poll_timeout(), None);
    }
}
