//! The API's content: one EndpointSlice, its versions, and the events for watches.

use std::{collections::BTreeSet, net::SocketAddr};

use serde_json::{Value, json};

/// The state of `default/kubernetes`.
#[derive(Debug)]
pub(super) struct Cluster {
    version: u64,
    /// `None` if the object does not exist.
    servers: Option<BTreeSet<SocketAddr>>,
    /// Events, each with the version that it led to.
    log: Vec<(u64, &'static str, Option<BTreeSet<SocketAddr>>)>,
    /// Events up to this version are compacted away.
    compacted: u64,
}

/// The kind of object that the API presents the servers as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Slices,
    Endpoints,
}

impl Cluster {
    pub(super) fn new(servers: BTreeSet<SocketAddr>) -> Self {
        Self { version: 1000, servers: Some(servers), log: Vec::new(), compacted: 0 }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn change(&mut self, servers: Option<BTreeSet<SocketAddr>>) {
        let event = match (&self.servers, &servers) {
            (None, None) => return,
            (None, Some(_)) => "ADDED",
            (Some(_), Some(_)) => "MODIFIED",
            (Some(_), None) => "DELETED",
        };
        self.version += 1;
        let shown = servers.clone().or_else(|| self.servers.take());
        self.log.push((self.version, event, shown));
        self.servers = servers;
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
        self.log.clear();
    }

    pub(super) fn list(&self, kind: Kind) -> Value {
        let items: Vec<_> = self.servers.iter().map(|servers| kind.object(servers, self.version)).collect();
        json!({
            "kind": kind.list_kind(), "apiVersion": kind.version(),
            "metadata": {"resourceVersion": self.version.to_string()}, "items": items,
        })
    }

    /// The events after a version, and the version of the last one; an error once that version is compacted away.
    pub(super) fn since(&self, kind: Kind, version: u64) -> Result<(Vec<Value>, u64), Value> {
        if version < self.compacted {
            let status = super::status(410, "Expired", &format!("too old resource version: {version}"));
            return Err(json!({"type": "ERROR", "object": status}));
        }
        let new = self.log.iter().filter(|(at, ..)| *at > version);
        let event = |(at, what, servers): &(u64, &'static str, Option<BTreeSet<SocketAddr>>)| json!({"type": what, "object": kind.object(servers.as_ref().unwrap_or(&BTreeSet::new()), *at)});
        Ok((new.map(event).collect(), self.version))
    }

    pub(super) fn bookmark(&self, kind: Kind) -> Value {
        json!({"type": "BOOKMARK", "object": {
            "kind": kind.kind(), "apiVersion": kind.version(),
            "metadata": {"resourceVersion": self.version.to_string()},
        }})
    }
}

impl Kind {
    fn kind(self) -> &'static str {
        match self {
            Self::Slices => "EndpointSlice",
            Self::Endpoints => "Endpoints",
        }
    }

    fn list_kind(self) -> &'static str {
        match self {
            Self::Slices => "EndpointSliceList",
            Self::Endpoints => "EndpointsList",
        }
    }

    fn version(self) -> &'static str {
        match self {
            Self::Slices => "discovery.k8s.io/v1",
            Self::Endpoints => "v1",
        }
    }

    fn object(self, servers: &BTreeSet<SocketAddr>, version: u64) -> Value {
        let port = servers.first().map_or(6443, SocketAddr::port);
        let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
        let metadata = json!({
            "name": "kubernetes", "namespace": "default", "resourceVersion": version.to_string(),
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        });
        let mut object = match self {
            Self::Slices => {
                let endpoint =
                    |server: &SocketAddr| json!({"addresses": [server.ip()], "conditions": {"ready": true}});
                let endpoints: Vec<_> = servers.iter().map(endpoint).collect();
                json!({"addressType": "IPv4", "endpoints": endpoints, "ports": ports})
            }
            Self::Endpoints => {
                let addresses: Vec<_> = servers.iter().map(|server| json!({"ip": server.ip()})).collect();
                json!({"subsets": [{"addresses": addresses, "ports": ports}]})
            }
        };
        object["kind"] = self.kind().into();
        object["apiVersion"] = self.version().into();
        object["metadata"] = metadata;
        object
    }
}
