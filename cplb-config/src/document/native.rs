//! The native document.

use crate::format::Format;
use crate::model::{Config, Port};
use crate::read::{Dialect, finish, read_section};
use crate::rules::{ClusterContext, KubeProxy, assemble};
use crate::walk::Field;

/// The default port of the API server.
pub(super) const API_PORT: Option<Port> = Port::new(6443);

pub(super) fn read(root: &Field<'_>) -> Option<Config> {
    let table = root.table()?;
    // apiVersion and kind were compared already; metadata is the user's.
    for name in ["apiVersion", "kind", "metadata"] {
        let _ = table.field(name);
    }
    let out = root.out;
    let spec = table.field("spec");
    if spec.is_none() {
        table.missing("spec", Format::Native.first_steps());
    }
    finish(table, Dialect::Native);
    let spec = spec?;
    let cluster = ClusterContext {
        api_address: None,
        format: Format::Native,
        at: spec.key,
        api_port: API_PORT,
        external_address: None,
        endpoint_reconciler_disabled: false,
        controllers: Vec::new(),
        workers: Vec::new(),
        kube_proxy: KubeProxy::default(),
        bound_server: None,
    };
    assemble(read_section(&spec, Dialect::Native)?, cluster, out)
}
