//! The words by which an operator knows instances and routers.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// The names of nodes by address, and the virtual IPs of instances.
#[derive(Debug, Default)]
pub(crate) struct Names {
    nodes: BTreeMap<IpAddr, String>,
    virtual_ips: BTreeMap<u8, Vec<String>>,
}

impl Names {
    /// Virtual IPs may have a prefix length. Nodes without a name are left out.
    pub(crate) fn new(
        nodes: impl IntoIterator<Item = (IpAddr, String)>,
        virtual_ips: impl IntoIterator<Item = (u8, Vec<String>)>,
    ) -> Self {
        let nodes = nodes.into_iter().filter(|(_, name)| !name.is_empty()).collect();
        Self { nodes, virtual_ips: virtual_ips.into_iter().collect() }
    }

    /// The first virtual IP of an instance, or its number.
    pub(crate) fn instance(&self, vrid: u8) -> String {
        let first = self.virtual_ips.get(&vrid).and_then(|all| all.first());
        let address = first.map(|first| first.split('/').next().unwrap_or(first));
        address.map_or_else(|| format!("virtual router {vrid}"), str::to_owned)
    }

    /// The text with the names of the nodes whose addresses it has.
    pub(crate) fn explained(&self, text: &str) -> String {
        let word = |word: &str| match word.parse().ok().and_then(|address: IpAddr| self.nodes.get(&address)) {
            Some(name) => format!("{name} ({word})"),
            None => word.to_owned(),
        };
        text.split(' ').map(word).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_texts_get_the_names_of_their_nodes() {
        let address = |text: &str| text.parse().unwrap();
        let nodes = [(address("10.0.0.1"), "c1".to_owned()), (address("fe80::2"), String::new())];
        let names = Names::new(nodes, [(51, vec!["10.0.0.100/24".to_owned()])]);
        assert_eq!(names.explained("10.0.0.1 fell silent"), "c1 (10.0.0.1) fell silent");
        assert_eq!(names.explained("10.0.0.11 resigned, fe80::2"), "10.0.0.11 resigned, fe80::2");
        assert_eq!([51, 52].map(|vrid| names.instance(vrid)), ["10.0.0.100", "virtual router 52"]);
    }
}
