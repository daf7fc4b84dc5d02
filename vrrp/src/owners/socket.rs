//! The sockets through which a link is watched and asked.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use super::{Question, arp_probe, neighbour_solicitation, parse_claim};
use crate::announce::{Announcement, arp_request};
use crate::runner::link_layer::{self, MAX_FRAME, Watching};
use crate::runner::readiness::Watched;
use crate::types::{Family, MacAddr};

/// The sockets of one interface. They receive the claims of some addresses, and nothing that this host sends.
#[derive(Debug)]
pub struct OwnersSocket {
    arp: Watched,
    neighbours: Watched,
    sender: OwnedFd,
    mac: MacAddr,
    /// The source of neighbour solicitations.
    source: Option<Ipv6Addr>,
}

impl OwnersSocket {
    /// Opens the sockets on an interface with this link-layer address. IPv6 is asked for only with a `source`, an address
    /// of the interface. Must be called, and used, within a current-thread runtime.
    ///
    /// # Errors
    ///
    /// The operating system refuses: the interface is gone, or the process may not (`CAP_NET_RAW`).
    pub fn open(index: u32, mac: MacAddr, source: Option<Ipv6Addr>) -> io::Result<Self> {
        let watcher = |family| Watched::new(link_layer::open_watcher(index, family)?);
        let (arp, neighbours) = (watcher(Family::V4)?, watcher(Family::V6)?);
        Ok(Self { arp, neighbours, sender: link_layer::open_sender(index)?, mac, source })
    }

    /// Sets the addresses whose claims are received.
    ///
    /// # Errors
    ///
    /// The operating system refuses the filter.
    pub fn watch(&self, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
        let all: Vec<IpAddr> = addresses.iter().copied().collect();
        link_layer::watch(self.arp.as_fd(), Family::V4, Watching::Senders(&all))?;
        link_layer::watch(self.neighbours.as_fd(), Family::V6, Watching::Senders(&all))
    }

    /// The next claim.
    ///
    /// # Errors
    ///
    /// The operating system reports an error of the interface.
    pub async fn receive(&self) -> io::Result<Announcement> {
        loop {
            let frame = tokio::select! {
                frame = receive(&self.arp) => frame?,
                frame = receive(&self.neighbours) => frame?,
            };
            if let Some(claim) = parse_claim(&frame) {
                return Ok(claim);
            }
        }
    }

    /// Sends a question for an address. `own` is this node's address, for a [`Question::Request`]; without it that is a probe. In IPv6
    /// both are solicitations from the same address.
    ///
    /// # Errors
    ///
    /// The operating system does not take the frame.
    pub fn ask(&self, question: Question, own: Option<Ipv4Addr>) -> io::Result<()> {
        let (ip, own) = match question {
            Question::Probe(ip) => (ip, None),
            Question::Request(ip) => (ip, own),
        };
        let frame = match (ip, self.source) {
            (IpAddr::V4(ip), _) => {
                own.map_or_else(|| arp_probe(self.mac, ip), |own| arp_request(self.mac, own, ip))
            }
            (IpAddr::V6(ip), Some(source)) => neighbour_solicitation(self.mac, source, ip),
            (IpAddr::V6(_), None) => return Ok(()),
        };
        link_layer::send(self.sender.as_fd(), &frame)
    }
}

async fn receive(fd: &Watched) -> io::Result<Vec<u8>> {
    loop {
        let mut buffer = [0; MAX_FRAME];
        match link_layer::receive(fd.as_fd(), &mut buffer) {
            Ok(frame) => return Ok(frame.to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                fd.exhausted();
                poll_fn(|cx| fd.poll_readable(cx)).await;
            }
            Err(error) => return Err(error),
        }
    }
}
