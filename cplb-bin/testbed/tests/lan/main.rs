//! The test ground tested: everything that other tests take for granted.

mod cuts;
mod network;
mod probes;
mod processes;

use std::process::ExitCode;

fn main() -> ExitCode {
    let tests = [network::tests(), cuts::tests(), processes::tests(), probes::tests()];
    testbed::main(tests.into_iter().flatten().collect())
}
