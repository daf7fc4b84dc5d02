//! What is heard about real servers, and said about it.

use std::time::{Duration, Instant};

use super::super::ipvs::{Ask, Heard, Opinion};
use super::super::problems::Cause;
use crate::daemon::Daemon;

/// So long nothing more is said about a server.
const TELLING: Duration = Duration::from_secs(10);

/// What was logged last about a server.
#[derive(Debug, Default)]
pub(super) struct Telling {
    opinion: Option<Opinion>,
    at: Option<Instant>,
}

impl Daemon {
    /// Says what changed; of a server that changes all the time, not all of it.
    pub(crate) fn tell_opinions(&mut self) {
        let now = Instant::now();
        let opinions = &self.ipvs.heard.opinions;
        self.ipvs.told.retain(|ask, _| opinions.contains_key(ask));
        for (ask, opinion) in opinions {
            let Ask { vip, server, .. } = ask;
            let Telling { opinion: former, at } = self.ipvs.told.entry(*ask).or_default();
            if *former == Some(*opinion) || at.is_some_and(|at| now < at + TELLING) {
                continue;
            }
            let is_news = match opinion {
                Opinion::Unasked => false,
                Opinion::Accepts => former.is_some(),
                _ => true,
            };
            if is_news && *opinion == Opinion::Accepts {
                tracing::info!(%vip, %server, "real server: {opinion}");
            } else if is_news {
                tracing::warn!(%vip, %server, "real server: {opinion}");
            }
            let at = if is_news { Some(now) } else { *at };
            *self.ipvs.told.entry(*ask).or_default() = Telling { opinion: Some(*opinion), at };
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
