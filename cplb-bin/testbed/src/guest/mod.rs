//! A machine with a distribution's kernel, for features that the host's kernel may lack: IPVS, dummy links, netem.
//!
//! The guest runs under qemu's software emulation, so it needs neither root nor hardware support, and is ten to twenty
//! times slower than the host. Its file system contains the test binary, the programs and files that the test lists,
//! and the libraries they need, all at their paths on the host; the test binary is also its first process. Inside,
//! [`crate::Lan`] works as on the host, and every process is root of the initial user namespace.
//!
//! A test that needs such a kernel is marked with [`crate::Test::in_guest`], and [`crate::main`] boots the guest:
//!
//! ```no_run
//! use testbed::{Test, Tool};
//!
//! fn main() -> std::process::ExitCode {
//!     testbed::main(vec![
//!         Test::new("services_are_listed", || { /* runs in the guest */ })
//!             .needs([Tool::Ipvsadm])
//!             .files(["/path/to/cplb"])
//!             .in_guest(),
//!     ])
//! }
//! ```
//!
//! `.ci/guest` runs any other test in a guest; it takes the arguments of `cargo test`.

mod command;
mod image;
mod init;
mod kernel;
mod modules;
mod shared_guest;
mod wire;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub use command::{GuestCommand, GuestEnd};
pub use init::{is_guest, run_if_init};
pub use modules::{load_module, unload_module};

pub use shared_guest::is_for_tests;
pub(crate) use shared_guest::{GuestUse, SharedGuests};

use crate::{Error, Tool, is_initial_root};
use image::Image;
use kernel::Kernel;
use wire::{Frame, Request};

/// The modules that the guest loads at its start, without their dependencies.
const MODULES: &[&str] = &[
    "bridge",
    "veth",
    "macvlan",
    "dummy",
    "vrf",
    "8021q",
    "bonding",
    "ipip",
    "ip_gre",
    "ip6_tunnel",
    "ip6_gre",
    "fou",
    "sch_netem",
    "sch_htb",
    "tcp_diag",
    "inet_diag",
    "udp_diag",
    "raw_diag",
    "nf_tables",
    "nft_meta_bridge",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_fib_inet",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_reject",
    "nft_reject_inet",
    "nft_tproxy",
    "nft_limit",
    "nft_log",
    "nft_numgen",
    "nft_hash",
    "nft_compat",
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_wrr",
    "ip_vs_lc",
    "ip_vs_wlc",
    "ip_vs_lblc",
    "ip_vs_lblcr",
    "ip_vs_dh",
    "ip_vs_sh",
    "ip_vs_mh",
    "ip_vs_sed",
    "ip_vs_nq",
    "ip_vs_fo",
    "ip_vs_ovf",
    "ip_vs_pe_sip",
    "nfnetlink_log",
    "sctp",
];

/// Environment variable for the emulator's accelerator: `kvm` is faster where there is hardware for it.
const ACCELERATOR: &str = "CPLB_GUEST_ACCEL";
/// The emulated processors share one time stamp counter, which the kernel cannot detect; its fallback clock source is a
/// device, whose every read is an exit from the emulation. Without randomised addresses the emulator's translation of a
/// program serves all its processes: tests take a third less time.
const PARAMETERS: &str = "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off clocksource=tsc tsc=reliable \
                          norandmaps";
/// Longest time from power-on until the guest is ready: 5 s on an idle machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest time for the guest to report that it has killed a program at its time limit, and to check itself.
const KILL_REPORT_TIMEOUT: Duration = Duration::from_secs(60);
/// The number of lines of the console that an error contains: the state of each processor, and of some tasks.
const CONSOLE_LINES: usize = 150;

/// The reason why a guest could not be booted or a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// No kernel has been unpacked.
    #[error("no kernel for guests in {} ({source}); get one with: .ci/install test", .directory.display())]
    NoKernel {
        /// The directory that was searched.
        directory: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel lacks a module.
    #[error("the kernel {} has no module {name}", .kernel.display())]
    NoModule {
        /// The module.
        name: String,
        /// The kernel's image.
        kernel: PathBuf,
    },
    /// A program that the guest is to have is not installed on the host.
    #[error(transparent)]
    Host(#[from] Error),
    /// A file of the host could not be read, or the guest's could not be written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A program for the guest lacks a library on the host.
    #[error("{}: {library}", .program.display())]
    Library {
        /// The program.
        program: PathBuf,
        /// The loader's message.
        library: String,
    },
    /// The emulator could not be started.
    #[error("cannot start the emulator: {0}")]
    Emulator(#[source] io::Error),
    /// The guest stopped, hangs or sent an invalid frame.
    #[error("the guest {what}; the end of its console:\n{console}")]
    Lost {
        /// The failure.
        what: String,
        /// The last lines of the guest's console.
        console: String,
    },
    /// The guest could not start the program.
    #[error("the guest cannot start {0}")]
    NotStarted(String),
}

/// The content of a guest.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct GuestBuilder {
    tools: BTreeSet<Tool>,
    files: BTreeSet<PathBuf>,
}

impl GuestBuilder {
    /// Adds programs of the distribution.
    pub fn tools(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.tools.extend(tools);
        self
    }

    /// Adds programs (with the libraries they need), other files and whole directories, by absolute paths.
    pub fn files<P: Into<PathBuf>>(mut self, files: impl IntoIterator<Item = P>) -> Self {
        self.files.extend(files.into_iter().map(Into::into));
        self
    }

    /// Boots a guest whose first process is this program, which must call [`run_if_init`] first in `main`.
    ///
    /// # Errors
    /// [`GuestError`]
    pub fn boot(self) -> Result<Guest, GuestError> {
        let kernel = Kernel::find()?;
        let modules = kernel.closure(MODULES.iter().copied())?;
        let mut image = Image::new();
        let program = std::env::current_exe()
            .map_err(|source| GuestError::File { path: "/proc/self/exe".into(), source })?;
        image.add(&program)?;
        image.link("/init", &program);
        for file in modules.iter().chain(&self.files) {
            image.add(file)?;
        }
        for tool in &self.tools {
            image.add(&tool.path()?)?;
        }
        let list: String = modules.iter().map(|file| format!("{}\n", file.display())).collect();
        image.text(modules::LIST, list);
        let directory =
            TempDir::new().map_err(|source| GuestError::File { path: std::env::temp_dir(), source })?;
        let archive = directory.path().join("initramfs");
        image.write(&archive)?;
        Guest::start(&kernel.image, &archive, directory)
    }
}

/// The emulator's command. The guest's clock goes on while the emulator waits for a processor, so that other work on this
/// machine would be a stall to all of the guest: where this process may, it gives the emulator precedence.
fn emulator() -> Result<Command, GuestError> {
    let program = Tool::Qemu.path()?;
    if !is_initial_root() {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("nice");
    command.args(["-n", "-15"]).arg(program);
    Ok(command)
}

/// A running guest. It is stopped when this is dropped.
#[derive(Debug)]
pub struct Guest {
    emulator: Child,
    port: ChildStdin,
    frames: Receiver<io::Result<Frame>>,
    directory: TempDir,
    booted_in: Duration,
}

impl Guest {
    /// Returns a builder of an empty guest.
    pub fn builder() -> GuestBuilder {
        GuestBuilder::default()
    }

    fn start(image: &Path, archive: &Path, directory: TempDir) -> Result<Self, GuestError> {
        let accelerator = std::env::var(ACCELERATOR).unwrap_or_else(|_| "tcg,thread=multi".to_owned());
        let since = Instant::now();
        let mut emulator = emulator()?
            .args(["-M", "q35", "-cpu", "qemu64,+rdrand", "-smp", "2", "-m", "2048", "-accel", &accelerator])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none"])
            .arg("-serial")
            .arg(format!("file:{}", directory.path().join("console").display()))
            .args(["-serial", "stdio", "-kernel"])
            .arg(image)
            .arg("-initrd")
            .arg(archive)
            .args(["-append", &format!("{PARAMETERS} {}={}", init::VARIABLE, init::INIT)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(GuestError::Emulator)?;
        let (Some(port), Some(output)) = (emulator.stdin.take(), emulator.stdout.take()) else {
            return Err(GuestError::Emulator(io::Error::other("no pipes")));
        };
        let mut guest = Self { emulator, port, frames: listen(output), directory, booted_in: Duration::ZERO };
        match guest.next(BOOT_TIMEOUT)? {
            Frame::Ready => {}
            other => return Err(guest.lost(format!("began with {other:?}"))),
        }
        guest.booted_in = since.elapsed();
        // The archive is in the guest's memory now.
        let _ = fs::remove_file(archive);
        Ok(guest)
    }

    /// The time from power-on until the guest was ready.
    #[must_use]
    pub fn booted_in(&self) -> Duration {
        self.booted_in
    }

    /// Runs a program and passes its output on as it comes.
    ///
    /// # Errors
    /// [`GuestError::NotStarted`], or [`GuestError::Lost`], after which the guest is unusable.
    pub fn run(
        &mut self,
        command: &GuestCommand,
        mut output: impl FnMut(&[u8]),
    ) -> Result<GuestEnd, GuestError> {
        let request: &Request = &command.request;
        let mut line = serde_json::to_vec(request).map_err(|error| self.lost(error.to_string()))?;
        line.push(b'\n');
        let sent = self.port.write_all(&line).and_then(|()| self.port.flush());
        sent.map_err(|error| self.lost(format!("does not listen: {error}")))?;
        let deadline = Instant::now() + Duration::from_secs(request.seconds) + KILL_REPORT_TIMEOUT;
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                Frame::Output(bytes) => output(&bytes),
                Frame::Ended(code) => return Ok(GuestEnd::Exited(code)),
                Frame::Overdue { guest_works: true } => return Ok(GuestEnd::Overdue),
                Frame::Overdue { guest_works: false } => return Err(self.lost("hangs".to_owned())),
                Frame::NotStarted(reason) => return Err(GuestError::NotStarted(reason)),
                Frame::Ready => return Err(self.lost("started anew".to_owned())),
            }
        }
    }

    fn next(&mut self, timeout: Duration) -> Result<Frame, GuestError> {
        match self.frames.recv_timeout(timeout) {
            Ok(Ok(frame)) => Ok(frame),
            Ok(Err(error)) => Err(self.lost(format!("cannot be understood: {error}"))),
            Err(RecvTimeoutError::Timeout) => Err(self.lost(format!("has sent nothing for {timeout:?}"))),
            Err(RecvTimeoutError::Disconnected) => Err(self.lost("has stopped".to_owned())),
        }
    }

    fn lost(&self, what: String) -> GuestError {
        let console = fs::read(self.directory.path().join("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let lines: Vec<&str> = console.lines().collect();
        let last = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
        GuestError::Lost { what, console: last }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The guest has no state that needs an orderly shutdown.
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
    }
}

fn listen(output: ChildStdout) -> Receiver<io::Result<Frame>> {
    let (sender, frames) = mpsc::channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        while let Some(frame) = Frame::read(&mut output).transpose() {
            let last = frame.is_err();
            if sender.send(frame).is_err() || last {
                return;
            }
        }
    });
    frames
}
