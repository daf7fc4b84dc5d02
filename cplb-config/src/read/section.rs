//! The load balancing section: k0s's `keepalived` mapping, or the `spec` of the native document.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_proxy::Balance;

use crate::model::{Host, Port, VirtualServer};
use crate::walk::{Field, Finding, Table};

use super::backend::{BackendsDraft, host, port, read_backends};
use super::health::{HealthDraft, read_health};
use super::instance::{InstanceDraft, read_instances};
use super::service::{Given, ServiceDraft, read_balance, read_services};
use super::virtual_server::read_virtual_servers;
use super::{Dialect, Placed, finish};

/// The port k0s's userspace proxy binds.
pub(crate) const PROXY_BIND_PORT: Option<Port> = Port::new(6444);

/// All settings of the section, not yet compared with each other.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) instances: Vec<InstanceDraft>,
    pub(crate) virtual_servers: Vec<VirtualServer>,
    pub(crate) virtual_server_addresses: Vec<Placed<IpAddr>>,
    pub(crate) ipvs_sync: Option<Placed<bool>>,
    pub(crate) proxy_bind_port: Given<Port>,
    pub(crate) bind_address: Option<IpAddr>,
    pub(crate) external_address: Option<Host>,
    pub(crate) disable_load_balancer: bool,
    pub(crate) services: Option<Vec<ServiceDraft>>,
    pub(crate) backends: BackendsDraft,
    pub(crate) balance: Given<Balance>,
    pub(crate) health: HealthDraft,
    pub(crate) status_listen: Option<Placed<SocketAddr>>,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            instances: Vec::new(),
            virtual_servers: Vec::new(),
            virtual_server_addresses: Vec::new(),
            ipvs_sync: None,
            proxy_bind_port: Given::Absent,
            bind_address: None,
            external_address: None,
            disable_load_balancer: false,
            services: None,
            backends: BackendsDraft::default(),
            balance: Given::Absent,
            health: HealthDraft::default(),
            status_listen: None,
        }
    }
}

/// Reads the section. Paths inside it begin with its own field names whichever document it stands in.
pub(crate) fn read_section(field: &Field<'_>, dialect: Dialect) -> Option<Section> {
    let table = field.clone().renamed("").table()?;
    let mut section = Section {
        instances: table
            .field("vrrpInstances")
            .map(|list| read_instances(&list, dialect))
            .unwrap_or_default(),
        proxy_bind_port: Given::read(
            table.field("userSpaceProxyBindPort").and_then(|field| field.unless_zero("port 6444")),
            port,
        ),
        disable_load_balancer: table
            .field("disableLoadBalancer")
            .and_then(|field| field.bool())
            .unwrap_or(false),
        ..Section::default()
    };
    if let Some(list) = table.field("virtualServers") {
        (section.virtual_servers, section.virtual_server_addresses) = read_virtual_servers(&list, dialect);
    }
    match dialect {
        Dialect::K0s => templates(&table),
        Dialect::Native => native(&table, &mut section),
    }
    finish(table, dialect);
    Some(section)
}

fn native(table: &Table<'_>, section: &mut Section) {
    let dialect = Dialect::Native;
    let ipvs_sync = table.field("ipvsSync");
    section.ipvs_sync = ipvs_sync.and_then(|field| Some(Placed::new(field.bool()?, &field)));
    section.services = table.field("services").map(|list| read_services(&list, dialect));
    section.backends =
        table.field("backends").map(|field| read_backends(&field, dialect)).unwrap_or_default();
    section.balance = read_balance(table);
    section.health = table.field("healthCheck").map(|field| read_health(&field, dialect)).unwrap_or_default();
    if let Some(status) = table.field("status").and_then(|field| field.table()) {
        section.status_listen = status.field("listen").and_then(|field| listen(&field));
        finish(status, dialect);
    }
    section.bind_address = table.field("bindAddress").and_then(|field| bind_address(&field));
    section.external_address = table.field("externalAddress").and_then(|field| external_address(&field));
}

fn external_address(field: &Field<'_>) -> Option<Host> {
    match host(&field.string()?) {
        Ok(host) => Some(host),
        Err(error) => {
            let help = "write the host by which clients reach the API servers, without a port, such as `api.example.com`";
            field.error(Finding::new("external-address", error.to_string(), help));
            None
        }
    }
}

fn bind_address(field: &Field<'_>) -> Option<IpAddr> {
    let text = field.string()?;
    let help = "write an address of the node, 127.0.0.1 for none, 0.0.0.0 for all of IPv4, or :: for all";
    match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if !ip.is_multicast() && ip != IpAddr::from(Ipv4Addr::BROADCAST) => Some(ip),
        Ok(_) => {
            field.error(Finding::new(
                "bind-address",
                format!("{text} is the address of no single node"),
                help,
            ));
            None
        }
        Err(_) => {
            field.error(Finding::new("bind-address", format!("`{text}` is no IP address"), help));
            None
        }
    }
}

/// keepalived's templates mean nothing without keepalived.
fn templates(table: &Table<'_>) {
    for name in ["configTemplateVRRP", "configTemplateVS"] {
        if let Some(field) = table.field(name).filter(|field| field.child.text() != Some("")) {
            let message = format!("`{name}` is a template for keepalived and is not used");
            let help =
                "the setting of the template may exist as a field of the native document; else remove it";
            field.warn(Finding::new("config-template", message, help));
        }
    }
}

fn listen(field: &Field<'_>) -> Option<Placed<SocketAddr>> {
    let text = field.string()?;
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Some(Placed::new(address, field)),
        _ => {
            let port = text.rsplit(':').next().filter(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
            let help = format!("write an address and a port, such as `127.0.0.1:{}`", port.unwrap_or("9000"));
            field.error(Finding::new("listen", format!("`{text}` is no address to listen on"), help));
            None
        }
    }
}
