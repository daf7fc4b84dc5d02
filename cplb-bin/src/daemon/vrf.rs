//! Virtual IPs in a VRF, where listeners of the main network do not take connections.

use cplb_config::Config;
use netlink_vip::Inventory;

use super::problems::{Cause, Problems};

/// The sysctl that lets listeners take connections of every VRF.
const ACCEPT: &str = "/proc/sys/net/ipv4/tcp_l3mdev_accept";

/// Whether listeners outside of VRFs take connections that come in through one.
pub(crate) fn accepts() -> bool {
    std::fs::read_to_string(ACCEPT).is_ok_and(|value| value.trim() == "1")
}

/// Raises a problem for each instance whose addresses are in a VRF that the proxy does not reach. To be called at the start and after a
/// reload: an interface hardly changes its VRF at work.
pub(crate) fn check(config: &Config, problems: &mut Problems) {
    problems.retain(|cause| !matches!(cause, Cause::Vrf(_)));
    if config.disable_load_balancer || config.instances.is_empty() || accepts() {
        return;
    }
    let Ok(here) = Inventory::read() else { return };
    for instance in &config.instances {
        let Some(name) = here.select(&instance.interface, &instance.virtual_ips) else { continue };
        let found = here.interfaces().find(|interface| interface.name == name);
        let Some(vrf) = found.and_then(|interface| interface.vrf) else { continue };
        let id = u32::from(instance.vrid.get());
        tracing::warn!(
            vrid = id,
            interface = name,
            vrf,
            "the proxy does not listen in the VRF of the virtual IPs"
        );
        let text = format!(
            "virtual router {id}: {name} is in the VRF {vrf}, where the proxy does not listen: set the sysctl \
             net.ipv4.tcp_l3mdev_accept=1 and reload"
        );
        problems.raise(Cause::Vrf(id), text);
    }
}
