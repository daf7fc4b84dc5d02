//! The history: a timeline of the Actives, and a table of their terms.

use maud::{Markup, html};

use crate::history::{Names, Term, WallTime};

use super::latest;
use super::text::{age, age_of, milliseconds};

/// The terms in the table of an instance.
const SHOWN: usize = 20;
/// The width of the timeline in its own units.
const WIDTH: f64 = 1000.0;
/// The number of colours in the style sheet.
const COLOURS: usize = 6;

pub(super) fn section(terms: &[Term], names: &Names, now: WallTime) -> Markup {
    let mut vrids: Vec<u8> = terms.iter().map(|term| term.vrid).collect();
    vrids.sort_unstable();
    vrids.dedup();
    html! {
        section id="history" aria-labelledby="history-title" {
            h2 id="history-title" { "History" }
            @if vrids.is_empty() { p { "No router has been Active yet, as far as this node knows." } }
            @for vrid in vrids {
                article {
                    h3 { (names.instance(vrid)) }
                    (timeline(&latest(terms, vrid).take(SHOWN).collect::<Vec<_>>(), names, now))
                    (table(&latest(terms, vrid).take(SHOWN + 1).collect::<Vec<_>>(), names, now))
                }
            }
            p class="note" {
                "Times are UTC, by the clock of this node. All transitions: " code { "cplb history --all" } "."
            }
        }
    }
}

/// The end of a term: its own, the begin of the next one, or now.
fn end(term: &Term, next: Option<&Term>, now: WallTime) -> WallTime {
    term.end.or(next.map(|next| next.begin)).unwrap_or(now)
}

/// Bars in the colour of their node; the table says the same in words.
fn timeline(terms: &[&Term], names: &Names, now: WallTime) -> Markup {
    let Some(first) = terms.last() else { return html! {} };
    let whole = now.since(first.begin).as_secs_f64().max(0.001);
    let place = |time: WallTime| WIDTH * (time.since(first.begin).as_secs_f64() / whole).min(1.0);
    let mut nodes: Vec<&str> = terms.iter().map(|term| term.node.as_str()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let colour = |node: &str| nodes.iter().position(|other| *other == node).unwrap_or_default() % COLOURS;
    html! {
        svg class="timeline" viewBox="0 0 1000 24" preserveAspectRatio="none" role="img"
            aria-label={ "Actives of " (names.instance(first.vrid)) " within the last " (age_of(first.begin, now)) } {
            @for (index, term) in terms.iter().enumerate() {
                @let next = index.checked_sub(1).and_then(|next| terms.get(next)).copied();
                @let (from, to) = (place(term.begin), place(end(term, next, now)));
                rect class={ "node-" (colour(&term.node)) } x=(format!("{from:.2}")) y="0" height="24"
                    width=(format!("{:.2}", (to - from).max(1.0))) {
                    title { (term.node) " from " (term.begin) }
                }
            }
        }
        ul class="legend" {
            @for node in &nodes {
                li { span class={ "key node-" (colour(node)) } aria-hidden="true" {} " " (node) }
            }
        }
    }
}

fn table(terms: &[&Term], names: &Names, now: WallTime) -> Markup {
    let label = terms.first().map(|term| names.instance(term.vrid)).unwrap_or_default();
    html! {
        div class="scroll" tabindex="0" role="region" aria-label={ "Actives of " (label) } {
            table {
                thead {
                    tr {
                        th scope="col" { "Active since" }
                        th scope="col" { "Node" }
                        th scope="col" { "For" }
                        th scope="col" { "Cause" }
                        th scope="col" { "No Active heard for" }
                    }
                }
                tbody {
                    @for (index, term) in terms.iter().take(SHOWN).enumerate() {
                        @let next = index.checked_sub(1).and_then(|next| terms.get(next)).copied();
                        tr {
                            td { time datetime=(term.begin) { (term.begin) } }
                            th scope="row" { (term.node) }
                            td { (age(end(term, next, now).since(term.begin).as_secs_f64())) }
                            td {
                                (names.explained(&term.reason))
                                @if let Some(why) = terms.get(index + 1).and_then(|former| former.end_reason.as_ref()) {
                                    small { " · " (terms[index + 1].node) ": " (names.explained(why)) }
                                }
                                @if term.is_heard { small { " · as heard from here" } }
                            }
                            td {
                                @match term.silence_milliseconds {
                                    Some(silence) => (milliseconds(silence)),
                                    None => "–",
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
