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
        Test::new("two_hundred_stops_at_1_s_send_no_packet_from_the_vip", || {
            stops::strict(&Plan::default(), 200);
        }),
        Test::new("killed_active_is_replaced_at_1_s", nodes::killed_slow),
        Test::new("stopped_active_is_backup_after_10_s", nodes::stopped),
        Test::new("stops_at_1_s_send_no_packet_from_the_vip_ipv6", || {
            stops::strict(&Plan::default().v6_only(), 40);
        }),
        Test::new("stops_at_50_ms_leave_one_owner", stops::fast),
        Test::new("backup_without_its_unicast_source_waits_in_init", addresses::unicast_source),
        Test::new("address_flush_and_sigkill_keep_the_own_addresses_of_the_node", addresses::survive),
    ];
    let both_families: [Case; 10] = [
        ("killed_active_is_replaced", nodes::killed),
        ("active_with_link_down_is_replaced", nodes::link_down),
        ("active_with_unplugged_cable_is_replaced", nodes::unplugged),
        ("active_cut_off_in_both_directions_is_replaced", nodes::cut_off),
        ("active_that_cannot_send_is_replaced", nodes::cannot_send),
        ("active_that_cannot_receive_is_replaced", nodes::cannot_receive),
        ("deleted_vip_is_restored_within_100_ms", addresses::deleted),
        ("address_flush_leaves_one_owner", addresses::flushed),
        ("single_node_restores_the_vip_after_a_fault", addresses::alone),
        ("link_down_and_up_leaves_one_owner", addresses::link_bounced),
    ];
    let plan = || Plan::v3("100ms");
    for (name, test) in both_families {
        tests.push(Test::new(name, move || test(plan())));
        tests.push(Test::new(format!("{name}_ipv6"), move || test(plan().v6_only())));
    }
    tests.into_iter().map(|test| test.needs([Tool::Nft, Tool::Ip])).collect()
}
