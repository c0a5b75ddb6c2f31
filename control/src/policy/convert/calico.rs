//! Calico's own policies.

use super::{
    NAMESPACE, Notes, OF_SERVICE_ACCOUNT, Placed, SERVICE_ACCOUNT, in_namespaces, is_shown,
    note_unused, set_families,
};
use crate::policy::api::{self, PolicyKind, PolicyType};
use crate::policy::model::{Entity, Policy, PolicySource, Rule};
use crate::policy::selector::Selector;
use crate::state::ObjectName;

pub(super) fn policy(
    kind: PolicyKind,
    name: &ObjectName,
    policy: &api::Policy,
    notes: &mut Notes<'_>,
) -> Option<Placed> {
    let source = match kind {
        PolicyKind::GlobalNetworkPolicy => PolicySource::GlobalNetworkPolicy,
        PolicyKind::StagedNetworkPolicy => PolicySource::StagedNetworkPolicy,
        PolicyKind::StagedGlobalNetworkPolicy => PolicySource::StagedGlobalNetworkPolicy,
        _ => PolicySource::NetworkPolicy,
    };
    if !is_shown(policy.staged_action, notes) || !applies_to_pods(policy, notes) {
        return None;
    }
    let namespace = (!name.namespace.is_empty()).then_some(name.namespace.as_str());
    let (ingress, egress) = directions(policy);
    note_unused("ingress", "types", !ingress && !policy.ingress.is_empty(), notes);
    note_unused("egress", "types", !egress && !policy.egress.is_empty(), notes);
    let mut rules = |direction: &str, rules: &[api::Rule]| -> Vec<Rule> {
        let places = rules.iter().enumerate();
        places
            .map(|(place, of)| {
                let at = format!("spec.{direction}[{place}]");
                Rule { origin: place, ..rule(of, namespace, &at, notes) }
            })
            .collect()
    };
    let converted = Policy {
        source,
        name: name.clone(),
        staged: matches!(
            source,
            PolicySource::StagedNetworkPolicy | PolicySource::StagedGlobalNetworkPolicy
        ),
        selector: main_selector(policy, namespace),
        ingress: ingress.then(|| rules("ingress", &policy.ingress)),
        egress: egress.then(|| rules("egress", &policy.egress)),
    };
    Some(Placed::new(policy.tier.clone(), policy.order, converted))
}

/// The rules of a policy for host endpoints alone, which only Felix enforces.
pub(super) fn host_rules(name: &ObjectName, policy: &api::Policy) -> Vec<Rule> {
    if !policy.do_not_track && !policy.pre_dnat {
        return Vec::new();
    }
    let namespace = (!name.namespace.is_empty()).then_some(name.namespace.as_str());
    let mut unsaid = Vec::new();
    let notes = &mut Notes { kind: PolicyKind::GlobalNetworkPolicy, name, conditions: &mut unsaid };
    let rules = policy.ingress.iter().chain(&policy.egress);
    rules.map(|of| rule(of, namespace, "spec", notes)).collect()
}

/// Policies before connection tracking or address translation are for host
/// endpoints alone.
fn applies_to_pods(policy: &api::Policy, notes: &mut Notes<'_>) -> bool {
    for (set, field) in [(policy.do_not_track, "doNotTrack"), (policy.pre_dnat, "preDNAT")] {
        if set {
            notes.warn(format!(
                "spec.{field}: the policy is for host endpoints, never for pods, and host \
                 endpoints are left to Felix: it is not applied here"
            ));
            return false;
        }
    }
    if policy.apply_on_forward {
        notes.warn(
            "spec.applyOnForward: concerns host endpoints, which are left to Felix; \
             the policy is applied to pods as any other",
        );
    }
    true
}

/// In which directions a policy applies: without `types`, as its rules say.
fn directions(policy: &api::Policy) -> (bool, bool) {
    if policy.types.is_empty() {
        let egress = !policy.egress.is_empty();
        return (!egress || !policy.ingress.is_empty(), egress);
    }
    let has = |wanted| policy.types.contains(&wanted);
    (has(PolicyType::Ingress), has(PolicyType::Egress))
}

fn main_selector(policy: &api::Policy, namespace: Option<&str>) -> Selector {
    let mut whole = policy.selector.clone().unwrap_or_default();
    if let Some(namespace) = namespace {
        whole = Selector::equals(NAMESPACE, namespace).and(&whole);
    }
    if let Some(namespaces) = &policy.namespace_selector {
        whole = whole.and(&in_namespaces(namespaces));
    }
    match &policy.service_account_selector {
        Some(accounts) if namespace.is_none() => in_accounts(&whole, accounts, policy),
        Some(accounts) => whole.and(&accounts.prefixed(OF_SERVICE_ACCOUNT)),
        None => whole,
    }
}

/// In a global policy `all()` among service accounts means "has one". Calico
/// replaces it in the text that also has the policy's own selector; a selector
/// of namespaces has replaced it there before.
fn in_accounts(whole: &Selector, accounts: &Selector, policy: &api::Policy) -> Selector {
    let any = Selector::has(SERVICE_ACCOUNT);
    let accounts = accounts.prefixed(OF_SERVICE_ACCOUNT).replacing(&any, &any);
    if policy.namespace_selector.is_none() && policy.selector.is_some() {
        return whole.replacing(&any, &any).and(&accounts);
    }
    whole.and(&accounts)
}

/// `at` is the rule's path, `namespace` that of a namespaced policy.
fn rule(rule: &api::Rule, namespace: Option<&str>, at: &str, notes: &mut Notes<'_>) -> Rule {
    if rule.http {
        notes.warn(format!(
            "{at}.http: requests are not looked into; the rule allows all requests of the \
             connections that its other conditions match"
        ));
    }
    let mut entity = |end: &str, of: &api::EntityRule| {
        if of.services.as_ref().is_some_and(|s| s.namespace.is_none() && namespace.is_some()) {
            notes.warn(format!("{at}.{end}.services: matches nothing; write the namespace"));
        }
        entity(of, namespace)
    };
    let mut converted = Rule {
        origin: 0,
        action: rule.action,
        v4: true,
        v6: true,
        protocol: rule.protocol,
        not_protocol: rule.not_protocol,
        icmp: rule.icmp,
        not_icmp: rule.not_icmp,
        source: entity("source", &rule.source),
        destination: entity("destination", &rule.destination),
    };
    set_families(&mut converted, rule.family);
    if !converted.v4 && !converted.v6 {
        notes.warn(format!(
            "{at}: matches nothing, because its protocol and its networks are of different IP \
             versions; correct one of them"
        ));
    }
    converted
}

/// The selectors of one end as one condition on the same endpoint. As soon as
/// any of them is there, those of a namespaced policy choose within its
/// namespace or within the namespaces that the rule selects.
fn entity(end: &api::EntityRule, namespace: Option<&str>) -> Entity {
    let namespaces = match &end.namespace_selector {
        Some(selector) => Some(in_namespaces(selector)),
        None => namespace.map(|namespace| Selector::equals(NAMESPACE, namespace)),
    };
    let accounts = end.service_accounts.as_ref().and_then(service_accounts);
    let own = match (accounts, &end.selector) {
        (Some(accounts), Some(selector)) => Some(accounts.and(selector)),
        (accounts, selector) => accounts.or_else(|| selector.clone()),
    };
    let scoped = end.not_selector.is_some() || end.namespace_selector.is_some();
    let positive = match (namespaces, own) {
        (Some(namespaces), Some(own)) => Some(namespaces.and(&own)),
        (Some(namespaces), None) => scoped.then_some(namespaces),
        (None, own) => own,
    };
    let (selector, not_selector) = match (positive, &end.not_selector) {
        (Some(positive), Some(not)) => (Some(positive.and(&not.negated())), None),
        (positive, not) => (positive, not.clone()),
    };
    Entity {
        nets: end.nets.clone(),
        not_nets: end.not_nets.clone(),
        selector,
        not_selector,
        ports: end.ports.clone(),
        not_ports: end.not_ports.clone(),
        service: end.services.as_ref().map(|service| ObjectName {
            namespace: service.namespace.clone().unwrap_or_default(),
            name: service.name.clone(),
        }),
    }
}

fn service_accounts(accounts: &api::ServiceAccounts) -> Option<Selector> {
    let labels = accounts.selector.as_ref().map(|selector| selector.prefixed(OF_SERVICE_ACCOUNT));
    let names =
        (!accounts.names.is_empty()).then(|| Selector::one_of(SERVICE_ACCOUNT, &accounts.names));
    match (labels, names) {
        (Some(labels), Some(names)) => Some(labels.and(&names)),
        (labels, names) => labels.or(names),
    }
}
