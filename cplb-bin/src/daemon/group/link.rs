//! The channels that a node needs: pure, from its instances and interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vrrp::channel::Report;
use vrrp::hmac::{HmacConfig, Key, KeyId};
use vrrp::runner::{Interface, Transport};

/// A channel: all instances of an interface and a family share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkKey {
    pub(crate) interface: String,
    /// IPv4 where an instance has it, else IPv6.
    is_v4: bool,
}

/// The settings and the report of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Local {
    /// The index of the interface, and the address to send from; `None` while the interface cannot be used.
    pub(crate) source: Option<(u32, IpAddr)>,
    /// The peers of unicast advertisements, without this node; empty if an instance sends by multicast.
    pub(crate) peers: Vec<IpAddr>,
    /// The keys of all instances; of several with one identifier the first.
    pub(crate) keys: BTreeMap<KeyId, Key>,
    /// The controllers that are heard where there are no keys.
    pub(crate) known: BTreeSet<IpAddr>,
    /// Set if others on the link are heard, too.
    pub(crate) hears_all: bool,
    pub(crate) report: Report,
}

/// An instance as far as its channel is concerned.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    pub(crate) interface: Option<&'a Interface>,
    pub(crate) transport: &'a Transport,
    pub(crate) hmac: Option<&'a HmacConfig>,
    pub(crate) has_v4: bool,
    /// Set if neighbours that no list has may be peers.
    pub(crate) finds_peers: bool,
}

impl LinkKey {
    /// The channel of an instance on this interface.
    pub(crate) fn of(interface: &Interface, has_v4: bool) -> Self {
        Self { interface: interface.name.clone(), is_v4: has_v4 }
    }

    /// The channels of these instances, each with its settings. An instance without an interface has none.
    pub(crate) fn all<'a>(
        members: impl IntoIterator<Item = Member<'a>>,
        known: &BTreeSet<IpAddr>,
        report: &Report,
    ) -> BTreeMap<Self, Local> {
        let mut channels = BTreeMap::<Self, (Local, bool)>::new();
        for Member { interface, transport, hmac, has_v4, finds_peers } in members {
            let Some(interface) = interface else { continue };
            let key = Self::of(interface, has_v4);
            let (local, multicasts) = channels.entry(key).or_insert_with(|| {
                let source = if has_v4 { interface.v4.map(IpAddr::V4) } else { interface.v6.map(IpAddr::V6) };
                let source = source.filter(|_| interface.up).map(|source| (interface.index, source));
                let (known, report) = (known.clone(), report.clone());
                let (peers, keys, hears_all) = (Vec::new(), BTreeMap::new(), false);
                (Local { source, peers, keys, known, hears_all, report }, false)
            });
            local.hears_all |= finds_peers;
            match transport {
                Transport::Multicast => *multicasts = true,
                Transport::Unicast { peers } => {
                    let own = local.source.map(|(_, own)| own);
                    let others = peers.iter().filter(|peer| peer.is_ipv4() == has_v4 && Some(**peer) != own);
                    local.peers.extend(others);
                    local.known.extend(peers);
                }
            }
            for (id, found) in hmac.iter().flat_map(|hmac| hmac.keys()) {
                if local.keys.len() < HmacConfig::MAX_KEYS {
                    local.keys.entry(id).or_insert_with(|| found.clone());
                }
            }
        }
        let finished = |(key, (mut local, multicasts)): (Self, (Local, bool))| {
            local.peers.sort_unstable();
            local.peers.dedup();
            if multicasts {
                local.peers.clear();
            }
            (key, local)
        };
        channels.into_iter().map(finished).collect()
    }
}

#[cfg(test)]
mod tests {
    use vrrp::MacAddr;

    use super::*;

    fn interface(name: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            index: 2,
            mac: MacAddr([2; 6]),
            up: true,
            v4: Some([10, 0, 0, 11].into()),
            v6: Some("fe80::11".parse().unwrap()),
            prefixes: Vec::new(),
        }
    }

    fn hmac(id: u8) -> HmacConfig {
        let id = KeyId::new(id).unwrap();
        let keys = [(id, Key::new(&[id.get(); 32]).unwrap())].into();
        HmacConfig::new(keys, id, std::time::Duration::from_secs(1)).unwrap()
    }

    fn unicast(hosts: &[u8]) -> Transport {
        Transport::Unicast { peers: hosts.iter().map(|host| [10, 0, 0, *host].into()).collect() }
    }

    #[test]
    fn instances_of_an_interface_and_family_share_a_channel() {
        let (eth0, eth1) = (interface("eth0"), interface("eth1"));
        let (first, second) = (hmac(1), hmac(2));
        let (one, two) = (unicast(&[11, 12]), unicast(&[12, 13]));
        let member = |interface, transport, hmac, has_v4| {
            let finds_peers = false;
            Member { interface, transport, hmac, has_v4, finds_peers }
        };
        let members = [
            member(Some(&eth0), &one, Some(&first), true),
            member(Some(&eth0), &two, Some(&second), true),
            member(Some(&eth0), &Transport::Multicast, None, false),
            member(Some(&eth1), &one, None, true),
            member(Some(&eth1), &Transport::Multicast, None, true),
            member(None, &Transport::Multicast, None, true),
        ];
        let known = [IpAddr::from([10, 0, 0, 14])].into();
        let channels = LinkKey::all(members, &known, &Report::default());
        assert_eq!(channels.len(), 3);
        let of = |name: &str, is_v4| &channels[&LinkKey { interface: name.to_owned(), is_v4 }];
        let shared = of("eth0", true);
        assert_eq!(shared.peers, [[10, 0, 0, 12], [10, 0, 0, 13]].map(IpAddr::from), "without this node");
        assert_eq!(shared.keys.len(), 2);
        assert!(shared.known.contains(&IpAddr::from([10, 0, 0, 14])));
        assert_eq!(shared.source, Some((2, [10, 0, 0, 11].into())));
        assert!(of("eth1", true).peers.is_empty(), "multicast reaches all");
        assert_eq!(of("eth0", false).source, Some((2, "fe80::11".parse().unwrap())));
    }

    #[test]
    fn interface_that_is_down_gives_no_source() {
        let down = Interface { up: false, ..interface("eth0") };
        let transport = Transport::Multicast;
        let interface = Some(&down);
        let member =
            Member { interface, transport: &transport, hmac: None, has_v4: true, finds_peers: false };
        let channels = LinkKey::all([member], &BTreeSet::new(), &Report::default());
        assert_eq!(channels.values().next().unwrap().source, None);
    }
}
