//! End-to-end tests of the real binary: controllers in network namespaces, and in a guest where the kernel of this
//! machine lacks a feature. One program, so that tests of all suites run side by side.
//!
//! `cargo test --workspace --all-features --test e2e SUITE::` runs one suite, `… SUITE::NAME` one test.

mod addresses;
mod authentication;
mod cleanup;
mod discovery;
mod election;
mod end_to_end;
mod faults;
mod footprint;
mod group;
mod guest_bad_network;
mod guest_ipvs;
mod handover;
mod history;
mod interop;
mod main_path;
mod monitoring;
mod operators;
mod overrun;
mod owners;
mod packets;
mod page;
mod peers;
mod reach;
mod realtime;
mod reload;
mod serving;
mod sessions;
mod steering;
mod strangers;
mod support;
mod system;
mod systemd;

use std::process::ExitCode;

use testbed::Test;

fn main() -> ExitCode {
    if sessions::run_if_session_client() {
        return ExitCode::SUCCESS;
    }
    // The longest suites first, so that none of their tests starts when the others have ended.
    let suites = [
        ("election", election::tests()),
        ("faults", faults::tests()),
        ("serving", serving::tests()),
        ("handover", handover::tests()),
        ("history", history::tests()),
        ("owners", owners::tests()),
        ("operators", operators::tests()),
        ("end_to_end", end_to_end::tests()),
        ("peers", peers::tests()),
        ("authentication", authentication::tests()),
        ("interop", interop::tests()),
        ("main_path", main_path::tests()),
        ("reload", reload::tests()),
        ("system", system::tests()),
        ("systemd", systemd::tests()),
        ("discovery", discovery::tests()),
        ("steering", steering::tests()),
        ("strangers", strangers::tests()),
        ("group", group::tests()),
        ("sessions", sessions::tests()),
        ("packets", packets::tests()),
        ("addresses", addresses::tests()),
        ("reach", reach::tests()),
        ("monitoring", monitoring::tests()),
        ("page", page::tests()),
        ("overrun", overrun::tests()),
        ("cleanup", cleanup::tests()),
        ("realtime", realtime::tests()),
        ("footprint", footprint::tests()),
        ("guest_ipvs", guest_ipvs::tests()),
        ("guest_bad_network", guest_bad_network::tests()),
    ];
    let named = suites.into_iter().flat_map(|(suite, tests)| tests.into_iter().map(|test| test.of(suite)));
    testbed::main(named.collect::<Vec<Test>>())
}
