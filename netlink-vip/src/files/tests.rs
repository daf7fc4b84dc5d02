use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    let entries = directory.read_dir().unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn store_then_load_round_trips_with_mode_0600() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("deep/state");
    create_directory(&state).unwrap();
    probe_directory(&state).unwrap();
    let path = state.join("x.json");
    assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Nothing);
    store(&path, &vec![1, 2]).unwrap();
    store(&path, &vec![3]).unwrap();
    assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Content(vec![3]));
    assert_eq!((mode(&path), mode(&state)), (0o600, 0o700));
    assert_eq!(names(&state), ["x.json"], "no temporary file is left");
    remove(&path).unwrap();
    remove(&path).unwrap();
    remove(&state.join("missing/x.json")).unwrap();
    assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Nothing);
}

#[test]
fn invalid_content_is_put_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.json");
    let boot = boot_id();
    let later = format!(r#"{{"version":2,"boot_id":"{boot}","content":[1]}}"#);
    let other = format!(r#"{{"version":1,"boot_id":"{boot}","content":"text"}}"#);
    let long = " ".repeat(MAX_SIZE as usize + 1);
    for bad in ["", "{", "null", "\u{0}\u{0}", &later, &other, &long] {
        std::fs::write(&path, bad).unwrap();
        assert!(matches!(load::<Vec<u8>>(&path).unwrap(), Loaded::Unreadable(_)), "{bad:.40}");
        assert!(!path.exists() && path.with_extension("bad").exists());
    }
}

#[test]
fn a_file_of_another_boot_is_ignored_unless_it_outlives_a_boot() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.json");
    std::fs::write(&path, r#"{"version":1,"boot_id":"another","content":[1]}"#).unwrap();
    assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Nothing);
    assert_eq!(load_as::<Vec<u8>>(&path, Outlives::Boot).unwrap(), Loaded::Content(vec![1]));
}

#[test]
fn a_directory_that_others_can_write_to_is_refused_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    create_directory(&state).unwrap();
    let path = state.join("x.json");
    store(&path, &vec![1]).unwrap();
    for open in [0o770, 0o702, 0o1777] {
        set_mode(&state, open);
        let refusals = [
            create_directory(&state).unwrap_err(),
            probe_directory(&state).unwrap_err(),
            load::<Vec<u8>>(&path).unwrap_err(),
            store(&path, &vec![2]).unwrap_err(),
            remove(&path).unwrap_err(),
        ];
        for refusal in refusals {
            assert_eq!(refusal.kind(), io::ErrorKind::PermissionDenied);
            let text = refusal.to_string();
            assert!(text.contains(&format!("chmod 0700 {}", state.display())), "{text}");
        }
    }
    set_mode(&state, 0o755);
    assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Content(vec![1]), "others may read");
}

#[test]
fn an_empty_directory_is_made_private_unless_it_is_sticky() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("volume");
    create_directory(&state).unwrap();
    set_mode(&state, 0o777);
    create_directory(&state).unwrap();
    assert_eq!(mode(&state), 0o700);
    set_mode(&state, 0o1777);
    assert!(create_directory(&state).is_err());
    assert_eq!(mode(&state), 0o777);
}

#[test]
fn files_of_other_users_are_refused() {
    assert!(is_trusted(0) && is_trusted(own()) && !is_trusted(own() + 1));
    let text = io::Error::from(Untrusted::Owner { path: "/s".into(), uid: 7, own: 0 }).to_string();
    assert!(text.contains("user 7") && text.contains("chown") && text.contains("chmod 0700 /s"), "{text}");
}

#[test]
fn a_file_that_others_can_write_to_is_put_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.json");
    store(&path, &vec![1]).unwrap();
    set_mode(&path, 0o666);
    let Loaded::Unreadable(why) = load::<Vec<u8>>(&path).unwrap() else { panic!("it is used") };
    assert!(why.contains("0666"), "{why}");
    assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Nothing);
}

#[test]
fn links_and_special_files_are_never_followed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, target) = (directory.path().join("x.json"), directory.path().join("target"));
    store(&target, &vec![1]).unwrap();
    symlink(&target, &path).unwrap();
    let Loaded::Unreadable(why) = load::<Vec<u8>>(&path).unwrap() else { panic!("it is followed") };
    assert!(why.contains("symbolic link"), "{why}");
    symlink(&target, &path).unwrap();
    store(&path, &vec![2]).unwrap();
    assert_eq!(load::<Vec<u8>>(&target).unwrap(), Loaded::Content(vec![1]), "the link is replaced");
    assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Content(vec![2]));
    remove(&path).unwrap();
    nix::unistd::mkfifo(&path, Mode::S_IRUSR).unwrap();
    let Loaded::Unreadable(why) = load::<Vec<u8>>(&path).unwrap() else { panic!("it is read") };
    assert!(why.contains("regular file"), "{why}");
}

#[test]
fn a_link_to_the_directory_is_followed_if_a_trusted_user_made_it() {
    let directory = tempfile::tempdir().unwrap();
    let (real, link) = (directory.path().join("real"), directory.path().join("link"));
    create_directory(&real).unwrap();
    symlink(&real, &link).unwrap();
    store(&link.join("x.json"), &vec![1]).unwrap();
    assert_eq!(load::<Vec<u8>>(&real.join("x.json")).unwrap(), Loaded::Content(vec![1]));
}

#[test]
fn temporary_files_of_a_crash_are_removed_at_the_next_load() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.json");
    std::fs::write(directory.path().join(".x.json.00ff.new"), "half").unwrap();
    std::fs::write(directory.path().join(".y.json.00ff.new"), "another's").unwrap();
    assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Nothing);
    assert_eq!(names(directory.path()), [".y.json.00ff.new"]);
}

#[test]
fn temporary_names_are_unpredictable_and_private() {
    let directory = tempfile::tempdir().unwrap();
    let handle = Directory::open(directory.path()).unwrap();
    let created: Vec<PathBuf> = (0..2).map(|_| handle.create_temporary(OsStr::new("x")).unwrap().1).collect();
    assert_ne!(created[0], created[1]);
    assert_eq!(mode(&directory.path().join(&created[0])), 0o600);
}
