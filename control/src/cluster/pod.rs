//! Pods: which of them have an identity, and what is used of it.

use std::net::IpAddr;
use std::sync::Arc;

use super::field::{FieldError, Reader, address};
use crate::state::{Labels, NamedPort, Pod};

/// The pod, or `None` when it has no identity: on the host's network, not
/// scheduled, finished, or without an address.
pub(super) fn pod(object: &Reader<'_>) -> Result<Option<Pod>, FieldError> {
    if object.flag("spec.hostNetwork")?.unwrap_or(false) {
        return Ok(None);
    }
    let Some(node) = object.text("spec.nodeName")?.filter(|node| !node.is_empty()) else {
        return Ok(None);
    };
    let annotations = object.map("metadata.annotations")?;
    if finished(object, &annotations)? {
        return Ok(None);
    }
    let addresses = addresses(object, &annotations)?;
    if addresses.is_empty() {
        return Ok(None);
    }
    let account = object.text("spec.serviceAccountName")?;
    let account = account.or(object.text("spec.serviceAccount")?).unwrap_or_default();
    let mut ports = Vec::new();
    for containers in ["spec.containers", "spec.initContainers"] {
        for container in object.items(containers)? {
            ports.extend(named_ports(&container.items("ports")?, "containerPort")?);
        }
    }
    ports.sort();
    ports.dedup();
    Ok(Some(Pod {
        labels: Arc::new(object.map("metadata.labels")?),
        node: node.into(),
        service_account: account.into(),
        addresses: addresses.into(),
        ports: ports.into(),
    }))
}

/// A finished pod's addresses may already be someone else's. A pod that is
/// being deleted has given its address back once the network plugin has
/// emptied the annotation.
fn finished(object: &Reader<'_>, annotations: &Labels) -> Result<bool, FieldError> {
    let phase = object.text("status.phase")?;
    let released = ["cni.projectcalico.org/podIP", "vpc.amazonaws.com/pod-ips"]
        .into_iter()
        .any(|name| annotations.get(name).is_some_and(String::is_empty));
    let deleted = object.has("metadata.deletionTimestamp") && released;
    Ok(deleted || matches!(phase, Some("Succeeded" | "Failed" | "Completed")))
}

/// The first place that has any addresses decides; Calico's order.
fn addresses(object: &Reader<'_>, annotations: &Labels) -> Result<Vec<IpAddr>, FieldError> {
    let mut found = Vec::new();
    for item in object.items("status.podIPs")? {
        found.extend(item.address("ip")?);
    }
    if found.is_empty()
        && let Some(text) = object.text("status.podIP")?.filter(|text| !text.is_empty())
    {
        found.push(address(text).map_err(|reason| object.error("status.podIP", reason))?);
    }
    let names = [
        "cni.projectcalico.org/podIPs",
        "cni.projectcalico.org/podIP",
        "vpc.amazonaws.com/pod-ips",
    ];
    for name in names {
        if !found.is_empty() {
            break;
        }
        let text = annotations.get(name).map(String::as_str).unwrap_or_default();
        for text in text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            // The network plugin writes them as prefixes of full length.
            let bare = text.split_once('/').map_or(text, |(addr, _)| addr);
            let field = format!("metadata.annotations.{name}");
            found.push(address(bare).map_err(|reason| object.error(&field, reason))?);
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The ports that have a name and a protocol that policy knows; `number` is the
/// field with the port number.
pub(super) fn named_ports(
    items: &[Reader<'_>],
    number: &str,
) -> Result<Vec<NamedPort>, FieldError> {
    let mut ports = Vec::new();
    for item in items {
        let Some(name) = item.text("name")?.filter(|name| !name.is_empty()) else { continue };
        let protocol = match item.get("protocol") {
            None => Some(6),
            Some(value) => protocol(value),
        };
        let Some(protocol) = protocol else { continue };
        let port = item.number(number, 1, 65_535)?.and_then(|port| u16::try_from(port).ok());
        let port = port.ok_or_else(|| item.error(number, "is missing; set it"))?;
        ports.push(NamedPort { name: name.to_owned(), protocol, port });
    }
    ports.sort();
    ports.dedup();
    Ok(ports)
}

/// TCP, UDP or SCTP, by name or number.
fn protocol(value: &serde_json::Value) -> Option<u8> {
    let number = match value.as_str() {
        Some(name) if name.eq_ignore_ascii_case("tcp") => 6,
        Some(name) if name.eq_ignore_ascii_case("udp") => 17,
        Some(name) if name.eq_ignore_ascii_case("sctp") => 132,
        Some(_) => return None,
        None => value.as_u64()?,
    };
    u8::try_from(number).ok().filter(|number| matches!(number, 6 | 17 | 132))
}
