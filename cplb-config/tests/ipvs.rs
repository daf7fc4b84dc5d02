//! The effect of virtual servers on the services that they balance.

use std::time::Duration;

use cplb_config::{Config, LbAlgorithm, Redact, json_schema, load};

fn config(spec: &str) -> Config {
    let text = format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  backends: {{static: [10.0.0.11]}}\n  \
         vrrpInstances: [{{virtualIPs: [10.0.0.100/24]}}]\n{spec}"
    );
    load(&text, "f.yaml").unwrap_or_else(|errors| panic!("{}", errors.report().plain())).config
}

fn interval(virtual_server: &str, check: &str) -> Duration {
    let spec = format!(
        "  virtualServers: [{{ipAddress: 10.0.0.100{virtual_server}}}]\n  healthCheck: {{timeout: 3s{check}}}\n"
    );
    let config = config(&spec);
    assert_eq!(config.services[0].health.timeout, Duration::from_secs(3));
    config.services[0].health.interval
}

#[test]
fn checks_run_at_least_as_often_as_delay_loop_asks() {
    let milliseconds = Duration::from_millis;
    assert_eq!(interval("", ""), milliseconds(1000));
    assert_eq!(interval(", delayLoop: 30s", ""), milliseconds(1000));
    assert_eq!(interval(", delayLoop: 300ms", ""), milliseconds(300));
    assert_eq!(interval(", delayLoop: 1us", ""), milliseconds(10));
    assert_eq!(interval(", delayLoop: 30s", ", interval: 2m"), milliseconds(30_000));
    assert_eq!(interval("", ", interval: 2m"), milliseconds(60_000));
    assert_eq!(interval(", delayLoop: 30s", ", interval: 200ms"), milliseconds(200));
}

#[test]
fn the_effective_document_shows_the_settings_of_ipvs() {
    let spec = "  virtualServers: [{ipAddress: 10.0.0.100, delayLoop: 500ms}]\n";
    let shown = config(spec).to_native_yaml(Redact::Passwords).unwrap();
    for line in ["    delayLoop: 500ms\n", "      interval: 500ms\n", "  ipvsSync: false\n"] {
        assert!(shown.contains(line), "{line:?} is not in:\n{shown}");
    }
    let without = config("").to_native_yaml(Redact::Passwords).unwrap();
    assert!(without.contains("      interval: 1s\n") && !without.contains("ipvsSync"), "{without}");
}

/// As the kernel's schedulers do (net/netfilter/ipvs: `ip_vs_wrr.c` and its neighbours).
#[test]
fn six_schedulers_give_shares_by_weight() {
    let weighted: Vec<&str> = LbAlgorithm::WORDS
        .iter()
        .filter(|(_, algorithm)| algorithm.uses_weights())
        .map(|(word, _)| *word)
        .collect();
    assert_eq!(weighted, ["wrr", "wlc", "lblc", "sh", "sed", "nq"]);
}

#[test]
fn the_schema_describes_the_connections_that_are_synchronised() {
    let schema = serde_json::to_value(json_schema()).unwrap();
    let text = schema["$defs"]["Spec"]["properties"]["ipvsSync"]["description"].as_str().unwrap();
    assert!(text.contains("DR and TUN"), "{text}");
}
