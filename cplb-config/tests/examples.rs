//! Configurations as users have them, and their effective form.

use std::path::Path;

use cplb_config::{Config, Format, Loaded, Redact, load};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The findings and the effective configuration, which has to load to the same configuration again.
fn effective(name: &str) -> String {
    let Loaded { config, warnings, document } =
        load(&read(name), name).unwrap_or_else(|errors| panic!("{}", errors.report().plain()));
    let yaml = config.to_native_yaml(Redact::Nothing).unwrap();
    assert_eq!(reloaded(&yaml), config, "the effective document of {name} is different:\n{yaml}");
    format!("{}\n{yaml}", document.report(warnings).plain())
}

fn reloaded(yaml: &str) -> Config {
    let loaded =
        load(yaml, "effective.yaml").unwrap_or_else(|errors| panic!("{}\n{yaml}", errors.report().plain()));
    assert_eq!(loaded.document.format, Format::Native);
    loaded.config
}

macro_rules! examples {
    ($($test:ident = $file:literal;)+) => {
        $(
            #[test]
            fn $test() {
                insta::assert_snapshot!(effective($file));
            }
        )+
    };
}

examples! {
    k0s_ipvs = "k0s-ipvs.yaml";
    k0s_before_migration = "k0s-before-migration.yaml";
    k0s_userspace = "k0s-userspace.yaml";
    k0s_unicast_dual_stack = "k0s-unicast-dual-stack.yaml";
    k0s_anchors = "k0s-anchors.yaml";
    k0sctl_ipvs_fragment = "k0sctl-ipvs-fragment.yaml";
    k0sctl_ipvs = "k0sctl-ipvs.yaml";
    k0sctl_external_address = "k0sctl-external-address.yaml";
    k0sctl_external_balancer = "k0sctl-external-balancer.yaml";
    k0sctl_node_local = "k0sctl-node-local.yaml";
    cfctl_stacked = "cfctl-stacked.yaml";
    k0s_ipvs_beside_kube_proxy = "k0s-ipvs-beside-kube-proxy.yaml";
    native_ipvs = "native-ipvs.yaml";
    native_three_ports = "native-three-ports.yaml";
    native_least_connections = "native-least-connections.yaml";
    native_kube_vip = "native-kube-vip.yaml";
    native_k3s = "native-k3s.yaml";
    native_everything = "native-everything.yaml";
}

#[test]
fn every_example_file_is_tested() {
    let source = include_str!("examples.rs");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(source.contains(&format!("\"{name}\"")), "{name} is not tested");
    }
}

#[test]
fn a_network_section_without_spec_is_located_and_the_right_place_named() {
    let errors = load(&read("k0sctl-misplaced-network.yaml"), "k0sctl.yaml").unwrap_err();
    insta::assert_snapshot!(errors.report().plain());
}

#[test]
fn a_k0s_file_for_an_external_balancer_has_nothing_to_do() {
    let errors = load(&read("k0s-external-balancer.yaml"), "k0s.yaml").unwrap_err();
    insta::assert_snapshot!(errors.report().plain());
}
