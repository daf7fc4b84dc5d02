//! The runner on real sockets, in namespaces that the tests make. As an ordinary user without real-time scheduling,
//! as root with it.

#![cfg(target_os = "linux")]

mod announcements;
mod capture;
mod commands;
mod crash;
mod election;
mod fixture;
mod injected;
mod interfaces;
mod keepalived;
mod member;
mod realtime;
mod scale;

use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    fixture::enter();
    // Nearly all the time is spent waiting for timers, in a LAN of each test's own.
    arguments.test_threads.get_or_insert(4);
    let tests = [
        election::tests(),
        crash::tests(),
        commands::tests(),
        announcements::tests(),
        injected::tests(),
        interfaces::tests(),
        keepalived::tests(),
        scale::tests(),
    ];
    // Tests of this process's scheduling run alone, after the others.
    let machine: Arc<RwLock<()>> = Arc::default();
    let alone = Arc::clone(&machine);
    let side_by_side = tests.into_iter().flatten().map(|(name, test)| {
        let machine = Arc::clone(&machine);
        Trial::test(name, move || {
            let _shared = machine.read().unwrap_or_else(PoisonError::into_inner);
            test();
            Ok(())
        })
    });
    let realtime = realtime::tests().into_iter().map(|(name, test)| {
        let alone = Arc::clone(&alone);
        Trial::test(name, move || {
            let _exclusive = alone.write().unwrap_or_else(PoisonError::into_inner);
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, side_by_side.chain(realtime).collect()).exit_code()
}

/// A test and its name.
type Test = (&'static str, fn());
