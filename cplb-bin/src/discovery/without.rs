//! Finds nothing: this build goes without the `kubernetes` feature.

use std::net::SocketAddr;
use std::time::Instant;

use super::{Report, State, Subject};

/// Nobody is asked.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory {}

impl Directory {
    pub(super) fn set(&self, _: Vec<SocketAddr>, _: Vec<SocketAddr>) {}

    pub(super) fn answered(&self) -> Option<(SocketAddr, Instant)> {
        None
    }
}

pub(super) async fn follow(_: Subject, report: impl Fn(Report) + Sync) {
    let why = "this build of cplb cannot ask the Kubernetes API: list the servers under backends.static";
    report(Report::State(State::Failing(why.to_owned())));
    std::future::pending::<()>().await;
}
