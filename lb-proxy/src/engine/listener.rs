//! Listening addresses and the services that they belong to.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::service::LiveService;

/// A listening address with the configured one.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    pub configured: SocketAddr,
    pub actual: SocketAddr,
    pub listening: Arc<Listening>,
}

/// A listening address as the workers know it. A reconfiguration may assign it to another service.
#[derive(Debug)]
pub(crate) struct Listening {
    pub id: u32,
    pub service: ArcSwap<LiveService>,
}
