//! The change from the running instances to those of another configuration. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_vip::VipGroupConfig;
use vrrp::runner::InstanceId;

use super::plan::Instance;

/// The instances, by their ids.
pub(super) type Instances = BTreeMap<InstanceId, Instance>;

/// A change of the instances.
#[derive(Debug)]
pub(crate) struct Change {
    pub(super) wanted: Instances,
    /// Removed instances whose addresses no other instance has.
    pub(super) handing_over: Vec<InstanceId>,
    /// Removed instances of which another instance takes an address over.
    pub(super) gone: Vec<InstanceId>,
}

impl Change {
    /// The change from `known` to `wanted`. A removed instance keeps its addresses until it has handed them over, unless
    /// another instance takes one over.
    pub(super) fn new(known: &Instances, wanted: Vec<Instance>) -> Self {
        let wanted: Instances = wanted.into_iter().map(|it| (it.id, it)).collect();
        let used: BTreeSet<IpAddr> = wanted.values().flat_map(Instance::addresses).collect();
        let removed = known.values().filter(|known| !wanted.contains_key(&known.id));
        let (handing_over, gone): (Vec<&Instance>, Vec<&Instance>) =
            removed.partition(|known| known.addresses().all(|ip| !used.contains(&ip)));
        let ids = |instances: Vec<&Instance>| instances.iter().map(|it| it.id).collect();
        Self { handing_over: ids(handing_over), gone: ids(gone), wanted }
    }

    /// The groups for the keeper, with those of instances that hand over.
    pub(super) fn groups(&self, known: &Instances) -> Vec<VipGroupConfig> {
        let staying = self.handing_over.iter().filter_map(|id| known.get(id));
        self.wanted.values().chain(staying).map(|instance| instance.group.clone()).collect()
    }

    /// The instances that do not run yet.
    pub(super) fn added<'a>(&'a self, known: &'a Instances) -> impl Iterator<Item = &'a Instance> {
        self.wanted.values().filter(|instance| !known.contains_key(&instance.id))
    }

    /// Returns whether the router of a wanted instance differs from the running one. Equal routers are not disturbed.
    pub(super) fn is_changed(wanted: &Instance, known: &Instances) -> bool {
        known.get(&wanted.id).is_none_or(|known| known.router != wanted.router)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::instances;
    use super::*;

    /// Instances with these ids, each with addresses of these hosts.
    fn all(of: &[(u8, &[u8])]) -> Vec<Instance> {
        let instance = |(id, hosts): &(u8, &[u8])| {
            let ips: Vec<String> = hosts.iter().map(|host| format!("10.0.0.{host}/24")).collect();
            format!("  - {{virtualRouterID: {id}, virtualIPs: [{}]}}\n", ips.join(", "))
        };
        let list: String = of.iter().map(instance).collect();
        let text = format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n{list}  \
             backends: {{static: [10.0.0.11]}}\n"
        );
        let config =
            cplb_config::load(&text, "f.yaml").unwrap_or_else(|errors| panic!("{}", errors.report().plain()));
        instances(&config.config, &BTreeSet::new()).unwrap()
    }

    fn known(of: &[(u8, &[u8])]) -> Instances {
        all(of).into_iter().map(|it| (it.id, it)).collect()
    }

    fn groups(change: &Change, known: &Instances) -> Vec<u32> {
        change.groups(known).iter().map(|group| group.id.0).collect()
    }

    #[test]
    fn a_removed_instance_keeps_its_group_while_it_hands_over() {
        let known = known(&[(51, &[100]), (52, &[101])]);
        let change = Change::new(&known, all(&[(51, &[100])]));
        assert_eq!(
            (change.handing_over.as_slice(), change.gone.as_slice()),
            ([InstanceId(52)].as_slice(), [].as_slice())
        );
        assert_eq!(groups(&change, &known), [51, 52]);
        assert_eq!(change.added(&known).count(), 0);
    }

    #[test]
    fn a_removed_instance_whose_address_is_taken_over_is_removed_at_once() {
        let known = known(&[(51, &[100]), (52, &[101, 102])]);
        let change = Change::new(&known, all(&[(51, &[100, 102])]));
        assert_eq!((change.handing_over.len(), change.gone.as_slice()), (0, [InstanceId(52)].as_slice()));
        assert_eq!(groups(&change, &known), [51]);
    }

    #[test]
    fn an_equal_instance_is_not_reconfigured() {
        let known = known(&[(51, &[100])]);
        let change = Change::new(&known, all(&[(52, &[101]), (51, &[100])]));
        let changed: Vec<u32> =
            change.wanted.values().filter(|it| Change::is_changed(it, &known)).map(|it| it.id.0).collect();
        assert_eq!(changed, [52]);
        assert_eq!(change.added(&known).map(|it| it.id.0).collect::<Vec<_>>(), [52]);
        let other = Change::new(&known, all(&[(51, &[100, 101])]));
        assert!(Change::is_changed(&other.wanted[&InstanceId(51)], &known));
    }
}
