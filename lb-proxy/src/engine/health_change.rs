//! The effect of a health change on a backend and its sessions.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::backend::{BackendHealth, LiveBackend};
use super::command::Command;
use super::event::Event;
use super::service::Backends;
use super::shared::Shared;
use crate::health::{CheckFailure, HealthChange, HealthState};

/// Applies a health change. Runs on the thread of the checks.
pub(crate) fn apply(shared: &Shared, change: &HealthChange) {
    let services = shared.services.load();
    let Some(service) = services.iter().find(|service| service.name == change.target.service) else { return };
    let backends = service.backends.load();
    let member = backends.members.iter().find(|member| member.backend.addr == change.target.backend);
    let Some(backend) = member.map(|member| &member.backend) else { return };
    let health = match &change.to {
        HealthState::Up | HealthState::UpUnready => BackendHealth::Up,
        HealthState::Terminating => BackendHealth::Terminating,
        HealthState::Down { reason } if reason.spares_sessions() => BackendHealth::Refusing,
        HealthState::Down { .. } => BackendHealth::Down,
        HealthState::Unknown if change.from.is_up() => BackendHealth::Unchecked,
        HealthState::Unknown => BackendHealth::Unknown,
    };
    let reason = match &change.to {
        HealthState::Down { reason } => reason.to_string(),
        state => state.as_str().to_owned(),
    };
    if backend.record_health(health, shared.clock.now(), &reason).is_none() {
        return;
    }
    let (service, backend_addr) = (&service.name, backend.addr);
    match health {
        BackendHealth::Terminating => {
            let (service, sessions) = (Arc::clone(service), backend.active.load(Relaxed));
            shared.emit(Event::BackendTerminating { service, backend: backend_addr, sessions });
        }
        BackendHealth::Refusing | BackendHealth::Down => {
            let kept = health == BackendHealth::Refusing
                || (is_responding(&change.to)
                    && !backends.members.iter().any(|m| is_usable(m.weight, &m.backend)));
            let sessions = if kept { 0 } else { reset(shared, backend) };
            let service = Arc::clone(service);
            shared.emit(Event::BackendDown { service, backend: backend_addr, reason, sessions });
        }
        BackendHealth::Up => {
            let service = Arc::clone(service);
            shared.emit(Event::BackendUp { service, backend: backend_addr, reason, after: change.after });
            reset_stranded(shared, &backends);
        }
        BackendHealth::Unknown | BackendHealth::Unchecked => {}
    }
}

/// Returns whether a backend that is down still responds: it reports itself that it is not ready. If all backends do,
/// for instance because their common etcd is slow, their sessions may still work and would find nothing better.
fn is_responding(state: &HealthState) -> bool {
    matches!(state, HealthState::Down { reason: CheckFailure::Status(_) | CheckFailure::NotReady { .. } })
}

fn is_usable(weight: u32, backend: &LiveBackend) -> bool {
    weight > 0 && !backend.health().is_excluded()
}

/// Resets the sessions on backends that are down, now that there is a better backend: sessions that were kept, or that
/// began while there was none.
fn reset_stranded(shared: &Shared, backends: &Backends) {
    for member in &backends.members {
        if member.backend.health() == BackendHealth::Down {
            reset(shared, &member.backend);
        }
    }
}

/// Orders all workers to reset the sessions of a backend. Returns the number of sessions.
fn reset(shared: &Shared, backend: &LiveBackend) -> usize {
    let sessions = backend.active.load(Relaxed);
    for worker in &shared.workers {
        let _ = worker.commands.send(Command::ResetBackend(backend.id));
    }
    sessions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::config::{Options, Service};
    use crate::engine::service::{LiveService, Member};
    use crate::health::{Step, TargetKey};
    use std::sync::Mutex;
    use std::time::Duration;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    struct Fixture {
        shared: Shared,
        commands: UnboundedReceiver<Command>,
        events: Arc<Mutex<Vec<Event>>>,
    }

    /// A service with backends 1 and 2, each with sessions.
    impl Fixture {
        fn new() -> Self {
            let (sender, commands) = unbounded_channel();
            let events: Arc<Mutex<Vec<Event>>> = Arc::default();
            let sink = Arc::clone(&events);
            let shared = Shared::new(
                &Options::default(),
                vec![sender],
                Box::new(move |event| sink.lock().unwrap().push(event)),
            );
            let member = |id: u32| {
                let backend = Arc::new(LiveBackend::new(id, ([10, 0, 0, id as u8], 6443).into()));
                backend.active.store(5, Relaxed);
                Member { backend, weight: 1, name: None }
            };
            let service = Service::new("api", Vec::new(), Vec::new());
            let backends = Backends::new(&service, vec![member(1), member(2)]);
            shared.services.store(Arc::new(vec![Arc::new(LiveService::new(
                "api".into(),
                backends,
                Arc::default(),
            ))]));
            Fixture { shared, commands, events }
        }

        fn change(&mut self, id: u8, to: HealthState) -> Vec<u32> {
            self.change_from(HealthState::Unknown, id, to)
        }

        fn change_from(&mut self, from: HealthState, id: u8, to: HealthState) -> Vec<u32> {
            let target = TargetKey { service: "api".into(), backend: ([10, 0, 0, id], 6443).into() };
            let after = Duration::from_secs(1);
            apply(&self.shared, &HealthChange { target, from, to, after });
            let mut reset = Vec::new();
            while let Ok(Command::ResetBackend(id)) = self.commands.try_recv() {
                reset.push(id);
            }
            reset
        }
    }

    fn silence() -> CheckFailure {
        CheckFailure::TimedOut { step: Step::Connect, after: Duration::from_secs(1) }
    }

    fn down(reason: CheckFailure) -> HealthState {
        HealthState::Down { reason }
    }

    #[test]
    fn sessions_of_a_dead_backend_are_reset_once() {
        let mut fixture = Fixture::new();
        assert!(fixture.change(1, HealthState::Up).is_empty());
        assert_eq!(fixture.change(1, down(silence())), [1]);
        assert!(fixture.change(1, down(CheckFailure::Status(500))).is_empty(), "no change");
        assert_eq!(fixture.change(2, down(silence())), [2], "even the last one");
        let events = fixture.events.lock().unwrap();
        assert!(matches!(events[0], Event::BackendUp { .. }));
        assert!(matches!(events[1], Event::BackendDown { sessions: 5, .. }));
    }

    #[test]
    fn sessions_of_a_terminating_backend_are_not_reset() {
        let mut fixture = Fixture::new();
        fixture.change(2, HealthState::Up);
        assert!(fixture.change(1, HealthState::Terminating).is_empty());
        assert!(fixture.change(1, down(CheckFailure::Refused)).is_empty());
        fixture.change(2, down(silence()));
        assert!(fixture.change(2, HealthState::Up).is_empty(), "a better backend does not reset them");
        assert_eq!(fixture.change(1, down(silence())), [1], "the host is silent, too");
        let events = fixture.events.lock().unwrap();
        assert!(matches!(events[1], Event::BackendTerminating { sessions: 5, .. }));
        assert!(matches!(events[2], Event::BackendDown { sessions: 0, .. }));
    }

    #[test]
    fn sessions_stay_on_unready_backends_until_one_is_better() {
        let mut fixture = Fixture::new();
        fixture.change(2, HealthState::UpUnready);
        assert_eq!(fixture.change(1, down(CheckFailure::Status(500))), [1], "the other one is better");
        assert!(fixture.change(2, down(CheckFailure::Status(503))).is_empty(), "none is better");
        assert!(matches!(
            fixture.events.lock().unwrap().last(),
            Some(Event::BackendDown { sessions: 0, .. })
        ));
        assert_eq!(fixture.change(1, HealthState::Up), [2]);
    }

    #[test]
    fn newly_known_readiness_changes_the_reason_without_an_event() {
        let mut fixture = Fixture::new();
        for (status, reason) in [(HealthState::UpUnready, "up-readiness-unknown"), (HealthState::Up, "up")] {
            fixture.change(1, status);
            let services = fixture.shared.services.load();
            let backends = services[0].backends.load();
            assert_eq!(backends.members[0].backend.snapshot(1, 1, None).reason, reason);
        }
        assert_eq!(fixture.events.lock().unwrap().len(), 1);
    }

    #[test]
    fn an_unchecked_backend_is_unknown_and_still_presumed_up() {
        let mut fixture = Fixture::new();
        let backend = |fixture: &Fixture| {
            let services = fixture.shared.services.load();
            Arc::clone(&services[0].backends.load().members[0].backend)
        };
        let is_presumed_up = |fixture: &Fixture| backend(fixture).is_presumed_up(fixture.shared.clock.now());
        assert!(fixture.change(1, HealthState::Unknown).is_empty());
        assert!(!is_presumed_up(&fixture), "it was never up");
        fixture.change(1, HealthState::Up);
        fixture.change_from(HealthState::Up, 1, HealthState::Unknown);
        assert_eq!(backend(&fixture).health(), BackendHealth::Unchecked);
        assert!(is_presumed_up(&fixture));
        assert_eq!(backend(&fixture).snapshot(1, 1, None).state, crate::BackendState::Unknown);
        fixture.change(1, down(silence()));
        assert!(!is_presumed_up(&fixture));
    }

    #[test]
    fn an_unchecked_backend_is_presumed_up_for_a_minute_after_the_last_connect() {
        let backend = LiveBackend::new(1, ([10, 0, 0, 1], 6443).into());
        let belief = |now| (backend.is_presumed_up(now), backend.is_unchecked(now));
        assert_eq!(belief(1), (false, true));
        backend.record_health(BackendHealth::Up, 5, "up");
        assert_eq!(belief(1_000_000), (true, false), "checks that succeed change nothing");
        backend.record_health(BackendHealth::Unchecked, 1_000_000, "unknown");
        assert_eq!(belief(1_059_999), (true, false));
        assert_eq!(belief(1_060_000), (false, true));
        backend.record_health(BackendHealth::Unchecked, 1_060_000, "unknown");
        assert_eq!(belief(1_060_000), (false, true), "no change");
        backend.failed(1_060_000, crate::Failure::TimedOut);
        assert_eq!(belief(1_060_000), (false, true));
        backend.connected(1_061_000);
        assert_eq!(belief(1_120_999), (true, false));
        assert_eq!(belief(1_121_000), (false, true));
        backend.record_health(BackendHealth::Down, 1_121_000, "refused");
        backend.connected(1_122_000);
        assert_eq!(belief(1_122_000), (false, false));
    }

    #[test]
    fn a_health_change_of_an_unknown_backend_is_ignored() {
        let mut fixture = Fixture::new();
        assert!(fixture.change(9, down(CheckFailure::Refused)).is_empty());
        assert!(fixture.events.lock().unwrap().is_empty());
    }
}
