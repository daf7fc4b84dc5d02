//! A machine on the LAN.

mod net;

use std::{
    fs::{self, File},
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub(crate) use net::Interface;

use crate::{Error, Mac, Process, Stream, Thread, log::Journal, namespaces, netns::Netns, tool};

/// A machine on the LAN: a network namespace with an interface `eth0`. Clones are the same node.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    name: String,
    netns: Netns,
    interface: Interface,
    directory: PathBuf,
    journal: Journal,
    /// Number of processes started so far, part of the names of their log files.
    started: AtomicU32,
}

impl Inner {
    pub(crate) fn new(
        name: String,
        netns: Netns,
        interface: Interface,
        directory: PathBuf,
        journal: Journal,
    ) -> Self {
        Self { name, netns, interface, directory, journal, started: AtomicU32::new(0) }
    }
}

/// Longest time that [`Node::output`] waits for a program.
const LONGEST_RUN: Duration = Duration::from_secs(60);

/// The interface of every node.
pub(crate) const INTERFACE: &str = "eth0";

impl Node {
    /// The node's name: `c1` … for controllers, `client1` … for clients, `pod1` … for routed clients.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The name of the node's interface on the LAN.
    #[must_use]
    pub fn interface(&self) -> &'static str {
        INTERFACE
    }

    /// The hardware address of the node's interface.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.0.interface.mac
    }

    /// The node's own IPv4 address.
    ///
    /// # Panics
    /// If the LAN has no IPv4.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        let own = self.0.interface.addresses.iter().find_map(|(ip, _)| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        own.unwrap_or_else(|| panic!("{} has no IPv4 address", self.name()))
    }

    /// The node's own global IPv6 address.
    ///
    /// # Panics
    /// If the LAN has no IPv6.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        let own = self.0.interface.addresses.iter().find_map(|(ip, _)| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        });
        own.unwrap_or_else(|| panic!("{} has no IPv6 address", self.name()))
    }

    /// The node's addresses as built, IPv4 first.
    #[must_use]
    pub fn own_ips(&self) -> Vec<IpAddr> {
        self.0.interface.addresses.iter().map(|(ip, _)| *ip).collect()
    }

    /// The node's directory, on a tmpfs, removed with the LAN.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// Runs `work` in the node's namespace, on a new thread, and returns its result.
    ///
    /// # Panics
    /// If `work` panics, with its panic, or if the kernel refuses a thread.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.try_run(work).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Like [`Node::run`].
    ///
    /// # Errors
    /// [`Error::Namespace`] if the kernel refuses a thread.
    ///
    /// # Panics
    /// If `work` panics, with its panic.
    pub fn try_run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        self.0.netns.run(work).map_err(self.refused("run a thread"))
    }

    /// Runs a future in the node's namespace, on a separate current-thread runtime. The future is created there, so it
    /// need not be `Send`.
    ///
    /// # Errors
    /// [`Error::Namespace`] if the kernel refuses a thread.
    ///
    /// # Panics
    /// If the future panics, with its panic.
    pub fn block_on<T, F, W>(&self, work: W) -> Result<T, Error>
    where
        T: Send,
        F: Future<Output = T>,
        W: FnOnce() -> F + Send,
    {
        self.0.netns.block_on(work).map_err(self.refused("run a runtime"))
    }

    /// Starts a thread in the node's namespace.
    ///
    /// # Errors
    /// [`Error::Namespace`] if the kernel refuses it.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Thread<T>, Error> {
        self.0.netns.thread(name.to_owned(), work).map_err(self.refused("start a thread"))
    }

    /// Starts a process in the node. Its standard streams are captured, whatever the command sets for them; its
    /// standard input is empty. `name` is for logs; the node's name precedes it.
    ///
    /// # Errors
    /// [`Error::Spawn`] if the program cannot be started.
    pub fn spawn(&self, name: &str, mut command: Command) -> Result<Process, Error> {
        let number = self.0.started.fetch_add(1, Ordering::Relaxed);
        let full_name = format!("{}/{name}", self.name());
        let path = self.directory().join(format!("{number}-{name}.log"));
        let file = File::create(&path).map_err(Error::file(path))?;
        let log = self.0.journal.open(full_name.clone(), Some(file));
        prepare(&mut command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let (child, command) = self.try_run(move || (command.spawn(), command))?;
        let failed =
            |source| Error::Spawn { name: full_name.clone(), program: command_line(&command), source };
        let mut child = child.map_err(failed)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let process = Process::new(full_name.clone(), child, log.clone(), self.0.journal.clone());
        if let Some(out) = out {
            log.follow(out, Stream::Out).map_err(failed)?;
        }
        if let Some(err) = err {
            log.follow(err, Stream::Err).map_err(failed)?;
        }
        Ok(process)
    }

    /// Runs a program in the node to its end and returns its output, whatever its exit code. The program is killed
    /// after a minute.
    ///
    /// # Errors
    /// [`Error::Spawn`] if the program cannot be started, [`Error::StillRunning`].
    pub fn output(&self, mut command: Command) -> Result<Output, Error> {
        prepare(&mut command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let (child, command) = self.try_run(move || (command.spawn(), command))?;
        let failed =
            |source| Error::Spawn { name: self.name().to_owned(), program: command_line(&command), source };
        let child = child.map_err(failed)?;
        // The process id is not reused until the child is waited for, at the end of this function at the earliest.
        let pid = Pid::from_raw(child.id().cast_signed());
        let (ended, end) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let guard = scope.spawn(move || {
                let late = end.recv_timeout(LONGEST_RUN) == Err(RecvTimeoutError::Timeout);
                if late {
                    let _ = kill(pid, Signal::SIGKILL);
                }
                late
            });
            let output = child.wait_with_output();
            drop(ended);
            if guard.join().unwrap_or(false) {
                return Err(Error::StillRunning { name: command_line(&command), timeout: LONGEST_RUN });
            }
            output.map_err(failed)
        })
    }

    /// Runs a program in the node that must succeed; returns its standard output.
    ///
    /// # Errors
    /// [`Error::Failed`] with the program's standard error; [`Error::Spawn`].
    pub fn exec<'a>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<String, Error> {
        let mut command = Command::new(program);
        command.args(arguments);
        self.succeed(command)
    }

    /// Like [`Node::exec`].
    pub(crate) fn succeed(&self, command: Command) -> Result<String, Error> {
        let line = command_line(&command);
        let output = self.output(command)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Failed {
            program: line,
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
        })
    }

    /// Reads a sysctl, such as `net.ipv4.ip_forward`. Interface names with dots are not supported.
    ///
    /// # Errors
    /// [`Error::Sysctl`].
    pub fn sysctl(&self, name: &str) -> Result<String, Error> {
        let path = sysctl_path(name);
        let value = self.try_run(|| fs::read_to_string(path))?;
        value
            .map(|value| value.trim().to_owned())
            .map_err(|source| Error::Sysctl { name: name.into(), source })
    }

    /// Writes a sysctl.
    ///
    /// # Errors
    /// [`Error::Sysctl`].
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<(), Error> {
        let path = sysctl_path(name);
        self.try_run(|| fs::write(path, value))?.map_err(|source| Error::Sysctl { name: name.into(), source })
    }

    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.0.netns
    }

    pub(crate) fn doing(&self, what: &str) -> String {
        format!("{what} on {}", self.name())
    }

    fn refused(&self, step: &'static str) -> impl FnOnce(io::Error) -> Error {
        let node = self.name().to_owned();
        move |source| Error::Namespace { step, node, source }
    }
}

/// The program and its arguments, for messages.
pub(crate) fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn prepare(command: &mut Command) {
    command.stdin(Stdio::null()).env_remove(namespaces::MARKER);
    // An ordinary user's PATH lacks the directories of the programs that a controller's daemons call.
    if let Ok(path) = std::env::join_paths(tool::search_path())
        && !command.get_envs().any(|(name, _)| name == "PATH")
    {
        command.env("PATH", path);
    }
}

fn sysctl_path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}
