//! SIGHUP: the configuration changes, the connections stay; an invalid file changes nothing.

mod ground;
mod instances;
mod name_servers;
mod table;
mod undisturbed;

use testbed::{Test, Tool};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("a_reload_adds_a_service_and_keeps_every_connection", undisturbed::adds_a_service),
        Test::new("a_reload_changes_backends_and_keeps_every_connection", undisturbed::changes_backends),
        Test::new("a_wrong_file_changes_nothing_and_is_shown_until_it_is_mended", undisturbed::wrong_file),
        Test::new("a_port_that_is_taken_changes_nothing", undisturbed::taken_port),
        Test::new("a_silent_name_server_stops_nothing", name_servers::silent_name_server).alone(),
        Test::new("a_reload_adds_and_removes_an_instance_without_touching_the_other", undisturbed::instances),
        Test::new("a_removed_instance_hands_its_address_over", instances::removed_instance),
        Test::new("a_reload_gives_addresses_of_one_instance_to_another", instances::traded_addresses),
        Test::new("an_address_goes_to_another_instance_and_back_at_once", instances::address_there_and_back),
        Test::new("the_table_leads_an_address_as_long_as_it_is_held", table::table_outlives_addresses)
            .needs([Tool::Nft]),
        Test::new("the_table_leads_a_new_address_before_it_is_held", table::table_precedes_addresses),
        Test::new("removed_vips_are_served_until_they_are_gone", table::listeners_outlive_addresses)
            .needs([Tool::Nft]),
        Test::new("a_table_that_cannot_be_changed_is_tried_again", table::stubborn_table)
            .needs([Tool::Nft])
            .alone(),
        Test::new("a_slow_name_server_is_waited_for_by_nobody_and_heard", name_servers::slow_name_server)
            .alone(),
        Test::new(
            "a_wrong_file_is_shown_although_the_one_before_was_good",
            name_servers::wrong_file_after_a_good_one,
        )
        .alone(),
        Test::new("a_setting_that_is_taken_out_is_no_longer_missed", instances::source_taken_out),
        Test::new("a_reload_after_a_stop_is_too_late", instances::reload_at_the_end),
    ]
}
