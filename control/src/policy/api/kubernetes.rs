//! Kubernetes' NetworkPolicy, Calico's staged form of it, and EndpointSlice.

use std::net::IpAddr;

use serde_json::Value;
use tieline_dataplane::addr::Prefix;

use super::calico::{POLICY_TYPES, PolicyType, STAGED_ACTIONS, StagedAction, TOP};
use super::fields::{Object, Result, choice, cidr, integer, list, quoted, string};
use super::meta::{Meta, is_label_key, is_label_value};
use super::rule::{SCTP, TCP, UDP};
use super::{ApiError, PolicyKind};
use crate::policy::model::PortMatch;
use crate::policy::selector::Selector;

pub(super) const PROTOCOLS: &[(&str, u8)] = &[("TCP", TCP), ("UDP", UDP), ("SCTP", SCTP)];

/// The label that ties an EndpointSlice to its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A NetworkPolicy of Kubernetes', or a staged one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KubernetesPolicy {
    /// `spec.podSelector`.
    pub pods: Selector,
    /// `spec.policyTypes` as it is written.
    pub types: Vec<PolicyType>,
    /// `spec.ingress`.
    pub ingress: Vec<KubernetesRule>,
    /// `spec.egress`.
    pub egress: Vec<KubernetesRule>,
    /// `spec.stagedAction`, of staged policies only.
    pub staged_action: StagedAction,
}

/// A rule: all of the peers over all of the ports.
#[derive(Clone, Debug, PartialEq)]
pub struct KubernetesRule {
    /// `from` or `to`; empty means anybody.
    pub peers: Vec<KubernetesPeer>,
    /// `ports`; empty means everything.
    pub ports: Vec<KubernetesPorts>,
}

/// A peer.
#[derive(Clone, Debug, PartialEq)]
pub enum KubernetesPeer {
    /// `ipBlock`.
    Block {
        /// `cidr`.
        cidr: Prefix,
        /// `except`.
        except: Vec<Prefix>,
    },
    /// Pods of namespaces.
    Pods {
        /// `namespaceSelector`; the policy's own namespace when absent.
        namespaces: Option<Selector>,
        /// `podSelector`; all pods when absent.
        pods: Selector,
    },
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct KubernetesPorts {
    /// `protocol`, as its number; TCP when absent.
    pub protocol: u8,
    /// `port` and `endPort`; all ports when absent.
    pub port: Option<PortMatch>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// Its service's name, in the slice's namespace.
    pub service: Option<String>,
    /// `endpoints[].addresses`, ready or not; none for slices of names.
    pub addresses: Vec<IpAddr>,
    /// `ports`.
    pub ports: Vec<SlicePort>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// IP protocol number; TCP when absent.
    pub protocol: u8,
    /// The number, if the slice gives one.
    pub port: Option<u16>,
}

pub(super) fn policy(kind: PolicyKind, object: &Value) -> Result<KubernetesPolicy> {
    let staged = kind == PolicyKind::StagedKubernetesNetworkPolicy;
    let read = |spec| {
        let mut known = vec!["podSelector", "ingress", "egress", "policyTypes"];
        if staged {
            known.push("stagedAction");
        }
        let spec = Object::closed(spec, &known)?;
        let types = |value| list(value, 2, |value| choice(value, POLICY_TYPES));
        let policy = KubernetesPolicy {
            pods: spec.optional("podSelector", label_selector)?.unwrap_or_default(),
            types: spec.optional("policyTypes", types)?.unwrap_or_default(),
            ingress: spec.list("ingress", usize::MAX, |value| rule(value, "from"))?,
            egress: spec.list("egress", usize::MAX, |value| rule(value, "to"))?,
            staged_action: spec
                .optional("stagedAction", |value| choice(value, STAGED_ACTIONS))?
                .unwrap_or_default(),
        };
        let deletion =
            KubernetesPolicy { staged_action: StagedAction::Delete, ..Default::default() };
        if policy.staged_action == StagedAction::Delete && policy != deletion {
            let reason = "Delete goes with no other field; remove the others";
            return Err(ApiError::of("stagedAction", reason));
        }
        Ok(policy)
    };
    Ok(Object::closed(object, TOP)?.optional("spec", read)?.unwrap_or_default())
}

fn rule(value: &Value, peers: &str) -> Result<KubernetesRule> {
    let fields = Object::closed(value, &[peers, "ports"])?;
    Ok(KubernetesRule {
        peers: fields.list(peers, usize::MAX, peer)?,
        ports: fields.list("ports", usize::MAX, ports)?,
    })
}

fn peer(value: &Value) -> Result<KubernetesPeer> {
    let fields = Object::closed(value, &["ipBlock", "podSelector", "namespaceSelector"])?;
    let pods = fields.optional("podSelector", label_selector)?;
    let namespaces = fields.optional("namespaceSelector", label_selector)?;
    let block = fields.optional("ipBlock", block)?;
    match (block, pods, namespaces) {
        (None, None, None) => Err(ApiError::new(
            "a peer without fields; write podSelector, namespaceSelector or ipBlock",
        )),
        (Some(block), None, None) => Ok(block),
        (Some(_), ..) => {
            let reason = "can't be together with selectors; write two peers";
            Err(ApiError::of("ipBlock", reason))
        }
        (None, pods, namespaces) => {
            Ok(KubernetesPeer::Pods { namespaces, pods: pods.unwrap_or_default() })
        }
    }
}

fn block(value: &Value) -> Result<KubernetesPeer> {
    let fields = Object::closed(value, &["cidr", "except"])?;
    let whole = fields.required("cidr", cidr)?;
    let except = fields.list("except", usize::MAX, |value| {
        let part = cidr(value)?;
        if whole.contains(part.addr()) && part.len() > whole.len() {
            return Ok(part);
        }
        Err(ApiError::new(format!("{part} is no part of {whole}; write a smaller block of it")))
    })?;
    Ok(KubernetesPeer::Block { cidr: whole, except })
}

fn ports(value: &Value) -> Result<KubernetesPorts> {
    let fields = Object::closed(value, &["protocol", "port", "endPort"])?;
    let protocol = fields.optional("protocol", |value| choice(value, PROTOCOLS))?.unwrap_or(TCP);
    let port = fields.optional("port", port)?;
    let end = fields.optional("endPort", port_number)?;
    let port = match (port, end) {
        (port, None) => port,
        (None, Some(_)) => {
            return Err(ApiError::of("endPort", "needs a port; write where the range begins"));
        }
        (Some(PortMatch::Named(_)), Some(_)) => {
            return Err(ApiError::of("endPort", "needs a port by number; a name has no range"));
        }
        (Some(PortMatch::Range(first)), Some(end)) if *first.start() > end => {
            let reason = format!("{end} is before port {}; correct one of them", first.start());
            return Err(ApiError::of("endPort", reason));
        }
        (Some(PortMatch::Range(first)), Some(end)) => Some(PortMatch::Range(*first.start()..=end)),
    };
    Ok(KubernetesPorts { protocol, port })
}

fn port(value: &Value) -> Result<PortMatch> {
    let Value::String(name) = value else {
        return port_number(value).map(|port| PortMatch::Range(port..=port));
    };
    if is_service_name(name) {
        return Ok(PortMatch::Named(name.clone()));
    }
    Err(ApiError::new(format!(
        "{} is no name of a port; write a number, or up to 15 lower case letters, digits and '-' \
         with a letter among them",
        quoted(name)
    )))
}

pub(super) fn port_number(value: &Value) -> Result<u16> {
    integer(value, 1, 65535).map(|port| port as u16)
}

/// RFC 6335 section 5.1, in lower case.
fn is_service_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}

#[derive(Clone, Copy)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

const OPERATORS: &[(&str, Operator)] = &[
    ("In", Operator::In),
    ("NotIn", Operator::NotIn),
    ("Exists", Operator::Exists),
    ("DoesNotExist", Operator::DoesNotExist),
];

/// A Kubernetes label selector; an empty one chooses everything.
pub(super) fn label_selector(value: &Value) -> Result<Selector> {
    let fields = Object::closed(value, &["matchLabels", "matchExpressions"])?;
    let mut whole = Selector::all();
    for (key, value) in fields.texts("matchLabels")? {
        let field = || format!("matchLabels[{}]", quoted(key));
        if !is_label_key(key) {
            return Err(ApiError::of(&field(), "no key of a label"));
        }
        if !is_label_value(value) {
            let reason = format!("{} is no value of a label", quoted(value));
            return Err(ApiError::of(&field(), reason));
        }
        whole = whole.and(&Selector::equals(key, value));
    }
    for expression in fields.list("matchExpressions", usize::MAX, expression)? {
        whole = whole.and(&expression);
    }
    Ok(whole)
}

fn expression(value: &Value) -> Result<Selector> {
    let fields = Object::closed(value, &["key", "operator", "values"])?;
    let key = fields.required("key", |value| {
        let key = string(value)?;
        if is_label_key(key) {
            return Ok(key);
        }
        Err(ApiError::new(format!("{} is no key of a label", quoted(key))))
    })?;
    let operator = fields.required("operator", |value| choice(value, OPERATORS))?;
    let values = fields.list("values", usize::MAX, |value| {
        let value = string(value)?;
        if is_label_value(value) {
            return Ok(value);
        }
        Err(ApiError::new(format!("{} is no value of a label", quoted(value))))
    })?;
    match (operator, values.is_empty()) {
        (Operator::In | Operator::NotIn, true) => {
            Err(ApiError::of("values", "is empty; In and NotIn need values"))
        }
        (Operator::Exists | Operator::DoesNotExist, false) => {
            Err(ApiError::of("values", "must be empty with Exists and DoesNotExist; remove it"))
        }
        (Operator::In, _) => Ok(Selector::one_of(key, values)),
        (Operator::NotIn, _) => Ok(Selector::none_of(key, values)),
        (Operator::Exists, _) => Ok(Selector::has(key)),
        (Operator::DoesNotExist, _) => Ok(Selector::has(key).negated()),
    }
}

/// Slices are written by a controller and hold much that policy does not use.
pub(super) fn endpoint_slice(object: &Value, meta: &Meta) -> Result<EndpointSlice> {
    let fields = Object::open(object)?;
    let types = &[("IPv4", Some(true)), ("IPv6", Some(false)), ("FQDN", None)];
    let v4 = fields.required("addressType", |value| choice(value, types))?;
    let address = |value: &Value| {
        let text = string(value)?;
        match (text.parse::<IpAddr>(), v4) {
            (_, None) => Ok(None),
            (Ok(ip), Some(v4)) if ip.is_ipv4() == v4 => Ok(Some(ip)),
            _ => Err(ApiError::new(format!("{} is no address of addressType", quoted(text)))),
        }
    };
    let addresses = fields.list("endpoints", usize::MAX, |endpoint| {
        Object::open(endpoint)?.list("addresses", usize::MAX, address)
    })?;
    let ports = fields.list("ports", usize::MAX, |value| {
        let fields = Object::open(value)?;
        let protocol = fields.optional("protocol", |value| choice(value, PROTOCOLS))?;
        let port = fields.optional("port", |value| integer(value, 0, 65535))?;
        Ok(SlicePort {
            protocol: protocol.unwrap_or(TCP),
            port: port.filter(|port| *port > 0).map(|port| port as u16),
        })
    })?;
    Ok(EndpointSlice {
        service: meta.labels.get(SERVICE_NAME).cloned(),
        addresses: addresses.into_iter().flatten().flatten().collect(),
        ports,
    })
}
