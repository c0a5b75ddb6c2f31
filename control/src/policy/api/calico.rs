//! Calico's Tier, its policies and its network sets.

use serde_json::{Value, json};
use tieline_dataplane::addr::Prefix;

use super::fields::{Object, Result, choice, loose_net, order, quoted, string};
use super::meta::{Meta, is_subdomain};
use super::rule::{self, Rule, Side};
use super::{ApiError, CALICO_STORAGE, PolicyKind};
use crate::policy::model::TierAction;
use crate::policy::selector::Selector;
use crate::state::Labels;

/// Most rules of a policy in one direction.
const MAX_RULES: usize = 1024;

/// The fields of an object that has a `spec`.
pub(super) const TOP: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];

/// A Tier.
#[derive(Clone, Debug, PartialEq)]
pub struct Tier {
    /// `spec.order`; last when absent.
    pub order: Option<f64>,
    /// `spec.defaultAction`.
    pub default_action: Option<TierAction>,
}

/// The tiers that every cluster has: name, order, default action.
pub(crate) const BUILT_IN: [(&str, f64, TierAction); 3] = [
    ("kube-admin", 1_000.0, TierAction::Pass),
    ("default", 1_000_000.0, TierAction::Deny),
    ("kube-baseline", 10_000_000.0, TierAction::Pass),
];

/// A direction that a policy applies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyType {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

/// What a staged policy stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StagedAction {
    /// The policy as it would be.
    #[default]
    Set,
    /// The removal of the enforced policy of this name.
    Delete,
    /// A policy that a tool is learning.
    Learn,
    /// A policy that is to be ignored.
    Ignore,
}

pub(super) const STAGED_ACTIONS: &[(&str, StagedAction)] = &[
    ("Set", StagedAction::Set),
    ("Delete", StagedAction::Delete),
    ("Learn", StagedAction::Learn),
    ("Ignore", StagedAction::Ignore),
];

pub(super) const POLICY_TYPES: &[(&str, PolicyType)] =
    &[("Ingress", PolicyType::Ingress), ("Egress", PolicyType::Egress)];

/// A NetworkPolicy or GlobalNetworkPolicy, or a staged one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// `spec.tier`; `default` when absent.
    pub tier: String,
    /// `spec.order`; last when absent.
    pub order: Option<f64>,
    /// `spec.selector`.
    pub selector: Option<Selector>,
    /// `spec.namespaceSelector`, of global policies only.
    pub namespace_selector: Option<Selector>,
    /// `spec.serviceAccountSelector`.
    pub service_account_selector: Option<Selector>,
    /// `spec.types` as it is written; both where a stored object has none.
    pub types: Vec<PolicyType>,
    /// `spec.ingress`.
    pub ingress: Vec<Rule>,
    /// `spec.egress`.
    pub egress: Vec<Rule>,
    /// `spec.doNotTrack`, of global policies only.
    pub do_not_track: bool,
    /// `spec.preDNAT`, of global policies only.
    pub pre_dnat: bool,
    /// `spec.applyOnForward`, of global policies only.
    pub apply_on_forward: bool,
    /// `spec.stagedAction`, of staged policies only.
    pub staged_action: StagedAction,
}

/// A NetworkSet or GlobalNetworkSet.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSet {
    /// Its own labels (v1 storage group: from the metadata annotation).
    pub labels: Labels,
    /// `spec.nets`.
    pub nets: Vec<Prefix>,
}

/// The label that makes an object ours, one that is written for Felix; its value
/// is the name of the RemoteClusterConfiguration that the object is there for.
pub const OWNER: &str = "tieline/remote-cluster";

impl NetworkSet {
    /// Whether it is written for Felix. What it says is known better from where
    /// it comes from, so nothing follows from it.
    pub fn is_ours(&self) -> bool {
        self.labels.contains_key(OWNER)
    }
}

pub(super) fn tier(object: &Value, meta: &Meta) -> Result<Tier> {
    let actions = &[("Deny", TierAction::Deny), ("Pass", TierAction::Pass)];
    let read = |spec| {
        let spec = Object::closed(spec, &["order", "defaultAction"])?;
        let tier = Tier {
            order: spec.optional("order", order)?,
            default_action: spec.optional("defaultAction", |value| choice(value, actions))?,
        };
        check_built_in(&meta.object.name, &tier)?;
        Ok(tier)
    };
    let absent = Tier { order: None, default_action: None };
    let tier = Object::closed(object, TOP)?.optional("spec", read)?;
    match tier {
        Some(tier) => Ok(tier),
        None => check_built_in(&meta.object.name, &absent)
            .map(|()| absent)
            .map_err(|error| error.under("spec")),
    }
}

fn check_built_in(name: &str, tier: &Tier) -> Result<()> {
    let Some((_, order, action)) = BUILT_IN.into_iter().find(|(built_in, ..)| *built_in == name)
    else {
        return Ok(());
    };
    if tier.order != Some(order) {
        return Err(ApiError::of("order", format!("tier {name} must have order {order}")));
    }
    if tier.default_action.is_some_and(|other| other != action) {
        let reason = format!("tier {name} must have default action {action:?}");
        return Err(ApiError::of("defaultAction", reason));
    }
    Ok(())
}

/// A label that only Calico puts on what is in a namespace.
const NAMESPACE: &str = "projectcalico.org/namespace";

pub(super) fn network_set(object: &Value, meta: &Meta) -> Result<NetworkSet> {
    // Those that are written for Felix say it in Calico's place.
    let ours = meta.labels.contains_key(OWNER);
    if meta.labels.contains_key(NAMESPACE) && !ours {
        let reason = "is what Calico itself says of a namespace; remove it";
        return Err(ApiError::of(&format!("metadata.labels[{NAMESPACE:?}]"), reason));
    }
    let read = |spec| Object::closed(spec, &["nets"])?.list("nets", usize::MAX, loose_net);
    let nets = Object::closed(object, TOP)?.optional("spec", read)?.unwrap_or_default();
    Ok(NetworkSet { labels: meta.labels.clone(), nets })
}

pub(super) fn policy(kind: PolicyKind, object: &Value) -> Result<Policy> {
    let stored = object["apiVersion"] == CALICO_STORAGE;
    let read = |spec| {
        let spec = Object::closed(spec, &known_fields(kind))?;
        let mut policy = read_policy(kind, spec)?;
        check_policy(&policy)?;
        if policy.staged_action == StagedAction::Delete {
            check_deletion(&policy)?;
        }
        // Calico's API fills in the types as an object is written. One that is
        // stored without them was written past it, and counts both ways.
        if stored && policy.types.is_empty() {
            policy.types = vec![PolicyType::Ingress, PolicyType::Egress];
        }
        Ok(policy)
    };
    let fields = Object::closed(object, TOP)?;
    // Only the newer group's schema asks for a spec.
    if stored && !fields.has("spec") { read(&json!({})) } else { fields.required("spec", read) }
}

fn known_fields(kind: PolicyKind) -> Vec<&'static str> {
    let mut known = vec![
        "tier",
        "order",
        "selector",
        "serviceAccountSelector",
        "types",
        "ingress",
        "egress",
        "performanceHints",
    ];
    if !kind.namespaced() {
        known.extend(["namespaceSelector", "doNotTrack", "preDNAT", "applyOnForward"]);
    }
    if matches!(kind, PolicyKind::StagedNetworkPolicy | PolicyKind::StagedGlobalNetworkPolicy) {
        known.push("stagedAction");
    }
    known
}

fn read_policy(kind: PolicyKind, spec: Object<'_>) -> Result<Policy> {
    let global = !kind.namespaced();
    let rules =
        |key: &str, side: Side| spec.list(key, MAX_RULES, |value| rule::read(value, side, global));
    Ok(Policy {
        tier: spec.optional("tier", tier_name)?.unwrap_or_else(|| "default".to_owned()),
        order: spec.optional("order", order)?,
        selector: spec.selector("selector")?,
        namespace_selector: spec.selector("namespaceSelector")?,
        service_account_selector: spec.selector("serviceAccountSelector")?,
        types: types(spec)?,
        ingress: rules("ingress", Side::Ingress)?,
        egress: rules("egress", Side::Egress)?,
        do_not_track: spec.flag("doNotTrack")?,
        pre_dnat: spec.flag("preDNAT")?,
        apply_on_forward: spec.flag("applyOnForward")?,
        staged_action: spec
            .optional("stagedAction", |value| choice(value, STAGED_ACTIONS))?
            .unwrap_or_default(),
    })
}

fn tier_name(value: &Value) -> Result<String> {
    match string(value)? {
        "" => Ok("default".to_owned()),
        name if is_subdomain(name) => Ok(name.to_owned()),
        other => Err(ApiError::new(format!("{} is no name of a tier", quoted(other)))),
    }
}

fn types(spec: Object<'_>) -> Result<Vec<PolicyType>> {
    let types = spec.list("types", usize::MAX, |value| choice(value, POLICY_TYPES))?;
    let repeated = types.iter().enumerate().find(|(place, of)| types[..*place].contains(of));
    match repeated {
        None => Ok(types),
        Some((place, of)) => Err(ApiError::of(
            &format!("types[{place}]"),
            format!("{of:?} is there more than once; remove one"),
        )),
    }
}

fn check_policy(policy: &Policy) -> Result<()> {
    if policy.do_not_track && policy.pre_dnat {
        return Err(ApiError::of(
            "preDNAT",
            "can't be together with doNotTrack; write two policies",
        ));
    }
    if (policy.do_not_track || policy.pre_dnat) && !policy.apply_on_forward {
        return Err(ApiError::of("applyOnForward", "must be true with doNotTrack or preDNAT"));
    }
    if policy.pre_dnat && !policy.egress.is_empty() {
        return Err(ApiError::of(
            "egress",
            "a preDNAT policy can't have egress rules; remove them",
        ));
    }
    match policy.types.iter().position(|of| *of == PolicyType::Egress) {
        Some(place) if policy.pre_dnat => {
            let field = format!("types[{place}]");
            Err(ApiError::of(&field, "a preDNAT policy can't apply to egress; remove Egress"))
        }
        _ => Ok(()),
    }
}

fn check_deletion(policy: &Policy) -> Result<()> {
    let only_tier = Policy {
        tier: policy.tier.clone(),
        staged_action: StagedAction::Delete,
        ..Policy::default()
    };
    if *policy == only_tier {
        return Ok(());
    }
    let reason = "Delete goes with no other field than the tier; remove the others";
    Err(ApiError::of("stagedAction", reason))
}
