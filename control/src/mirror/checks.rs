//! What Felix can't do as Tieline does, and what keeps the two from working
//! side by side.

use serde_json::Value;

use super::group::Inexpressible;
use crate::derive::Derived;
use crate::policy::model::{Action, Entity, Policy, PolicySource, PortMatch};
use crate::state::{ClusterId, ClusterObjects, Condition, Identity, Severity};

/// Whether there is anything to write for, and if not, why.
pub fn applies(local: &ClusterObjects, information: Option<&Value>) -> Result<(), String> {
    let variant = information.and_then(|spec| spec["variant"].as_str()).unwrap_or_default();
    if !variant.is_empty() && !variant.eq_ignore_ascii_case("calico") {
        return Err(format!(
            "ClusterInformation default: variant {variant} has a federation of its own, so remote \
             identities are left to it"
        ));
    }
    if information.is_none() && local.felix.is_empty() {
        return Err("no Felix is here: there is neither a ClusterInformation nor a \
                    FelixConfiguration"
            .to_owned());
    }
    Ok(())
}

/// Whether Felix and the XDP program get along.
pub fn xdp(local: &ClusterObjects, node: &str) -> Option<Condition> {
    let own = format!("node.{node}");
    let (name, felix) = [own.as_str(), "default"]
        .into_iter()
        .find_map(|name| {
            local
                .felix
                .get(name)
                .filter(|it| it.xdp_enabled.is_some())
                .map(|it| (name, it.xdp_enabled))
        })
        .unwrap_or(("default", None));
    (!local.felix.is_empty() && felix != Some(false)).then(|| Condition {
        severity: Severity::Warning,
        cluster: ClusterId::Local,
        object: format!("FelixConfiguration {name}"),
        message:
            "spec.xdpEnabled is not false: beside the XDP program of Tieline, Felix then takes \
                  seconds to apply a policy; set it to false"
                .to_owned(),
    })
}

/// Rules that Felix can't enforce towards remote endpoints: a port's name is
/// known of pods and host endpoints only, never of a set.
pub fn named_ports(derived: &Derived) -> Vec<Condition> {
    let remote: Vec<&Identity> = derived
        .identities()
        .iter()
        .filter(|it| it.cluster != ClusterId::Local && !it.ports.is_empty())
        .collect();
    if remote.is_empty() {
        return Vec::new();
    }
    let policies = derived.policies.tiers.iter().flat_map(|tier| tier.policies.values());
    let policies = policies.filter(|policy| !policy.staged);
    policies.filter_map(|policy| named_port(policy, &remote)).collect()
}

fn named_port(policy: &Policy, remote: &[&Identity]) -> Option<Condition> {
    let egress = policy.egress.as_ref()?;
    let mut rules = egress.iter().filter(|rule| rule.action != Action::Log);
    let (place, name) = rules.find_map(|rule| {
        let peer = &rule.destination;
        let names = peer.ports.iter().chain(&peer.not_ports).filter_map(|port| match port {
            PortMatch::Named(name) => Some(name),
            PortMatch::Range(_) => None,
        });
        let names: Vec<_> = names.collect();
        let fits = |it: &&&Identity| {
            names.iter().any(|name| it.ports.iter().any(|port| port.name == **name))
                && selects(peer, it)
        };
        let found = !names.is_empty() && remote.iter().any(|it| fits(&it));
        found.then(|| (rule.origin + 1, names[0].clone()))
    })?;
    let kind = match policy.source {
        PolicySource::KubernetesNetworkPolicy => "KubernetesNetworkPolicy",
        PolicySource::GlobalNetworkPolicy => "GlobalNetworkPolicy",
        PolicySource::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        _ => "NetworkPolicy",
    };
    Some(Condition {
        severity: Severity::Warning,
        cluster: ClusterId::Local,
        object: format!("{kind} {}", policy.name),
        message: format!(
            "egress rule {place}: Felix knows the port {name:?} of no remote endpoint, so there \
             the rule does not match; write the port's number"
        ),
    })
}

fn selects(peer: &Entity, identity: &Identity) -> bool {
    peer.selector.as_ref().is_none_or(|selector| selector.matches(&identity.labels))
        && !peer.not_selector.as_ref().is_some_and(|it| it.matches(&identity.labels))
}

impl Inexpressible {
    /// As the operator is told.
    pub fn condition(&self) -> Condition {
        let more = match self.more {
            0 => String::new(),
            more => format!(" and {more} more objects"),
        };
        Condition {
            severity: Severity::Warning,
            cluster: ClusterId::Remote(self.cluster.clone()),
            object: self.object.clone(),
            message: format!(
                "label {}: the value{more} can't be a label of a GlobalNetworkSet (63 characters \
                 at most), so rules that ask for it do not match in Felix; shorten it",
                self.key
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::state::FelixConfiguration;

    #[test]
    fn only_where_felix_is_and_no_other_federation() {
        let mut local = ClusterObjects::default();
        assert!(applies(&local, None).is_err());
        assert!(applies(&local, Some(&json!({"calicoVersion": "v3.32.1"}))).is_ok());
        assert!(applies(&local, Some(&json!({"variant": "Calico"}))).is_ok());
        assert!(applies(&local, Some(&json!({"variant": "TigeraSecureEnterprise"}))).is_err());
        local.felix.insert("default".into(), Default::default());
        assert!(applies(&local, None).is_ok());
        let felix = |on| FelixConfiguration { xdp_enabled: on, ..Default::default() };
        assert!(xdp(&local, "a").is_some());
        local.felix.insert("node.a".into(), felix(Some(false)).into());
        assert!(xdp(&local, "a").is_none());
        local.felix.insert("default".into(), felix(Some(false)).into());
        local.felix.insert("node.a".into(), felix(Some(true)).into());
        assert_eq!(xdp(&local, "a").unwrap().object, "FelixConfiguration node.a");
    }
}
