//! Hostile and broken files: refused quickly, with a message, and never with a panic.

use std::fmt::Write as _;
use std::time::Duration;

use cplb_config::{Errors, Loaded, MAX_BYTES, Severity, Theme, load, load_bytes};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// No file may hold up a reload longer than this, in a debug build too.
const LIMIT: Duration = Duration::from_millis(200);

/// Time this thread has spent on a processor, so that a busy machine fails no test.
fn processor_time() -> Duration {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel with schedstat");
    let nanoseconds =
        line.split(' ').next().and_then(|field| field.parse().ok()).expect("the time on a processor");
    Duration::from_nanos(nanoseconds)
}

fn quickly(name: &str, text: &str) -> Result<Loaded, Errors> {
    let start = processor_time();
    let result = load(text, "f.yaml");
    if let Err(errors) = &result {
        let _ = errors.report().plain();
    }
    let took = processor_time() - start;
    println!("{name}: {} bytes in {took:?}", text.len());
    assert!(took <= LIMIT, "{name} took {took:?}");
    result
}

fn refused(name: &str, text: &str) -> String {
    let Err(errors) = quickly(name, text) else { panic!("{name} was accepted") };
    errors.errors().next().unwrap().message.clone()
}

#[test]
fn a_file_of_ten_megabytes_is_refused_by_its_size() {
    let text = "spec: {}\n".repeat(10 << 20 >> 3);
    let errors = load(&text, "core.yaml").unwrap_err();
    assert_eq!(
        errors.report().plain(),
        "core.yaml: error: the file has more than 1048576 bytes (1 MiB)\n    \
         help: this is no configuration file; check the path\n"
    );
    refused("ten megabytes", &text);
    let just_fits = format!("# {}\n", "x".repeat(MAX_BYTES - 3));
    assert_eq!(just_fits.len(), MAX_BYTES);
    assert_eq!(refused("comment of a mebibyte", &just_fits), "the file holds no document");
    assert!(refused("a byte more", &format!("{just_fits}\n")).contains("more than 1048576 bytes"));
}

#[test]
fn deep_nesting_is_refused() {
    let deep = "nested deeper than 100 levels";
    for n in [101, 1_000, 500_000] {
        assert!(refused("flow lists", &"[".repeat(n)).contains(deep), "{n}");
        assert!(refused("flow mappings", &"{a: ".repeat(n / 4 + 101)).contains(deep), "{n}");
        assert!(refused("block lists", &"- ".repeat(n)).contains(deep), "{n}");
    }
    let mut stairs = String::new();
    for level in 0..1_400 {
        writeln!(stairs, "{}a:", " ".repeat(level)).unwrap();
    }
    assert!(refused("block mappings", &stairs).contains(deep));
    let ninety = format!("a: {}{}", "[".repeat(90), "]".repeat(90));
    assert_eq!(refused("ninety levels", &ninety), "this document has neither apiVersion nor kind");
}

/// Each level names the one before ten times.
fn bomb(levels: usize, width: usize) -> String {
    let mut text = "a0: &a0 x\n".to_owned();
    for level in 1..=levels {
        let aliases = vec![format!("*a{}", level - 1); width].join(", ");
        writeln!(text, "a{level}: &a{level} [{aliases}]").unwrap();
    }
    text
}

#[test]
fn alias_bombs_are_refused() {
    for (levels, width) in [(9, 10), (60, 2), (3, 1000), (95, 9)] {
        assert!(
            refused("bomb", &bomb(levels, width)).contains("once its aliases are followed"),
            "{levels} {width}"
        );
    }
    let mut chain = "a0: &a0 [x]\n".to_owned();
    for level in 1..150 {
        writeln!(chain, "a{level}: &a{level} [*a{}]", level - 1).unwrap();
    }
    assert!(refused("chain", &chain).contains("nested deeper than 100 levels"));
    let mut merges = "m0: &m0 {k0: 0}\n".to_owned();
    for level in 1..2_000 {
        writeln!(merges, "m{level}: &m{level} {{<<: *m{}, k{level}: 0}}", level - 1).unwrap();
    }
    let message = refused("merges", &merges);
    assert!(message.contains("more than 100000 values") || message.contains("once its aliases"), "{message}");
}

#[test]
fn long_lists_in_the_section_are_refused() {
    let head = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n";
    let instance = "  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24]\n    unicastPeers: &l";
    for (path, most) in [
        ("  vrrpInstances:", 255),
        ("  virtualServers:", 255),
        ("  services:", 100),
        ("  backends:\n    static:", 1000),
        (instance, 255),
    ] {
        let text = format!("{head}{path} [{}]\n", vec!["a"; 60_000].join(", "));
        assert_eq!(refused(path, &text), format!("60000 items are more than the {most} that are taken here"));
    }
    let fields: String = (0..60_000).map(|i| format!("  f{i}: 0\n")).collect();
    refused("60,000 unknown fields", &format!("{head}{fields}"));
    let keys = "  services: []\n".repeat(60_000);
    refused("60,000 duplicate keys", &format!("{head}{keys}"));
}

/// The section itself as the target of aliases: what is read many times must stay bounded too.
#[test]
fn aliases_inside_the_section_cost_no_more_than_they_expand_to() {
    let head = "apiVersion: k0sctl.k0sproject.io/v1beta1\nkind: Cluster\nmetadata:\n  h: &h {role: controller, ssh: {address: 10.0.0.1}}\nspec:\n  hosts: [";
    let text = format!("{head}{}]\n", vec!["*h"; 20_000].join(", "));
    let loaded = quickly("20,000 aliased hosts", &text).unwrap();
    assert_eq!(loaded.config.backends.fixed.len(), 1);
    assert!(loaded.warnings.len() <= 102);
}

#[test]
fn long_lists_and_many_mistakes_are_quick() {
    refused("a list of 300,000 items", &"- a\n".repeat(250_000));
    refused("a mebibyte of one word", &"a".repeat(MAX_BYTES));
    refused("a mebibyte of quotes", &"\"".repeat(MAX_BYTES));
    refused("a mebibyte of line breaks", &"\n".repeat(MAX_BYTES));
    refused("a mebibyte of documents", &"---\n".repeat(MAX_BYTES / 4));
    refused("a mebibyte of document ends", &"...\n".repeat(MAX_BYTES / 4));
    refused("a mebibyte of anchors", &"&a ".repeat(MAX_BYTES / 3));
    refused("a mebibyte of question marks", &"? ".repeat(MAX_BYTES / 2));
    refused("a mebibyte of tags", &"!a ".repeat(MAX_BYTES / 3));
    refused("a mebibyte of colons", &":".repeat(MAX_BYTES));
    refused("a mebibyte of open scalars", &format!("a: '{}", "x\n".repeat(MAX_BYTES / 2 - 4)));
    refused("a mebibyte of comments", &"# x\n".repeat(MAX_BYTES / 4));
    refused(
        "a mebibyte of passwords in one broken line",
        &format!("[{}", "authPass: ".repeat(MAX_BYTES / 10 - 1)),
    );
    refused(
        "a mebibyte of broken lines with passwords",
        &format!("[{}", "authPass: x\n".repeat(MAX_BYTES / 12 - 1)),
    );
    let head = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  backends:\n    static:\n";
    let mut servers = head.to_owned();
    for i in 0..1_000 {
        writeln!(servers, "    - 10.{}.{}.{}/8", i >> 16, i >> 8 & 255, i & 255).unwrap();
    }
    let errors = quickly("1,000 wrong servers", &servers).unwrap_err();
    assert!(errors.report().diagnostics.len() <= 101);
    let last = errors.report().diagnostics.last().unwrap();
    assert_eq!(last.message, "900 more findings of this kind are not shown");
    let start = processor_time();
    assert!(errors.report().graphical(Theme::Monochrome, 100).contains("without a prefix length"));
    let took = processor_time() - start;
    assert!(took < LIMIT, "drawing took {took:?}");
}

#[test]
fn many_servers_are_compared_quickly() {
    let head = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  backends:\n    static:\n";
    let mut servers = head.to_owned();
    for i in 0..30_000 {
        writeln!(servers, "    - 10.{}.{}.{}", i >> 16, i >> 8 & 255, i & 255).unwrap();
    }
    let message = refused("30,000 servers", &servers);
    assert!(message.contains("30000 items are more than the 1000"), "{message}");
}

#[test]
fn bytes_that_are_no_text_are_located() {
    let errors = load_bytes(b"apiVersion: cplb/v1alpha1\nkind: \xc3\xa9\xff\n", "f.yaml").unwrap_err();
    assert_eq!(
        errors.report().plain(),
        "f.yaml:2:8: error: the byte 0xff here is not UTF-8\n    help: save the file as UTF-8\n"
    );
    let utf16: Vec<u8> = "\u{feff}spec: {}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(load_bytes(&utf16, "f.yaml").unwrap_err().report().plain().contains("0xff"));
}

#[test]
fn byte_order_mark_and_windows_line_ends_are_fine() {
    let text = "\u{feff}apiVersion: cplb/v1alpha1\r\nkind: ControlPlaneLoadBalancer\r\nspec:\r\n  backends:\r\n    static: [10.0.0.11]\r\n";
    assert_eq!(load(text, "f.yaml").unwrap().config.backends.fixed.len(), 1);
    let wrong = text.replace("10.0.0.11", "nobody home");
    let plain = load(&wrong, "f.yaml").unwrap_err().report().plain();
    assert!(plain.starts_with("f.yaml:5:14: error: `nobody home` is neither"), "{plain}");
}

const SECRET: &str = "hunter2";

#[test]
fn passwords_are_never_shown() {
    let documents = [
        format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  - virtualIPs: [10.0.0.100]\n    authPass: {SECRET}\n"
        ),
        format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  - {{virtualIPs: [10.0.0.100], authPass: {SECRET}too-long}}\n"
        ),
        format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24]\n    authPass: a\n    authPass: {SECRET}\n"
        ),
        format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  - virtualIPs: [\n    authPass: {SECRET}\n"
        ),
        format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  - virtualIPs: [10.0.0.100]\n    authPass: >\n     {SECRET}\n     and more\n"
        ),
        format!(
            "apiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\nspec:\n  network:\n    controlPlaneLoadBalancing:\n      keepalived:\n        vrrpInstances:\n        - virtualIPs: [10.0.0.100]\n          AuthPass: {SECRET}\n"
        ),
        format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24]\n    authPas: {SECRET}\n"
        ),
        format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  - {{virtualIPs: [10.0.0.100/24], authPass:{SECRET}}}\n"
        ),
        format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  - virtualIPs: [\n    auhtPass: >\n      {SECRET}\n"
        ),
    ];
    for document in documents {
        let errors = load(&document, "f.yaml").unwrap_err();
        let report = errors.report();
        let shown =
            [report.plain(), report.graphical(Theme::Color, 80), format!("{errors:?}"), errors.to_string()];
        for text in shown {
            assert!(!text.contains(SECRET), "{text}");
        }
        assert!(
            report.graphical(Theme::Ascii, 80).contains("***"),
            "nothing of the password's line was shown masked"
        );
    }
    let good = format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24]\n    authPass: {SECRET}\n"
    );
    let loaded = load(&good, "f.yaml").unwrap();
    assert!(!format!("{loaded:?}").contains(SECRET));
    let redacted = loaded.config.to_native_yaml(cplb_config::Redact::Passwords).unwrap();
    assert!(!redacted.contains(SECRET));
    let plain = load(&redacted, "f.yaml").unwrap_err().report().plain();
    assert!(plain.contains("the password was taken out of this document"), "{plain}");
    assert!(loaded.config.to_native_yaml(cplb_config::Redact::Nothing).unwrap().contains(SECRET));
}

/// Loads and renders in every way; the result does not matter.
fn survive(bytes: &[u8]) -> Result<(), TestCaseError> {
    match load_bytes(bytes, "f.yaml") {
        Ok(loaded) => {
            prop_assert!(loaded.warnings.iter().all(|warning| warning.severity < Severity::Error));
            let _ = loaded.config.check_interfaces(&[], |_| Some("eth0".to_owned()));
            let yaml = loaded.config.to_native_yaml(cplb_config::Redact::Nothing).unwrap();
            let again = load(&yaml, "again.yaml").unwrap();
            prop_assert_eq!(again.config, loaded.config);
        }
        Err(errors) => {
            prop_assert!(errors.errors().count() > 0);
            let text = String::from_utf8_lossy(bytes);
            for diagnostic in &errors.report().diagnostics {
                if let Some(location) = diagnostic.location {
                    prop_assert!(location.line >= 1 && location.column >= 1);
                    prop_assert!(location.line <= text.lines().count() + 1, "{:?}", diagnostic);
                    prop_assert!(location.offset + location.len <= text.len());
                }
            }
            let _ = errors.report().plain();
            let _ = errors.report().graphical(Theme::Color, 80);
        }
    }
    Ok(())
}

/// Fragments that YAML and the documents are made of, so that random files get somewhere.
fn fragment() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "apiVersion: cplb/v1alpha1\n",
        "kind: ControlPlaneLoadBalancer\n",
        "spec:\n",
        "  vrrpInstances:\n",
        "  - virtualIPs: [10.0.0.1/24]\n",
        "    authPass: abc\n",
        "    virtualRouterID: 51\n",
        "  services:\n",
        "  - {name: a, port: 1}\n",
        "  backends: {static: [10.0.0.2]}\n",
        "apiVersion: k0s.k0sproject.io/v1beta1\nkind: ClusterConfig\n",
        "  network:\n    controlPlaneLoadBalancing:\n      keepalived:\n",
        "&a ",
        "*a",
        "&b ",
        "*b",
        "<<: ",
        "[",
        "]",
        "{",
        "}",
        ": ",
        ", ",
        "- ",
        "? ",
        "| ",
        "> ",
        "'",
        "\"",
        "#",
        "!",
        "!!str ",
        "%",
        "@",
        "`",
        "\n",
        "\n  ",
        "\n    ",
        "\t",
        "---\n",
        "...\n",
        "~",
        "0x1",
        "010",
        "yes",
        "1e3",
        "é",
        "\u{feff}",
        "\u{2028}",
        "\r\n",
        "\0",
        "𝄞",
    ]);
    prop_oneof![10 => words.prop_map(str::to_owned), 1 => "\\PC{0,12}"]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/limits.proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        survive(&bytes)?;
    }

    #[test]
    fn arbitrary_mixtures_of_fragments_never_panic(parts in prop::collection::vec(fragment(), 0..60)) {
        survive(parts.concat().as_bytes())?;
    }

    #[test]
    fn damaged_examples_never_panic(at in 0_usize..3000, len in 0_usize..12, with in "\\PC{0,6}") {
        let example = include_str!("examples/native-everything.yaml");
        let mut text: Vec<char> = example.chars().collect();
        let at = at.min(text.len());
        let end = (at + len).min(text.len());
        text.splice(at..end, with.chars());
        survive(text.into_iter().collect::<String>().as_bytes())?;
    }

    #[test]
    fn nested_aliases_never_panic(
        lines in prop::collection::vec((0_u8..6, prop::collection::vec(0_u8..6, 0..8), any::<bool>()), 1..40),
    ) {
        let mut text = "a0: &a0 x\na1: &a1 {k: v}\n".to_owned();
        for (name, aliases, mapping) in lines {
            let items: Vec<String> = if mapping {
                aliases.iter().enumerate().map(|(i, a)| if i == 0 { format!("<<: *a{a}") } else { format!("k{i}: *a{a}") }).collect()
            } else {
                aliases.iter().map(|a| format!("*a{a}")).collect()
            };
            let (open, close) = if mapping { ('{', '}') } else { ('[', ']') };
            text += &format!("b: &a{name} {open}{}{close}\n", items.join(", "));
        }
        survive(text.as_bytes())?;
    }
}
