//! The life of the HTTP server at `status.listen`.

use std::net::SocketAddr;

use crate::http::{Server, ViewRequest};

use super::problems::{Cause, Problems};
use super::sender::EventSender;

/// The server, as long as the configuration wants one.
pub(crate) struct StatusPage {
    requests: EventSender<ViewRequest>,
    server: Option<(SocketAddr, Server)>,
}

impl StatusPage {
    pub(crate) fn new(requests: EventSender<ViewRequest>) -> Self {
        Self { requests, server: None }
    }

    /// Listens where the configuration says, and nowhere else. A failure is a problem, and is to be tried again.
    pub(crate) fn follow(&mut self, wanted: Option<SocketAddr>, problems: &mut Problems) {
        let Some(wanted) = wanted else {
            self.server = None;
            problems.clear(&Cause::StatusPage);
            return;
        };
        let current = self.server.as_ref().filter(|(_, server)| !server.has_ended());
        if current.is_some_and(|(configured, _)| *configured == wanted) {
            return;
        }
        // First, since the addresses may overlap.
        self.server = None;
        let requests = self.requests.clone();
        let ask = move |request| _ = requests.send(request);
        match Server::start(wanted, ask) {
            Ok(server) => {
                tracing::info!(address = %server.address(), "status page served");
                self.server = Some((wanted, server));
                problems.clear(&Cause::StatusPage);
            }
            Err(error) => {
                let text = format!("the status page cannot listen on {wanted}: {error}");
                if problems.raise(Cause::StatusPage, &text) {
                    tracing::warn!("{text}; retrying");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn it_listens_as_configured_and_tries_a_busy_port_again() {
        let (channel, _events) = unbounded_channel::<ViewRequest>();
        let (mut page, mut problems) = (StatusPage::new(EventSender::new(&channel)), Problems::default());
        let other = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let busy = other.local_addr().unwrap();
        for _ in 0..2 {
            page.follow(Some(busy), &mut problems);
            assert!(problems.texts()[0].contains(&busy.to_string()), "{problems:?}");
        }
        drop(other);
        page.follow(Some(busy), &mut problems);
        assert!(problems.texts().is_empty() && page.server.is_some());
        // Any address of the same port.
        page.follow(Some(SocketAddr::from(([0, 0, 0, 0], busy.port()))), &mut problems);
        assert!(problems.texts().is_empty(), "{problems:?}");
        page.follow(None, &mut problems);
        assert!(page.server.is_none());
        let _other = TcpListener::bind(busy).unwrap();
        page.follow(Some(busy), &mut problems);
        assert_eq!(problems.texts().len(), 1);
        page.follow(None, &mut problems);
        assert!(problems.texts().is_empty(), "nothing is wanted any more: {problems:?}");
    }
}
