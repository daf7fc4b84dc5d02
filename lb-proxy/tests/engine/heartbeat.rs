//! The heartbeat: success, and detection of a frozen worker.

use std::io::{BufRead, BufReader, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::support::{Balancer, Echo, PATIENCE, block_on, spawn_test};

#[test]
fn a_heartbeat_reaches_every_listener_and_no_backend() {
    let echo = Echo::start(1);
    let balancer = Balancer::start(&[echo.addr], |options, service| {
        options.workers = 3;
        service.listen.push("[::]:0".parse().unwrap());
        service.listen.push("[::1]:0".parse().unwrap());
    })
    .checked();
    let checks = echo.open.load(SeqCst);
    block_on(async {
        for _ in 0..100 {
            balancer.lb.heartbeat(PATIENCE).await.unwrap();
        }
    });
    let snapshot = balancer.lb.snapshot();
    assert_eq!((snapshot.services[0].accepted, balancer.sessions()), (0, 0));
    assert_eq!(balancer.backend(echo.addr).total, 0);
    assert_eq!(echo.open.load(SeqCst), checks);
}

#[test]
fn the_heartbeat_of_a_stopped_balancer_fails() {
    let balancer = Balancer::start(&[], |_, _| {});
    balancer.lb.stop();
    assert!(block_on(balancer.lb.heartbeat(PATIENCE)).is_err());
}

#[test]
fn a_frozen_worker_fails_the_heartbeat_until_it_continues() {
    let mut child = spawn_test("heartbeat::child_beats", None);
    let mut orders = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut beat = || -> String {
        writeln!(orders, "beat").unwrap();
        // The test harness writes to the same lines.
        let answer = |line: String| line.split_once("beat: ").map(|(_, answer)| answer.to_owned());
        answers.by_ref().map(Result::unwrap).find_map(answer).expect("the child answers")
    };
    assert_eq!(beat(), "ok");

    let worker = thread_named(child.id(), "lb-worker-1");
    ptrace::seize(worker, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(worker).unwrap();
    waitpid(worker, Some(WaitPidFlag::__WALL)).unwrap();
    let start = Instant::now();
    let frozen = beat();
    assert!(frozen.contains("worker 1 did not answer"), "{frozen}");
    assert!(start.elapsed() < Duration::from_secs(5), "after {:?}", start.elapsed());

    ptrace::detach(worker, None).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while beat() != "ok" {
        assert!(Instant::now() < deadline, "the heartbeat succeeds again");
    }
    drop(orders);
    assert!(child.wait().unwrap().success());
}

fn thread_named(process: u32, name: &str) -> Pid {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let found = tasks
        .map(Result::unwrap)
        .find(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name));
    Pid::from_raw(found.unwrap().file_name().to_str().unwrap().parse().unwrap())
}

#[test]
#[ignore = "run by a_frozen_worker_fails_the_heartbeat_until_it_continues"]
fn child_beats() {
    let echo = Echo::start(1);
    let balancer = Balancer::start(&[echo.addr], |_, _| {}).checked();
    for order in std::io::stdin().lines() {
        assert_eq!(order.unwrap(), "beat");
        match block_on(balancer.lb.heartbeat(Duration::from_secs(1))) {
            Ok(()) => println!("beat: ok"),
            Err(error) => println!("beat: {error}"),
        }
        // A snapshot never waits for a worker.
        balancer.lb.snapshot();
    }
}
