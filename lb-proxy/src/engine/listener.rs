//! Listening addresses and the services that they belong to.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::service::LiveService;

/// A listening address with what was configured for it.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    pub configured: SocketAddr,
    pub actual: SocketAddr,
    pub listening: Arc<Listening>,
}

/// What the workers know of a listening address. A reconfiguration may give it to another service.
#[derive(Debug)]
pub(crate) struct Listening {
    pub id: u32,
    pub service: ArcSwap<LiveService>,
}
