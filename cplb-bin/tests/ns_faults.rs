//! A controller that dies, hangs, or loses its network: at most one node answers for the VIP, and one that can
//! serve ends up with it.

mod support;
mod faults {
    pub(crate) mod addresses;
    pub(crate) mod nodes;
    pub(crate) mod stops;
}

use std::process::ExitCode;

use testbed::{Test, Tool};

use faults::{addresses, nodes, stops};

fn main() -> ExitCode {
    let tests = vec![
        Test::new("a_killed_active_at_1_s", nodes::killed_slow),
        Test::new("a_killed_active_at_100_ms", nodes::killed_fast),
        Test::new("an_active_that_is_stopped_for_10_s", nodes::stopped),
        Test::new("an_active_whose_link_goes_down", nodes::link_down),
        Test::new("an_active_whose_cable_is_pulled", nodes::unplugged),
        Test::new("an_active_that_is_cut_off", nodes::cut_off),
        Test::new("an_active_that_is_not_heard", nodes::mute),
        Test::new("an_active_that_does_not_hear", nodes::deaf),
        Test::new("two_hundred_stops_at_1_s_leave_no_packet_from_the_vip", stops::strict),
        Test::new("stops_at_50_ms_leave_one_owner", stops::fast),
        Test::new("a_deleted_vip_is_back_within_100_ms", addresses::deleted),
        Test::new("flushed_addresses_lead_to_one_owner", addresses::flushed),
        Test::new("a_link_that_goes_down_and_up_leads_to_one_owner", addresses::bounced),
        Test::new("flush_and_sigkill_spare_the_node_s_own_addresses", addresses::survive),
    ];
    testbed::main(tests.into_iter().map(|test| test.needs([Tool::Nft, Tool::Ip])).collect())
}
