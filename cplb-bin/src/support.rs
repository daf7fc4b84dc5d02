//! What a configuration asks for and this version of `cplb` does not do.
//!
//! `check` shows or refuses it, and `run` and a reload log or refuse it, all from the same list.

use std::net::IpAddr;

use cplb_config::{Backend, Backends, Config, Diagnostic, Host, Service, Severity, VirtualServer};

use crate::daemon;
use crate::exit::{Failure, Kind};

/// Part of a configuration that has no effect, or that keeps it from being accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Concern {
    /// What becomes of it.
    pub(crate) consequence: Consequence,
    /// Stable name, such as `no-backends`.
    pub(crate) rule: &'static str,
    /// Where in the configuration, as [`Diagnostic::path`].
    pub(crate) path: String,
    /// What is asked for, and why it is not done.
    pub(crate) message: String,
    /// What to do instead.
    pub(crate) help: &'static str,
}

/// What `cplb check` and `cplb run` make of a [`Concern`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consequence {
    /// The configuration is wrong.
    Refused,
    /// They go on without.
    Ignored,
}

/// Everything in `config` that this version does not do. Backends of the command line have to be in it already.
pub(crate) fn concerns(config: &Config) -> Vec<Concern> {
    let mut found = Vec::new();
    if !config.disable_load_balancer {
        found.extend(virtual_servers(config));
        found.extend(families(config));
        found.extend(backends(config));
    }
    found.extend(status(config));
    found
}

/// Logs what is ignored of `config`, for `run` and for a reload, and returns the same for status.
///
/// # Errors
/// [`Kind::Config`] with what is refused of it.
pub(crate) fn admit(config: &Config) -> Result<Vec<String>, Failure> {
    let (mut refusal, mut ignored) = (None, Vec::new());
    for concern in concerns(config) {
        match concern.consequence {
            Consequence::Ignored => {
                tracing::warn!(path = %concern.path, "{} ({})", concern.message, concern.help);
                ignored.push(format!("configuration: {} ({})", concern.message, concern.help));
            }
            Consequence::Refused => {
                refusal.get_or_insert(Failure::new(Kind::Config, concern.message).help(concern.help));
            }
        }
    }
    refusal.map_or(Ok(ignored), Err)
}

impl From<Concern> for Diagnostic {
    fn from(concern: Concern) -> Self {
        Self {
            severity: match concern.consequence {
                Consequence::Refused => Severity::Error,
                Consequence::Ignored => Severity::Warning,
            },
            rule: concern.rule,
            path: concern.path,
            location: None,
            text: String::new(),
            message: concern.message,
            help: concern.help.to_owned(),
        }
    }
}

fn virtual_servers(config: &Config) -> Option<Concern> {
    let excess = daemon::excess_virtual_servers(config);
    (excess > 0).then(|| Concern {
        consequence: Consequence::Refused,
        rule: "too-many-virtual-servers",
        path: "virtualServers".to_owned(),
        message: format!("virtualServers times services is {excess} more than IPVS has marks for"),
        help: "keep virtualServers times services at 127 or fewer",
    })
}

/// Virtual servers that have no server for a service, as far as its servers are known: names may have addresses of both
/// families.
fn families(config: &Config) -> Vec<Concern> {
    let lacks = |service: &Service, vip: IpAddr| {
        let Backends { fixed, kubeconfig } = config.backends_of(service);
        let other =
            |backend: &Backend| matches!(backend.host, Host::Address(ip) if ip.is_ipv4() != vip.is_ipv4());
        kubeconfig.is_none() && !fixed.is_empty() && fixed.iter().all(other)
    };
    let concern = |(index, server): (usize, &VirtualServer)| {
        let vip = server.address;
        let lacking = config.services.iter().filter(|service| lacks(service, vip));
        let names: Vec<&str> = lacking.map(|service| service.name.as_str()).collect();
        (!names.is_empty()).then(|| Concern {
            consequence: Consequence::Ignored,
            rule: "virtual-server-family",
            path: format!("virtualServers[{index}].ipAddress"),
            message: format!(
                "no server of {} has the family of {vip}, so the proxy serves it instead: IPVS forwards within one family",
                names.join(", ")
            ),
            help: if vip.is_ipv4() {
                "add the servers' IPv4 addresses (outside a native document with --backend), or remove the virtual server"
            } else {
                "add the servers' IPv6 addresses (outside a native document with --backend), or remove the virtual server"
            },
        })
    };
    config.virtual_servers.iter().enumerate().filter_map(concern).collect()
}

fn status(config: &Config) -> Option<Concern> {
    config.status_listen.map(|address| Concern {
        consequence: Consequence::Ignored,
        rule: "unsupported-status",
        path: "status.listen".to_owned(),
        message: format!("this version serves no status page: nothing listens on {address}"),
        help: "remove it; `cplb status --json` tells the same",
    })
}

/// Servers that are missing or not looked for: clients of the service would be refused.
fn backends(config: &Config) -> Vec<Concern> {
    let sharing: Vec<&str> = config
        .services
        .iter()
        .filter(|service| service.backends.is_none())
        .map(|s| s.name.as_str())
        .collect();
    let shared = (!sharing.is_empty()).then(|| (String::new(), sharing.join(", "), &config.backends));
    let own = config.services.iter().enumerate().filter_map(|(index, service)| {
        Some((format!("services[{index}]."), service.name.clone(), service.backends.as_ref()?))
    });
    shared.into_iter().chain(own).filter_map(|(path, users, found)| missing(&path, &users, found)).collect()
}

fn missing(path: &str, users: &str, found: &Backends) -> Option<Concern> {
    let concern = |rule, field, message| Concern {
        consequence: Consequence::Ignored,
        rule,
        path: format!("{path}{field}"),
        message,
        help: "name the controllers' own addresses with --backend, or have them found with --kubeconfig; in a native \
               document under backends.static or backends.kubernetes",
    };
    found
        .is_empty()
        .then(|| concern("no-backends", "backends", format!("no backend is configured for {users}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(spec: &str) -> Config {
        let text = format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}");
        cplb_config::load(&text, "f.yaml")
            .unwrap_or_else(|errors| panic!("{}", errors.report().plain()))
            .config
    }

    fn found(spec: &str) -> Vec<(&'static str, String)> {
        concerns(&config(spec)).into_iter().map(|concern| (concern.rule, concern.path)).collect()
    }

    /// Two virtual servers with that many services.
    fn virtual_servers(services: usize) -> String {
        let services: String =
            (1..=services).map(|port| format!("  - {{name: s{port}, port: {port}}}\n")).collect();
        format!(
            "  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24, 10.0.0.101/24]\n  virtualServers:\n  \
             - ipAddress: 10.0.0.100\n  - ipAddress: 10.0.0.101\n  services:\n{services}  \
             backends: {{static: [10.0.0.11]}}\n"
        )
    }

    #[test]
    fn what_this_version_does_not_do_is_listed_with_its_place() {
        assert_eq!(found("  backends: {static: [10.0.0.11]}\n"), []);
        let spec = "  services:\n  - {name: a, port: 6443}\n  - {name: b, port: 8132, backends: {kubernetes: {}, static: [10.0.0.11]}}\n  \
                    - {name: c, port: 9443, backends: {kubernetes: {}}}\n  status: {listen: '127.0.0.1:9000'}\n";
        assert_eq!(
            found(spec),
            [("no-backends", "backends".to_owned()), ("unsupported-status", "status.listen".to_owned()),]
        );
        assert_eq!(found(&virtual_servers(63)), []);
        assert_eq!(found(&virtual_servers(64)), [("too-many-virtual-servers", "virtualServers".to_owned())]);
    }

    #[test]
    fn a_virtual_server_without_a_server_of_its_family_is_told() {
        let families = |backends: &str| -> Vec<String> {
            let spec = format!(
                "  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24, 'fd00::100/64']\n  virtualServers:\n  \
                 - ipAddress: 10.0.0.100\n  - ipAddress: fd00::100\n  services:\n  - {{name: a, port: 6443}}\n  \
                 - {{name: b, port: 8132, backends: {{static: ['fd00::11']}}}}\n  - {{name: c, port: 9443}}\n{backends}"
            );
            let concerns = concerns(&config(&spec)).into_iter();
            let told = concerns.filter(|concern| concern.rule == "virtual-server-family");
            told.map(|concern| {
                assert_eq!(concern.consequence, Consequence::Ignored);
                format!("{}: {}", concern.path, concern.message)
            })
            .collect()
        };
        let why = "so the proxy serves it instead: IPVS forwards within one family";
        let v4 = format!("virtualServers[0].ipAddress: no server of b has the family of 10.0.0.100, {why}");
        let v6 = format!("virtualServers[1].ipAddress: no server of a, c has the family of fd00::100, {why}");
        assert_eq!(families("  backends: {static: [10.0.0.11, 10.0.0.12]}\n"), [v4.clone(), v6]);
        // What is known by name, discovered, or not known at all may be of any family.
        for open in [
            "  backends: {static: [10.0.0.11, 'fd00::12']}\n",
            "  backends: {static: [10.0.0.11, controller-2]}\n",
            "  backends: {static: [10.0.0.11], kubernetes: {}}\n",
            "",
        ] {
            assert_eq!(families(open), std::slice::from_ref(&v4), "{open}");
        }
        assert!(families("  disableLoadBalancer: true\n").is_empty());
    }

    #[test]
    fn what_is_disabled_is_not_missed() {
        let spec = format!("{}  disableLoadBalancer: true\n", virtual_servers(64));
        assert_eq!(found(&spec), []);
    }

    #[test]
    fn only_what_is_refused_keeps_a_configuration_out() {
        let ignored = admit(&config("  services: [{name: a, port: 6443}]\n")).unwrap();
        assert!(ignored[0].contains("no backend is configured for a"), "{ignored:?}");
        let refusal = admit(&config(&virtual_servers(64))).unwrap_err();
        assert!(refusal.to_string().contains("127 or fewer"), "{refusal}");
    }
}
