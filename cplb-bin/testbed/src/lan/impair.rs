//! A network that delays and loses.

use std::{process::Command, time::Duration};

use crate::{Error, Lan, Tool};

/// What happens to every frame on its way from the switch to a node. Needs a kernel with netem, see [`crate::guest`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Impairment {
    /// How long a frame takes.
    pub delay: Duration,
    /// By how much that varies to both sides, evenly; frames may overtake each other.
    pub jitter: Duration,
    /// How many of a hundred frames are lost.
    pub loss_percent: f64,
}

impl Lan {
    /// Impairs the ports of all nodes, in place of a former impairment.
    ///
    /// # Errors
    /// [`Error::MissingTool`] without `tc`; [`Error::Failed`], also where the kernel has no netem.
    pub fn impair(&self, impairment: Impairment) -> Result<(), Error> {
        let microseconds = |time: Duration| format!("{}us", time.as_micros());
        for node in self.controllers().iter().chain(self.clients()) {
            let mut tc = Command::new(Tool::Tc.path()?);
            tc.args(["qdisc", "replace", "dev", self.port(node)?, "root", "netem", "limit", "10000"]);
            tc.args(["delay", &microseconds(impairment.delay), &microseconds(impairment.jitter)]);
            tc.args(["loss", &format!("{}%", impairment.loss_percent)]);
            self.switch.succeed(tc)?;
        }
        Ok(())
    }
}
