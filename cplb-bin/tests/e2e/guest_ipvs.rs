//! IPVS as the load balancer of `virtualServers`, with the real binary on a kernel that supports it; and links that
//! only such a kernel supports.

mod failover;
mod fixture;
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
        test("missing_ipvs_module_falls_back_to_the_proxy", system::no_module).in_own_guest(),
        test("requests_spread_by_direct_routing", || spread::spread("DR", false)),
        test("requests_spread_by_direct_routing_over_ipv6", || spread::spread("DR", true)),
        test("requests_spread_by_nat", || spread::spread("NAT", false)),
        test("requests_spread_by_nat_over_ipv6", || spread::spread("NAT", true)),
        test("requests_spread_by_tunnels", || spread::spread("TUN", false)),
        test("requests_spread_by_tunnels_over_ipv6", || spread::spread("TUN", true)),
        test("persistence_keeps_a_client_on_one_server", spread::persistence),
        test("vip_without_servers_of_its_family_is_served_by_the_proxy", spread::other_family),
        test("three_services_have_different_servers", servers::three_services),
        test("servers_on_a_second_link_receive_requests", spread::two_links),
        test("manually_assigned_vip_is_directed_by_nat", || spread::held_by_hand("NAT")),
        test("manually_assigned_vip_is_directed_by_direct_routing", || spread::held_by_hand("DR")),
        test("manually_assigned_vip_is_directed_by_tunnels", || spread::held_by_hand("TUN")),
        test("only_the_active_node_answers_arp", spread::arp),
        test("killed_director_stops_directing_and_its_server_stays", failover::crash).alone(),
        test("packets_of_two_instances_are_directed_once", failover::two_owners),
        test("download_survives_a_handover_with_sync", || failover::download(true)),
        test("download_is_reset_by_a_handover_without_sync", || failover::download(false)),
        test("dead_backend_is_removed_and_restored", servers::backends),
        test("silent_backend_is_removed_and_its_sessions_end", servers::silent_backend),
        test("terminating_server_keeps_its_connections", servers::shutdown),
        test("server_that_listens_on_one_address_only_is_excluded", servers::one_address),
        test("departing_node_loses_no_connection", servers::departing),
        test("real_server_survives_a_crash_of_its_daemon", || servers::restart("DR")),
        test("tunnel_real_server_survives_a_crash_of_its_daemon", || servers::restart("TUN")),
        test("reload_switches_between_ipvs_and_proxy", || system::reload("DR")),
        test("reload_switches_between_ipvs_nat_and_proxy", || system::reload("NAT")),
        test("stop_and_crash_leave_no_state", system::leftovers),
        test("nat_without_ip_forward_is_reported", system::forwarding),
        test("kube_proxy_warning_is_logged_once_and_conntrack_is_kept", system::kube_proxy),
        test("kube_proxy_service_with_the_vip_takes_no_connection", reach::external_address),
        test("vip_on_a_vlan_is_served_with_a_firewall", reach::vlan),
        test("vip_on_a_bond_is_served_with_a_firewall", reach::bond),
        test("vip_in_a_vrf_is_served", || reach::vrf(Plan::default())),
        test("vip_in_a_vrf_is_served_ipv6", || reach::vrf(Plan::default().v6_only())),
        test("full_state_directory_falls_back_to_the_proxy", system::full_state),
        test("foreign_sync_daemon_is_reported_and_kept", system::foreign_sync),
        test("foreign_dummy_link_is_refused_and_kept", system::foreign_dummy),
    ]
}
