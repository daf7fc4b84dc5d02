//! The LAN of the demonstration: controllers with daemons and API servers, and a client.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use testbed::{Backend, Error, Lan, Node, Process, Signal, wait_until};

use crate::status::client;
use crate::status::schema::Status;

/// The host number of the VIP in the LAN's network.
const VIP_HOST: u8 = 100;
const PORT: u16 = 6443;
/// The time that a daemon has to end after SIGTERM, when the cluster is dropped.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The LAN with its daemons and API servers; dropping it stops them.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) lan: Lan,
    backends: Vec<Backend>,
    daemons: Vec<Option<Process>>,
    program: PathBuf,
}

impl Cluster {
    pub(crate) fn build(nodes: u8) -> Result<Self, Error> {
        let program = std::env::current_exe()
            .map_err(|source| Error::File { path: "/proc/self/exe".into(), source })?;
        let lan = Lan::builder().controllers(nodes).clients(1).build()?;
        let backends = lan
            .controllers()
            .iter()
            .map(|node| Backend::tls(node, &format!("api-{}", node.name()), PORT))
            .collect::<Result<_, _>>()?;
        let mut cluster = Self { lan, backends, daemons: Vec::new(), program };
        for index in 0..cluster.lan.controllers().len() {
            cluster.daemons.push(None);
            cluster.start_daemon(index)?;
        }
        Ok(cluster)
    }

    /// Starts the daemon of a controller, for the first time or again.
    pub(crate) fn start_daemon(&mut self, index: usize) -> Result<(), Error> {
        let node = self.node(index);
        let config = node.directory().join("cplb.yaml");
        fs::write(&config, self.configuration())
            .map_err(|source| Error::File { path: config.clone(), source })?;
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--config").arg(&config);
        command.arg("--socket").arg(socket(node)).arg("--state-dir").arg(node.directory().join("state"));
        let daemon = node.spawn(&format!("cplb-{}", node.name()), command)?;
        self.daemons[index] = Some(daemon);
        Ok(())
    }

    /// The same file for every controller.
    pub(crate) fn configuration(&self) -> String {
        let (prefix, _) = self.lan.prefix_lengths();
        let backends: Vec<_> =
            self.lan.controllers().iter().map(|node| format!("{:?}", node.v4().to_string())).collect();
        format!(
            "apiVersion: cplb/v1alpha1\n\
             kind: ControlPlaneLoadBalancer\n\
             spec:\n\
             \x20 vrrpInstances:\n\
             \x20 - virtualIPs: [\"{}/{prefix}\"]\n\
             \x20   authPass: Example\n\
             \x20 backends:\n\
             \x20   static: [{}]\n",
            self.vip(),
            backends.join(", ")
        )
    }

    pub(crate) fn vip(&self) -> Ipv4Addr {
        self.lan.v4(VIP_HOST)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.vip()), PORT)
    }

    pub(crate) fn client(&self) -> &Node {
        self.lan.client(0)
    }

    pub(crate) fn name(&self, index: usize) -> &str {
        self.node(index).name()
    }

    /// The controllers whose interface has the VIP.
    pub(crate) fn owners(&self) -> Vec<usize> {
        let vip = self.vip();
        (0..self.daemons.len()).filter(|&index| self.node(index).has_address(vip)).collect()
    }

    /// Waits until one controller other than `except` holds the VIP and its status is Active.
    pub(crate) fn wait_for_owner(&self, except: Option<usize>, timeout: Duration) -> Result<usize, Error> {
        let mut found = None;
        wait_until("one controller is Active", timeout, || {
            let owners: Vec<_> = self.owners().into_iter().filter(|&index| Some(index) != except).collect();
            found = match owners.as_slice() {
                [index] if self.state(*index).as_deref() == Some("active") => Some(*index),
                _ => None,
            };
            found.is_some()
        })?;
        found.ok_or_else(|| Error::Misuse("no controller is Active".into()))
    }

    /// Waits until a connection of the client to the VIP succeeds.
    pub(crate) fn wait_until_served(&self, timeout: Duration) -> Result<(), Error> {
        let probe =
            testbed::Probe::to(self.address()).every(Duration::from_millis(20)).start(self.client())?;
        probe.wait_for_success(Instant::now(), timeout).map(|_| ())
    }

    pub(crate) fn wait_until_vip_left(&self, index: usize, timeout: Duration) -> Result<(), Error> {
        let vip = self.vip();
        wait_until("the VIP has left the killed node", timeout, || !self.node(index).has_address(vip))?;
        Ok(())
    }

    pub(crate) fn wait_until_ended(&self, index: usize, timeout: Duration) -> Result<(), Error> {
        self.daemon(index)?.wait(timeout).map(|_| ())
    }

    pub(crate) fn signal(&self, index: usize, signal: Signal) -> Result<Instant, Error> {
        self.daemon(index)?.signal(signal)
    }

    /// The reason why a controller is Active, from its status.
    pub(crate) fn active_reason(&self, index: usize) -> String {
        let reason = self
            .status(index)
            .and_then(|status| status.instances.into_iter().next())
            .map_or_else(|| "its status cannot be read".to_owned(), |instance| instance.reason);
        format!("reason in the status of {}: {reason}", self.name(index))
    }

    /// Opens `count` TLS connections from the client, and counts the certificates by the name of the backend.
    pub(crate) fn count_certificates(&self, count: usize) -> Result<BTreeMap<String, usize>, Error> {
        let address = self.address();
        let certificates = self.client().block_on(move || async move {
            let mut certificates = Vec::new();
            for _ in 0..count {
                certificates.push(testbed::peer_certificate(address).await?);
            }
            Ok::<_, std::io::Error>(certificates)
        })?;
        let certificates = certificates.map_err(|source| Error::System {
            what: format!("open a TLS connection to {address}"),
            source,
        })?;
        let mut counts = BTreeMap::new();
        for certificate in certificates {
            let owner = self.backends.iter().find(|backend| backend.has_certificate(&certificate));
            *counts.entry(owner.map_or("an unknown server", Backend::name).to_owned()).or_default() += 1;
        }
        Ok(counts)
    }

    /// The logs of all processes.
    pub(crate) fn report(&self) -> String {
        self.lan.report()
    }

    fn state(&self, index: usize) -> Option<String> {
        Some(self.status(index)?.instances.into_iter().next()?.state)
    }

    fn status(&self, index: usize) -> Option<Status> {
        client::fetch(&socket(self.node(index))).ok()
    }

    fn node(&self, index: usize) -> &Node {
        self.lan.controller(index)
    }

    fn daemon(&self, index: usize) -> Result<&Process, Error> {
        self.daemons
            .get(index)
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::Misuse(format!("no daemon runs on controller {index}")))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in self.daemons.iter().flatten() {
            if let Err(error) = daemon.stop(STOP_TIMEOUT) {
                tracing::warn!(%error, "a daemon of the demonstration cannot be stopped");
            }
        }
    }
}

fn socket(node: &Node) -> PathBuf {
    node.directory().join("cplb.sock")
}
