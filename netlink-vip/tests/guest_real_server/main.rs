//! Real servers on a kernel with dummy links, tunnels and IPVS.

mod crash;
mod ground;
mod links;
mod network;

use std::process::ExitCode;

use testbed::{Test, Tool};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 12] = [
        ("a_lease_goes_before_the_dummy_and_comes_back_to_it", links::leases),
        ("a_look_mends_what_was_disturbed", links::disturbances),
        ("links_of_somebody_else_stay", links::foreign_dummies),
        ("tunnels_of_somebody_else_stay", links::foreign_tunnels),
        ("what_comes_and_goes_on_our_dummy_is_told_apart", links::mixed_dummies),
        ("missing_modules_are_named", links::modules),
        ("interfaces_may_come_later", links::late_interfaces),
        ("arp_and_ndp_are_answered_by_the_holder_only", network::silence),
        ("tunnels_unpack_both_families", network::tunnels),
        ("a_crash_is_taken_over_and_removal_restores", crash::takeover),
        ("a_keeper_of_the_same_vip_leaves_the_dummy_alone", crash::keeper),
        ("a_stricter_administrator_stays_strict", crash::stricter),
    ];
    let tests = tests.map(|(name, body)| Test::new(name, body).needs([Tool::Ip, Tool::Ipvsadm]).in_guest());
    testbed::main(tests.into())
}
