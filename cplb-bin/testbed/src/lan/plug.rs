//! How nodes are connected to the switch, and disconnected from it.

use crate::{Error, Lan, Node, netlink};

impl Lan {
    /// Pulls the node's cable: it and the switch lose the carrier.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn unplug(&self, node: &Node) -> Result<(), Error> {
        let port = self.port(node)?;
        netlink::request(self.switch.netns(), format!("unplug {port}"), |handle| async move {
            netlink::set_down(&handle, netlink::index(&handle, port).await?).await
        })
    }

    /// Puts the node's cable back.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn plug(&self, node: &Node) -> Result<(), Error> {
        let port = self.port(node)?;
        netlink::request(self.switch.netns(), format!("plug {port}"), |handle| async move {
            netlink::set_up(&handle, netlink::index(&handle, port).await?).await
        })
    }

    /// The port of the switch that the node is plugged into; ports are called as their nodes.
    pub(crate) fn port<'a>(&self, node: &'a Node) -> Result<&'a str, Error> {
        if self.controllers.iter().chain(&self.clients).any(|known| known.name() == node.name()) {
            return Ok(node.name());
        }
        Err(Error::Misuse(format!("{} has no port on the switch", node.name())))
    }
}
