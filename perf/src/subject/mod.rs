//! What is measured: routers that take packets of pods from the generator's
//! link and send them in VXLAN out of `u0`, and the bare wire.
//!
//! A [`Subject`] sets itself up in the router's namespace; what it gives back
//! tears it down when dropped. It knows where packets have to be put in, and
//! nothing of what is measured.

use std::fmt;

use tieline_lab::Netns;

use crate::bed::Bed;

mod inside;
mod kernel;
mod ovs;
mod remote;
mod renamed;
mod tieline;
mod vpp;
mod wire;

pub(crate) use inside::{Inside, Sockets};
pub(crate) use kernel::Kernel;
pub(crate) use ovs::Ovs;
pub(crate) use remote::Remote;
pub(crate) use renamed::renamed;
pub(crate) use tieline::{Program, Tieline, Way};
pub(crate) use vpp::Vpp;
pub(crate) use wire::Wire;

/// Something is not on this machine. Not a failure: the report says what to do.
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// What a router is to be able to do before it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Flows that it must hold at a time.
    pub(crate) flows: u32,
    /// Whether they are of IPv6 as well.
    pub(crate) v6: bool,
}

/// One way to get packets from pods to the remote node.
pub(crate) trait Subject {
    /// Short name, unique in a run; it stands in results and legends.
    fn name(&self) -> String;

    /// What it is, for people who have not seen the code.
    fn about(&self) -> String;

    /// CPUs that it has for itself.
    fn cpus(&self) -> u32 {
        1
    }

    /// Brings it up.
    ///
    /// # Errors
    /// [`Missing`] where this machine lacks something.
    fn set_up<'a>(&self, bed: &'a Bed, needs: Needs) -> anyhow::Result<Box<dyn Running + 'a>>;
}

/// A subject that is up; dropped, it is gone.
pub(crate) trait Running: Send + Sync {
    /// Where the generator puts packets in.
    fn entry(&self) -> Entry;

    /// Whether packets arrive in VXLAN.
    fn in_tunnel(&self) -> bool {
        true
    }

    /// Whether it runs on this machine, so that its CPU time can be told.
    fn is_here(&self) -> bool {
        true
    }

    /// Its process, if it has one.
    fn pid(&self) -> Option<u32> {
        None
    }

    /// Changes what it is programmed with, another time for each number.
    ///
    /// # Errors
    /// It can't.
    fn change(&self, _number: u32) -> anyhow::Result<()> {
        Err(Missing("there is nothing to reload".to_owned()).into())
    }

    /// Ends it and starts it again, as an upgrade does.
    ///
    /// # Errors
    /// It can't, or does not come up again.
    fn restart(&mut self) -> anyhow::Result<()> {
        Err(Missing("there is nothing to restart".to_owned()).into())
    }

    /// Begins to count cycles anew, where it counts them.
    ///
    /// # Errors
    /// It can't.
    fn count_cycles(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Cycles that it says each packet has cost since then.
    ///
    /// # Errors
    /// It does not say.
    fn cycles(&self) -> anyhow::Result<Option<f64>> {
        Ok(None)
    }

    /// What the subject says of itself, for when a measurement fails.
    fn transcript(&self) -> String {
        String::new()
    }
}

/// A device that the generator sends from, and the MAC address that it sends to.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) netns: Netns,
    pub(crate) device: String,
    pub(crate) mac: [u8; 6],
}
