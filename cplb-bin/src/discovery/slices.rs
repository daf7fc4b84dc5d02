//! The objects that list a cluster's API servers: EndpointSlices, and Endpoints of servers before Kubernetes 1.21. Only the
//! needed fields are decoded.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

/// The name of the service, and of its Endpoints.
pub(super) const SERVICE: &str = "kubernetes";
/// The label of the slices of the service.
pub(super) const LABEL: &str = "kubernetes.io/service-name=kubernetes";
/// The name of the port that clients of the API use.
const PORT_NAME: &str = "https";
/// The port of API servers whose object has none.
const PORT: u16 = 6443;

/// An object that lists servers.
pub(super) trait ServerList {
    /// The ready servers.
    fn servers(&self) -> BTreeSet<SocketAddr>;
}

/// `discovery.k8s.io/v1`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    metadata: ObjectMeta,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Endpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
}

#[derive(Debug, Clone, Deserialize)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
}

/// `v1`, for API servers without EndpointSlices.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Endpoints {
    metadata: ObjectMeta,
    subsets: Option<Vec<Subset>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Subset {
    addresses: Option<Vec<Address>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Address {
    ip: String,
}

impl ServerList for EndpointSlice {
    /// An endpoint without the condition `ready` is ready (`EndpointConditions`).
    fn servers(&self) -> BTreeSet<SocketAddr> {
        let port = port(self.ports.as_deref());
        let is_ready = |endpoint: &&Endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        };
        let endpoints = self.endpoints.iter().flatten().filter(is_ready);
        let addresses = endpoints.flat_map(|endpoint| endpoint.addresses.iter().flatten());
        addresses.filter_map(|text| server(text, port)).collect()
    }
}

impl ServerList for Endpoints {
    fn servers(&self) -> BTreeSet<SocketAddr> {
        let subset = |subset: &Subset| {
            let port = port(subset.ports.as_deref());
            let addresses = subset.addresses.iter().flatten();
            addresses.filter_map(|address| server(&address.ip, port)).collect::<Vec<_>>()
        };
        self.subsets.iter().flatten().flat_map(subset).collect()
    }
}

/// The server of an address; none for the host names of address type FQDN.
fn server(text: &str, port: u16) -> Option<SocketAddr> {
    let ip: IpAddr = text.parse().ok()?;
    let ip = ip.to_canonical();
    // No API server can have these addresses, but any text may be in the object.
    let usable = !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast());
    usable.then(|| SocketAddr::new(ip, port))
}

fn port(ports: Option<&[Port]>) -> u16 {
    let ports = ports.unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some(PORT_NAME));
    named.or_else(|| ports.first()).and_then(|port| port.port).filter(|port| *port != 0).unwrap_or(PORT)
}

macro_rules! resource {
    ($type:ty, $group:literal, $kind:literal, $plural:literal) => {
        impl Resource for $type {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(EndpointSlice, "discovery.k8s.io", "EndpointSlice", "endpointslices");
resource!(Endpoints, "", "Endpoints", "endpoints");

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(text: &str) -> BTreeSet<SocketAddr> {
        serde_json::from_str::<EndpointSlice>(text).unwrap().servers()
    }

    fn set(servers: &[&str]) -> BTreeSet<SocketAddr> {
        servers.iter().map(|server| server.parse().unwrap()).collect()
    }

    #[test]
    fn ready_endpoints_are_servers_at_the_https_port() {
        let found = slice(
            r#"{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "kubernetes"},
                "addressType": "IPv4", "ports": [{"name": "metrics", "port": 1}, {"name": "https", "port": 6444}],
                "endpoints": [
                  {"addresses": ["10.0.0.11"], "conditions": {"ready": true}},
                  {"addresses": ["10.0.0.12", "10.0.0.12"]},
                  {"addresses": ["10.0.0.13"], "conditions": {"ready": false}},
                  {"addresses": ["10.0.0.14"], "conditions": {}}]}"#,
        );
        assert_eq!(found, set(&["10.0.0.11:6444", "10.0.0.12:6444", "10.0.0.14:6444"]));
    }

    #[test]
    fn missing_fields_and_unusable_addresses_yield_no_server() {
        for none in [
            r#"{"metadata": {}}"#,
            r#"{"metadata": {}, "endpoints": null, "ports": null}"#,
            r#"{"metadata": {}, "endpoints": [{}, {"addresses": null, "conditions": null}]}"#,
            r#"{"metadata": {}, "endpoints": [{"addresses": ["api.example.com", "", "127.0.0.1", "0.0.0.0", "::", "224.0.0.1"]}]}"#,
        ] {
            assert!(slice(none).is_empty(), "{none}");
        }
        let other = r#"{"metadata": {}, "endpoints": [{"addresses": ["fd00::11", "::ffff:10.0.0.9"]}], "ports": [{}]}"#;
        assert_eq!(slice(other), set(&["[fd00::11]:6443", "10.0.0.9:6443"]));
    }

    #[test]
    fn endpoints_list_ready_servers() {
        let text = r#"{"metadata": {"name": "kubernetes"}, "subsets": [
            {"addresses": [{"ip": "10.0.0.11"}, {"ip": "10.0.0.12"}], "notReadyAddresses": [{"ip": "10.0.0.13"}],
             "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}]},
            {"addresses": null}, {}]}"#;
        let found = serde_json::from_str::<Endpoints>(text).unwrap().servers();
        assert_eq!(found, set(&["10.0.0.11:6443", "10.0.0.12:6443"]));
        assert!(serde_json::from_str::<Endpoints>(r#"{"metadata": {}}"#).unwrap().servers().is_empty());
    }

    #[test]
    fn url_paths_are_those_of_the_kubernetes_api() {
        let path = EndpointSlice::url_path(&(), Some("default"));
        assert_eq!(path, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices");
        assert_eq!(Endpoints::url_path(&(), Some("default")), "/api/v1/namespaces/default/endpoints");
    }
}
