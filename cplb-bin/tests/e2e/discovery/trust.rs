//! Servers with certificates of the cluster's authority, which answer readiness only to authenticated clients.

use testbed::api::{Authority, Credential, Validity};
use testbed::{Readiness, Signal};

use super::ground::Scene;

pub(crate) fn by_certificate() {
    let mut scene = Scene::new();
    // Without a kubeconfig, the server's readiness is unknown: it is only known to be alive.
    scene.serve(0);
    scene.cluster.start_all();
    let alive = ("up".to_owned(), "up-readiness-unknown".to_owned());
    scene.cluster.wait("the server is up with unknown readiness", || scene.backend(0, 0) == alive);
    scene.serve(1);
    scene.serve(2);
    scene.list(&[0, 1, 2]);
    scene.start_api();
    readiness_is_known(&scene);
}

/// Checks that every daemon learns the readiness of every server.
fn readiness_is_known(scene: &Scene) {
    for daemon in 0..3 {
        for node in 0..3 {
            scene
                .cluster
                .wait("the server is up", || scene.backend(daemon, node) == ("up".into(), String::new()));
        }
    }
    scene.api_server(1).set_readiness(Readiness::Status(503));
    for daemon in 0..3 {
        let down = ("down".to_owned(), "answered with HTTP status 503".to_owned());
        scene.cluster.wait("the server is down", || scene.backend(daemon, 1) == down);
    }
    let probe = scene.probe();
    scene.served_by(&probe, &[0, 2]);
    scene.api_server(1).set_readiness(Readiness::Leaving);
    scene.cluster.wait("the terminating server is not up", || scene.backend(0, 1).0 != "up");
    scene.api_server(1).set_readiness(Readiness::Status(200));
    scene.served_by(&probe, &[0, 1, 2]);
}

/// The token has the rights that README's commands grant: list and watch of the slices, and readiness.
pub(crate) fn by_token() {
    const TOKEN: &str = "a.service.account";
    let mut scene = Scene::new();
    scene.listed.set_token(TOKEN);
    for node in 0..3 {
        scene.serve(node);
    }
    scene.list(&[0, 1, 2]);
    scene.start_api();
    scene.write_kubeconfig(&Credential::Token(TOKEN));
    scene.cluster.start_all();
    scene.cluster.wait_until_settled();
    for node in 0..3 {
        scene.wait_for(node, "api", &[0, 1, 2]);
        // The servers here authenticate certificates only: with a token they are alive, of unknown readiness.
        scene.cluster.wait("the server is up with unknown readiness", || {
            scene.backend(node, 0) == ("up".to_owned(), "up-readiness-unknown".to_owned())
        });
        let log = scene.cluster.daemon(node).log().text();
        let shown = format!("{log}{}", scene.cluster.status(node));
        scene.cluster.check(!shown.contains(TOKEN), || "the token is shown".to_owned());
        let state =
            std::fs::metadata(scene.cluster.state_dir(node).join("backends.json")).expect("the file exists");
        let mode = std::os::unix::fs::PermissionsExt::mode(&state.permissions()) & 0o777;
        scene.cluster.check(mode == 0o600, || format!("{mode:o}"));
    }
}

pub(crate) fn impostor() {
    let mut scene = Scene::complete();
    let probe = scene.probe();
    let stranger = Authority::new("another").expect("an authority");
    let forged = stranger.server(&["kubernetes"], Validity::Now).expect("a certificate");
    let expired = scene.authority.server(&["kubernetes"], Validity::Expired).expect("a certificate");
    scene.end(1);
    scene.serve_as(1, "impostor", &stranger, &forged);
    let authority = Authority::new("unused").expect("an authority");
    scene.end(2);
    scene.serve_as(2, "expired", &authority, &expired);
    for daemon in 0..3 {
        for (node, why) in [(1, "did not sign it"), (2, "expired")] {
            scene.cluster.wait("the certificate is refused", || {
                let (state, reason) = scene.backend(daemon, node);
                state == "down"
                    && reason.starts_with("its certificate is not accepted")
                    && reason.contains(why)
            });
        }
    }
    scene.served_by(&probe, &[0]);
    // Servers with valid certificates at the same addresses receive clients again.
    scene.cluster.backends.retain(|backend| !["impostor", "expired"].contains(&backend.name()));
    scene.serve(1);
    scene.serve(2);
    scene.served_by(&probe, &[0, 1, 2]);
    scene.cluster.signal(0, Signal::SIGTERM);
}
