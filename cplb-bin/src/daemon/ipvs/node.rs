//! This node as a real server: the addresses on the dummy link, the suppression of ARP for them, and the tunnel links.

use std::path::PathBuf;

use netlink_vip::sessions::SessionsError;
use netlink_vip::{RealServer, RealServerConfig};

/// The file that records what a former daemon created.
pub(super) const RECORD: &str = "real-server.json";

/// Keeps the node in its desired state. The methods block on the kernel.
pub(super) struct Node {
    state_dir: PathBuf,
    server: Option<RealServer>,
    config: Option<RealServerConfig>,
}

impl Node {
    pub(super) fn new(state_dir: PathBuf) -> Self {
        Self { state_dir, server: None, config: None }
    }

    /// Reads and repairs the state of the node. Returns the faults, for the operator.
    pub(super) fn reconcile(&mut self, wanted: Option<&RealServerConfig>) -> Vec<String> {
        self.try_reconcile(wanted).unwrap_or_else(|why| vec![why])
    }

    fn try_reconcile(&mut self, wanted: Option<&RealServerConfig>) -> Result<Vec<String>, String> {
        if self.server.is_none() {
            if wanted.is_none() && !self.state_dir.join(RECORD).exists() {
                return Ok(Vec::new());
            }
            self.server = Some(RealServer::open(&self.state_dir).map_err(|error| error.to_string())?);
        }
        let Some(server) = &mut self.server else { return Ok(Vec::new()) };
        let Some(wanted) = wanted else {
            let recovery = server.remove().map_err(|error| error.to_string())?;
            (self.server, self.config) = (None, None);
            log_unreset(recovery.unreset.as_ref());
            return Ok(recovery.failed.iter().map(ToString::to_string).collect());
        };
        let outcome = if self.config.as_ref() == Some(wanted) {
            server.reconcile()
        } else {
            // A change that fails is tried again with the next round.
            self.config = None;
            server.change(wanted.clone())
        };
        let outcome = outcome.map_err(|error| error.to_string())?;
        self.config = Some(wanted.clone());
        for repair in &outcome.repairs {
            tracing::debug!(?repair, "real server");
        }
        log_unreset(outcome.unreset.as_ref());
        for why in &outcome.unreadable {
            tracing::warn!(why, "real-server record unreadable; moved aside");
        }
        let waiting =
            |name: &String| format!("virtual IPs are not accepted on the interface {name} until it exists");
        Ok(outcome.waiting.iter().map(waiting).collect())
    }
}

fn log_unreset(error: Option<&SessionsError>) {
    if let Some(error) = error {
        tracing::warn!(%error, "sessions of virtual IPs that this node no longer accepts cannot be reset");
    }
}
