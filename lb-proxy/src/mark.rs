//! The mark of the proxy's own connections.

/// A value for [`crate::Options::mark`] and [`crate::nft::Table::mark`] that other software on a Kubernetes node does
/// not take for one of its own.
///
/// All software on a node shares one mark per packet and tests bits of it. None of the bits in common use are set here:
///
/// | bits | software | its effect on the proxy's connections |
/// |---|---|---|
/// | `0x4000`, `0x8000` | kube-proxy, kubelet | masquerade them, drop them |
/// | `0x2000` | the CNI plugin portmap (also under Flannel, which has none of its own) | masquerade them |
/// | `0x0f00` | Cilium: kind of the packet; only with one of these does it look at the other bits | route them to its proxy, encrypt them |
/// | `0xffff0000` | Calico, both data planes; Cilium's identities; Weave `0x20000`, `0x40000`; kube-router `0x10000`, `0x20000`; Antrea; Tailscale | accept, drop, masquerade or route them |
/// | `0x0080` | the AWS VPC plugin | route them through the main table |
///
/// The number is not among those that Istio (`0x539` and `0x111` in the low 12 bits) and WireGuard (`0xca6c`) compare
/// with, and larger than the small numbers (1, 2, 100) that scripts use.
pub const MARK: u32 = 0x106c;

/// The 127 values for [`crate::nft::Director::mark`]: the high bits of [`MARK`], for the same reasons, and every
/// combination of the low ones except that of [`MARK`].
pub fn director_marks() -> impl Iterator<Item = u32> {
    (MARK & !LOW..=DIRECTOR_MASK).filter(|mark| *mark != MARK)
}

const LOW: u32 = 0x7f;

/// The bits that distinguish the marks of directors from each other and from [`MARK`].
pub(crate) const DIRECTOR_MASK: u32 = MARK | LOW;

const KUBE_PROXY: u32 = 0x4000 | 0x8000;
const OTHERS: u32 = 0xffff_0000 | 0x2000 | 0x0f00 | 0x0080;

const _: () = assert!(MARK & KUBE_PROXY == 0, "kube-proxy would masquerade or drop the proxy's connections");
const _: () =
    assert!(MARK != 0 && MARK & OTHERS == 0, "a network plugin would take the mark for one of its own");
const _: () =
    assert!(DIRECTOR_MASK & (KUBE_PROXY | OTHERS) == 0, "the same holds for the marks of directors");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directors_have_marks_of_their_own() {
        let marks: Vec<u32> = director_marks().collect();
        assert_eq!(marks.len(), 127);
        assert!(!marks.contains(&MARK) && marks.iter().all(|mark| mark & (KUBE_PROXY | OTHERS) == 0));
    }
}
