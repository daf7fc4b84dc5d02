//! Checks without a network, and the question whether an address is local.

use proptest::prelude::*;

use super::*;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn route(host: u8) -> Route {
    Route {
        instance: InstanceId(51),
        endpoint: SocketAddr::from(([10, 0, 0, host], 6443)),
        service: "kube-apiserver".to_owned(),
    }
}

fn timeout() -> Outcome {
    Outcome::Failed(CheckFailure::TimedOut { step: Step::Connect, after: LIMIT })
}

fn local_failure() -> Outcome {
    Outcome::Failed(CheckFailure::Local("too many open files".into()))
}

/// Routes to hosts 100 and up, which `active` has.
struct Fixture {
    core: EndToEnd,
    now: Instant,
    routes: u8,
    checks: usize,
}

impl Fixture {
    fn new(routes: u8) -> Self {
        let mut fixture = Self { core: EndToEnd::default(), now: Instant::now(), routes, checks: 0 };
        fixture.hold(12);
        fixture
    }

    fn hold(&mut self, active: u8) {
        let wanted = (0..self.routes).map(|index| (route(100 + index), [10, 0, 0, active].into()));
        self.core.set(self.now, wanted.collect());
    }

    /// Runs with checks that take a time limit if they fail, and no time else.
    fn run(&mut self, duration: Duration, outcome: impl Fn(&Route) -> Outcome) {
        let end = self.now + duration;
        let mut running = Vec::new();
        while self.now < end {
            while let Some((token, route)) = self.core.poll_check(self.now) {
                self.checks += 1;
                let outcome = outcome(&route);
                let ends = if outcome == Outcome::Answered { self.now } else { self.now + LIMIT };
                running.push((ends, Checked { token, outcome }));
            }
            self.now += Duration::from_millis(500);
            let (done, rest) = running.into_iter().partition(|(ends, _)| *ends <= self.now);
            running = rest;
            let done: Vec<(Instant, Checked)> = done;
            done.into_iter().for_each(|(_, checked)| self.core.handle_result(self.now, checked));
        }
        // The results come later, as they do in the daemon.
        running.into_iter().for_each(|(_, checked)| self.core.handle_result(self.now, checked));
    }

    fn failing(&self) -> Vec<SocketAddr> {
        self.core.failing().map(|(route, ..)| route.endpoint).collect()
    }
}

#[test]
fn a_route_that_stops_answering_is_reported_within_60_s_and_forgotten_with_an_answer() {
    for delay in 0..30 {
        let mut fixture = Fixture::new(1);
        fixture.run(secs(100 + delay), |_| Outcome::Answered);
        assert_eq!(fixture.failing(), []);
        fixture.run(secs(60), |_| timeout());
        assert_eq!(fixture.failing(), [route(100).endpoint]);
        assert_eq!(fixture.core.changes(), (vec![route(100)], vec![]));
        assert_eq!(fixture.core.changes(), (vec![], vec![]));
        fixture.run(secs(14), |_| Outcome::Answered);
        assert_eq!(fixture.failing(), []);
        assert_eq!(fixture.core.changes(), (vec![], vec![route(100)]));
    }
}

#[test]
fn checks_are_few_and_spread() {
    let mut fixture = Fixture::new(30);
    fixture.run(secs(3), |_| Outcome::Answered);
    assert_eq!(fixture.checks, 0, "a new Active settles");
    for second in 0..30 {
        fixture.run(secs(1), |_| Outcome::Answered);
        assert!((second..=second + 2).contains(&fixture.checks), "{} after {second} s", fixture.checks);
    }
    fixture.run(secs(300), |_| Outcome::Answered);
    assert!((300..=340).contains(&fixture.checks), "{}", fixture.checks);
}

#[test]
fn many_dead_routes_keep_a_few_sockets_busy_and_none_is_forgotten() {
    let mut fixture = Fixture::new(150);
    fixture.run(secs(30), |_| Outcome::Answered);
    let before = fixture.checks;
    fixture.run(secs(30), |_| timeout());
    assert!(fixture.checks - before <= CONCURRENT * 11, "{}", fixture.checks - before);
    fixture.run(secs(300), |_| timeout());
    assert_eq!(fixture.failing().len(), 150);
}

#[test]
fn another_active_is_judged_anew_and_a_late_result_of_the_former_one_does_not_count() {
    let mut fixture = Fixture::new(1);
    fixture.run(secs(60), |_| timeout());
    assert_eq!(fixture.failing().len(), 1);
    fixture.now += secs(20);
    let (token, _) = fixture.core.poll_check(fixture.now).unwrap();
    fixture.hold(13);
    assert_eq!(fixture.failing(), []);
    fixture.core.handle_result(fixture.now, Checked { token, outcome: timeout() });
    assert_eq!(fixture.core.routes()[&route(100)].failures, 0);
    fixture.core.set(fixture.now, BTreeMap::new());
    fixture.run(secs(100), |_| panic!("no route is left"));
}

#[test]
fn faults_of_this_node_and_local_addresses_are_not_reported() {
    let mut fixture = Fixture::new(1);
    fixture.run(secs(300), |_| local_failure());
    assert_eq!(fixture.failing(), []);
    assert_eq!(fixture.core.routes()[&route(100)].outcome, None);
    fixture.run(secs(60), |_| timeout());
    assert_eq!(fixture.failing().len(), 1);
    fixture.run(secs(60), |_| local_failure());
    assert_eq!(fixture.failing().len(), 1, "what was known stays");
    fixture.run(secs(60), |_| Outcome::Local);
    assert_eq!(fixture.failing(), []);
}

#[test]
fn the_cause_follows_from_the_step() {
    let timed_out = |step| CheckFailure::TimedOut { step, after: LIMIT };
    let cause = |failure: &CheckFailure| explain(failure).1;
    assert!(cause(&timed_out(Step::Connect)).contains("firewall"));
    assert!(cause(&timed_out(Step::Handshake)).contains("MTU"));
    assert!(cause(&CheckFailure::Refused).contains("firewall"));
    assert!(cause(&CheckFailure::Status(500)).contains("status"));
    assert_eq!(explain(&timed_out(Step::Connect)).0, "timeout: no connection within 3s");
}

#[test]
fn the_kernel_tells_which_addresses_are_local() {
    let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 6443);
    let is_local = |address: SocketAddr| source_for(address).is_ok_and(|source| source == address.ip());
    assert!(is_local(at("127.0.0.1")) && is_local(at("::1")));
    // Addresses for documentation, which no host has.
    assert!(!is_local(at("192.0.2.1")) && !is_local(at("2001:db8::1")));
}

proptest! {
    /// A route is reported if the last three results about it are failures, and only then.
    #[test]
    fn a_route_is_reported_after_three_failures_in_a_row(results in proptest::collection::vec(0..4u8, 0..40)) {
        let mut fixture = Fixture::new(1);
        let mut in_a_row = 0;
        for result in results {
            fixture.now += INTERVAL * 2;
            let (token, _) = fixture.core.poll_check(fixture.now).unwrap();
            let outcome = match result {
                0 => Outcome::Answered,
                1 => local_failure(),
                _ => timeout(),
            };
            in_a_row = match result { 0 => 0, 1 => in_a_row, _ => in_a_row + 1 };
            fixture.core.handle_result(fixture.now, Checked { token, outcome });
            prop_assert_eq!(fixture.failing().len(), usize::from(in_a_row >= 3));
        }
    }
}
