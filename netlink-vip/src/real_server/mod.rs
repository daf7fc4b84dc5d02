//! A node that accepts the packets of directors: the VIPs on a dummy link, no ARP answers for them on the network, and
//! tunnels.

mod arp;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dummy::{DummyError, DummyLink};
use crate::files::{self, Loaded};
use crate::link_name::is_link_name;
use crate::ownership::DUMMY_LINK;
use crate::repair::Repair;
use crate::rp_filter;
use crate::sessions::SessionsError;
use crate::sysctl::{RP_FILTER, Recovery, SysctlError, SysctlGuard, SysctlKey};
use crate::tunnel::{TunnelConfig, TunnelError, TunnelLink};
use crate::types::{VipAddress, full_prefix};

/// Configuration of a real server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealServerConfig {
    /// The name of the dummy link that carries the VIPs.
    pub dummy: String,
    /// The VIPs.
    pub vips: Vec<IpAddr>,
    /// The interfaces on which ARP is answered only for their own addresses while there are IPv4 VIPs: those that
    /// clients and directors of the VIPs are on. One that does not exist is waited for.
    pub interfaces: Vec<String>,
    /// The interfaces by which directors send packets of clients that are behind another one: there, a strict
    /// `rp_filter` is loosened (IPv4; IPv6 has none).
    pub loose: Vec<String>,
    /// The tunnels, if directors use them.
    pub tunnels: Vec<TunnelConfig>,
}

impl RealServerConfig {
    /// The default name of the dummy link.
    pub const DUMMY: &'static str = DUMMY_LINK;

    /// These VIPs on the dummy link of the default name; no interfaces and no tunnels.
    pub fn new(vips: Vec<IpAddr>) -> Self {
        let (interfaces, loose, tunnels) = (Vec::new(), Vec::new(), Vec::new());
        Self { dummy: Self::DUMMY.to_owned(), vips, interfaces, loose, tunnels }
    }
}

/// Findings of one reconciliation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReconcileReport {
    /// Repairs since the last successful reconciliation.
    pub repairs: Vec<Repair>,
    /// Interfaces that do not exist. A reconciliation soon after one appears suppresses ARP on it.
    pub waiting: Vec<String>,
    /// Files of an earlier run that could not be read and were put aside, and why: what that run made is found again
    /// only under the same names, and sysctls that it changed keep their values.
    pub unreadable: Vec<String>,
    /// Why TCP sessions on VIPs that are gone from this node were not reset: their clients wait until they give up.
    pub unreset: Option<SessionsError>,
}

/// Failure to make a node a real server, or to end that.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RealServerError {
    /// Two links are to have the same name.
    #[error("{0:?} is named for two links: give each its own")]
    SameName(String),
    /// The state directory cannot be used.
    #[error("state directory {path}: {source}", path = .path.display())]
    StateDir {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel answers ARP for every address whatever an interface says.
    #[error(
        "net.ipv4.conf.all.arp_ignore is {value}, which overrides every interface and means that ARP is answered \
         for all addresses: set it to 0 or 1"
    )]
    ArpAnswered {
        /// Its value.
        value: u32,
    },
    /// A sysctl could not be changed.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The dummy link is not as it should be.
    #[error(transparent)]
    Dummy(#[from] DummyError),
    /// A tunnel is not as it should be.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
}

/// The names of the links that may be ours, and the VIPs that may be on them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "RawRecord")]
pub(crate) struct Record {
    dummies: BTreeSet<String>,
    vips: BTreeSet<IpAddr>,
    tunnels: BTreeSet<String>,
}

/// A record that was not validated.
#[derive(Deserialize)]
struct RawRecord {
    dummies: BTreeSet<String>,
    vips: BTreeSet<IpAddr>,
    tunnels: BTreeSet<String>,
}

impl TryFrom<RawRecord> for Record {
    type Error = String;

    fn try_from(raw: RawRecord) -> Result<Self, Self::Error> {
        let RawRecord { dummies, vips, tunnels } = raw;
        if let Some(name) = dummies.iter().chain(&tunnels).find(|name| !is_link_name(name)) {
            return Err(format!("{name:?} is not the name of a link"));
        }
        for ip in &vips {
            VipAddress::new(*ip, full_prefix(*ip)).map_err(|error| error.to_string())?;
        }
        Ok(Self { dummies, vips, tunnels })
    }
}

impl Record {
    fn of(config: &RealServerConfig) -> Self {
        Self {
            dummies: [config.dummy.clone()].into(),
            vips: config.vips.iter().copied().collect(),
            tunnels: config.tunnels.iter().map(|tunnel| tunnel.name.clone()).collect(),
        }
    }
}

/// A node that accepts what directors send it.
///
/// Call [`RealServer::open`], then [`RealServer::change`] with what there should be, then [`RealServer::reconcile`]
/// about once a second and when links change, and [`RealServer::remove`] at the end. What has been made stays when
/// this is dropped: sessions through directors survive a restart of the process, and so does the silence about the
/// VIPs. The next one with the same state directory takes it over, or removes it if it is no longer wanted.
///
/// The order is always such that no neighbour learns of a VIP on the dummy link: sysctls come before it and go after
/// it.
///
/// It works in the network namespace of the thread that calls it, which must always be the same one, and expects to
/// be the only user of `real-server.json` and `sysctls.json` in its state directory.
pub struct RealServer {
    path: PathBuf,
    /// `None` until [`RealServer::change`] and after [`RealServer::remove`].
    config: Option<RealServerConfig>,
    sysctls: SysctlGuard,
    dummy: Option<DummyLink>,
    tunnels: Vec<TunnelLink>,
    record: Record,
    /// The report of the next successful reconciliation.
    report: ReconcileReport,
}

impl RealServer {
    /// Reads what an earlier run left behind, and changes nothing yet. The directory is created if absent.
    ///
    /// # Errors
    /// [`RealServerError::StateDir`], or [`RealServerError::Sysctl`] for the list of sysctls in it.
    pub fn open(state_dir: &Path) -> Result<Self, RealServerError> {
        let fault = |path: &Path| {
            let path = path.to_owned();
            move |source| RealServerError::StateDir { path, source }
        };
        files::create_directory(state_dir).map_err(fault(state_dir))?;
        let path = state_dir.join("real-server.json");
        let mut report = ReconcileReport::default();
        let record = match files::load(&path).map_err(fault(&path))? {
            Loaded::Nothing => Record::default(),
            Loaded::Content(record) => record,
            Loaded::Unreadable(why) => {
                report.unreadable.push(format!("{}: {why}", path.display()));
                Record::default()
            }
        };
        let (sysctls, unreadable) = SysctlGuard::take_over(state_dir)?;
        let list = state_dir.join("sysctls.json");
        report.unreadable.extend(unreadable.map(|why| format!("{}: {why}", list.display())));
        Ok(Self { path, config: None, sysctls, dummy: None, tunnels: Vec::new(), record, report })
    }

    /// Makes the node what `config` says, from whatever it is.
    ///
    /// # Errors
    /// [`RealServerError`]. What could be done has been done; the next [`RealServer::reconcile`] tries the rest again.
    pub fn change(&mut self, config: RealServerConfig) -> Result<ReconcileReport, RealServerError> {
        check(&config)?;
        let mut record = Record::of(&config);
        record.dummies.extend(self.record.dummies.iter().cloned());
        // Only once the link is ours can addresses on it be.
        record.vips.clone_from(&self.record.vips);
        record.tunnels.extend(self.record.tunnels.iter().cloned());
        self.save_record(record)?;
        self.dummy = self.dummy.take().filter(|dummy| dummy.name() == config.dummy);
        self.tunnels.retain(|tunnel| config.tunnels.contains(tunnel.config()));
        self.config = Some(config);
        self.reconcile()
    }

    /// Repairs whatever is not as it should be. A call that finds nothing changes nothing and costs a handful of
    /// short requests.
    ///
    /// # Errors
    /// [`RealServerError`]: of the first thing that could not be put right. The others were tried nevertheless, but
    /// for the VIPs where ARP cannot be silenced.
    pub fn reconcile(&mut self) -> Result<ReconcileReport, RealServerError> {
        let Some(config) = self.config.clone() else { return Ok(std::mem::take(&mut self.report)) };
        self.report.waiting = self.suppress_arp(&config)?;
        let loosened = self.loosen(&config);
        let wanted = Record::of(&config);
        let dummy = self.reconcile_dummy(&config);
        // Two tunnels cannot have the same end, so those that are no longer wanted go before others come.
        let surplus_tunnels = self.remove_tunnels(&wanted);
        let tunnels = self.reconcile_tunnels(&config).map_err(RealServerError::from);
        let surplus_dummies = self.remove_dummies(&wanted);
        // VIPs that may still be where they were must not be answered for.
        let sysctls =
            if dummy.is_ok() && surplus_dummies.is_ok() { self.restore_others(&config) } else { Ok(()) };
        dummy.and(surplus_tunnels).and(tunnels).and(surplus_dummies).and(sysctls).and(loosened)?;
        Ok(std::mem::take(&mut self.report))
    }

    /// Takes everything back, last first: tunnels, dummy link, sysctls. Also what an earlier run left behind, without
    /// a configuration. Afterwards there is nothing to reconcile until the next [`RealServer::change`].
    ///
    /// TCP sessions on the VIPs are reset just before, whichever process they belong to, so that clients connect anew
    /// at once: later nothing leaves in the VIPs' names. They go on where another link of the node has the VIP. So
    /// do [`RealServer::change`] and [`RealServer::reconcile`] with VIPs that are no longer wanted.
    ///
    /// # Errors
    /// [`RealServerError`]: of the first thing that could not be taken back; the others have been. It can be called
    /// again.
    pub fn remove(&mut self) -> Result<Recovery, RealServerError> {
        self.config = None;
        self.tunnels.clear();
        self.dummy = None;
        let nothing = Record::default();
        let tunnels = self.remove_tunnels(&nothing);
        let dummies = self.remove_dummies(&nothing);
        let recovery = match dummies {
            // Ours are gone from that link.
            Ok(()) | Err(RealServerError::Dummy(DummyError::ForeignAddresses { .. })) => {
                self.sysctls.restore()
            }
            // As for a reconciliation: VIPs may still be there.
            Err(_) => Recovery::default(),
        };
        tunnels.and(dummies)?;
        Ok(Recovery { unreset: self.report.unreset.take(), ..recovery })
    }

    /// Silences the interfaces; returns those that do not exist.
    fn suppress_arp(&mut self, config: &RealServerConfig) -> Result<Vec<String>, RealServerError> {
        let mut waiting = Vec::new();
        if !config.vips.iter().any(IpAddr::is_ipv4) {
            return Ok(waiting);
        }
        for interface in &config.interfaces {
            match arp::suppress(&mut self.sysctls, interface) {
                Ok(repairs) => self.report.repairs.extend(repairs),
                Err(RealServerError::Sysctl(error)) if error.is_absent() => waiting.push(interface.clone()),
                Err(error) => return Err(error),
            }
        }
        Ok(waiting)
    }

    /// Lets in what directors send in the name of clients that are behind another interface. What is not strict stays
    /// as it is.
    fn loosen(&mut self, config: &RealServerConfig) -> Result<(), RealServerError> {
        if !config.vips.iter().any(IpAddr::is_ipv4) {
            return Ok(());
        }
        for interface in &config.loose {
            let (all, own) = (rp_filter::read("all")?, rp_filter::read(interface)?);
            if !rp_filter::is_strict(all, own) {
                continue;
            }
            let (key, found, value) =
                (rp_filter::key(interface)?, own.to_string(), rp_filter::LOOSE.to_owned());
            match self.sysctls.set(&key, &value) {
                Ok(()) => self.report.repairs.push(Repair::Sysctl { key, found, value }),
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn reconcile_dummy(&mut self, config: &RealServerConfig) -> Result<(), RealServerError> {
        if self.dummy.is_none() {
            self.dummy = Some(DummyLink::open(&config.dummy, self.record.vips.iter().copied())?);
        }
        if let Some(dummy) = &mut self.dummy {
            let report = dummy.reconcile(&config.vips)?;
            self.report.repairs.extend(report.repairs);
            self.report.unreset = report.unreset.or(self.report.unreset.take());
        }
        let mut record = self.record.clone();
        record.vips.extend(&config.vips);
        self.save_record(record)
    }

    fn reconcile_tunnels(&mut self, config: &RealServerConfig) -> Result<(), TunnelError> {
        for wanted in &config.tunnels {
            if !self.tunnels.iter().any(|tunnel| tunnel.config() == wanted) {
                self.tunnels.push(TunnelLink::open(wanted.clone())?);
            }
        }
        let mut result = Ok(());
        for tunnel in &mut self.tunnels {
            match tunnel.reconcile() {
                Ok(repairs) => self.report.repairs.extend(repairs),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Removes the tunnels on the record that are not wanted, and takes those that are gone off it.
    fn remove_tunnels(&mut self, wanted: &Record) -> Result<(), RealServerError> {
        let mut left = self.record.clone();
        let mut result = Ok(());
        for name in self.record.tunnels.difference(&wanted.tunnels) {
            // Only the name counts: what is ours says its alias.
            let config = TunnelConfig { name: name.clone(), local: IpAddr::from([0; 4]) };
            match TunnelLink::open(config).and_then(TunnelLink::remove) {
                Ok(()) | Err(TunnelError::Name(_)) => _ = left.tunnels.remove(name),
                Err(error) => result = result.and(Err(error.into())),
            }
        }
        let kept = self.save_record(left);
        result.and(kept)
    }

    /// As [`RealServer::remove_tunnels`], for dummy links.
    fn remove_dummies(&mut self, wanted: &Record) -> Result<(), RealServerError> {
        let mut left = self.record.clone();
        let mut result = Ok(());
        let known = &self.record.vips;
        for name in self.record.dummies.difference(&wanted.dummies) {
            let unreset = &mut self.report.unreset;
            let removed =
                DummyLink::open(name, known.iter().copied()).and_then(|dummy| dummy.take_down(unreset));
            match removed {
                Ok(()) | Err(DummyError::OtherKind { .. } | DummyError::Name(_)) => {
                    left.dummies.remove(name);
                }
                Err(error) => {
                    if matches!(error, DummyError::ForeignAddresses { .. }) {
                        left.dummies.remove(name);
                    }
                    result = result.and(Err(error.into()));
                }
            }
        }
        if left.dummies == wanted.dummies {
            left.vips.retain(|vip| wanted.vips.contains(vip));
        }
        let kept = self.save_record(left);
        result.and(kept)
    }

    /// Restores the sysctls of interfaces that need no longer be silent, or loose.
    fn restore_others(&mut self, config: &RealServerConfig) -> Result<(), RealServerError> {
        let has_v4 = config.vips.iter().any(IpAddr::is_ipv4);
        let needed = |key: &SysctlKey| {
            let all = if key.name() == RP_FILTER { &config.loose } else { &config.interfaces };
            has_v4 && all.iter().any(|interface| interface == key.interface())
        };
        let mut recovery = self.sysctls.restore_all_but(needed);
        if recovery.failed.is_empty() { Ok(()) } else { Err(recovery.failed.remove(0).into()) }
    }

    fn save_record(&mut self, record: Record) -> Result<(), RealServerError> {
        if record == self.record {
            return Ok(());
        }
        let saved = if record == Record::default() {
            files::remove(&self.path)
        } else {
            files::store(&self.path, &record)
        };
        saved.map_err(|source| RealServerError::StateDir { path: self.path.clone(), source })?;
        self.record = record;
        Ok(())
    }
}

fn check(config: &RealServerConfig) -> Result<(), RealServerError> {
    let mut names = BTreeSet::from([&config.dummy]);
    for tunnel in &config.tunnels {
        if !names.insert(&tunnel.name) {
            return Err(RealServerError::SameName(tunnel.name.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_links_cannot_have_one_name() {
        let mut config = RealServerConfig::new(Vec::new());
        config.tunnels = vec![TunnelConfig::new([10, 0, 0, 1].into())];
        assert!(check(&config).is_ok());
        config.tunnels.push(TunnelConfig::new([10, 0, 0, 2].into()));
        assert!(matches!(check(&config), Err(RealServerError::SameName(name)) if name == "cplbtun4"));
        config.tunnels = vec![TunnelConfig { name: config.dummy.clone(), local: [10, 0, 0, 1].into() }];
        assert!(check(&config).is_err());
    }

    #[test]
    fn nothing_changes_before_a_configuration_is_given() {
        let state = tempfile::tempdir().unwrap();
        let mut server = RealServer::open(&state.path().join("deep/state")).unwrap();
        assert_eq!(server.reconcile().unwrap(), ReconcileReport::default());
        assert!(server.remove().unwrap().restored.is_empty());
        assert_eq!(server.reconcile().unwrap(), ReconcileReport::default());
    }

    #[test]
    fn only_names_of_links_and_addresses_of_vips_are_loaded() {
        let record = |name: &str, ip: &str, tunnel: &str| {
            let content = serde_json::json!({"dummies": [name], "vips": [ip], "tunnels": [tunnel]});
            serde_json::from_value::<Record>(content)
        };
        let good = record("dummyvip0", "fd00::100", "cplbtun4").unwrap();
        let again: Record = serde_json::from_value(serde_json::to_value(&good).unwrap()).unwrap();
        assert_eq!(again, good);
        for (name, ip, tunnel) in [
            ("a/b", "10.0.0.100", "cplbtun4"),
            ("..", "10.0.0.100", "cplbtun4"),
            ("dummyvip0", "127.0.0.1", "cplbtun4"),
            ("dummyvip0", "10.0.0.100", "sixteen-letters."),
        ] {
            assert!(record(name, ip, tunnel).is_err(), "{name} {ip} {tunnel}");
        }
    }

    #[test]
    fn an_unreadable_record_is_reported_once() {
        let state = tempfile::tempdir().unwrap();
        for name in ["real-server.json", "sysctls.json"] {
            std::fs::write(state.path().join(name), "?").unwrap();
        }
        let mut server = RealServer::open(state.path()).unwrap();
        assert_eq!(server.reconcile().unwrap().unreadable.len(), 2);
        assert_eq!(server.reconcile().unwrap(), ReconcileReport::default());
    }
}
