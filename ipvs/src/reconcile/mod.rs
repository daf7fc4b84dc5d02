//! From the table that should be and the table that is to the fewest commands in between. Pure.
//!
//! ```
//! use std::collections::BTreeSet;
//! use std::time::Instant;
//! use ipvs::reconcile::{Desired, DesiredService, Options, Planner, Table};
//! use ipvs::{Destination, DestinationKey, ForwardMethod, SchedulerName, Service, ServiceKey};
//!
//! let key = ServiceKey::tcp([10, 0, 0, 100].into(), 6443);
//! let server = DestinationKey::new([10, 0, 0, 11].into(), 6443);
//! let desired: Desired = [DesiredService::new(Service::new(key, SchedulerName::RR))
//!     .with(Destination::new(server, ForwardMethod::DIRECT_ROUTE))]
//! .into_iter()
//! .collect();
//!
//! let mut planner = Planner::new(Options::default());
//! let plan = planner.plan(Instant::now(), &desired, &Table::default(), &BTreeSet::new());
//! let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
//! assert_eq!(steps, [
//!     "add service TCP 10.0.0.100:6443 (rr)",
//!     "add destination 10.0.0.11:6443 (Route, weight 1) to TCP 10.0.0.100:6443",
//! ]);
//! assert!(plan.claims.contains(&key), "to be recorded as ours before the plan is carried out");
//! ```
//!
//! # Rules
//!
//! - **Ownership is data.** The caller says which services are its own, and keeps that on disk. A service that is not
//!   owned is never touched; if one with the same key is desired, it is a [conflict](Plan::conflicts).
//! - **Additions come first**, then changes, then destinations are quiesced, then deletions. A service is followed by
//!   its destinations closely.
//! - **Destinations that go are drained**: their weight becomes 0, and they are deleted once a later look at the table
//!   shows no active connections, or the [time for it](Options::drain) is over. One that is desired
//!   [dead](DesiredService::with_dead) is deleted at once.
//! - **Nothing is set that is so already**, by what the kernel makes of the settings: it adds a flag to every service,
//!   and it keeps, without any effect, the timeout and netmask of a service that is not persistent and the tunnel of a
//!   destination that is not tunnelled.

mod plan;
#[cfg(test)]
mod plan_tests;
mod step;
mod table;

pub use plan::{Draining, Options, Plan, Planner, ServiceRemoval};
pub use step::{Deletion, Step};
pub use table::{Desired, DesiredService, ObservedService, Table};

#[cfg(feature = "client")]
pub use crate::client::{Outcome, Report};
