//! The virtual IPs with the state of every node of the group.

use maud::{Markup, html};

use crate::history::{Names, Term, WallTime};
use crate::status::schema::{Instance, Peer, PeerInstance, Status};

use super::text::{age, age_of};
use super::{View, badge, latest};

/// A node, as a row of the table of an instance.
struct Row<'a> {
    node: &'a str,
    address: &'a str,
    state: &'a str,
    /// In this state, in seconds, where that is known.
    since: Option<f64>,
    priority: u8,
    serving: Result<(), Option<&'a str>>,
    /// The age of its last report; `None` for this node.
    heard: Option<f64>,
    /// The rest of its claim on the virtual IPs in seconds; 0 without one.
    claim: f64,
}

pub(super) fn section(view: &View, terms: &[Term], names: &Names, now: WallTime) -> Markup {
    let View { status, node, .. } = view;
    html! {
        section id="virtual-ips" aria-labelledby="virtual-ips-title" {
            h2 id="virtual-ips-title" { "Virtual IPs" }
            @if status.instances.is_empty() {
                p { "This configuration has no " code { "vrrpInstances" } ": this node holds no virtual IP." }
            }
            @for instance in &status.instances {
                article {
                    h3 { (instance.virtual_ips.join(", ")) }
                    (active(status, node, instance, terms, names, now))
                    @for copy in &instance.copies {
                        p class="note" { (copy.address) " is on " (copy.interface) " without a lease." }
                    }
                    @for owner in &instance.foreign_owners {
                        p class="note" { "Another host answers for " (owner.address) " at " (owner.mac) "." }
                    }
                    (table(&rows(status, node, instance), instance))
                }
            }
        }
    }
}

/// The sentence about the router that is Active.
fn active(
    status: &Status,
    node: &str,
    instance: &Instance,
    terms: &[Term],
    names: &Names,
    now: WallTime,
) -> Markup {
    let own = instance.state == "active";
    let vrid = instance.virtual_router_id;
    let term = latest(terms, vrid).next();
    let name = match &instance.active_router {
        _ if own => Some(node.to_owned()),
        Some(router) => Some(names.explained(&router.address)),
        None => None,
    };
    let peer = status.peers.iter().find(|peer| holder(peer, vrid).is_some());
    let name = name.or_else(|| Some(peer?.node.clone()));
    html! {
        p class="active" {
            @match name {
                None => { (badge("bad", "no Active")) " As far as this node knows, no router holds it." },
                Some(name) => {
                    (badge("good", "Active")) " " strong { (name) }
                    @if let Some(term) = term.filter(|term| term.end.is_none()) {
                        " for " (age_of(term.begin, now)) ": " (names.explained(&term.reason))
                    }
                },
            }
            " · virtual router " (vrid) " on " (instance.interface)
            ", lease " (age(instance.lease_seconds))
        }
    }
}

fn holder(peer: &Peer, vrid: u8) -> Option<&PeerInstance> {
    peer.instances.iter().find(|found| found.virtual_router_id == vrid && found.state == "active")
}

fn rows<'a>(status: &'a Status, node: &'a str, instance: &'a Instance) -> Vec<Row<'a>> {
    let own = Row {
        node,
        address: "this node",
        state: &instance.state,
        since: Some(instance.since_seconds),
        priority: instance.advertised_priority,
        serving: if status.serving.serving { Ok(()) } else { Err(status.serving.reason.as_deref()) },
        heard: None,
        claim: if instance.holds_virtual_ips { instance.lease_seconds } else { 0.0 },
    };
    let others = status.peers.iter().filter_map(|peer| {
        let found =
            peer.instances.iter().find(|found| found.virtual_router_id == instance.virtual_router_id)?;
        let changed = peer.transitions.iter().find(|it| it.virtual_router_id == found.virtual_router_id);
        Some(Row {
            node: &peer.node,
            address: &peer.address,
            state: &found.state,
            since: changed.filter(|it| it.to == found.state).map(|it| it.seconds_ago),
            priority: found.advertised_priority,
            serving: if peer.serving == Some(true) { Ok(()) } else { Err(peer.reason.as_deref()) },
            heard: Some(peer.heard_seconds_ago),
            claim: found.claim_seconds,
        })
    });
    std::iter::once(own).chain(others).collect()
}

fn table(rows: &[Row<'_>], instance: &Instance) -> Markup {
    html! {
        div class="scroll" tabindex="0" role="region" aria-label={ "Nodes of " (instance.virtual_ips.join(", ")) } {
            table {
                thead {
                    tr {
                        th scope="col" { "Node" }
                        th scope="col" { "State" }
                        th scope="col" { "Since" }
                        th scope="col" { "Serves" }
                        th scope="col" class="number" { "Priority" }
                        th scope="col" { "Holds it for" }
                        th scope="col" { "Last report" }
                    }
                }
                tbody {
                    @for row in rows {
                        tr {
                            th scope="row" { (row.node) " " small { (row.address) } }
                            td { (badge(class(row), row.state)) }
                            td { @if let Some(since) = row.since { (age(since)) } @else { "–" } }
                            td {
                                @match row.serving {
                                    Ok(()) => "yes",
                                    Err(why) => { strong { "no" } @if let Some(why) = why { ": " (why) } },
                                }
                            }
                            td class="number" { (row.priority) }
                            td { @if row.claim > 0.0 { "≥ " (age(row.claim)) } @else { "–" } }
                            td { @if let Some(heard) = row.heard { (age(heard)) " ago" } @else { "–" } }
                        }
                    }
                }
            }
        }
    }
}

fn class(row: &Row<'_>) -> &'static str {
    match (row.state, row.serving) {
        ("active", Ok(())) => "good",
        ("backup", Ok(())) => "plain",
        ("active" | "backup" | "resigning", _) => "warn",
        _ => "bad",
    }
}
