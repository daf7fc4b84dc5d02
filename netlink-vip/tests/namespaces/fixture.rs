//! A network namespace per test, on a thread of its own, and a keeper in it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use netlink_vip::{
    AddressLabel, GroupId, InterfaceSelector, Keeper, KeeperEvent, KeeperHandle, KeeperOptions, LeaseTime,
    Status, VipAddress, VipGroupConfig,
};
use nix::sched::{CloneFlags, unshare};

pub(crate) const MS: Duration = Duration::from_millis(1);
/// A generous bound for things that take milliseconds: other tests share the processors.
pub(crate) const SOON: Duration = Duration::from_secs(5);
pub(crate) const ONE: GroupId = GroupId(1);
pub(crate) const TWO: GroupId = GroupId(2);

/// Runs `body` in a network namespace of its own.
pub(crate) fn in_namespace(body: impl FnOnce(&Fixture) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let fixture = Fixture::new();
        body(&fixture);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// As [`in_namespace`], for a second namespace beside the test's own; `ready` gets the thread's id so that an
/// interface can be moved there.
pub(crate) fn beside<T: Send + 'static>(
    body: impl FnOnce(&Fixture) -> T + Send + 'static,
) -> (i32, std::sync::mpsc::Sender<()>, std::thread::JoinHandle<T>) {
    let (tell_id, id) = channel();
    let (go, wait) = channel();
    let thread = std::thread::spawn(move || {
        let fixture = Fixture::new();
        tell_id.send(nix::unistd::gettid().as_raw()).unwrap();
        wait.recv().unwrap();
        body(&fixture)
    });
    (id.recv().unwrap(), go, thread)
}

/// The calling thread's namespace.
pub(crate) struct Fixture {
    pub(crate) state: tempfile::TempDir,
    next_state: Cell<u32>,
}

impl Fixture {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let fixture = Self { state: tempfile::tempdir().unwrap(), next_state: Cell::new(0) };
        fixture.ip("link set lo up");
        fixture
    }

    /// `eth0` with 10.0.0.1/24 and fd00::1/64, up, its other end `peer0` in the same namespace.
    pub(crate) fn with_eth0(&self) {
        self.veth("eth0", "peer0");
        self.ip("addr add 10.0.0.1/24 dev eth0");
        self.ip("addr add fd00::1/64 dev eth0 nodad");
        self.wait_for_link_local("eth0");
        self.wait_for_link_local("peer0");
    }

    pub(crate) fn veth(&self, name: &str, peer: &str) {
        self.ip(&format!("link add {name} type veth peer name {peer}"));
        self.ip(&format!("link set {peer} up"));
        self.ip(&format!("link set {name} up"));
    }

    /// Duplicate address detection ends after a second or two; until then the table changes by itself.
    pub(crate) fn wait_for_link_local(&self, name: &str) {
        self.until("the link-local address", || {
            let shown = self.ip(&format!("-6 addr show dev {name} scope link"));
            shown.contains("fe80") && !shown.contains("tentative")
        });
    }

    /// Runs `ip`, which must succeed.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let output =
            Command::new("ip").args(arguments.split_whitespace()).output().expect("apt install iproute2");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        text
    }

    pub(crate) fn has(&self, ip: &str) -> bool {
        let shown = self.ip("-o addr show");
        shown.split_whitespace().any(|word| word.split('/').next() == Some(ip))
    }

    /// Returns whether the address is local, found without starting a process: for measuring.
    pub(crate) fn is_local(&self, ip: &str) -> bool {
        UdpSocket::bind((ip.parse::<IpAddr>().unwrap(), 0)).is_ok()
    }

    pub(crate) fn write_sysctl(&self, name: &str, value: &str) {
        std::fs::write(Path::new("/proc/sys").join(name), value).unwrap();
    }

    /// Everything that must be as before: addresses without their lifetimes, all routes, all labels. The kernel
    /// completes IPv6 addresses a moment after it has acknowledged them, so this waits for three equal snapshots.
    pub(crate) fn tables(&self) -> BTreeSet<String> {
        let mut snapshots = [BTreeSet::new(), BTreeSet::new(), self.snapshot()];
        for _ in 0..100 {
            if snapshots[0] == snapshots[1] && snapshots[1] == snapshots[2] {
                break;
            }
            std::thread::sleep(10 * MS);
            snapshots.rotate_left(1);
            snapshots[2] = self.snapshot();
        }
        let [_, _, last] = snapshots;
        last
    }

    fn snapshot(&self) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        for what in ["-o addr show", "-4 route show table all", "-6 route show table all", "addrlabel list"] {
            let shown = self.ip(what);
            lines.extend(shown.lines().map(|line| {
                let line = line.split("valid_lft").next().unwrap_or(line).trim_end_matches(['\\', ' ']);
                // Routes to neighbours expire; how soon is not part of the table.
                format!("{}: {}", what, without_expiry(line))
            }));
        }
        lines
    }

    pub(crate) fn assert_unchanged_since(&self, before: &BTreeSet<String>) {
        let after = self.tables();
        let gone: Vec<_> = before.difference(&after).collect();
        let new: Vec<_> = after.difference(before).collect();
        assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}, new: {new:#?}");
    }

    pub(crate) fn until(&self, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < SOON, "{what} did not come about; {}", self.ip("addr show"));
            std::thread::sleep(MS);
        }
        start.elapsed()
    }

    /// A state directory that no other keeper uses.
    pub(crate) fn fresh_state(&self) -> std::path::PathBuf {
        self.next_state.set(self.next_state.get() + 1);
        self.state.path().join(format!("state{}", self.next_state.get()))
    }

    pub(crate) fn keeper(&self, groups: Vec<VipGroupConfig>) -> Observer {
        Observer::spawn(KeeperOptions::new(self.fresh_state()), groups)
    }
}

fn without_expiry(line: &str) -> String {
    let mut words = Vec::new();
    let mut all = line.split_whitespace();
    while let Some(word) = all.next() {
        if word == "expires" {
            all.next();
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

/// A group on an interface given by name, with the shortest lease and the default label.
pub(crate) fn group(id: GroupId, interface: &str, addresses: &[&str]) -> VipGroupConfig {
    let parse = |text: &&str| {
        let (ip, len) = text.split_once('/').unwrap();
        VipAddress::new(ip.parse::<IpAddr>().unwrap(), len.parse().unwrap()).unwrap()
    };
    VipGroupConfig {
        id,
        interface: InterfaceSelector::Name(interface.into()),
        addresses: addresses.iter().map(parse).collect(),
        address_label: Some(AddressLabel::DEFAULT),
        lease: LeaseTime::MIN,
        lasting: BTreeSet::new(),
    }
}

/// The middle one. What a test promises to hold on a machine that others use as well is asserted of this, not of the
/// worst.
pub(crate) fn median(mut took: Vec<Duration>) -> Duration {
    took.sort();
    println!("median {:?}, worst {:?} of {}", took[took.len() / 2], took[took.len() - 1], took.len());
    took[took.len() / 2]
}

/// A keeper, and its events.
pub(crate) struct Observer {
    pub(crate) handle: KeeperHandle,
    events: Receiver<(Instant, KeeperEvent)>,
}

impl Observer {
    pub(crate) fn spawn(options: KeeperOptions, groups: Vec<VipGroupConfig>) -> Self {
        let (tell, events) = channel();
        let sink = Box::new(move |event| {
            let _ = tell.send((Instant::now(), event));
        });
        let handle = Keeper::spawn(options, groups, sink).expect("a keeper");
        Self { handle, events }
    }

    pub(crate) fn claim(&self, id: GroupId) -> Instant {
        let now = Instant::now();
        self.handle.claim(id, now + 1_800 * MS);
        now
    }

    /// Claims and waits until the addresses are there.
    pub(crate) fn install(&self, id: GroupId) -> Duration {
        let start = self.claim(id);
        let (at, _) =
            self.wait("Installed", |event| matches!(event, KeeperEvent::Installed { id: i, .. } if *i == id));
        at - start
    }

    /// The next event that matches; the others are passed over.
    pub(crate) fn wait(&self, what: &str, matches: impl Fn(&KeeperEvent) -> bool) -> (Instant, KeeperEvent) {
        let end = Instant::now() + SOON;
        let mut passed = Vec::new();
        loop {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(event) if matches(&event.1) => return event,
                Ok((_, event)) => passed.push(event),
                Err(error) => panic!("no {what} ({error}), only {passed:#?}"),
            }
        }
    }

    /// The events that were not yet waited for.
    pub(crate) fn said(&self) -> Vec<KeeperEvent> {
        self.events.try_iter().map(|(_, event)| event).collect()
    }

    /// Waits until the published status, which may be some milliseconds old, is as expected.
    pub(crate) fn shows(&self, what: &str, is_so: impl Fn(&Status) -> bool) {
        let end = Instant::now() + SOON;
        while !is_so(&self.handle.status()) {
            assert!(Instant::now() < end, "{what} does not show: {:#?}", self.handle.status());
            std::thread::sleep(MS);
        }
    }

    /// Claims at this cadence while `body` runs.
    pub(crate) fn while_claiming<T>(&self, id: GroupId, cadence: Duration, body: impl FnOnce() -> T) -> T {
        let handle = self.handle.clone();
        let (stop, stopped) = channel::<()>();
        let claimant = std::thread::spawn(move || {
            loop {
                handle.claim(id, Instant::now() + 1_800 * MS);
                if stopped.recv_timeout(cadence) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        drop(stop);
        claimant.join().unwrap();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub(crate) fn end(self) {
        self.handle.shutdown();
        self.handle.join().expect("an orderly end");
    }
}
