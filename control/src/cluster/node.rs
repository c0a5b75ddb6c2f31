//! Nodes: Calico's annotations.

use std::fmt::Display;
use std::net::IpAddr;

use tieline_dataplane::wire::MacAddr;

use super::field::{FieldError, Reader, address};
use crate::state::{Labels, Node};

/// The node. A value that can't be read counts as absent, as it does for
/// Calico, and is a warning.
pub(super) fn node(
    object: &Reader<'_>,
    warnings: &mut Vec<FieldError>,
) -> Result<Node, FieldError> {
    let annotations = object.map("metadata.annotations")?;
    let mut read = Annotations { object, annotations: &annotations, warnings };
    let mut node = Node {
        ipv4: read.value("IPv4Address", |text| with_length(text, true)),
        ipv6: read.value("IPv6Address", |text| with_length(text, false)),
        tunnel_v4: read.value("IPv4VXLANTunnelAddr", |text| of_family(text, true)),
        tunnel_v6: read.value("IPv6VXLANTunnelAddr", |text| of_family(text, false)),
        mac_v4: read.value("VXLANTunnelMACAddr", mac),
        mac_v6: read.value("VXLANTunnelMACAddrV6", mac),
        addresses: Vec::new(),
    };
    let items = object.items("status.addresses")?;
    for wanted in ["InternalIP", "ExternalIP"] {
        for item in items.iter().filter(|item| item.text("type") == Ok(Some(wanted))) {
            match item.address("address") {
                Ok(Some(addr)) if !node.addresses.contains(&addr) => node.addresses.push(addr),
                Ok(_) => {}
                Err(error) => warnings.push(error),
            }
        }
    }
    Ok(node)
}

struct Annotations<'a> {
    object: &'a Reader<'a>,
    annotations: &'a Labels,
    warnings: &'a mut Vec<FieldError>,
}

impl Annotations<'_> {
    fn value<T, E: Display>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let name = format!("projectcalico.org/{name}");
        let text = self.annotations.get(&name).filter(|text| !text.is_empty())?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(reason) => {
                let field = format!("metadata.annotations.{name}");
                self.warnings
                    .push(self.object.error(&field, format!("{reason}; it counts as absent")));
                None
            }
        }
    }
}

/// An address with its subnet's prefix length, or a bare address.
fn with_length(text: &str, v4: bool) -> Result<(IpAddr, u8), String> {
    let (bare, length) = match text.split_once('/') {
        Some((bare, length)) => (bare, length.parse().ok()),
        None => (text, Some(if v4 { 32 } else { 128 })),
    };
    let max = if v4 { 32 } else { 128 };
    let length = length.filter(|length| *length <= max);
    let length = length.ok_or_else(|| format!("{text:?} has no valid prefix length"))?;
    Ok((of_family(bare, v4)?, length))
}

fn of_family(text: &str, v4: bool) -> Result<IpAddr, String> {
    let addr = address(text)?;
    if addr.is_ipv4() == v4 {
        return Ok(addr);
    }
    Err(format!("{text:?} is no IPv{} address", if v4 { 4 } else { 6 }))
}

/// A unicast MAC; another could never be a VTEP's.
fn mac(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text.parse().map_err(|error| format!("{error}"))?;
    if mac.0[0] & 1 == 1 || mac == MacAddr::default() {
        return Err(format!("{text:?} is no unicast MAC address"));
    }
    Ok(mac)
}
