//! Real servers on a kernel with dummy links, tunnels and IPVS.

mod acceptance;
mod crash;
mod ground;
mod links;
mod network;
mod sessions;

use std::process::ExitCode;

use testbed::{Test, Tool};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 22] = [
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
        ("servers_say_whether_they_accept", acceptance::answers),
        ("a_holder_and_a_backup_may_ask", acceptance::any_node),
        ("many_are_asked_at_once", acceptance::many),
        ("what_is_asked_is_taken_back", acceptance::taken_back),
        ("who_is_not_on_the_link_is_told_apart", acceptance::neighbours),
        ("tagged_interfaces_may_ask", acceptance::vlan),
        ("nobody_is_asked_without_means", acceptance::errors),
        ("sessions_on_vips_that_go_are_reset", sessions::reset),
        ("sessions_on_vips_that_stay_go_on", sessions::kept),
        ("sessions_that_cannot_be_reset_keep_no_vip", sessions::unsupported),
    ];
    let tests = tests
        .map(|(name, body)| Test::new(name, body).needs([Tool::Ip, Tool::Ipvsadm, Tool::Nft]).in_guest());
    testbed::main(tests.into())
}
