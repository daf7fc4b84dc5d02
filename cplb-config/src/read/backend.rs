//! Servers: `backends`, and the text form they share with the command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::admission::{Origin, Unfit, fit_address};
use crate::escape::is_unprintable;
use crate::model::{Backend, Host, Port};
use crate::walk::{Field, Finding};

use super::{Dialect, Placed, finish};

/// The path of k0s's administrator kubeconfig, on every controller.
pub const K0S_KUBECONFIG: &str = "/var/lib/k0s/pki/admin.conf";
const HIGHEST_WEIGHT: u32 = 256;
/// Each is checked every second.
const MOST_BACKENDS: usize = 1000;

/// A server that was read, before anything was dropped.
pub(crate) type PlacedBackend = Placed<Backend>;

/// The servers of `backends`, as written.
#[derive(Debug, Default)]
pub(crate) struct BackendsDraft {
    pub(crate) fixed: Vec<PlacedBackend>,
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// The reason why a text names no server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Neither an address nor a host name.
    #[error("`{0}` is neither an IP address nor a host name")]
    Host(String),
    /// The text after the last colon is no port.
    #[error("`{0}` is no port from 1 to 65535")]
    Port(String),
    /// An address that no server has.
    #[error("{0} is no address of a server")]
    NotAServer(IpAddr),
    /// A link-local IPv6 address, which means another host on every link.
    #[error("{0} is a link-local address, which names no host without its link")]
    LinkLocal(IpAddr),
}

impl BackendsDraft {
    pub(crate) fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.kubeconfig.is_none()
    }
}

impl FromStr for Backend {
    type Err = BackendError;

    /// `address`, `address:port`, `[v6-address]:port`, `name` or `name:port`.
    fn from_str(text: &str) -> Result<Self, BackendError> {
        let (host, port) = parse_backend(text)?;
        Ok(Self { host, port, weight: 1, name: None })
    }
}

pub(crate) fn parse_backend(text: &str) -> Result<(Host, Option<Port>), BackendError> {
    match host(text) {
        Ok(host) => return Ok((host, None)),
        Err(BackendError::Host(_)) => {}
        Err(error) => return Err(error),
    }
    if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Ok((host(address)?, None));
    }
    let Some((name, port)) = text.rsplit_once(':').filter(|(_, port)| !port.contains('/')) else {
        return Err(BackendError::Host(text.to_owned()));
    };
    let bracketed = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host = match bracketed {
        Some(address) => host(address)?,
        None if name.contains(':') => return Err(BackendError::Host(text.to_owned())),
        None => host(name)?,
    };
    let number = port.parse().ok().filter(|_| port.bytes().all(|b| b.is_ascii_digit())).and_then(Port::new);
    match number {
        Some(port) => Ok((host, Some(port))),
        None => Err(BackendError::Port(port.to_owned())),
    }
}

/// An address, or a host name (RFC 1123 §2.1: letters, digits, hyphens and dots; underscores are tolerated).
pub(crate) fn host(text: &str) -> Result<Host, BackendError> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        return match fit_address(ip, Origin::Written) {
            Ok(()) => Ok(Host::Address(ip)),
            Err(Unfit::LinkLocal) => Err(BackendError::LinkLocal(ip)),
            Err(_) => Err(BackendError::NotAServer(ip)),
        };
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let last_is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > 253 || last_is_number || !name.split('.').all(label) {
        return Err(BackendError::Host(text.to_owned()));
    }
    Ok(Host::Name(text.to_owned()))
}

pub(super) fn read_backends(field: &Field<'_>, dialect: Dialect) -> BackendsDraft {
    let Some(table) = field.table() else {
        return BackendsDraft::default();
    };
    let items = table
        .field("static")
        .and_then(|list| list.items_up_to(MOST_BACKENDS, "list the control plane nodes only"))
        .unwrap_or_default();
    let mut fixed: Vec<PlacedBackend> = Vec::new();
    for item in items {
        let Some(backend) = read_backend(&item, dialect) else { continue };
        let same =
            |other: &&PlacedBackend| other.value.host == backend.host && other.value.port == backend.port;
        if let Some(first) = fixed.iter().find(same) {
            let message = format!("{backend} was already given on line {}", first.at.line);
            item.error(Finding::new("duplicate-backend", message, "keep one of them"));
            continue;
        }
        fixed.push(Placed::new(backend, &item));
    }
    let kubeconfig = table.field("kubernetes").and_then(|field| read_kubernetes(&field, dialect));
    finish(table, dialect);
    BackendsDraft { fixed, kubeconfig }
}

fn read_kubernetes(field: &Field<'_>, dialect: Dialect) -> Option<PathBuf> {
    let table = field.table()?;
    let path = match table.field("kubeconfig") {
        None => Some(PathBuf::from(K0S_KUBECONFIG)),
        Some(field) => field.string().and_then(|text| {
            if text.starts_with('/') && !text.contains(is_unprintable) {
                return Some(PathBuf::from(text));
            }
            let help = format!("write an absolute path, such as `{K0S_KUBECONFIG}`");
            field.error(Finding::new("path", format!("`{text}` is no absolute path"), help));
            None
        }),
    };
    finish(table, dialect);
    path
}

/// `10.0.0.11`, `10.0.0.11:6443`, or a mapping with `address`, `port`, `weight` and `name`.
fn read_backend(item: &Field<'_>, dialect: Dialect) -> Option<Backend> {
    if item.child.mapping().is_none() {
        let (host, port) = read_address(item)?;
        return Some(Backend { host, port, weight: 1, name: None });
    }
    let table = item.table()?;
    let address = match table.field("address") {
        Some(field) => read_address(&field),
        None => {
            table.missing("address", "add `address:` with the server's IP address or host name");
            None
        }
    };
    let port = table.field("port").map(|field| (port(&field), field));
    let weight = table.field("weight").map_or(Some(1), |field| field.integer(0..=HIGHEST_WEIGHT));
    let name = table.field("name").map(|field| printable(&field));
    finish(table, dialect);
    let (host, mut own_port) = address?;
    match (own_port, port) {
        (Some(_), Some((_, field))) => {
            field.error(Finding::new("two-ports", "the address names a port already", "keep one of the two"));
            return None;
        }
        (None, Some((port, _))) => own_port = Some(port?),
        _ => {}
    }
    let name = match name {
        Some(name) => Some(name?),
        None => None,
    };
    Some(Backend { host, port: own_port, weight: weight?, name })
}

/// A name for people, on one line.
fn printable(field: &Field<'_>) -> Option<String> {
    let text = field.string()?;
    if text.contains(is_unprintable) {
        let help = "write a name of one line, without characters that are not shown";
        field.error(Finding::new("unprintable", "the name contains a control character", help));
        return None;
    }
    Some(text)
}

fn read_address(field: &Field<'_>) -> Option<(Host, Option<Port>)> {
    let text = field.string()?;
    match parse_backend(&text) {
        Ok(parsed) => Some(parsed),
        Err(error) => {
            let help = if text.contains("://") {
                "write only the address, without scheme and path"
            } else if text.contains('/') {
                "write the address without a prefix length"
            } else {
                "write `10.0.0.11`, `10.0.0.11:6443`, `[fd00::11]:6443` or a host name"
            };
            field.error(Finding::new("backend", error.to_string(), help));
            None
        }
    }
}

pub(super) fn port(field: &Field<'_>) -> Option<Port> {
    field.integer(1..=u16::MAX).and_then(Port::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_written_in_the_usual_forms_and_read_back() {
        let forms = [
            "10.0.0.11",
            "10.0.0.11:6443",
            "fd00::11",
            "[fd00::11]:6443",
            "controller-0.k0s.lab",
            "node_1:6443",
        ];
        for text in forms {
            assert_eq!(text.parse::<Backend>().unwrap().to_string(), text);
        }
        assert_eq!("[fd00::11]".parse::<Backend>().unwrap().to_string(), "fd00::11");
        assert_eq!("::ffff:10.0.0.11".parse::<Backend>().unwrap().to_string(), "10.0.0.11");
    }

    #[test]
    fn invalid_servers_are_refused() {
        use BackendError::{Host, LinkLocal, NotAServer, Port};
        let host = |text: &str| Err(Host(text.to_owned()));
        for text in [
            "",
            "10.0.0.300",
            "10.0.0.11/24",
            "https://10.0.0.11:6443",
            "a b",
            "-a",
            "1.2.3",
            "fd00::1::2",
            "é",
        ] {
            assert_eq!(text.parse::<Backend>(), host(text), "{text}");
        }
        for (text, port) in [("10.0.0.11:0", "0"), ("10.0.0.11:65536", "65536"), ("a:", ""), ("a:+1", "+1")] {
            assert_eq!(text.parse::<Backend>(), Err(Port(port.to_owned())), "{text}");
        }
        for text in ["0.0.0.0:6443", "ff02::1", "255.255.255.255", "240.0.0.1:1", "::ffff:224.0.0.1"] {
            assert!(matches!(text.parse::<Backend>(), Err(NotAServer(_))), "{text}");
        }
        assert!(matches!("[fe80::1]:6443".parse::<Backend>(), Err(LinkLocal(_))));
    }
}
