//! The rules of Calico's policies.

use serde_json::Value;
use tieline_dataplane::addr::Prefix;

use super::ApiError;
use super::fields::{Object, Result, choice, describe, integer, quoted, strict_net, string};
use super::meta::is_subdomain;
use crate::policy::model::{Action, Icmp, PortMatch};
use crate::policy::selector::Selector;

/// Most entries of `nets` or `notNets`.
const MAX_NETS: usize = 256;

/// Most entries of `ports` or `notPorts`.
const MAX_PORTS: usize = 50;

/// Most entries of a list in `http`.
const MAX_HTTP: usize = 20;

/// IP protocol numbers that rules treat specially.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP_V6: u8 = 58;
pub(crate) const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

const PROTOCOLS: &[(&str, u8)] = &[
    ("TCP", TCP),
    ("UDP", UDP),
    ("ICMP", ICMP),
    ("ICMPv6", ICMP_V6),
    ("SCTP", SCTP),
    ("UDPLite", UDP_LITE),
];

const ACTIONS: &[(&str, Action)] = &[
    ("Allow", Action::Allow),
    ("Deny", Action::Deny),
    ("Log", Action::Log),
    ("Pass", Action::Pass),
];

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which list of a policy a rule is of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Ingress,
    Egress,
}

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// `action`.
    pub action: Action,
    /// `ipVersion`, or what `protocol` implies: by the name ICMP or ICMPv6, or by
    /// one of their numbers together with `icmp` or `notICMP`.
    pub family: Option<Family>,
    /// `protocol`, as its number.
    pub protocol: Option<u8>,
    /// `notProtocol`, as its number.
    pub not_protocol: Option<u8>,
    /// `icmp`; `None` also when it sets no type.
    pub icmp: Option<Icmp>,
    /// `notICMP`; `None` also when it sets no type.
    pub not_icmp: Option<Icmp>,
    /// `source`.
    pub source: EntityRule,
    /// `destination`.
    pub destination: EntityRule,
    /// Whether there are conditions on HTTP requests, which no packet shows.
    pub http: bool,
}

/// Conditions on one end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EntityRule {
    /// `nets`.
    pub nets: Vec<Prefix>,
    /// `notNets`.
    pub not_nets: Vec<Prefix>,
    /// `selector`.
    pub selector: Option<Selector>,
    /// `notSelector`.
    pub not_selector: Option<Selector>,
    /// `namespaceSelector`.
    pub namespace_selector: Option<Selector>,
    /// `serviceAccounts`.
    pub service_accounts: Option<ServiceAccounts>,
    /// `ports`.
    pub ports: Vec<PortMatch>,
    /// `notPorts`.
    pub not_ports: Vec<PortMatch>,
    /// `services`.
    pub services: Option<ServiceMatch>,
}

/// Service accounts by name and by label; both count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceAccounts {
    /// `names`; empty means any.
    pub names: Vec<String>,
    /// `selector`.
    pub selector: Option<Selector>,
}

/// A service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceMatch {
    /// `name`.
    pub name: String,
    /// `namespace`.
    pub namespace: Option<String>,
}

pub(super) fn read(value: &Value, side: Side, global: bool) -> Result<Rule> {
    let fields = Object::closed(
        value,
        &[
            "action",
            "ipVersion",
            "protocol",
            "notProtocol",
            "icmp",
            "notICMP",
            "source",
            "destination",
            "http",
            "metadata",
        ],
    )?;
    let entity = |key: &str| Ok(fields.optional(key, entity)?.unwrap_or_default());
    let by_name = |value: &Value| Ok(value.as_str().is_some_and(|text| text.starts_with("ICMP")));
    let named = fields.optional("protocol", by_name)?.unwrap_or_default();
    let mut rule = Rule {
        action: fields.required("action", |value| choice(value, ACTIONS))?,
        family: fields.optional("ipVersion", family)?,
        protocol: fields.optional("protocol", protocol)?,
        not_protocol: fields.optional("notProtocol", protocol)?,
        icmp: fields.optional("icmp", icmp)?.flatten(),
        not_icmp: fields.optional("notICMP", icmp)?.flatten(),
        source: entity("source")?,
        destination: entity("destination")?,
        http: fields.optional("http", http)?.is_some(),
    };
    for field in ["icmp", "notICMP"] {
        if fields.has(field) && !matches!(rule.protocol, Some(ICMP | ICMP_V6)) {
            return Err(ApiError::of(field, "needs protocol ICMP or ICMPv6; write the protocol"));
        }
    }
    check_families(&rule)?;
    check_ports(&rule)?;
    check_http(&rule, side)?;
    check_services(&rule, side, global)?;
    if rule.family.is_none() && (named || rule.icmp.is_some() || rule.not_icmp.is_some()) {
        rule.family = match rule.protocol {
            Some(ICMP) => Some(Family::V4),
            Some(ICMP_V6) => Some(Family::V6),
            _ => None,
        };
    }
    Ok(rule)
}

fn family(value: &Value) -> Result<Family> {
    match value.as_i64() {
        Some(4) => Ok(Family::V4),
        Some(6) => Ok(Family::V6),
        _ => Err(ApiError::new(format!("{} is not one of the numbers 4, 6", describe(value)))),
    }
}

fn protocol(value: &Value) -> Result<u8> {
    let number = match value {
        Value::String(text) => match text.parse() {
            Ok(number) if text.bytes().all(|b| b.is_ascii_digit()) => number,
            _ => return choice(value, PROTOCOLS),
        },
        _ => integer(value, 1, 255)?,
    };
    match u8::try_from(number) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(ApiError::new(format!("{number} is outside 1 to 255"))),
    }
}

fn icmp(value: &Value) -> Result<Option<Icmp>> {
    let fields = Object::closed(value, &["type", "code"])?;
    let byte = |value: &Value, max: u8| integer(value, 0, max.into()).map(|number| number as u8);
    let kind = fields.optional("type", |value| byte(value, 254))?;
    let code = fields.optional("code", |value| byte(value, 255))?;
    match (kind, code) {
        (None, Some(_)) => Err(ApiError::of("code", "needs a type; write the type too")),
        (None, None) => Ok(None),
        (Some(kind), code) => Ok(Some(Icmp { kind, code })),
    }
}

fn entity(value: &Value) -> Result<EntityRule> {
    let fields = Object::closed(
        value,
        &[
            "nets",
            "notNets",
            "selector",
            "notSelector",
            "namespaceSelector",
            "serviceAccounts",
            "ports",
            "notPorts",
            "services",
        ],
    )?;
    let not_net = |value: &Value| {
        let net = strict_net(value)?;
        if net.is_empty() {
            let reason = format!("{net} is every address, so the rule never matches; remove it");
            return Err(ApiError::new(reason));
        }
        Ok(net)
    };
    let entity = EntityRule {
        nets: fields.list("nets", MAX_NETS, strict_net)?,
        not_nets: fields.list("notNets", MAX_NETS, not_net)?,
        selector: fields.selector("selector")?,
        not_selector: fields.selector("notSelector")?,
        namespace_selector: fields.namespace_selector("namespaceSelector")?,
        service_accounts: fields.optional("serviceAccounts", service_accounts)?,
        ports: fields.list("ports", MAX_PORTS, port)?,
        not_ports: fields.list("notPorts", MAX_PORTS, port)?,
        services: fields.optional("services", service)?,
    };
    let beside = [
        ("selector", entity.selector.is_some()),
        ("notSelector", entity.not_selector.is_some()),
        ("namespaceSelector", entity.namespace_selector.is_some()),
        ("serviceAccounts", entity.service_accounts.is_some()),
        ("nets", !entity.nets.is_empty()),
        ("notNets", !entity.not_nets.is_empty()),
    ];
    match beside.into_iter().find(|(_, set)| *set) {
        Some((other, _)) if entity.services.is_some() => Err(ApiError::of(
            "services",
            format!("can't be together with {other}; write two rules"),
        )),
        _ => Ok(entity),
    }
}

fn service_accounts(value: &Value) -> Result<ServiceAccounts> {
    let fields = Object::closed(value, &["names", "selector"])?;
    let name = |value: &Value| {
        let name = string(value)?;
        if is_subdomain(name) {
            return Ok(name.to_owned());
        }
        Err(ApiError::new(format!("{} is no name of a service account", quoted(name))))
    };
    Ok(ServiceAccounts {
        names: fields.list("names", usize::MAX, name)?,
        selector: fields.selector("selector")?,
    })
}

fn service(value: &Value) -> Result<ServiceMatch> {
    let fields = Object::closed(value, &["name", "namespace"])?;
    let name = |value: &Value| {
        let name = string(value)?;
        if name.is_empty() || is_subdomain(name) {
            return Ok((!name.is_empty()).then(|| name.to_owned()));
        }
        Err(ApiError::new(format!("{} is no name", quoted(name))))
    };
    let missing = || ApiError::of("name", "is missing; write the service's name");
    Ok(ServiceMatch {
        name: fields.optional("name", name)?.flatten().ok_or_else(missing)?,
        namespace: fields.optional("namespace", name)?.flatten(),
    })
}

fn port(value: &Value) -> Result<PortMatch> {
    let Value::String(text) = value else {
        return number(integer(value, 1, 65535)?).map(|port| PortMatch::Range(port..=port));
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parsed = |text: &str| number(text.parse().unwrap_or(i64::MAX));
    if digits(text) {
        return parsed(text).map(|port| PortMatch::Range(port..=port));
    }
    match text.split_once(':') {
        Some((first, last)) if digits(first) && digits(last) => {
            let (first, last) = (parsed(first)?, parsed(last)?);
            if first > last {
                let reason = format!("{text} is upside down; write {last}:{first}");
                return Err(ApiError::new(reason));
            }
            Ok(PortMatch::Range(first..=last))
        }
        None if is_port_name(text) => Ok(PortMatch::Named(text.clone())),
        _ => Err(ApiError::new(format!(
            "{} is no port; write a number, a range such as \"8000:8080\" or a name",
            quoted(text)
        ))),
    }
}

fn number(port: i64) -> Result<u16> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ApiError::new("the port is outside 1 to 65535")),
    }
}

fn is_port_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn http(value: &Value) -> Result<()> {
    let fields = Object::closed(value, &["methods", "paths"])?;
    let methods = fields.list("methods", MAX_HTTP, string)?;
    if let Some(place) =
        (1..methods.len()).find(|place| methods[..*place].contains(&methods[*place]))
    {
        return Err(ApiError::of(
            &format!("methods[{place}]"),
            "is there more than once; remove one",
        ));
    }
    fields.list("paths", MAX_HTTP, |value| {
        let fields = Object::closed(value, &["exact", "prefix"])?;
        let exact = fields.optional("exact", string)?.filter(|path| !path.is_empty());
        let prefix = fields.optional("prefix", string)?.filter(|path| !path.is_empty());
        let (field, path) = match (exact, prefix) {
            (Some(path), None) => ("exact", path),
            (None, Some(path)) => ("prefix", path),
            _ => return Err(ApiError::new("write exact or prefix, and not both")),
        };
        if path.len() > 1024 || !path.starts_with('/') || path.contains(['?', ' ', '#']) {
            let reason =
                format!("{} is no path; begin with / and leave out ?, # and blanks", quoted(path));
            return Err(ApiError::of(field, reason));
        }
        Ok(())
    })?;
    Ok(())
}

/// One rule is about one family: what it says in several places must agree.
fn check_families(rule: &Rule) -> Result<()> {
    for (field, protocol) in [("protocol", rule.protocol), ("notProtocol", rule.not_protocol)] {
        match (protocol, rule.family) {
            (Some(ICMP), Some(Family::V6)) => {
                return Err(ApiError::of("ipVersion", format!("must be 4 with {field} ICMP")));
            }
            (Some(ICMP_V6), Some(Family::V4)) => {
                return Err(ApiError::of("ipVersion", format!("must be 6 with {field} ICMPv6")));
            }
            _ => {}
        }
    }
    let lists = [
        ("source.nets", &rule.source.nets),
        ("source.notNets", &rule.source.not_nets),
        ("destination.nets", &rule.destination.nets),
        ("destination.notNets", &rule.destination.not_nets),
    ];
    let mut first = None;
    for (field, nets) in lists {
        for (place, net) in nets.iter().enumerate() {
            let field = || format!("{field}[{place}]");
            let other = rule.family.is_some_and(|family| net.is_v4() != (family == Family::V4));
            if other {
                let reason = format!("{net} is not of the rule's ipVersion; correct one of them");
                return Err(ApiError::of(&field(), reason));
            }
            let first = *first.get_or_insert(net);
            if first.is_v4() != net.is_v4() {
                let reason =
                    format!("{net} and {first} in one rule; write one rule for each IP version");
                return Err(ApiError::of(&field(), reason));
            }
        }
    }
    Ok(())
}

fn check_ports(rule: &Rule) -> Result<()> {
    let lists = [
        ("source.ports", &rule.source.ports),
        ("source.notPorts", &rule.source.not_ports),
        ("destination.ports", &rule.destination.ports),
        ("destination.notPorts", &rule.destination.not_ports),
    ];
    for (field, ports) in lists {
        let numbers = ports.iter().any(|port| matches!(port, PortMatch::Range(_)));
        let reason = match rule.protocol {
            Some(TCP | UDP | SCTP) => continue,
            None if numbers => "numbers of ports need a protocol; write TCP, UDP or SCTP",
            Some(_) if !ports.is_empty() => {
                "only TCP, UDP and SCTP have ports; correct the protocol"
            }
            _ => continue,
        };
        return Err(ApiError::of(field, reason));
    }
    Ok(())
}

fn check_http(rule: &Rule, side: Side) -> Result<()> {
    if !rule.http {
        return Ok(());
    }
    if rule.action != Action::Allow {
        return Err(ApiError::of("http", "goes with action Allow only"));
    }
    if side == Side::Egress {
        return Err(ApiError::of("http", "goes with ingress rules only"));
    }
    if rule.protocol.is_some_and(|protocol| protocol != TCP) {
        return Err(ApiError::of("http", "goes with protocol TCP or none; correct the protocol"));
    }
    Ok(())
}

fn check_services(rule: &Rule, side: Side, global: bool) -> Result<()> {
    let (allowed, refused, reason) = match side {
        Side::Ingress => (
            ("source", &rule.source),
            ("destination.services", &rule.destination),
            "a service can't be the destination of an ingress rule; use the policy's selector",
        ),
        Side::Egress => (
            ("destination", &rule.destination),
            ("source.services", &rule.source),
            "a service can't be the source of an egress rule; use the policy's selector",
        ),
    };
    if refused.1.services.is_some() {
        return Err(ApiError::of(refused.0, reason));
    }
    let (end, entity) = allowed;
    let Some(service) = &entity.services else {
        return Ok(());
    };
    if global && service.namespace.is_none() {
        let field = format!("{end}.services.namespace");
        return Err(ApiError::of(&field, "is missing; a global policy must name it"));
    }
    // The service's endpoints bring their own ports.
    for (list, ports) in [("ports", &entity.ports), ("notPorts", &entity.not_ports)] {
        if side == Side::Egress && !ports.is_empty() {
            let reason = "can't be together with services, which have ports of their own";
            return Err(ApiError::of(&format!("{end}.{list}"), reason));
        }
    }
    Ok(())
}
