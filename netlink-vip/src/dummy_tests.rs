//! Plans for the dummy link.

use super::*;
use crate::types::Prefix;
use crate::wire::PERMANENT_PROTOCOL;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(kind: Option<&str>, flags: u32) -> LinkUpdate {
    LinkUpdate { index: 9, flags, kind: kind.map(str::to_owned), ..LinkUpdate::default() }
}

fn address(text: &str, protocol: Option<u8>) -> ObservedAddress {
    let (addr, len) = text.split_once('/').unwrap();
    let prefix_len = len.parse().unwrap();
    ObservedAddress { index: 9, ip: ip(addr), prefix_len, scope: 0, flags: 0x80, protocol, valid: None }
}

fn route(text: &str, protocol: u8) -> ObservedRoute {
    let destination = Prefix::new(ip(text), 32);
    ObservedRoute { destination, table: 255, protocol, kind: 2, metric: 0, interfaces: vec![9] }
}

fn seen(link: LinkUpdate, addresses: &[ObservedAddress], routes: &[ObservedRoute]) -> Observed {
    Observed { link, addresses: addresses.to_vec(), routes: routes.to_vec() }
}

const V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 101);

fn plan(wanted: &[IpAddr], seen: Option<&Observed>) -> Result<Vec<Step>, DummyError> {
    super::plan("dummyvip0", wanted, seen, &BTreeSet::new(), true)
}

#[test]
fn a_new_link_is_up_before_it_has_addresses_and_they_before_routes() {
    let steps = plan(&[V4.into(), ip("fd00::100")], None).unwrap();
    let expected = [
        Step::Create,
        Step::SetUp,
        Step::Add(V4.into()),
        Step::Add(ip("fd00::100")),
        Step::AddLocalRoute(V4),
        Step::DeleteKernelRoute(V4),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn an_own_link_is_brought_to_what_is_wanted_and_then_left() {
    let there = [
        address("10.0.0.7/32", Some(PERMANENT_PROTOCOL)),
        address("10.0.0.100/32", None),
        address("fe80::1/64", Some(3)),
    ];
    let wanted = [V4.into(), OTHER.into()];
    let old = route("10.0.0.7", PROTOCOL);
    let steps = plan(&wanted, Some(&seen(link(Some("dummy"), 0x82), &there, &[old])));
    let expected = [
        Step::Delete(ip("10.0.0.7")),
        Step::DeleteLocalRoute(Ipv4Addr::new(10, 0, 0, 7)),
        Step::SetUp,
        Step::AddLocalRoute(V4),
        Step::DeleteKernelRoute(V4),
        Step::Add(OTHER.into()),
        Step::AddLocalRoute(OTHER),
        Step::DeleteKernelRoute(OTHER),
    ];
    assert_eq!(steps.unwrap(), expected);

    let there = ["10.0.0.100/32", "10.0.0.101/32"].map(|text| address(text, Some(PERMANENT_PROTOCOL)));
    let ours = [route("10.0.0.100", PROTOCOL), route("10.0.0.101", PROTOCOL)];
    let fine = seen(link(Some("dummy"), 0x83), &there, &ours);
    assert_eq!(plan(&wanted, Some(&fine)).unwrap(), []);
}

#[test]
fn the_order_of_routes_is_mended_with_ours_first() {
    let there = [address("10.0.0.100/32", Some(PERMANENT_PROTOCOL))];
    let (ours, kernels) = (route("10.0.0.100", PROTOCOL), route("10.0.0.100", libc::RTPROT_KERNEL));
    let with = |routes: &[ObservedRoute]| {
        plan(&[V4.into()], Some(&seen(link(Some("dummy"), 0x83), &there, routes))).unwrap()
    };
    assert_eq!(with(std::slice::from_ref(&kernels)), [Step::AddLocalRoute(V4), Step::DeleteKernelRoute(V4)]);
    assert_eq!(with(&[]), [Step::AddLocalRoute(V4)]);
    assert_eq!(with(&[kernels, ours]), [Step::DeleteKernelRoute(V4)]);
}

#[test]
fn an_ipv6_address_is_never_a_default_source() {
    let wanted = [ip("fd00::100")];
    let mut there = address("fd00::100/128", Some(PERMANENT_PROTOCOL));
    let with = |there: &ObservedAddress| {
        let seen = seen(link(Some("dummy"), 0x83), std::slice::from_ref(there), &[]);
        plan(&wanted, Some(&seen)).unwrap()
    };
    assert_eq!(with(&there), [Step::Add(wanted[0])]);
    there.flags |= address_flag::DEPRECATED;
    assert_eq!(with(&there), []);
}

#[test]
fn known_addresses_are_ours_without_a_mark() {
    let there = [address("10.0.0.100/32", None)];
    let seen = seen(link(Some("dummy"), 0x83), &there, &[]);
    assert!(plan(&[], Some(&seen)).is_err());
    let known = BTreeSet::from([V4.into()]);
    let steps = super::plan("dummyvip0", &[], Some(&seen), &known, true).unwrap();
    assert_eq!(steps, [Step::Delete(V4.into())]);
}

/// A kernel before 5.18.
#[test]
fn without_marks_our_flags_tell() {
    let mut there = address("10.0.0.7/32", None);
    let with = |there: &ObservedAddress, wanted: &[IpAddr]| {
        let seen = seen(link(Some("dummy"), 0x83), std::slice::from_ref(there), &[]);
        super::plan("dummyvip0", wanted, Some(&seen), &BTreeSet::new(), false)
    };
    assert!(with(&there, &[]).is_err(), "foreign");
    there.flags |= address_flag::NOPREFIXROUTE;
    assert_eq!(with(&there, &[]).unwrap(), [Step::Delete(there.ip)]);
    assert_eq!(with(&there, &[there.ip]).unwrap(), [Step::AddLocalRoute(Ipv4Addr::new(10, 0, 0, 7))]);
}

#[test]
fn a_foreign_link_is_refused() {
    let refused = |link: LinkUpdate| plan(&[], Some(&seen(link, &[], &[]))).unwrap_err();
    let error = refused(link(Some("bridge"), 0x83));
    assert!(matches!(error, DummyError::OtherKind { kind: Some(kind), .. } if kind == "bridge"));
    assert!(matches!(refused(link(None, 0x83)), DummyError::OtherKind { kind: None, .. }));

    // A lease is the keeper's.
    for (foreign, protocol) in [
        ("192.0.2.1/24", None),
        ("192.0.2.1/32", None),
        ("192.0.2.1/32", Some(PROTOCOL)),
        ("10.0.0.100/24", None),
        ("fe80::1/128", None),
    ] {
        let seen = seen(link(Some("dummy"), 0x83), &[address(foreign, protocol)], &[]);
        let error = plan(&[V4.into()], Some(&seen)).unwrap_err();
        assert!(matches!(error, DummyError::ForeignAddresses { .. }), "{foreign}");
    }
}

#[test]
fn names_are_checked() {
    for bad in ["", "a/b", "a b", "..", "sixteen-letters-", "a:b"] {
        assert!(matches!(DummyLink::ensure(bad, &[]), Err(DummyError::Name(_))), "{bad}");
    }
    assert!(is_link_name("dummyvip0"));
}
