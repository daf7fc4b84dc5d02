//! What is heard about real servers, and said about it.

use super::super::ipvs::{Ask, Heard, Opinion};
use super::super::problems::Cause;
use crate::daemon::Daemon;

impl Daemon {
    /// Logs what changed.
    pub(crate) fn tell_opinions(&mut self) {
        let opinions = &self.ipvs.heard.opinions;
        self.ipvs.told.retain(|ask, _| opinions.contains_key(ask));
        for (ask, opinion) in opinions {
            let Ask { vip, server, .. } = ask;
            let former = self.ipvs.told.insert(*ask, *opinion);
            match opinion {
                _ if former == Some(*opinion) => {}
                Opinion::Unasked => {}
                Opinion::Accepts if former.is_none() => {}
                Opinion::Accepts => tracing::info!(%vip, %server, "real server: {opinion}"),
                _ => tracing::warn!(%vip, %server, "real server: {opinion}"),
            }
        }
    }

    pub(crate) fn on_heard(&mut self, heard: Heard) {
        let own = heard
            .opinions
            .iter()
            .find(|(ask, opinion)| **opinion == Opinion::Refuses && heard.local.contains_key(&ask.server));
        match own {
            Some((Ask { vip, .. }, _)) => {
                let text = format!(
                    "the server on this node does not listen on {vip}: let it listen on all addresses, or use lbKind NAT"
                );
                self.problems.raise(Cause::Acceptance, text);
            }
            None => drop(self.problems.clear(&Cause::Acceptance)),
        }
        match &heard.failure {
            Some(why) => {
                let text = format!("servers cannot be asked whether they accept a virtual IP: {why}");
                if self.problems.raise(Cause::Asking, text.as_str()) {
                    tracing::warn!("{text}");
                }
            }
            None => drop(self.problems.clear(&Cause::Asking)),
        }
        self.ipvs.heard = heard;
        self.tell_opinions();
        self.update_ipvs();
    }
}
