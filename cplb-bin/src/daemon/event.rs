//! The events that the loop receives: one variant for each subsystem.
//!
//! A producer has an [`EventSender`](super::sender::EventSender) of its own events and does not know this type.

use super::backends::{Discovered, Resolved};
use super::ipvs::{News, ProbeReport};
use super::prepare::Reading;
use super::reload::Staging;
use super::serving::Observation;
use super::state_dir::Probed;
use super::table::{TableChange, TableState};
use super::vip::VipEvent;

/// An event of a subsystem.
#[derive(Debug)]
pub(crate) enum Event {
    /// The election, the keeper of the addresses, or the bridge between them.
    Vip(VipEvent),
    /// The load balancer.
    Proxy(lb_proxy::Event),
    /// Name resolution and discovery.
    Backends(BackendsEvent),
    /// Evidence for the serving verdict was gathered, with this state of the nftables table.
    Serving(Observation, Option<TableState>),
    /// IPVS and its prober.
    Ipvs(IpvsEvent),
    /// The nftables table was changed, or could not be.
    Table(TableChange),
    /// Another configuration is on its way.
    Reload(ReloadEvent),
    /// The state directory was probed.
    StateDir(Probed),
}

/// An event about the addresses of backends.
#[derive(Debug)]
pub(crate) enum BackendsEvent {
    Resolved(Resolved),
    Discovered(Discovered),
}

/// An event of IPVS.
#[derive(Debug)]
pub(crate) enum IpvsEvent {
    Observed(News),
    Probed(ProbeReport),
}

/// An event of a reload.
#[derive(Debug)]
pub(crate) enum ReloadEvent {
    Read(Reading),
    Staged(Staging),
}

/// Implements `From` for the events of producers.
macro_rules! events {
    ($($from:ty => $to:expr),* $(,)?) => {
        $(impl From<$from> for Event {
            fn from(event: $from) -> Self {
                $to(event)
            }
        })*
    };
}

events! {
    VipEvent => Self::Vip,
    lb_proxy::Event => Self::Proxy,
    Resolved => |event| Self::Backends(BackendsEvent::Resolved(event)),
    Discovered => |event| Self::Backends(BackendsEvent::Discovered(event)),
    News => |event| Self::Ipvs(IpvsEvent::Observed(event)),
    ProbeReport => |event| Self::Ipvs(IpvsEvent::Probed(event)),
    TableChange => Self::Table,
    Reading => |event| Self::Reload(ReloadEvent::Read(event)),
    Staging => |event| Self::Reload(ReloadEvent::Staged(event)),
    Probed => Self::StateDir,
}
