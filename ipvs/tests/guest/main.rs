//! The client against a real kernel, with `ipvsadm` as an independent observer. A guest provides the kernel.

mod fixture;
mod kernel;
mod speed;
mod tables;
mod traffic;

use std::process::ExitCode;

use testbed::{Test, Tool};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(kernel::UNPRIVILEGED) {
        return kernel::unprivileged();
    }
    let test = |name, body: fn()| Test::new(name, body).needs([Tool::Ip, Tool::Ipvsadm]).in_guest();
    testbed::main(vec![
        test("ipvsadm_prints_what_the_client_configured", tables::ipvsadm_prints),
        test("the_client_lists_what_ipvsadm_configured", tables::client_lists),
        test("ipvsadm_sends_the_same_bytes", tables::same_bytes).needs([Tool::Strace]),
        test("settings_behave_as_the_planner_assumes", kernel::settings),
        test("refusals_match_their_errors", kernel::refusals),
        test("the_module_may_be_unloaded_and_loaded_again", kernel::module).in_own_guest(),
        test("each_network_namespace_has_its_own_table", kernel::namespaces),
        test("an_ordinary_user_is_not_permitted", kernel::privilege).needs([Tool::Setpriv]),
        test("traffic_is_counted", traffic::counted),
        test("a_destination_drains_and_is_deleted", traffic::drained),
        test("reconcile_is_as_fast_as_ipvsadm", speed::reconcile),
    ])
}
