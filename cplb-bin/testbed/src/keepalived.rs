//! keepalived, the VRRP daemon to interoperate with.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{Error, Log, Node, Process, Tool, node::INTERFACE, wait_until};

/// One `vrrp_instance` of keepalived; its initial state is BACKUP, as k0s configures it.
#[derive(Debug, Clone)]
#[must_use]
pub struct VrrpInstance {
    version: u8,
    vrid: u8,
    priority: u8,
    interval: Duration,
    password: Option<String>,
    unicast: Option<(IpAddr, Vec<IpAddr>)>,
    preempt: bool,
    vips: Vec<(IpAddr, u8)>,
}

/// The state of an instance, from keepalived's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepalivedState {
    /// Nothing logged yet.
    Init,
    /// The instance is a backup.
    Backup,
    /// The instance has the addresses.
    Master,
    /// The instance has no working interface.
    Fault,
}

/// A keepalived in a node. Dropping it kills both of its processes.
#[derive(Debug)]
pub struct Keepalived {
    process: Process,
    child: PathBuf,
}

impl VrrpInstance {
    /// A version 2 instance with the password "abcd", priority 200 and one advertisement a second, by multicast.
    pub fn v2(vrid: u8, vips: impl IntoIterator<Item = (IpAddr, u8)>) -> Self {
        Self {
            version: 2,
            vrid,
            priority: 200,
            interval: Duration::from_secs(1),
            password: Some("abcd".into()),
            unicast: None,
            preempt: true,
            vips: vips.into_iter().collect(),
        }
    }

    /// A version 3 instance with priority 200 and one advertisement a second, by multicast. All addresses must be of
    /// one family.
    pub fn v3(vrid: u8, vips: impl IntoIterator<Item = (IpAddr, u8)>) -> Self {
        Self { version: 3, password: None, ..Self::v2(vrid, vips) }
    }

    /// Sets the priority.
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the advertisement interval: whole seconds in version 2, a multiple of 10 ms in version 3.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets the password of at most 8 bytes, version 2 only.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Removes the authentication.
    pub fn without_password(mut self) -> Self {
        self.password = None;
        self
    }

    /// Sets unicast from `source` to `peers` instead of multicast.
    pub fn unicast(mut self, source: IpAddr, peers: impl IntoIterator<Item = IpAddr>) -> Self {
        self.unicast = Some((source, peers.into_iter().collect()));
        self
    }

    /// Disables preemption: the instance does not take over from a living master of lower priority.
    pub fn nopreempt(mut self) -> Self {
        self.preempt = false;
        self
    }

    /// The instance's name in the configuration and the log.
    fn name(&self) -> String {
        let family = if self.vips.iter().any(|(ip, _)| ip.is_ipv6()) { "v6" } else { "v4" };
        format!("vrid{}{family}", self.vrid)
    }

    /// The instance's part of `keepalived.conf`.
    fn render(&self) -> String {
        let block = |name: &str, lines: &[String]| {
            let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
            format!("  {name} {{\n{lines}  }}\n")
        };
        let mut text = format!("vrrp_instance {} {{\n  state BACKUP\n", self.name());
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "  interface {INTERFACE}\n  version {}\n  virtual_router_id {}\n  priority {}\n  advert_int {}\n",
            self.version,
            self.vrid,
            self.priority,
            self.interval.as_secs_f64(),
        );
        if !self.preempt {
            text.push_str("  nopreempt\n");
        }
        if let Some(password) = &self.password {
            text += &block("authentication", &["auth_type PASS".into(), format!("auth_pass {password}")]);
        }
        if let Some((source, peers)) = &self.unicast {
            let _ = writeln!(text, "  unicast_src_ip {source}");
            text += &block("unicast_peer", &peers.iter().map(IpAddr::to_string).collect::<Vec<_>>());
        }
        let vips: Vec<String> =
            self.vips.iter().map(|(ip, prefix_len)| format!("{ip}/{prefix_len}")).collect();
        text += &block("virtual_ipaddress", &vips);
        text + "}\n"
    }
}

impl Keepalived {
    /// Starts keepalived in a node, with its configuration and pid files in the node's directory.
    ///
    /// # Errors
    /// [`Error::MissingTool`], [`Error::Spawn`].
    pub fn start(node: &Node, instances: &[VrrpInstance]) -> Result<Self, Error> {
        let program = Tool::Keepalived.path()?;
        let file = |name: &str| node.directory().join(format!("keepalived.{name}"));
        let (config, main, child) = (file("conf"), file("pid"), file("vrrp.pid"));
        // keepalived does not start with the pid file of a crashed predecessor.
        for stale in [&main, &child] {
            if stale.exists() {
                fs::remove_file(stale).map_err(Error::file(stale))?;
            }
        }
        let mut text = format!("global_defs {{\n  router_id {}\n}}\n", node.name());
        instances.iter().for_each(|instance| text += &instance.render());
        fs::write(&config, text).map_err(Error::file(&config))?;
        let mut command = Command::new(program);
        // Foreground, detailed log to the console, VRRP only.
        command.args(["-n", "-l", "-D", "-P", "-f"]).arg(config).arg("-p").arg(main).arg("-r").arg(&child);
        Ok(Self { process: node.spawn("keepalived", command)?, child })
    }

    /// The log of both processes.
    #[must_use]
    pub fn log(&self) -> &Log {
        self.process.log()
    }

    /// The parent process, which supervises the VRRP process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The state of an instance, as logged last.
    #[must_use]
    pub fn state(&self, instance: &VrrpInstance) -> KeepalivedState {
        let prefix = format!("({}) Entering ", instance.name());
        let lines = self.log().lines();
        let last = lines.iter().rev().find_map(|line| line.text.split_once(&prefix));
        match last.and_then(|(_, rest)| rest.split(' ').next()) {
            Some("MASTER") => KeepalivedState::Master,
            Some("BACKUP") => KeepalivedState::Backup,
            Some("FAULT") => KeepalivedState::Fault,
            _ => KeepalivedState::Init,
        }
    }

    /// Waits until an instance is in this state.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub fn wait_for_state(
        &self,
        instance: &VrrpInstance,
        state: KeepalivedState,
        timeout: Duration,
    ) -> Result<(), Error> {
        let what = format!("{} is {state:?} in {}", instance.name(), self.process.name());
        wait_until(what, timeout, || self.state(instance) == state)?;
        Ok(())
    }

    /// Stops keepalived cleanly: it resigns and removes its addresses. Returns the time of the signal.
    ///
    /// # Errors
    /// [`Error::StillRunning`].
    pub fn stop(&self) -> Result<Instant, Error> {
        let at = Instant::now();
        self.process.stop(GRACE)?;
        Ok(at)
    }

    /// Kills both processes at once: neither sends a packet, and the addresses stay on the interface. Returns the time
    /// of the signal.
    ///
    /// # Errors
    /// [`Error::StillRunning`]; [`Error::System`] if the process has ended before.
    pub fn crash(&self) -> Result<Instant, Error> {
        let child = self.child_pid();
        let at = Instant::now();
        if let Some(child) = child {
            // The child is notified of its parent's end, and would remove its addresses.
            kill(child, Signal::SIGSTOP).map_err(Error::errno("stop keepalived's child"))?;
        }
        self.process.signal(Signal::SIGKILL)?;
        if let Some(child) = child {
            let _ = kill(child, Signal::SIGKILL);
        }
        self.process.kill()?;
        if let Some(child) = child {
            // Its parent is dead, so it is a child of this process now.
            wait_until("keepalived's child ends", GRACE, || {
                !matches!(waitpid(child, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
                    && !exists(child)
            })?;
        }
        Ok(at)
    }

    /// The VRRP process, while it is a child of the process that this started.
    fn child_pid(&self) -> Option<Pid> {
        let pid: i32 = fs::read_to_string(&self.child).ok()?.trim().parse().ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent =
            status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse::<u32>().ok()?;
        (parent == self.process.pid()).then(|| Pid::from_raw(pid))
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        if self.process.is_running() {
            let _ = self.crash();
        }
    }
}

/// Longest time to stop; keepalived waits a second after it has resigned.
const GRACE: Duration = Duration::from_secs(5);

fn exists(pid: Pid) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}
