//! Sessions through a VIP that leaves its node: the node that releases it resets them, as long as its link is up,
//! whether they are idle or busy.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use testbed::{Capture, Failure, FrozenThreads, Process, SessionState, Sessions, Signal, Test, Tool, Travel};

use crate::support::{Cluster, OTHER_HOST, PORT, Plan, TIMEOUT};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("stopped_active_resets_its_sessions", stopped).needs([Tool::Nft]),
        Test::new("replaced_degraded_active_resets_its_sessions", degraded).needs([Tool::Nft]),
        Test::new("preempted_active_resets_its_sessions", preempted).needs([Tool::Nft]),
        Test::new("reload_that_drops_addresses_resets_their_sessions", readdressed).needs([Tool::Nft]),
        Test::new("reload_that_drops_an_instance_resets_its_sessions", removed).needs([Tool::Nft]),
        Test::new("expired_lease_resets_its_sessions", expired).needs([Tool::Nft]),
        // Their backends and this program share one limit of descriptors.
        Test::new("stop_resets_8000_sessions", || many(Cause::Stop)).needs([Tool::Nft]).alone(),
        Test::new("degraded_handover_resets_8000_sessions", || many(Cause::Degrade))
            .needs([Tool::Nft])
            .alone(),
    ]
}

/// Number of idle sessions for each address, and of busy ones.
const EACH: usize = 15;

/// Sessions through all VIPs of a cluster, and a capture at their client.
struct Clients {
    sessions: Vec<Sessions>,
    count: usize,
    capture: Capture,
}

impl Clients {
    fn connect(cluster: &Cluster) -> Self {
        let capture = Capture::on(cluster.client()).expect("the capture begins");
        let open = |vip: IpAddr| {
            let target = SocketAddr::new(vip, PORT);
            let busy = Sessions::open(cluster.client(), target, EACH).expect("busy sessions are opened");
            let idle = Sessions::open_idle(cluster.client(), target, EACH).expect("idle sessions are opened");
            [busy, idle]
        };
        let sessions: Vec<Sessions> = cluster.vips().into_iter().flat_map(open).collect();
        Self { count: sessions.len() * EACH, sessions, capture }
    }

    fn ended(&self) -> usize {
        self.sessions.iter().map(Sessions::ended).sum()
    }

    /// The client's sockets to which `node` has sent a RST from a VIP. One of IPv4 and one of IPv6 may have the same
    /// port.
    fn reset_by(&self, cluster: &Cluster, node: usize) -> BTreeSet<SocketAddr> {
        let (mac, vips) = (cluster.node(node).mac(), cluster.vips());
        let frames = self.capture.select(|frame| {
            let reset = frame.tcp().is_some_and(|tcp| tcp.rst && vips.contains(&tcp.source.ip()));
            frame.travel != Travel::Out && reset && frame.source_mac() == Some(mac)
        });
        frames.iter().filter_map(|frame| Some(frame.tcp()?.destination)).collect()
    }

    /// Checks that every session has been reset by the node that had the VIPs, which logs their number.
    fn check_resets(&self, cluster: &Cluster, by: usize) {
        cluster.wait("all sessions have ended", || self.ended() == self.count);
        for state in self.sessions.iter().flat_map(Sessions::states) {
            let reset = matches!(state, SessionState::Ended(_, Failure::Reset));
            cluster.check(reset, || format!("a session did not end by a reset: {state:?}"));
        }
        // A busy client may have received the successor's reset before.
        cluster.wait("the node that released the VIPs has reset each session", || {
            self.reset_by(cluster, by).len() == self.count
        });
        cluster.check(self.capture.dropped() == 0, || "the capture is incomplete".to_owned());
        cluster
            .wait("the daemon has logged the number of resets", || logged_resets(cluster, by) == self.count);
    }
}

/// The number of sessions that the daemon has logged as reset.
fn logged_resets(cluster: &Cluster, index: usize) -> usize {
    let text = cluster.daemon(index).log().text();
    let count = |line: &str| line.split(" reset=").nth(1)?.split(' ').next()?.parse::<usize>().ok();
    text.lines().filter(|line| line.contains("sessions reset")).filter_map(count).sum()
}

fn start(plan: Plan) -> (Cluster, usize, Clients) {
    let cluster = Cluster::start(plan.dual_stack());
    let owner = cluster.wait_until_settled();
    let clients = Clients::connect(&cluster);
    (cluster, owner, clients)
}

fn stopped() {
    let (cluster, owner, clients) = start(Plan::v3("100ms"));
    cluster.signal(owner, Signal::SIGTERM);
    clients.check_resets(&cluster, owner);
}

/// Freezes the load balancer's threads, so that it cannot reset its sessions.
fn freeze_balancer(cluster: &Cluster, owner: usize) -> FrozenThreads {
    let frozen = cluster.daemon(owner).freeze_threads(|name| name.starts_with("lb-worker"));
    frozen.expect("the load balancer's threads are stopped")
}

fn degraded() {
    let (cluster, owner, clients) = start(Plan::v3("100ms"));
    let _frozen = freeze_balancer(&cluster, owner);
    clients.check_resets(&cluster, owner);
    let next = cluster.wait_for_owner(None);
    cluster.check(next != owner, || "the degraded node has the VIP".to_owned());
}

/// Changes the configuration file of a node and reloads it.
fn reload(cluster: &Cluster, index: usize, change: impl FnOnce(&str) -> String) {
    let file = cluster.config_file(index);
    let text = std::fs::read_to_string(&file).expect("the file of the daemon");
    let changed = change(&text);
    assert_ne!(text, changed);
    std::fs::write(&file, changed).expect("the file is written");
    cluster.signal(index, Signal::SIGHUP);
}

fn preempted() {
    let (cluster, owner, clients) = start(Plan::v3("100ms").instance("priority: 100"));
    let rival = (owner + 1) % cluster.len();
    reload(&cluster, rival, |text| text.replace("priority: 100", "priority: 200\n    preempt: always"));
    clients.check_resets(&cluster, owner);
    let next = cluster.wait_for_owner(None);
    cluster.check(next == rival, || "another node has the VIP".to_owned());
}

/// Replaces the addresses in the rendered plan by another one, for the virtual router `vrid`.
fn another_address(cluster: &Cluster, text: &str, vrid: u8) -> String {
    let line = text.lines().find(|line| line.contains("virtualIPs:")).expect("a list of addresses");
    let address = cluster.lan.v4(OTHER_HOST);
    text.replace(line, &format!("  - virtualIPs: [\"{address}/24\"]\n    virtualRouterID: {vrid}"))
}

fn readdressed() {
    let (cluster, owner, clients) = start(Plan::v3("100ms"));
    reload(&cluster, owner, |text| another_address(&cluster, text, 51));
    clients.check_resets(&cluster, owner);
    cluster
        .wait("the new address is installed", || cluster.node(owner).has_address(cluster.lan.v4(OTHER_HOST)));
}

fn removed() {
    let (cluster, owner, clients) = start(Plan::v3("100ms"));
    reload(&cluster, owner, |text| another_address(&cluster, text, 77));
    clients.check_resets(&cluster, owner);
}

/// At 1 s the lease lapses before a successor is Active.
fn expired() {
    let (cluster, owner, clients) = start(Plan::default());
    let frozen = cluster.daemon(owner).freeze_threads(|name| name == "vrrp");
    let _frozen = frozen.expect("the election is stopped");
    clients.check_resets(&cluster, owner);
    cluster.wait("another node has the VIP", || {
        let owners = cluster.owners();
        owners.len() == 1 && owners != [owner]
    });
}

#[derive(Debug, Clone, Copy)]
enum Cause {
    Stop,
    Degrade,
}

/// Environment variable with an address to which this program opens [`SESSIONS_PER_PROCESS`] idle sessions instead of running tests:
/// one process has too few descriptors for 8,000 clients and their servers.
const SESSION_TARGET: &str = "CPLB_TEST_SESSION_TARGET";
const SESSIONS_PER_PROCESS: usize = 2_000;

/// Opens the sessions if this process was started to do so, prints that they are open, and prints the number of resets
/// once all have ended. Returns whether this is such a process.
pub(crate) fn run_if_session_client() -> bool {
    let Ok(target) = std::env::var(SESSION_TARGET) else { return false };
    let open = |_| {
        let mut stream = TcpStream::connect(&target).expect("a session");
        stream.write_all(b"\n").expect("a line is sent");
        let mut answer = [0; 64];
        assert!(stream.read(&mut answer).expect("an answer") > 0, "the server has ended the session");
        stream
    };
    let streams: Vec<TcpStream> = (0..SESSIONS_PER_PROCESS).map(open).collect();
    println!("all open");
    let was_reset = |mut stream: TcpStream| {
        stream.read(&mut [0; 64]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    };
    println!("were reset: {}", streams.into_iter().map(was_reset).filter(|it| *it).count());
    true
}

fn many(cause: Cause) {
    const PROCESSES: usize = 4;
    /// The bound for 8,000 sessions, as netlink-vip scales it.
    const BOUND: Duration = Duration::from_millis(500);
    let cluster = Cluster::start(Plan::v3("100ms"));
    let owner = cluster.wait_until_settled();
    let processes: Vec<Process> = (0..PROCESSES)
        .map(|number| {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.env(SESSION_TARGET, cluster.address().to_string());
            cluster.client().spawn(&format!("sessions-{number}"), command).expect("a client process starts")
        })
        .collect();
    let wait = |text: &str| {
        for process in &processes {
            let line = process.log().wait_for_line(text, 2 * TIMEOUT);
            cluster.check(line.is_ok(), || format!("{line:?}"));
        }
    };
    wait("all open");
    let capture = Capture::on(cluster.client()).expect("the capture begins");
    let since = Instant::now();
    let _frozen = match cause {
        Cause::Stop => {
            cluster.signal(owner, Signal::SIGTERM);
            None
        }
        Cause::Degrade => Some(freeze_balancer(&cluster, owner)),
    };
    wait(&format!("were reset: {SESSIONS_PER_PROCESS}"));
    let clients = Clients { sessions: Vec::new(), count: PROCESSES * SESSIONS_PER_PROCESS, capture };
    let reset_count = clients.reset_by(&cluster, owner).len();
    cluster.check(reset_count >= clients.count && clients.capture.dropped() == 0, || {
        format!("{reset_count} were reset")
    });
    cluster
        .wait("the daemon has logged the number of resets", || logged_resets(&cluster, owner) == reset_count);
    let resets = clients.capture.select(|frame| frame.tcp().is_some_and(|tcp| tcp.rst));
    let (first, last) = (resets[0].at, resets[resets.len() - 1].at);
    let span = last - first;
    println!(
        "MEASURED {reset_count} sessions were reset in {span:?}, the last {:?} after {cause:?}",
        last - since
    );
    cluster.check(span < BOUND, || format!("{span:?}"));
    let text = cluster.daemon(owner).log().text();
    cluster.check(!text.contains("without a reset") && !text.contains("in time"), || {
        "the log reports a failure".to_owned()
    });
}
