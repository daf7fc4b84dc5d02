//! The keys of `authHMAC` that stand in files.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use cplb_config::{AuthHmac, Config, HmacKey};
use nix::fcntl::OFlag;
use nix::unistd::Uid;
use vrrp::hmac::Key;

use crate::exit::{Failure, Kind};

/// More than the longest key.
const MAX_BYTES: u64 = 1024;
/// The permissions of others than the owner.
const OTHERS: u32 = 0o077;

/// Reads all keys, so that another key in a file is another configuration.
///
/// # Errors
/// The first file that cannot be used.
pub(crate) fn read(config: &mut Config) -> Result<(), Failure> {
    let mut hmacs = config.instances.iter_mut().filter_map(|instance| instance.auth_hmac.as_mut());
    hmacs.try_for_each(|hmac: &mut AuthHmac| hmac.read_files(read_key))
}

/// The key in a regular file that only this process's user, or root, may read.
fn read_key(path: &Path) -> Result<Key, Failure> {
    let refused = |kind, why: &dyn std::fmt::Display| {
        Failure::new(kind, format_args!("cannot use the key in {}: {why}", path.display()))
    };
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => refused(Kind::Permission, &error),
        _ => refused(Kind::NoInput, &error),
    };
    // A pipe without a writer would block.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let file = file.map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(refused(Kind::NoInput, &"it is no regular file"));
    }
    if metadata.mode() & OTHERS != 0 {
        let why =
            format!("others than its owner may read or write it (mode {:04o})", metadata.mode() & 0o7777);
        return Err(refused(Kind::Config, &why).help(format_args!("chmod 600 {}", path.display())));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != Uid::effective().as_raw() {
        let why = format!("it belongs to user {owner}");
        return Err(refused(Kind::Config, &why).help(format_args!("chown root {}", path.display())));
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(unreadable)?;
    HmacKey::parse(&text).map_err(|error| {
        refused(Kind::Config, &error)
            .help("make a key with `openssl rand -hex 32`, the same file on each controller")
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn refusal(path: &Path) -> String {
        read_key(path).expect_err("the key is refused").to_string()
    }

    #[test]
    fn key_files_are_private_regular_files_with_a_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(refusal(&path).contains("No such file"));
        fs::write(&path, "k".repeat(40) + "\n").unwrap();
        for mode in [0o644, 0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let text = refusal(&path);
            assert!(text.contains(&format!("(mode {mode:04o})")) && text.contains("chmod 600"), "{text}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_key(&path).unwrap().as_bytes(), "k".repeat(40).as_bytes());
        fs::write(&path, "short").unwrap();
        assert!(refusal(&path).contains("a key of 5 bytes; 32 to 64 are allowed"));
        fs::write(&path, "hex:0g").unwrap();
        assert!(refusal(&path).contains("pairs of hexadecimal digits"));
        fs::write(&path, [0xff; 40]).unwrap();
        assert!(refusal(&path).contains("valid UTF-8"));
        assert!(refusal(directory.path()).contains("no regular file"));
    }

    #[test]
    fn keys_of_a_configuration_replace_their_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "hex:".to_owned() + &"0f".repeat(32)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let document = format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  \
             - virtualIPs: [10.0.0.100/24]\n    authHMAC: {{keys: [{{id: 7, key: 'file:{}'}}]}}\n",
            path.display()
        );
        let mut config = cplb_config::load(&document, "test").unwrap().config;
        read(&mut config).unwrap();
        let hmac = config.instances[0].auth_hmac.as_ref().unwrap().to_config().unwrap();
        let keys: Vec<_> = hmac.keys().map(|(id, key)| (id.get(), key.as_bytes().to_vec())).collect();
        assert_eq!(keys, [(7, vec![0x0f; 32])]);
    }
}
