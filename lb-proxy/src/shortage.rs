//! Resources of this process or host that a connection needs and that can run out.

/// A resource that the process or the host ran out of. It says nothing about any backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Shortage {
    /// Descriptors of the process (`EMFILE`, or all that sessions may have): raise `RLIMIT_NOFILE`.
    Descriptors,
    /// Open files of the host (`ENFILE`): raise `fs.file-max`.
    HostFiles,
    /// Local ports towards one backend (`EADDRNOTAVAIL` although there is a source address): widen
    /// `net.ipv4.ip_local_port_range`, or add backends.
    Ports,
    /// Memory, or another limit of the kernel (`ENOBUFS`, `ENOMEM`, `EAGAIN`, `ENOSPC`).
    Memory,
}

impl Shortage {
    /// Every shortage.
    pub const ALL: [Self; 4] = [Self::Descriptors, Self::HostFiles, Self::Ports, Self::Memory];

    /// The shortage that an error of a socket call stands for, if any. EADDRNOTAVAIL counts as a missing local port:
    /// rule out a missing source address first.
    #[must_use]
    pub fn of(error: &std::io::Error) -> Option<Self> {
        use nix::libc::{EADDRNOTAVAIL, EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC};
        match error.raw_os_error()? {
            EMFILE => Some(Self::Descriptors),
            ENFILE => Some(Self::HostFiles),
            EADDRNOTAVAIL => Some(Self::Ports),
            EAGAIN | ENOBUFS | ENOMEM | ENOSPC => Some(Self::Memory),
            _ => None,
        }
    }
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "no descriptor is left in this process",
            Self::HostFiles => "no open file is left on this host",
            Self::Ports => "no local port is left towards the backend",
            Self::Memory => "the kernel has no memory for a socket",
        })
    }
}
