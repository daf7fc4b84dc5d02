//! Rounds without a network, and servers with certificates on loopback.

use super::*;

fn wanted(hosts: &[u8], names: &[&str]) -> Wanted {
    let names = names.iter().map(|name| ServerName::try_from((*name).to_owned()).unwrap());
    let servers = hosts.iter().map(|host| SocketAddr::from(([10, 0, 0, *host], 6443)));
    Wanted {
        servers: servers.collect(),
        names: names.collect(),
        controllers: BTreeSet::new(),
        virtual_ips: Vec::new(),
    }
}

fn config(rest: &str) -> Config {
    let text = format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  \
         - virtualIPs: [10.0.0.100/24, 'fd00::100/64']\n  backends: {{static: [10.0.0.11]}}\n{rest}"
    );
    cplb_config::load(&text, "c.yaml").expect("it is accepted").config
}

#[test]
fn clients_use_the_configured_name_or_the_kubeconfigs_or_the_virtual_ips() {
    let servers = [Host::Address([10, 0, 0, 11].into()), Host::Name("node-1".to_owned())].into();
    let named = |config: &Config, host: Option<&str>| -> Vec<String> {
        client_names(config, host, &servers).iter().map(|name| name.to_str().into_owned()).collect()
    };
    let plain = config("");
    for host in [
        None,
        Some("localhost"),
        Some("127.0.0.1"),
        Some("::1"),
        Some("10.0.0.11"),
        Some("node-1"),
        Some("::ffff:10.0.0.11"),
    ] {
        assert_eq!(named(&plain, host), ["10.0.0.100", "fd00::100"], "{host:?}");
    }
    assert_eq!(named(&plain, Some("api.example.com")), ["api.example.com"]);
    assert_eq!(named(&plain, Some("10.0.0.100")), ["10.0.0.100"]);
    let external = config("  externalAddress: lb.example.com\n");
    assert_eq!(named(&external, Some("api.example.com")), ["lb.example.com"]);
    assert_eq!(named(&config("  externalAddress: 10.0.0.100\n"), None), ["10.0.0.100"]);
}

#[test]
fn rounds_come_once_a_minute_and_after_a_change() {
    let (mut certificates, start) = (Certificates::default(), Instant::now());
    assert_eq!(certificates.poll_round(start), None, "no servers");
    certificates.set(wanted(&[11], &["api.example.com"]));
    let round = certificates.poll_round(start).unwrap();
    assert_eq!(certificates.poll_round(start + INTERVAL * 2), None, "one at a time");
    certificates.handle_result(rejecting(round, "it is for another name"));
    assert_eq!(certificates.texts().len(), 1);
    assert!(certificates.texts()[0].starts_with(
        "clients of api.example.com reject the certificate of the API server 10.0.0.11:6443: it is for another name"
    ));
    assert_eq!(certificates.poll_round(start + INTERVAL - Duration::from_millis(1)), None);
    let round = certificates.poll_round(start + INTERVAL).unwrap();
    let silent = round.servers.clone();
    certificates.handle_result(Compared { wanted: round, rejected: Vec::new(), silent });
    assert_eq!(certificates.texts().len(), 1, "a server that is silent has not changed");
    let start = start + INTERVAL;
    let late = certificates.poll_round(start + INTERVAL).unwrap();
    certificates.set(wanted(&[11, 12], &["api.example.com"]));
    assert_eq!(certificates.texts().len(), 1, "what is known of a server stays");
    certificates.set(wanted(&[12], &["api.example.com"]));
    assert_eq!(certificates.texts().len(), 0);
    certificates.handle_result(rejecting(late, "late"));
    assert_eq!(certificates.texts().len(), 0, "a result for other servers");
    assert!(certificates.poll_round(start + INTERVAL).is_some(), "the change is due");
}

fn rejecting(wanted: Wanted, reason: &str) -> Compared {
    let rejected = wanted
        .servers
        .iter()
        .map(|server| (*server, Misnamed { name: wanted.names[0].clone(), reason: reason.to_owned() }));
    Compared { rejected: rejected.collect(), wanted, silent: BTreeSet::new() }
}
