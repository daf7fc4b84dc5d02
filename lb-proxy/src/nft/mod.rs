//! The nftables table that directs connections for a virtual IP to the proxy.
//!
//! The crate owns one table of family `inet` and neither reads nor writes any other. The table is replaced as a whole
//! in one transaction, applies its rules only while the address is local, and can be checked each second for the price
//! of one small netlink message.
//!
//! Call order: [`Nft::find`], [`Nft::apply`], then [`Nft::present`] any number of times and [`Nft::apply`] again on
//! [`Presence::Missing`], and [`Nft::remove`] at the end. All work happens in the network namespace of the calling
//! thread. The asynchronous methods need a tokio runtime with I/O and time enabled; dropping their future kills the nft
//! process that they started.

mod chain;
mod director;
mod kernel;
mod name;
mod rules;
mod run;
mod table;
mod wire;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use director::{Director, Reach};
pub use kernel::QueryError;
pub use name::{TableName, TableNameError};
pub use run::RunError;
pub use table::{Delivery, Table};
pub use wire::WireError;

use kernel::{Fingerprint, Generation, Kernel};

/// Time limit of one run of nft.
const RUN_TIMEOUT: Duration = Duration::from_secs(5);

/// Attempts of an apply while the kernel's tables change at the same moment.
const ATTEMPTS: usize = 4;

/// `nft` is not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the program 'nft' is missing: install the package 'nftables' (looked in {})",
    looked_in.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub struct Missing {
    /// The directories that were searched, in order.
    pub looked_in: Vec<PathBuf>,
}

/// The table could not be put in place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// nft failed; the previous table, if any, is still there.
    #[error(transparent)]
    Run(#[from] RunError),
    /// It was applied, but its presence could not be verified.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Other software removes or changes the table as fast as it is applied.
    #[error("table inet {name} was applied {ATTEMPTS} times and each time changed at once by other software")]
    Contended {
        /// The table.
        name: TableName,
    },
}

/// The presence of the table in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The table is as it was applied.
    Intact,
    /// The table, a chain, a rule, a set or an element was deleted or changed; or the table was never applied.
    Missing,
}

/// Applies and watches the table.
#[derive(Debug)]
pub struct Nft {
    path: PathBuf,
    timeout: Duration,
    kernel: Option<Kernel>,
    applied: Option<Applied>,
}

#[derive(Debug)]
struct Applied {
    table: Table,
    fingerprint: Fingerprint,
    /// The ruleset in which the fingerprint was last verified; `None` after contention, so that the next check reads
    /// the table.
    seen_in: Option<Generation>,
}

impl Nft {
    /// Searches `nft` in the directories of `$PATH`, `/usr/sbin` and `/sbin`.
    pub fn find() -> Result<Self, Missing> {
        Self::find_from(std::env::var_os("PATH").as_deref())
    }

    /// As [`Self::find`] with another value of `$PATH`.
    pub fn find_from(path: Option<&OsStr>) -> Result<Self, Missing> {
        run::find(path).map(Self::at).map_err(|looked_in| Missing { looked_in })
    }

    /// Searches only `directories`.
    pub fn find_in(directories: &[PathBuf]) -> Result<Self, Missing> {
        let missing = || Missing { looked_in: directories.to_vec() };
        run::find_in(directories).map(Self::at).ok_or_else(missing)
    }

    /// Uses the program at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self { path, timeout: RUN_TIMEOUT, kernel: None, applied: None }
    }

    /// Limits one run of nft to `timeout` instead of 5 s.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The path of the program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the table by `table` in one transaction. Established connections keep their translation.
    ///
    /// A table applied before under another name stays: call [`Self::remove`] first.
    ///
    /// # Errors
    /// See [`ApplyError`]. Needs `CAP_NET_ADMIN` in the network namespace's user namespace.
    pub async fn apply(&mut self, table: &Table) -> Result<(), ApplyError> {
        let result = self.replace(table).await;
        match &result {
            // The former table is still there: the next check compares the kernel's table with it.
            Err(ApplyError::Run(_)) => {}
            Err(ApplyError::Query(_)) => (self.applied, self.kernel) = (None, None),
            _ => self.applied = None,
        }
        self.applied = Some(result?);
        Ok(())
    }

    /// Returns whether the kernel still has `table` exactly as [`Self::apply`] left it. Blocks for microseconds: one
    /// netlink message while no table of the namespace changes, ten after a change of any.
    ///
    /// # Errors
    /// See [`QueryError`]; the next call opens a new socket.
    pub fn present(&mut self, table: &Table) -> Result<Presence, QueryError> {
        let result = self.check_presence(table);
        if result.is_err() {
            self.kernel = None;
        }
        result
    }

    /// Deletes the table of this name; succeeds if there is none.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn remove(&mut self, name: &TableName) -> Result<(), RunError> {
        if self.applied.as_ref().is_some_and(|applied| applied.table.name == *name) {
            self.applied = None;
        }
        run::run(&self.path, &encode(name.removal()), self.timeout).await
    }

    async fn replace(&mut self, table: &Table) -> Result<Applied, ApplyError> {
        let batch = encode(table.replacement());
        for _ in 0..ATTEMPTS {
            // Without the permission to read the ruleset, nft reports the problem better than this query.
            let before = self.kernel().and_then(Kernel::generation).ok();
            run::run(&self.path, &batch, self.timeout).await?;
            let kernel = self.kernel()?;
            let Some(fingerprint) = kernel.fingerprint(table)? else { continue };
            let after = kernel.generation()?;
            // Only a change between the commit and the query could hide in the fingerprint. Where other software keeps
            // committing to its own tables, the number of rules and addresses has to do.
            let rules: usize = table.chains().iter().map(|chain| chain.rules.len()).sum();
            let complete = (fingerprint.rules, fingerprint.elements) == (rules, table.element_count());
            if !complete {
                continue;
            }
            let seen_in = (before.map(Generation::next) == Some(after)).then_some(after);
            return Ok(Applied { table: table.clone(), fingerprint, seen_in });
        }
        Err(ApplyError::Contended { name: table.name.clone() })
    }

    fn check_presence(&mut self, table: &Table) -> Result<Presence, QueryError> {
        let kernel = kernel(&mut self.kernel)?;
        let Some(applied) = self.applied.as_mut().filter(|applied| applied.table == *table) else {
            return Ok(Presence::Missing);
        };
        let generation = kernel.generation()?;
        if applied.seen_in == Some(generation) {
            return Ok(Presence::Intact);
        }
        if kernel.fingerprint(table)? != Some(applied.fingerprint) {
            return Ok(Presence::Missing);
        }
        // Read before the table, so a change in between is found next time.
        applied.seen_in = Some(generation);
        Ok(Presence::Intact)
    }

    fn kernel(&mut self) -> Result<&mut Kernel, QueryError> {
        kernel(&mut self.kernel)
    }
}

fn kernel(slot: &mut Option<Kernel>) -> Result<&mut Kernel, QueryError> {
    match slot {
        Some(kernel) => Ok(kernel),
        None => Ok(slot.insert(Kernel::open()?)),
    }
}

fn encode(batch: nftables::batch::Batch<'_>) -> Vec<u8> {
    // Writing strings and numbers to memory cannot fail; nft would refuse an empty batch.
    serde_json::to_vec(&batch.to_nftables()).unwrap_or_default()
}
