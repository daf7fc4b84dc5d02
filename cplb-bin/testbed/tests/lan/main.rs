//! Tests of the testbed itself: the properties that other tests rely on.

mod captures;
mod cuts;
mod freezing;
mod keepalived;
mod life;
mod network;
mod probes;
mod processes;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(role) = life::role() {
        return life::play(&role);
    }
    let tests = [
        life::tests(),
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
