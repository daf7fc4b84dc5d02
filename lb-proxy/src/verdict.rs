//! What a verdict of the health checks does to a backend and its sessions.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::backend::{LiveBackend, Verdict};
use crate::event::Event;
use crate::health::{Change, CheckFailure, Status};
use crate::service::Backends;
use crate::shared::Shared;
use crate::worker::Command;

/// Applies a change that the checks report. Runs on their thread.
pub(crate) fn apply(shared: &Shared, change: &Change) {
    let services = shared.services.load();
    let Some(service) = services.iter().find(|service| service.name == change.target.service) else { return };
    let backends = service.backends.load();
    let member = backends.members.iter().find(|member| member.backend.addr == change.target.backend);
    let Some(backend) = member.map(|member| &member.backend) else { return };
    let verdict = match &change.to {
        status if status.is_up() => Verdict::Up,
        status if status.is_down() => Verdict::Down,
        _ => Verdict::Unknown,
    };
    let reason = match &change.to {
        Status::Down { reason } => reason.to_string(),
        status => status.as_str().to_owned(),
    };
    if backend.judge(verdict, shared.clock.now(), &reason).is_none() {
        return;
    }
    let (service, backend_addr) = (&service.name, backend.addr);
    match verdict {
        Verdict::Down => {
            let kept =
                is_alive(&change.to) && !backends.members.iter().any(|m| is_usable(m.weight, &m.backend));
            let sessions = if kept { 0 } else { reset(shared, backend) };
            let service = Arc::clone(service);
            shared.tell(Event::BackendDown { service, backend: backend_addr, reason, sessions });
        }
        Verdict::Up => {
            let service = Arc::clone(service);
            shared.tell(Event::BackendUp { service, backend: backend_addr, reason, after: change.after });
            reset_stranded(shared, &backends);
        }
        Verdict::Unknown => {}
    }
}

/// Whether a backend that is down nevertheless answered: it says itself that it is not ready. If all of them do, for
/// instance because their common etcd is slow, their sessions may still work and would find nothing better.
fn is_alive(status: &Status) -> bool {
    matches!(status, Status::Down { reason: CheckFailure::Status(_) })
}

fn is_usable(weight: u32, backend: &LiveBackend) -> bool {
    weight > 0 && backend.verdict() != Verdict::Down
}

/// Now that there is a better backend: sessions that were kept, or begun for want of one, on backends that are down.
fn reset_stranded(shared: &Shared, backends: &Backends) {
    for member in &backends.members {
        if member.backend.verdict() == Verdict::Down {
            reset(shared, &member.backend);
        }
    }
}

/// Has all workers reset the sessions of a backend. Returns how many there are.
fn reset(shared: &Shared, backend: &LiveBackend) -> usize {
    let sessions = backend.active.load(Relaxed);
    for worker in &shared.workers {
        let _ = worker.commands.send(Command::ResetBackend(backend.id));
    }
    sessions
}
