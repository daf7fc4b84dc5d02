//! Keeps the nftables table in the kernel as the configuration wants it.

use lb_proxy::nft::{ApplyError, Nft, Presence, RunError, Table};

use crate::status::schema;

/// Owns the desired table and what is known of the kernel's.
#[derive(Debug)]
pub(crate) struct TableKeeper {
    nft: Nft,
    desired: Table,
    applied: bool,
    restored: u64,
    error: Option<String>,
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
    pub(crate) fn new(nft: Nft, desired: Table) -> Self {
        Self { nft, desired, applied: false, restored: 0, error: None }
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
        schema::Table { present: self.applied && self.error.is_none(), restored: self.restored, error: self.error.clone() }
    }
}
