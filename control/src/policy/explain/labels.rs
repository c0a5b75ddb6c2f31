//! Conditions on labels in the user's words: the conversion has put namespaces
//! and service accounts into selectors, and here they come out again.

use super::story::Peer;
use crate::policy::selector::Selector;

const NAMESPACE: &str = "projectcalico.org/namespace";
const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";

/// What a condition is about.
enum About {
    /// Calico's own sign that something is a pod.
    Pod,
    /// The namespace by its name.
    Namespace,
    /// Labels of the namespace.
    NamespaceLabels,
    /// The service account by its name.
    Account,
    /// Labels of the service account.
    AccountLabels,
    /// Labels of the thing itself, or of several.
    Own,
}

fn about(condition: &Selector) -> About {
    let keys = condition.keys();
    let all = |prefix: &str| !keys.is_empty() && keys.iter().all(|key| key.starts_with(prefix));
    match keys {
        [key] if **key == *ORCHESTRATOR => About::Pod,
        [key] if **key == *NAMESPACE => About::Namespace,
        [key] if **key == *SERVICE_ACCOUNT => About::Account,
        _ if all("pcns.") => About::NamespaceLabels,
        _ if all("pcsa.") => About::AccountLabels,
        _ => About::Own,
    }
}

/// A selector as a user would say it of something that it chooses.
pub(super) fn positive(selector: &Selector) -> String {
    match spoken(selector) {
        (Some(own), rest) => format!("matches {own}{rest}"),
        (None, rest) => rest.trim_start().to_owned(),
    }
}

/// The same of something that it does not choose.
pub(super) fn negative(selector: &Selector) -> String {
    match spoken(selector) {
        (Some(own), rest) => format!("does not match {own}{rest}"),
        (None, rest) => format!("is not{rest}"),
    }
}

/// Conditions on own labels, and what else is asked, with a blank before it.
fn spoken(selector: &Selector) -> (Option<String>, String) {
    let (mut own, mut rest) = (Vec::new(), Vec::new());
    for condition in selector.conjuncts() {
        let text = condition.as_str();
        let without = |prefix: &str| bare(text).replace(prefix, "");
        match about(&condition) {
            About::Pod => {}
            About::Namespace => rest.push(namespace(text)),
            About::NamespaceLabels => {
                rest.push(format!("in namespaces with {}", without("pcns.")));
            }
            About::Account => rest.push(account(text)),
            About::AccountLabels => {
                rest.push(format!("whose service account matches {}", without("pcsa.")));
            }
            About::Own => own.push(condition),
        }
    }
    let own = match own.as_slice() {
        [] if rest.is_empty() => Some(bare(selector.as_str()).to_owned()),
        [] => None,
        [only] => Some(bare(only.as_str()).to_owned()),
        all => Some(all.iter().map(Selector::as_str).collect::<Vec<_>>().join(" && ")),
    };
    (own, if rest.is_empty() { String::new() } else { format!(" {}", rest.join(" and ")) })
}

/// How many conditions of a selector stand in the way.
pub(super) fn failing(selector: &Selector, peer: &Peer<'_>) -> usize {
    // Nothing that is not known has labels: that is further than one of them.
    let Some(owner) = peer.owners.first() else { return 2 };
    selector.conjuncts().iter().filter(|condition| !condition.matches(&owner.labels)).count()
}

fn namespace(text: &str) -> String {
    let operand = text.strip_prefix(NAMESPACE).and_then(|rest| rest.strip_prefix(" == "));
    match (operand, text.starts_with('!'), text.contains("has(")) {
        (Some(name), ..) => format!("in namespace {}", name.trim_matches('"')),
        (None, false, true) => "in any namespace".to_owned(),
        (None, true, true) => "in no namespace".to_owned(),
        _ => format!("with {text}"),
    }
}

fn account(text: &str) -> String {
    let rest = text.strip_prefix(SERVICE_ACCOUNT).unwrap_or_default();
    let set = rest.strip_prefix(" in {").and_then(|rest| rest.strip_suffix('}'));
    match set.or(rest.strip_prefix(" == ")) {
        Some(names) => {
            format!("with service account {}", names.replace('"', "").replace(", ", " or "))
        }
        None if text.starts_with("has(") => "with any service account".to_owned(),
        None if text.starts_with("!has(") => "with no service account".to_owned(),
        None => format!("with {text}"),
    }
}

/// What stands in the way of a selector: the labels of the conditions that
/// fail, as they are.
pub(super) fn has(selector: &Selector, peer: &Peer<'_>) -> String {
    let Some(owner) = peer.owners.first() else {
        return ": it is no endpoint and in no network set that is known".to_owned();
    };
    let conditions = selector.conjuncts();
    let failing = conditions.iter().filter(|condition| !condition.matches(&owner.labels));
    let failing: Vec<_> = failing.collect();
    if failing.iter().any(|condition| matches!(about(condition), About::Pod)) {
        return ": it is no pod".to_owned();
    }
    let mut keys: Vec<&str> = Vec::new();
    for key in failing.iter().flat_map(|condition| condition.keys()) {
        if !keys.contains(&&**key) {
            keys.push(key);
        }
    }
    let labels = keys.into_iter().map(|key| {
        let name = match (key, key.split_once('.')) {
            (NAMESPACE, _) => "its namespace".to_owned(),
            (SERVICE_ACCOUNT, _) => "its service account".to_owned(),
            (_, Some(("pcns", key))) => format!("its namespace's {key}"),
            (_, Some(("pcsa", key))) => format!("its service account's {key}"),
            _ => key.to_owned(),
        };
        match owner.labels.get(key) {
            Some(value) => format!("{name} is {value}"),
            None if name.starts_with("its") => format!("{name} is not set"),
            None => format!("no label {name}"),
        }
    });
    let labels: Vec<String> = labels.collect();
    if labels.is_empty() { String::new() } else { format!(" ({})", labels.join(", ")) }
}

/// The canonical form without the outermost parentheses.
fn bare(text: &str) -> &str {
    // Only a group begins with a parenthesis, and then all of it is inside.
    text.strip_prefix('(').and_then(|text| text.strip_suffix(')')).unwrap_or(text)
}
