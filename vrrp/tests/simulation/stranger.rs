//! A host that is no controller and sends advertisements for the group's addresses regardless of those of others.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use vrrp::{Addresses, Advertisement, Auth, Family, PseudoHeader, WirePriority};

use crate::node::{v4, v6};
use crate::world::{Event, Frame, World};

/// The stranger's advertisements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stranger {
    pub(crate) priority: u8,
    pub(crate) interval: Duration,
    /// The last byte of its addresses; those of the nodes begin with 11.
    pub(crate) host: u8,
    /// It announces the addresses as well, with every advertisement.
    pub(crate) announces: bool,
}

impl World {
    /// Lets every daemon know the addresses of all nodes as controllers.
    pub(crate) fn introduce_all(&mut self) {
        let count = self.nodes.len();
        let all: BTreeSet<IpAddr> =
            (0..count).flat_map(|node| [IpAddr::V4(v4(node)), IpAddr::V6(v6(node))]).collect();
        for node in 0..count {
            self.nodes[node].controllers.clone_from(&all);
            let now = self.now;
            self.nodes[node].introduce(now);
        }
    }

    /// The stranger begins to send.
    pub(crate) fn intrude(&mut self, stranger: Stranger) {
        self.log(|| format!("{stranger:?}"));
        self.stranger = Some(stranger);
        self.stranger_sends();
    }

    pub(crate) fn stranger_sends(&mut self) {
        let Some(stranger) = self.stranger else { return };
        let config = self.nodes[0].config.clone();
        let family = config.deciding_family();
        let source = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 9, 0, stranger.host)),
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, stranger.host.into())),
        };
        let addresses = match family {
            Family::V4 => Addresses::V4(config.addresses_v4.clone()),
            Family::V6 => Addresses::V6(config.addresses_v6.clone()),
        };
        let ips: Vec<IpAddr> = addresses.iter().collect();
        let advertisement = Advertisement {
            version: config.deciding_version(),
            vrid: config.vrid,
            priority: WirePriority(stranger.priority),
            interval: config.advert_interval,
            addresses,
            auth: Auth::None,
        };
        let pseudo = PseudoHeader::new(source, family.multicast()).unwrap();
        let mut bytes = Vec::new();
        advertisement.encode(&pseudo, &mut bytes);
        self.inject(&Frame::Advertisement { bytes, pseudo });
        if stranger.announces {
            ips.into_iter().for_each(|ip| self.inject(&Frame::Announcement { ip }));
        }
        self.schedule(stranger.interval, Event::Stranger);
    }
}
