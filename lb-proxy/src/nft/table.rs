//! The content of the table, and its translation into one batch for `nft -j -f -`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};

use nftables::batch::Batch;
use nftables::schema::{NfListObject, Rule as RuleObject, Set, SetType, SetTypeValue};
use nftables::stmt::Statement;
use nftables::types::{NfChainType, NfFamily, NfHook};

use super::chain::ChainPlan;
use super::director::{self, Director};
use super::name::TableName;
use super::rules::{
    Family, Rule, assign, from_bridge, from_loopback, from_port, from_vip, has_mark, is_family, is_foreign,
    is_foreign_to_departure, is_local, is_local_to_arrival, is_refusal, is_syn, is_translated, jump, reset,
    text, to_address, to_endpoint, to_port, to_vip, translate,
};

/// Priority of the chains that translate: just before the conventional destination NAT (-100) of kube-proxy and the
/// container runtimes. A number, because nft 1.0.6 refuses the name `dstnat` in the output hook.
const TRANSLATE_PRIORITY: i32 = -105;
/// The conventional priority (`mangle`) of rules that assign sockets: after connection tracking (-200), before NAT.
const ASSIGN_PRIORITY: i32 = -150;
/// The conventional priority (`filter`) of rules that drop.
const FILTER_PRIORITY: i32 = 0;
/// The priority of rules that reject: after host firewalls (0, firewalld 10), so that a packet that one of them drops
/// is not answered.
const REJECT_PRIORITY: i32 = 60;

/// The chain that selects packets to a virtual address, so that others pass one rule of each family.
const ARRIVING: &str = "arriving";
const TRANSPARENT: &str = "transparent";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const BIND_PORTS: &str = "bind_ports";
const GUARD: &str = "guard";

/// The desired content of the table: connections to `vips` on a redirected port reach the proxy's port while that
/// address is local, wherever the client is. While the address is not local, no packet leaves the node with it as the
/// source: the kernel goes on sending for sockets whose address was removed.
///
/// Where no proxy listens, the kernel does not refuse the connection: a daemon that crashed leaves its table behind,
/// and the client's next SYN, a second later, reaches the next holder of the address, or the daemon's successor. Nor
/// does a server on this node get the connection, even if it listens on the service's port on all addresses.
///
/// Other hosts are refused (RST) at the proxy's ports themselves; see [`Table::bind_address`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Name of the table in family `inet`.
    pub name: TableName,
    /// The virtual addresses of both families. IPv4-mapped IPv6 addresses count as IPv4.
    pub vips: BTreeSet<IpAddr>,
    /// Service port → port the proxy is bound to, on all addresses.
    pub redirects: BTreeMap<NonZeroU16, NonZeroU16>,
    /// Delivery of packets from other hosts to the proxy.
    pub delivery: Delivery,
    /// The address of this node at which other hosts may connect to the proxy's ports themselves: one of its own,
    /// `0.0.0.0` for all of IPv4, or `::` for all. `None`, the default, for none of them. Processes on this node always
    /// can.
    pub bind_address: Option<IpAddr>,
    /// `SO_MARK` of the proxy's own connections, which are never redirected; bits that other software adds to the mark
    /// do not matter. Without it a proxy that connects to its own VIP connects to itself. The same as
    /// [`crate::Options::mark`], usually [`crate::MARK`].
    pub mark: Option<NonZeroU32>,
    /// The endpoints that IPVS balances instead of the proxy.
    pub directors: Vec<Director>,
}

/// Delivery of packets that other hosts send to a virtual address.
///
/// Packets that this node itself sends there are always translated (`dnat` to the proxy's port).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// With the service's port, by `tproxy`, to a listener that has `IP_TRANSPARENT` ([`crate::Options::transparent`]):
    /// a host firewall sees the port that clients use, connection tracking is not needed, and the accepted socket is
    /// bound to the virtual address and the service's port. No later DNAT takes these connections away.
    ///
    /// Not for packets from a bridge: if bridged packets visit the hooks of IP (`net.bridge.bridge-nf-call-iptables`),
    /// the kernel forgets the assigned socket. Not for packets to the address of a VRF's member, because the kernel
    /// looks for their sockets only once they are in the VRF. And not for endpoints that IPVS balances, which takes
    /// packets even after a socket was assigned. Those are translated as by [`Delivery::Dnat`].
    Transparent {
        /// Virtual addresses and service ports of IPVS services of other software. Those of [`Table::directors`] need
        /// not be listed.
        except: BTreeSet<SocketAddr>,
    },
    /// By translation of the destination port to the proxy's: a host firewall sees that port. Needs connection
    /// tracking. Uses no feature that old kernels lack, and so does not serve the members of a VRF.
    Dnat,
}

impl Default for Delivery {
    /// [`Delivery::Transparent`] without exceptions.
    fn default() -> Self {
        Self::Transparent { except: BTreeSet::new() }
    }
}

impl Table {
    /// Returns the whole replacement as one transaction: the kernel commits all of it or nothing, so no connection ever
    /// meets a missing table. The first `add` makes the `delete` valid where there is no table yet.
    pub(super) fn replacement(&self) -> Batch<'_> {
        let mut batch = self.name.removal();
        batch.add(NfListObject::Table(self.name.object()));
        batch.add(self.set(SetType::Ipv4Addr, Family::V4));
        batch.add(self.set(SetType::Ipv6Addr, Family::V6));
        let chains = self.chains();
        for chain in &chains {
            batch.add(chain.object(&self.name));
        }
        for ChainPlan { name, rules, .. } in chains {
            for rule in rules {
                batch.add(self.rule(name, rule));
            }
        }
        batch
    }

    /// Returns all chains with their rules, the only description of the table's content.
    pub(super) fn chains(&self) -> Vec<ChainPlan<'_>> {
        use NfChainType::{Filter, NAT};
        let mut chains = Vec::new();
        if self.is_transparent() {
            let entry =
                Family::BOTH.map(|family| vec![to_vip(family), jump(TRANSPARENT)]).into_iter().collect();
            let hook = (Filter, NfHook::Prerouting, ASSIGN_PRIORITY);
            chains.push(ChainPlan::new(ARRIVING, hook, entry));
            chains.push(ChainPlan { name: TRANSPARENT, hook: None, rules: self.transparent_rules() });
        }
        let at = |hook| (NAT, hook, TRANSLATE_PRIORITY);
        chains.push(ChainPlan::new(PREROUTING, at(NfHook::Prerouting), self.prerouting_rules()));
        chains.push(ChainPlan::new(OUTPUT, at(NfHook::Output), self.output_rules()));
        let bind_port_rules = self.bind_port_rules();
        if !bind_port_rules.is_empty() {
            chains.push(ChainPlan::new(
                BIND_PORTS,
                (Filter, NfHook::Input, REJECT_PRIORITY),
                bind_port_rules,
            ));
        }
        chains.push(ChainPlan::new(GUARD, (Filter, NfHook::Output, FILTER_PRIORITY), self.guard_rules()));
        chains.extend(director::chains(&self.directors));
        chains
    }

    /// Returns the number of addresses in both sets.
    pub(super) fn element_count(&self) -> usize {
        self.vips.iter().map(IpAddr::to_canonical).collect::<BTreeSet<_>>().len()
    }

    fn is_transparent(&self) -> bool {
        matches!(self.delivery, Delivery::Transparent { .. })
    }

    /// Returns the virtual addresses and service ports that are translated although others are not, with the proxy's
    /// ports.
    fn exceptions(&self) -> impl Iterator<Item = (SocketAddr, NonZeroU16)> {
        let endpoints: BTreeSet<SocketAddr> = match &self.delivery {
            Delivery::Transparent { except } => {
                let balanced = self.directors.iter().map(Director::endpoint);
                except.iter().copied().chain(balanced).collect()
            }
            Delivery::Dnat => BTreeSet::new(),
        };
        endpoints.into_iter().filter_map(|endpoint| {
            let bind_port = self.redirects.get(&NonZeroU16::new(endpoint.port())?)?;
            Some((endpoint, *bind_port))
        })
    }

    /// Returns each family with each service port and its port of the proxy.
    fn redirects(&self) -> impl Iterator<Item = (Family, NonZeroU16, NonZeroU16)> {
        let of = |family| self.redirects.iter().map(move |(port, bind_port)| (family, *port, *bind_port));
        Family::BOTH.into_iter().flat_map(of)
    }

    /// Rules for packets to a virtual address, local or not.
    fn transparent_rules(&self) -> Vec<Rule<'_>> {
        let skip = |condition| vec![condition, Statement::Return(None)];
        let mut rules = Vec::from_iter(self.mark.map(|mark| skip(has_mark(mark))));
        // Translated packets, by this table or another, have no socket with the address and port that they still carry
        // here.
        rules.push(skip(is_translated()));
        rules.push(skip(from_bridge()));
        for (endpoint, _) in self.exceptions() {
            rules.push(Vec::from_iter(to_endpoint(endpoint).into_iter().chain([Statement::Return(None)])));
        }
        for (family, port, bind_port) in self.redirects() {
            let matches = || vec![to_vip(family), to_port(port.get()), is_local()];
            let assigned = [assign(family, bind_port), Statement::Accept(None)];
            rules.push(matches().into_iter().chain(assigned).collect());
            rules.push(matches().into_iter().chain([is_syn(), Statement::Drop(None)]).collect());
        }
        rules
    }

    fn prerouting_rules(&self) -> Vec<Rule<'_>> {
        let mut rules: Vec<_> = self.directors.iter().map(Director::proxy_exemption).collect();
        if !self.is_transparent() {
            rules.extend(self.redirect_rules());
            return rules;
        }
        for (endpoint, bind_port) in self.exceptions() {
            let target = to_endpoint(endpoint).into_iter();
            rules.push(target.chain([is_local(), translate(bind_port)]).collect());
        }
        for (family, port, bind_port) in self.redirects() {
            let matches = || vec![to_vip(family), to_port(port.get())];
            let local = || matches().into_iter().chain([is_local()]);
            rules.push(local().chain([from_bridge(), translate(bind_port)]).collect());
            // To its own port: a packet that is translated once is not translated again by later chains.
            rules.push(local().chain([translate(port)]).collect());
            rules.push(matches().into_iter().chain([is_local_to_arrival(), translate(bind_port)]).collect());
        }
        rules
    }

    /// Rules for packets that this node itself sends.
    fn output_rules(&self) -> Vec<Rule<'_>> {
        let own = self.mark.map(|mark| vec![has_mark(mark), Statement::Return(None)]);
        own.into_iter().chain(self.redirect_rules()).collect()
    }

    fn redirect_rules(&self) -> impl Iterator<Item = Rule<'_>> {
        self.redirects().map(|(family, port, bind_port)| {
            vec![to_vip(family), to_port(port.get()), is_local(), translate(bind_port)]
        })
    }

    /// Rules that refuse other hosts at the proxy's own ports.
    fn bind_port_rules(&self) -> Vec<Rule<'_>> {
        let open = match self.bind_address {
            Some(ip) if ip.is_unspecified() && ip.is_ipv6() => return Vec::new(),
            Some(ip) if ip.is_unspecified() => Some(is_family(Family::V4)),
            Some(ip) => Some(to_address(ip)),
            None => None,
        };
        let through = [from_loopback(), is_translated()].into_iter().chain(open);
        let through = through.map(|condition| vec![condition, Statement::Return(None)]);
        // Where a service is offered at the proxy's own port, its clients cannot be distinguished otherwise.
        let offered = self.redirects().filter(|(_, port, bind_port)| port == bind_port);
        let offered = offered
            .map(|(family, port, _)| vec![to_vip(family), to_port(port.get()), Statement::Return(None)]);
        let through = through.chain(offered);
        let closed = self.bind_ports().into_iter().map(|port| vec![to_port(port.get()), is_syn(), reset()]);
        through.chain(closed).collect()
    }

    fn guard_rules(&self) -> Vec<Rule<'_>> {
        let mut rules = Vec::new();
        for family in Family::BOTH {
            let beside_vrfs = self.is_transparent().then(is_foreign_to_departure).into_iter().flatten();
            let foreign = [from_vip(family), is_foreign()].into_iter().chain(beside_vrfs);
            rules.push(foreign.chain([Statement::Drop(None)]).collect());
            // Only of a connection redirected to the proxy: one to the proxy's port itself is refused.
            for bind_port in self.bind_ports() {
                let led_here = [from_vip(family), from_port(bind_port.get()), is_translated()];
                let refusal = led_here.into_iter().chain(is_refusal());
                rules.push(refusal.chain([Statement::Drop(None)]).collect());
            }
        }
        rules
    }

    fn bind_ports(&self) -> BTreeSet<NonZeroU16> {
        self.redirects.values().copied().collect()
    }

    fn set(&self, set_type: SetType, family: Family) -> NfListObject<'_> {
        let elements: BTreeSet<IpAddr> =
            self.vips.iter().map(IpAddr::to_canonical).filter(|ip| Family::of(*ip) == family).collect();
        let elements: Vec<_> = elements.iter().map(|ip| text(ip.to_string())).collect();
        NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            name: family.set().into(),
            set_type: SetTypeValue::Single(set_type),
            elem: (!elements.is_empty()).then(|| elements.into()),
            ..Set::default()
        }))
    }

    fn rule<'a>(&'a self, chain: &'static str, rule: Rule<'a>) -> NfListObject<'a> {
        NfListObject::Rule(RuleObject {
            family: NfFamily::INet,
            table: self.name.as_str().into(),
            chain: chain.into(),
            expr: rule.into(),
            ..RuleObject::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn port(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    fn table() -> Table {
        Table {
            vips: ["10.0.0.100", "::ffff:10.0.0.100", "fd00::100"].map(|ip| ip.parse().unwrap()).into(),
            redirects: BTreeMap::from([(port(6443), port(6444))]),
            mark: NonZeroU32::new(crate::MARK),
            ..Table::default()
        }
    }

    /// Returns the rules of a chain; empty if there is none.
    fn rules(table: &Table, name: &str) -> Vec<Value> {
        let chains = table.chains();
        let chain = chains.iter().find(|chain| chain.name == name);
        let rules = chain.map(|chain| serde_json::to_value(&chain.rules).unwrap());
        rules.and_then(|rules| rules.as_array().cloned()).unwrap_or_default()
    }

    fn matches(op: &str, left: &Value, right: &Value) -> Value {
        json!({"match": {"op": op, "left": left, "right": right}})
    }

    fn payload(protocol: &str, field: &str) -> Value {
        json!({"payload": {"protocol": protocol, "field": field}})
    }

    fn to_vip4() -> Vec<Value> {
        vec![
            matches("==", &payload("ip", "daddr"), &json!("@vip4")),
            matches("==", &payload("tcp", "dport"), &json!(6443)),
            matches("==", &json!({"fib": {"result": "type", "flags": ["daddr"]}}), &json!("local")),
        ]
    }

    /// Asserts that a statement of a rule compares the address type; the flags are a set.
    fn assert_local(op: &str, rule: &Value, index: usize, flags: &[&str]) {
        let left = &rule[index]["match"]["left"]["fib"];
        let mut seen: Vec<_> = left["flags"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        seen.sort_unstable();
        let right = &rule[index]["match"]["right"];
        assert_eq!((&left["result"], seen.as_slice(), right), (&json!("type"), flags, &json!("local")));
        assert_eq!(rule[index]["match"]["op"], op);
    }

    fn syn() -> Value {
        matches("==", &json!({"&": [payload("tcp", "flags"), 0x17]}), &json!(0x02))
    }

    fn dnat(port: u16) -> Value {
        json!({"dnat": {"port": port}})
    }

    fn with(mut rule: Vec<Value>, more: impl IntoIterator<Item = Value>) -> Value {
        rule.extend(more);
        rule.into()
    }

    #[test]
    fn replacement_is_one_batch_that_recreates_the_table() {
        let table = table();
        let json = serde_json::to_value(table.replacement().to_nftables()).unwrap();
        let commands = json["nftables"].as_array().unwrap();
        let own = json!({"table": {"family": "inet", "name": "cplb"}});
        assert_eq!(commands[0], json!({"add": own}));
        assert_eq!(commands[1], json!({"delete": own}));
        assert_eq!(commands[2], json!({"add": own}));
        let is = |kind: &'static str| move |command: &&Value| !command["add"][kind].is_null();
        let first_rule = commands.iter().position(|command| is("rule")(&command)).unwrap();
        assert!(commands[first_rule..].iter().all(|command| is("rule")(&command)), "targets of jumps exist");
        let chains = table.chains();
        assert_eq!(commands.iter().filter(is("chain")).count(), chains.len());
        assert_eq!(commands.len() - first_rule, chains.iter().map(|chain| chain.rules.len()).sum::<usize>());
    }

    #[test]
    fn packets_are_assigned_to_the_listener_or_a_syn_is_dropped() {
        let rules = rules(&table(), TRANSPARENT);
        assert_eq!(rules[0][1], json!({"return": null}), "the proxy's own mark");
        let translated = matches("in", &json!({"ct": {"key": "status"}}), &json!("dnat"));
        assert_eq!(rules[1], json!([translated, {"return": null}]));
        let bridge = matches("==", &json!({"meta": {"key": "iifkind"}}), &json!("bridge"));
        assert_eq!(rules[2], json!([bridge, {"return": null}]));
        let tproxy = json!({"tproxy": {"family": "ip", "port": 6444}});
        assert_eq!(rules[3], with(to_vip4(), [tproxy, json!({"accept": null})]));
        assert_eq!(rules[4], with(to_vip4(), [syn(), json!({"drop": null})]));
        assert_eq!(rules[5][3]["tproxy"]["family"], "ip6");
        assert_eq!(rules.len(), 7);
    }

    #[test]
    fn assigned_connections_are_translated_to_themselves_and_bridged_ones_to_the_proxy() {
        let rules = rules(&table(), PREROUTING);
        let bridge = matches("==", &json!({"meta": {"key": "iifkind"}}), &json!("bridge"));
        assert_eq!(rules[0], with(to_vip4(), [bridge, dnat(6444)]));
        assert_eq!(rules[1], with(to_vip4(), [dnat(6443)]));
        assert_local("==", &rules[2], 2, &["daddr", "iif"]);
        assert_eq!(rules[2][3], dnat(6444), "to a member of a VRF");
        assert_eq!(rules.len(), 6);
    }

    #[test]
    fn packets_from_a_removed_address_are_dropped() {
        let transparent = &rules(&table(), GUARD)[0];
        assert_local("!=", transparent, 1, &["saddr"]);
        assert_local("!=", transparent, 2, &["oif", "saddr"]);
        assert_eq!(transparent[3], matches("!=", &json!({"meta": {"key": "oifkind"}}), &json!("vrf")));
        assert_eq!(transparent[4], json!({"drop": null}));
        let translating = &rules(&Table { delivery: Delivery::Dnat, ..table() }, GUARD)[0];
        assert_local("!=", translating, 1, &["saddr"]);
        assert_eq!(translating[2], json!({"drop": null}));
    }

    #[test]
    fn endpoints_of_ipvs_are_translated() {
        let except = ["10.0.0.100:6443", "10.0.0.100:80"].map(|endpoint| endpoint.parse().unwrap());
        let table = Table { delivery: Delivery::Transparent { except: except.into() }, ..table() };
        let endpoint = [
            matches("==", &payload("ip", "daddr"), &json!("10.0.0.100")),
            matches("==", &payload("tcp", "dport"), &json!(6443)),
        ];
        assert_eq!(rules(&table, TRANSPARENT)[3], with(endpoint.clone().into(), [json!({"return": null})]));
        let rules = rules(&table, PREROUTING);
        assert_eq!(rules[0], with(endpoint.into(), [to_vip4()[2].clone(), dnat(6444)]));
        assert_eq!(rules.len(), 7, "80 is no port of a service");
    }

    #[test]
    fn dnat_alone_uses_nothing_that_old_kernels_lack() {
        let table = Table { delivery: Delivery::Dnat, ..table() };
        assert_eq!(rules(&table, PREROUTING)[0], with(to_vip4(), [dnat(6444)]));
        let text = serde_json::to_string(&table.replacement().to_nftables()).unwrap();
        assert!(!["tproxy", "iifkind", "oifkind"].iter().any(|it| text.contains(it)), "{text}");
    }

    #[test]
    fn own_connections_are_translated_unless_they_have_the_mark() {
        for delivery in [Delivery::default(), Delivery::Dnat] {
            let rules = rules(&Table { delivery, ..table() }, OUTPUT);
            assert_eq!(rules[0][1], json!({"return": null}), "the mark is looked at first");
            assert_eq!(rules[1], with(to_vip4(), [dnat(6444)]));
            assert_eq!(rules.len(), 3);
        }
    }

    #[test]
    fn bind_ports_are_open_to_this_node_to_translated_connections_and_at_the_bind_address() {
        let bind_port_rules = |bind_address: Option<&str>| {
            let bind_address = bind_address.map(|ip| ip.parse().unwrap());
            rules(&Table { bind_address, ..table() }, BIND_PORTS)
        };
        let closed = bind_port_rules(None);
        assert_eq!(closed.len(), 3);
        let reset = json!({"reject": {"type": "tcp reset"}});
        assert_eq!(closed[2], json!([matches("==", &payload("tcp", "dport"), &json!(6444)), syn(), reset]));
        let v4 = matches("==", &json!({"meta": {"key": "nfproto"}}), &json!("ipv4"));
        assert_eq!(bind_port_rules(Some("0.0.0.0"))[2], json!([v4, {"return": null}]));
        let own = matches("==", &payload("ip6", "daddr"), &json!("fd00::11"));
        assert_eq!(bind_port_rules(Some("fd00::11"))[2], json!([own, {"return": null}]));
        assert_eq!(bind_port_rules(Some("::")), Vec::<Value>::new());
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let table = table();
        assert_eq!(table.element_count(), 2);
        let json = serde_json::to_value(table.replacement().to_nftables()).unwrap();
        assert_eq!(json["nftables"][3]["add"]["set"]["elem"], json!(["10.0.0.100"]));
        assert_eq!(json["nftables"][4]["add"]["set"]["elem"], json!(["fd00::100"]));
    }
}
