//! Keeps the nftables table in the kernel in the state that the configuration wants, as far as the kernel and its IPVS
//! allow it.

mod delivery;
mod foreign;
mod tproxy;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::PoisonError;
use std::time::Instant;

use lb_proxy::nft::{ApplyError, Delivery, Director, Nft, Presence, RunError, Table, TableName};
use tokio::sync::{Mutex, MutexGuard};

use crate::exit::{Failure, Kind};
use crate::status::schema;

#[cfg(test)]
pub(crate) use delivery::Mode;
pub(crate) use delivery::{Delivered, Reason, degraded_delivery};
use foreign::ForeignServices;
use tproxy::Tproxy;

/// The owner of the table. Only the methods that run `nft` wait for each other.
#[derive(Debug, Default)]
pub(crate) struct TableKeeper {
    work: Mutex<Work>,
    /// The outcome of the last resync or change.
    outcome: std::sync::Mutex<Outcome>,
    /// The reason why the load balancer's listeners are not transparent.
    ordinary_listeners: std::sync::Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Outcome {
    /// `None` while no table is wanted.
    status: Option<schema::Table>,
    /// The table that was applied last; `None` after a failed change, although the kernel may still have it.
    applied: Option<Table>,
    /// The reason why no connection can be transparent.
    unavailable: Option<String>,
}

#[derive(Debug, Default)]
struct Work {
    desired: Option<Table>,
    /// The endpoints of other software's IPVS services, whose packets do not reach sockets.
    foreign: BTreeSet<SocketAddr>,
    ipvs: ForeignServices,
    tproxy: Tproxy,
    /// The reason why the load balancer's listeners are not transparent, as of the beginning of this resync or change.
    ordinary_listeners: Option<String>,
    /// Found when first needed.
    tool: Option<Nft>,
    /// The table that is no longer desired and could not be removed yet.
    leftover: Option<TableName>,
    /// The table that was applied last; `None` after a failed change, although the kernel may still have it.
    applied: Option<Table>,
    restored: u64,
}

/// The result of a change of the table.
#[derive(Debug)]
pub(crate) struct TableChange {
    pub(crate) result: Result<(), Failure>,
    /// The rules for IPVS in the table.
    pub(crate) directors: Vec<Director>,
}

/// The state of the kernel's table after it was read, and restored if need be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TableState {
    /// It is in the desired state.
    Present,
    /// Another program had removed or changed it; it was restored.
    Restored,
    /// It was applied for the first time, or replaced by another one.
    Applied,
    /// It could not be read, applied or removed, for this reason. The kernel may have a former one.
    Failed(String),
}

impl TableState {
    /// The reason why the table does not redirect traffic to the load balancer.
    pub(crate) fn fault(&self) -> Option<&str> {
        match self {
            Self::Failed(why) => Some(why),
            Self::Present | Self::Restored | Self::Applied => None,
        }
    }
}

impl TableKeeper {
    /// Applies the table, or removes the present one.
    pub(crate) async fn set(&self, desired: Option<Table>) -> Result<(), Failure> {
        let mut work = self.work().await;
        let result = match desired {
            Some(desired) if work.applied.is_some() && work.desired.as_ref() == Some(&desired) => Ok(()),
            Some(desired) => {
                work.desired = Some(desired);
                work.tproxy = Tproxy::default();
                work.list_foreign_services().await;
                work.apply(Instant::now()).await
            }
            None => work.remove().await,
        };
        self.publish(&work, result.as_ref().err().map(|failure| failure.message().to_owned()));
        result
    }

    /// Reads the table, and restores it if it differs from the applied one; `None` if no table is wanted.
    pub(crate) async fn resync(&self) -> Option<TableState> {
        let mut work = self.work().await;
        let state = work.resync(Instant::now()).await;
        let error = state.as_ref().and_then(|state| state.fault().map(str::to_owned));
        self.publish(&work, error);
        state
    }

    /// Lets the table translate from the next resync on, because the load balancer's listeners are not transparent.
    pub(crate) fn expect_ordinary_listeners(&self, why: String) {
        *self.ordinary_listeners.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// The outcome of the last resync or change. Does not wait.
    pub(crate) fn status(&self) -> Option<schema::Table> {
        self.outcome().status.clone()
    }

    /// The delivery of other hosts' connections to the load balancer. `interfaces` has the virtual IPs whose interface is a
    /// reason to translate. Empty while there is no table.
    pub(crate) fn delivered(&self, interfaces: &BTreeMap<IpAddr, Reason>) -> BTreeMap<SocketAddr, Delivered> {
        let outcome = self.outcome();
        let Some(applied) = &outcome.applied else { return BTreeMap::new() };
        delivery::delivered(applied, outcome.unavailable.as_deref(), interfaces)
    }

    /// Waits for the resync or change in progress.
    async fn work(&self) -> MutexGuard<'_, Work> {
        let mut work = self.work.lock().await;
        let reason = self.ordinary_listeners.lock().unwrap_or_else(PoisonError::into_inner);
        work.ordinary_listeners.clone_from(&reason);
        drop(reason);
        work
    }

    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, work: &Work, error: Option<String>) {
        let status = (work.desired.is_some() || work.leftover.is_some()).then(|| schema::Table {
            present: work.applied.is_some() && error.is_none(),
            restored: work.restored,
            error,
        });
        *self.outcome() =
            Outcome { status, applied: work.applied.clone(), unavailable: work.unavailable().cloned() };
    }
}

impl Work {
    /// Applies the table in one batch; without `tproxy`, if that is the reason why it is refused.
    async fn apply(&mut self, now: Instant) -> Result<(), Failure> {
        let Some(table) = self.effective() else { return Ok(()) };
        let tool = match &mut self.tool {
            Some(tool) => tool,
            none => none.insert(find()?),
        };
        let result = self.tproxy.apply(tool, table, now).await;
        self.leftover = None;
        let (applied, result) = match result {
            Ok(table) => (Some(table), Ok(())),
            Err(error) => (None, Err(failure(&error))),
        };
        self.applied = applied;
        result
    }

    /// Tries the transparent table again after a refusal has expired. Returns whether it was applied.
    async fn retry(&mut self, now: Instant) -> bool {
        let (Some(table), Some(tool), None) = (self.transparent(), &mut self.tool, &self.ordinary_listeners)
        else {
            return false;
        };
        let is_accepted = self.applied.is_some() && self.tproxy.retry(tool, &table, now).await;
        if is_accepted {
            self.applied = Some(table);
        }
        is_accepted
    }

    /// The desired table, as far as it is possible.
    fn effective(&self) -> Option<Table> {
        let transparent = self.transparent()?;
        Some(match self.unavailable() {
            Some(_) => Table { delivery: Delivery::Dnat, ..transparent },
            None => transparent,
        })
    }

    /// The desired table where `tproxy` is available.
    fn transparent(&self) -> Option<Table> {
        let desired = self.desired.as_ref()?;
        let is_service = |endpoint: &&SocketAddr| {
            let has_port = desired.redirects.keys().any(|port| port.get() == endpoint.port());
            has_port && desired.vips.iter().any(|vip| vip.to_canonical() == endpoint.ip())
        };
        let except = self.foreign.iter().filter(is_service).copied().collect();
        Some(Table { delivery: Delivery::Transparent { except }, ..desired.clone() })
    }

    fn unavailable(&self) -> Option<&String> {
        self.tproxy.refusal().or(self.ordinary_listeners.as_ref())
    }

    async fn list_foreign_services(&mut self) {
        if self.desired.is_none() {
            return;
        }
        if let Some(services) = self.ipvs.list().await {
            self.foreign = services;
        }
    }

    async fn resync(&mut self, now: Instant) -> Option<TableState> {
        self.list_foreign_services().await;
        if self.retry(now).await {
            return Some(TableState::Applied);
        }
        let Some(wanted) = self.effective() else {
            self.leftover.as_ref()?;
            return self.remove().await.err().map(|failure| TableState::Failed(failure.message().to_owned()));
        };
        let was_applied = self.applied.as_ref() == Some(&wanted);
        if let (true, Some(tool)) = (was_applied, &mut self.tool) {
            match tool.present(&wanted) {
                Ok(Presence::Intact) => return Some(TableState::Present),
                Ok(Presence::Missing) => {}
                Err(error) => {
                    return Some(TableState::Failed(format!("the nftables table cannot be read: {error}")));
                }
            }
        }
        Some(match self.apply(now).await {
            Ok(()) if was_applied => {
                self.restored += 1;
                TableState::Restored
            }
            Ok(()) => TableState::Applied,
            Err(failure) => TableState::Failed(failure.message().to_owned()),
        })
    }

    /// Removes the table; after a failure, the next resync tries again.
    async fn remove(&mut self) -> Result<(), Failure> {
        self.applied = None;
        self.leftover = self.desired.take().map(|desired| desired.name).or(self.leftover.take());
        if let (Some(tool), Some(name)) = (&mut self.tool, &self.leftover) {
            tool.remove(name).await.map_err(|error| {
                Failure::new(Kind::System, format_args!("the nftables table cannot be removed: {error}"))
            })?;
        }
        (self.leftover, self.tool) = (None, None);
        Ok(())
    }
}

fn find() -> Result<Nft, Failure> {
    Nft::find().map_err(|missing| {
        Failure::new(Kind::Unavailable, missing)
            .help("`apt-get install nftables`, or set disableLoadBalancer: true")
    })
}

fn failure(error: &ApplyError) -> Failure {
    let kind = match error {
        ApplyError::Run(RunError::Permission { .. }) => Kind::Permission,
        ApplyError::Run(RunError::Unsupported { .. } | RunError::Start { .. }) => Kind::Unavailable,
        // A busy machine, mostly.
        ApplyError::Run(RunError::TimedOut { .. }) => Kind::Temporary,
        _ => Kind::System,
    };
    Failure::new(kind, format_args!("the nftables table cannot be applied: {error}"))
        .help("without it the traffic of the VIPs would not reach the load balancer; repair nft, or set disableLoadBalancer: true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ordinary_listeners_reported_during_a_resync_count_from_the_next() {
        let keeper = TableKeeper::default();
        let mut current = keeper.work().await;
        current.desired = Some(Table::default());
        keeper.expect_ordinary_listeners("IP_TRANSPARENT is refused".to_owned());
        assert_ne!(current.effective().unwrap().delivery, Delivery::Dnat, "this resync had begun");
        drop(current);
        let next = keeper.work().await;
        assert_eq!(next.effective().unwrap().delivery, Delivery::Dnat);
        assert_eq!(next.unavailable().unwrap(), "IP_TRANSPARENT is refused");
    }
}
