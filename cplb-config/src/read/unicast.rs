//! `unicastSourceIP` and `unicastPeers`.

use std::net::IpAddr;

use crate::model::{Unicast, UnicastPeers};
use crate::walk::{Field, Finding, Table};
use crate::yaml::Value;

use super::network::{Families, unicast_address};
use super::{Dialect, Placed, Reported};

/// The word for the controllers that are known or found.
const AUTO: &str = "auto";
/// Each is sent every advertisement.
const MOST_PEERS: usize = 255;

/// The unicast settings of an instance. The addresses are compared with others even where the rest is wrong.
#[derive(Debug)]
pub(super) struct UnicastDraft {
    pub(super) source: Option<Placed<IpAddr>>,
    pub(super) peers: Vec<Placed<IpAddr>>,
    /// The place of the list, or of `auto`.
    pub(super) at: Option<Placed<()>>,
    /// `None` for multicast.
    pub(super) unicast: Result<Option<Unicast>, Reported>,
}

pub(super) fn unicast(table: &Table<'_>, dialect: Dialect, families: Families) -> UnicastDraft {
    let mut draft = UnicastDraft { source: None, peers: Vec::new(), at: None, unicast: Ok(None) };
    draft.unicast = read(table, dialect, families, &mut draft);
    draft
}

fn read(
    table: &Table<'_>,
    dialect: Dialect,
    families: Families,
    draft: &mut UnicastDraft,
) -> Result<Option<Unicast>, Reported> {
    let source_field = table.field("unicastSourceIP").filter(|field| field.child.text() != Some(""));
    let source = source_field.as_ref().map(|field| unicast_address(field).ok_or(Reported)).transpose();
    draft.source = source.clone().ok().flatten();
    let list = table.field("unicastPeers");
    if let Some((list, finding)) = list.as_ref().and_then(|list| Some((list, near_auto(list, dialect)?))) {
        list.error(finding);
        return Err(Reported);
    }
    draft.at = list.as_ref().map(|list| Placed::new((), list));
    if dialect == Dialect::Native && list.as_ref().is_some_and(|field| field.child.text() == Some(AUTO)) {
        let source = source?;
        if !check_source(source_field.as_ref(), source.as_ref(), families) {
            return Err(Reported);
        }
        return Ok(Some(Unicast { source: source.map(|source| source.value), peers: UnicastPeers::Auto }));
    }
    let items = match &list {
        Some(list) => list.items_up_to(MOST_PEERS, "list the other controllers only").ok_or(Reported)?,
        None => Vec::new(),
    };
    let Some(list) = list.filter(|_| !items.is_empty()) else {
        draft.at = None;
        if let Some(field) = &source_field {
            let help = "add `unicastPeers:` with the other controllers, or remove it";
            let message = "unicastSourceIP has no effect without unicastPeers";
            field.warn(Finding::new("unicast-unused", message, help));
        }
        return source.map(|_| None);
    };
    let mut sound = true;
    if source_field.is_none() && dialect == Dialect::K0s {
        let help = "add `unicastSourceIP:` with this node's own address";
        let finding = Finding::new("unicast-source", "unicastPeers need unicastSourceIP", help);
        list.out.error(&list.path, list.key, finding);
        sound = false;
    }
    let read: Vec<_> = items.iter().map(|item| (item, unicast_address(item))).collect();
    sound &= read.iter().all(|(_, peer)| peer.is_some());
    let peers: Vec<_> = read.into_iter().filter_map(|(item, peer)| Some((item, peer?))).collect();
    draft.peers = peers.iter().map(|(_, peer)| peer.clone()).collect();
    let source = source?;
    for (index, (item, peer)) in peers.iter().enumerate() {
        if let Some(finding) = peer_finding(peer.value, &peers[..index], source.as_ref(), dialect, families) {
            item.error(finding);
            sound = false;
        }
    }
    // One file may serve all nodes, so this node stands among the peers.
    let own = source.as_ref().map(|source| source.value);
    let peers: Vec<IpAddr> =
        peers.into_iter().map(|(_, peer)| peer.value).filter(|peer| Some(*peer) != own).collect();
    if peers.is_empty() && sound {
        let help = "list the other controllers, or remove it";
        list.error(Finding::new("unicast-self", "unicastPeers name no router but this one", help));
        sound = false;
    }
    sound &= check_families(&list, source_field.as_ref(), source.as_ref(), &peers, families);
    let unicast = Unicast { source: source.map(|source| source.value), peers: UnicastPeers::Listed(peers) };
    if sound { Ok(Some(unicast)) } else { Err(Reported) }
}

/// A finding for what is meant as `auto` and is not.
fn near_auto(list: &Field<'_>, dialect: Dialect) -> Option<Finding> {
    let is_auto = |text: Option<&str>| text.is_some_and(|text| text.eq_ignore_ascii_case(AUTO));
    let text = list.child.text().filter(|text| !text.is_empty() && !list.child.is_null());
    let listed = match &list.child.node.value {
        Value::Sequence(items) => items.iter().any(|item| is_auto(item.text())),
        _ => false,
    };
    let (message, help) = match (dialect, text) {
        (Dialect::Native, Some(AUTO)) => return None,
        (Dialect::K0s, _) if is_auto(text) || listed => (
            "`auto` is known in native documents only".to_owned(),
            "list the other controllers, or use the native document that `cplb check` prints for this file",
        ),
        (Dialect::Native, Some(text)) => (
            format!("`{text}` is neither `auto` nor a list of addresses"),
            "write `unicastPeers: auto`, or a list such as `[10.0.0.12, 10.0.0.13]`",
        ),
        (Dialect::Native, None) if listed => {
            ("`auto` is no address of a list".to_owned(), "write `unicastPeers: auto`, without a list")
        }
        _ => return None,
    };
    Some(Finding::new("unicast-auto", message, help))
}

fn peer_finding(
    peer: IpAddr,
    earlier: &[(&Field<'_>, Placed<IpAddr>)],
    source: Option<&Placed<IpAddr>>,
    dialect: Dialect,
    families: Families,
) -> Option<Finding> {
    // k0s refuses it.
    if dialect == Dialect::K0s && source.is_some_and(|source| source.value == peer) {
        let help = "list only the other controllers";
        return Some(Finding::new("unicast-self", format!("{peer} is unicastSourceIP itself"), help));
    }
    if let Some((_, first)) = earlier.iter().find(|(_, other)| other.value == peer) {
        let message = format!("{peer} was already given on line {}", first.at.line);
        return Some(Finding::new("duplicate-peer", message, "keep one of them"));
    }
    let (family, other, present) =
        if peer.is_ipv4() { ("IPv4", "IPv6", families.v4) } else { ("IPv6", "IPv4", families.v6) };
    if !present && (families.v4 || families.v6) {
        let message = format!("an {family} peer cannot take part in the election of {other} addresses");
        return Some(Finding::new("unicast-family", message, format!("write the peer's {other} address")));
    }
    None
}

/// IPv4 decides where an instance has both families, so it must reach the peers.
fn check_families(
    list: &Field<'_>,
    source_field: Option<&Field<'_>>,
    source: Option<&Placed<IpAddr>>,
    peers: &[IpAddr],
    families: Families,
) -> bool {
    if !families.v4 && !families.v6 {
        return true;
    }
    let deciding = peers.iter().filter(|peer| peer.is_ipv4() == families.v4).count();
    let mut sound = check_source(source_field, source, families);
    if families.v4 && families.v6 && deciding == 0 && !peers.is_empty() {
        let help = "list the peers' IPv4 addresses; IPv6 follows";
        list.error(Finding::new(
            "unicast-family",
            "IPv4 decides this instance, and no peer has an IPv4 address",
            help,
        ));
        sound = false;
    }
    if families.v4 && families.v6 && deciding == peers.len() {
        let message = "no peer has an IPv6 address, so the IPv6 virtual IPs are never advertised";
        let help = "harmless among cplb nodes, where IPv6 follows IPv4; for other routers add the peers' IPv6 addresses";
        list.warn(Finding::new("unicast-ipv6", message, help));
    }
    sound
}

/// The source is of the family that decides.
fn check_source(field: Option<&Field<'_>>, source: Option<&Placed<IpAddr>>, families: Families) -> bool {
    let family = if families.v4 { "IPv4" } else { "IPv6" };
    let (Some(field), Some(source)) = (field, source) else { return true };
    if source.value.is_ipv4() == families.v4 || (!families.v4 && !families.v6) {
        return true;
    }
    let message = format!("{} cannot be the source of {family} advertisements", source.value);
    field.error(Finding::new("unicast-family", message, format!("write this node's {family} address")));
    false
}
