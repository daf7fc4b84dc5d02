//! Stands in for discovery in builds without the feature `kubernetes`: reports that and nothing else.

use std::net::SocketAddr;
use std::time::Instant;

use super::{Report, State, Target};

/// No servers: there is no client of the API.
#[derive(Debug, Clone, Default)]
pub(super) struct Candidates {}

impl Candidates {
    pub(super) fn set(&self, _: Vec<SocketAddr>, _: Vec<SocketAddr>) {}

    pub(super) fn answered(&self) -> Option<(SocketAddr, Instant)> {
        None
    }
}

pub(super) async fn follow(_: Target, report: impl Fn(Report) + Sync) {
    let reason = "this build of cplb has no Kubernetes client: list the servers under backends.static";
    report(Report::State(State::Failing(reason.to_owned())));
    std::future::pending::<()>().await;
}
