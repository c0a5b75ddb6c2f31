//! The underlay: the devices that VXLAN comes in and goes out by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tieline_dataplane::wire::MacAddr;

use super::kernel::{Address, Link};
use super::{LinkError, Netlink};
use crate::state::{ClusterId, Condition, Severity};

/// A device of the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderlayDevice {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its MTU, in bytes of IP packet.
    pub mtu: u32,
    /// Whether it is set up and has carrier.
    pub running: bool,
    /// The node's underlay addresses that it holds; none for a device that is
    /// in the underlay only because it was named.
    pub addresses: Vec<IpAddr>,
}

/// The node's underlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// Its devices, by index.
    pub devices: Vec<UnderlayDevice>,
    /// What is missing, with the remedy.
    pub conditions: Vec<Condition>,
}

impl Underlay {
    /// The smallest MTU of its devices.
    pub fn mtu(&self) -> Option<u32> {
        self.devices.iter().map(|device| device.mtu).min()
    }
}

impl Netlink {
    /// The devices named `names`, or, if none is named, those that hold the
    /// node's underlay `addresses`. What [`Netlink::adjacencies`] then finds
    /// goes out of these devices, and from these addresses.
    pub async fn underlay(
        &mut self,
        addresses: &[IpAddr],
        names: &[String],
    ) -> Result<Underlay, LinkError> {
        let current = self.addresses().await?;
        let mut links = BTreeMap::new();
        let mut conditions = missing_addresses(addresses, &current);
        if names.is_empty() {
            for index in holders(addresses, &current) {
                links.extend(self.link_at(index).await?.map(|link| (index, link)));
            }
        }
        for name in names {
            match self.link_named(name).await? {
                Some(link) => _ = links.insert(link.index, link),
                None => conditions.push(missing_device(name)),
            }
        }
        conditions.extend(links.values().filter_map(unfit));
        let devices = links.values().filter(|link| link.ethernet);
        let devices = devices.map(|link| device(link, addresses, &current)).collect();
        self.interest.watch_underlay(addresses, names, &links, &current);
        self.resolver.leave_by(addresses, links.into_values().filter(|link| link.ethernet));
        Ok(Underlay { devices, conditions })
    }
}

fn holders(addresses: &[IpAddr], current: &[Address]) -> BTreeSet<u32> {
    let holds = |held: &&Address| addresses.contains(&held.ip);
    current.iter().filter(holds).map(|held| held.device).collect()
}

fn device(link: &Link, addresses: &[IpAddr], current: &[Address]) -> UnderlayDevice {
    let holds = |ip: &&IpAddr| current.iter().any(|a| a.device == link.index && a.ip == **ip);
    UnderlayDevice {
        index: link.index,
        name: link.name.clone(),
        mac: link.mac,
        mtu: link.mtu,
        running: link.running(),
        addresses: addresses.iter().filter(holds).copied().collect(),
    }
}

fn missing_addresses(addresses: &[IpAddr], current: &[Address]) -> Vec<Condition> {
    let message = |ip: &IpAddr| match current.iter().find(|held| held.ip == *ip) {
        None => Some(
            "is this node's address in its Node object, but no device holds it; add it to a \
             device, or correct the annotation projectcalico.org/IPv4Address or IPv6Address"
                .to_owned(),
        ),
        Some(held) if held.duplicate => Some(
            "is in use by another host (duplicate address detection failed); \
             give one of the two another address"
                .to_owned(),
        ),
        Some(_) => None,
    };
    addresses
        .iter()
        .filter_map(|ip| Some(error(format!("underlay address {ip}"), message(ip)?)))
        .collect()
}

fn missing_device(name: &str) -> Condition {
    let message = "does not exist; correct underlay.devices in the configuration, or leave the \
                   list empty to take the devices that hold the node's addresses";
    error(format!("underlay device {name}"), message.to_owned())
}

fn unfit(link: &Link) -> Option<Condition> {
    let message = if !link.ethernet {
        "is no Ethernet device, so no VXLAN frames can be sent by it; \
         name the Ethernet devices under underlay.devices"
    } else if !link.up {
        "is down; set it up (ip link set DEVICE up)"
    } else if !link.carrier {
        "has no carrier; check the cable or the other end"
    } else {
        return None;
    };
    Some(error(format!("underlay device {}", link.name), message.to_owned()))
}

fn error(object: String, message: String) -> Condition {
    Condition { severity: Severity::Error, cluster: ClusterId::Local, object, message }
}
