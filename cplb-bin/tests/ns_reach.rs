//! What other software on a controller does to clients of the VIP, with the real binary: firewalls, bridges, a server on
//! the VIP's own port. The rules themselves are shown with `lb-proxy`.

mod reach;
mod support;

use std::process::ExitCode;

use testbed::{Test, Tool};

fn main() -> ExitCode {
    let test = |name, body: fn()| Test::new(name, body).needs([Tool::Nft, Tool::Ip]);
    testbed::main(vec![
        test("a_firewall_that_accepts_the_port_of_the_service_accepts_clients", reach::firewall::transparent),
        test("without_tproxy_a_firewall_accepts_clients_by_the_documented_line", reach::firewall::dnat),
        test("a_vip_and_pods_on_bridges_are_served", reach::bridge::vip_and_pods),
        test("a_killed_daemon_leaves_no_client_to_the_nodes_own_server", reach::server::killed),
        test("an_api_server_restarts_beside_500_sessions", reach::server::restarted),
        test("the_bind_port_is_open_where_the_configuration_says", reach::bind_port::access),
    ])
}
