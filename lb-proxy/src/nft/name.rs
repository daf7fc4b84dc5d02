//! Names of tables.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use nftables::batch::Batch;
use nftables::schema::NfListObject;
use nftables::types::NfFamily;

/// Longest accepted table name; the kernel's limit (`NFT_NAME_MAXLEN`) is 256 with the terminator.
const NAME_MAX: usize = 63;

/// Name of an nftables table: 1 to 63 of `a-z A-Z 0-9 _`, not starting with a digit.
///
/// The narrow alphabet needs no quoting in nft's own language, so an operator can type it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName(Cow<'static, str>);

/// A string is not usable as a [`TableName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no table name: use 1 to 63 letters, digits and '_', not starting with a digit")]
pub struct TableNameError(String);

impl TableName {
    /// The name as nft shows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TableName {
    /// `cplb`.
    fn default() -> Self {
        Self(Cow::Borrowed("cplb"))
    }
}

impl FromStr for TableName {
    type Err = TableNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let starts = text.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if !starts || text.len() > NAME_MAX || !text.bytes().all(legal) {
            return Err(TableNameError(text.to_owned()));
        }
        Ok(Self(Cow::Owned(text.to_owned())))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TableName {
    /// A transaction that deletes the table of this name if there is one.
    pub(super) fn removal(&self) -> Batch<'_> {
        let mut batch = Batch::new();
        batch.add(NfListObject::Table(self.object()));
        batch.delete(NfListObject::Table(self.object()));
        batch
    }

    pub(super) fn object(&self) -> nftables::schema::Table<'_> {
        nftables::schema::Table { family: NfFamily::INet, name: self.as_str().into(), handle: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_no_quoting() {
        for good in ["cplb", "_x", "cplb_51", &"a".repeat(63)] {
            assert_eq!(good.parse::<TableName>().unwrap().as_str(), good);
        }
        for bad in ["", "5cplb", "cplb;flush ruleset", "a b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<TableName>().is_err(), "{bad:?}");
        }
    }
}
