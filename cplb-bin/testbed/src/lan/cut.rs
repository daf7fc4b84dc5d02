//! Network partitions: frames that are dropped silently while every link stays up.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    process::Command,
    sync::{MutexGuard, PoisonError},
};

use crate::{Error, Lan, Node, Tool};

/// The frames of a node that are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Frames to the node: it can send but not receive.
    To,
    /// Frames from the node: it can receive but not send.
    From,
    /// Frames in both directions.
    Both,
}

/// A rule for frames that the switch drops. Ports have the names of their nodes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cut {
    /// All frames that arrive at this port.
    From(String),
    /// All frames that would leave by this port.
    To(String),
    /// All frames that arrive at the first port and would leave by the second.
    Between(String, String),
}

impl Lan {
    /// Silently drops the node's frames in one direction or both, in addition to the existing cuts. Carriers stay up.
    ///
    /// # Errors
    /// [`Error::MissingTool`] without `nft`; [`Error::Failed`].
    pub fn cut(&self, node: &Node, direction: Direction) -> Result<(), Error> {
        let port = self.port(node)?;
        self.change_cuts(|cuts| {
            if direction != Direction::To {
                cuts.insert(Cut::From(port.to_owned()));
            }
            if direction != Direction::From {
                cuts.insert(Cut::To(port.to_owned()));
            }
        })
    }

    /// Silently drops frames between nodes of different groups, in addition to the existing cuts. Nodes in no group,
    /// and the gateway, still reach all nodes.
    ///
    /// # Errors
    /// As [`Lan::cut`].
    pub fn partition(&self, groups: &[&[&Node]]) -> Result<(), Error> {
        for (i, group) in groups.iter().enumerate() {
            for (j, other) in groups.iter().enumerate() {
                if i != j {
                    self.cut_between(group, other)?;
                }
            }
        }
        Ok(())
    }

    /// Silently drops frames from the first nodes to the others, but not the frames of the reverse direction.
    ///
    /// # Errors
    /// As [`Lan::cut`].
    pub fn cut_between(&self, senders: &[&Node], receivers: &[&Node]) -> Result<(), Error> {
        let ports = |nodes: &[&Node]| -> Result<Vec<String>, Error> {
            nodes.iter().map(|node| self.port(node).map(str::to_owned)).collect()
        };
        let (senders, receivers) = (ports(senders)?, ports(receivers)?);
        self.change_cuts(|cuts| {
            for sender in &senders {
                cuts.extend(receivers.iter().map(|receiver| Cut::Between(sender.clone(), receiver.clone())));
            }
        })
    }

    /// Ends all cuts that concern the node, also partitions.
    ///
    /// # Errors
    /// As [`Lan::cut`].
    pub fn heal(&self, node: &Node) -> Result<(), Error> {
        let port = self.port(node)?;
        self.change_cuts(|cuts| {
            cuts.retain(|cut| match cut {
                Cut::From(a) | Cut::To(a) => a != port,
                Cut::Between(a, b) => a != port && b != port,
            });
        })
    }

    /// Ends all cuts.
    ///
    /// # Errors
    /// As [`Lan::cut`].
    pub fn heal_all(&self) -> Result<(), Error> {
        self.change_cuts(BTreeSet::clear)
    }

    fn change_cuts(&self, change: impl FnOnce(&mut BTreeSet<Cut>)) -> Result<(), Error> {
        let mut cuts = self.cuts();
        change(&mut cuts);
        // A file, because writing to a pipe would need a thread.
        let path = self.switch.directory().join("cuts.nft");
        fs::write(&path, script(&cuts)).map_err(Error::file(&path))?;
        let mut nft = Command::new(Tool::Nft.path()?);
        nft.arg("-f").arg(path);
        self.switch.succeed(nft).map(drop)
    }

    fn cuts(&self) -> MutexGuard<'_, BTreeSet<Cut>> {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A ruleset that replaces the former one in a single transaction.
fn script(cuts: &BTreeSet<Cut>) -> String {
    let (mut early, mut forward, mut late) = (String::new(), String::new(), String::new());
    for cut in cuts {
        // Writing to a string cannot fail.
        let _ = match cut {
            Cut::From(port) => writeln!(early, "iifname \"{port}\" drop"),
            Cut::To(port) => writeln!(late, "oifname \"{port}\" drop"),
            Cut::Between(a, b) => writeln!(forward, "iifname \"{a}\" oifname \"{b}\" drop"),
        };
    }
    // The filter at pre-routing comes before the bridge learns an address, as with a real cable.
    format!(
        "add table bridge cuts\ndelete table bridge cuts\ntable bridge cuts {{\n\
         chain early {{ type filter hook prerouting priority -300;\n{early}}}\n\
         chain middle {{ type filter hook forward priority 0;\n{forward}}}\n\
         chain late {{ type filter hook postrouting priority 300;\n{late}}}\n}}\n"
    )
}
