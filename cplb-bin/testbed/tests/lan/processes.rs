//! Processes in nodes.

use std::{process::Command, time::Duration};

use testbed::{Lan, Process, Signal, Stream, Test};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("output_is_captured", output_is_captured),
        Test::new(
            "processes_run_in_the_namespace_of_their_node",
            processes_run_in_the_namespace_of_their_node,
        ),
        Test::new("process_ends_on_sigterm", process_ends_on_sigterm),
        Test::new("process_that_ignores_sigterm_is_killed", process_that_ignores_sigterm_is_killed),
        Test::new("stopped_process_resumes_on_sigcont", stopped_process_resumes_on_sigcont),
        Test::new("dropped_lan_ends_orphaned_processes", dropped_lan_ends_orphaned_processes),
    ]
}

const SECOND: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(5);

fn shell(lan: &Lan, script: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    lan.controller(0).spawn("shell", command).expect("a shell")
}

/// The state letter in `/proc/PID/stat`.
fn state(process: &Process) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).expect("a process");
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).expect("a state")
}

fn output_is_captured() {
    let lan = Lan::builder().controllers(1).clients(0).build().expect("a LAN");
    let process = shell(&lan, "echo one; echo two >&2; printf three; exit 7");
    assert_eq!(process.wait(GRACE).expect("an end").code(), Some(7));
    let three = process.wait_for_line("three", GRACE).expect("a line without an end");
    let two = process.wait_for_line("two", GRACE).expect("a line");
    assert_eq!((three.stream, two.stream), (Stream::Out, Stream::Err));
    assert!(process.wait_for_line("four", Duration::from_millis(20)).is_err());
    assert!(lan.report().contains("c1/shell: two"));
    let file = std::fs::read_to_string(lan.controller(0).directory().join("0-shell.log")).expect("a file");
    assert!(file.contains("one") && file.contains("two"), "{file}");
}

fn processes_run_in_the_namespace_of_their_node() {
    let lan = Lan::builder().build().expect("a LAN");
    for node in lan.nodes() {
        let addresses = node.exec("cat", ["/proc/net/fib_trie"]).expect("addresses");
        assert!(addresses.contains(&node.v4().to_string()), "{addresses}");
    }
    let error =
        lan.controller(0).exec("sh", ["-c", "echo no >&2; exit 3"]).expect_err("a failure").to_string();
    assert!(error.contains("exit status: 3") && error.contains("no"), "{error}");
    let error = lan.controller(0).exec("no-such-program", []).expect_err("a failure").to_string();
    assert!(error.contains("no-such-program"), "{error}");
}

fn process_ends_on_sigterm() {
    let lan = Lan::builder().controllers(1).clients(0).build().expect("a LAN");
    let process = shell(&lan, "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
    process.wait_for_line("ready", GRACE).expect("a line");
    assert!(process.is_running());
    process.signal(Signal::SIGSTOP).expect("stopped");
    assert!(process.stop(GRACE).expect("an end").success(), "also if it is stopped");
    process.wait_for_line("bye", GRACE).expect("a line");
    assert!(process.signal(Signal::SIGTERM).is_err());
    assert!(process.threads().is_empty());
}

fn process_that_ignores_sigterm_is_killed() {
    let lan = Lan::builder().controllers(1).clients(0).build().expect("a LAN");
    let process = shell(&lan, "trap '' TERM; echo ready; while :; do sleep 0.01; done");
    process.wait_for_line("ready", GRACE).expect("a line");
    assert!(process.wait(SECOND / 50).is_err());
    assert_eq!(process.stop(SECOND / 10).expect("an end").code(), None);
    let dropped = shell(&lan, "trap '' TERM; echo ready; while :; do sleep 0.01; done");
    dropped.wait_for_line("ready", GRACE).expect("a line");
    let traces = format!("/proc/{}", dropped.pid());
    drop(dropped);
    assert!(!std::fs::exists(traces).expect("a result"), "a dropped process still runs");
}

fn stopped_process_resumes_on_sigcont() {
    let lan = Lan::builder().controllers(1).clients(0).build().expect("a LAN");
    let process = shell(&lan, "while :; do echo tick; sleep 0.01; done");
    process.wait_for_line("tick", GRACE).expect("a line");
    process.signal(Signal::SIGSTOP).expect("stopped");
    testbed::eventually("the process is stopped", GRACE, || state(&process) == 'T');
    // The reader may lag.
    std::thread::sleep(SECOND / 20);
    let mark = process.log().len();
    assert!(process.log().wait_for_line_after(mark, "tick", SECOND / 5).is_err());
    process.signal(Signal::SIGCONT).expect("continued");
    process.log().wait_for_line_after(mark, "tick", GRACE).expect("a line");
}

fn dropped_lan_ends_orphaned_processes() {
    let lan = Lan::builder().controllers(1).clients(0).build().expect("a LAN");
    let process = shell(&lan, "sleep 1000 & echo $!; exec >&- 2>&-; wait");
    let line = process.log().wait_for(0, GRACE, |_| true).expect("a line");
    let orphan = format!("/proc/{}/stat", line.text);
    process.kill().expect("killed");
    assert!(std::fs::exists(&orphan).expect("a result"), "the orphan ended with its parent");
    drop(lan);
    assert!(!std::fs::exists(&orphan).expect("a result"), "an orphan survives the LAN");
}
