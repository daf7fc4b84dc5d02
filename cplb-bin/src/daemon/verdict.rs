//! Draws the serving verdict again and again, and tells the election.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_proxy::LoadBalancer;
use netlink_vip::KeeperHandle;
use tokio::sync::mpsc::UnboundedSender;

use crate::status::schema::Serving;

use super::link::Event;
use super::serving::{self, Backends, Evidence};
use super::table::{Look, TableKeeper};

/// The load balancer's answer to a heartbeat may take this long.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// A keeper that owes an answer for longer is stuck: the kernel ends its leases.
const KEEPER_PATIENCE: Duration = Duration::from_millis(1500);

/// The current verdict.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// `None` until the first round is over.
    judged: Option<Result<(), String>>,
    since: Instant,
    /// When the round that is under way began.
    round: Option<Instant>,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { judged: None, since: Instant::now(), round: None }
    }
}

/// What a round found.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) evidence: Evidence,
    /// What became of the nftables table, if there is one.
    pub(crate) look: Option<Look>,
}

/// What a round looks at.
#[derive(Clone)]
pub(crate) struct Round {
    pub(crate) keeper: Option<KeeperHandle>,
    pub(crate) balancer: Option<Arc<LoadBalancer>>,
    pub(crate) table: Arc<TableKeeper>,
    /// The service whose backends decide.
    pub(crate) service: Option<String>,
}

impl Verdict {
    /// Starts a round unless one is under way: a round that hangs must let the serving lease run out.
    pub(crate) fn start_round(&mut self, round: Round, events: &UnboundedSender<Event>) {
        if self.round.is_some() {
            return;
        }
        self.round = Some(Instant::now());
        let events = events.clone();
        tokio::spawn(async move {
            let finding = round.look().await;
            let _ = events.send(Event::Finding(finding));
        });
    }

    /// Takes the result of a round; the new verdict if it differs from the one before.
    pub(crate) fn conclude(&mut self, evidence: &Evidence) -> Option<Result<(), String>> {
        self.round = None;
        let judged = serving::judge(evidence);
        let changed = self.judged.as_ref().is_none_or(|before| before.is_ok() != judged.is_ok());
        if changed {
            self.since = Instant::now();
        }
        let news = (self.judged.as_ref() != Some(&judged)).then(|| judged.clone());
        self.judged = Some(judged);
        news
    }

    pub(crate) fn is_serving(&self) -> bool {
        matches!(self.judged, Some(Ok(())))
    }

    /// The verdict as the election sees it, which believes the last one for as long as `lease`.
    pub(crate) fn status(&self, lease: Duration) -> Serving {
        let expired = self.round.map(|begun| begun.elapsed()).filter(|hanging| *hanging > lease);
        Serving {
            serving: self.is_serving() && expired.is_none(),
            since_seconds: expired.map_or(self.since.elapsed(), |hanging| hanging - lease).as_secs_f64(),
            reason: match (&self.judged, expired) {
                (Some(Ok(())), Some(hanging)) => {
                    Some(format!("its checks have hung for {:.1} s", hanging.as_secs_f64()))
                }
                (None, _) => Some("not yet checked".to_owned()),
                (Some(judged), _) => judged.as_ref().err().cloned(),
            },
        }
    }
}

impl Round {
    async fn look(self) -> Finding {
        let look = self.table.look().await;
        let table = match &look {
            Some(Look::Failed(why)) => Some(why.clone()),
            _ => None,
        };
        let silence = self.keeper.as_ref().map(KeeperHandle::silence).unwrap_or_default();
        let keeper = (silence > KEEPER_PATIENCE)
            .then(|| format!("their keeper has not answered for {:.1} s", silence.as_secs_f64()));
        let mut evidence = Evidence { keeper, table, ..Evidence::default() };
        if let Some(balancer) = &self.balancer {
            evidence.heartbeat =
                balancer.heartbeat(HEARTBEAT_TIMEOUT).await.err().map(|error| error.to_string());
            evidence.backends = self.backends(balancer);
        }
        Finding { evidence, look }
    }

    fn backends(&self, balancer: &LoadBalancer) -> Option<Backends> {
        let service = self.service.as_deref()?;
        let all = balancer.serving_evidence();
        let found = all.iter().find(|evidence| &*evidence.service == service)?;
        Some(Backends {
            known: found.backends,
            healthy: found.healthy,
            remote: found.remote,
            healthy_remote: found.healthy_remote,
        })
    }
}
