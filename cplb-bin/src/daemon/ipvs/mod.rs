//! The kernel's IPVS as the balancer of `virtualServers`.

mod asker;
mod director;
mod forwarding;
mod kube_proxy;
mod listening;
mod node;
mod plan;
mod record;
mod shown;
mod sysctls;

pub(crate) use asker::{Ask, AskerHandle, Heard, Opinion, ROUND, TIMEOUT};
pub(crate) use director::{DirectorHandle, News, NodeWish, Wanted};
pub(crate) use forwarding::forwarding;
pub(crate) use plan::{Directed, Member, Members, desired, directed, servers, sysctls};
pub(crate) use shown::Place;

/// Files in the state directory that tell what a daemon before this one made.
pub(crate) const RECORDS: [&str; 2] = [record::RECORD, node::RECORD];
