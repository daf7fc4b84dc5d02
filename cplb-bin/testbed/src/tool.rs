//! The external programs that tests use, and their packages.

use std::{env, fmt, path::PathBuf};

use crate::Error;

/// A program from the distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Tool {
    /// `nft`, for cuts and for the daemon itself.
    Nft,
    /// The VRRP daemon to interoperate with.
    Keepalived,
    /// An independent VRRP decoder.
    Tshark,
    /// Another independent VRRP decoder.
    Tcpdump,
    /// `ip`, to change the network configuration.
    Ip,
    /// `openssl s_client`.
    Openssl,
    /// `curl`.
    Curl,
    /// `haproxy`, for comparison.
    Haproxy,
    /// `wrk`, a load generator.
    Wrk,
    /// `nginx`, a fast backend.
    Nginx,
    /// `arping`, the one from iputils.
    Arping,
    /// `ping`.
    Ping,
    /// `ipvsadm`, an independent IPVS client.
    Ipvsadm,
    /// `tc`, for delay and loss.
    Tc,
    /// `strace`, to record the system calls of another program.
    Strace,
    /// `setpriv`, to run as an ordinary user.
    Setpriv,
    /// The emulator of the guest.
    Qemu,
    /// `promtool`, which checks metrics.
    Promtool,
    /// `prometheus`, which reads metrics and evaluates alerts.
    Prometheus,
    /// `systemd-analyze`, which checks units.
    SystemdAnalyze,
    /// `chromium`, a browser that runs without a window.
    Chromium,
}

impl Tool {
    /// The name of the program.
    #[must_use]
    pub fn program(self) -> &'static str {
        self.names().0
    }

    /// The command that installs it on Debian.
    #[must_use]
    pub fn install_line(self) -> String {
        format!("apt-get install -y {}", self.names().1)
    }

    /// The path of the program: looked up in `PATH`, then in the `sbin` directories, which are not in an ordinary
    /// user's `PATH`.
    ///
    /// # Errors
    /// [`Error::MissingTool`], which carries the command that installs it.
    pub fn path(self) -> Result<PathBuf, Error> {
        search_path()
            .into_iter()
            .map(|directory| directory.join(self.program()))
            .find(|candidate| candidate.is_file())
            .ok_or(Error::MissingTool(self))
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Nft => ("nft", "nftables"),
            Self::Keepalived => ("keepalived", "keepalived"),
            Self::Tshark => ("tshark", "tshark"),
            Self::Tcpdump => ("tcpdump", "tcpdump"),
            Self::Ip => ("ip", "iproute2"),
            Self::Openssl => ("openssl", "openssl"),
            Self::Curl => ("curl", "curl"),
            Self::Haproxy => ("haproxy", "haproxy"),
            Self::Wrk => ("wrk", "wrk"),
            Self::Nginx => ("nginx", "nginx-light"),
            Self::Arping => ("arping", "iputils-arping"),
            Self::Ping => ("ping", "iputils-ping"),
            Self::Ipvsadm => ("ipvsadm", "ipvsadm"),
            Self::Tc => ("tc", "iproute2"),
            Self::Strace => ("strace", "strace"),
            Self::Setpriv => ("setpriv", "util-linux"),
            Self::Qemu => ("qemu-system-x86_64", "--no-install-recommends qemu-system-x86"),
            Self::Promtool => ("promtool", "--no-install-recommends prometheus"),
            Self::Prometheus => ("prometheus", "--no-install-recommends prometheus"),
            Self::SystemdAnalyze => ("systemd-analyze", "systemd"),
            Self::Chromium => ("chromium", "--no-install-recommends chromium fonts-dejavu-core"),
        }
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

/// The directories of `PATH`, and those that only root's `PATH` has.
pub(crate) fn search_path() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    for extra in ["/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        let extra = PathBuf::from(extra);
        if !directories.contains(&extra) {
            directories.push(extra);
        }
    }
    directories
}
