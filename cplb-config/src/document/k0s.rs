//! k0s's ClusterConfig, alone or inside a k0sctl Cluster.

use crate::diagnostic::Severity;
use crate::format::Format;
use crate::model::{Config, Port};
use crate::read::{Dialect, PROXY_BIND_PORT, Placed, Section, read_section};
use crate::rules::{ClusterContext, KubeProxy, assemble};
use crate::walk::{Field, Finding, Hint, Table};
use crate::yaml::Span;

use super::cluster::{bound_server, kube_proxy};
use super::hosts::{Controllers, read_controllers};
use super::native::API_PORT;

const SECTION: &str = "controlPlaneLoadBalancing";

pub(super) fn read_cluster_config(root: &Field<'_>) -> Option<Config> {
    let table = root.table()?;
    read(Format::K0s, root, Some(&table), Controllers::default())
}

pub(super) fn read_k0sctl(root: &Field<'_>) -> Option<Config> {
    let spec = root.table()?.field("spec").and_then(|spec| spec.table());
    let controllers =
        spec.as_ref().and_then(|spec| spec.field("hosts")).map(|hosts| read_controllers(&hosts));
    let k0s = spec.as_ref().and_then(|spec| spec.field("k0s")).and_then(|k0s| k0s.table());
    let config = k0s.as_ref().and_then(|k0s| k0s.field("config")).and_then(|config| config.table());
    read(Format::K0sctl, root, config.as_ref(), controllers.unwrap_or_default())
}

/// The load balancing section of a k0s configuration, and the settings around it.
#[derive(Default)]
struct Found<'a> {
    api: Option<Field<'a>>,
    section: Option<Field<'a>>,
    kube_proxy: KubeProxy,
}

fn read(
    format: Format,
    root: &Field<'_>,
    config: Option<&Table<'_>>,
    controllers: Controllers,
) -> Option<Config> {
    let found = config.map(find).unwrap_or_default();
    let section_key = found.section.as_ref().map(|section| section.key);
    let bound_server = found.api.as_ref().and_then(bound_server);
    let api = found.api.and_then(|api| api.table());
    let section = match &found.section {
        Some(section) => read_load_balancing(section),
        None => Some(Section::default()),
    };
    let api_port = api
        .as_ref()
        .and_then(|api| api.field("port"))
        .and_then(|field| field.unless_zero("port 6443"))
        .map_or(API_PORT, |field| field.integer(1..=u16::MAX).and_then(Port::new));
    let api_address = api
        .as_ref()
        .and_then(|api| api.field("address"))
        .and_then(|field| Some(Placed::new(field.child.text()?.parse().ok()?, &field)));
    let external_address = api
        .as_ref()
        .and_then(|api| api.field("externalAddress"))
        .and_then(|field| Some(Placed::new(field.string()?, &field)))
        .filter(|external| !external.value.is_empty());
    let section = section?;
    let at = section_key.unwrap_or(root.child.at);
    if section.instances.is_empty() && !controllers.backends.is_empty() {
        no_virtual_ip(root, at, &section);
    }
    let cluster = ClusterContext {
        format,
        at,
        api_port,
        api_address,
        external_address,
        endpoint_reconciler_disabled: controllers.endpoint_reconciler_disabled,
        controllers: controllers.backends,
        workers: controllers.workers,
        kube_proxy: if controllers.none_is_worker { KubeProxy::WithoutIpvs } else { found.kube_proxy },
        bound_server,
    };
    assemble(section, cluster, root.out)
}

fn no_virtual_ip(root: &Field<'_>, at: Span, section: &Section) {
    let port = section
        .proxy_bind_port
        .or(PROXY_BIND_PORT)
        .map_or_else(String::new, |port| format!(" on port {port}"));
    let message = format!("no virtual IP is configured: only the load balancer{port} will run");
    let help = "add spec.network.controlPlaneLoadBalancing.keepalived.vrrpInstances if an address shall move";
    root.out.warn("", at, Finding::new("no-virtual-ip", message, help));
}

/// Finds `spec.api` and the section, and reports sections at places that k0s does not read. These are read all the
/// same, so that their other mistakes are reported at once.
fn find<'a>(config: &Table<'a>) -> Found<'a> {
    let spec_field = config.field("spec");
    let spec = spec_field.as_ref().and_then(super::super::walk::Field::table);
    let network = spec.as_ref().and_then(|spec| spec.field("network"));
    let mut found = Found {
        api: spec.as_ref().and_then(|spec| spec.field("api")),
        section: network.as_ref().and_then(section_of),
        kube_proxy: network.as_ref().map(kube_proxy).unwrap_or_default(),
    };
    let base = match config.path.rsplit('.').next() {
        Some("config") => "config.spec",
        _ => "spec",
    };
    if let Some(network) = config.field("network") {
        let section = section_of(&network);
        if section.is_some() || spec_field.is_none() {
            misplaced(&network, "network", &format!("{base}.network"));
            found.section = found.section.or(section);
        }
    }
    if let Some(api) = config.field("api").filter(|_| spec_field.is_none()) {
        misplaced(&api, "api", &format!("{base}.api"));
        found.api = Some(api);
    }
    for table in [Some(config), spec.as_ref()].into_iter().flatten() {
        if let Some(section) = table.field(SECTION) {
            misplaced(&section, SECTION, &format!("{base}.network.{SECTION}"));
            found.section = found.section.or(Some(section));
        }
    }
    found
}

/// The section in `network`. Its other fields belong to k0s and are not checked.
fn section_of<'a>(network: &Field<'a>) -> Option<Field<'a>> {
    network.child.mapping()?;
    network.table()?.field(SECTION)
}

fn misplaced(field: &Field<'_>, name: &str, right: &str) {
    let parent = field.path.strip_suffix(name).unwrap_or_default().trim_end_matches('.');
    let parent = parent.rsplit('.').next().filter(|parent| !parent.is_empty());
    let message = match parent {
        Some(parent) => format!("`{name}` stands directly under `{parent}`, where k0s does not look for it"),
        None => format!("`{name}` stands at the top of the document, where k0s does not look for it"),
    };
    let finding = Finding::new("misplaced", message, format!("move it to `{right}`"));
    field.out.error(&field.path, field.key, finding);
}

fn read_load_balancing(section: &Field<'_>) -> Option<Section> {
    let table = section.table()?;
    let enabled = table.field("enabled");
    warn_enabled(section, enabled.as_ref());
    if let Some(field) = table.field("type") {
        let kind = field.string();
        if let Some(kind) = kind.filter(|kind| !kind.is_empty() && kind != "Keepalived") {
            let message = format!("the load balancer type `{kind}` is not known");
            field.error(Finding::new("lb-type", message, "write `type: Keepalived`, or leave it out"));
        }
    }
    let keepalived = table.field("keepalived");
    let read = match &keepalived {
        Some(field) => read_section(field, Dialect::K0s),
        None => Some(Section::default()),
    };
    table.finish(|name| match name {
        "vrrpInstances" | "virtualServers" | "userSpaceProxyBindPort" | "disableLoadBalancer" => {
            Some(Hint::Mistake(format!("move it to `keepalived.{name}`")))
        }
        _ => Dialect::K0s.hint(name),
    });
    read
}

/// Reports that the section is used whatever the value of `enabled` is.
fn warn_enabled(section: &Field<'_>, enabled: Option<&Field<'_>>) {
    let (severity, message, help) = match enabled.map(Field::bool) {
        Some(None) => return,
        Some(Some(true)) => (
            Severity::Warning,
            "k0s runs its own load balancer from this section too, with the same VRIDs and ports",
            "set `enabled: false` for k0s on every node where cplb runs; cplb uses the section whatever `enabled` says",
        ),
        Some(Some(false)) | None => (
            Severity::Advice,
            "the section is not enabled for k0s; cplb uses it all the same",
            "nothing to do: `enabled` applies to k0s only",
        ),
    };
    let at = enabled.map_or(section.key, Field::at);
    let path = enabled.map_or(section.path.as_str(), |field| field.path.as_str());
    section.out.report(severity, path, Some(at), Finding::new("enabled", message, help));
}
