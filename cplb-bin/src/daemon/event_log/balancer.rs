//! Events of the load balancer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_proxy::{Event as Balancer, Refusal, Shortage};

use crate::daemon::problems::{Cause, Problems};

/// Logs an event of the load balancer.
pub(crate) fn log_balancer(event: &Balancer, problems: &mut Problems) {
    match event {
        Balancer::BackendUp { service, backend, reason, after } => {
            tracing::info!(%service, %backend, reason, after_seconds = after.as_secs_f64(), "backend up");
        }
        Balancer::BackendTerminating { service, backend, sessions } => {
            tracing::info!(%service, %backend, sessions, "backend terminating; it gets no new connections");
        }
        Balancer::BackendDown { service, backend, reason, sessions } => {
            tracing::warn!(%service, %backend, reason, sessions, "backend down");
        }
        Balancer::BackendSuspected { service, backend, reason } => {
            tracing::info!(%service, %backend, %reason, "backend suspected");
        }
        Balancer::BackendTrusted { service, backend } => {
            tracing::info!(%service, %backend, "backend trusted again");
        }
        Balancer::BackendForbidden { service, backend } => {
            tracing::warn!(%service, %backend, "backend excluded: it is a virtual IP of this configuration");
        }
        Balancer::ClientsRefused { service, reason, limit, total } => {
            refused(service, *reason, *limit, *total, problems);
        }
        Balancer::ListenFallback { configured, actual, reason } => {
            tracing::info!(%configured, %actual, reason, "listening on IPv4 only");
        }
        Balancer::MarkRefused { reason } => {
            tracing::warn!(reason, "connections to backends are not marked");
            problems.raise(Cause::Mark, format!("connections to backends are not marked: {reason}"));
        }
        Balancer::CongestionRefused { algorithm, reason } => {
            tracing::warn!(algorithm, reason, "congestion control algorithm unavailable");
            problems.raise(Cause::Congestion, format!("no congestion control {algorithm}: {reason}"));
        }
        Balancer::ResourcesExhausted { shortage, backend, reason } => {
            exhausted(*shortage, *backend, reason, problems);
        }
        Balancer::WorkerGone { worker } => {
            tracing::error!(worker, "load balancer worker ended");
            problems
                .raise(Cause::Worker, format!("worker {worker} of the load balancer ended: restart cplb"));
        }
        other => tracing::debug!(?other, "load balancer"),
    }
}

/// The time for which a shortage or a refusal is shown. While it lasts, the load balancer reports it every 10 s.
const SHORTAGE_SHOWN: Duration = Duration::from_secs(15);

fn refused(service: &str, reason: Refusal, limit: Option<usize>, total: u64, problems: &mut Problems) {
    let limit = limit.map(|limit| limit.to_string()).unwrap_or_default();
    let remedy = match reason {
        Refusal::NoBackend => {
            tracing::warn!(service, total, "clients refused: no backend accepts connections");
            return;
        }
        Refusal::MaxConnections => "as many connections as maxConnections allows are open",
        Refusal::MaxConnectionsPerClient => {
            "a client has as many connections open as maxConnectionsPerClient allows"
        }
        Refusal::Descriptors => "sessions have all descriptors that LimitNOFILE leaves to them: raise it",
        // The load balancer reports the shortage itself.
        _ => return,
    };
    tracing::warn!(service, %reason, limit, total, "clients refused: {remedy}");
    let of = if limit.is_empty() { String::new() } else { format!(" ({limit})") };
    let text = format!("service {service} refuses clients: {remedy}{of}");
    problems.raise_until(Cause::Limited(service.to_owned(), reason), text, Instant::now() + SHORTAGE_SHOWN);
}

fn exhausted(shortage: Shortage, backend: Option<SocketAddr>, reason: &str, problems: &mut Problems) {
    let backend = backend.map(|backend| backend.to_string()).unwrap_or_default();
    let remedy = match shortage {
        Shortage::Descriptors => "sessions have all descriptors that LimitNOFILE leaves to them: raise it",
        Shortage::HostFiles => "this host has no more open files: raise fs.file-max",
        Shortage::Ports => {
            "no local port is left towards a backend: widen net.ipv4.ip_local_port_range, or add backends"
        }
        _ => "the kernel has no memory for sockets: see net.ipv4.tcp_mem and the memory of this host",
    };
    tracing::error!(backend, reason, "connections fail: {remedy}");
    let towards = if backend.is_empty() { String::new() } else { format!(" (towards {backend})") };
    let text = format!("connections fail: {remedy}{towards}");
    problems.raise_until(Cause::Exhausted(shortage), text, Instant::now() + SHORTAGE_SHOWN);
}
