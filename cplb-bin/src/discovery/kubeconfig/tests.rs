use testbed::api::{Authority, Credential, Validity, kubeconfig};

use super::*;

/// Reads a valid kubeconfig after a change.
fn read(change: impl Fn(&mut serde_json::Value)) -> Result<Access, KubeconfigError> {
    let authority = Authority::new("cluster").unwrap();
    let client = authority.client("cplb", Validity::Now).unwrap();
    let text = kubeconfig(([10, 0, 0, 11], 6443).into(), &authority, &Credential::Certificate(&client));
    let mut file = serde_json::from_str(&text).unwrap();
    change(&mut file);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.conf");
    fs::write(&path, file.to_string()).unwrap();
    Access::read(&path)
}

fn refusal(change: impl Fn(&mut serde_json::Value)) -> String {
    read(change).expect_err("the kubeconfig is invalid").to_string()
}

#[test]
fn unusable_kubeconfigs_are_refused_with_the_reason() {
    let user = |value: serde_json::Value| {
        move |file: &mut serde_json::Value| file["users"][0]["user"] = value.clone()
    };
    let cluster = |field: &'static str, value: serde_json::Value| {
        move |file: &mut serde_json::Value| file["clusters"][0]["cluster"][field] = value.clone()
    };
    use serde_json::json;
    assert!(
        refusal(user(json!({"exec": {"command": "aws", "apiVersion": "v1"}}))).contains("program \"aws\"")
    );
    assert!(refusal(user(json!({"auth-provider": {"name": "gcp"}}))).contains("provider \"gcp\""));
    assert!(refusal(user(json!({"username": "a", "password": "s3cret"}))).contains("password"));
    assert!(refusal(user(json!({"token": "two words"}))).contains("token"));
    assert!(refusal(cluster("insecure-skip-tls-verify", json!(true))).contains("insecure-skip-tls-verify"));
    assert!(refusal(cluster("certificate-authority-data", json!(null))).contains("no certificate-authority"));
    assert!(refusal(cluster("certificate-authority-data", json!("%"))).contains("not base64"));
    assert!(refusal(cluster("certificate-authority-data", json!("Zm9v"))).contains("not PEM"));
    assert!(refusal(cluster("server", json!("http://10.0.0.11"))).contains("https://HOST:PORT"));
    let secret = refusal(cluster("server", json!("https://admin:s3cret@10.0.0.11:6443")));
    assert!(secret.contains("https://HOST:PORT") && !secret.contains("s3cret"), "{secret}");
    assert!(refusal(cluster("proxy-url", json!("http://proxy"))).contains("proxy-url"));
    assert!(refusal(cluster("tls-server-name", json!("a b"))).contains("not a host name"));
    assert!(refusal(|file| file["current-context"] = json!(null)).contains("current-context"));
    assert!(refusal(|file| file["clusters"] = json!([])).contains("cluster of the current context"));
    assert!(refusal(|file| file["users"] = json!([])).contains("user of the current context"));
}

#[test]
fn a_certificate_error_names_the_file_and_the_cause() {
    // The PEM lines of a certificate around other content.
    let not_a_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.crt");
    fs::write(&ca, not_a_certificate).unwrap();
    let text = refusal(|file| {
        file["clusters"][0]["cluster"]["certificate-authority-data"] = serde_json::json!(null);
        file["clusters"][0]["cluster"]["certificate-authority"] = ca.display().to_string().into();
    });
    assert!(text.contains(&ca.display().to_string()) && text.contains("not a valid X.509"), "{text}");
    let text = refusal(|file| {
        file["clusters"][0]["cluster"]["certificate-authority-data"] =
            STANDARD.encode(not_a_certificate).into();
    });
    assert!(text.contains("admin.conf") && text.contains("not a valid X.509"), "{text}");
    let other = Authority::new("other").unwrap().client("other", Validity::Now).unwrap();
    let text = kubeconfig(
        ([10, 0, 0, 11], 6443).into(),
        &Authority::new("cluster").unwrap(),
        &Credential::Certificate(&other),
    );
    let other: serde_json::Value = serde_json::from_str(&text).unwrap();
    let text = refusal(|file| {
        let key = &other["users"][0]["user"]["client-key-data"];
        file["users"][0]["user"]["client-key-data"] = key.clone();
    });
    assert!(text.contains("admin.conf") && text.contains("the key is not that of"), "{text}");
}

#[test]
fn a_context_without_a_user_is_anonymous() {
    assert!(read(|file| file["contexts"][0]["context"]["user"] = "".into()).is_ok());
    assert!(read(|file| file["users"][0]["user"] = serde_json::json!({})).is_ok());
}

#[test]
fn messages_quote_no_secrets_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.conf");
    for text in ["users:\n- token: s3cret\n  - s3cret: [", "s3cret", "\u{0}s3cret", "users: s3cret\n"] {
        fs::write(&path, text).unwrap();
        let error = Access::read(&path).expect_err("not a kubeconfig");
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(shown.contains("admin.conf") || shown.contains("context"), "{shown}");
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }
    let access = read(|file| file["users"][0]["user"]["token"] = "s3cret".into()).unwrap();
    let shown = format!("{access:?} {:?} {:?}", access.trust, access.trust.authorization());
    assert!(access.trust.authorization().is_some() && !shown.contains("s3cret"), "{shown}");
}

#[test]
fn a_change_of_any_file_makes_the_access_outdated() {
    let authority = Authority::new("cluster").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (path, ca) = (directory.path().join("admin.conf"), directory.path().join("ca.crt"));
    let text = kubeconfig(([10, 0, 0, 11], 6443).into(), &authority, &Credential::Anonymous);
    let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
    // Relative to the kubeconfig, as kubectl reads it.
    file["clusters"][0]["cluster"] =
        serde_json::json!({"server": "https://a:6443", "certificate-authority": "ca.crt"});
    fs::write(&path, file.to_string()).unwrap();
    assert!(Access::read(&path).unwrap_err().is_absent(), "the file may appear later");
    fs::write(&ca, authority.pem()).unwrap();
    let access = Access::read(&path).unwrap();
    assert!(!access.is_outdated());
    fs::write(&ca, Authority::new("another").unwrap().pem().to_owned() + "\n").unwrap();
    assert!(access.is_outdated());
    let access = Access::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(access.is_outdated());
}

#[test]
fn server_urls_are_parsed_or_refused() {
    let parse = |url: &str| Server::parse(url).map(|server| (server.host, server.port)).ok();
    assert_eq!(parse("https://[fd00::1]:6443"), Some(("fd00::1".into(), 6443)));
    assert_eq!(parse("https://api.example.com/"), Some(("api.example.com".into(), 443)));
    for wrong in [
        "",
        "10.0.0.1:6443",
        "http://a",
        "https://",
        "https://:6443",
        "https://a:99999",
        "https://a:0",
        "https://u@a",
        "https://a/k8s/clusters/b",
        "https://a/?b",
    ] {
        assert_eq!(parse(wrong), None, "{wrong}");
    }
}

#[test]
fn loopback_names_do_not_identify_a_server() {
    let named =
        |host: &str, given: Option<&str>| names(&Server { host: host.into(), port: 6443 }, given).unwrap();
    let of = |all: &[&str]| {
        Names::AnyOf(all.iter().map(|name| ServerName::try_from((*name).to_owned()).unwrap()).collect())
    };
    assert_eq!(named("localhost", None), of(&COMMON_NAMES));
    assert_eq!(named("127.0.0.1", None), of(&COMMON_NAMES));
    assert_eq!(
        named("api.example.com", None),
        of(&["kubernetes", "kubernetes.default.svc", "api.example.com"])
    );
    assert!(matches!(named("10.0.0.1", Some("other")), Names::Only(_)));
}
