//! Keeps the nftables table in the kernel as the configuration wants it.

use std::path::Path;

use cplb_config::Config;
use lb_proxy::nft::{ApplyError, Nft, Presence, RunError, Table};

use crate::exit::{Failure, Kind};
use crate::lock::{self, HostLock};
use crate::status::schema;

use super::blueprint;

/// Owns the desired table and what is known of the kernel's.
#[derive(Debug)]
pub(crate) struct TableKeeper {
    nft: Nft,
    desired: Table,
    applied: bool,
    restored: u64,
    error: Option<String>,
    _lock: HostLock,
}

/// What one look at the kernel's table led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is as it should be.
    Present,
    /// Somebody had removed or changed it; it is back.
    Restored,
    /// It is not there and could not be put there.
    Failed(String),
}

impl TableKeeper {
    pub(crate) fn new(nft: Nft, desired: Table, lock: HostLock) -> Self {
        Self { nft, desired, applied: false, restored: 0, error: None, _lock: lock }
    }

    /// Replaces the desired table and applies it.
    pub(crate) async fn set(&mut self, desired: Table) -> Result<(), ApplyError> {
        self.desired = desired;
        self.apply().await
    }

    /// Applies the desired table in one batch.
    pub(crate) async fn apply(&mut self) -> Result<(), ApplyError> {
        let result = self.nft.apply(&self.desired).await;
        self.applied = result.is_ok();
        self.error = result.as_ref().err().map(ToString::to_string);
        result
    }

    /// Looks whether the table is as it was applied, and restores it if not.
    pub(crate) async fn look(&mut self) -> Look {
        if self.applied {
            match self.nft.present(&self.desired) {
                Ok(Presence::Intact) => {
                    self.error = None;
                    return Look::Present;
                }
                Ok(Presence::Missing) => {}
                Err(error) => {
                    self.error = Some(error.to_string());
                    return Look::Failed(error.to_string());
                }
            }
        }
        let was_applied = self.applied;
        match self.apply().await {
            Ok(()) => {
                self.restored += u64::from(was_applied);
                Look::Restored
            }
            Err(error) => Look::Failed(error.to_string()),
        }
    }

    /// Removes the table.
    pub(crate) async fn remove(&mut self) -> Result<(), RunError> {
        self.applied = false;
        self.nft.remove(&self.desired.name).await
    }

    pub(crate) fn status(&self) -> schema::Table {
        schema::Table {
            present: self.applied && self.error.is_none(),
            restored: self.restored,
            error: self.error.clone(),
        }
    }
}

/// Locks the table, finds `nft` and applies the table that `config` asks for; `None` if it asks for none.
pub(crate) async fn start(config: &Config) -> Result<Option<TableKeeper>, Failure> {
    let Some(desired) = blueprint::table(config) else { return Ok(None) };
    let nft = Nft::find().map_err(|missing| {
        Failure::new(Kind::Unavailable, missing)
            .help("`apt-get install nftables`, or set disableLoadBalancer: true")
    })?;
    let lock = HostLock::table(Path::new(lock::DEFAULT_DIR), desired.name.as_str())
        .map_err(|error| Failure::from(&error))?;
    let mut keeper = TableKeeper::new(nft, desired, lock);
    match keeper.apply().await {
        Ok(()) => Ok(Some(keeper)),
        Err(error) => Err(failure(&error)),
    }
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
