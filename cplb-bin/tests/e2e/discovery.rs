//! API servers that no configuration lists: discovered through the API, from the first start on.

mod boot;
mod changes;
mod ground;
mod trust;

use testbed::{Test, Tool};

pub(crate) fn tests() -> Vec<Test> {
    let tests = vec![
        Test::new("a_cluster_comes_up_from_nothing", boot::from_nothing),
        Test::new("a_boot_without_an_api_uses_what_was_known", boot::from_disk),
        Test::new("a_boot_with_only_dead_servers_on_disk_finds_the_living", boot::dead_disk),
        Test::new("a_boot_goes_without_a_file_that_is_of_no_use", boot::useless_files),
        Test::new("a_file_that_cannot_be_written_costs_nothing_else", boot::unwritable_file),
        Test::new("servers_come_and_go_without_a_restart", changes::come_and_go),
        Test::new("a_hundred_changes_leave_nothing_behind", changes::many_changes),
        Test::new("a_controller_joins_and_one_leaves_for_good", changes::join_and_leave),
        Test::new("a_reload_to_a_wrong_kubeconfig_keeps_the_servers", changes::other_kubeconfig),
        Test::new("an_upgrade_of_all_daemons_refuses_nobody", changes::upgrade),
        Test::new("a_crash_of_each_daemon_fails_only_what_meets_it", changes::crashes),
        Test::new("an_object_with_the_virtual_ip_only_changes_nothing", changes::only_the_vip),
        Test::new("a_list_of_proxies_makes_no_connection_without_a_client", changes::only_proxies),
        Test::new("readiness_is_asked_for_by_certificate", trust::by_certificate),
        Test::new("a_token_of_few_rights_finds_the_servers_and_stays_secret", trust::by_token),
        Test::new("who_cannot_prove_to_be_a_server_gets_nobody", trust::impostor),
    ];
    tests.into_iter().map(|test| test.needs([Tool::Nft])).collect()
}
