//! The tests of discovery by the real binary.

pub(crate) mod boot;
pub(crate) mod changes;
mod ground;
pub(crate) mod trust;
