//! Devices of this machine in the place of veth pairs.
//!
//! ```text
//! --generator DEV ===== DEV   router   DEV ===== --sink DEV
//!                       --router DEV,DEV
//! ```
//!
//! Two cables, or a switch that is told which ports belong together. For each
//! step the devices go into the test bed's namespaces under its names, with its
//! addresses; behind it they come back with their own name, Ethernet address,
//! MTU and offloads, up if they were up. A device that is in use is refused.
//!
//! A killed program can't give anything back: the kernel then returns a real
//! device under the name that it had in the bed (`g0`, `d0`, `u0`, `s0`).

use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use tieline_dataplane::xsk::device::{self, Offloads};
use tieline_lab::Netns;

/// How long a link may take to come up behind a cable.
const CARRIER: Duration = Duration::from_secs(15);

/// The devices, and which of them are in a bed.
#[derive(Debug)]
pub(crate) struct Devices {
    /// For g0, d0, u0 and s0.
    names: [String; 4],
    taken: Mutex<Option<Vec<Taken>>>,
}

/// A device in a bed, and how it was.
#[derive(Debug)]
struct Taken {
    name: String,
    netns: Netns,
    local: &'static str,
    was: Link,
    offloads: Offloads,
}

/// What `ip -j address` tells of a device.
#[derive(Clone, Debug, Deserialize)]
struct Link {
    address: String,
    mtu: u32,
    flags: Vec<String>,
    operstate: String,
    master: Option<String>,
    addr_info: Vec<Address>,
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    local: String,
    scope: String,
}

impl Devices {
    /// Looks whether they can be had.
    ///
    /// # Errors
    /// One is missing, in use, named twice, or has several queues.
    pub(crate) fn new(generator: &str, router: &[String], sink: &str) -> anyhow::Result<Self> {
        let [inner, outer] = router else {
            bail!("--router takes two devices: that of the pods' side and that of the underlay");
        };
        let names = [generator, inner.as_str(), outer.as_str(), sink].map(str::to_owned);
        for (at, name) in names.iter().enumerate() {
            ensure!(!names[..at].contains(name), "device {name} is named twice");
            let link = link(None, name)?;
            if let Some(reason) = link.in_use() {
                bail!("device {name} is in use: {reason}; it must be free for this");
            }
            let queues = device::channels(name)?;
            ensure!(
                queues == 1,
                "device {name} has {queues} queues, and only the first is measured: ethtool -L \
                 {name} combined 1"
            );
        }
        Ok(Self { names, taken: Mutex::new(Some(Vec::new())) })
    }

    /// Moves the one of a name of the bed's into a namespace of the bed's.
    ///
    /// # Errors
    /// What `ip` says.
    pub(crate) fn take(
        &self,
        netns: &Netns,
        local: &'static str,
        mac: &str,
        mtu: u32,
    ) -> anyhow::Result<()> {
        let at = ["g0", "d0", "u0", "s0"].iter().position(|name| *name == local);
        let name = &self.names[at.unwrap_or(0)];
        // Held meanwhile: who gives back on a signal must not miss it.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = taken.as_mut().context("the devices have been given back")?;
        let (was, offloads) = (link(None, name)?, device::offloads(name)?);
        let (netns_name, name) = (netns.name(), name.clone());
        ip(&format!("link set dev {name} netns {netns_name} name {local}"))?;
        taken.push(Taken { name, netns: netns.clone(), local, was, offloads });
        let lines = [format!("link set {local} address {mac} mtu {mtu}"), up(local)];
        Ok(netns.ip(lines)?)
    }

    /// Waits until the links are up.
    ///
    /// # Errors
    /// One does not come up.
    pub(crate) fn wait_for_carrier(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for Taken { name, netns, local, .. } in taken.iter().flatten() {
            while link(Some(netns), local)?.operstate != "UP" {
                ensure!(started.elapsed() < CARRIER, "device {name} has no link: is it cabled?");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Brings all back that are in a bed; `for_good`: none is taken any more.
    /// What goes wrong is printed, since there is nobody who could do more.
    pub(crate) fn give_back(&self, for_good: bool) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for device in taken.iter_mut().flat_map(|taken| taken.drain(..)) {
            if let Err(error) = device.give_back() {
                eprintln!("device {} was not given back whole: {error:#}", device.name);
            }
        }
        if for_good {
            *taken = None;
        }
    }

    /// What they are, for the report.
    pub(crate) fn about(&self) -> String {
        let [generator, inner, outer, sink] = &self.names;
        format!(
            "generator {generator}, router {inner} and {outer}, sink {sink}: devices of this \
             machine; what a device's interrupt does is done on the CPU that it goes to"
        )
    }
}

impl Taken {
    fn give_back(&self) -> anyhow::Result<()> {
        let Self { name, netns, local, was, offloads } = self;
        let restored = netns.run(|| device::restore_offloads(local, *offloads))?;
        let pid = std::process::id();
        netns.ip([
            format!("link set {local} down"),
            format!("link set {local} address {} mtu {}", was.address, was.mtu),
            format!("link set dev {local} netns {pid} name {name}"),
        ])?;
        if was.is_up() {
            ip(&up(name))?;
        }
        Ok(restored?)
    }
}

impl Link {
    fn is_up(&self) -> bool {
        self.flags.iter().any(|flag| flag == "UP")
    }

    fn in_use(&self) -> Option<String> {
        if let Some(master) = &self.master {
            return Some(format!("it belongs to {master}"));
        }
        let address = self.addr_info.iter().find(|address| address.scope != "link")?;
        Some(format!("it has the address {}", address.local))
    }
}

fn up(name: &str) -> String {
    format!("link set {name} up")
}

/// Runs `ip` in this program's own namespace.
fn ip(line: &str) -> anyhow::Result<Vec<u8>> {
    run(Command::new("ip").args(line.split(' ')), line)
}

fn run(command: &mut Command, line: &str) -> anyhow::Result<Vec<u8>> {
    let output = command.output().context("start ip (iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {line}: {}", said.trim());
    Ok(output.stdout)
}

fn link(netns: Option<&Netns>, name: &str) -> anyhow::Result<Link> {
    let line = format!("-j address show dev {name}");
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns.name()]);
    }
    let text = run(command.args(line.split(' ')), &line)?;
    let mut links: Vec<Link> =
        serde_json::from_slice(&text).with_context(|| format!("what ip tells of {name}"))?;
    links.pop().with_context(|| format!("there is no device {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_with_an_address_or_a_master_is_in_use() {
        let text = r#"[{"address": "02:00:00:00:00:01", "mtu": 1500, "flags": ["UP"],
            "operstate": "UP", "addr_info": [{"local": "fe80::1", "scope": "link"}]}]"#;
        let mut links: Vec<Link> = serde_json::from_str(text).unwrap();
        let link = links.pop().unwrap();
        assert!(link.is_up() && link.in_use().is_none());
        let address = Address { local: "192.0.2.1".to_owned(), scope: "global".to_owned() };
        let used = Link { addr_info: vec![address], ..link.clone() };
        assert!(used.in_use().unwrap().contains("192.0.2.1"));
        let used = Link { master: Some("br0".to_owned()), ..link };
        assert!(used.in_use().unwrap().contains("br0"));
        assert!(Devices::new("a", &["b".to_owned()], "c").is_err());
        assert!(Devices::new("lo", &["lo".to_owned(), "lo".to_owned()], "lo").is_err());
    }
}
