//! This node as a server behind directors: the addresses on the dummy link, the silence about them, the tunnels.

use std::path::PathBuf;

use netlink_vip::sessions::SessionsError;
use netlink_vip::{RealServer, RealServerConfig};

/// The file that tells what a daemon before this one made.
pub(crate) const RECORD: &str = "real-server.json";

/// Keeps the node as it should be. Its methods talk to the kernel and wait for it.
pub(crate) struct Node {
    state_dir: PathBuf,
    server: Option<RealServer>,
    config: Option<RealServerConfig>,
}

impl Node {
    pub(crate) fn new(state_dir: PathBuf) -> Self {
        Self { state_dir, server: None, config: None }
    }

    /// Looks and mends; what cannot be as it should, for people.
    pub(crate) fn keep(&mut self, wanted: Option<&RealServerConfig>) -> Vec<String> {
        self.try_keep(wanted).unwrap_or_else(|why| vec![why])
    }

    fn try_keep(&mut self, wanted: Option<&RealServerConfig>) -> Result<Vec<String>, String> {
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
            unreset(recovery.unreset.as_ref());
            return Ok(recovery.failed.iter().map(ToString::to_string).collect());
        };
        let look = if self.config.as_ref() == Some(wanted) {
            server.reconcile()
        } else {
            // One that could not be taken over is tried again with the next look.
            self.config = None;
            server.change(wanted.clone())
        };
        let look = look.map_err(|error| error.to_string())?;
        self.config = Some(wanted.clone());
        for repair in &look.repairs {
            tracing::debug!(?repair, "real server");
        }
        unreset(look.unreset.as_ref());
        for why in &look.unreadable {
            tracing::warn!(
                why,
                "a record of what this node made as a real server cannot be read and is put aside"
            );
        }
        let waiting = |name: &String| {
            format!("the interface {name} is waited for before virtual IPs are accepted there")
        };
        Ok(look.waiting.iter().map(waiting).collect())
    }
}

fn unreset(error: Option<&SessionsError>) {
    if let Some(error) = error {
        tracing::warn!(%error, "clients of virtual IPs that this node no longer accepts are not told so");
    }
}
