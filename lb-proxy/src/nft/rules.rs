//! The statements of the table's rules.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};

use nftables::expr::{
    BinaryOperation, CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload,
    PayloadField,
};
use nftables::stmt::{JumpTarget, Match, NAT, Operator, Reject, RejectType, Statement, TProxy};

/// FIN, SYN, RST and ACK (RFC 9293 section 3.1).
const FLAGS: u32 = 0x17;
const SYN: u32 = 0x02;
const RST_ACK: u32 = 0x14;

/// A rule of a chain.
pub(super) type Rule<'a> = Vec<Statement<'a>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// The set of the virtual addresses.
    pub(super) fn set(self) -> &'static str {
        match self {
            Self::V4 => "vip4",
            Self::V6 => "vip6",
        }
    }

    fn set_reference(self) -> Expression<'static> {
        text(format!("@{}", self.set()))
    }
}

/// Packets to any virtual address of a family.
pub(super) fn to_vip<'a>(family: Family) -> Statement<'a> {
    equals(field(family.protocol(), "daddr"), family.set_reference())
}

/// Packets to an address.
pub(super) fn to_address<'a>(ip: IpAddr) -> Statement<'a> {
    let ip = ip.to_canonical();
    equals(field(Family::of(ip).protocol(), "daddr"), text(ip.to_string()))
}

/// Packets to an address and TCP port.
pub(super) fn to_endpoint<'a>(endpoint: SocketAddr) -> [Statement<'a>; 2] {
    [to_address(endpoint.ip()), to_port(endpoint.port())]
}

/// Packets to a TCP port.
pub(super) fn to_port<'a>(port: u16) -> Statement<'a> {
    equals(field("tcp", "dport"), Expression::Number(u32::from(port)))
}

/// Packets from a TCP port.
pub(super) fn from_port<'a>(port: u16) -> Statement<'a> {
    equals(field("tcp", "sport"), Expression::Number(u32::from(port)))
}

/// Packets to an address that this node has now. The VIP may currently be another controller's; its packets then only
/// pass through. The addresses of a VRF's members are not in the main table: see [`is_local_to_arrival`].
pub(super) fn is_local<'a>() -> Statement<'a> {
    equals(address_type([FibFlag::Daddr]), text("local".to_owned()))
}

/// Packets to an address of the interface that they arrived by, which may be a member of a VRF.
pub(super) fn is_local_to_arrival<'a>() -> Statement<'a> {
    equals(address_type([FibFlag::Daddr, FibFlag::Iif]), text("local".to_owned()))
}

/// Packets that arrived by a bridge.
pub(super) fn from_bridge<'a>() -> Statement<'a> {
    equals(NamedExpression::Meta(Meta { key: MetaKey::Iifkind }), text("bridge".to_owned()))
}

/// Packets that arrived by the loopback interface.
pub(super) fn from_loopback<'a>() -> Statement<'a> {
    equals(NamedExpression::Meta(Meta { key: MetaKey::Iifname }), text("lo".to_owned()))
}

/// Packets of a connection with a translated destination.
pub(super) fn is_translated<'a>() -> Statement<'a> {
    let status = CT { key: "status".into(), family: None, dir: None };
    Statement::Match(Match {
        left: Expression::Named(NamedExpression::CT(status)),
        right: text("dnat".to_owned()),
        op: Operator::IN,
    })
}

/// Packets that open a connection.
pub(super) fn is_syn<'a>() -> Statement<'a> {
    flags_are(SYN)
}

/// The kernel's answer to a SYN for which no socket listens: a RST with ACK and the sequence number 0 (RFC 9293 section
/// 3.10.7.1). A listening socket never sends that.
pub(super) fn is_refusal<'a>() -> [Statement<'a>; 2] {
    [equals(field("tcp", "sequence"), Expression::Number(0)), flags_are(RST_ACK)]
}

fn flags_are<'a>(flags: u32) -> Statement<'a> {
    let seen = Expression::Named(field("tcp", "flags"));
    let masked = BinaryOperation::AND(seen, Expression::Number(FLAGS));
    Statement::Match(Match {
        left: Expression::BinaryOperation(Box::new(masked)),
        right: Expression::Number(flags),
        op: Operator::EQ,
    })
}

/// `meta mark & M == M`: other software on the node (network plugins) sets further bits on the way.
pub(super) fn has_mark<'a>(mark: NonZeroU32) -> Statement<'a> {
    let value = || Expression::Number(mark.get());
    let seen = Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark }));
    let masked = Expression::BinaryOperation(Box::new(BinaryOperation::AND(seen, value())));
    Statement::Match(Match { left: masked, right: value(), op: Operator::EQ })
}

/// Packets from a virtual address of a family.
pub(super) fn from_vip<'a>(family: Family) -> Statement<'a> {
    equals(field(family.protocol(), "saddr"), family.set_reference())
}

/// Packets from an address that this node does not have, unless it is one of a VRF's member.
pub(super) fn is_foreign<'a>() -> Statement<'a> {
    differs(address_type([FibFlag::Saddr]), text("local".to_owned()))
}

/// Packets from an address that the interface they leave by does not have. What leaves through a VRF visits the output
/// hook twice, first with the VRF as the interface, which has no addresses: that visit does not count.
pub(super) fn is_foreign_to_departure<'a>() -> [Statement<'a>; 2] {
    let to_vrf = NamedExpression::Meta(Meta { key: MetaKey::Oifkind });
    let foreign = differs(address_type([FibFlag::Saddr, FibFlag::Oif]), text("local".to_owned()));
    [foreign, differs(to_vrf, text("vrf".to_owned()))]
}

/// Packets of a family.
pub(super) fn is_family<'a>(family: Family) -> Statement<'a> {
    let name = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    equals(NamedExpression::Meta(Meta { key: MetaKey::Nfproto }), text(name.to_owned()))
}

/// Changes the destination port and thereby precludes a later DNAT. The address is kept: `redirect` would rewrite it to
/// the first address of the arrival interface, and drop the packet where there is none.
pub(super) fn translate<'a>(port: NonZeroU16) -> Statement<'a> {
    let port = Some(Expression::Number(u32::from(port.get())));
    Statement::DNAT(Some(NAT { addr: None, family: None, port, flags: None }))
}

/// Assigns the packet to the socket of its connection, or else to one that listens on the port and has
/// `IP_TRANSPARENT`. Without either the rule ends here.
pub(super) fn assign<'a>(family: Family, port: NonZeroU16) -> Statement<'a> {
    Statement::TProxy(TProxy { family: Some(family.protocol().into()), port: port.get(), addr: None })
}

pub(super) fn jump<'a>(chain: &'static str) -> Statement<'a> {
    Statement::Jump(JumpTarget { target: chain.into() })
}

pub(super) fn reset<'a>() -> Statement<'a> {
    Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)))
}

pub(super) fn address_type<'a, const N: usize>(flags: [FibFlag; N]) -> NamedExpression<'a> {
    NamedExpression::Fib(Fib { result: FibResult::Type, flags: HashSet::from(flags) })
}

pub(super) fn equals<'a>(left: NamedExpression<'a>, right: Expression<'a>) -> Statement<'a> {
    Statement::Match(Match { left: Expression::Named(left), right, op: Operator::EQ })
}

fn differs<'a>(left: NamedExpression<'a>, right: Expression<'a>) -> Statement<'a> {
    Statement::Match(Match { left: Expression::Named(left), right, op: Operator::NEQ })
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
