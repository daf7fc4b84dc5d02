//! The HTTP server at `status.listen`: the status page for people; `/metrics`, `/healthz`, `/readyz`, `/api/v1/status` and
//! `/api/v1/events` for programs.
//!
//! It runs in a thread of its own and asks the event loop for the status, at most five times a second, so that no number of
//! clients delays anything else. It reads nothing from clients but the head of a GET or HEAD request.

mod events;
mod family;
mod metrics;
mod page;
mod process;
mod reply;
mod server;
mod snapshots;

pub(crate) use page::View;
pub(crate) use server::Server;
pub(crate) use snapshots::ViewRequest;
