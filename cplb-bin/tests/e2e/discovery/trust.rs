//! Servers with certificates of the cluster's authority, which answer readiness only to authenticated clients.

use testbed::api::{Authority, Credential, Validity};
use testbed::{Readiness, Signal};

use super::fixture::Fixture;

pub(crate) fn by_certificate() {
    let mut fixture = Fixture::new();
    // Without a kubeconfig, the server's readiness is unknown: it is only known to be alive.
    fixture.serve(0);
    fixture.cluster.start_all();
    let alive = ("up".to_owned(), "up-readiness-unknown".to_owned());
    fixture.cluster.wait("the server is up with unknown readiness", || fixture.backend(0, 0) == alive);
    fixture.serve(1);
    fixture.serve(2);
    fixture.list(&[0, 1, 2]);
    fixture.start_api();
    readiness_is_known(&fixture);
}

/// Checks that every daemon learns the readiness of every server.
fn readiness_is_known(fixture: &Fixture) {
    for daemon in 0..3 {
        for node in 0..3 {
            fixture
                .cluster
                .wait("the server is up", || fixture.backend(daemon, node) == ("up".into(), String::new()));
        }
    }
    fixture.api_server(1).set_readiness(Readiness::Status(503));
    for daemon in 0..3 {
        let down = ("down".to_owned(), "answered with HTTP status 503".to_owned());
        fixture.cluster.wait("the server is down", || fixture.backend(daemon, 1) == down);
    }
    let probe = fixture.probe();
    fixture.served_by(&probe, &[0, 2]);
    fixture.api_server(1).set_readiness(Readiness::Terminating);
    fixture.cluster.wait("the terminating server is not up", || fixture.backend(0, 1).0 != "up");
    fixture.api_server(1).set_readiness(Readiness::Status(200));
    fixture.served_by(&probe, &[0, 1, 2]);
}

/// The token has the rights that README's commands grant: list and watch of the slices, and readiness.
pub(crate) fn by_token() {
    const TOKEN: &str = "a.service.account";
    let mut fixture = Fixture::new();
    fixture.listed.set_token(TOKEN);
    for node in 0..3 {
        fixture.serve(node);
    }
    fixture.list(&[0, 1, 2]);
    fixture.start_api();
    fixture.write_kubeconfig(&Credential::Token(TOKEN));
    fixture.cluster.start_all();
    fixture.cluster.wait_until_settled();
    for node in 0..3 {
        fixture.wait_for(node, "api", &[0, 1, 2]);
        // The servers here authenticate certificates only: with a token they are alive, of unknown readiness.
        fixture.cluster.wait("the server is up with unknown readiness", || {
            fixture.backend(node, 0) == ("up".to_owned(), "up-readiness-unknown".to_owned())
        });
        let log = fixture.cluster.daemon(node).log().text();
        let shown = format!("{log}{}", fixture.cluster.status(node));
        fixture.cluster.check(!shown.contains(TOKEN), || "the token is shown".to_owned());
        let state = std::fs::metadata(fixture.cluster.state_dir(node).join("backends.json"))
            .expect("the file exists");
        let mode = std::os::unix::fs::PermissionsExt::mode(&state.permissions()) & 0o777;
        fixture.cluster.check(mode == 0o600, || format!("{mode:o}"));
    }
}

pub(crate) fn impostor() {
    let mut fixture = Fixture::complete();
    let probe = fixture.probe();
    let stranger = Authority::new("another").expect("an authority");
    let forged = stranger.server(&["kubernetes"], Validity::Now).expect("a certificate");
    let expired = fixture.authority.server(&["kubernetes"], Validity::Expired).expect("a certificate");
    fixture.end(1);
    fixture.serve_as(1, "impostor", &stranger, &forged);
    let authority = Authority::new("unused").expect("an authority");
    fixture.end(2);
    fixture.serve_as(2, "expired", &authority, &expired);
    for daemon in 0..3 {
        for (node, why) in [(1, "did not sign it"), (2, "expired")] {
            fixture.cluster.wait("the certificate is refused", || {
                let (state, reason) = fixture.backend(daemon, node);
                state == "down"
                    && reason.starts_with("its certificate is not accepted")
                    && reason.contains(why)
            });
        }
    }
    fixture.served_by(&probe, &[0]);
    // Servers with valid certificates at the same addresses receive clients again.
    fixture.cluster.backends.retain(|backend| !["impostor", "expired"].contains(&backend.name()));
    fixture.serve(1);
    fixture.serve(2);
    fixture.served_by(&probe, &[0, 1, 2]);
    fixture.cluster.signal(0, Signal::SIGTERM);
}
