//! The metrics of the other controllers, as they report themselves.

use crate::http::family::{Family, Labels};
use crate::status::schema::Peer;

use super::{flag, gauge, with};

pub(super) fn families(peers: &[Peer]) -> Vec<Family> {
    let of = |peer: &Peer| -> Labels { vec![("peer", peer.address.clone()), ("node", peer.node.clone())] };
    let gauges = |name, help, value: fn(&Peer) -> f64| {
        gauge(name, help, peers.iter().map(|peer| (of(peer), value(peer))).collect())
    };
    let serving = peers.iter().filter_map(|peer| Some((of(peer), flag(peer.serving?))));
    let claims = peers.iter().flat_map(|peer| {
        let labels = of(peer);
        let claim = move |vrid: u8| with(&labels, "vrid", vrid.to_string());
        peer.instances.iter().map(move |it| (claim(it.virtual_router_id), it.claim_seconds))
    });
    vec![
        gauges("cplb_peer_heard_age_seconds", "Time since the controller reported itself", |it| {
            it.heard_seconds_ago
        }),
        gauge("cplb_peer_serving", "1 if the controller reports that it can serve", serving.collect()),
        gauges("cplb_peer_degraded", "Entries in degraded of the controller", |it| {
            (it.degraded.len() + usize::from(it.degraded_unlisted)) as f64
        }),
        gauges("cplb_peer_authenticated", "1 if the messages of the controller are signed", |it| {
            flag(it.authenticated)
        }),
        gauges("cplb_peer_clock_ahead_seconds", "Difference of its wall clock to that of this node", |it| {
            it.clock_ahead_seconds
        }),
        gauge(
            "cplb_peer_claim_seconds",
            "Time for which the controller may hold the virtual IPs without renewing its claim; 0 if it does not hold them",
            claims.collect(),
        ),
    ]
}
