//! The settings of the cluster that matter to IPVS. Mistakes in them are k0s's to report and are ignored here.

use std::net::IpAddr;

use crate::read::Placed;
use crate::rules::{BoundServer, IpvsProxy, KubeProxy};
use crate::walk::{Field, join};
use crate::yaml::{Child, Resolved, resolve};

/// The settings of kube-proxy. `network` is k0s's `spec.network`.
pub(super) fn kube_proxy(network: &Field<'_>) -> KubeProxy {
    let Some(proxy) = within(&root(network), "kubeProxy") else { return KubeProxy::Unspecified };
    if within(&proxy, "disabled").is_some_and(|disabled| is_true(disabled.value)) {
        return KubeProxy::WithoutIpvs;
    }
    let mode = within(&proxy, "mode");
    let Some((mode, text)) = mode.and_then(|mode| Some((placed(&mode, ()), mode.value.text()?))) else {
        return KubeProxy::Unspecified;
    };
    match text {
        "ipvs" => {}
        "" => return KubeProxy::Unspecified,
        _ => return KubeProxy::WithoutIpvs,
    }
    let ipvs = within(&proxy, "ipvs");
    let excluded = ipvs.as_ref().and_then(|ipvs| within(ipvs, "excludeCIDRs"));
    let texts = |list: &Placed<&Child>| {
        let items = list.value.sequence().unwrap_or_default();
        items.iter().filter_map(|item| item.text().map(str::to_owned)).collect()
    };
    KubeProxy::Ipvs(IpvsProxy {
        mode,
        has_ipvs: ipvs.is_some(),
        excluded: excluded.map(|list| placed(&list, texts(&list))),
    })
}

/// The field that binds the API server to one address. `api` is k0s's `spec.api`.
pub(super) fn bound_server(api: &Field<'_>) -> Option<BoundServer> {
    let api = root(api);
    let ip = |field: &Placed<&Child>| field.value.text()?.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    // k0s passes the arguments last, so they win.
    if let Some(field) = within(&api, "extraArgs").and_then(|arguments| within(&arguments, "bind-address")) {
        let address = ip(&field).filter(|ip| !ip.is_unspecified())?;
        return Some(BoundServer {
            by: placed(&field, "bind-address"),
            address: Some(placed(&field, address)),
        });
    }
    let only = within(&api, "onlyBindToAddress").filter(|only| is_true(only.value))?;
    let address = within(&api, "address").and_then(|field| Some(placed(&field, ip(&field)?)));
    Some(BoundServer { by: placed(&only, "onlyBindToAddress"), address })
}

fn root<'a>(field: &Field<'a>) -> Placed<&'a Child> {
    Placed { value: field.child, at: field.child.at, path: field.path.clone() }
}

/// A field, in any case as Go's JSON reads it; absent and null are the same.
fn within<'a>(parent: &Placed<&'a Child>, name: &str) -> Option<Placed<&'a Child>> {
    let mapping = parent.value.mapping()?;
    let any_case = || mapping.entries.iter().find(|entry| entry.key.text.eq_ignore_ascii_case(name));
    let entry = mapping.entry(name).or_else(any_case).filter(|entry| !entry.child.is_null())?;
    Some(Placed { value: &entry.child, at: entry.child.at, path: join(&parent.path, name) })
}

fn placed<T>(field: &Placed<&Child>, value: T) -> Placed<T> {
    Placed { value, at: field.at, path: field.path.clone() }
}

fn is_true(child: &Child) -> bool {
    child.scalar().is_some_and(|scalar| matches!(resolve(scalar), Resolved::Bool(true)))
}
