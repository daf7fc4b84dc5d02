//! The runner on real sockets, in namespaces that the tests make. As an ordinary user without real-time scheduling,
//! as root with it.

#![cfg(target_os = "linux")]

mod announcements;
mod capture;
mod commands;
mod crash;
mod election;
mod ground;
mod injected;
mod interfaces;
mod keepalived;
mod member;
mod realtime;
mod scale;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    ground::enter();
    // Each test measures time, on machines that may have two cores.
    arguments.test_threads.get_or_insert(1);
    let tests = [
        election::tests(),
        crash::tests(),
        commands::tests(),
        announcements::tests(),
        injected::tests(),
        interfaces::tests(),
        realtime::tests(),
        keepalived::tests(),
        scale::tests(),
    ];
    let trials = tests.into_iter().flatten().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A test and its name.
type Test = (&'static str, fn());
