//! The routers that can prove to this one that it is not heard.
//!
//! An Active with a rival that goes on although it loses cannot tell a peer that does not receive from a program that
//! merely sends. It yields only to a router that is known to be a controller of the cluster, or that has announced the
//! addresses to the neighbours. Known are the configured peers and the set that
//! [`Command::Controllers`](super::Command::Controllers) gives. That set may name controllers by addresses that their
//! advertisements do not come from (another network, or IPv6, where the source is link-local), so an address that it
//! lacks proves nothing by itself: a router counts as a stranger only where the set has the source of this router's own
//! advertisements and that of another router of the same family.

use std::net::IpAddr;

use super::common::{Core, Heard};
use crate::types::Family;

/// The knowledge about the sender of an advertisement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// A peer, a controller, or a router that has proved that it holds the addresses.
    Controller,
    /// The known addresses, if any, are not those that advertisements come from.
    Unknown,
    /// It is none of the controllers, which are known by the addresses that their advertisements come from.
    Stranger,
}

impl Core {
    pub(super) fn standing(&self, source: IpAddr) -> Standing {
        let known = self.config.peers.contains(&source) || self.controllers.contains(&source);
        if known || self.believed == Some(source) {
            return Standing::Controller;
        }
        let may_be_unlisted = self.config.accept_neighbours && self.is_on_link(source);
        if self.knows_sources(Family::of(source)) && !may_be_unlisted {
            Standing::Stranger
        } else {
            Standing::Unknown
        }
    }

    /// Returns whether the set of controllers holds the sources of advertisements.
    fn knows_sources(&self, family: Family) -> bool {
        let Some(own) = self.sources.of(family) else { return false };
        let another = |ip: &IpAddr| *ip != own && Family::of(*ip) == family;
        self.controllers.contains(&own) && self.controllers.iter().any(another)
    }

    /// Returns whether an advertisement comes from a stranger of lower priority than this router has while it serves.
    /// Degraded priorities are an agreement among controllers, so they are not compared. Equal ones are left to the
    /// tie-break: a controller that is not listed has the same priority as the others nearly always.
    pub(super) fn is_weaker_stranger(&self, heard: &Heard) -> bool {
        heard.standing == Standing::Stranger && heard.priority < self.config.priority.full()
    }
}
