//! The three kinds of documents: which one a file holds, and what stands around the load balancing section.

mod cluster;
mod hosts;
mod k0s;
mod multi;
mod native;
mod secrets;
mod select;

use crate::format::Format;
use crate::model::Config;
use crate::walk::{Field, Names, Reporter};
use crate::yaml::Child;

pub(crate) use secrets::secrets;
pub(crate) use select::select;

/// Reads the chosen document. `None` only if something was reported.
pub(crate) fn read(format: Format, root: &Child, out: &Reporter<'_>) -> Option<Config> {
    match format {
        Format::K0s => k0s::read_cluster_config(&Field::root(root, Names::AnyCase, out)),
        Format::K0sctl => k0s::read_k0sctl(&Field::root(root, Names::AnyCase, out)),
        Format::Native => native::read(&Field::root(root, Names::Exact, out)),
    }
}
