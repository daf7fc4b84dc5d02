//! Debian's keepalived as the other router of the group, as winner and as loser.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vrrp::Version;
use vrrp::router::{Preempt, StateName};
use vrrp::runner::InstanceConfig;

use crate::Test;
use crate::fixture::{Lan, Node, always, eventually, is_real_root, sh};
use crate::member::{Member, VIP4, VIP6, VRID, config, config_v2, config_v6, unicast};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        ("keepalived_version_2_with_a_password", || meet(&Group::V2)),
        ("keepalived_version_2_unicast", || meet(&Group::V2Unicast)),
        ("keepalived_version_3_over_ipv4", || meet(&Group::V3)),
        ("keepalived_version_3_over_ipv6", || meet(&Group::V3OverIpv6)),
        ("keepalived_version_3_over_ipv6_unicast", || meet(&Group::V3OverIpv6Unicast)),
    ]
}

const SECOND: Duration = Duration::from_secs(1);

/// keepalived runs at normal priority, and so does the `ip` that lists its address.
const SLOW: Duration = Duration::from_secs(2);

/// The transport of the group.
#[derive(PartialEq)]
enum Group {
    V2,
    V2Unicast,
    V3,
    V3OverIpv6,
    /// keepalived sends these with a hop limit of 64.
    V3OverIpv6Unicast,
}

impl Group {
    fn interval(&self) -> Duration {
        match self {
            Self::V2 | Self::V2Unicast => SECOND,
            Self::V3 | Self::V3OverIpv6 | Self::V3OverIpv6Unicast => SECOND / 5,
        }
    }

    fn version(&self) -> Version {
        match self {
            Self::V2 | Self::V2Unicast => Version::V2,
            Self::V3 | Self::V3OverIpv6 | Self::V3OverIpv6Unicast => Version::V3,
        }
    }

    fn vip(&self) -> IpAddr {
        match self {
            Self::V2 | Self::V2Unicast | Self::V3 => VIP4.into(),
            Self::V3OverIpv6 | Self::V3OverIpv6Unicast => VIP6.into(),
        }
    }

    /// Active_Down_Interval of a router of this priority.
    fn down(&self, priority: u32) -> Duration {
        3 * self.interval() + self.skew(priority)
    }

    fn skew(&self, priority: u32) -> Duration {
        let unit = if self.version() == Version::V2 { SECOND } else { self.interval() };
        unit * (256 - priority) / 256
    }

    fn ours(&self, priority: u8, keepalived: &Node) -> InstanceConfig {
        match self {
            Self::V2 => config_v2(priority),
            Self::V2Unicast => unicast(config_v2(priority), &[keepalived.v4().into()]),
            Self::V3 => config(priority, self.interval()),
            Self::V3OverIpv6 => config_v6(priority, self.interval()),
            Self::V3OverIpv6Unicast => unicast(config_v6(priority, self.interval()), &[keepalived.v6()]),
        }
    }

    fn theirs(&self, priority: u8, own: &Node, ours: &Node) -> String {
        let auth = match self.version() {
            Version::V2 => "authentication {\n auth_type PASS\n auth_pass Example\n }",
            Version::V3 => "",
        };
        let between =
            |own: IpAddr, ours: IpAddr| format!("unicast_src_ip {own}\n unicast_peer {{\n {ours}\n }}");
        let unicast = match self {
            Self::V2Unicast => between(own.v4().into(), ours.v4().into()),
            Self::V3OverIpv6Unicast => between(own.v6(), ours.v6()),
            Self::V2 | Self::V3 | Self::V3OverIpv6 => String::new(),
        };
        let prefix = if self.vip().is_ipv6() { 64 } else { 24 };
        format!(
            "vrrp_instance VI {{\n state BACKUP\n interface eth0\n virtual_router_id {VRID}\n priority {priority}\n \
             version {}\n advert_int {}\n {auth}\n {unicast}\n virtual_ipaddress {{\n {}/{prefix}\n }}\n}}\n",
            self.version(),
            self.interval().as_secs_f64(),
            self.vip()
        )
    }
}

/// A keepalived of our own, with its files in a directory of its own.
struct Keepalived<'a> {
    node: &'a Node,
    vip: IpAddr,
    directory: PathBuf,
    process: Child,
}

impl<'a> Keepalived<'a> {
    fn start(node: &'a Node, group: &Group, configuration: &str) -> Self {
        let unique = format!("vrrp-runner-{}-{:?}", std::process::id(), Instant::now());
        let directory = std::env::temp_dir().join(unique.replace([' ', '{', '}', ':', ','], ""));
        fs::create_dir(&directory).expect("a directory");
        let file = |name: &str| directory.join(name);
        fs::write(file("conf"), configuration).expect("a configuration");
        let log = File::create(file("log")).expect("a log");
        let (conf, pid, vrrp_pid) = (file("conf"), file("pid"), file("vrrp.pid"));
        let process = node.run(move || {
            // It dies with the thread of its node, however this process ends.
            Command::new("setpriv")
                .args([
                    "--pdeathsig",
                    "KILL",
                    "keepalived",
                    "--dont-fork",
                    "--log-console",
                    "--log-detail",
                    "--vrrp",
                ])
                .arg("--use-file")
                .arg(conf)
                .arg("--pid")
                .arg(pid)
                .arg("--vrrp_pid")
                .arg(vrrp_pid)
                .stdout(log.try_clone().expect("a descriptor"))
                .stderr(log)
                .spawn()
                .unwrap_or_else(|error| {
                    panic!("setpriv, keepalived: {error}; install with: apt-get install keepalived")
                })
        });
        let keepalived = Self { node, vip: group.vip(), directory, process };
        eventually("keepalived runs", 5 * SECOND, || keepalived.worker());
        keepalived
    }

    /// The VRRP process.
    fn worker(&self) -> Option<Pid> {
        let pid = fs::read_to_string(self.directory.join("vrrp.pid")).ok()?;
        pid.trim().parse().ok().map(Pid::from_raw)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Returns whether its node has the virtual address.
    fn is_master(&self) -> bool {
        let vip = self.vip;
        !self.node.run(move || sh("ip", &format!("-o addr show dev eth0 to {vip}"))).trim().is_empty()
    }

    /// Kills both processes at once, and removes the address that they leave behind.
    fn crash(mut self) -> Instant {
        let supervisor = Pid::from_raw(i32::try_from(self.process.id()).expect("a pid"));
        let worker = self.worker().expect("it runs");
        kill(supervisor, Signal::SIGSTOP).expect("our own child");
        kill(worker, Signal::SIGKILL).expect("its child");
        let at = Instant::now();
        kill(supervisor, Signal::SIGKILL).expect("our own child");
        self.process.wait().expect("it ends");
        let vip = self.vip;
        self.node.run(move || sh("ip", &format!("addr flush dev eth0 to {vip}")));
        at
    }

    fn stop(mut self) -> Instant {
        let at = Instant::now();
        kill(Pid::from_raw(i32::try_from(self.process.id()).expect("a pid")), Signal::SIGTERM)
            .expect("our own child");
        self.process.wait().expect("it ends");
        at
    }
}

impl Drop for Keepalived<'_> {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            let _gone = self.worker().map(|worker| kill(worker, Signal::SIGKILL));
            let _gone = self.process.kill();
            let _gone = self.process.wait();
        }
        if std::thread::panicking() {
            println!("keepalived said:\n{}", self.log());
        }
        let _left_behind = fs::remove_dir_all(&self.directory);
    }
}

fn meet(group: &Group) {
    let lan = Lan::new();
    let (us, them) = (lan.node(1), lan.node(2));
    keepalived_outranks_us(group, &us, &them);
    we_outrank_keepalived(group, &us, &them);
}

fn keepalived_outranks_us(group: &Group, us: &Node, them: &Node) {
    let configuration = group.theirs(150, them, us);
    let keepalived = Keepalived::start(them, group, &configuration);
    let member = Member::start(us, vec![group.ours(100, them)]);
    eventually("keepalived is master", 8 * SECOND, || keepalived.is_master().then_some(()));
    let peer = eventually("we follow it", 2 * SECOND, || member.status().active);
    assert_eq!(peer.priority.0, 150);
    always("one owner", 2 * group.interval(), || member.state() == StateName::Backup);

    let crashed = keepalived.crash();
    let took =
        eventually("we take over", 6 * SECOND, || member.notes.entered(StateName::Active, crashed)) - crashed;
    println!("keepalived crashed: active after {took:?}, Down is {:?}", group.down(100));
    // Up to one interval may have passed since its last advertisement. A shared machine may pause for some hundred
    // milliseconds, which nothing here detects: the exact times are shown by the tests of the state machine.
    let margin = if is_real_root() { SECOND / 2 } else { SECOND };
    assert!(
        took < group.down(100) + margin && took + group.interval() + margin > group.down(100),
        "{took:?}"
    );

    // It preempts by its priority.
    let keepalived = Keepalived::start(them, group, &configuration);
    eventually("keepalived preempts", 8 * SECOND, || keepalived.is_master().then_some(()));
    member.await_state(StateName::Backup, SECOND);
    always("one owner", 3 * group.interval(), || member.state() == StateName::Backup);

    let stopped = keepalived.stop();
    let took =
        eventually("we take over", 6 * SECOND, || member.notes.entered(StateName::Active, stopped)) - stopped;
    println!("keepalived stopped: active after {took:?}, Skew is {:?}", group.skew(100));
    assert!(took < group.skew(100) + SECOND / 2, "{took:?}");
    assert_eq!(member.status().counters.discarded.total(), 0, "{:?}", member.status().counters);
}

fn we_outrank_keepalived(group: &Group, us: &Node, them: &Node) {
    let mut ours = group.ours(200, them);
    ours.router.preempt = Preempt::Always;
    let configuration = group.theirs(150, them, us);
    let keepalived = Keepalived::start(them, group, &configuration);
    eventually("keepalived is alone", 8 * SECOND, || keepalived.is_master().then_some(()));
    let member = Member::start(us, vec![ours.clone()]);
    member.await_state(StateName::Active, 8 * SECOND);
    eventually("keepalived yields", 2 * SECOND, || (!keepalived.is_master()).then_some(()));
    always("one owner", 4 * group.interval(), || member.is_active() && !keepalived.is_master());

    let crashed = member.crash();
    eventually("keepalived takes over", 8 * SECOND, || keepalived.is_master().then_some(()));
    println!("we crashed: keepalived is master after {:?}, Down is {:?}", crashed.elapsed(), group.down(150));
    assert!(crashed.elapsed() < group.down(150) + SLOW);

    let member = Member::start(us, vec![ours]);
    member.await_state(StateName::Active, 8 * SECOND);
    eventually("keepalived yields", 2 * SECOND, || (!keepalived.is_master()).then_some(()));
    let resigned = Instant::now();
    member.handle.shutdown(5 * SECOND);
    eventually("keepalived takes over", 4 * SECOND, || keepalived.is_master().then_some(()));
    println!(
        "we resigned: keepalived is master after {:?}, Skew is {:?}",
        resigned.elapsed(),
        group.skew(150)
    );
    assert!(resigned.elapsed() < group.skew(150) + SLOW);
    member.handle.join().expect("no panic");
    let log = keepalived.log();
    for complaint in ["checksum", "Invalid", "invalid", "bogus", "mismatch", "expected", "received an"] {
        assert!(!log.contains(complaint), "keepalived complains ({complaint}):\n{log}");
    }
}
