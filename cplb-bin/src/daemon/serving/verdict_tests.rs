//! The lease of [`Verdict`] in any sequence of inputs with any delays.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const INTERVAL: Duration = Duration::from_secs(3);

fn bad() -> Evidence {
    Evidence { table_fault: Some("gone".to_owned()), ..Evidence::default() }
}

fn observed<'a>(generation: u64, evidence: &'a Evidence, fitness: &'a [Fitness]) -> Input<'a> {
    Input::Observed { generation, evidence, fitness, interval: INTERVAL }
}

#[test]
fn a_lease_lasts_two_intervals_and_bad_evidence_ends_it_at_once() {
    let now = Instant::now();
    let mut verdict = Verdict::new(now);
    assert_eq!(verdict.status(now).reason.as_deref(), Some("not yet checked"));
    assert_eq!(verdict.handle(Input::Due, now).gather, Some(0));
    let good = Evidence::default();
    let unfit = [Fitness { id: InstanceId(7), faults: vec!["no IPv6".into()] }];
    let output = verdict.handle(observed(0, &good, &unfit), now);
    assert_eq!(output.lease, Some(Lease::Until(now + 2 * INTERVAL, [InstanceId(7)].into())));
    assert_eq!((output.changed, verdict.faults(InstanceId(7))), (Some(Ok(())), vec!["no IPv6".to_owned()]));
    let again = verdict.handle(observed(0, &good, &[]), now);
    assert_eq!((again.changed, verdict.faults(InstanceId(7)).len()), (None, 0));
    let output = verdict.handle(observed(0, &bad(), &[]), now);
    assert_eq!(
        (output.lease, output.changed),
        (Some(Lease::Withheld), Some(Err("nftables: gone".to_owned())))
    );
    assert!(!verdict.status(now).serving);
}

#[test]
fn the_lease_is_at_least_one_second() {
    let now = Instant::now();
    let interval = Duration::from_millis(100);
    let (evidence, fitness) = (&Evidence::default(), [].as_slice());
    let output =
        Verdict::new(now).handle(Input::Observed { generation: 0, evidence, fitness, interval }, now);
    assert_eq!(output.lease, Some(Lease::Until(now + MIN_SERVING_LEASE, BTreeSet::new())));
}

#[test]
fn a_verdict_expires_with_its_lease_while_gathering_hangs() {
    let start = Instant::now();
    let mut verdict = Verdict::new(start);
    verdict.handle(observed(0, &Evidence::default(), &[]), start);
    assert_eq!(verdict.handle(Input::Due, start).gather, Some(0));
    let later = start + 2 * INTERVAL + Duration::from_secs(1);
    assert_eq!(verdict.handle(Input::Due, later), Output::default());
    let status = verdict.status(later);
    assert_eq!((status.serving, status.since_seconds), (false, 1.0));
    assert_eq!(status.reason.as_deref(), Some("its checks have not ended for 7.0 s"));
    assert!(verdict.status(start + 2 * INTERVAL).serving);
}

#[test]
fn evidence_of_a_former_configuration_is_gathered_again() {
    let now = Instant::now();
    let mut verdict = Verdict::new(now);
    verdict.handle(Input::Due, now);
    verdict.handle(Input::Configured, now);
    let output = verdict.handle(observed(0, &Evidence::default(), &[]), now);
    assert_eq!(output, Output { gather: Some(1), ..Output::default() });
    assert!(verdict.handle(observed(1, &Evidence::default(), &[]), now).lease.is_some());
}

#[derive(Debug, Clone)]
enum Step {
    Due,
    Configured,
    /// The evidence of the round in progress arrives.
    Observed(bool),
    Wait(u64),
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn only_good_evidence_of_the_configuration_in_use_gives_a_lease(
        steps in vec(
            prop_oneof![
                3 => Just(Step::Due),
                1 => Just(Step::Configured),
                3 => any::<bool>().prop_map(Step::Observed),
                2 => (0..10_000_u64).prop_map(Step::Wait),
            ],
            0..60,
        ),
    ) {
        let mut now = Instant::now();
        let mut verdict = Verdict::new(now);
        let mut generation = 0;
        let mut in_progress: Option<u64> = None;
        let mut leased: Option<Instant> = None;
        for step in steps {
            let output = match step {
                Step::Due => verdict.handle(Input::Due, now),
                Step::Configured => {
                    generation += 1;
                    verdict.handle(Input::Configured, now)
                }
                Step::Wait(millis) => {
                    now += Duration::from_millis(millis);
                    continue;
                }
                Step::Observed(is_good) => {
                    let Some(gathered) = in_progress.take() else { continue };
                    let evidence = if is_good { Evidence::default() } else { bad() };
                    let output = verdict.handle(observed(gathered, &evidence, &[]), now);
                    let expected = (gathered == generation).then(|| match is_good {
                        true => Lease::Until(now + 2 * INTERVAL, BTreeSet::new()),
                        false => Lease::Withheld,
                    });
                    prop_assert_eq!(&output.lease, &expected);
                    output
                }
            };
            match &output.lease {
                Some(Lease::Until(until, _)) => leased = Some(*until),
                Some(Lease::Withheld) => leased = None,
                None => {}
            }
            if let Some(gathered) = output.gather {
                prop_assert_eq!((in_progress, gathered), (None, generation), "one round at a time, of the configuration in use");
                in_progress = Some(gathered);
            }
            prop_assert_eq!(verdict.status(now).serving, leased.is_some_and(|until| now <= until));
        }
    }
}
