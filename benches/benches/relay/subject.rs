//! The subjects of the measurement: the proxy, HAProxy in its modes, and a direct connection.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testbed::Tool;

use crate::Result;
use crate::process::Process;
use crate::proxy;

/// Ports for HAProxy, below the ephemeral range.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// A subject. HAProxy is fastest with a different mode for each kind of load, so the proxy is compared with all of
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Proxy,
    /// HAProxy splices by its own heuristics.
    HaproxyAuto,
    /// HAProxy splices whenever possible, with larger pipes.
    HaproxySplice,
    /// HAProxy copies.
    HaproxyCopy,
    /// The client connects to the server.
    Direct,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Proxy, Kind::HaproxyAuto, Kind::HaproxySplice, Kind::HaproxyCopy, Kind::Direct];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Proxy => "cplb",
            Kind::HaproxyAuto => "HAProxy auto",
            Kind::HaproxySplice => "HAProxy 256K",
            Kind::HaproxyCopy => "HAProxy copy",
            Kind::Direct => "direct",
        }
    }

    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Kind::HaproxyAuto | Kind::HaproxySplice | Kind::HaproxyCopy)
    }

    /// The mode's lines for the sections `global` and `defaults`.
    fn settings(self) -> (&'static str, &'static str) {
        match self {
            Kind::HaproxyAuto => ("", "option splice-auto"),
            Kind::HaproxySplice => {
                ("tune.pipesize 262144", "option splice-request\n  option splice-response")
            }
            _ => ("nosplice", ""),
        }
    }
}

/// A running subject.
#[derive(Debug)]
pub(crate) struct Subject {
    pub kind: Kind,
    /// The addresses for clients, used in turn.
    pub addresses: Vec<SocketAddr>,
    /// The process; `None` for direct connections.
    pub process: Option<Process>,
}

impl Subject {
    /// Processor time so far in seconds, if there is a process.
    pub(crate) fn cpu(&self) -> Result<Option<f64>> {
        self.process.as_ref().map(Process::cpu).transpose()
    }
}

/// The environment that all subjects share.
#[derive(Debug)]
pub(crate) struct Setup {
    pub backends: Vec<SocketAddr>,
    haproxy: PathBuf,
    setpriv: PathBuf,
    directory: tempfile::TempDir,
    /// Number of pairs that a proxy must support.
    pairs: usize,
}

impl Setup {
    pub(crate) fn new(backends: Vec<SocketAddr>, pairs: usize) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("cplb-bench-").tempdir()?;
        Ok(Setup {
            backends,
            haproxy: Tool::Haproxy.path()?,
            setpriv: Tool::Setpriv.path()?,
            directory,
            pairs,
        })
    }

    /// The first line of HAProxy's version output.
    pub(crate) fn haproxy_version(&self) -> Result<String> {
        let output = Command::new(&self.haproxy).arg("-v").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
    }

    /// Starts a subject and waits until it listens.
    pub(crate) fn start(&self, kind: Kind) -> Result<Subject> {
        let (addresses, process) = match kind {
            Kind::Direct => (self.backends.clone(), None),
            Kind::Proxy => start_proxy(&self.backends).map(|(process, at)| (vec![at], Some(process)))?,
            _ => self.start_haproxy(kind).map(|(process, at)| (vec![at], Some(process)))?,
        };
        Ok(Subject { kind, addresses, process })
    }

    fn start_haproxy(&self, kind: Kind) -> Result<(Process, SocketAddr)> {
        let listen = free_address()?;
        let file = self.directory.path().join(format!("{}.cfg", listen.port()));
        let log = file.with_extension("log");
        fs::write(&file, self.haproxy_config(kind, listen))?;
        // Without this it would outlive a killed benchmark; the process executes HAProxy, so its id is HAProxy's.
        let mut command = Command::new(&self.setpriv);
        command.args(["--pdeathsig", "KILL"]).arg(&self.haproxy).arg("-db").arg("-f").arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let mut process = Process::new(command.spawn()?);
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(listen).is_err() {
            if !process.is_running() || Instant::now() > deadline {
                return Err(format!("HAProxy did not start: {}", said(&log)).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok((process, listen))
    }

    fn haproxy_config(&self, kind: Kind, listen: SocketAddr) -> String {
        let (global, defaults) = kind.settings();
        let (threads, connections) = (proxy::WORKERS, self.pairs + 100);
        let servers = self.backends.iter().enumerate();
        let servers: String =
            servers.map(|(i, backend)| format!("  server s{i} {backend} check inter 1s\n")).collect();
        format!(
            "global\n  nbthread {threads}\n  maxconn {connections}\n  maxpipes 64\n  {global}\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  {defaults}\n\
             frontend in\n  bind {listen}\n  default_backend out\n\
             backend out\n  balance roundrobin\n{servers}"
        )
    }
}

/// Starts the proxy under test.
pub(crate) fn start_proxy(backends: &[SocketAddr]) -> Result<(Process, SocketAddr)> {
    let backends: Vec<String> = backends.iter().map(ToString::to_string).collect();
    Process::in_role(proxy::ROLE, &backends)
}

fn free_address() -> Result<SocketAddr> {
    let start = (std::process::id() % u32::from(PORTS.end - PORTS.start)) as u16;
    let candidates = PORTS.cycle().skip(start.into()).take(PORTS.len());
    let mut addresses = candidates.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let free = addresses.find(|address| TcpListener::bind(address).is_ok());
    Ok(free.ok_or("no free port for HAProxy")?)
}

fn said(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}
