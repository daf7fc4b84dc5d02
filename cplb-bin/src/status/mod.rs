//! The status socket: the daemon's side in [`server`], `cplb status` in [`client`].

pub(crate) mod client;
pub(crate) mod render;
pub(crate) mod schema;
pub(crate) mod server;
