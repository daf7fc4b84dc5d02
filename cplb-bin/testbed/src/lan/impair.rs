//! Delay and loss on the network.

use std::{process::Command, time::Duration};

use crate::{Error, Lan, Tool};

/// The impairment of every frame on its way from the switch to a node. Needs a kernel with netem, see [`crate::guest`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Impairment {
    /// The mean delay of a frame.
    pub delay: Duration,
    /// The largest deviation from the mean delay, uniformly distributed; frames may overtake each other.
    pub jitter: Duration,
    /// The percentage of frames that are lost.
    pub loss_percent: f64,
}

impl Lan {
    /// Impairs the ports of all nodes, in place of an earlier impairment.
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
