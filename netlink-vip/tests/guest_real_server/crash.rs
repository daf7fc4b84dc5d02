//! State that outlives a process, and state that does not.

use std::time::{Duration, Instant};

use netlink_vip::{
    GroupId, InterfaceSelector, Keeper, KeeperOptions, LeaseTime, Release, TunnelConfig, VipAddress,
    VipGroupConfig,
};

use crate::fixture::{
    Server, arp_sysctls, assert_same, config, ip, lan, route_to, state, tables, until, vips,
};

pub(crate) fn takeover() {
    let lan = lan(1);
    let node = lan.controller(0);
    node.set_sysctl("net.ipv4.conf.eth0.arp_announce", "1").expect("a sysctl");
    let before = tables(node);
    let [v4, v6] = vips(&lan)[..] else { unreachable!() };

    drop(Server::with(node, config(&lan, node)));
    assert_eq!(arp_sysctls(node), ["1", "2"], "the VIPs are still there, and no neighbour learns of them");
    assert!(route_to(node, v4).contains("metric 203"));

    // The next process has the same desired state: nothing changes.
    let mut server = Server::open(node);
    let report = server.change(config(&lan, node)).expect("a real server");
    assert!(report.repairs.is_empty(), "{:?}", report.repairs);
    drop(server);

    // The next one has another desired state. The rest is removed.
    let mut server = Server::open(node);
    let mut other = config(&lan, node);
    other.dummy = "dummyvip1".into();
    other.vips = vec![v6, lan.v4(101).into()];
    other.tunnels = vec![TunnelConfig { name: "cplbtun9".into(), local: node.v4().into() }];
    let report = server.change(other).expect("a real server");
    println!("{:?}", report.repairs);
    let shown = ip(node, "link show");
    for gone in ["dummyvip0", "cplbtun4", "cplbtun6"] {
        assert!(!shown.contains(gone), "{gone}: {shown}");
    }
    assert!(shown.contains("dummyvip1") && shown.contains("cplbtun9"));
    assert!(!ip(node, "route show table local").contains(&v4.to_string()));
    assert_eq!(arp_sysctls(node), ["1", "2"]);
    drop(server);

    // The last one has an empty desired state, and removes all of it by the recorded state alone.
    let mut server = Server::open(node);
    let recovery = server.remove().expect("everything can be taken back");
    assert_eq!((recovery.restored.len(), recovery.failed.len()), (2, 0));
    assert_eq!(arp_sysctls(node), ["0", "1"], "as the administrator had them");
    assert_same(node, &before);
    let left: Vec<_> = std::fs::read_dir(state(node)).expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
}

pub(crate) fn keeper() {
    let lan = lan(1);
    let node = lan.controller(0);
    let [v4, v6] = vips(&lan)[..] else { unreachable!() };
    let mut server = Server::with(node, config(&lan, node));
    let keeper_state = node.directory().join("keeper");
    let group = || VipGroupConfig {
        id: GroupId(1),
        interface: InterfaceSelector::Name("eth0".into()),
        addresses: [(v4, 24), (v6, 64)].map(|(ip, len)| VipAddress::new(ip, len).expect("a VIP")).into(),
        address_label: None,
        lease: LeaseTime::MIN,
        lasting: [].into(),
    };
    let leased = || ip(node, "addr show dev eth0").contains(&format!("{v4}/32"));
    // The second one finds what the first one held, as after a crash.
    for end in ["a crash", "a release"] {
        let options = KeeperOptions::new(&keeper_state);
        let keeper = node.run(|| Keeper::spawn(options, vec![group()], Box::new(|_| {}))).expect("a keeper");
        assert!(server.repairs().is_empty(), "after the start before {end}");
        until("the lease", || {
            keeper.claim(GroupId(1), Instant::now() + Duration::from_millis(1_800));
            leased()
        });
        assert!(route_to(node, v4).contains("dev eth0"));
        assert!(server.repairs().is_empty(), "during the lease before {end}");
        if end == "a release" {
            keeper.release(GroupId(1), Release::Planned);
            until("the release", || !leased());
            assert!(server.repairs().is_empty(), "after {end}");
        }
        keeper.shutdown();
        keeper.join().expect("an orderly end");
        if end == "a crash" {
            // The leftovers of a killed keeper: its list, and the addresses until they expire.
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("an id");
            let list = format!(
                r#"{{"version":1,"boot_id":"{}","content":{{"vips":[{{"ip":"{v4}","prefix_len":24}},{{"ip":"{v6}","prefix_len":64}}],"labels":[]}}}}"#,
                boot.trim()
            );
            std::fs::create_dir_all(&keeper_state).expect("a directory");
            std::fs::write(keeper_state.join("vips.json"), list).expect("a list");
        }
    }
    assert!(route_to(node, v4).contains("dev dummyvip0"));
    server.remove().expect("everything can be taken back");
}

pub(crate) fn stricter() {
    let lan = lan(1);
    let node = lan.controller(0);
    for (ignore, announce) in [("2", "2"), ("8", "2"), ("1", "2")] {
        node.set_sysctl("net.ipv4.conf.eth0.arp_ignore", ignore).expect("a sysctl");
        node.set_sysctl("net.ipv4.conf.eth0.arp_announce", announce).expect("a sysctl");
        let before = tables(node);
        let mut server = Server::with(node, config(&lan, node));
        assert_eq!(arp_sysctls(node), [ignore, announce]);
        server.remove().expect("everything can be taken back");
        assert_same(node, &before);
    }
    // The administrator's later changes are kept.
    node.set_sysctl("net.ipv4.conf.eth0.arp_ignore", "0").expect("a sysctl");
    let mut server = Server::with(node, config(&lan, node));
    node.set_sysctl("net.ipv4.conf.eth0.arp_ignore", "8").expect("a sysctl");
    assert!(server.repairs().is_empty());
    let recovery = server.remove().expect("everything can be taken back");
    assert_eq!(recovery.changed_since.len(), 1);
    assert_eq!(arp_sysctls(node)[0], "8");

    // For all interfaces is for this one too.
    node.set_sysctl("net.ipv4.conf.eth0.arp_ignore", "0").expect("a sysctl");
    node.set_sysctl("net.ipv4.conf.eth0.arp_announce", "0").expect("a sysctl");
    node.set_sysctl("net.ipv4.conf.all.arp_ignore", "1").expect("a sysctl");
    let mut server = Server::with(node, config(&lan, node));
    assert_eq!(arp_sysctls(node), ["0", "2"]);
    server.remove().expect("everything can be taken back");
}
