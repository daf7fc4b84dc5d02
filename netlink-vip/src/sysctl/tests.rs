use super::*;

struct Tree(tempfile::TempDir);

impl Tree {
    fn new(values: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(tree.conf()).unwrap();
        for (name, value) in values {
            std::fs::write(tree.conf().join(name), format!("{value}\n")).unwrap();
        }
        tree
    }

    fn conf(&self) -> PathBuf {
        self.0.path().join("sys/net/ipv4/conf/eth0")
    }

    fn value(&self, name: &str) -> String {
        // A regular file keeps what a shorter write leaves; sysctls do not.
        std::fs::read_to_string(self.conf().join(name)).unwrap().lines().next().unwrap().to_owned()
    }

    fn open(&self) -> (SysctlGuard, Recovery) {
        SysctlGuard::open_below(&self.0.path().join("sys"), &self.0.path().join("state")).unwrap()
    }
}

fn key(name: &str) -> SysctlKey {
    SysctlKey::ipv4_conf("eth0", name).unwrap()
}

#[test]
fn originals_are_restored_in_reverse_order() {
    let tree = Tree::new(&[("arp_ignore", "0"), ("arp_announce", "1")]);
    let (mut guard, recovery) = tree.open();
    assert!(recovery.restored.is_empty());
    guard.hide_other_addresses("eth0").unwrap();
    guard.set(&key("arp_ignore"), "8").unwrap();
    assert_eq!((tree.value("arp_ignore").as_str(), tree.value("arp_announce").as_str()), ("8", "2"));
    let recovery = guard.restore();
    assert_eq!(recovery.restored, [key("arp_announce"), key("arp_ignore")]);
    assert_eq!((tree.value("arp_ignore").as_str(), tree.value("arp_announce").as_str()), ("0", "1"));
    assert!(!guard.path.exists());
}

#[test]
fn dropping_restores() {
    let tree = Tree::new(&[("arp_ignore", "0")]);
    let (mut guard, _) = tree.open();
    guard.set(&key("arp_ignore"), "1").unwrap();
    drop(guard);
    assert_eq!(tree.value("arp_ignore"), "0");
}

#[test]
fn a_restart_restores_what_a_crash_left_changed() {
    let tree = Tree::new(&[("arp_ignore", "0"), ("arp_announce", "1"), ("rp_filter", "1")]);
    let (mut guard, _) = tree.open();
    for name in ["arp_ignore", "arp_announce", "rp_filter"] {
        guard.set(&key(name), "2").unwrap();
    }
    std::mem::forget(guard);
    std::fs::remove_file(tree.conf().join("rp_filter")).unwrap();
    std::fs::write(tree.conf().join("arp_announce"), "0\n").unwrap();
    let (guard, recovery) = tree.open();
    assert_eq!(recovery.restored, [key("arp_ignore")]);
    assert_eq!(recovery.changed_since, [key("arp_announce")], "the foreign value stays");
    assert!(recovery.failed.is_empty() && guard.changes.is_empty());
    assert_eq!((tree.value("arp_ignore").as_str(), tree.value("arp_announce").as_str()), ("0", "0"));
}

#[test]
fn taken_over_changes_stay_until_they_are_restored() {
    let tree = Tree::new(&[("arp_ignore", "0"), ("arp_announce", "1")]);
    let (mut guard, _) = tree.open();
    guard.hide_other_addresses("eth0").unwrap();
    std::mem::forget(guard);
    let take_over = || {
        let (root, state) = (tree.0.path().join("sys"), tree.0.path().join("state"));
        let (mut guard, unreadable) = SysctlGuard::load_below(&root, &state).unwrap();
        assert_eq!(unreadable, None);
        guard.on_drop = OnDrop::Keep;
        guard
    };
    drop(take_over());
    assert_eq!((tree.value("arp_ignore").as_str(), tree.value("arp_announce").as_str()), ("1", "2"));
    let mut guard = take_over();
    let recovery = guard.restore_all_but(|key| key.name == "arp_ignore");
    assert_eq!(recovery.restored, [key("arp_announce")]);
    assert_eq!((tree.value("arp_ignore").as_str(), tree.value("arp_announce").as_str()), ("1", "1"));
    drop(guard);
    assert_eq!(take_over().restore().restored, [key("arp_ignore")], "the original, not what was found");
    assert_eq!(tree.value("arp_ignore"), "0");
}

#[test]
fn the_original_is_safe_before_the_first_write() {
    let tree = Tree::new(&[("arp_ignore", "0")]);
    let (mut guard, _) = tree.open();
    // The state file cannot be replaced: a directory is in its place.
    std::fs::create_dir_all(&guard.path).unwrap();
    assert!(matches!(guard.set(&key("arp_ignore"), "1"), Err(SysctlError::StateDir { .. })));
    assert_eq!(tree.value("arp_ignore"), "0");
    assert!(guard.changes.is_empty());
}

#[test]
fn interface_names_reject_path_traversal() {
    for (interface, name) in [
        ("", "arp_ignore"),
        ("..", "arp_ignore"),
        ("a/b", "arp_ignore"),
        ("eth0", ""),
        ("eth0", "../../../kernel/core_pattern"),
        ("eth0", "accept_local"),
    ] {
        assert_eq!(SysctlKey::ipv4_conf(interface, name), None);
    }
    assert_eq!(key("arp_ignore").to_string(), "net.ipv4.conf.eth0.arp_ignore");
}

#[test]
fn values_that_the_kernel_does_not_document_are_neither_written_nor_replaced() {
    let tree = Tree::new(&[("arp_ignore", "9"), ("arp_announce", "0")]);
    let (mut guard, _) = tree.open();
    for (name, value) in [("arp_ignore", "1"), ("arp_announce", "3"), ("arp_announce", "01")] {
        let error = guard.set(&key(name), value).unwrap_err();
        assert!(matches!(error, SysctlError::Value { .. }), "{error}");
    }
    assert_eq!((tree.value("arp_ignore").as_str(), tree.value("arp_announce").as_str()), ("9", "0"));
}

#[test]
fn a_forged_list_restores_nothing() {
    let change = |interface: &str, name: &str, original: &str, written: &str| serde_json::json!({"key": {"interface": interface, "name": name}, "original": original, "written": written});
    for forged in [
        change("eth0", "../../../../kernel/core_pattern", "|/tmp/x", "core"),
        change("../eth0", "arp_ignore", "0", "1"),
        change("..", "arp_ignore", "0", "1"),
        change("all", "rp_filter", "0", "1"),
        change("default", "rp_filter", "0", "1"),
        change("eth0", "accept_local", "1", "0"),
        change("eth0", "arp_ignore", "9", "1"),
        change("eth0", "arp_ignore", "0", "-1"),
        change("eth0", "rp_filter", "0\n", "1"),
    ] {
        let tree = Tree::new(&[("arp_ignore", "1"), ("rp_filter", "1"), ("accept_local", "0")]);
        let state = tree.0.path().join("state");
        files::create_directory(&state).unwrap();
        let good = change("eth0", "arp_ignore", "0", "1");
        files::store(&state.join("sysctls.json"), &[good, forged.clone()]).unwrap();
        let (_, recovery) = tree.open();
        assert!(recovery.unreadable.is_some() && recovery.restored.is_empty(), "{forged}");
        assert_eq!(tree.value("arp_ignore"), "1", "{forged}");
    }
}
