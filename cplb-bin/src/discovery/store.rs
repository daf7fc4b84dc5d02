//! Stores the last good set of servers of each cluster on disk, for a boot without an API.

mod format;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use netlink_vip::files::{self, Loaded, Outlives};

use format::{Cluster, Content};

/// The name of the file in the state directory.
pub(crate) const FILE: &str = "backends.json";

/// The file and its content. An unreadable file counts as empty.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    content: Content,
    /// True if the file has this content.
    is_saved: bool,
}

impl Store {
    /// Reads the file. With one that cannot be read the store is empty, and the reason is returned.
    pub(crate) fn open(state_dir: &Path) -> (Self, Option<String>) {
        let path = state_dir.join(FILE);
        let (content, fault) = match files::load_as::<Content>(&path, Outlives::Boot) {
            Ok(Loaded::Content(content)) => (content, None),
            Ok(Loaded::Nothing) => (Content::default(), None),
            Ok(Loaded::Unreadable(reason)) => (Content::default(), Some(reason)),
            Err(error) => (Content::default(), Some(error.to_string())),
        };
        (Self { path, content, is_saved: true }, fault)
    }

    /// The servers of a cluster.
    pub(crate) fn servers(&self, kubeconfig: &Path) -> Option<&BTreeSet<SocketAddr>> {
        let mut clusters = self.content.clusters.iter();
        clusters.find(|cluster| cluster.kubeconfig == kubeconfig).map(|cluster| &cluster.servers)
    }

    /// The servers of all clusters for which `known` is false; `None` if there are none.
    pub(crate) fn servers_besides(&self, known: impl Fn(&Path) -> bool) -> Option<BTreeSet<SocketAddr>> {
        let others = self.content.clusters.iter().filter(|cluster| !known(&cluster.kubeconfig));
        let servers: BTreeSet<SocketAddr> = others.flat_map(|cluster| &cluster.servers).copied().collect();
        (!servers.is_empty()).then_some(servers)
    }

    /// Keeps the servers of a cluster in memory and on disk. Servers that cannot be written are written with the next
    /// change, or at the next call.
    ///
    /// # Errors
    /// The failure to write the file.
    pub(crate) fn keep(&mut self, kubeconfig: &Path, servers: &BTreeSet<SocketAddr>) -> io::Result<()> {
        if self.servers(kubeconfig) != Some(servers) {
            self.content.clusters.retain(|cluster| cluster.kubeconfig != kubeconfig);
            let cluster = Cluster { kubeconfig: kubeconfig.to_owned(), servers: servers.clone() };
            self.content.clusters.push(cluster);
            self.is_saved = false;
        }
        self.save().map(drop)
    }

    /// Removes the clusters for which `wanted` is false.
    ///
    /// # Errors
    /// As [`Store::keep`].
    pub(crate) fn retain(&mut self, wanted: impl Fn(&Path) -> bool) -> io::Result<()> {
        let before = self.content.clusters.len();
        self.content.clusters.retain(|cluster| wanted(&cluster.kubeconfig));
        self.is_saved &= self.content.clusters.len() == before;
        self.save().map(drop)
    }

    /// Writes the content if the file has another one. Returns whether it had.
    ///
    /// # Errors
    /// As [`Store::keep`].
    pub(crate) fn save(&mut self) -> io::Result<bool> {
        if self.is_saved {
            return Ok(false);
        }
        if self.content == Content::default() {
            files::remove(&self.path)?;
        } else {
            files::store(&self.path, &self.content)?;
        }
        self.is_saved = true;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn servers(text: &[&str]) -> BTreeSet<SocketAddr> {
        text.iter().map(|server| server.parse().unwrap()).collect()
    }

    #[test]
    fn store_then_open_round_trips_with_mode_0600() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (Path::new("/a.conf"), Path::new("/b.conf"));
        let (mut store, fault) = Store::open(directory.path());
        assert!(fault.is_none() && store.servers(a).is_none());
        let good = servers(&["10.0.0.11:6443", "[fd00::12]:6443"]);
        store.keep(a, &good).unwrap();
        store.keep(b, &servers(&["10.1.0.1:6443"])).unwrap();
        let mode = std::fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (mut store, _) = Store::open(directory.path());
        assert_eq!(store.servers(a), Some(&good));
        assert_eq!(store.servers_besides(|path| path == b), Some(good));
        assert_eq!(store.servers_besides(|_| true), None);
        store.retain(|path| path == a).unwrap();
        assert_eq!(Store::open(directory.path()).0.servers(b), None);
        store.retain(|_| false).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_unreadable_file_is_reported_and_counts_as_empty() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        let later = r#"{"version": 2, "boot_id": "", "content": {"clusters": []}}"#;
        let wrong = r#"{"version": 1, "boot_id": "", "content": {"clusters": [{"kubeconfig": 1}]}}"#;
        let content = |kubeconfig: &str, server: &str| {
            let content = serde_json::json!({"clusters": [{"kubeconfig": kubeconfig, "servers": [server]}]});
            serde_json::json!({"version": 1, "boot_id": "", "content": content}).to_string()
        };
        let forged = [
            content("relative.conf", "10.0.0.11:6443"),
            content("/a.conf", "10.0.0.11:0"),
            content("/a.conf", "0.0.0.0:6443"),
            content("/a.conf", "[ff02::1]:6443"),
        ];
        let forged = forged.iter().map(String::as_str);
        for broken in ["", "{", "\u{0}", later, wrong, &later[..20]].into_iter().chain(forged) {
            std::fs::write(&file, broken).unwrap();
            let (mut store, fault) = Store::open(directory.path());
            assert!(fault.is_some() && store.servers(Path::new("/a.conf")).is_none(), "{broken}");
            store.keep(Path::new("/a.conf"), &servers(&["10.0.0.11:6443"])).unwrap();
            assert!(Store::open(directory.path()).1.is_none());
        }
    }

    #[test]
    fn servers_that_cannot_be_written_are_kept_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let (mut store, _) = Store::open(&missing);
        let good = servers(&["10.0.0.11:6443"]);
        assert!(store.keep(Path::new("/a.conf"), &good).is_err());
        assert_eq!(store.servers(Path::new("/a.conf")), Some(&good));
        std::fs::create_dir(&missing).unwrap();
        assert!(store.save().unwrap() && !store.save().unwrap());
        assert!(missing.join(FILE).exists());
    }
}
