//! Tests of stopping single threads of a process.

use std::{process::Command, time::Duration};

use testbed::{Lan, Log, Process, Signal, Test};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new(
            "freezing_one_thread_leaves_the_others_running",
            freezing_one_thread_leaves_the_others_running,
        ),
        Test::new("process_with_frozen_threads_can_be_killed", process_with_frozen_threads_can_be_killed),
        Test::new("freezing_an_unknown_thread_is_an_error", freezing_an_unknown_thread_is_an_error),
    ]
}

const LONG: Duration = Duration::from_secs(10);

/// Starts this program as a process with two threads besides its main thread.
fn ticker(lan: &Lan) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env(crate::lifecycle::ROLE, "ticker");
    let process = lan.controller(0).spawn("ticker", command).expect("a process");
    for line in ["tick", "tock"] {
        process.wait_for_line(line, LONG).expect("a line");
    }
    process
}

/// Returns whether the line is written again from now on.
fn is_written_again(log: &Log, line: &str) -> bool {
    // Lines that were written before may not have been read yet.
    std::thread::sleep(Duration::from_millis(30));
    log.wait_for_line_after(log.len(), line, Duration::from_millis(300)).is_ok()
}

fn freezing_one_thread_leaves_the_others_running() {
    let lan = Lan::builder().controllers(1).clients(0).build().expect("a LAN");
    let process = ticker(&lan);
    let frozen = process.freeze_threads(|name| name == "ticks").expect("frozen");
    assert_eq!(frozen.names(), ["ticks"]);
    assert!(!is_written_again(process.log(), "tick") && is_written_again(process.log(), "tock"));
    let others = process.freeze_threads(|name| name == "tocks").expect("frozen as well");
    assert!(!is_written_again(process.log(), "tock") && process.is_running());
    drop(others);
    assert!(!is_written_again(process.log(), "tick") && is_written_again(process.log(), "tock"));
    frozen.thaw();
    assert!(is_written_again(process.log(), "tick"));
}

fn process_with_frozen_threads_can_be_killed() {
    let lan = Lan::builder().controllers(1).clients(0).build().expect("a LAN");
    for main_too in [false, true] {
        let process = ticker(&lan);
        let frozen = process.freeze_threads(|name| name == "ticks" || main_too).expect("frozen");
        assert_eq!(frozen.names().len(), if main_too { 3 } else { 1 });
        assert!(process.is_running());
        process.signal(Signal::SIGKILL).expect("killed");
        // Long enough for the tracer to detect the end; the exit status must be left for the process's owner.
        std::thread::sleep(Duration::from_millis(100));
        let status = process.wait(LONG).expect("an end");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        drop(frozen);
    }
}

fn freezing_an_unknown_thread_is_an_error() {
    let lan = Lan::builder().controllers(1).clients(0).build().expect("a LAN");
    let process = ticker(&lan);
    let error = process.freeze_threads(|name| name == "unknown").expect_err("no such thread").to_string();
    assert!(error.contains("tocks"), "{error}");
}
