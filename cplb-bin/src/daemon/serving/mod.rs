//! The serving verdict, which says whether this node may hold virtual IPs, and the evidence for it.

mod evidence;
mod fitness;
mod sources;
mod verdict;

pub(crate) use fitness::{Fitness, copy_text};
pub(crate) use sources::{Observation, Sources};
pub(crate) use verdict::{Input, Lease, Verdict};
