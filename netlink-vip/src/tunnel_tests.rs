//! Plans for tunnel links.

use super::*;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn made(alias: Option<&str>, flags: u32) -> Observed {
    let ends = TunnelEnds { local: Some(LOCAL), remote: None, protocol: IPV4_INSIDE };
    let link = LinkUpdate {
        index: 9,
        flags,
        kind: Some("ipip".to_owned()),
        alias: alias.map(str::to_owned),
        mtu: Some(1480),
        tunnel: Some(ends),
        ..LinkUpdate::default()
    };
    Observed { link, addresses: Vec::new(), outer_mtu: Some(1500), rp_filter: (0, 0) }
}

fn anchored(mut seen: Observed) -> Observed {
    seen.addresses.push(ObservedAddress {
        index: 9,
        ip: ANCHOR.into(),
        prefix_len: 32,
        scope: 254,
        flags: 0x80,
        protocol: None,
        valid: None,
    });
    seen
}

fn config() -> TunnelConfig {
    TunnelConfig::new(LOCAL)
}

#[test]
fn a_link_lets_packets_in_before_it_is_up() {
    assert_eq!(plan(&config(), None).unwrap(), [Step::Create]);
    let mut new = made(None, 0x80);
    (new.rp_filter, new.outer_mtu) = ((1, 1), Some(9000));
    let steps = plan(&config(), Some(&new)).unwrap();
    let expected =
        [Step::SetAlias, Step::Loosen(1), Step::Add(ANCHOR.into()), Step::SetMtu(8980), Step::SetUp];
    assert_eq!(steps, expected);
    assert_eq!(plan(&config(), Some(&anchored(made(Some(ALIAS), 0x81)))).unwrap(), []);
}

#[test]
fn only_a_strict_filter_is_loosened() {
    for (all, own, loosened) in
        [(0, 0, false), (0, 1, true), (1, 0, true), (1, 1, true), (1, 2, false), (2, 0, false), (2, 1, false)]
    {
        let mut seen = anchored(made(Some(ALIAS), 0x81));
        seen.rp_filter = (all, own);
        let steps = plan(&config(), Some(&seen)).unwrap();
        assert_eq!(steps == [Step::Loosen(own)], loosened, "{all} {own}: {steps:?}");
        assert_eq!(steps.is_empty(), !loosened);
    }
}

#[test]
fn another_end_makes_another_link() {
    let other = TunnelConfig { local: [10, 0, 0, 2].into(), ..config() };
    assert_eq!(plan(&other, Some(&made(Some(ALIAS), 0x81))).unwrap(), [Step::Delete, Step::Create]);
    let other = TunnelConfig { local: "fd00::1".parse().unwrap(), ..config() };
    assert_eq!(plan(&other, Some(&made(Some(ALIAS), 0x81))).unwrap(), [Step::Delete, Step::Create]);
}

#[test]
fn foreign_tunnels_are_refused() {
    let refused = |seen: &Observed| plan(&config(), Some(seen)).unwrap_err();
    assert!(matches!(refused(&made(None, 0x81)), TunnelError::Foreign { .. }), "up, without our alias");
    assert!(matches!(refused(&anchored(made(None, 0x80))), TunnelError::Foreign { .. }), "with an address");
    assert!(matches!(refused(&made(Some("theirs"), 0x80)), TunnelError::Foreign { .. }));
    let mut remote = made(None, 0x80);
    remote.link.tunnel = Some(TunnelEnds { remote: Some(LOCAL), ..TunnelEnds::default() });
    assert!(matches!(refused(&remote), TunnelError::Foreign { .. }), "with a remote end");
    let mut bridge = made(Some(ALIAS), 0x81);
    bridge.link.kind = Some("bridge".to_owned());
    assert!(matches!(refused(&bridge), TunnelError::OtherKind { .. }), "whatever its alias says");
    bridge.link.kind = None;
    assert!(matches!(refused(&bridge), TunnelError::OtherKind { kind: None, .. }));
}

#[test]
fn a_link_has_room_for_ipv6_and_no_more_than_fits_outside() {
    assert_eq!((inner_mtu(LOCAL, 1500), inner_mtu(LOCAL, 9000), inner_mtu(LOCAL, 0)), (1480, 8980, 0));
    let local = "fd00::1".parse().unwrap();
    assert_eq!((inner_mtu(local, 1500), inner_mtu(local, 1280)), (1460, 1280));
    let mut elsewhere = anchored(made(Some(ALIAS), 0x81));
    elsewhere.outer_mtu = None;
    assert_eq!(plan(&config(), Some(&elsewhere)).unwrap(), [], "the local address is nowhere yet");
}
