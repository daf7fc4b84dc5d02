//! The scheduling of the thread.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use vrrp::router::StateName;
use vrrp::runner::RunnerEvent;

use crate::Test;
use crate::fixture::{Lan, is_real_root};
use crate::member::{Member, Note, config};

pub(crate) fn tests() -> Vec<Test> {
    let mut tests: Vec<Test> = vec![(
        "the_thread_is_real_time_or_reports_the_reason",
        the_thread_is_real_time_or_reports_the_reason,
    )];
    if is_real_root() {
        tests.push(("no_false_takeover_beside_busy_loops", no_false_takeover_beside_busy_loops));
    }
    tests
}

/// The scheduling policies of our threads of this name (proc(5), field 41 of `stat`).
fn policies(name: &str) -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc").filter_map(Result::ok);
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let ours = stats.filter(|stat| stat.contains(&format!("({name})")));
    ours.filter_map(|stat| Some(stat.rsplit_once(") ")?.1.split(' ').nth(38)?.to_owned())).collect()
}

fn the_thread_is_real_time_or_reports_the_reason() {
    let lan = Lan::new();
    let a = lan.node(1);
    let member = Member::start(&a, vec![config(100, Duration::from_millis(100))]);
    member.await_state(StateName::Active, Duration::from_secs(3));
    let told =
        member.notes.count(|note| matches!(note, Note::Event(RunnerEvent::RealtimeUnavailable { .. })));
    let status = member.handle.status();
    if is_real_root() {
        assert_eq!(
            (status.realtime.realtime, status.realtime.memory_locked, told),
            (true, true, 0),
            "{status:?}"
        );
        for thread in ["vrrp", "vrrp-sockets"] {
            assert_eq!(policies(thread), ["2"], "{thread} runs under SCHED_RR");
        }
        let others = fs::read_dir("/proc/self/task").expect("/proc").count();
        assert!(others > 2, "and the threads of the test do not");
        assert!(getrlimit(Resource::RLIMIT_RTTIME).expect("a limit").0 != RLIM_INFINITY);
        let locked = fs::read_to_string("/proc/self/status").expect("/proc");
        assert!(
            locked.lines().any(|line| line.starts_with("VmLck:") && !line.ends_with("\t       0 kB")),
            "{locked}"
        );
    } else {
        assert_eq!(
            (status.realtime.realtime, status.realtime.memory_locked, told),
            (false, false, 1),
            "{status:?}"
        );
        let why = status.realtime.refused.as_deref().expect("a reason");
        assert!(
            why.contains("SCHED_RR") && why.contains("CAP_SYS_NICE") && why.contains("mlockall"),
            "{why}"
        );
        assert_eq!(policies("vrrp"), ["0"]);
    }
}

/// 10 ms, and six times as many busy loops as processors.
fn no_false_takeover_beside_busy_loops() {
    let lan = Lan::new();
    let (a, b) = (lan.node(1), lan.node(2));
    let interval = Duration::from_millis(10);
    // One after the other: the first Active stays Active, and 4 ms would decide between them.
    let first = Member::start(&a, vec![config(200, interval)]);
    first.await_state(StateName::Active, Duration::from_secs(3));
    let members = [first, Member::start(&b, vec![config(100, interval)])];
    let end = Instant::now() + Duration::from_secs(20);
    let spin = move || while Instant::now() < end {};
    let spinners: Vec<_> = (0..12).map(|_| std::thread::spawn(spin)).collect();
    spinners.into_iter().for_each(|spinner| spinner.join().expect("it ends"));
    let (active, backup) = (members[0].status(), members[1].status());
    println!("beside 12 busy loops: {:?}", active.traffic);
    assert_eq!((active.state, active.counters.became_active), (StateName::Active, 1));
    assert_eq!((backup.state, backup.counters.became_active), (StateName::Backup, 0));
}
