//! The events that the loop receives: one variant for each subsystem.
//!
//! A producer sends its own events through an [`EventSender`](super::sender::EventSender) and does not import this type.

use super::backends::{Discovered, Resolved};
use super::certificates::Compared;
use super::end_to_end::Checked;
use super::group::GroupEvent;
use super::ipvs::{ProbeReport, ReconcilerReport};
use super::prepare::Reading;
use super::reload::Staging;
use super::serving::Observation;
use super::state_dir::Probed;
use super::table::{TableChange, TableState};
use super::vip::VipReport;
use crate::control::server::Asked;
use crate::history::Written;
use crate::http::ViewRequest;

/// An event of a subsystem.
#[derive(Debug)]
pub(crate) enum Event {
    /// A report of the election, of the keeper of the addresses, or of the bridge between them.
    Vip(VipReport),
    /// An event of the load balancer.
    Proxy(lb_proxy::Event),
    /// The result of name resolution or discovery.
    Backends(BackendsEvent),
    /// Evidence for the serving verdict was gathered, with this state of the nftables table.
    Serving(Observation, Option<TableState>),
    /// A report of the IPVS reconciler or the prober.
    Ipvs(IpvsEvent),
    /// The result of a change of the nftables table.
    Table(TableChange),
    /// The progress of a reload.
    Reload(ReloadEvent),
    /// The state directory was probed.
    StateDir(Probed),
    /// A change of what is known of another controller.
    Group(GroupEvent),
    /// An end-to-end check has ended.
    Checked(Checked),
    /// The certificates of the API servers were compared with the names that clients use.
    Compared(Compared),
    /// A request of an operator.
    Control(ControlEvent),
    /// The history was written.
    History(Written),
    /// The status page asks for the status.
    Status(ViewRequest),
}

/// An event of a request of an operator.
#[derive(Debug)]
pub(crate) enum ControlEvent {
    Asked(Asked),
    /// The end of the attempt to record standby, for the operator with this number; with the fault, if it failed.
    Recorded {
        operator: u64,
        fault: Option<String>,
    },
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
    Observed(ReconcilerReport),
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
    VipReport => Self::Vip,
    lb_proxy::Event => Self::Proxy,
    Resolved => |event| Self::Backends(BackendsEvent::Resolved(event)),
    Discovered => |event| Self::Backends(BackendsEvent::Discovered(event)),
    ReconcilerReport => |event| Self::Ipvs(IpvsEvent::Observed(event)),
    ProbeReport => |event| Self::Ipvs(IpvsEvent::Probed(event)),
    TableChange => Self::Table,
    ControlEvent => Self::Control,
    Asked => |asked| Self::Control(ControlEvent::Asked(asked)),
    Reading => |event| Self::Reload(ReloadEvent::Read(event)),
    Staging => |event| Self::Reload(ReloadEvent::Staged(event)),
    Probed => Self::StateDir,
    GroupEvent => Self::Group,
    Checked => Self::Checked,
    Compared => Self::Compared,
    ViewRequest => Self::Status,
    Written => Self::History,
}
