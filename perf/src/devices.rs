//! Devices of this machine in the place of veth pairs.
//!
//! ```text
//! --generator DEV ===== DEV   router   DEV ===== --sink DEV
//!                       --router DEV,DEV
//! ```
//!
//! Two cables, or a switch that is told which ports belong together. The router
//! can be on another machine, where `tieline-perf route` sets it up. For each
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
    /// Names in the bed and on the machine; those of the router are missing where
    /// it is another machine's, and the others there.
    names: Vec<(&'static str, String)>,
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
    pub(crate) fn new(
        generator: Option<&str>,
        router: &[String],
        sink: Option<&str>,
    ) -> anyhow::Result<Self> {
        let (inner, outer) = match router {
            [] => (None, None),
            [inner, outer] => (Some(inner.as_str()), Some(outer.as_str())),
            _ => bail!("--router takes two devices: the pods' side's and the underlay's"),
        };
        let all = [("g0", generator), ("d0", inner), ("u0", outer), ("s0", sink)];
        let names: Vec<_> =
            all.into_iter().filter_map(|(local, name)| Some((local, name?.to_owned()))).collect();
        for (at, (_, name)) in names.iter().enumerate() {
            let before = &names[..at];
            ensure!(!before.iter().any(|(_, one)| one == name), "device {name} is named twice");
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

    /// Whether there is one for this end of the bed's.
    pub(crate) fn has(&self, local: &str) -> bool {
        self.names.iter().any(|(end, _)| *end == local)
    }

    /// Moves the one for an end of the bed's into a namespace of the bed's.
    ///
    /// # Errors
    /// There is none, or what `ip` says.
    pub(crate) fn take(
        &self,
        netns: &Netns,
        local: &'static str,
        mac: &str,
        mtu: u32,
    ) -> anyhow::Result<()> {
        let found = self.names.iter().find(|(end, _)| *end == local);
        let (_, name) = found.with_context(|| format!("no device for {local}"))?;
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

    /// Waits until the links are up. A router that is alone on this machine does
    /// not: it comes first, and the other ends of its cables after it.
    ///
    /// # Errors
    /// One does not come up.
    pub(crate) fn wait_for_carrier(&self) -> anyhow::Result<()> {
        if !self.has("g0") {
            return Ok(());
        }
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
        let ends: Vec<String> =
            self.names.iter().map(|(end, name)| format!("{name} for {end}")).collect();
        format!(
            "{}, of this machine; what a device's interrupt does is done on the CPU that it goes to",
            ends.join(", ")
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
        assert!(Devices::new(Some("a"), &["b".to_owned()], Some("c")).is_err());
        let used = Devices::new(Some("lo"), &[], Some("lo")).unwrap_err();
        assert!(used.to_string().contains("lo is in use"), "{used}");
    }
}
