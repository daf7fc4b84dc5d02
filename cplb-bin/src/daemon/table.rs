//! Keeps the nftables table in the kernel as the configuration wants it.

use std::sync::PoisonError;

use lb_proxy::nft::{ApplyError, Nft, Presence, RunError, Table, TableName};
use tokio::sync::Mutex;

use crate::exit::{Failure, Kind};
use crate::status::schema;

/// Owns the table. Only the methods that run `nft` wait for each other.
#[derive(Debug, Default)]
pub(crate) struct TableKeeper {
    work: Mutex<Work>,
    /// What the last look or change led to; `None` while no table is wanted.
    status: std::sync::Mutex<Option<schema::Table>>,
}

#[derive(Debug, Default)]
struct Work {
    desired: Option<Table>,
    /// Found when first needed.
    tool: Option<Nft>,
    /// What is no longer desired and could not be removed yet.
    leftover: Option<TableName>,
    applied: bool,
    restored: u64,
}

/// What one look at the kernel's table led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is as it should be.
    Present,
    /// Somebody had removed or changed it; it is back.
    Restored,
    /// It was not there yet; now it is.
    Applied,
    /// It is not there and could not be put there.
    Failed(String),
}

impl TableKeeper {
    /// Applies the table, or removes the one that is there.
    pub(crate) async fn set(&self, desired: Option<Table>) -> Result<(), Failure> {
        let mut work = self.work.lock().await;
        let result = match desired {
            Some(desired) if work.applied && work.desired.as_ref() == Some(&desired) => Ok(()),
            Some(desired) => {
                work.desired = Some(desired);
                work.apply().await
            }
            None => work.remove().await,
        };
        self.publish(&work, result.as_ref().err().map(|failure| failure.message().to_owned()));
        result
    }

    /// Looks whether the table is as it was applied, and restores it if not; `None` if none is wanted.
    pub(crate) async fn look(&self) -> Option<Look> {
        let mut work = self.work.lock().await;
        let look = work.look().await;
        let error = match &look {
            Some(Look::Failed(why)) => Some(why.clone()),
            _ => None,
        };
        self.publish(&work, error);
        look
    }

    /// The outcome of the last look or change, without waiting for one.
    pub(crate) fn status(&self) -> Option<schema::Table> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, work: &Work, error: Option<String>) {
        let status = (work.desired.is_some() || work.leftover.is_some()).then(|| schema::Table {
            present: work.applied && error.is_none(),
            restored: work.restored,
            error,
        });
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl Work {
    /// Applies the desired table in one batch.
    async fn apply(&mut self) -> Result<(), Failure> {
        let Some(desired) = &self.desired else { return Ok(()) };
        let tool = match &mut self.tool {
            Some(tool) => tool,
            none => none.insert(find()?),
        };
        let result = tool.apply(desired).await;
        self.applied = result.is_ok();
        self.leftover = None;
        result.map_err(|error| failure(&error))
    }

    async fn look(&mut self) -> Option<Look> {
        let Some(desired) = &self.desired else {
            self.leftover.as_ref()?;
            return self.remove().await.err().map(|failure| Look::Failed(failure.message().to_owned()));
        };
        if let (true, Some(tool)) = (self.applied, &mut self.tool) {
            match tool.present(desired) {
                Ok(Presence::Intact) => return Some(Look::Present),
                Ok(Presence::Missing) => {}
                Err(error) => {
                    return Some(Look::Failed(format!("the nftables table cannot be looked at: {error}")));
                }
            }
        }
        let was_applied = self.applied;
        Some(match self.apply().await {
            Ok(()) if was_applied => {
                self.restored += 1;
                Look::Restored
            }
            Ok(()) => Look::Applied,
            Err(failure) => Look::Failed(failure.message().to_owned()),
        })
    }

    /// Removes what is there; if that fails, the next look tries again.
    async fn remove(&mut self) -> Result<(), Failure> {
        self.applied = false;
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
        _ => Kind::System,
    };
    Failure::new(kind, format_args!("the nftables table cannot be applied: {error}"))
        .help("without it the traffic of the VIPs would not reach the load balancer; mend nft, or set disableLoadBalancer: true")
}
