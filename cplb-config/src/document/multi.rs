//! k0sctl's files of several documents: ClusterConfigs are merged into the Cluster's `spec.k0s.config`.

use crate::walk::{Finding, Reporter};
use crate::yaml::{Child, merge};

/// The most documents that are merged: each may repeat the content of all before it.
const MOST_CONFIGS: usize = 50;

/// The Cluster with ClusterConfigs merged into its `spec.k0s.config`, one after the other. As in k0sctl (`readConfig`),
/// a value that is already there stays, and each that is dropped is reported. `None` only if something was reported.
pub(super) fn with_configs(cluster: &Child, configs: &[&Child], out: &Reporter<'_>) -> Option<Child> {
    let Some(first) = configs.first() else { return Some(cluster.clone()) };
    if let Some(excess) = configs.get(MOST_CONFIGS) {
        let message =
            format!("{} ClusterConfigs are more than the {MOST_CONFIGS} that are merged", configs.len());
        out.error("", excess.at, Finding::new("too-many", message, "put them into one document"));
        return None;
    }
    let at = |child: &Child, key: &str| child.mapping().and_then(|mapping| mapping.child(key)).cloned();
    let spec = at(cluster, "spec");
    let k0s = spec.as_ref().and_then(|spec| at(spec, "k0s"));
    // To k0sctl a null is no configuration at all.
    let config = k0s.as_ref().and_then(|k0s| at(k0s, "config")).filter(|config| !config.is_null());
    if config.as_ref().is_some_and(|config| config.mapping().is_none()) {
        // It is reported where it is read.
        return Some(cluster.clone());
    }
    let parts: Vec<&Child> = config.iter().chain(configs.iter().copied()).collect();
    let merged = merge(&parts, "", &mut |conflict| {
        // Each document has a head and a name of its own.
        if !conflict.path.starts_with("spec") {
            return;
        }
        let message = format!(
            "`{}` is already given on line {}, and that value stays: k0sctl merges documents so",
            conflict.path, conflict.kept.at.line
        );
        let finding = Finding::new("merge-conflict", message, "keep one of the two");
        out.warn(&conflict.path, conflict.dropped.at, finding);
    });
    let k0s = k0s.unwrap_or_else(|| first.emptied()).with_value("config", merged);
    // A `spec` or `k0s` of another type is reported where it is read.
    let spec = k0s.and_then(|k0s| spec.unwrap_or_else(|| first.emptied()).with_value("k0s", k0s));
    Some(spec.and_then(|spec| cluster.with_value("spec", spec)).unwrap_or_else(|| cluster.clone()))
}
