//! k0sctl's files of several documents, merged as k0sctl merges them.

use cplb_config::{Config, Format, load};

fn loaded(text: &str) -> (Config, usize) {
    let loaded = load(text, "f.yaml").unwrap_or_else(|errors| panic!("{}", errors.report().plain()));
    assert_eq!(loaded.document.format, Format::K0sctl);
    let dropped = loaded.warnings.iter().filter(|warning| warning.rule == "merge-conflict").count();
    (loaded.config, dropped)
}

const CLUSTER: &str = "apiVersion: k0sctl.k0sproject.io/v1beta1\nkind: Cluster\nspec:\n  hosts:\n  - role: controller\n    ssh: {address: 192.0.2.11}\n";

/// A ClusterConfig with a virtual IP and a port of the API.
fn part(vip: &str, port: u16) -> String {
    format!(
        "---\napiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\nmetadata: {{name: p{port}}}\nspec:\n  api: {{port: {port}}}\n  \
         network:\n    controlPlaneLoadBalancing:\n      keepalived:\n        vrrpInstances:\n        \
         - virtualIPs: [{vip}/24]\n          authPass: Example\n"
    )
}

fn vips(config: &Config) -> Vec<String> {
    config.virtual_ips().map(|ip| ip.to_string()).collect()
}

#[test]
fn a_cluster_config_beside_a_cluster_is_its_configuration() {
    let (config, dropped) = loaded(&format!("{CLUSTER}{}", part("192.0.2.100", 7443)));
    assert_eq!((vips(&config), config.services[0].port.number()), (vec!["192.0.2.100".to_owned()], 7443));
    assert_eq!((config.backends.fixed[0].to_string(), dropped), ("192.0.2.11".to_owned(), 0));
    // The order of the documents does not matter.
    let turned = format!("{}---\n{CLUSTER}", part("192.0.2.100", 7443));
    assert_eq!(loaded(&turned).0, config);
}

#[test]
fn a_value_that_is_already_there_stays() {
    let inline = "  k0s:\n    config:\n      spec: {api: {port: 8443}}\n";
    let (config, dropped) = loaded(&format!("{CLUSTER}{inline}{}", part("192.0.2.100", 7443)));
    assert_eq!((vips(&config), config.services[0].port.number()), (vec!["192.0.2.100".to_owned()], 8443));
    assert_eq!(dropped, 1);
    let both = format!("{CLUSTER}{}{}", part("192.0.2.100", 7443), part("192.0.2.200", 6443));
    let (config, dropped) = loaded(&both);
    assert_eq!((vips(&config), config.services[0].port.number()), (vec!["192.0.2.100".to_owned()], 7443));
    assert_eq!(dropped, 2);
}

#[test]
fn empty_configurations_of_a_cluster_are_filled() {
    for k0s in ["  k0s:\n", "  k0s: {}\n", "  k0s: {config: }\n", "  k0s: {version: 1.35.0, config: {}}\n"] {
        let (config, dropped) = loaded(&format!("{CLUSTER}{k0s}{}", part("192.0.2.100", 7443)));
        assert_eq!((vips(&config).len(), dropped), (1, 0), "{k0s}");
    }
}

#[test]
fn very_many_documents_are_refused_and_not_merged() {
    let text: String = std::iter::once(CLUSTER.to_owned())
        .chain((0..60).map(|n| {
            format!("---\napiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\nspec: {{a{n}: 1}}\n")
        }))
        .collect();
    let plain = load(&text, "f.yaml").unwrap_err().report().plain();
    assert!(plain.contains("60 ClusterConfigs are more than the 50 that are merged"), "{plain}");
}
