//! The serving verdict: whether this node may hold virtual IPs, and the evidence for it.

mod evidence;
mod fitness;
mod verdict;

pub(crate) use fitness::{Fitness, copy_text};
pub(crate) use verdict::{Finding, Round, Verdict};
