//! The status page: HTML from the status and the history, for people.
//!
//! The page is complete without JavaScript and refers to no other host. With JavaScript it follows the event stream and
//! replaces the sections that have changed.

mod history;
mod instances;
mod samples;
mod services;
mod text;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use maud::{DOCTYPE, Markup, html};

use crate::history::{Entry, Names, Term, WallTime, terms};
use crate::status::schema::Status;

pub(super) use samples::{INTERVAL as SAMPLE_INTERVAL, Samples};
use text::{age, plural};

/// The style sheet at `/style.css`.
pub(super) const STYLE: &str = include_str!("style.css");
/// The script at `/page.js`.
pub(super) const SCRIPT: &str = include_str!("page.js");

/// Everything that the page shows but the samples.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) status: Status,
    /// The name of this node.
    pub(crate) node: String,
    /// The history, the oldest entry first.
    pub(crate) entries: Vec<Arc<Entry>>,
}

/// The page at this time.
pub(super) fn page(view: &View, samples: &Samples, now: WallTime) -> Markup {
    let View { status, node, entries } = view;
    let terms = terms(entries);
    let names = Names::new(node_addresses(view), virtual_ips(status));
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title(status, node)) }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="style.css";
                noscript { meta http-equiv="refresh" content="5"; }
                script src="page.js" defer {}
            }
            body {
                a class="skip" href="#main" { "Skip to the virtual IPs" }
                (header(status, node))
                main id="main" {
                    (problems(status, node, &silent(view, now)))
                    (instances::section(view, &terms, &names, now))
                    (services::section(status, samples))
                    (history::section(&terms, &names, now))
                }
                footer {
                    p {
                        "cplb " (status.version) ", process " (status.pid) ", " code { (status.config) } ". "
                        "For programs: " a href="metrics" { "metrics" } ", "
                        a href="api/v1/status" { "status" } ", " a href="api/v1/events" { "events" } "."
                    }
                }
            }
        }
    }
}

fn title(status: &Status, node: &str) -> String {
    let state = match (status.serving.serving, status.degraded.len()) {
        (false, _) => "NOT SERVING".to_owned(),
        (true, 0) => "serving".to_owned(),
        (true, count) => plural(count, "problem"),
    };
    format!("{node}: {state} · cplb")
}

fn header(status: &Status, node: &str) -> Markup {
    let serving = &status.serving;
    html! {
        header id="header" {
            h1 { (node) }
            p {
                @if serving.serving {
                    (badge("good", "serving")) " for " (age(serving.since_seconds))
                } @else {
                    (badge("bad", "not serving")) " for " (age(serving.since_seconds)) ": "
                    (serving.reason.as_deref().unwrap_or("not yet known"))
                }
                " · up " (age(status.uptime_seconds))
            }
            p id="live" role="status" {}
        }
    }
}

/// A word with a colour, which is never the only sign.
fn badge(class: &str, text: &str) -> Markup {
    html! { span class={ "badge " (class) } { (text) } }
}

/// The problems of this node and of the others; nothing on a sound group.
fn problems(status: &Status, node: &str, silent: &[(&str, WallTime)]) -> Markup {
    let unserved = |reason: Option<&String>| {
        let reason = reason.map_or("not yet known", String::as_str);
        format!("it cannot serve: {reason}")
    };
    let own = (!status.serving.serving).then(|| unserved(status.serving.reason.as_ref()));
    let own = (node, own.into_iter().chain(status.degraded.iter().cloned()).collect::<Vec<_>>(), 0);
    let others = status.peers.iter().map(|peer| {
        let refused = (peer.serving == Some(false)).then(|| unserved(peer.reason.as_ref()));
        let problems = refused.into_iter().chain(peer.degraded.iter().cloned()).collect();
        (peer.node.as_str(), problems, peer.degraded_unlisted)
    });
    let silent = silent.iter().map(|(node, since)| {
        (*node, vec![format!("it does not report itself; the last that is known of it is of {since}")], 0)
    });
    let all: Vec<_> = std::iter::once(own).chain(others).chain(silent).collect();
    let is_sound = all.iter().all(|(_, problems, unlisted)| problems.is_empty() && *unlisted == 0);
    html! {
        section id="problems" aria-labelledby="problems-title" hidden[is_sound] {
            h2 id="problems-title" { "Problems" }
            @for (node, problems, unlisted) in all {
                @if !problems.is_empty() || unlisted > 0 {
                    h3 { (node) }
                    ul {
                        @for problem in problems { li { (problem) } }
                        @if unlisted > 0 { li { (plural(unlisted.into(), "more")) } }
                    }
                }
            }
        }
    }
}

/// The time for which a controller that no longer reports itself counts as missing.
const MISSED: Duration = Duration::from_secs(24 * 60 * 60);

/// The controllers that have reported themselves within the last day and do not now, with the time of their last entry.
fn silent(view: &View, now: WallTime) -> Vec<(&str, WallTime)> {
    let is_heard = |node: &str| node == view.node || view.status.peers.iter().any(|peer| peer.node == node);
    let mut last = BTreeMap::new();
    for entry in view.entries.iter().filter(|entry| entry.node_time.is_some() && !is_heard(&entry.node)) {
        last.insert(entry.node.as_str(), entry.time);
    }
    last.into_iter().filter(|(_, time)| now.since(*time) < MISSED).collect()
}

/// The addresses of the nodes, as far as the history and the status tell.
fn node_addresses(view: &View) -> Vec<(IpAddr, String)> {
    let entries = view.entries.iter().filter_map(|entry| Some((entry.address?, entry.node.clone())));
    let peers = view.status.peers.iter();
    let peers = peers.filter_map(|peer| Some((peer.address.parse().ok()?, peer.node.clone())));
    entries.chain(peers).collect()
}

fn virtual_ips(status: &Status) -> Vec<(u8, Vec<String>)> {
    let instances = status.instances.iter();
    instances.map(|instance| (instance.virtual_router_id, instance.virtual_ips.clone())).collect()
}

/// The terms of an instance, the latest first.
fn latest(terms: &[Term], vrid: u8) -> impl Iterator<Item = &Term> {
    terms.iter().rev().filter(move |term| term.vrid == vrid)
}

#[cfg(test)]
mod tests;
