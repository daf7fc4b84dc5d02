//! Which interface a selector means. Pure.

use std::collections::BTreeMap;

use crate::types::{InterfaceSelector, Prefix, VipAddress, full_prefix};
use crate::wire::decode::{LinkUpdate, ObservedAddress, ObservedRoute};

/// `IFF_*` flags of `if.h`.
pub(crate) mod link_flag {
    pub(crate) const UP: u32 = 1;
    pub(crate) const LOOPBACK: u32 = 1 << 3;
    pub(crate) const POINT_TO_POINT: u32 = 1 << 4;
    pub(crate) const RUNNING: u32 = 1 << 6;
    pub(crate) const NO_ARP: u32 = 1 << 7;
    pub(crate) const LOWER_UP: u32 = 1 << 16;
}

/// A link as it is now, put together from updates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) alternative_names: Vec<String>,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) flags: u32,
    pub(crate) master: Option<u32>,
    pub(crate) parent: Option<u32>,
    pub(crate) kind: Option<String>,
}

impl Link {
    /// Administratively up, with a carrier.
    pub(crate) fn is_up(&self) -> bool {
        let up = link_flag::UP | link_flag::RUNNING | link_flag::LOWER_UP;
        self.flags & up == up
    }

    /// The name of the VRF that it is a member of.
    pub(crate) fn vrf<'a>(&self, links: &'a BTreeMap<u32, Self>) -> Option<&'a str> {
        let master = links.get(&self.master?)?;
        (master.kind.as_deref() == Some("vrf")).then_some(master.name.as_str())
    }

    fn can_do_arp(&self) -> bool {
        let unfit = link_flag::LOOPBACK | link_flag::POINT_TO_POINT | link_flag::NO_ARP;
        self.flags & unfit == 0 && self.mac.is_some()
    }
}

/// Takes an update over. A message without a name is one of the partial ones (wireless events): it says nothing but
/// the flags.
pub(crate) fn merge(links: &mut BTreeMap<u32, Link>, update: LinkUpdate) {
    let link = links.entry(update.index).or_default();
    link.flags = update.flags;
    if let Some(name) = update.name {
        link.name = name;
        link.alternative_names = update.alternative_names;
        link.mac = update.mac;
        link.master = update.master;
        link.parent = update.parent;
        link.kind = update.kind;
    }
}

/// The network as it is now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) links: &'a BTreeMap<u32, Link>,
    /// The default routes.
    pub(crate) defaults: &'a [ObservedRoute],
    /// The addresses of all interfaces; they may be missing where there is a default route.
    pub(crate) addresses: &'a [ObservedAddress],
}

/// The interface that `selector` means for a group of addresses. `current` is the one it meant before: it stays chosen
/// by a default route that has vanished without a replacement (a DHCP renewal, a restart of the network manager).
/// Without any default route it is the one interface whose subnet covers an address of the group.
pub(crate) fn select(
    selector: &InterfaceSelector,
    vips: &[VipAddress],
    current: Option<u32>,
    view: View<'_>,
) -> Option<u32> {
    let View { links, defaults, addresses } = view;
    let prefer_ipv4 = vips.iter().any(|vip| vip.ip().is_ipv4());
    match selector {
        InterfaceSelector::Name(name) => by_name(name, links),
        InterfaceSelector::Mac(mac) => {
            let matching = links.iter().filter(|(_, link)| link.mac == Some(*mac) && link.can_do_arp());
            let best =
                matching.min_by_key(|(index, link)| (link.master.is_some(), link.parent.is_some(), **index));
            best.map(|(index, _)| *index)
        }
        InterfaceSelector::DefaultRoute => by_default_route(prefer_ipv4, links, defaults)
            .or_else(|| current.filter(|index| links.contains_key(index)))
            .or_else(|| by_subnet(vips, prefer_ipv4, links, addresses)),
    }
}

fn by_name(name: &str, links: &BTreeMap<u32, Link>) -> Option<u32> {
    let exact = links.iter().find(|(_, link)| link.name == name);
    let found =
        exact.or_else(|| links.iter().find(|(_, link)| link.alternative_names.iter().any(|alt| alt == name)));
    found.map(|(index, _)| *index)
}

fn by_default_route(
    prefer_ipv4: bool,
    links: &BTreeMap<u32, Link>,
    defaults: &[ObservedRoute],
) -> Option<u32> {
    let usable = |index: &u32| links.get(index).is_some_and(Link::can_do_arp);
    let best = |ipv4: bool| {
        let family = defaults.iter().filter(|route| route.destination.network().is_ipv4() == ipv4);
        let hops =
            family.filter_map(|route| Some((route.metric, *route.interfaces.iter().find(|i| usable(i))?)));
        hops.min().map(|(_, index)| index)
    };
    best(prefer_ipv4).or_else(|| best(!prefer_ipv4))
}

/// Addresses of the family that decides count; of several interfaces none is more right than the others.
fn by_subnet(
    vips: &[VipAddress],
    ipv4: bool,
    links: &BTreeMap<u32, Link>,
    addresses: &[ObservedAddress],
) -> Option<u32> {
    let wanted: Vec<&VipAddress> = vips.iter().filter(|vip| vip.ip().is_ipv4() == ipv4).collect();
    let covers = |seen: &&ObservedAddress| {
        let subnet = Prefix::new(seen.ip, seen.prefix_len);
        seen.prefix_len < full_prefix(seen.ip) && wanted.iter().any(|vip| subnet.contains(vip.ip()))
    };
    let usable = |index: &u32| links.get(index).is_some_and(Link::can_do_arp);
    let mut found = addresses.iter().filter(covers).map(|seen| seen.index).filter(usable);
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn links(list: &[(u32, Link)]) -> BTreeMap<u32, Link> {
        list.iter().cloned().collect()
    }

    fn link(name: &str, mac: u8) -> Link {
        Link { name: name.into(), mac: Some([2, 0, 0, 0, 0, mac]), flags: 0x1_0043, ..Link::default() }
    }

    fn route(v4: bool, metric: u32, interfaces: &[u32]) -> ObservedRoute {
        let any: IpAddr = if v4 { [0; 4].into() } else { [0_u16; 8].into() };
        let destination = Prefix::new(any, 0);
        ObservedRoute {
            destination,
            table: 254,
            protocol: 3,
            kind: 1,
            metric,
            interfaces: interfaces.to_vec(),
        }
    }

    fn vip(text: &str) -> VipAddress {
        let (ip, length) = text.split_once('/').unwrap();
        VipAddress::new(ip.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    fn choose(
        selector: &InterfaceSelector,
        ipv4: bool,
        current: Option<u32>,
        links: &BTreeMap<u32, Link>,
        defaults: &[ObservedRoute],
    ) -> Option<u32> {
        let vip = vip(if ipv4 { "10.0.0.100/24" } else { "fd00::100/64" });
        select(selector, &[vip], current, View { links, defaults, addresses: &[] })
    }

    fn address(index: u32, ip: &str, prefix_len: u8) -> ObservedAddress {
        let ip = ip.parse().unwrap();
        ObservedAddress { index, ip, prefix_len, scope: 0, flags: 0, protocol: None, valid: None }
    }

    #[test]
    fn without_a_default_route_the_one_interface_whose_subnet_covers_the_vip_is_chosen() {
        let links =
            links(&[(1, link("eth0", 1)), (2, link("eth1", 2)), (3, Link { mac: None, ..link("tun0", 0) })]);
        let by = |vips: &[&str], addresses: &[ObservedAddress], defaults: &[ObservedRoute]| {
            let vips: Vec<VipAddress> = vips.iter().map(|text| vip(text)).collect();
            select(&InterfaceSelector::DefaultRoute, &vips, None, View { links: &links, defaults, addresses })
        };
        let both = [address(1, "192.0.2.1", 24), address(2, "10.0.0.1", 24), address(2, "10.0.0.2", 24)];
        assert_eq!(by(&["10.0.0.100/24"], &both, &[]), Some(2));
        assert_eq!(
            by(&["10.0.0.100/24"], &both, &[route(true, 0, &[1])]),
            Some(1),
            "a default route comes first"
        );
        assert_eq!(by(&["10.1.0.100/24"], &both, &[]), None);
        let whole = [address(1, "10.0.0.100", 32), address(1, "10.0.0.7", 32)];
        assert_eq!(
            by(&["10.0.0.100/24"], &whole, &[]),
            None,
            "an address with a prefix of 32 bits has no subnet"
        );
        let twice = [address(1, "10.0.0.1", 24), address(2, "10.0.0.2", 24)];
        assert_eq!(by(&["10.0.0.100/24"], &twice, &[]), None, "two are as good as each other");
        assert_eq!(
            by(&["10.0.0.100/24"], &[address(3, "10.0.0.1", 24), address(1, "10.0.0.2", 8)], &[]),
            Some(1)
        );
        let mixed = [address(1, "10.0.0.1", 24), address(2, "fd00::1", 64)];
        assert_eq!(by(&["fd00::100/64", "10.0.0.100/24"], &mixed, &[]), Some(1), "IPv4 decides");
        assert_eq!(by(&["fd00::100/64"], &mixed, &[]), Some(2));
    }

    #[test]
    fn a_name_is_matched_before_alternative_names() {
        let mut all = links(&[(1, link("eth0", 1)), (2, link("eth1", 2))]);
        all.get_mut(&1).unwrap().alternative_names = vec!["eth1".into(), "uplink".into()];
        let by = |name: &str| choose(&InterfaceSelector::Name(name.into()), true, Some(1), &all, &[]);
        assert_eq!((by("eth1"), by("uplink"), by("eth9")), (Some(2), Some(1), None));
    }

    #[test]
    fn of_equal_macs_the_bond_wins_over_its_ports_and_the_device_over_its_vlan() {
        let port = Link { master: Some(5), ..link("eth0", 1) };
        let vlan = Link { parent: Some(5), ..link("bond0.7", 1) };
        let all = links(&[(1, port), (2, vlan), (5, link("bond0", 1)), (6, link("other", 9))]);
        let by = |mac: u8| choose(&InterfaceSelector::Mac([2, 0, 0, 0, 0, mac]), true, None, &all, &[]);
        assert_eq!((by(1), by(9), by(3)), (Some(5), Some(6), None));
    }

    #[test]
    fn the_lowest_metric_of_the_preferred_family_wins_then_the_other_family() {
        let tunnel = Link { flags: 0x1_00d1, mac: None, ..link("wg0", 0) };
        let all = links(&[(1, link("eth0", 1)), (2, link("eth1", 2)), (3, tunnel)]);
        let by = |prefer_ipv4, current, defaults: &[ObservedRoute]| {
            choose(&InterfaceSelector::DefaultRoute, prefer_ipv4, current, &all, defaults)
        };
        let table =
            [route(true, 200, &[1]), route(true, 100, &[2]), route(false, 1, &[1]), route(true, 0, &[3])];
        assert_eq!(by(true, None, &table), Some(2), "the tunnel cannot carry a VIP");
        assert_eq!(by(false, None, &table), Some(1));
        assert_eq!(by(true, None, &table[2..]), Some(1), "the other family");
        assert_eq!(by(true, None, &[route(true, 5, &[3, 9, 2])]), Some(2), "the first usable next hop");
        assert_eq!(by(true, Some(2), &[]), Some(2), "kept while there is none");
        assert_eq!(by(true, Some(8), &[]), None);
    }

    #[test]
    fn up_needs_a_carrier() {
        let mut link = link("eth0", 1);
        assert!(link.is_up());
        link.flags = link_flag::UP;
        assert!(!link.is_up());
    }

    #[test]
    fn a_partial_update_leaves_the_rest() {
        let mut all = links(&[(1, link("eth0", 1))]);
        merge(&mut all, LinkUpdate { index: 1, flags: 0x1003, ..LinkUpdate::default() });
        assert_eq!((all[&1].name.as_str(), all[&1].flags), ("eth0", 0x1003));
    }
}
