//! A chain of the table with its rules.

use nftables::schema::{Chain, NfListObject};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::name::TableName;
use super::rules::Rule;

/// A chain of the table with its rules.
pub(super) struct ChainPlan<'a> {
    pub(super) name: &'static str,
    /// Type, hook and priority; `None` for a chain that others jump to.
    pub(super) hook: Option<(NfChainType, NfHook, i32)>,
    pub(super) rules: Vec<Rule<'a>>,
}

impl<'a> ChainPlan<'a> {
    pub(super) fn new(
        name: &'static str,
        (kind, hook, priority): (NfChainType, NfHook, i32),
        rules: Vec<Rule<'a>>,
    ) -> Self {
        Self { name, hook: Some((kind, hook, priority)), rules }
    }

    pub(super) fn object(&self, table: &'a TableName) -> NfListObject<'a> {
        let (kind, hook, priority) = match self.hook {
            Some((kind, hook, priority)) => (Some(kind), Some(hook), Some(priority)),
            None => (None, None, None),
        };
        NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: table.as_str().into(),
            name: self.name.into(),
            _type: kind,
            hook,
            prio: priority,
            policy: self.hook.is_some().then_some(NfChainPolicy::Accept),
            ..Chain::default()
        })
    }
}
