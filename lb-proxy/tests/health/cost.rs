//! The cost of checks: the budget of the whole daemon is 0.3 % of one core.

use std::fs;
use std::time::Duration;

use lb_proxy::health::{Monitor, MonitorOptions};
use lb_proxy::{HealthCheck, HealthKind};
use nix::unistd::{Pid, gettid};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::sleep;

use crate::servers::Api;
use crate::{check, https, target};

/// Returns the processor time that a thread of this process has used.
fn used(thread: Pid) -> Duration {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

async fn cost_of_a_check(kind: HealthKind) -> Duration {
    let apis = [Api::new(), Api::new(), Api::new()];
    let often = HealthCheck { interval: Duration::from_millis(50), ..check(kind) };
    let (sender, mut threads) = unbounded_channel();
    // The sink is called on the monitor's thread.
    let monitor =
        Monitor::spawn(MonitorOptions::default(), Box::new(move |_| sender.send(gettid()).unwrap())).unwrap();
    monitor.update(apis.iter().map(|api| target(api.server.addr, often.clone())).collect());
    let thread = threads.recv().await.unwrap();
    threads.recv().await.unwrap();
    threads.recv().await.unwrap();
    let checks = || monitor.snapshot().iter().map(|known| known.checks).sum::<u64>();
    let (start, first) = (used(thread), checks());
    sleep(Duration::from_secs(2)).await;
    let (end, done) = (used(thread), u32::try_from(checks() - first).unwrap());
    assert!(done > 20, "{done}");
    (end - start) / done
}

#[tokio::test]
async fn an_https_check_costs_little() {
    let https = cost_of_a_check(https()).await;
    let tls = cost_of_a_check(HealthKind::Tls).await;
    let tcp = cost_of_a_check(HealthKind::Tcp).await;
    let share = |cost: Duration| 3.0 * cost.as_secs_f64() * 100.0;
    println!("a check costs {https:?} (https, kept), {tls:?} (tls), {tcp:?} (tcp)");
    println!("three each second: {:.3} %, {:.3} %, {:.3} % of a core", share(https), share(tls), share(tcp));
    // About 0.05 % when optimised; this build is not, and the machine has other load.
    assert!(share(https) < 0.2, "{https:?}");
}
