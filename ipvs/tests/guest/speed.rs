//! Duration of a reconciliation, beside `ipvsadm`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::{Duration, Instant};

use ipvs::reconcile::{Desired, DesiredService, Options, Planner};
use ipvs::{ForwardMethod, SchedulerName, Service};
use testbed::Tool;

use crate::fixture::{destination, ipvsadm, run, tcp, with_client};

const SERVICES: u16 = 1000;
const DESTINATIONS: u16 = 16;
const ROUNDS: usize = 5;
/// Our time, at most, in terms of that of `ipvsadm`.
const MOST: f64 = 1.2;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

pub(crate) fn reconcile() {
    let (mut desired, mut rules) = (Desired::default(), String::new());
    for port in 0..SERVICES {
        let key = tcp("10.0.0.100", 1000 + port);
        let _ = writeln!(rules, "-A -t 10.0.0.100:{} -s rr", 1000 + port);
        let destinations = (0..DESTINATIONS).map(|number| format!("10.0.1.{}", number + 1));
        let service =
            destinations.fold(DesiredService::new(Service::new(key, SchedulerName::RR)), |service, real| {
                let _ = writeln!(rules, "-a -t 10.0.0.100:{0} -r {real}:{0} -g -w 1", 1000 + port);
                service.with(destination(&real, 1000 + port, ForwardMethod::DIRECT_ROUTE))
            });
        desired.insert(service);
    }
    with_client(async |client| {
        let (mut ours, mut theirs, mut second) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let since = Instant::now();
            run(Tool::Ipvsadm, "--restore", &rules);
            theirs.push(since.elapsed());
            let restored = ipvsadm("-S -n");
            client.flush().await.expect("all is deleted");

            let (mut planner, mut owned) = (Planner::new(Options::default()), BTreeSet::new());
            let since = Instant::now();
            let (plan, report) = client.reconcile(&mut planner, &desired, &mut owned).await.expect("a table");
            ours.push(since.elapsed());
            assert!(report.is_complete());
            assert_eq!(plan.steps.len(), usize::from(SERVICES) * usize::from(1 + DESTINATIONS));
            let same = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
            assert_eq!(same(&ipvsadm("-S -n")), same(&restored));

            let since = Instant::now();
            let (plan, _) = client.reconcile(&mut planner, &desired, &mut owned).await.expect("a table");
            second.push(since.elapsed());
            assert!(plan.is_empty(), "{} steps", plan.steps.len());
            client.flush().await.expect("all is deleted");
        }
        let (ours, theirs, second) = (median(ours), median(theirs), median(second));
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        println!(
            "reconcile {ours:?}, ipvsadm --restore {theirs:?}, ratio {ratio:.2}; second reconcile {second:?}"
        );
        assert!(ratio <= MOST, "{ratio}");
    });
}
