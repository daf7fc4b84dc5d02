//! Real servers on a kernel with dummy links, tunnels and IPVS.

mod acceptance;
mod crash;
mod fixture;
mod links;
mod network;
mod sessions;

use std::process::ExitCode;

use testbed::{Test, Tool};

fn main() -> ExitCode {
    let tests: [(&str, fn()); 20] = [
        ("lease_takes_precedence_over_the_dummy", links::leases),
        ("reconcile_repairs_disturbances", links::disturbances),
        ("foreign_links_stay", links::foreign_dummies),
        ("foreign_tunnels_stay", links::foreign_tunnels),
        ("foreign_addresses_on_the_dummy_are_distinguished", links::mixed_dummies),
        ("interfaces_may_appear_later", links::late_interfaces),
        ("arp_and_ndp_are_answered_by_the_owner_only", network::silence),
        ("tunnels_unpack_both_families", network::tunnels),
        ("a_crash_is_taken_over_and_removal_restores", crash::takeover),
        ("a_keeper_of_the_same_vip_leaves_the_dummy_alone", crash::keeper),
        ("stricter_sysctls_of_the_administrator_are_kept", crash::stricter),
        ("acceptance_is_reported_for_each_server", acceptance::answers),
        ("owner_and_backup_may_probe", acceptance::any_node),
        ("many_servers_are_probed_at_once", acceptance::many),
        ("accepted_probes_are_reset", acceptance::taken_back),
        ("servers_off_the_link_are_distinguished", acceptance::neighbours),
        ("vlan_interfaces_may_probe", acceptance::vlan),
        ("probing_without_its_means_fails", acceptance::errors),
        ("sessions_of_removed_vips_are_reset", sessions::reset),
        ("sessions_of_kept_vips_continue", sessions::kept),
    ];
    let unloading: [(&str, fn()); 2] = [
        ("missing_modules_are_named", links::modules),
        ("sessions_that_cannot_be_reset_do_not_delay_removal", sessions::unsupported),
    ];
    let test = |(name, body)| Test::new(name, body).needs([Tool::Ip, Tool::Ipvsadm, Tool::Nft]);
    let shared = tests.map(|it| test(it).in_guest());
    testbed::main(shared.into_iter().chain(unloading.map(|it| test(it).in_own_guest())).collect())
}
