//! Rules for virtual addresses that the kernel's IPVS balances.
//!
//! Every node accepts such an address, on a dummy link, so that it can be a real server; but only the node that holds
//! it may direct. The address itself identifies that node: IPVS matches by a mark, which a packet gets only where the
//! address is on the interface that the packet arrived by. When the kernel ends the lease of the address, this node
//! directs no more packets, even if all processes of the daemon are dead.
//!
//! A server that is probed for its acceptance of the address replies from that address, to this node, which has the
//! address too. The prober receives the reply by a packet socket. The kernel would log it as a forgery (IPv4, with
//! `log_martians`) or reset a connection that it does not know (IPv6), so the reply is dropped before it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};

use nftables::expr::{BinaryOperation, Expression, FibFlag, Meta, MetaKey, NamedExpression, SetItem};
use nftables::stmt::{Mangle, Match, Operator, Statement};
use nftables::types::{NfChainType, NfHook};

use super::chain::ChainPlan;
use super::rules::{
    Family, Rule, address_type, equals, field, is_local, is_local_to_arrival, reset, text, to_endpoint,
};
use crate::mark::DIRECTOR_MASK;

const IPVS_MARK: &str = "ipvs_mark";
const IPVS_MASQUERADE: &str = "ipvs_masquerade";
const REJECT_PROBES: &str = "reject_probes";
const DROP_PROBE_REPLIES: &str = "drop_probe_replies";

/// Just before IPVS handles input (98, `NF_IP_PRI_NAT_SRC` - 2), so that no other rule changes the mark in between.
const MARK_PRIORITY: i32 = 90;
/// The conventional priority (`raw`) of rules before connection tracking and routing.
const RAW_PRIORITY: i32 = -300;
/// The conventional priority of source NAT.
const MASQUERADE_PRIORITY: i32 = 100;

/// Connections to one port of a virtual address that IPVS balances, by an IPVS service that matches [`Self::mark`].
///
/// Connections from other interfaces than [`Self::from`], and those of this node itself, still go to the proxy if the
/// table has a redirect for the port: such clients need a healthy backend although the address is local on every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Director {
    /// The virtual address.
    pub vip: IpAddr,
    /// Its TCP port.
    pub port: NonZeroU16,
    /// The mark that IPVS matches, one of [`crate::director_marks`].
    pub mark: NonZeroU32,
    /// The interfaces that clients, directors and servers are behind: the one that carries the address, and tunnels.
    /// Empty means any, and that servers are not probed.
    pub from: BTreeSet<String>,
    /// The place of the address that makes this node direct.
    pub reach: Reach,
    /// Link-layer addresses of the other nodes that may direct. Packets that they send to the virtual address are
    /// directed already, so they are for the server on this node: two nodes that both believe they hold the address do
    /// not send packets round in circles.
    pub peers: BTreeSet<[u8; 6]>,
    /// Rewrites the source of the packets that IPVS forwards to the node's own address, so that servers answer through
    /// this node (IPVS's forwarding method NAT). Needs `net.ipv4.vs.conntrack`.
    pub masquerade: bool,
    /// Resets new connections to the virtual address that have no hop left, whether they come directly or in a tunnel:
    /// those are the probes of other nodes. By this a node that stops being a real server informs them, while
    /// connections of clients continue.
    pub departing: bool,
}

/// Returns the chains that directors need besides those of every table.
pub(super) fn chains(directors: &[Director]) -> Vec<ChainPlan<'_>> {
    use NfChainType::{Filter, NAT};
    fn of<'a>(
        directors: &'a [Director],
        rules: impl Fn(&'a Director) -> Vec<Option<Rule<'a>>>,
    ) -> Vec<Rule<'a>> {
        directors.iter().flat_map(rules).flatten().collect()
    }
    if directors.is_empty() {
        return Vec::new();
    }
    let marking = of(directors, |it| vec![it.peer_exemption(), it.marking()]);
    let mut chains = vec![
        ChainPlan::new(IPVS_MARK, (Filter, NfHook::Input, MARK_PRIORITY), marking),
        ChainPlan::new(
            IPVS_MASQUERADE,
            (NAT, NfHook::Postrouting, MASQUERADE_PRIORITY),
            of(directors, |it| vec![it.masquerading()]),
        ),
        ChainPlan::new(
            DROP_PROBE_REPLIES,
            (Filter, NfHook::Prerouting, RAW_PRIORITY),
            of(directors, |it| vec![it.probe_reply_drop()]),
        ),
    ];
    let refusals = of(directors, |it| vec![it.probe_rejection()]);
    if !refusals.is_empty() {
        chains.push(ChainPlan::new(REJECT_PROBES, (Filter, NfHook::Input, 0), refusals));
    }
    chains
}

/// The place of an address that makes this node direct the packets sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// On the interface that the packet arrived by: for addresses that every node has on a dummy link.
    #[default]
    ArrivalInterface,
    /// On any interface: for addresses that other software puts on the node that is to direct.
    Node,
    /// On any interface, and only for packets that arrive by [`Director::from`]: for addresses that other software also
    /// puts on nodes that only accept them. Without [`Director::from`] the node does not direct.
    From,
}

impl Director {
    fn family(&self) -> Family {
        Family::of(self.vip.to_canonical())
    }

    pub(super) fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.vip.to_canonical(), self.port.get())
    }

    fn target(&self) -> [Statement<'_>; 2] {
        to_endpoint(self.endpoint())
    }

    /// The rule before the redirects to the proxy, for packets to IPVS or to a server on this node.
    pub(super) fn proxy_exemption(&self) -> Vec<Statement<'_>> {
        let mut rule = Vec::from_iter(self.arrival());
        rule.extend(self.target());
        rule.push(Statement::Return(None));
        rule
    }

    /// The rule before the marking, for packets that another director has directed.
    fn peer_exemption(&self) -> Option<Vec<Statement<'_>>> {
        if self.peers.is_empty() {
            return None;
        }
        let address = |mac: &[u8; 6]| mac.map(|octet| format!("{octet:02x}")).join(":");
        let peers = self.peers.iter().map(|mac| SetItem::Element(text(address(mac)))).collect();
        let mut rule = Vec::from(self.target());
        rule.push(equals(field("ether", "saddr"), Expression::Named(NamedExpression::Set(peers))));
        rule.push(Statement::Return(None));
        Some(rule)
    }

    /// Matches packets that arrived by an interface of [`Self::from`]; `None` if any will do.
    fn arrival(&self) -> Option<Statement<'_>> {
        if self.from.is_empty() {
            return None;
        }
        let names = self.from.iter().map(|name| SetItem::Element(text(name.clone()))).collect();
        let interface = NamedExpression::Meta(Meta { key: MetaKey::Iifname });
        Some(equals(interface, Expression::Named(NamedExpression::Set(names))))
    }

    /// The rule that drops replies of probed servers, and forgeries: no other node that has the address sends from it
    /// to this one. `None` without [`Self::from`].
    ///
    /// A node that does not have the address may be connected to it, elsewhere; and one that has it may forward the
    /// packets of servers to clients.
    fn probe_reply_drop(&self) -> Option<Vec<Statement<'_>>> {
        let local = |flag| equals(address_type([flag]), text("local".to_owned()));
        Some(vec![
            self.arrival()?,
            equals(field(self.family().protocol(), "saddr"), text(self.vip.to_canonical().to_string())),
            equals(field("tcp", "sport"), Expression::Number(u32::from(self.port.get()))),
            local(FibFlag::Saddr),
            local(FibFlag::Daddr),
            Statement::Drop(None),
        ])
    }

    /// The rule that marks packets for IPVS; `None` if this node does not direct.
    fn marking(&self) -> Option<Vec<Statement<'_>>> {
        let (arrival, local) = match self.reach {
            Reach::ArrivalInterface => (None, is_local_to_arrival()),
            Reach::Node => (None, is_local()),
            Reach::From => (Some(self.arrival()?), is_local()),
        };
        let mut rule = Vec::from_iter(arrival);
        rule.extend(self.target());
        // IPVS could not forward such a packet. Other nodes use that to probe the server here.
        rule.push(Statement::Match(Match {
            left: Expression::Named(self.hops()),
            right: Expression::Number(1),
            op: Operator::NEQ,
        }));
        rule.push(local);
        rule.push(Statement::Mangle(Mangle {
            key: Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark })),
            value: Expression::Number(self.mark.get()),
        }));
        Some(rule)
    }

    fn probe_rejection(&self) -> Option<Vec<Statement<'_>>> {
        if !self.departing {
            return None;
        }
        let flags = Expression::Named(field("tcp", "flags"));
        let of =
            |names: &[&str]| Expression::List(names.iter().map(|name| text((*name).to_owned())).collect());
        let opening = Expression::BinaryOperation(Box::new(BinaryOperation::AND(flags, of(&["syn", "ack"]))));
        let mut rule = Vec::from(self.target());
        rule.push(equals(self.hops(), Expression::Number(1)));
        rule.push(Statement::Match(Match { left: opening, right: text("syn".to_owned()), op: Operator::EQ }));
        rule.push(reset());
        Some(rule)
    }

    fn hops(&self) -> NamedExpression<'static> {
        match self.family() {
            Family::V4 => field("ip", "ttl"),
            Family::V6 => field("ip6", "hoplimit"),
        }
    }

    fn masquerading(&self) -> Option<Vec<Statement<'_>>> {
        if !self.masquerade {
            return None;
        }
        let seen = Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark }));
        let mask = Expression::Number(DIRECTOR_MASK);
        // Other software may have set bits of its own on the way.
        let masked = Expression::BinaryOperation(Box::new(BinaryOperation::AND(seen, mask)));
        let right = Expression::Number(self.mark.get());
        let is_ours = Statement::Match(Match { left: masked, right, op: Operator::EQ });
        Some(vec![is_ours, Statement::Masquerade(None)])
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
            peers: BTreeSet::new(),
            masquerade: true,
            departing: false,
        }
    }

    fn meta(key: &str) -> serde_json::Value {
        json!({"meta": {"key": key}})
    }

    fn equal(left: &serde_json::Value, right: &serde_json::Value) -> serde_json::Value {
        json!({"match": {"op": "==", "left": left, "right": right}})
    }

    #[test]
    fn only_packets_arriving_on_the_interface_of_the_address_are_marked() {
        let director = director();
        let rule = serde_json::to_value(director.marking()).unwrap();
        let payload =
            |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
        assert_eq!(rule[0], equal(&payload("ip", "daddr"), &json!("10.0.0.100")));
        assert_eq!(rule[1], equal(&payload("tcp", "dport"), &json!(6443)));
        let hops = json!({"match": {"op": "!=", "left": payload("ip", "ttl"), "right": 1}});
        assert_eq!(rule[2], hops);
        let mut flags: Vec<_> = rule[3]["match"]["left"]["fib"]["flags"].as_array().unwrap().clone();
        flags.sort_by_key(ToString::to_string);
        assert_eq!(flags, ["daddr", "iif"]);
        assert_eq!(rule[4], json!({"mangle": {"key": meta("mark"), "value": 0x1001}}));
        let anywhere = Director { reach: Reach::Node, ..director };
        let rule = serde_json::to_value(anywhere.marking()).unwrap();
        assert_eq!(rule[3]["match"]["left"]["fib"]["flags"], json!(["daddr"]));
    }

    #[test]
    fn packets_of_another_director_are_not_directed_again() {
        assert!(director().peer_exemption().is_none());
        let director = Director { peers: [[2, 0, 0, 9, 0, 0x0c]].into(), ..director() };
        let rule = serde_json::to_value(director.peer_exemption().unwrap()).unwrap();
        assert_eq!(rule[2]["match"]["right"], json!({"set": ["02:00:00:09:00:0c"]}));
        assert_eq!(rule[3], json!({"return": null}));
    }

    #[test]
    fn packets_for_ipvs_or_a_local_server_are_not_redirected() {
        let director = director();
        let rule = serde_json::to_value(director.proxy_exemption()).unwrap();
        assert_eq!(rule[0], equal(&meta("iifname"), &json!({"set": ["cplbtun4", "eth0"]})));
        assert_eq!(rule[3], json!({"return": null}));
        let from_anywhere = Director { from: BTreeSet::new(), ..director };
        assert_eq!(from_anywhere.proxy_exemption().len(), 3);
    }

    #[test]
    fn only_new_connections_without_a_hop_left_are_rejected() {
        assert!(director().probe_rejection().is_none());
        let director = Director { departing: true, ..director() };
        let rule = serde_json::to_value(director.probe_rejection().unwrap()).unwrap();
        let ttl = json!({"payload": {"protocol": "ip", "field": "ttl"}});
        assert_eq!(rule[2], equal(&ttl, &json!(1)));
        assert_eq!(rule[3]["match"]["right"], "syn");
        assert_eq!(rule[4], json!({"reject": {"type": "tcp reset"}}));
    }

    #[test]
    fn probe_replies_are_dropped_only_from_and_to_local_addresses() {
        let director = director();
        let rule = serde_json::to_value(director.probe_reply_drop()).unwrap();
        let payload =
            |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
        let local = |flag: &str| equal(&json!({"fib": {"result": "type", "flags": [flag]}}), &json!("local"));
        assert_eq!(rule[0], equal(&meta("iifname"), &json!({"set": ["cplbtun4", "eth0"]})));
        assert_eq!(rule[1], equal(&payload("ip", "saddr"), &json!("10.0.0.100")));
        assert_eq!(rule[2], equal(&payload("tcp", "sport"), &json!(6443)));
        assert_eq!((&rule[3], &rule[4]), (&local("saddr"), &local("daddr")));
        assert_eq!(rule[5], json!({"drop": null}));
        assert_eq!(Director { from: BTreeSet::new(), ..director }.probe_reply_drop(), None);
    }

    #[test]
    fn only_the_directors_own_packets_are_masqueraded() {
        let director = director();
        let rule = serde_json::to_value(director.masquerading()).unwrap();
        assert_eq!(rule[0], equal(&json!({"&": [meta("mark"), 0x107f]}), &json!(0x1001)));
        assert_eq!(rule[1], json!({"masquerade": null}));
    }
}
