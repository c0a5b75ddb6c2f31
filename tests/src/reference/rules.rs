//! Whether a policy applies to a pod and a rule matches a packet, kind by kind.

use std::net::IpAddr;

use serde_json::Value;

use super::selector::{chooses, is_empty, label_selector_chooses};
use super::things::{Thing, holds, is_v4};
use super::{Packet, Reference, list, text};

/// The rules of a policy in one direction; `None` when it does not apply there.
pub(super) fn of(policy: &Value, ingress: bool) -> Option<&[Value]> {
    let rules = |direction: &str| list(policy, &format!("/spec/{direction}"));
    let own = rules(if ingress { "ingress" } else { "egress" });
    let has_egress = !rules("egress").is_empty();
    let kubernetes = text(policy, "/apiVersion") == "networking.k8s.io/v1";
    let types = list(policy, if kubernetes { "/spec/policyTypes" } else { "/spec/types" });
    let applies = if text(policy, "/kind") == "ClusterNetworkPolicy" {
        !own.is_empty()
    } else if !types.is_empty() {
        types.iter().any(|of| of == if ingress { "Ingress" } else { "Egress" })
    } else if text(policy, "/apiVersion") == "crd.projectcalico.org/v1" {
        // Stored past Calico's API, which else fills them in: both ways.
        true
    } else if !ingress {
        has_egress
    } else {
        // Calico: ingress, unless there are rules for egress alone.
        kubernetes || !has_egress || !own.is_empty()
    };
    applies.then_some(own)
}

/// Whether a policy's own selectors choose a pod of the local cluster.
pub(super) fn applies(policy: &Value, pod: &Thing) -> bool {
    let namespace = text(policy, "/metadata/namespace");
    let in_namespace = namespace.is_empty() || pod.namespace.as_deref() == Some(namespace);
    match (text(policy, "/apiVersion"), text(policy, "/kind")) {
        ("networking.k8s.io/v1", _) => {
            in_namespace && label_selector_chooses(&policy["spec"]["podSelector"], &pod.labels)
        }
        (_, "ClusterNetworkPolicy") => cluster_subject_chooses(&policy["spec"]["subject"], pod),
        _ => {
            let spec = &policy["spec"];
            let given = |field: &str| !text(spec, field).is_empty();
            // Beside accounts `all()` is who has one, in a global policy: also
            // in its selector, unless namespaces are between the two.
            let accounts = namespace.is_empty() && given("/serviceAccountSelector");
            let all = !accounts || pod.account.is_some();
            let all_pods = all || given("/namespaceSelector");
            in_namespace
                && (!given("/selector")
                    || chooses(text(spec, "/selector"), &pod.labels, all_pods, true))
                && chooses(text(spec, "/namespaceSelector"), &pod.namespace_labels, true, true)
                && (!given("/serviceAccountSelector")
                    || chooses(
                        text(spec, "/serviceAccountSelector"),
                        &pod.account_labels,
                        all,
                        true,
                    ))
        }
    }
}

/// A Kubernetes selector of namespaces. Without a condition it chooses what is
/// in any.
fn namespace_chosen(selector: &Value, thing: &Thing) -> bool {
    if is_empty(selector) {
        return thing.namespace.is_some();
    }
    label_selector_chooses(selector, &thing.namespace_labels)
}

fn cluster_subject_chooses(subject: &Value, pod: &Thing) -> bool {
    pod.pod && cluster_peer_chooses(subject, pod)
}

/// A peer by `namespaces` alone may be a network set, one by `pods` not.
fn cluster_peer_chooses(peer: &Value, thing: &Thing) -> bool {
    match peer.get("namespaces") {
        Some(namespaces) => namespace_chosen(namespaces, thing),
        None => {
            thing.pod
                && namespace_chosen(&peer["pods"]["namespaceSelector"], thing)
                && label_selector_chooses(&peer["pods"]["podSelector"], &thing.labels)
        }
    }
}

/// A first and a last number, or a number by itself.
fn in_range(port: &Value, number: u16) -> bool {
    let number = u64::from(number);
    if let Some(range) = port.as_str().and_then(|text| text.split_once(':')) {
        let parse = |text: &str| text.parse::<u64>().expect("a number");
        return (parse(range.0)..=parse(range.1)).contains(&number);
    }
    let exact = port.as_u64().or_else(|| port.as_str()?.parse().ok());
    exact == Some(number)
}

fn is_name(port: &Value) -> bool {
    port.as_str().is_some_and(|text| !text.contains(':') && text.parse::<u64>().is_err())
}

fn protocol_number(value: &Value) -> Option<u8> {
    match value.as_str() {
        Some("TCP") => Some(6),
        Some("UDP") => Some(17),
        Some("SCTP") => Some(132),
        Some("ICMP") => Some(1),
        Some("ICMPv6") => Some(58),
        Some("UDPLite") => Some(136),
        Some(other) => other.parse().ok(),
        None => value.as_u64().and_then(|number| number.try_into().ok()),
    }
}

impl Reference<'_> {
    /// What a rule of a policy does with a packet; `None` when it does not match.
    pub(super) fn action<'r>(
        &self,
        policy: &Value,
        rule: &'r Value,
        ingress: bool,
        packet: &Packet,
    ) -> Option<&'r str> {
        match (text(policy, "/apiVersion"), text(policy, "/kind")) {
            ("networking.k8s.io/v1", _) => {
                let namespace = text(policy, "/metadata/namespace");
                self.kubernetes_rule(rule, namespace, ingress, packet).then_some("Allow")
            }
            (_, "ClusterNetworkPolicy") => self.cluster_rule(rule, ingress, packet),
            _ => {
                let namespace = text(policy, "/metadata/namespace");
                let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
                self.calico_rule(rule, namespace, packet).then(|| text(rule, "/action"))
            }
        }
    }

    fn owners(&self, address: IpAddr) -> impl Iterator<Item = &Thing> {
        self.things.iter().filter(move |thing| thing.has(address))
    }

    fn calico_rule(&self, rule: &Value, namespace: Option<&str>, packet: &Packet) -> bool {
        let v4 = packet.from.is_ipv4();
        let protocol = |field: &str| rule.get(field).and_then(protocol_number);
        let version = match (text(rule, "/protocol"), rule.get("ipVersion").and_then(Value::as_u64))
        {
            (_, Some(version)) => Some(version == 4),
            ("ICMP", None) => Some(true),
            ("ICMPv6", None) => Some(false),
            _ => None,
        };
        let is_icmp = |icmp: &Value| {
            let is = |field: &str, own: u8| icmp.get(field).is_none_or(|it| *it == u64::from(own));
            is("type", packet.icmp.0) && is("code", packet.icmp.1)
        };
        // A list that has no network of a family makes the rule one of the other.
        let families = ["source", "destination"].into_iter().all(|end| {
            ["nets", "notNets"].into_iter().all(|list_of| {
                let nets = list(rule, &format!("/{end}/{list_of}"));
                let own = |net: &Value| net.as_str().is_some_and(|net| is_v4(net) == v4);
                nets.is_empty() || nets.iter().any(own)
            })
        });
        families
            && version.is_none_or(|version| version == v4)
            && protocol("protocol").is_none_or(|number| number == packet.protocol)
            && protocol("notProtocol").is_none_or(|number| number != packet.protocol)
            && rule.get("icmp").is_none_or(is_icmp)
            && !rule.get("notICMP").is_some_and(is_icmp)
            && self.entity(&rule["source"], namespace, packet, false)
            && self.entity(&rule["destination"], namespace, packet, true)
    }

    /// One end of a Calico rule. All that is said of labels must be true of one
    /// thing that has the address.
    fn entity(&self, end: &Value, namespace: Option<&str>, packet: &Packet, to: bool) -> bool {
        let (address, port) =
            if to { (packet.to, packet.port) } else { (packet.from, packet.source_port) };
        let in_nets = |field: &str| {
            list(end, field).iter().any(|net| net.as_str().is_some_and(|net| holds(net, address)))
        };
        if !list(end, "/nets").is_empty() && !in_nets("/nets") || in_nets("/notNets") {
            return false;
        }
        let selector = |field: &str| Some(text(end, field)).filter(|text| !text.is_empty());
        let (wanted, unwanted) = (selector("/selector"), selector("/notSelector"));
        let spaces = selector("/namespaceSelector");
        let account = selector("/serviceAccounts/selector");
        let accounts = list(end, "/serviceAccounts/names");
        let of_labels = wanted.is_some() || account.is_some() || !accounts.is_empty();
        let positive = of_labels || spaces.is_some() || namespace.is_some() && unwanted.is_some();
        let excluded =
            |thing: &Thing| unwanted.is_some_and(|not| chooses(not, &thing.labels, true, true));
        let meant = |thing: &&Thing| {
            let inside = thing.namespace.is_some();
            let space = match (spaces, namespace) {
                (Some(spaces), _) => chooses(spaces, &thing.namespace_labels, inside, !inside),
                (None, Some(namespace)) if positive => {
                    thing.namespace.as_deref() == Some(namespace)
                }
                _ => true,
            };
            let named =
                |name: &Value| name.as_str().is_some() && thing.account.as_deref() == name.as_str();
            space
                && wanted.is_none_or(|it| chooses(it, &thing.labels, true, true))
                && account.is_none_or(|it| chooses(it, &thing.account_labels, true, true))
                && (accounts.is_empty() || accounts.iter().any(named))
                && !(positive && excluded(thing))
        };
        if positive && !self.owners(address).any(|thing| meant(&thing)) {
            return false;
        }
        if !positive && self.owners(address).any(excluded) {
            return false;
        }
        let port_is = |wanted: &Value| {
            packet.has_ports()
                && if is_name(wanted) {
                    let name = wanted.as_str().unwrap_or_default();
                    let mut of = self.owners(address).filter(meant);
                    of.any(|thing| thing.has_port(name, packet.protocol, port))
                } else {
                    in_range(wanted, port)
                }
        };
        (list(end, "/ports").is_empty() || list(end, "/ports").iter().any(port_is))
            && !list(end, "/notPorts").iter().any(port_is)
            && end.get("services").is_none_or(|service| self.service(service, packet, to))
    }

    fn service(&self, service: &Value, packet: &Packet, to: bool) -> bool {
        let address = if to { packet.to } else { packet.from };
        self.slices.iter().any(|slice| {
            let name = slice.pointer("/metadata/labels/kubernetes.io~1service-name");
            let is = name.and_then(Value::as_str) == Some(text(service, "/name"))
                // Without a namespace it is no service's.
                && text(slice, "/metadata/namespace") == text(service, "/namespace");
            let addresses = list(slice, "/endpoints").iter().flat_map(|it| list(it, "/addresses"));
            let mut addresses = addresses.filter_map(Value::as_str);
            let ports = list(slice, "/ports");
            let port_is = |port: &Value| {
                let protocol = port.get("protocol").map_or(Some(6), protocol_number);
                protocol == Some(packet.protocol)
                    && port["port"].as_u64() == Some(u64::from(packet.port))
            };
            is && addresses.any(|own| holds(own, address)) && (!to || ports.iter().any(port_is))
        })
    }

    fn kubernetes_rule(
        &self,
        rule: &Value,
        namespace: &str,
        ingress: bool,
        packet: &Packet,
    ) -> bool {
        let peer = if ingress { packet.from } else { packet.to };
        let in_block = |block: &Value| {
            let within = |net: &Value| net.as_str().is_some_and(|net| holds(net, peer));
            within(&block["cidr"]) && !list(block, "/except").iter().any(within)
        };
        let chosen = |of: &Value, thing: &Thing| {
            let space = match of.get("namespaceSelector") {
                Some(selector) => namespace_chosen(selector, thing),
                None => thing.namespace.as_deref() == Some(namespace),
            };
            thing.pod && space && label_selector_chooses(&of["podSelector"], &thing.labels)
        };
        let peers = list(rule, if ingress { "/from" } else { "/to" });
        let port_is = |entry: &Value, chosen: &dyn Fn(&Thing) -> bool| {
            let protocol = entry.get("protocol").map_or(Some(6), protocol_number);
            protocol == Some(packet.protocol)
                && match (entry.get("port"), entry.get("endPort").and_then(Value::as_u64)) {
                    (None, _) => true,
                    (Some(name), _) if is_name(name) => self.owners(packet.to).any(|thing| {
                        let name = name.as_str().unwrap_or_default();
                        (ingress || chosen(thing))
                            && thing.has_port(name, packet.protocol, packet.port)
                    }),
                    (Some(first), Some(last)) => (first.as_u64().unwrap_or_default()..=last)
                        .contains(&u64::from(packet.port)),
                    (Some(port), None) => in_range(port, packet.port),
                }
        };
        let ports = list(rule, "/ports");
        let ports_are = |chosen: &dyn Fn(&Thing) -> bool| {
            ports.is_empty() || ports.iter().any(|entry| port_is(entry, chosen))
        };
        if peers.is_empty() {
            return ports_are(&|_| true);
        }
        peers.iter().any(|of| match of.get("ipBlock") {
            Some(block) => in_block(block) && ports_are(&|_| true),
            None => {
                let chosen = |thing: &Thing| chosen(of, thing);
                self.owners(peer).any(chosen) && ports_are(&chosen)
            }
        })
    }

    fn cluster_rule<'r>(&self, rule: &'r Value, ingress: bool, packet: &Packet) -> Option<&'r str> {
        let peers = list(rule, if ingress { "/from" } else { "/to" });
        let action = match text(rule, "/action") {
            "Accept" => "Allow",
            other => other,
        };
        // What nobody here can tell must not let anything through.
        let known = |peer: &Value| {
            let kinds: &[&str] =
                if ingress { &["namespaces", "pods"] } else { &["namespaces", "pods", "networks"] };
            kinds.iter().any(|kind| peer.get(kind).is_some())
        };
        if !peers.iter().all(known) {
            return (action != "Allow").then_some("Deny");
        }
        let address = if ingress { packet.from } else { packet.to };
        let entries = list(rule, "/protocols");
        let ports_are = |chosen: &dyn Fn(&Thing) -> bool| {
            entries.is_empty()
                || entries.iter().any(|entry| {
                    if let Some(name) = entry.get("destinationNamedPort").and_then(Value::as_str) {
                        return self.owners(packet.to).any(|thing| {
                            (ingress || chosen(thing))
                                && packet.has_ports()
                                && thing.has_port(name, packet.protocol, packet.port)
                        });
                    }
                    [("tcp", 6), ("udp", 17), ("sctp", 132)].iter().any(|(key, protocol)| {
                        let Some(port) = entry.pointer(&format!("/{key}/destinationPort")) else {
                            return false;
                        };
                        let number = |field: &str| port.pointer(field).and_then(Value::as_u64);
                        let own = u64::from(packet.port);
                        let range = number("/range/start").zip(number("/range/end"));
                        let exact = number("/number").map(|number| (number, number));
                        let (first, last) = range.or(exact).expect("a port");
                        packet.protocol == *protocol && (first..=last).contains(&own)
                    })
                })
        };
        let matches = peers.iter().any(|peer| match peer.get("networks") {
            Some(_) => {
                let mut networks = list(peer, "/networks").iter().filter_map(Value::as_str);
                networks.any(|net| holds(net, address)) && ports_are(&|_| true)
            }
            None => {
                let chosen = |thing: &Thing| cluster_peer_chooses(peer, thing);
                self.owners(address).any(chosen) && ports_are(&chosen)
            }
        });
        matches.then_some(action)
    }
}
