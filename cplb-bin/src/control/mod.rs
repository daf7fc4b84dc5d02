//! What an operator asks of a running daemon: `cplb handover`, `standby`, `active`, `drain`, `undrain`, `reload`,
//! `log-level`, `connections` and `history`.
//!
//! The path of the socket is that of the status socket with `.control` appended. Root and the daemon's user may ask for
//! everything, the group of the socket's file for what only reads.
//! A client sends one [`Request`] as a line of JSON, and reads lines of JSON, each one a [`Line`], until the last one.

pub(crate) mod client;
pub(crate) mod server;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::exit::Kind;
use crate::history::Document;

/// The path of the control socket beside the status socket.
pub(crate) fn socket_path(status: &Path) -> PathBuf {
    let mut path = status.as_os_str().to_owned();
    path.push(".control");
    path.into()
}

/// A request of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Request {
    Handover {
        /// A virtual IP or the identifier of an instance.
        instance: Option<String>,
        /// The name or address of a node.
        to: Option<String>,
    },
    Standby,
    Active,
    Drain(Drain),
    Undrain(Undrain),
    Reload,
    /// A filter of the log; `None` for that of the start.
    LogLevel(Option<String>),
    Connections(Selection),
    History,
}

/// The connections that are asked for; all without conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Selection {
    /// An address with or without a port.
    pub(crate) backend: Option<String>,
    pub(crate) service: Option<String>,
    pub(crate) client: Option<IpAddr>,
}

/// The open connections of clients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Connections {
    /// The number of all that were selected.
    pub(crate) total: usize,
    /// The first 10,000 of them, by client.
    pub(crate) connections: Vec<Connection>,
}

/// An open connection of a client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Connection {
    pub(crate) client: SocketAddr,
    /// The address that it connected to.
    pub(crate) to: SocketAddr,
    pub(crate) service: String,
    /// Absent until one is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) backend: Option<SocketAddr>,
}

/// A backend that is to take no new connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Drain {
    /// An address with or without a port.
    pub(crate) backend: String,
    /// `None` for all services.
    pub(crate) service: Option<String>,
    /// The time after which it ends by itself.
    pub(crate) for_seconds: Option<u64>,
    /// Answer when no connection is open any more.
    pub(crate) wait: bool,
    /// The longest time to wait.
    pub(crate) timeout_seconds: Option<u64>,
    /// Also if no other backend takes connections.
    pub(crate) force: bool,
}

/// A backend that is to take connections again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Undrain {
    pub(crate) backend: String,
    pub(crate) service: Option<String>,
}

impl Request {
    /// Returns whether it changes nothing.
    pub(crate) const fn only_reads(&self) -> bool {
        match self {
            Self::History | Self::Connections(_) => true,
            Self::Handover { .. }
            | Self::Standby
            | Self::Active
            | Self::Drain(_)
            | Self::Undrain(_)
            | Self::Reload
            | Self::LogLevel(_) => false,
        }
    }
}

/// A line of the daemon's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Line {
    /// The daemon is at work: once a second.
    Working,
    /// The same, with the progress.
    Progress(String),
    /// The last line.
    Done(Outcome),
}

/// The result of a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    /// The reason why it was not done, or not completely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
    /// The exit code for that, as in `exit.rs`, where it is not that of a temporary failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<u8>,
    /// The state of this node after the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// The moves, one for each instance.
    pub(crate) moves: Vec<Move>,
    /// The answer to [`Request::Connections`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) connections: Option<Connections>,
    /// The answer to [`Request::History`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) history: Option<Box<Document>>,
}

/// The result for the virtual IPs of an instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Move {
    #[serde(rename = "virtualRouterID")]
    pub(crate) vrid: u8,
    #[serde(rename = "virtualIPs")]
    pub(crate) addresses: Vec<IpAddr>,
    /// The node that had them; empty if it is not known.
    pub(crate) from: String,
    /// The node that has them now; empty if it is not known.
    pub(crate) to: String,
    /// The reason why they did not move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remark: Option<String>,
    /// The time from the resignation until the old holder gave them up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kept_seconds: Option<f64>,
    /// The time from the resignation until the new holder had them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) taken_seconds: Option<f64>,
    /// The time without a holder, which follows from both; 0 if the new holder had them first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) blackout_seconds: Option<f64>,
}

impl Outcome {
    pub(crate) fn refused_as(kind: Kind, why: impl Into<String>) -> Self {
        Self { exit_code: Some(kind as u8), ..Self::refused(why) }
    }

    pub(crate) fn refused(why: impl Into<String>) -> Self {
        Self { refused: Some(why.into()), ..Self::default() }
    }
}
