//! How virtual addresses leave IPVS: at a stop, at a planned release, and with a reload.

use std::time::{Duration, Instant};

use vrrp::runner::InstanceId;

use super::super::ipvs::{Directed, ROUND, TIMEOUT, directed, servers};
use crate::daemon::Daemon;

/// A planned release waits this long for the director to take its services away.
const WITHDRAWAL: Duration = Duration::from_millis(100);

/// How long directors are told that this node leaves: a round of questions, an answer, and the change.
const LEAVE: Duration = ROUND.saturating_add(TIMEOUT).saturating_add(ROUND);

impl Daemon {
    /// Another configuration is in use.
    pub(crate) fn redirect(&mut self) {
        let wanted = directed(&self.config);
        let former = std::mem::replace(&mut self.ipvs.directed, wanted);
        let stays = |vip| self.ipvs.directed.iter().any(|it| it.vip == vip && it.instance.is_some());
        let mut dropped = self.ipvs.departing.take().map(|(dropped, _)| dropped).unwrap_or_default();
        dropped.extend(former.into_iter().filter(Directed::outlives_its_director));
        dropped.retain(|it| !stays(it.vip));
        if !dropped.is_empty() {
            self.ipvs.departing = Some((dropped, Instant::now() + LEAVE));
        }
        self.ipvs.ensure_director();
        self.judge_ipvs();
        self.update_ipvs();
    }

    /// Before this node stops being a real server, directors elsewhere must know: they ask, and are refused. Whether
    /// that has been long enough.
    pub(crate) fn has_left(&mut self) -> bool {
        if let Some(left) = self.ipvs.left {
            return Instant::now() >= left;
        }
        let members = self.members();
        let asked = |it: &Directed| it.outlives_its_director() && servers(&members, it).len() > 1;
        let mut left = Instant::now();
        if self.ipvs.directed.iter().any(asked) {
            tracing::info!(
                seconds = LEAVE.as_secs_f64(),
                "telling directors on other nodes that this one leaves"
            );
            left += LEAVE;
        }
        self.ipvs.left = Some(left);
        self.update_ipvs();
        Instant::now() >= left
    }

    /// Takes the services of an instance away, before its addresses go. Where another node goes on with the connections,
    /// they stay until the addresses have gone: without them, this node would reset what still arrives.
    pub(crate) async fn withdraw(&mut self, id: InstanceId) {
        let Some(director) = self.ipvs.director.clone() else { return };
        let instance = self.election.as_ref().and_then(|election| election.instances.get(&id));
        if instance.is_some_and(|instance| !instance.group.lasting.is_empty()) {
            return;
        }
        self.ipvs.releasing.insert(id);
        self.update_ipvs();
        if tokio::time::timeout(WITHDRAWAL, director.settle()).await.is_err() {
            tracing::warn!(vrid = id.0, "IPVS still has the services of virtual IPs that are handed over");
        }
    }
}
