//! The real binary and Debian's keepalived in one virtual router, each as winner and as loser.
//!
//! Several virtual routers with different priorities fail over at the same time, so that a slow version 2 costs its
//! time only once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use testbed::{Backend, Capture, Keepalived, Lan, Node, Signal, Test, Tool, VrrpInstance};

use crate::support::{Cluster, PORT, Plan};

pub(crate) fn tests() -> Vec<Test> {
    let tools = [Tool::Nft, Tool::Keepalived, Tool::Tshark];
    vec![
        Test::new("version_2_by_multicast_and_unicast_interoperates_with_keepalived", version_2).needs(tools),
        Test::new("version_3_of_ipv4_and_ipv6_interoperates_with_keepalived", version_3).needs(tools),
    ]
}

/// cplb has the lower address, so keepalived wins among equals.
fn version_2() {
    let group = Group::build(0, Duration::from_secs(1), [Kind::V2Multicast, Kind::V2Unicast]);
    fail_over_both_ways(group);
}

/// cplb has the higher address.
fn version_3() {
    let group = Group::build(1, Duration::from_millis(100), [Kind::V3, Kind::V3Ipv6]);
    fail_over_both_ways(group);
}

/// The protocol variant of a virtual router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    V2Multicast,
    V2Unicast,
    V3,
    V3Ipv6,
}

/// The program with the higher priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Higher {
    Neither,
    Cplb,
    Keepalived,
}

/// One of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Cplb,
    Keepalived,
}

/// One virtual router.
#[derive(Debug, Clone, Copy)]
struct Router {
    kind: Kind,
    higher: Higher,
    vrid: u8,
    vip: IpAddr,
}

/// cplb on one controller and keepalived on the other.
struct Group {
    cluster: Cluster,
    cplb: usize,
    interval: Duration,
    routers: Vec<Router>,
    keepalived: Option<Keepalived>,
    capture: Capture,
}

impl Group {
    fn build(cplb: usize, interval: Duration, kinds: [Kind; 2]) -> Self {
        let mut cluster = Cluster::build(Lan::builder().controllers(2), Plan::default());
        let mut routers = Vec::new();
        for kind in kinds {
            for higher in [Higher::Neither, Higher::Cplb, Higher::Keepalived] {
                let number = u8::try_from(routers.len()).expect("few");
                let host = 110 + number;
                let vip = if kind == Kind::V3Ipv6 {
                    cluster.lan.v6(host).into()
                } else {
                    cluster.lan.v4(host).into()
                };
                routers.push(Router { kind, higher, vrid: 61 + number, vip });
            }
        }
        // On neither side of a split, so that cplb keeps its priority.
        let backend = Backend::tls(cluster.client(), "api", PORT).expect("the API server starts");
        cluster.backends.push(backend);
        let capture = cluster.lan.capture().expect("the capture starts");
        Self { cluster, cplb, interval, routers, keepalived: None, capture }
    }

    fn node(&self, side: Side) -> &Node {
        self.cluster.node(match side {
            Side::Cplb => self.cplb,
            Side::Keepalived => 1 - self.cplb,
        })
    }

    fn start(&mut self, side: Side) {
        match side {
            Side::Cplb => {
                // The command writes a configuration, which is replaced by one with several instances.
                let command = self.cluster.command(self.cplb);
                let text = self.configuration();
                std::fs::write(self.cluster.config_file(self.cplb), text)
                    .expect("the configuration is written");
                self.cluster.launch(self.cplb, command);
                let cluster = &self.cluster;
                cluster.wait("cplb can serve", || {
                    cluster.try_status(self.cplb).is_some_and(|status| status["serving"]["serving"] == true)
                });
            }
            Side::Keepalived => {
                let instances: Vec<_> = self.routers.iter().map(|router| self.instance(router)).collect();
                let started = Keepalived::start(self.node(side), &instances).expect("keepalived starts");
                self.keepalived = Some(started);
            }
        }
    }

    /// Ends a side without a clean stop.
    fn crash(&mut self, side: Side) -> Instant {
        match side {
            Side::Cplb => self.cluster.signal(self.cplb, Signal::SIGKILL),
            Side::Keepalived => {
                let keepalived = self.keepalived.take().expect("keepalived runs");
                let at = keepalived.crash().expect("keepalived is killed");
                // It leaves its addresses behind. A crash of the machine, which is simulated here, does not.
                let node = self.node(side);
                for router in self.routers.iter().filter(|router| node.has_address(router.vip)) {
                    node.delete_address(router.vip).expect("the address is deleted");
                }
                at
            }
        }
    }

    /// Ends a side with a clean stop.
    fn stop(&mut self, side: Side) -> Instant {
        match side {
            Side::Cplb => {
                let at = self.cluster.signal(self.cplb, Signal::SIGTERM);
                let status = self.cluster.wait_until_ended(self.cplb);
                self.cluster.check(status.success(), || format!("cplb ended with {status}"));
                at
            }
            Side::Keepalived => {
                self.keepalived.take().expect("keepalived runs").stop().expect("keepalived stops")
            }
        }
    }

    /// Waits until each router is owned by the side that `owner` returns and by no other, and checks that this holds
    /// for some advertisements. Returns the time from `since` until the last of them was advertised by its owner.
    fn converge(&self, what: &str, since: Instant, owner: impl Fn(&Router) -> Side) -> Duration {
        let has = |side: Side, router: &Router| self.node(side).has_address(router.vip);
        self.cluster.wait(&format!("{what}: one owner each"), || {
            self.routers.iter().all(|router| {
                let wanted = owner(router);
                has(wanted, router) && !has(other(wanted), router)
            })
        });
        let first = |router: &Router, from: Instant| {
            let mac = self.node(owner(router)).mac();
            let adverts = self.capture.adverts(router.vrid);
            let own = adverts.into_iter().filter(|(at, it)| *at >= from && it.mac == mac && it.priority > 0);
            own.map(|(at, _)| at).collect::<Vec<_>>()
        };
        let converged = Instant::now();
        self.cluster.wait(&format!("{what}: owners advertise"), || {
            self.routers.iter().all(|router| first(router, converged).len() >= 2)
        });
        for router in &self.routers {
            let mac = self.node(owner(router)).mac();
            let adverts = self.capture.adverts(router.vrid);
            let advertisers: BTreeSet<_> =
                adverts.into_iter().filter(|(at, _)| *at >= converged).map(|(_, it)| it.mac).collect();
            self.cluster.check(advertisers == BTreeSet::from([mac]), || {
                format!(
                    "{what}: {router:?} is advertised by {advertisers:?} after convergence, not only by {mac}"
                )
            });
        }
        let taken = self.routers.iter().filter_map(|router| first(router, since).first().copied()).max();
        let took = taken.unwrap_or(since).saturating_duration_since(since);
        eprintln!("{what}: {took:?}");
        took
    }

    fn instance(&self, router: &Router) -> VrrpInstance {
        let (len4, len6) = self.cluster.lan.prefix_lengths();
        let vip = [(router.vip, if router.vip.is_ipv4() { len4 } else { len6 })];
        let instance = match router.kind {
            Kind::V2Multicast => VrrpInstance::v2(router.vrid, vip).password(PASSWORD),
            Kind::V2Unicast => VrrpInstance::v2(router.vrid, vip)
                .password(PASSWORD)
                .unicast(self.node(Side::Keepalived).v4().into(), [self.node(Side::Cplb).v4().into()]),
            Kind::V3 | Kind::V3Ipv6 => VrrpInstance::v3(router.vrid, vip),
        };
        instance.interval(self.interval).priority(priority(router, Side::Keepalived))
    }

    fn configuration(&self) -> String {
        let (len4, len6) = self.cluster.lan.prefix_lengths();
        let mut text =
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n".to_owned();
        for router in &self.routers {
            let length = if router.vip.is_ipv4() { len4 } else { len6 };
            let rest = match router.kind {
                Kind::V2Multicast => format!("version: 2, authPass: {PASSWORD}"),
                Kind::V2Unicast => format!(
                    "version: 2, authPass: {PASSWORD}, unicastSourceIP: {}, unicastPeers: [{}]",
                    self.node(Side::Cplb).v4(),
                    self.node(Side::Keepalived).v4()
                ),
                Kind::V3 | Kind::V3Ipv6 => "version: 3".to_owned(),
            };
            text.push_str(&format!(
                "  - {{virtualIPs: [\"{}/{length}\"], virtualRouterID: {}, advertInterval: {}ms, priority: {}, {rest}}}\n",
                router.vip,
                router.vrid,
                self.interval.as_millis(),
                priority(router, Side::Cplb),
            ));
        }
        text.push_str(&format!("  backends:\n    static: [\"{}\"]\n", self.cluster.client().v4()));
        text
    }

    /// Checks with tshark that every advertisement from cplb is valid.
    fn check_by_tshark(&self) {
        let mac = self.node(Side::Cplb).mac();
        let sent = self.capture.count(|frame| frame.vrrp().is_some_and(|advert| advert.mac == mac));
        let file = self.cluster.lan.directory().join("group.pcap");
        self.capture.to_pcap(&file).expect("the capture is written");
        let mut tshark = Command::new(Tool::Tshark.path().expect("tshark is installed"));
        // The user may have preferences, or a home that is not readable in a user namespace.
        tshark.env("HOME", "/nonexistent").args(["-o", "vrrp.v3_checksum_as_in_v2:FALSE"]);
        // The kernel of a killed daemon's node quotes received advertisements in ICMP errors.
        tshark.arg("-Y").arg(format!("vrrp && !icmp && eth.src == {mac}"));
        tshark.args([
            "-T",
            "fields",
            "-e",
            "vrrp.version",
            "-e",
            "vrrp.checksum.status",
            "-e",
            "_ws.malformed",
        ]);
        tshark.arg("-r").arg(&file);
        let output = self.cluster.lan.switch().output(tshark).expect("tshark runs");
        let complaint = String::from_utf8_lossy(&output.stderr);
        self.cluster.check(output.status.success(), || format!("tshark: {complaint}"));
        let text = String::from_utf8_lossy(&output.stdout);
        let seen = text.lines().count();
        // Some more may have been sent between the count and the file.
        self.cluster.check(seen >= sent, || format!("{sent} sent, {seen} seen"));
        let good = |line: &str| matches!(line.split_whitespace().collect::<Vec<_>>()[..], ["2" | "3", "1"]);
        let bad: Vec<_> = text.lines().filter(|line| !good(line)).collect();
        self.cluster
            .check(bad.is_empty(), || format!("tshark finds faults in {} of {sent}: {bad:?}", bad.len()));
        eprintln!("tshark finds no fault in {sent} advertisements");
    }
}

const PASSWORD: &str = "Example";

fn priority(router: &Router, side: Side) -> u8 {
    match (router.higher, side) {
        (Higher::Neither, _) => 200,
        (Higher::Cplb, Side::Cplb) | (Higher::Keepalived, Side::Keepalived) => 210,
        _ => 150,
    }
}

fn other(side: Side) -> Side {
    match side {
        Side::Cplb => Side::Keepalived,
        Side::Keepalived => Side::Cplb,
    }
}

/// keepalived takes the VIP back if it has the higher priority; cplb does not preempt a serving Active.
fn owner_with_both_running(router: &Router) -> Side {
    if router.higher == Higher::Keepalived { Side::Keepalived } else { Side::Cplb }
}

fn fail_over_both_ways(mut group: Group) {
    // Active_Down_Interval at the lowest priority, with tolerance for starts, loaded machines and keepalived's own
    // delays.
    let skew = if group.interval < Duration::from_secs(1) { group.interval } else { Duration::from_secs(1) };
    let crash = 4 * group.interval + Duration::from_millis(600);
    let handover = skew + Duration::from_millis(600);

    group.start(Side::Cplb);
    group.converge("cplb alone", Instant::now(), |_| Side::Cplb);
    group.start(Side::Keepalived);
    group.converge("keepalived joins", Instant::now(), owner_with_both_running);

    let at = group.crash(Side::Cplb);
    let took = group.converge("cplb crashes", at, |_| Side::Keepalived);
    group.cluster.check(took <= crash, || format!("keepalived took over after {took:?}"));
    group.start(Side::Cplb);
    group.converge("cplb restarts", Instant::now(), |_| Side::Keepalived);

    let at = group.stop(Side::Keepalived);
    let took = group.converge("keepalived stops", at, |_| Side::Cplb);
    group.cluster.check(took <= handover, || format!("cplb took over after {took:?}"));
    group.start(Side::Keepalived);
    group.converge("keepalived restarts", Instant::now(), owner_with_both_running);

    let at = group.stop(Side::Cplb);
    let took = group.converge("cplb stops", at, |_| Side::Keepalived);
    group.cluster.check(took <= handover, || format!("keepalived took over after {took:?}"));
    group.start(Side::Cplb);
    group.converge("cplb restarts", Instant::now(), |_| Side::Keepalived);

    let at = group.crash(Side::Keepalived);
    let took = group.converge("keepalived crashes", at, |_| Side::Cplb);
    group.cluster.check(took <= crash, || format!("cplb took over after {took:?}"));
    group.start(Side::Keepalived);
    group.converge("keepalived restarts", Instant::now(), owner_with_both_running);
    contend(&group);
    group.check_by_tshark();
}

/// Both are Active after a split; the higher priority wins, and among equals the higher address.
fn contend(group: &Group) {
    let (cplb, keepalived) = (group.node(Side::Cplb), group.node(Side::Keepalived));
    group.cluster.lan.partition(&[&[cplb], &[keepalived]]).expect("the LAN is split");
    group.cluster.wait("both nodes have every VIP", || {
        let both = [cplb, keepalived];
        group.routers.iter().all(|router| both.iter().all(|node| node.has_address(router.vip)))
    });
    group.cluster.lan.heal_all().expect("the LAN is healed");
    let among_equals = if group.cplb == 0 { Side::Keepalived } else { Side::Cplb };
    group.converge("a split heals", Instant::now(), |router| match router.higher {
        Higher::Neither => among_equals,
        Higher::Cplb => Side::Cplb,
        Higher::Keepalived => Side::Keepalived,
    });
}
