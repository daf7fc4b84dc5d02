//! IPVS as the load balancer of `virtualServers`, with the real binary on a kernel that supports it; and links that
//! only such a kernel supports.

mod failover;
mod ground;
mod reach;
mod servers;
mod spread;
mod system;

use testbed::{Test, Tool};

use crate::support::{Plan, binary};

pub(crate) fn tests() -> Vec<Test> {
    let test = |name, body: fn()| {
        Test::new(name, body).needs([Tool::Nft, Tool::Ipvsadm, Tool::Ip]).files([binary()]).in_guest()
    };
    vec![
        // The kernel unloads a module only once all connections of earlier tests have expired.
        test("a_kernel_without_ipvs_is_lived_with", system::no_module),
        test("requests_spread_by_direct_routing", || spread::spread("DR", false)),
        test("requests_spread_by_direct_routing_over_ipv6", || spread::spread("DR", true)),
        test("requests_spread_by_nat", || spread::spread("NAT", false)),
        test("requests_spread_by_nat_over_ipv6", || spread::spread("NAT", true)),
        test("requests_spread_by_tunnels", || spread::spread("TUN", false)),
        test("requests_spread_by_tunnels_over_ipv6", || spread::spread("TUN", true)),
        test("a_client_stays_with_its_server", spread::persistence),
        test("an_address_without_servers_of_its_family_is_left_to_the_proxy", spread::other_family),
        test("three_services_have_different_servers", servers::three_services),
        test("servers_on_another_link_serve", spread::two_links),
        test("who_has_an_address_by_hand_directs_by_nat", || spread::held_by_hand("NAT")),
        test("who_has_an_address_by_hand_routes_directly", || spread::held_by_hand("DR")),
        test("who_has_an_address_by_hand_sends_by_tunnels", || spread::held_by_hand("TUN")),
        test("only_the_holder_answers_arp", spread::arp),
        test("a_killed_director_directs_no_more_and_goes_on_serving", failover::crash),
        test("two_instances_never_direct_a_packet_twice", failover::two_owners),
        test("a_download_survives_a_handover_with_sync", || failover::download(true)),
        test("a_download_is_reset_by_a_handover_without_sync", || failover::download(false)),
        test("a_backend_that_dies_is_out_and_comes_back", servers::backends),
        test("a_backend_that_is_silent_takes_no_client_with_it", servers::silent_backend),
        test("a_server_that_shuts_down_keeps_its_connections", servers::shutdown),
        test("a_server_that_listens_on_one_address_gets_nothing", servers::one_address),
        test("a_node_whose_daemon_stops_takes_no_connection_with_it", servers::leaving),
        test("a_real_server_outlives_its_daemon", || servers::restart("DR")),
        test("a_real_server_behind_a_tunnel_outlives_its_daemon", || servers::restart("TUN")),
        test("a_reload_changes_the_balancer_and_back", || system::reload("DR")),
        test("a_reload_changes_from_nat_and_back", || system::reload("NAT")),
        test("a_stop_and_a_crash_leave_nothing", system::leftovers),
        test("nat_without_forwarding_is_told", system::forwarding),
        test("kube_proxy_beside_it_is_told_once_and_keeps_what_it_needs", system::kube_proxy),
        test("a_service_of_kube_proxy_with_the_vip_takes_no_connection", reach::external_address),
        test("a_vip_on_a_vlan_is_served_behind_a_firewall", reach::vlan),
        test("a_vip_on_a_bond_is_served_behind_a_firewall", reach::bond),
        test("a_vip_in_a_vrf_is_served", || reach::vrf(Plan::default())),
        test("a_vip_in_a_vrf_is_served_ipv6", || reach::vrf(Plan::default().v6_only())),
        test("a_full_state_directory_is_lived_with", system::full_state),
        test("a_foreign_sync_daemon_is_told_and_left_alone", system::foreign_sync),
        test("a_foreign_dummy_is_refused_and_left_alone", system::foreign_dummy),
    ]
}
