//! The links themselves.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use netlink_vip::{DummyError, DummyLink, RealServerConfig, RealServerError, TunnelError};
use testbed::guest::{load_module, unload_module};
use testbed::{Node, Thread};

use crate::fixture::{Server, arp_sysctls, assert_same, config, ip, lan, route_to, tables, until, vips};

/// Counts the moments at which an address is not local.
struct LocalWatch {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU32>,
    thread: Thread<u32>,
}

impl LocalWatch {
    fn on(node: &Node, vip: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicU32::new(0));
        let (stopped, looked) = (Arc::clone(&stop), Arc::clone(&looks));
        let watch = move || {
            let mut missing = 0;
            while !stopped.load(Ordering::Relaxed) {
                missing += u32::from(UdpSocket::bind((vip, 0)).is_err());
                looked.fetch_add(1, Ordering::Relaxed);
            }
            missing
        };
        let thread = node.thread("watch", watch).expect("a thread");
        until("the watch looks", || looks.load(Ordering::Relaxed) > 0);
        Self { stop, looks, thread }
    }

    fn assert_always_local(self) {
        self.stop.store(true, Ordering::Relaxed);
        let missing = self.thread.join().expect("a count");
        let looks = self.looks.load(Ordering::Relaxed);
        println!("{looks} looks");
        assert_eq!(missing, 0, "of {looks}");
    }
}

pub(crate) fn leases() {
    let lan = lan(1);
    let node = lan.controller(0);
    let vip: IpAddr = lan.v4(100).into();
    let mut server = Server::with(node, config(&lan, node));
    let catching = format!("local {vip} dev dummyvip0 proto 203 scope host src {vip} metric 203");
    assert_eq!(route_to(node, vip).trim_end(), catching);

    let watch = LocalWatch::on(node, vip);
    for prefix in ["scope host", ""] {
        ip(node, &format!("addr add {vip}/32 dev eth0 {prefix} valid_lft 2 preferred_lft 2"));
        assert!(route_to(node, vip).contains("dev eth0"), "{}", route_to(node, vip));
        assert!(server.repairs().is_empty(), "both are as they should be");
        until("the lease ends", || !ip(node, "addr show dev eth0").contains(&format!("{vip}/32")));
        assert_eq!(route_to(node, vip).trim_end(), catching, "without any process's doing");
        assert!(server.repairs().is_empty());
    }
    // Also where another program has given the dummy its route back in the meantime.
    ip(node, &format!("addr add {vip}/32 dev eth0"));
    ip(
        node,
        &format!("route append local {vip}/32 dev dummyvip0 table local proto kernel scope host src {vip}"),
    );
    ip(node, &format!("route del local {vip}/32 dev dummyvip0 table local proto 203 metric 203"));
    assert_eq!(server.repairs(), [format!("put the local route of {vip} on dummyvip0 right")]);
    assert!(route_to(node, vip).contains("dev eth0"));
    ip(node, &format!("addr del {vip}/32 dev eth0"));
    watch.assert_always_local();
    server.remove().expect("everything can be taken back");
}

pub(crate) fn disturbances() {
    let lan = lan(1);
    let node = lan.controller(0);
    let [v4, v6] = vips(&lan)[..] else { unreachable!() };
    let mut server = Server::with(node, config(&lan, node));
    assert!(server.repairs().is_empty());

    ip(node, "link set dummyvip0 down");
    ip(node, "link set dummyvip0 up");
    // The kernel gives its own route back, drops ours, and forgets IPv6 addresses.
    let mended = server.repairs();
    assert!(mended.contains(&format!("put the local route of {v4} on dummyvip0 right")), "{mended:?}");
    assert!(mended.contains(&format!("put {v6} on dummyvip0")), "{mended:?}");
    assert!(route_to(node, v4).contains("metric 203"));

    ip(node, "link set dummyvip0 down");
    assert!(server.repairs().contains(&"set link dummyvip0 up".to_owned()));
    ip(node, "addr flush dev dummyvip0");
    assert_eq!(server.repairs(), [format!("put {v4} on dummyvip0"), format!("put {v6} on dummyvip0")]);
    ip(node, &format!("addr del {v4}/32 dev dummyvip0"));
    ip(node, &format!("addr add {v4}/32 dev dummyvip0"));
    let mended = server.repairs();
    assert_eq!(mended, [format!("put the local route of {v4} on dummyvip0 right")]);
    assert!(route_to(node, v4).contains("metric 203"));

    ip(node, "link del dummyvip0");
    assert_eq!(server.repairs()[..2], ["created link dummyvip0", "set link dummyvip0 up"]);
    node.set_sysctl("net.ipv4.conf.eth0.arp_ignore", "0").expect("a sysctl");
    assert_eq!(server.repairs(), ["set net.ipv4.conf.eth0.arp_ignore from 0 to 1"]);

    ip(node, "link set cplbtun6 down");
    ip(node, "link del cplbtun4");
    let mended = server.repairs();
    assert!(mended.contains(&"created link cplbtun4".to_owned()), "{mended:?}");
    assert!(mended.contains(&"set link cplbtun6 up".to_owned()), "{mended:?}");
    node.set_sysctl("net.ipv4.conf.all.rp_filter", "1").expect("a sysctl");
    node.set_sysctl("net.ipv4.conf.cplbtun4.rp_filter", "0").expect("a sysctl");
    assert!(server.repairs().contains(&"set net.ipv4.conf.cplbtun4.rp_filter from 0 to 2".to_owned()));

    let mtu = |name: &str| ip(node, &format!("link show {name}")).contains("mtu 1380");
    ip(node, "link set eth0 mtu 1400");
    let mended = server.repairs();
    assert!(mtu("cplbtun4") && mended.contains(&"set the MTU of cplbtun6 to 1360".to_owned()), "{mended:?}");
    server.remove().expect("everything can be taken back");
    assert!(!ip(node, "link show").contains("cplbtun") && !ip(node, "link show").contains("dummyvip0"));
}

/// The reason for which a configuration is refused.
fn refusal(node: &Node, config: RealServerConfig) -> RealServerError {
    let mut server = Server::open(node);
    let error = server.change(config).expect_err("a refusal");
    println!("{error}");
    server.remove().expect("everything of ours can be taken back");
    error
}

pub(crate) fn foreign_dummies() {
    let lan = lan(1);
    let node = lan.controller(0);
    for (made, address) in [
        ("type bridge", None),
        ("type dummy", Some("192.0.2.1/32")),
        ("type dummy", Some("10.9.0.100/24")),
        ("type dummy", Some("10.9.0.100/32 192.0.2.1/32")),
        ("type ipip local 192.0.2.1 remote 192.0.2.2", None),
    ] {
        ip(node, &format!("link add dummyvip0 {made}"));
        ip(node, "link set dummyvip0 up addrgenmode none");
        for address in address.iter().flat_map(|text| text.split_whitespace()) {
            ip(node, &format!("addr add {address} dev dummyvip0"));
        }
        let before = tables(node);
        let error = refusal(node, RealServerConfig { tunnels: Vec::new(), ..config(&lan, node) });
        let expected = match address {
            None => matches!(error, RealServerError::Dummy(DummyError::OtherKind { .. })),
            Some(_) => matches!(error, RealServerError::Dummy(DummyError::ForeignAddresses { .. })),
        };
        assert!(expected, "{error}");
        assert_same(node, &before);
        ip(node, "link del dummyvip0");
    }
}

pub(crate) fn foreign_tunnels() {
    let lan = lan(1);
    let node = lan.controller(0);
    let own = node.v4();
    let only_v4 = || {
        let mut config = config(&lan, node);
        config.tunnels.truncate(1);
        config
    };
    for (made, kind) in [("type bridge", "other"), (&format!("type ipip local {own}"), "foreign")] {
        ip(node, &format!("link add cplbtun4 {made}"));
        ip(node, "link set cplbtun4 up addrgenmode none");
        let before = tables(node);
        let error = refusal(node, only_v4());
        let found = match error {
            RealServerError::Tunnel(TunnelError::OtherKind { .. }) => "other",
            RealServerError::Tunnel(TunnelError::Foreign { .. }) => "foreign",
            _ => "another error",
        };
        assert_eq!(found, kind, "{error}");
        assert_same(node, &before);
        ip(node, "link del cplbtun4");
    }
    ip(node, &format!("link add theirs type ipip local {own}"));
    let before = tables(node);
    let error = refusal(node, only_v4());
    assert!(matches!(error, RealServerError::Tunnel(TunnelError::Taken { .. })), "{error}");
    assert_same(node, &before);
    ip(node, "link del theirs");

    // The leftover of a crash between creating a link and setting our alias counts as ours.
    ip(node, &format!("link add cplbtun4 type ipip mode ipip local {own}"));
    let mut server = Server::with(node, only_v4());
    assert!(ip(node, "link show cplbtun4").contains("alias cplb"));
    // Another address of the node: another link.
    let mut other = only_v4();
    other.tunnels[0].local = lan.v4(77).into();
    server.change(other).expect("a real server");
    assert!(ip(node, "-d link show cplbtun4").contains(&format!("local {}", lan.v4(77))));
    server.remove().expect("everything can be taken back");
    assert!(!ip(node, "link show").contains("cplbtun4"));
}

pub(crate) fn mixed_dummies() {
    let lan = lan(1);
    let node = lan.controller(0);
    let [v4, v6] = vips(&lan)[..] else { unreachable!() };
    // As other software leaves it: with the VIPs and no marks.
    ip(node, "link add dummyvip0 type dummy");
    ip(node, "link set dummyvip0 up");
    ip(node, &format!("addr add {v4}/32 dev dummyvip0"));
    ip(node, &format!("addr add {v6}/128 dev dummyvip0 nodad"));
    let mut server = Server::with(node, config(&lan, node));
    assert!(server.repairs().is_empty());
    assert!(ip(node, "-6 addr show dev dummyvip0").contains("deprecated"), "never a source");
    assert!(route_to(node, v4).contains("metric 203"));
    let mut fewer = config(&lan, node);
    fewer.vips = vec![v6];
    server.change(fewer).expect("what was taken over is ours");
    let shown = ip(node, "route show table local");
    assert!(!shown.contains(&v4.to_string()), "{shown}");
    assert_eq!(arp_sysctls(node), ["0", "0"], "without IPv4 there is no ARP to silence");

    ip(node, "addr add 192.0.2.1/32 dev dummyvip0");
    let error = server.remove().expect_err("a foreign address");
    let foreign: IpAddr = [192, 0, 2, 1].into();
    assert!(
        matches!(&error, RealServerError::Dummy(DummyError::ForeignAddresses { addresses, .. }) if addresses == &[foreign]),
        "{error}"
    );
    let left = ip(node, "addr show dev dummyvip0");
    assert!(left.contains("192.0.2.1/32") && !left.contains(&v6.to_string()), "{left}");
    server.remove().expect("nothing of ours is left");
    assert!(ip(node, "addr show dev dummyvip0").contains("192.0.2.1/32"));
}

pub(crate) fn modules() {
    let lan = lan(1);
    let node = lan.controller(0);
    unload_module("ipip").expect("nothing uses it");
    let error = refusal(node, config(&lan, node));
    assert!(
        matches!(error, RealServerError::Tunnel(TunnelError::NoModule { module: "ipip", .. })),
        "{error}"
    );
    load_module("ipip").expect("it is there");
    unload_module("dummy").expect("nothing uses it");
    let error = refusal(node, config(&lan, node));
    assert!(matches!(error, RealServerError::Dummy(DummyError::Unsupported)), "{error}");
    load_module("dummy").expect("it is there");

    node.set_sysctl("net.ipv6.conf.default.disable_ipv6", "1").expect("a sysctl");
    let error = node.run(|| DummyLink::ensure("dummyvip0", &[lan.v6(100).into()]).err());
    assert!(matches!(error, Some(DummyError::Ipv6Disabled { .. })), "{error:?}");
    assert!(!ip(node, "link show").contains("dummyvip0"), "no half link is left");
}

pub(crate) fn late_interfaces() {
    let lan = lan(1);
    let node = lan.controller(0);
    let mut wanted = config(&lan, node);
    wanted.interfaces.push("eth7".into());
    let mut server = Server::open(node);
    assert_eq!(server.change(wanted.clone()).expect("a real server").waiting, ["eth7"]);
    ip(node, "link add eth7 type dummy");
    let report = server.reconcile();
    assert!(report.waiting.is_empty());
    let repairs: Vec<_> = report.repairs.iter().map(ToString::to_string).collect();
    let expected = ["arp_ignore from 0 to 1", "arp_announce from 0 to 2"];
    assert_eq!(repairs, expected.map(|what| format!("set net.ipv4.conf.eth7.{what}")));
    let filter = || node.sysctl("net.ipv4.conf.eth7.rp_filter").expect("a sysctl");
    node.set_sysctl("net.ipv4.conf.eth7.rp_filter", "1").expect("a sysctl");
    wanted.loose.push("eth7".into());
    server.change(wanted.clone()).expect("a real server");
    assert_eq!(filter(), "2");
    wanted.loose.clear();
    server.change(wanted.clone()).expect("a real server");
    assert_eq!(filter(), "1");
    wanted.interfaces.truncate(1);
    server.change(wanted).expect("a real server");
    assert_eq!(node.sysctl("net.ipv4.conf.eth7.arp_ignore").expect("a sysctl"), "0");
    assert_eq!(arp_sysctls(node), ["1", "2"]);
    ip(node, "link del eth7");
    server.remove().expect("everything can be taken back");
    assert_eq!(arp_sysctls(node), ["0", "0"]);
}
