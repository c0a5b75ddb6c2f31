//! Which labels remote identities need before Felix, and which of them can
//! share a set: all that no selector in force can tell apart.
//!
//! The labels of a group are as few as match the same selectors as the
//! identities' own, with values that stand for all values that are the same to
//! every selector. They follow from an identity's labels and the selectors
//! alone. Identities that no selector matches need no set: to Felix they are
//! addresses that nothing is known of, which match the same rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::HashMap;
use tieline_dataplane::addr::Prefix;

use super::labels::{Class, Key};
use crate::policy::compile::matcher::Matcher;
use crate::policy::selector::Selector;
use crate::state::{ClusterId, Identity, IdentityKind, Labels};

/// What makes a pod of the API a pod to Felix. Kept whether a selector in force
/// asks for it or not, so that a policy that comes tomorrow does not take a
/// remote pod for something outside of all namespaces until the sets have
/// followed.
const ALWAYS: [&str; 2] =
    ["has(projectcalico.org/namespace)", "projectcalico.org/orchestrator == 'k8s'"];

/// The owner and the labels of some sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// The remote cluster.
    pub cluster: Arc<str>,
    /// Labels of the sets.
    pub labels: Arc<Labels>,
}

/// Remote identities, grouped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// Addresses by group.
    pub sets: BTreeMap<Group, BTreeSet<Prefix>>,
    /// Identities of which some label can't be written, so that a selector
    /// which asks for it does not match them: cluster, name and the label.
    pub inexpressible: Vec<Inexpressible>,
}

/// A label of an identity that the API does not take.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inexpressible {
    /// The remote cluster.
    pub cluster: Arc<str>,
    /// Kind and name of the first object that has it.
    pub object: String,
    /// The label's key.
    pub key: String,
    /// How many objects more have a value of this key that can't be written.
    pub more: usize,
}

/// The labels to write for identities with some classes of labels; none if no
/// selector matches them.
#[derive(Clone, Debug)]
struct Shape {
    labels: Option<Arc<Labels>>,
    /// Keys that had to be left out.
    left_out: Vec<usize>,
}

/// Groups identities for the selectors in force.
///
/// It remembers what it has worked out for label sets that it has seen.
#[derive(Debug, Default)]
pub struct Grouper {
    selectors: Vec<Selector>,
    shapes: HashMap<Vec<(usize, Class)>, Shape>,
}

impl Grouper {
    /// Groups the remote ones among `identities` for `selectors`.
    pub fn group<'i>(
        &mut self,
        selectors: &BTreeSet<Selector>,
        identities: impl IntoIterator<Item = &'i Identity>,
    ) -> Groups {
        let always = ALWAYS.iter().filter_map(|text| Selector::parse(text).ok());
        let always: Vec<Selector> = always.filter(|it| !selectors.contains(it)).collect();
        if !self.selectors.iter().eq(selectors.iter().chain(&always)) {
            self.selectors = selectors.iter().chain(&always).cloned().collect();
            self.shapes.clear();
        }
        let all = self.selectors.clone();
        let mut keys = Keys::new(&all);
        let references: Vec<&Selector> = all.iter().collect();
        let judge = Judge { matcher: Matcher::new(&references), in_force: selectors.len() as u32 };
        let mut groups = Groups::default();
        let mut missing: BTreeMap<(Arc<str>, usize), (String, usize)> = BTreeMap::new();
        let mut by_pointer: HashMap<*const Labels, Shape> = HashMap::default();
        for identity in identities {
            let ClusterId::Remote(cluster) = &identity.cluster else { continue };
            if identity.kind == IdentityKind::NetworkSet {
                continue;
            }
            let shape = by_pointer.entry(Arc::as_ptr(&identity.labels)).or_insert_with(|| {
                let classes = keys.classes(&identity.labels);
                let new = || judge.shape(&identity.labels, &classes, &keys);
                match self.shapes.get(&classes) {
                    Some(shape) => shape.clone(),
                    None => {
                        let shape = new();
                        self.shapes.insert(classes, shape.clone());
                        shape
                    }
                }
            });
            for key in &shape.left_out {
                let first = || (identity.described(), 0);
                let place = missing.entry((cluster.clone(), *key));
                place.and_modify(|(_, more)| *more += 1).or_insert_with(first);
            }
            if let Some(labels) = &shape.labels {
                let group = Group { cluster: cluster.clone(), labels: labels.clone() };
                groups.sets.entry(group).or_default().extend(&identity.nets);
            }
        }
        groups.inexpressible = missing
            .into_iter()
            .map(|((cluster, key), (object, more))| Inexpressible {
                cluster,
                object,
                key: keys.names[key].to_string(),
                more,
            })
            .collect();
        groups
    }
}

impl Identity {
    fn described(&self) -> String {
        match self.kind {
            IdentityKind::Host => format!("HostEndpoint {}", self.name),
            _ => format!("Pod {}", self.name),
        }
    }
}

/// The keys that some selector sees, ascending.
struct Keys<'a> {
    names: Vec<Arc<str>>,
    places: HashMap<Arc<str>, usize>,
    of: Vec<Key<'a>>,
}

impl<'a> Keys<'a> {
    fn new(selectors: &'a [Selector]) -> Self {
        let mut asked: BTreeMap<Arc<str>, Vec<_>> = BTreeMap::new();
        for question in selectors.iter().flat_map(Selector::questions) {
            asked.entry(question.key().clone()).or_default().push(question);
        }
        let names: Vec<Arc<str>> = asked.keys().cloned().collect();
        let places = names.iter().cloned().zip(0..).collect();
        let of = asked.into_iter().map(|(key, questions)| Key::new(&key, questions)).collect();
        Self { names, places, of }
    }

    /// The classes of the labels that are seen, without those that are as if
    /// they were absent.
    fn classes(&mut self, labels: &Labels) -> Vec<(usize, Class)> {
        let mut classes = Vec::new();
        for (key, value) in labels {
            let Some(place) = self.places.get(key.as_str()) else { continue };
            let class = self.of[*place].class(value);
            if class != Class::Absent {
                classes.push((*place, class));
            }
        }
        classes
    }
}

/// Knows which selectors match.
struct Judge {
    matcher: Matcher,
    /// The selectors below this place are in force.
    in_force: u32,
}

impl Judge {
    fn shape(&self, own: &Labels, classes: &[(usize, Class)], keys: &Keys<'_>) -> Shape {
        let mut labels = Labels::new();
        let mut left_out = Vec::new();
        for (place, class) in classes {
            match class {
                Class::Like(value) => {
                    labels.insert(keys.names[*place].to_string(), value.to_string());
                }
                Class::Inexpressible(_) => left_out.push(*place),
                Class::Absent => {}
            }
        }
        let truth = self.matcher.matching(own);
        let wanted = self.matcher.matching(&labels);
        // Without a label fewer selectors may match, but never others: those
        // might be what denies.
        let fewer = wanted.iter().all(|id| truth.binary_search(id).is_ok());
        if wanted == truth {
            left_out.clear();
        }
        let any = wanted.iter().any(|id| *id < self.in_force);
        if !any || !fewer {
            return Shape { labels: None, left_out };
        }
        self.simplify(&mut labels, &wanted, keys);
        Shape { labels: Some(Arc::new(labels)), left_out }
    }

    /// Takes away what makes no difference, so that identities which match the
    /// same have the same labels wherever that can be seen from each alone.
    fn simplify(&self, labels: &mut Labels, wanted: &[u32], keys: &Keys<'_>) {
        loop {
            let before = labels.len();
            for (name, key) in keys.names.iter().zip(&keys.of) {
                let Some(value) = labels.remove(&**name) else { continue };
                if self.matcher.matching(labels) == wanted {
                    continue;
                }
                if let Some(other) = key.unnamed.as_ref().filter(|other| ***other != *value) {
                    labels.insert(name.to_string(), other.to_string());
                    if self.matcher.matching(labels) == wanted {
                        continue;
                    }
                }
                labels.insert(name.to_string(), value);
            }
            if labels.len() == before {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tieline_dataplane::addr::Prefix;

    use super::*;
    use crate::state::ObjectName;

    fn pod(namespace: &str, name: &str, address: &str, labels: &[(&str, &str)]) -> Identity {
        let own =
            [("projectcalico.org/namespace", namespace), ("projectcalico.org/orchestrator", "k8s")];
        let labels = labels.iter().chain(&own).map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Identity {
            cluster: ClusterId::Remote("db".into()),
            kind: IdentityKind::Workload,
            name: ObjectName { namespace: namespace.into(), name: name.into() },
            node: "n".into(),
            labels: Arc::new(labels),
            nets: vec![Prefix::host(address.parse::<std::net::IpAddr>().unwrap().into())],
            ports: Vec::new(),
            profile: true,
        }
    }

    fn group(selectors: &[&str], identities: &[Identity]) -> Vec<(String, usize)> {
        let selectors = selectors.iter().map(|text| Selector::parse(text).unwrap()).collect();
        let groups = Grouper::default().group(&selectors, identities);
        groups.sets.iter().map(|(group, nets)| (written(&group.labels), nets.len())).collect()
    }

    fn written(labels: &Labels) -> String {
        let short = |key: &str| key.rsplit('/').next().unwrap_or_default().to_owned();
        let all: Vec<_> = labels.iter().map(|(k, v)| format!("{}={v}", short(k))).collect();
        all.join(",")
    }

    #[test]
    fn only_what_selectors_see_is_written_and_only_who_is_selected() {
        let pods = [
            pod("a", "1", "10.1.0.1", &[("app", "pg"), ("hash", "1")]),
            pod("a", "2", "10.1.0.2", &[("app", "pg"), ("hash", "2")]),
            pod("b", "3", "10.1.0.3", &[("app", "pg")]),
            pod("b", "4", "10.1.0.4", &[("app", "web")]),
        ];
        let sets = group(&["app == 'pg'"], &pods);
        assert_eq!(sets, [("app=pg,namespace=other,orchestrator=k8s".to_owned(), 3)]);
        let sets = group(&["app == 'pg' && projectcalico.org/namespace == 'b'"], &pods);
        assert_eq!(sets, [("app=pg,namespace=b,orchestrator=k8s".to_owned(), 1)]);
        assert_eq!(group(&[], &pods), []);
        assert_eq!(group(&["has(hash)"], &pods).len(), 1);
    }

    #[test]
    fn different_labels_that_match_the_same_are_one_group() {
        let pods = [
            pod("a", "1", "10.1.0.1", &[("app", "pg"), ("team", "t")]),
            pod("a", "2", "10.1.0.2", &[("app", "pg"), ("team", "u")]),
            pod("c", "3", "10.1.0.3", &[("app", "pg"), ("team", "t")]),
        ];
        // `team` only matters beside another app.
        let sets = group(&["app == 'pg'", "app == 'web' && team == 't'"], &pods);
        assert_eq!(sets, [("app=pg,namespace=other,orchestrator=k8s".to_owned(), 3)]);
    }

    #[test]
    fn what_must_not_be_there_is_written_where_it_is() {
        let pods = [
            pod("a", "1", "10.1.0.1", &[("app", "pg"), ("team", "t")]),
            pod("a", "2", "10.1.0.2", &[("app", "pg")]),
            pod("a", "3", "10.1.0.3", &[("app", "pg"), ("team", "u")]),
        ];
        let always = "app=pg,namespace=other,orchestrator=k8s";
        let sets = |selector: &str| group(&["app == 'pg'", selector], &pods);
        let with = |team: &str| format!("{always},team={team}");
        assert_eq!(sets("!has(team)"), [(always.to_owned(), 1), (with("other"), 2)]);
        assert_eq!(sets("!(has(team))"), sets("!has(team)"));
        assert_eq!(sets("team != 't'"), [(always.to_owned(), 2), (with("t"), 1)]);
        let not_in = sets("team not in {'t', 'u'}");
        assert_eq!(not_in, [(always.to_owned(), 1), (with("t"), 2)]);
        let not_like = sets("!(team starts with 't')");
        assert_eq!(not_like, [(always.to_owned(), 2), (with("t"), 1)]);
    }

    #[test]
    fn a_label_that_cannot_be_written_matches_less_never_more() {
        let long = "v".repeat(70);
        let pods = [pod("a", "1", "10.1.0.1", &[("app", "pg"), ("team", &long)])];
        let names = format!("team == '{long}'");
        let selectors = [Selector::parse("app == 'pg'").unwrap(), Selector::parse(&names).unwrap()];
        let groups = Grouper::default().group(&selectors.into(), &pods);
        assert_eq!(groups.sets.len(), 1);
        assert_eq!(groups.inexpressible[0].key, "team");
        // Leaving `team` out would make this match what it must not.
        let selectors = [
            Selector::parse(&names).unwrap(),
            Selector::parse(&format!("app == 'pg' && team != '{long}'")).unwrap(),
        ];
        let groups = Grouper::default().group(&selectors.into(), &pods);
        assert!(groups.sets.is_empty());
        assert_eq!(groups.inexpressible.len(), 1);
    }
}
