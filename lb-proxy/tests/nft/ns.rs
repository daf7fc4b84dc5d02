//! Network namespaces for one test binary: entered before the first thread exists, then one per test and peer.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid, gettid};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(5);

/// Leaves the machine's network namespace; an ordinary user becomes root of a user namespace. The process must
/// still be single-threaded.
pub(crate) fn enter() -> Result<(), String> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("unshare(CLONE_NEWNET): {error}"));
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(|error| {
        format!("these tests need user namespaces (sysctl kernel.unprivileged_userns_clone=1, or run as root): {error}")
    })?;
    let write = |file: &str, text: String| fs::write(file, text).map_err(|error| format!("{file}: {error}"));
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {user} 1"))?;
    write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// Runs `test` on a thread with a network namespace of its own, loopback up.
pub(crate) fn isolated<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        test()
    };
    match thread::scope(|scope| scope.spawn(body).join()) {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A second namespace, joined to that of the calling thread by a veth pair `NAME` (here) and `eth0` (there).
pub(crate) struct Peer {
    jobs: mpsc::Sender<Job>,
}

impl Peer {
    pub(crate) fn new(name: &str) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (announce, id) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip", &["link", "set", "lo", "up"]);
            announce.send(gettid()).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        let id = id.recv_timeout(PATIENCE).unwrap().to_string();
        run("ip", &["link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &id]);
        run("ip", &["link", "set", name, "up"]);
        let peer = Self { jobs };
        peer.run(|| {
            run("ip", &["link", "set", "eth0", "up"]);
        });
        // The carrier comes up a little later; until then IPv6 addresses are not usable.
        let deadline = Instant::now() + PATIENCE;
        while !run("ip", &["-o", "link", "show", name]).contains("state UP") {
            assert!(Instant::now() < deadline, "{name} gets no carrier");
            thread::yield_now();
        }
        peer
    }

    /// Runs `job` in the peer's namespace.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).unwrap();
        result.recv_timeout(2 * PATIENCE).expect("the job of the peer failed")
    }
}

/// Runs a program in the calling thread's namespace; it must succeed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error} (apt-get install iproute2 nftables util-linux)"));
    let errors = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{program} {args:?}: {status} {errors}");
    String::from_utf8(stdout).unwrap()
}

/// Runs nft with one command in its own language; listings show handles.
pub(crate) fn nft(command: &str) -> String {
    run("nft", &["-a", command])
}

/// Adds an address like the keeper, without duplicate address detection, and waits until it is local: IPv6 on an
/// interface that has just come up takes a moment.
pub(crate) fn add_address(address: &str, interface: &str) {
    let Some((ip, _)) = address.split_once('/') else { panic!("{address} has no prefix length") };
    if !ip.contains(':') {
        run("ip", &["addr", "add", address, "dev", interface]);
        return;
    }
    run("ip", &["-6", "addr", "add", address, "dev", interface, "nodad"]);
    let deadline = Instant::now() + PATIENCE;
    while !run("ip", &["-6", "route", "show", "table", "local"]).contains(&format!("local {ip} ")) {
        assert!(Instant::now() < deadline, "{address} does not become local");
        thread::yield_now();
    }
}

pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    TcpStream::connect_timeout(&to, PATIENCE).unwrap_or_else(|error| panic!("connect {to}: {error}"))
}

/// The local address of the next connection that `listener` accepts, as an IPv4 one where it is mapped.
pub(crate) fn accepted_at(listener: &TcpListener) -> SocketAddr {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::from(5000u16)).unwrap();
    assert_eq!(ready, 1, "no connection arrived at {:?}", listener.local_addr());
    let local = listener.accept().unwrap().0.local_addr().unwrap();
    SocketAddr::new(local.ip().to_canonical(), local.port())
}

/// Returns whether no connection waits at `listener`.
pub(crate) fn is_idle(listener: &TcpListener) -> bool {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 0
}

pub(crate) fn listen(port: u16) -> TcpListener {
    bounded(soon(|| TcpListener::bind(("::", port))).unwrap())
}

/// Lets `accept` fail instead of waiting without end for a connection that another socket got.
fn bounded(listener: TcpListener) -> TcpListener {
    SockRef::from(&listener).set_read_timeout(Some(4 * PATIENCE)).unwrap();
    listener
}

/// Retries while an address is in use: a process that another test starts keeps the descriptor of a closed listener
/// until it runs its program.
fn soon<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Listens like the proxy, so that `tproxy` can assign connections.
pub(crate) fn listen_transparent(port: u16) -> TcpListener {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_ip_transparent_v4(true).unwrap();
    soon(|| socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())).unwrap();
    socket.listen(1024).unwrap();
    bounded(socket.into())
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
