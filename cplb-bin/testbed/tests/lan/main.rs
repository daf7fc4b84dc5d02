//! Tests of the testbed itself: the properties that other tests rely on.

mod captures;
mod cuts;
mod freezing;
mod keepalived;
mod lifecycle;
mod network;
mod probes;
mod processes;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(role) = lifecycle::role() {
        return lifecycle::run_role(&role);
    }
    let tests = [
        lifecycle::tests(),
        network::tests(),
        cuts::tests(),
        processes::tests(),
        freezing::tests(),
        captures::tests(),
        probes::tests(),
        keepalived::tests(),
    ];
    testbed::main(tests.into_iter().flatten().collect())
}
