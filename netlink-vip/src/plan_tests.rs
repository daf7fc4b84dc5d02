use proptest::prelude::*;

use super::*;
use crate::types::{AddressLabel, LeaseTime};
use crate::wire::{address_flag, scope};

/// The kernel's tables, as far as the plan reads and writes them.
#[derive(Debug, Clone, Default)]
struct Model(Observed);

impl Model {
    fn apply(&mut self, step: &Step) {
        let tables = &mut self.0;
        match *step {
            Step::DeleteAddress { index, ip, prefix_len } => {
                tables.addresses.retain(|a| (a.index, a.ip, a.prefix_len) != (index, ip, prefix_len));
            }
            Step::DeleteRoute { index, prefix } => {
                let ours = |r: &ObservedRoute| r.protocol == PROTOCOL && r.destination == prefix;
                for route in tables.routes.iter_mut().filter(|route| ours(route)) {
                    route.interfaces.retain(|&at| at != index);
                }
                tables.routes.retain(|route| !(ours(route) && route.interfaces.is_empty()));
            }
            Step::DeleteLabel { ip, label } => {
                tables.labels.retain(|seen| !(labels_exactly(seen, ip) && seen.label == label));
            }
            Step::PutLabel { ip, label } => {
                assert!(!tables.labels.iter().any(|seen| labels_exactly(seen, ip)), "EEXIST");
                tables.labels.push(ObservedLabel { prefix: Prefix::new(ip, 128), index: 0, label });
            }
            Step::PutAddress { index, ip, scope, .. } => self.put(index, ip, scope),
            Step::MoveAddress { index, ip, scope, .. } => {
                tables.addresses.retain(|a| (a.index, a.ip, a.prefix_len) != (index, ip, full_prefix(ip)));
                self.put(index, ip, scope);
            }
            Step::PutRoute { index, prefix } => {
                tables.routes.push(route(index, prefix, PROTOCOL));
            }
        }
    }
}

impl Model {
    /// As the kernel does it: a refresh changes neither scope nor place, a new address of wider validity comes last,
    /// one of less first.
    fn put(&mut self, index: u32, ip: IpAddr, scope: VipScope) {
        let addresses = &mut self.0.addresses;
        if addresses.iter().any(|a| (a.index, a.ip, a.prefix_len) == (index, ip, full_prefix(ip))) {
            return;
        }
        match scope {
            VipScope::Universe => addresses.push(vip(index, ip, 2)),
            VipScope::Host => {
                addresses.insert(0, ObservedAddress { scope: scope::HOST, ..vip(index, ip, 2) });
            }
        }
    }
}

fn vip(index: u32, ip: IpAddr, valid: u32) -> ObservedAddress {
    let v4 = ip.is_ipv4();
    let v6_flags = address_flag::NODAD | address_flag::DEPRECATED;
    ObservedAddress {
        index,
        ip,
        prefix_len: full_prefix(ip),
        scope: scope::UNIVERSE,
        flags: address_flag::NOPREFIXROUTE | if v4 { 0 } else { v6_flags },
        protocol: Some(PROTOCOL),
        valid: Some(valid),
    }
}

fn route(index: u32, prefix: Prefix, protocol: u8) -> ObservedRoute {
    ObservedRoute {
        destination: prefix,
        table: 254,
        protocol,
        kind: 1,
        metric: 1024,
        interfaces: vec![index],
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn wanted(text: &str) -> (Desired, Managed) {
    let (addr, len) = text.split_once('/').unwrap();
    let vip = VipAddress::new(ip(addr), len.parse().unwrap()).unwrap();
    let label = vip.ip().is_ipv6().then_some((vip.ip(), AddressLabel::DEFAULT.value()));
    let desired = Desired {
        addresses: BTreeSet::from([(vip.ip(), LeaseTime::MIN)]),
        labels: label.into_iter().collect(),
        reachable: BTreeSet::from([vip]),
    };
    let managed = Managed {
        addresses: BTreeSet::from([vip.ip()]),
        labels: desired.labels.clone(),
        subnets: BTreeSet::from([vip.subnet()]),
    };
    (desired, managed)
}

fn node(index: u32, text: &str) -> ObservedAddress {
    let (addr, len) = text.split_once('/').unwrap();
    let permanent =
        ObservedAddress { protocol: None, valid: None, flags: 0x80, scope: 0, ..vip(index, ip(addr), 0) };
    ObservedAddress { prefix_len: len.parse().unwrap(), ..permanent }
}

fn observed(addresses: Vec<ObservedAddress>) -> Observed {
    Observed { addresses, kernel_marks: true, ..Observed::default() }
}

#[test]
fn labels_come_before_addresses_and_routes_after() {
    let (desired, managed) = wanted("fd00::100/64");
    let plan = plan(2, &desired, &managed, &observed(vec![node(2, "fe80::1/64")]));
    let steps = [
        Step::PutLabel { ip: ip("fd00::100"), label: 10_000 },
        Step::PutAddress { index: 2, ip: ip("fd00::100"), lease: LeaseTime::MIN, scope: VipScope::Universe },
        Step::PutRoute { index: 2, prefix: Prefix::new(ip("fd00::"), 64) },
    ];
    assert_eq!((plan.steps.as_slice(), plan.foreign.len()), (steps.as_slice(), 0));
}

#[test]
fn a_route_is_added_only_where_no_address_of_the_node_covers_the_vip() {
    let (desired, managed) = wanted("10.0.0.100/24");
    let routes = |addresses| {
        let plan = plan(2, &desired, &managed, &observed(addresses));
        plan.steps.iter().filter(|step| matches!(step, Step::PutRoute { .. })).count()
    };
    assert_eq!(routes(vec![]), 1);
    assert_eq!(routes(vec![node(2, "10.0.0.5/24")]), 0);
    assert_eq!(routes(vec![node(2, "10.0.0.5/25")]), 0);
    assert_eq!(routes(vec![node(2, "10.0.0.5/32")]), 1);
    assert_eq!(routes(vec![node(2, "10.0.1.5/24")]), 1);
    assert_eq!(routes(vec![node(3, "10.0.0.5/24")]), 1);
    // VIPs themselves cover nothing, those of other groups neither.
    assert_eq!(routes(vec![vip(2, ip("10.0.0.100"), 2), vip(2, ip("10.0.0.101"), 2)]), 1);
}

#[test]
fn the_scope_of_a_vip_follows_the_nodes_own_address() {
    let (desired, managed) = wanted("10.0.0.100/24");
    let scopes = |addresses| {
        let Plan { steps, refresh, .. } = plan(2, &desired, &managed, &observed(addresses));
        let put = |step: &Step| match step {
            Step::PutAddress { scope, .. } => Some(*scope),
            _ => None,
        };
        (steps.iter().filter_map(put).collect::<Vec<_>>(), refresh.iter().filter_map(put).collect::<Vec<_>>())
    };
    assert_eq!(scopes(vec![node(2, "10.0.0.5/24")]), (vec![VipScope::Universe], vec![]));
    assert_eq!(scopes(vec![node(2, "10.0.0.5/32")]), (vec![VipScope::Universe], vec![]));
    assert_eq!(
        scopes(vec![node(2, "192.0.2.5/24")]),
        (vec![VipScope::Universe], vec![]),
        "of another subnet"
    );
    assert_eq!(scopes(vec![]), (vec![VipScope::Host], vec![]));
    assert_eq!(scopes(vec![node(3, "10.0.0.5/24")]), (vec![VipScope::Host], vec![]), "of another interface");
    let others = vec![vip(2, ip("10.0.0.101"), 2)];
    assert_eq!(scopes(others), (vec![VipScope::Host], vec![]), "another group's VIP is none of the node's");
    let there = vec![node(2, "10.0.0.5/24"), vip(2, ip("10.0.0.100"), 2)];
    assert_eq!(scopes(there), (vec![], vec![VipScope::Universe]), "what is there is refreshed");
}

#[test]
fn a_vip_that_comes_before_the_nodes_address_is_moved_behind_it() {
    let (desired, managed) = wanted("10.0.0.100/24");
    let vip = vip(2, ip("10.0.0.100"), 2);
    let host = ObservedAddress { scope: scope::HOST, ..vip.clone() };
    let moved = |addresses| plan(2, &desired, &managed, &observed(addresses)).steps;
    let step = |scope| Step::MoveAddress { index: 2, ip: vip.ip, lease: LeaseTime::MIN, scope };
    assert_eq!(moved(vec![vip.clone(), node(2, "10.0.0.5/24")]), [step(VipScope::Universe)]);
    assert_eq!(moved(vec![host.clone(), node(2, "10.0.0.5/24")]), [step(VipScope::Universe)]);
    assert_eq!(moved(vec![vip.clone(), node(2, "10.0.0.5/32")])[0], step(VipScope::Universe));
    assert_eq!(moved(vec![vip.clone(), node(2, "192.0.2.5/24")])[0], step(VipScope::Universe));
    assert_eq!(moved(vec![vip.clone()])[0], step(VipScope::Host));
    let foreign = vec![node(2, "10.0.0.5/24"), vip.clone(), node(2, "10.0.0.7/32")];
    assert_eq!(moved(foreign), [], "another program's VIP may come after");
    assert_eq!(moved(vec![node(2, "10.0.0.5/24"), vip.clone()]), []);
    assert_eq!(
        moved(vec![vip.clone(), node(3, "10.0.0.5/24"), node(2, "10.0.0.5/24")]),
        [step(VipScope::Universe)]
    );
    let second = ObservedAddress { flags: 0x81, ..node(2, "10.0.0.6/24") };
    assert_eq!(moved(vec![node(2, "10.0.0.5/24"), vip.clone(), second]), [], "it cannot come after that");
    let without = |step: &Step| !matches!(step, Step::PutRoute { .. });
    assert!(!moved(vec![host]).iter().any(without));
    assert!(!moved(vec![node(2, "10.0.0.5/32"), vip.clone()]).iter().any(without));
}

#[test]
fn a_route_that_is_no_longer_needed_goes_and_a_shared_one_stays() {
    let (desired, managed) = wanted("10.0.0.100/24");
    let mut now = observed(vec![node(2, "10.0.0.5/24"), vip(2, ip("10.0.0.100"), 2)]);
    now.routes = vec![route(2, Prefix::new(ip("10.0.0.0"), 24), PROTOCOL)];
    let gone = Step::DeleteRoute { index: 2, prefix: Prefix::new(ip("10.0.0.0"), 24) };
    assert_eq!(plan(2, &desired, &managed, &now).steps, [gone]);

    now.addresses.remove(0);
    let others = Desired { reachable: desired.reachable.clone(), ..Desired::default() };
    let without_ours = plan(2, &others, &managed, &now);
    let address = Step::DeleteAddress { index: 2, ip: ip("10.0.0.100"), prefix_len: 32 };
    assert_eq!(without_ours.steps, [address], "another group still needs the route");
    assert_eq!(plan(2, &Desired::default(), &managed, &now).steps, [address, gone]);
}

#[test]
fn a_foreign_address_is_neither_refreshed_nor_deleted() {
    let (desired, managed) = wanted("10.0.0.100/24");
    for foreign in [node(2, "10.0.0.100/24"), node(2, "10.0.0.100/32")] {
        let now = observed(vec![foreign.clone(), node(2, "10.0.0.1/24")]);
        let there = plan(2, &desired, &managed, &now);
        assert_eq!((there.steps, there.foreign), (vec![], vec![(ip("10.0.0.100"), foreign.prefix_len)]));
        assert_eq!(plan(2, &Desired::default(), &managed, &now), Plan::default());
    }
}

#[test]
fn without_marks_in_the_kernel_only_leases_of_our_kind_are_ours() {
    let (_, managed) = wanted("10.0.0.100/24");
    let mut now = observed(vec![ObservedAddress { protocol: None, ..vip(2, ip("10.0.0.100"), 2) }]);
    assert_eq!(plan(2, &Desired::default(), &managed, &now).steps, [], "a kernel with marks would show ours");
    now.kernel_marks = false;
    assert_eq!(plan(2, &Desired::default(), &managed, &now).steps.len(), 1);
    now.addresses[0].valid = None;
    assert_eq!(plan(2, &Desired::default(), &managed, &now).steps, []);
}

/// Few values, so that desired, managed and observed meet often.
fn any_vip() -> impl Strategy<Value = VipAddress> {
    let v4 = (1_u8..5, prop::sample::select(vec![24_u8, 25, 32]))
        .prop_map(|(host, len)| VipAddress::new([10, 0, 0, host].into(), len).unwrap());
    let v6 = (1_u16..4, prop::sample::select(vec![64_u8, 128])).prop_map(|(host, len)| {
        VipAddress::new(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host]), len).unwrap()
    });
    prop_oneof![v4, v6]
}

fn any_address() -> impl Strategy<Value = ObservedAddress> {
    let protocol = prop::sample::select(vec![None, Some(PROTOCOL), Some(2)]);
    (any_vip(), 1_u32..4, protocol, any::<bool>(), any::<bool>()).prop_map(
        |(at, index, protocol, whole, leased)| {
            let prefix_len = if whole { full_prefix(at.ip()) } else { at.prefix_len() };
            ObservedAddress { prefix_len, protocol, valid: leased.then_some(2), ..vip(index, at.ip(), 2) }
        },
    )
}

fn any_label() -> impl Strategy<Value = (IpAddr, u32)> {
    (1_u16..4, 9_999_u32..10_002)
        .prop_map(|(host, label)| (IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host]), label))
}

fn any_tables() -> impl Strategy<Value = Observed> {
    let labels = prop::collection::btree_map(1_u16..4, 9_999_u32..10_002, 0..3);
    let routes =
        prop::collection::btree_set((any_vip(), 1_u32..3, prop::sample::select(vec![PROTOCOL, 2])), 0..4);
    (prop::collection::vec(any_address(), 0..8), labels, routes, any::<bool>()).prop_map(
        |(mut addresses, labels, routes, kernel_marks)| {
            // The kernel has an address with one prefix length once per interface.
            addresses.sort_by_key(|a| (a.index, a.ip, a.prefix_len));
            addresses.dedup_by_key(|a| (a.index, a.ip, a.prefix_len));
            let labels = labels.into_iter().map(|(host, label)| ObservedLabel {
                prefix: Prefix::new(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host]), 128),
                index: 0,
                label,
            });
            let mut routes: Vec<_> =
                routes.into_iter().map(|(at, index, protocol)| route(index, at.subnet(), protocol)).collect();
            routes.sort_by_key(|r| (r.destination, r.interfaces[0], r.protocol));
            routes.dedup();
            Observed { addresses, labels: labels.collect(), routes, kernel_marks }
        },
    )
}

fn any_want() -> impl Strategy<Value = (Desired, Managed)> {
    let vips = || prop::collection::btree_set(any_vip(), 0..5);
    (vips(), vips(), prop::collection::btree_map(1_u16..4, 9_999_u32..10_002, 0..3), any_label()).prop_map(
        |(want, more, labels, old_label)| {
            let labels: BTreeSet<_> =
                labels.into_iter().map(|(h, l)| (IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, h]), l)).collect();
            let desired = Desired {
                addresses: want.iter().map(|vip| (vip.ip(), LeaseTime::MIN)).collect(),
                labels: labels.clone(),
                reachable: want.clone(),
            };
            let all = want.union(&more);
            let managed = Managed {
                addresses: all.clone().map(VipAddress::ip).collect(),
                subnets: all.map(VipAddress::subnet).collect(),
                labels: labels.into_iter().chain([old_label]).collect(),
            };
            (desired, managed)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_plan_reaches_what_is_desired_once_and_touches_nothing_foreign(
        (desired, managed) in any_want(),
        tables in any_tables(),
    ) {
        let index = 1;
        let first = plan(index, &desired, &managed, &tables);
        let mut model = Model(tables.clone());
        for step in &first.steps {
            model.apply(step);
        }
        let after = &model.0;

        for &(ip, _) in &desired.addresses {
            let foreign = first.foreign.iter().any(|&(refused, _)| refused == ip);
            let ours = after.addresses.iter().any(|a| a.index == index && a.ip == ip && is_ours(a, after.kernel_marks));
            prop_assert!(ours || foreign, "{ip} is missing");
        }
        for address in after.addresses.iter().filter(|a| is_ours(a, after.kernel_marks)) {
            let wanted = address.index == index && desired.addresses.iter().any(|&(ip, _)| ip == address.ip);
            prop_assert!(wanted || !managed.addresses.contains(&address.ip), "{address:?} is left over");
        }
        for &(ip, _) in &desired.labels {
            prop_assert!(after.labels.iter().any(|seen| labels_exactly(seen, ip)));
        }
        let needed = routes_needed(index, &desired, after);
        for &prefix in &needed {
            prop_assert!(after.routes.iter().any(|route| is_our_route(route, index, prefix)));
        }
        for route in after.routes.iter().filter(|r| r.protocol == PROTOCOL) {
            let wanted = route.interfaces == [index] && needed.contains(&route.destination);
            prop_assert!(wanted || !managed.subnets.contains(&route.destination), "{route:?} is left over");
        }

        let untouched = |address: &&ObservedAddress| {
            !managed.addresses.contains(&address.ip) || !is_ours(address, tables.kernel_marks)
        };
        for address in tables.addresses.iter().filter(untouched) {
            prop_assert!(after.addresses.contains(address), "{address:?} was touched");
        }
        for route in tables.routes.iter().filter(|r| r.protocol != PROTOCOL || !managed.subnets.contains(&r.destination)) {
            prop_assert!(after.routes.contains(route), "{route:?} was touched");
        }
        for seen in tables.labels.iter().filter(|l| !managed.labels.contains(&(l.prefix.network(), l.label))) {
            prop_assert!(after.labels.contains(seen), "{seen:?} was touched");
        }

        let again = plan(index, &desired, &managed, after);
        prop_assert_eq!(again.steps, vec![]);
        prop_assert_eq!(again.foreign, first.foreign);
    }
}

/// The same VIP is on the dummy link of a real server, whether or not this node holds the lease.
#[test]
fn addresses_of_a_dummy_link_are_not_leases() {
    let ip: IpAddr = [10, 0, 0, 100].into();
    let managed = Managed { addresses: [ip].into(), ..Managed::default() };
    for (protocol, kernel_marks) in [(Some(wire::PERMANENT_PROTOCOL), true), (None, false)] {
        let permanent = ObservedAddress { protocol, valid: None, ..vip(9, ip, 2) };
        let observed = Observed { addresses: vec![permanent], kernel_marks, ..Observed::default() };
        assert_eq!(plan(3, &Desired::default(), &managed, &observed), Plan::default());
    }
}
