//! The same findings as a list, as plain lines and drawn.

use cplb_config::{Errors, Location, Severity, Theme, load};

const DOCUMENT: &str = "\
apiVersion: cplb/v1alpha1
kind: ControlPlaneLoadBalancer
spec:
  vrrpInstances:
  - virtualIPs: [10.0.0.100/24]
    authPass: tooLongForVrrp
    version: 3
    # Ä comment beföre the mistake
    preempt: allways
";

fn errors() -> Errors {
    load(DOCUMENT, "cplb.yaml").unwrap_err()
}

#[test]
fn diagnostics_have_severity_rule_path_and_location() {
    let errors = errors();
    let found = &errors.report().diagnostics;
    assert_eq!(found.len(), 2);
    let second = &found[1];
    assert_eq!(second.severity, Severity::Error);
    assert_eq!(second.rule, "unknown-value");
    assert_eq!(second.path, "vrrpInstances[0].preempt");
    assert_eq!(second.location, Some(Location { line: 9, column: 14, offset: 206, len: 7 }));
    assert_eq!(&DOCUMENT[206..213], "allways");
    assert_eq!(second.text, "allways");
    assert_eq!(second.message, "`allways` is not known here");
    assert_eq!(second.help, "did you mean `always`? One of never, degraded, always");
    assert_eq!((second.line(), second.column()), (9, 14));
}

#[test]
fn diagnostics_render_as_plain_lines() {
    insta::assert_snapshot!("plain", errors().report().plain());
}

#[test]
fn diagnostics_render_graphically() {
    insta::assert_snapshot!("monochrome", errors().report().graphical(Theme::Monochrome, 90));
    insta::assert_snapshot!("ascii", errors().report().graphical(Theme::Ascii, 90));
    assert!(errors().report().graphical(Theme::Color, 90).contains("\u{1b}["));
    assert!(!errors().report().graphical(Theme::Monochrome, 90).contains("\u{1b}["));
}

#[test]
fn load_errors_display_the_first_diagnostic() {
    let errors = errors();
    let error: &dyn std::error::Error = &errors;
    assert_eq!(
        error.to_string(),
        "cplb.yaml: 2 errors, the first at line 6, column 15: the password has 14 bytes, and VRRP has room for 8"
    );
    let one = load("kind: Pod", "pod.yaml").unwrap_err();
    assert_eq!(
        one.to_string(),
        "pod.yaml: 1 error, the first at line 1, column 7: the kind `Pod` is not read"
    );
    let large = load(&"#".repeat(cplb_config::MAX_BYTES + 1), "core").unwrap_err();
    assert_eq!(large.to_string(), "core: 1 error: the file has more than 1048576 bytes (1 MiB)");
}
