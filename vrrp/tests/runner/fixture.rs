//! A LAN of network namespaces: one thread per node, a bridge between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid, gettid};
use vrrp::runner::Interface;
use vrrp::{LinkPrefix, MacAddr};

/// Gives an ordinary user a user namespace to be root in. Call it while the process has one thread.
pub(crate) fn enter() {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return;
    }
    unshare(CloneFlags::CLONE_NEWUSER)
        .expect("a user namespace; where they are forbidden, run the tests as root");
    for (file, map) in
        [("setgroups", "deny".into()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
    {
        std::fs::write(format!("/proc/self/{file}"), map).expect("mapping the user into its namespace");
    }
}

/// Returns whether real-time scheduling and locked memory are permitted: to root of the initial user namespace.
pub(crate) fn is_real_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").expect("/proc");
    geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// An interval that the scheduler does not spoil: without real-time priority a loaded machine delays threads.
pub(crate) fn fast() -> Duration {
    Duration::from_millis(if is_real_root() { 100 } else { 250 })
}

/// Runs a program to its end and asserts that it succeeds.
pub(crate) fn sh(program: &str, arguments: &str) -> String {
    let Output { status, stdout, stderr } = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install it with: apt-get install iproute2"));
    assert!(status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("text")
}

/// Polls until `condition` is `Some`. Without real-time priority the time allowed is longer.
pub(crate) fn eventually<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let within = if is_real_root() { within } else { 4 * within };
    let end = Instant::now() + within;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Asserts that `condition` holds all the time.
pub(crate) fn always(what: &str, during: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + during;
    while Instant::now() < end {
        assert!(condition(), "no longer: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with a thread in it and an interface `eth0` on the LAN.
pub(crate) struct Node {
    pub(crate) number: u8,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// A bridge in a namespace of the calling thread.
pub(crate) struct Lan(());

impl Lan {
    /// Moves the calling thread into a namespace of its own.
    pub(crate) fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        sh("ip", "link set lo up");
        sh("ip", "link add br0 type bridge mcast_snooping 0");
        sh("ip", "link set br0 up");
        Self(())
    }

    /// Connects a node that has the addresses 10.9.0.N/24 and a link-local one.
    pub(crate) fn node(&self, number: u8) -> Node {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            queue.into_iter().for_each(|job| job());
        });
        let node = Node { number, jobs: Some(jobs), thread: Some(thread) };
        let tid = node.run(|| {
            for setting in ["accept_dad", "dad_transmits"] {
                for scope in ["all", "default"] {
                    let file = format!("/proc/sys/net/ipv6/conf/{scope}/{setting}");
                    std::fs::write(file, "0").expect("sysctl");
                }
            }
            gettid()
        });
        sh("ip", &format!("link add port{number} type veth peer name eth0 netns {tid}"));
        sh("ip", &format!("link set port{number} master br0 up"));
        node.run(move || {
            sh("ip", "link set lo up");
            sh("ip", &format!("addr add 10.9.0.{number}/24 dev eth0"));
            sh("ip", "link set eth0 up");
        });
        eventually("a link-local address", Duration::from_secs(5), || node.interface("eth0")?.v6);
        node
    }
}

impl Node {
    /// Runs a closure in the namespace and returns its result.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::sync_channel(1);
        let job = Box::new(move || {
            let _gone = answer.send(job());
        });
        self.jobs.as_ref().expect("alive").send(job).expect("the node's thread lives");
        result.recv().expect("the job did not panic")
    }

    /// Starts a thread in the namespace.
    pub(crate) fn spawn<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = self.run(|| std::fs::File::open("/proc/thread-self/ns/net").expect("/proc"));
        std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("entering the node's namespace");
            assert!(namespace.as_raw_fd() >= 0);
            job()
        })
    }

    pub(crate) fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, 0, self.number)
    }

    /// The link-local address of `eth0`.
    pub(crate) fn v6(&self) -> IpAddr {
        self.interface("eth0").and_then(|it| it.v6).expect("the LAN waited for it").into()
    }

    /// An interface as a keeper would report it.
    pub(crate) fn interface(&self, name: &str) -> Option<Interface> {
        let (wanted, ours) = (name.to_owned(), self.v4());
        self.run(move || {
            let all: Vec<_> =
                getifaddrs().expect("interfaces").filter(|each| each.interface_name == wanted).collect();
            let link = *all.iter().find_map(|each| each.address.as_ref()?.as_link_addr())?;
            let v4 = all.iter().filter_map(|each| Some(each.address.as_ref()?.as_sockaddr_in()?.ip()));
            let v6 = all.iter().filter_map(|each| Some(each.address.as_ref()?.as_sockaddr_in6()?.ip()));
            let flags = all.iter().map(|each| each.flags).next()?;
            Some(Interface {
                name: wanted,
                index: u32::try_from(link.ifindex()).expect("an index"),
                mac: MacAddr(link.addr()?),
                up: flags.contains(nix::net::if_::InterfaceFlags::IFF_RUNNING),
                v4: v4.into_iter().find(|address| *address == ours),
                v6: v6.into_iter().find(Ipv6Addr::is_unicast_link_local),
                prefixes: vec![LinkPrefix { address: ours.into(), len: 24 }],
            })
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
