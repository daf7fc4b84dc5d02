//! Rules for virtual addresses that the kernel's IPVS balances.
//!
//! Every node accepts such an address, on a dummy link, so that it can be a real server; but only the node that holds it
//! may direct. The address itself says which one that is: IPVS matches by a mark, which a packet gets only where the
//! address is on the interface that the packet arrived by. When the kernel ends the lease of the address, this node
//! directs no more packet, whether any process of ours lives or not.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};

use nftables::expr::{
    BinaryOperation, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, SetItem,
};
use nftables::stmt::{Mangle, Match, Operator, Statement};

use super::table::{Family, equals, field, text};
use crate::mark::DIRECTOR_MASK;

pub(super) const DIRECT: &str = "direct";
pub(super) const MASQUERADE: &str = "forwarded";

/// Just before IPVS looks at what this node receives (98, `NF_IP_PRI_NAT_SRC` - 2), so that nobody changes the mark in
/// between.
pub(super) const DIRECT_PRIORITY: i32 = 90;
/// The conventional place of source NAT.
pub(super) const MASQUERADE_PRIORITY: i32 = 100;

/// Connections to one port of a virtual address that IPVS balances, by an IPVS service that matches [`Self::mark`].
///
/// What comes from elsewhere than [`Self::from`], and what this node itself connects to, still goes to the proxy if the
/// table has a redirect for the port: such clients need a healthy backend although the address is local on every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Director {
    /// The virtual address.
    pub vip: IpAddr,
    /// Its TCP port.
    pub port: NonZeroU16,
    /// What IPVS matches, one of [`crate::director_marks`].
    pub mark: NonZeroU32,
    /// The interfaces that clients and directors are behind: the one that carries the address, and tunnels. Empty means
    /// any.
    pub from: BTreeSet<String>,
    /// Where the address must be for this node to direct.
    pub reach: Reach,
    /// Rewrite the source of what IPVS forwards to the node's own address, so that servers answer through this node (IPVS's
    /// forwarding method NAT). Needs `net.ipv4.vs.conntrack`.
    pub masquerade: bool,
}

/// Where an address must be for this node to direct what is sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// On the interface that the packet arrived by: for addresses that every node has on a dummy link.
    #[default]
    ArrivalInterface,
    /// On any interface: for addresses that somebody else puts on the node that is to direct.
    Node,
}

impl Director {
    fn family(&self) -> Family {
        Family::of(self.vip.to_canonical())
    }

    fn target(&self) -> [Statement<'_>; 2] {
        [
            equals(field(self.family().protocol(), "daddr"), text(self.vip.to_canonical().to_string())),
            equals(field("tcp", "dport"), Expression::Number(u32::from(self.port.get()))),
        ]
    }

    /// Before the redirects to the proxy: what is for IPVS, or for a server on this node.
    pub(super) fn exemption(&self) -> Vec<Statement<'_>> {
        let mut rule = Vec::new();
        if !self.from.is_empty() {
            let names = self.from.iter().map(|name| SetItem::Element(text(name.clone()))).collect();
            let interface = NamedExpression::Meta(Meta { key: MetaKey::Iifname });
            rule.push(equals(interface, Expression::Named(NamedExpression::Set(names))));
        }
        rule.extend(self.target());
        rule.push(Statement::Return(None));
        rule
    }

    pub(super) fn marking(&self) -> Vec<Statement<'_>> {
        let flags = match self.reach {
            Reach::ArrivalInterface => HashSet::from([FibFlag::Daddr, FibFlag::Iif]),
            Reach::Node => HashSet::from([FibFlag::Daddr]),
        };
        let local = NamedExpression::Fib(Fib { result: FibResult::Type, flags });
        let mut rule = Vec::from(self.target());
        rule.push(equals(local, text("local".to_owned())));
        rule.push(Statement::Mangle(Mangle {
            key: Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark })),
            value: Expression::Number(self.mark.get()),
        }));
        rule
    }

    pub(super) fn masquerading(&self) -> Vec<Statement<'_>> {
        let seen = Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark }));
        let mask = Expression::Number(DIRECTOR_MASK);
        // Other software may have set bits of its own on the way.
        let masked = Expression::BinaryOperation(Box::new(BinaryOperation::AND(seen, mask)));
        let right = Expression::Number(self.mark.get());
        vec![Statement::Match(Match { left: masked, right, op: Operator::EQ }), Statement::Masquerade(None)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn director() -> Director {
        Director {
            vip: "::ffff:10.0.0.100".parse().unwrap(),
            port: NonZeroU16::new(6443).unwrap(),
            mark: NonZeroU32::new(0x1001).unwrap(),
            from: ["eth0".to_owned(), "cplbtun4".to_owned()].into(),
            reach: Reach::ArrivalInterface,
            masquerade: true,
        }
    }

    fn meta(key: &str) -> serde_json::Value {
        json!({"meta": {"key": key}})
    }

    fn equal(left: &serde_json::Value, right: &serde_json::Value) -> serde_json::Value {
        json!({"match": {"op": "==", "left": left, "right": right}})
    }

    #[test]
    fn only_what_arrives_where_the_address_is_gets_the_mark() {
        let director = director();
        let rule = serde_json::to_value(director.marking()).unwrap();
        let payload =
            |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
        assert_eq!(rule[0], equal(&payload("ip", "daddr"), &json!("10.0.0.100")));
        assert_eq!(rule[1], equal(&payload("tcp", "dport"), &json!(6443)));
        let mut flags: Vec<_> = rule[2]["match"]["left"]["fib"]["flags"].as_array().unwrap().clone();
        flags.sort_by_key(ToString::to_string);
        assert_eq!(flags, ["daddr", "iif"]);
        assert_eq!(rule[3], json!({"mangle": {"key": meta("mark"), "value": 0x1001}}));
        let anywhere = Director { reach: Reach::Node, ..director };
        let rule = serde_json::to_value(anywhere.marking()).unwrap();
        assert_eq!(rule[2]["match"]["left"]["fib"]["flags"], json!(["daddr"]));
    }

    #[test]
    fn packets_for_ipvs_or_a_server_here_are_left_out_of_the_redirect() {
        let director = director();
        let rule = serde_json::to_value(director.exemption()).unwrap();
        assert_eq!(rule[0], equal(&meta("iifname"), &json!({"set": ["cplbtun4", "eth0"]})));
        assert_eq!(rule[3], json!({"return": null}));
        let from_anywhere = Director { from: BTreeSet::new(), ..director };
        assert_eq!(from_anywhere.exemption().len(), 3);
    }

    #[test]
    fn only_the_directors_own_packets_are_masqueraded() {
        let director = director();
        let rule = serde_json::to_value(director.masquerading()).unwrap();
        assert_eq!(rule[0], equal(&json!({"&": [meta("mark"), 0x107f]}), &json!(0x1001)));
        assert_eq!(rule[1], json!({"masquerade": null}));
    }
}
