//! The cables between nodes and the switch.

use crate::{Error, Lan, Node, netlink};

impl Lan {
    /// Unplugs the node's cable: the node and the switch lose the carrier.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn unplug(&self, node: &Node) -> Result<(), Error> {
        let port = self.port(node)?;
        netlink::request(self.switch.netns(), format!("unplug {port}"), |handle| async move {
            netlink::set_down(&handle, netlink::index(&handle, port).await?).await
        })
    }

    /// Plugs the node's cable in again.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn plug(&self, node: &Node) -> Result<(), Error> {
        let port = self.port(node)?;
        netlink::request(self.switch.netns(), format!("plug {port}"), |handle| async move {
            netlink::set_up(&handle, netlink::index(&handle, port).await?).await
        })
    }

    /// The port of the switch that the node is connected to; ports have the names of their nodes.
    pub(crate) fn port<'a>(&self, node: &'a Node) -> Result<&'a str, Error> {
        if self.controllers.iter().chain(&self.clients).any(|known| known.name() == node.name()) {
            return Ok(node.name());
        }
        Err(Error::Misuse(format!("{} has no port on the switch", node.name())))
    }
}
