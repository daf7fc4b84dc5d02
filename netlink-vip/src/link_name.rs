//! Names of links.

/// The kernel's limit for interface names (`IFNAMSIZ` without the final zero).
const LINK_NAME_MAX: usize = 15;

/// Returns whether the kernel takes this for the name of a link.
pub(crate) fn is_link_name(name: &str) -> bool {
    let good = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':' | '\0');
    !name.is_empty() && name.len() <= LINK_NAME_MAX && !matches!(name, "." | "..") && name.chars().all(good)
}
