//! Guards that count sessions and connects of a backend as long as they exist.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::backend::LiveBackend;

/// A session in the counters of its backend; dropping it removes it.
#[derive(Debug)]
pub(crate) struct SessionGuard(Arc<LiveBackend>);

impl SessionGuard {
    pub(crate) fn new(backend: Arc<LiveBackend>) -> Self {
        backend.active.fetch_add(1, Relaxed);
        backend.total.fetch_add(1, Relaxed);
        SessionGuard(backend)
    }

    pub(crate) fn backend(&self) -> &LiveBackend {
        &self.0
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// A connect in the counters of its backend; dropping it removes it.
#[derive(Debug)]
pub(crate) struct ConnectGuard(Arc<LiveBackend>);

impl ConnectGuard {
    pub(crate) fn new(backend: Arc<LiveBackend>) -> Self {
        backend.connecting.fetch_add(1, Relaxed);
        ConnectGuard(backend)
    }

    pub(crate) fn backend(&self) -> &Arc<LiveBackend> {
        &self.0
    }
}

impl Drop for ConnectGuard {
    fn drop(&mut self) {
        self.0.connecting.fetch_sub(1, Relaxed);
    }
}
