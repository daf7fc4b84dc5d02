//! The log lines about the discovery of a cluster.

use std::path::Path;

use crate::discovery::State;

use super::cluster_state::{ClusterState, refused};

/// Logs the differences between the state of a cluster and the one `before`.
pub(super) fn log_changes(now: &ClusterState, before: &ClusterState, kubeconfig: &Path) {
    let kubeconfig = kubeconfig.display();
    if now.servers != before.servers {
        tracing::info!(%kubeconfig, servers = ?now.servers, "API servers discovered");
    }
    match (&now.interruption, &before.interruption) {
        (interruption, former) if interruption == former => {}
        (Some(State::Waiting(why)), _) => tracing::info!("discovery waiting: {why}"),
        (Some(State::Failing(why)), _) => tracing::warn!(%kubeconfig, "discovery fails: {why}"),
        (None, _) => tracing::info!(%kubeconfig, "discovery works"),
    }
    if let Some(why) = now.list_fault.as_ref().filter(|_| now.list_fault != before.list_fault) {
        tracing::warn!(%kubeconfig, "discovered servers: {why}");
    } else if now.refused != before.refused && !now.refused.is_empty() && now.list_fault.is_none() {
        let count = now.refused.len();
        tracing::warn!(%kubeconfig, count, "discovered servers are refused: {}", refused(&now.refused));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddr;

    use super::*;
    use crate::logging::testing::storm;

    fn servers(hosts: &[u8]) -> BTreeSet<SocketAddr> {
        hosts.iter().map(|host| SocketAddr::from(([10, 0, 0, *host], 6443))).collect()
    }

    #[test]
    fn log_lines_about_a_flapping_list_are_limited() {
        let lists = [servers(&[11]), servers(&[11, 12])]
            .map(|servers| ClusterState { servers, ..ClusterState::default() });
        let path = Path::new("/etc/kubeconfig");
        let written = storm(60, |number| {
            let (now, before) = (&lists[number as usize % 2], &lists[(number as usize + 1) % 2]);
            log_changes(now, before, path);
        });
        assert!(written.lines.len() <= 21, "{:#?}", written.lines);
        assert_eq!(written.lines.len() as u64 + written.suppressed, 60_000);
        assert!(written.lines.last().unwrap().contains("10.0.0.12"), "the last list is logged");
        let failing = |why: &str| ClusterState {
            interruption: Some(State::Failing(why.into())),
            ..ClusterState::default()
        };
        let written = storm(60, |number| match number % 2 {
            0 => log_changes(&failing(&format!("port {number}")), &ClusterState::default(), path),
            _ => log_changes(&ClusterState::default(), &failing("refused"), path),
        });
        assert!(written.lines.len() <= 2 * 21, "{:#?}", written.lines);
        assert!(written.lines.last().unwrap().contains("discovery works"));
    }
}
