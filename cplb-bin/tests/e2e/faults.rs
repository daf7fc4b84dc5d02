//! A controller that dies, hangs, or loses its network: at most one node answers for the VIP, and in the end a node
//! that can serve has it.

mod addresses;
mod nodes;
mod stops;

use testbed::{Test, Tool};

use crate::support::Plan;

/// The name of a test, and its body for any plan.
type Case = (&'static str, fn(Plan));

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = vec![
        Test::new("two_hundred_stops_at_1_s_leave_no_packet_from_the_vip", || {
            stops::strict(&Plan::default(), 200);
        }),
        Test::new("a_killed_active_at_1_s", nodes::killed_slow),
        Test::new("an_active_that_is_stopped_for_10_s", nodes::stopped),
        Test::new("stops_at_1_s_leave_no_packet_from_an_ipv6_vip", || {
            stops::strict(&Plan::default().v6_only(), 40);
        }),
        Test::new("stops_at_50_ms_leave_one_owner", stops::fast),
        Test::new("a_router_without_its_unicast_source_waits", addresses::unicast_source),
        Test::new("flush_and_sigkill_spare_the_node_s_own_addresses", addresses::survive),
    ];
    let everywhere: [Case; 10] = [
        ("a_killed_active", nodes::killed),
        ("an_active_whose_link_goes_down", nodes::link_down),
        ("an_active_whose_cable_is_pulled", nodes::unplugged),
        ("an_active_that_is_cut_off", nodes::cut_off),
        ("an_active_that_is_not_heard", nodes::mute),
        ("an_active_that_does_not_hear", nodes::deaf),
        ("a_deleted_vip_is_back_within_100_ms", addresses::deleted),
        ("flushed_addresses_lead_to_one_owner", addresses::flushed),
        ("a_node_that_is_alone_gets_the_vip_back", addresses::alone),
        ("a_link_that_goes_down_and_up_leads_to_one_owner", addresses::bounced),
    ];
    let plan = || Plan::v3("100ms");
    for (name, test) in everywhere {
        tests.push(Test::new(name, move || test(plan())));
        tests.push(Test::new(format!("{name}_ipv6"), move || test(plan().v6_only())));
    }
    tests.into_iter().map(|test| test.needs([Tool::Nft, Tool::Ip])).collect()
}
