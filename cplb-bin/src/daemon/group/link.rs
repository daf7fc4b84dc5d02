//! The channels that a node needs: pure, from its instances and interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vrrp::channel::Report;
use vrrp::hmac::{HmacConfig, Key, KeyId};
use vrrp::runner::{Interface, Transport};

/// What instances have in common that share a channel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkKey {
    pub(crate) interface: String,
    /// The peers of unicast advertisements; empty for multicast.
    peers: Vec<IpAddr>,
    /// The identifiers and bytes of the keys.
    keys: Vec<(u8, Vec<u8>)>,
    /// IPv4 where an instance has it, else IPv6.
    is_v4: bool,
}

/// What a channel needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Local {
    /// The index of the interface, and the address to send from; `None` while the interface cannot be used.
    pub(crate) source: Option<(u32, IpAddr)>,
    /// The peers of unicast advertisements; empty for multicast.
    pub(crate) peers: Vec<IpAddr>,
    pub(crate) keys: BTreeMap<KeyId, Key>,
    /// The controllers that are heard where there are no keys.
    pub(crate) known: BTreeSet<IpAddr>,
    pub(crate) report: Report,
}

/// An instance as far as its channel is concerned.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    pub(crate) interface: Option<&'a Interface>,
    pub(crate) transport: &'a Transport,
    pub(crate) hmac: Option<&'a HmacConfig>,
    pub(crate) has_v4: bool,
}

impl LinkKey {
    /// The channels of these instances, each with what it needs. An instance without an interface has none.
    pub(crate) fn all<'a>(
        members: impl IntoIterator<Item = Member<'a>>,
        known: &BTreeSet<IpAddr>,
        report: &Report,
    ) -> BTreeMap<Self, Local> {
        let mut channels = BTreeMap::new();
        for member in members {
            let Some(interface) = member.interface else { continue };
            let peers = match member.transport {
                Transport::Multicast => Vec::new(),
                Transport::Unicast { peers } => {
                    peers.iter().copied().filter(|peer| peer.is_ipv4() == member.has_v4).collect()
                }
            };
            let keys: BTreeMap<KeyId, Key> =
                member.hmac.iter().flat_map(|hmac| hmac.keys()).map(|(id, key)| (id, key.clone())).collect();
            let key = Self {
                interface: interface.name.clone(),
                peers: peers.clone(),
                keys: keys.iter().map(|(id, key)| (id.get(), key.as_bytes().to_vec())).collect(),
                is_v4: member.has_v4,
            };
            let source = match member.has_v4 {
                true => interface.v4.map(IpAddr::V4),
                false => interface.v6.map(IpAddr::V6),
            };
            let source = source.filter(|_| interface.up).map(|source| (interface.index, source));
            let known = known.iter().copied().chain(peers.iter().copied()).collect();
            channels.insert(key, Local { source, peers, keys, known, report: report.clone() });
        }
        channels
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

    fn hmac(byte: u8) -> HmacConfig {
        let keys = [(KeyId::MIN, Key::new(&[byte; 32]).unwrap())].into();
        HmacConfig::new(keys, KeyId::MIN, std::time::Duration::from_secs(1)).unwrap()
    }

    #[test]
    fn instances_share_a_channel_unless_interface_peers_keys_or_family_differ() {
        let (eth0, eth1) = (interface("eth0"), interface("eth1"));
        let (first, second) = (hmac(1), hmac(2));
        let unicast = Transport::Unicast { peers: vec![[10, 0, 0, 12].into(), "fd00::12".parse().unwrap()] };
        let member = |interface, transport, hmac, has_v4| Member { interface, transport, hmac, has_v4 };
        let members = [
            member(Some(&eth0), &Transport::Multicast, None, true),
            member(Some(&eth0), &Transport::Multicast, None, true),
            member(Some(&eth0), &Transport::Multicast, None, false),
            member(Some(&eth1), &Transport::Multicast, None, true),
            member(Some(&eth0), &unicast, None, true),
            member(Some(&eth0), &Transport::Multicast, Some(&first), true),
            member(Some(&eth0), &Transport::Multicast, Some(&second), true),
            member(None, &Transport::Multicast, None, true),
        ];
        let known = [IpAddr::from([10, 0, 0, 13])].into();
        let channels = LinkKey::all(members, &known, &Report::default());
        assert_eq!(channels.len(), 6);
        let by_unicast = channels.values().find(|local| !local.peers.is_empty()).unwrap();
        assert_eq!(by_unicast.peers, [IpAddr::from([10, 0, 0, 12])], "of the channel's family");
        assert!(by_unicast.known.contains(&IpAddr::from([10, 0, 0, 13])));
        assert_eq!(by_unicast.source, Some((2, [10, 0, 0, 11].into())));
    }

    #[test]
    fn interface_that_is_down_gives_no_source() {
        let down = Interface { up: false, ..interface("eth0") };
        let transport = Transport::Multicast;
        let member = Member { interface: Some(&down), transport: &transport, hmac: None, has_v4: true };
        let channels = LinkKey::all([member], &BTreeSet::new(), &Report::default());
        assert_eq!(channels.values().next().unwrap().source, None);
    }
}
