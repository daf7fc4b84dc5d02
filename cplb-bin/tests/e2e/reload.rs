//! SIGHUP: the configuration changes, the connections stay; an invalid file changes nothing.

pub(crate) mod fixture;
mod instances;
mod name_servers;
mod table;
mod undisturbed;

use testbed::{Test, Tool};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("reload_that_adds_a_service_keeps_every_connection", undisturbed::adds_a_service),
        Test::new("reload_that_changes_backends_keeps_every_connection", undisturbed::changes_backends),
        Test::new("invalid_file_is_rejected_and_reported_until_corrected", undisturbed::wrong_file),
        Test::new("reload_to_a_port_in_use_is_rejected", undisturbed::taken_port),
        Test::new("silent_name_server_does_not_block_the_daemon", name_servers::silent_name_server).alone(),
        Test::new("adding_and_removing_an_instance_keeps_the_other", undisturbed::instances),
        Test::new("removed_instance_hands_its_address_over", instances::removed_instance),
        Test::new("reload_moves_addresses_between_instances", instances::moved_addresses),
        Test::new("address_moves_to_another_instance_and_back_at_once", instances::address_moved_and_back),
        Test::new(
            "table_keeps_the_rules_of_an_address_until_it_is_released",
            table::table_outlives_addresses,
        )
        .needs([Tool::Nft]),
        Test::new("table_has_the_rules_of_an_address_before_it_is_added", table::table_precedes_addresses),
        Test::new("removed_vips_are_served_until_they_are_released", table::listeners_outlive_addresses)
            .needs([Tool::Nft]),
        Test::new("failed_table_change_is_retried", table::failing_table).needs([Tool::Nft]).alone(),
        Test::new("slow_table_at_the_start_delays_serving", table::slow_table_at_start)
            .needs([Tool::Nft])
            .alone(),
        Test::new("late_answer_of_a_slow_name_server_is_used", name_servers::slow_name_server).alone(),
        Test::new(
            "invalid_file_after_a_pending_reload_is_reported",
            name_servers::wrong_file_after_a_good_one,
        )
        .alone(),
        Test::new("removed_unicast_source_is_no_longer_reported", instances::removed_source),
        Test::new("reload_after_sigterm_is_ignored", instances::reload_after_stop),
    ]
}
