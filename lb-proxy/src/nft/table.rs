//! What the table contains, and its translation into one batch for `nft -j -f -`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::str::FromStr;

use nftables::batch::Batch;
use nftables::expr::{
    BinaryOperation, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload,
    PayloadField,
};
use nftables::schema::{Chain, NfListObject, Rule, Set, SetType, SetTypeValue};
use nftables::stmt::{Match, NAT, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::director::{self, ANSWERS, DIRECT, Director, MASQUERADE, REFUSE};

/// Priority of the chains that translate: just before the conventional destination NAT (-100) of kube-proxy and the
/// container runtimes. A number, because nft 1.0.6 refuses the name `dstnat` in the output hook.
const PRIORITY: i32 = -105;

pub(super) const PREROUTING: &str = "prerouting";
pub(super) const OUTPUT: &str = "output";
pub(super) const GUARD: &str = "guard";
pub(super) const VIP4: &str = "vip4";
pub(super) const VIP6: &str = "vip6";

/// Longest table name the kernel keeps (`NFT_NAME_MAXLEN` is 256 with its terminator; we stay well below).
const NAME_MAX: usize = 63;

/// Name of an nftables table of ours: 1 to 63 of `a-z A-Z 0-9 _`, not starting with a digit.
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

/// The desired content of our table: connections to `vips` on a redirected port reach the proxy's port on
/// the same address, wherever and only while that address is local. And while it is not, nothing leaves the node in
/// its name: the kernel's own IPv6 goes on sending for sockets whose address is gone.
///
/// Where no proxy listens, the kernel does not refuse: a daemon that crashed leaves its table behind, and the client's
/// next SYN, a second later, meets the next holder of the address, or the daemon's successor.
///
/// The address is kept (`dnat to :PORT`), because `redirect` would rewrite it to the first address of the
/// arrival interface, and drop the packet where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Name of the table in family `inet`.
    pub name: TableName,
    /// The virtual addresses of both families. IPv4-mapped IPv6 addresses count as IPv4.
    pub vips: BTreeSet<IpAddr>,
    /// Service port → port the proxy is bound to.
    pub redirects: BTreeMap<NonZeroU16, NonZeroU16>,
    /// `SO_MARK` of the proxy's own connections, which are never redirected; bits that others add to the
    /// mark do not matter. Without it a proxy that connects to its own VIP talks to itself. The same as
    /// [`crate::Options::mark`], usually [`crate::MARK`].
    pub mark: Option<NonZeroU32>,
    /// What IPVS balances instead of the proxy.
    pub directors: Vec<Director>,
}

#[derive(Clone, Copy)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn set_reference(self) -> String {
        match self {
            Self::V4 => format!("@{VIP4}"),
            Self::V6 => format!("@{VIP6}"),
        }
    }
}

impl Table {
    /// The whole replacement as one transaction: the kernel commits all of it or nothing, so no connection
    /// ever meets a missing table. The first `add` makes the `delete` valid where there is no table yet.
    pub(super) fn replacement(&self) -> Batch<'_> {
        let mut batch = self.name.removal();
        batch.add(NfListObject::Table(self.name.object()));
        batch.add(self.set(VIP4, SetType::Ipv4Addr, Family::V4));
        batch.add(self.set(VIP6, SetType::Ipv6Addr, Family::V6));
        batch.add(self.chain(PREROUTING, NfChainType::NAT, NfHook::Prerouting, PRIORITY));
        batch.add(self.chain(OUTPUT, NfChainType::NAT, NfHook::Output, PRIORITY));
        batch.add(self.chain(GUARD, NfChainType::Filter, NfHook::Output, 0));
        if let Some(mark) = self.mark {
            batch.add(self.rule(OUTPUT, vec![mark_matches(mark), Statement::Return(None)]));
        }
        for director in &self.directors {
            batch.add(self.rule(PREROUTING, director.exemption()));
        }
        for chain in [PREROUTING, OUTPUT] {
            for family in [Family::V4, Family::V6] {
                for (port, bind_port) in &self.redirects {
                    batch.add(self.rule(chain, redirect(family, *port, *bind_port)));
                }
            }
        }
        for family in [Family::V4, Family::V6] {
            batch.add(self.rule(GUARD, silence(family)));
            for bind_port in self.bind_ports() {
                batch.add(self.rule(GUARD, patience(family, bind_port)));
            }
        }
        self.direct(&mut batch);
        batch
    }

    fn direct<'a>(&'a self, batch: &mut Batch<'a>) {
        if self.directors.is_empty() {
            return;
        }
        batch.add(self.chain(DIRECT, NfChainType::Filter, NfHook::Input, director::DIRECT_PRIORITY));
        batch.add(self.chain(
            MASQUERADE,
            NfChainType::NAT,
            NfHook::Postrouting,
            director::MASQUERADE_PRIORITY,
        ));
        batch.add(self.chain(ANSWERS, NfChainType::Filter, NfHook::Prerouting, director::ANSWERS_PRIORITY));
        if self.refusals().next().is_some() {
            batch.add(self.chain(REFUSE, NfChainType::Filter, NfHook::Input, 0));
        }
        for refusal in self.refusals() {
            batch.add(self.rule(REFUSE, refusal));
        }
        for director in &self.directors {
            if let Some(rule) = director.deafness() {
                batch.add(self.rule(ANSWERS, rule));
            }
            if let Some(rule) = director.directed_already() {
                batch.add(self.rule(DIRECT, rule));
            }
            if let Some(rule) = director.marking() {
                batch.add(self.rule(DIRECT, rule));
            }
            if director.masquerade {
                batch.add(self.rule(MASQUERADE, director.masquerading()));
            }
        }
    }

    fn bind_ports(&self) -> BTreeSet<NonZeroU16> {
        self.redirects.values().copied().collect()
    }

    fn refusals(&self) -> impl Iterator<Item = Vec<Statement<'_>>> {
        self.directors.iter().filter_map(Director::refusal)
    }

    /// The chains that [`Self::replacement`] makes.
    pub(super) fn chain_names(&self) -> impl Iterator<Item = &'static str> {
        let directing = (!self.directors.is_empty()).then_some([DIRECT, MASQUERADE, ANSWERS]);
        let refusing = self.refusals().next().map(|_| REFUSE);
        [PREROUTING, OUTPUT, GUARD].into_iter().chain(directing.into_iter().flatten()).chain(refusing)
    }

    /// How many rules [`Self::replacement`] makes.
    pub(super) fn rule_count(&self) -> usize {
        let directing = |director: &Director| {
            let optional = [
                director.marking().is_some(),
                director.masquerade,
                !director.peers.is_empty(),
                !director.from.is_empty(),
            ];
            1 + optional.into_iter().filter(|there| *there).count()
        };
        let directing: usize = self.directors.iter().map(directing).sum();
        let guarding = 2 + 2 * self.bind_ports().len();
        let redirecting = 4 * self.redirects.len();
        usize::from(self.mark.is_some()) + redirecting + guarding + directing + self.refusals().count()
    }

    /// How many addresses both sets hold together.
    pub(super) fn element_count(&self) -> usize {
        self.vips.iter().map(IpAddr::to_canonical).collect::<BTreeSet<_>>().len()
    }

    fn set(&self, name: &'static str, set_type: SetType, family: Family) -> NfListObject<'_> {
        let elements: BTreeSet<IpAddr> = self
            .vips
            .iter()
            .map(IpAddr::to_canonical)
            .filter(|ip| matches!((family, ip), (Family::V4, IpAddr::V4(_)) | (Family::V6, IpAddr::V6(_))))
            .collect();
        let elements: Vec<_> = elements.iter().map(|ip| text(ip.to_string())).collect();
        NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            name: name.into(),
            set_type: SetTypeValue::Single(set_type),
            elem: (!elements.is_empty()).then(|| elements.into()),
            ..Set::default()
        }))
    }

    fn chain(&self, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) -> NfListObject<'_> {
        NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        })
    }

    fn rule<'a>(&'a self, chain: &'static str, statements: Vec<Statement<'a>>) -> NfListObject<'a> {
        NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            chain: chain.into(),
            expr: statements.into(),
            ..Rule::default()
        })
    }
}

impl TableName {
    /// A transaction that leaves no table of this name, whether there was one or not.
    pub(super) fn removal(&self) -> Batch<'_> {
        let mut batch = Batch::new();
        batch.add(NfListObject::Table(self.object()));
        batch.delete(NfListObject::Table(self.object()));
        batch
    }

    fn object(&self) -> nftables::schema::Table<'_> {
        nftables::schema::Table { family: NfFamily::INet, name: self.as_str().into(), handle: None }
    }
}

fn redirect<'a>(family: Family, port: NonZeroU16, bind_port: NonZeroU16) -> Vec<Statement<'a>> {
    vec![
        equals(field(family.protocol(), "daddr"), text(family.set_reference())),
        equals(field("tcp", "dport"), Expression::Number(u32::from(port.get()))),
        // The VIP may be another controller's at the moment; then the packet only passes through.
        equals(address_type(FibFlag::Daddr), text("local".to_owned())),
        Statement::DNAT(Some(NAT {
            addr: None,
            family: None,
            port: Some(Expression::Number(u32::from(bind_port.get()))),
            flags: None,
        })),
    ]
}

/// Drops what this node sends from a VIP that it does not have.
fn silence<'a>(family: Family) -> Vec<Statement<'a>> {
    vec![
        equals(field(family.protocol(), "saddr"), text(family.set_reference())),
        Statement::Match(Match {
            left: Expression::Named(address_type(FibFlag::Saddr)),
            right: text("local".to_owned()),
            op: Operator::NEQ,
        }),
        Statement::Drop(None),
    ]
}

/// Drops the kernel's answer to a SYN for which no proxy listens: a RST with ACK and the sequence number 0 (RFC 9293
/// section 3.10.7.1). Whoever listens never sends that.
fn patience<'a>(family: Family, bind_port: NonZeroU16) -> Vec<Statement<'a>> {
    /// FIN, SYN, RST and ACK (RFC 9293 section 3.1).
    const LOOKED_AT: u32 = 0x17;
    const RST_ACK: u32 = 0x14;
    let flags = Expression::Named(field("tcp", "flags"));
    let masked = BinaryOperation::AND(flags, Expression::Number(LOOKED_AT));
    vec![
        equals(field(family.protocol(), "saddr"), text(family.set_reference())),
        equals(field("tcp", "sport"), Expression::Number(u32::from(bind_port.get()))),
        equals(field("tcp", "sequence"), Expression::Number(0)),
        Statement::Match(Match {
            left: Expression::BinaryOperation(Box::new(masked)),
            right: Expression::Number(RST_ACK),
            op: Operator::EQ,
        }),
        Statement::Drop(None),
    ]
}

pub(super) fn address_type<'a>(flag: FibFlag) -> NamedExpression<'a> {
    NamedExpression::Fib(Fib { result: FibResult::Type, flags: HashSet::from([flag]) })
}

/// `meta mark & M == M`: other software on the node (network plugins) sets further bits on the way.
fn mark_matches<'a>(mark: NonZeroU32) -> Statement<'a> {
    let value = || Expression::Number(mark.get());
    let seen = Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark }));
    let masked = Expression::BinaryOperation(Box::new(BinaryOperation::AND(seen, value())));
    Statement::Match(Match { left: masked, right: value(), op: Operator::EQ })
}

pub(super) fn equals<'a>(left: NamedExpression<'a>, right: Expression<'a>) -> Statement<'a> {
    Statement::Match(Match { left: Expression::Named(left), right, op: Operator::EQ })
}

pub(super) fn field<'a>(protocol: &'static str, field: &'static str) -> NamedExpression<'a> {
    NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    }))
}

pub(super) fn text<'a>(value: String) -> Expression<'a> {
    Expression::String(Cow::Owned(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    fn table() -> Table {
        Table {
            name: TableName::default(),
            vips: ["10.0.0.100", "::ffff:10.0.0.100", "fd00::100"].map(|ip| ip.parse().unwrap()).into(),
            redirects: BTreeMap::from([(port(6443), port(6444))]),
            mark: NonZeroU32::new(crate::MARK),
            directors: Vec::new(),
        }
    }

    #[test]
    fn replacement_is_one_batch_that_starts_from_nothing() {
        let json = serde_json::to_value(table().replacement().to_nftables()).unwrap();
        let commands = json["nftables"].as_array().unwrap();
        let own = serde_json::json!({"table": {"family": "inet", "name": "cplb"}});
        assert_eq!(commands[0], serde_json::json!({"add": own}));
        assert_eq!(commands[1], serde_json::json!({"delete": own}));
        assert_eq!(commands[2], serde_json::json!({"add": own}));
        let rules: Vec<_> = commands.iter().filter(|c| !c["add"]["rule"].is_null()).collect();
        assert_eq!(rules.len(), table().rule_count());
        assert_eq!(rules[0]["add"]["rule"]["chain"], "output", "the mark is looked at first");
        assert_eq!(
            rules[1]["add"]["rule"],
            serde_json::json!({"family": "inet", "table": "cplb", "chain": "prerouting", "expr": [
                {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "@vip4"}},
                {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 6443}},
                {"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}},
                {"dnat": {"port": 6444}},
            ]})
        );
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let table = table();
        assert_eq!(table.element_count(), 2);
        let json = serde_json::to_value(table.replacement().to_nftables()).unwrap();
        assert_eq!(json["nftables"][3]["add"]["set"]["elem"], serde_json::json!(["10.0.0.100"]));
        assert_eq!(json["nftables"][4]["add"]["set"]["elem"], serde_json::json!(["fd00::100"]));
    }

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
