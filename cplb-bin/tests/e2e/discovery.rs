//! API servers that no configuration lists: discovered through the API, from the first start on.

mod boot;
mod changes;
pub(crate) mod fixture;
mod trust;

use testbed::{Test, Tool};

pub(crate) fn tests() -> Vec<Test> {
    let tests = vec![
        Test::new("cluster_starts_before_any_api_server_exists", boot::from_nothing),
        Test::new("start_without_the_api_uses_stored_servers", boot::from_disk),
        Test::new("start_with_only_dead_stored_servers_finds_running_ones", boot::dead_disk),
        Test::new("unreadable_server_file_is_reported_and_rewritten", boot::unreadable_files),
        Test::new("unwritable_server_file_does_not_affect_discovery", boot::unwritable_file),
        Test::new("server_list_changes_apply_without_a_restart", changes::list_changes),
        Test::new("a_hundred_changes_leak_no_resources", changes::many_changes),
        Test::new("controllers_join_and_leave_without_failed_requests", changes::join_and_leave),
        Test::new("reload_with_a_wrong_kubeconfig_keeps_the_servers", changes::other_kubeconfig),
        Test::new("rolling_restart_of_all_daemons_refuses_no_client", changes::upgrade),
        Test::new("daemon_crash_fails_only_requests_in_flight", changes::crashes),
        Test::new("server_list_of_only_vips_is_ignored", changes::list_of_vips),
        Test::new("server_list_of_proxies_causes_no_connections", changes::list_of_proxies),
        Test::new("readiness_is_checked_with_the_client_certificate", trust::by_certificate),
        Test::new("restricted_token_discovers_servers_and_stays_secret", trust::by_token),
        Test::new("servers_with_untrusted_certificates_receive_no_clients", trust::impostor),
    ];
    tests.into_iter().map(|test| test.needs([Tool::Nft])).collect()
}
