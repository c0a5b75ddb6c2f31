//! Sets and pools as objects of the API, in both groups that Calico stores in.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use tieline_dataplane::addr::Prefix;

use super::labels::is_value;
use super::pools::Pool;
use super::sets::Set;
use crate::policy::api::OWNER;
use crate::state::Labels;

/// Every remote cluster that a pool is there for.
const OWNERS: &str = "tieline/remote-clusters";
/// Where Calico's storage group keeps labels.
const METADATA: &str = "projectcalico.org/metadata";
/// What no label of a set has: the set is not as we write it.
const CHANGED: &str = "\u{0}changed by others";

/// The group that Calico stores its objects in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// `crd.projectcalico.org/v1`.
    Crd,
    /// `projectcalico.org/v3`.
    V3,
}

/// Kinds that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Written {
    /// GlobalNetworkSet.
    Set,
    /// IPPool.
    Pool,
}

impl Storage {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Crd, Self::V3];

    /// The one of this name.
    pub fn of(api_version: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.api_version() == api_version)
    }

    /// `apiVersion` of its objects.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Crd => "crd.projectcalico.org/v1",
            Self::V3 => "projectcalico.org/v3",
        }
    }

    /// A kind of Calico's in this group.
    pub fn resource(self, kind: &str) -> ApiResource {
        let (group, version) = match self {
            Self::Crd => ("crd.projectcalico.org", "v1"),
            Self::V3 => ("projectcalico.org", "v3"),
        };
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: self.api_version().to_owned(),
            kind: kind.to_owned(),
            plural: format!("{}s", kind.to_lowercase()),
        }
    }
}

impl Written {
    /// `kind` of its objects.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Set => "GlobalNetworkSet",
            Self::Pool => "IPPool",
        }
    }
}

/// The value of the owner's label for a remote cluster.
pub fn owner(cluster: &str) -> Arc<str> {
    if is_value(cluster) {
        return cluster.into();
    }
    let hash = Sha1::digest(cluster);
    let hash: String = hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let start: String = cluster.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    format!("{start}-{hash}").into()
}

/// A set as it is applied.
pub fn set(storage: Storage, name: &str, set: &Set) -> Value {
    let mut labels = (*set.labels).clone();
    labels.insert(OWNER.to_owned(), set.cluster.to_string());
    let nets: Vec<String> = set.nets.iter().map(ToString::to_string).collect();
    let mut object = json!({
        "apiVersion": storage.api_version(),
        "kind": Written::Set.kind(),
        "metadata": {"name": name, "labels": labels},
        "spec": {"nets": nets},
    });
    if storage == Storage::Crd {
        let metadata = json!({"labels": labels}).to_string();
        object["metadata"]["annotations"] = json!({METADATA: metadata});
    }
    object
}

/// A pool as it is applied. It gives out no address, and its range is nothing
/// that this cluster's nodes should tell their BGP peers about.
pub fn pool(storage: Storage, name: &str, pool: &Pool) -> Value {
    let length = pool.cidr.len128() - if pool.cidr.is_v4() { 96 } else { 0 };
    let usual = if pool.cidr.is_v4() { 26 } else { 122 };
    let owners: Vec<&str> = pool.clusters.iter().map(|cluster| &**cluster).collect();
    let first = owners.first().copied().unwrap_or_default();
    json!({
        "apiVersion": storage.api_version(),
        "kind": Written::Pool.kind(),
        "metadata": {
            "name": name,
            "labels": {OWNER: &*owner(first)},
            "annotations": {OWNERS: owners.join(",")},
        },
        "spec": {
            "cidr": pool.cidr.to_string(),
            "blockSize": length.max(usual),
            "disabled": true,
            "disableBGPExport": true,
            "ipipMode": "Never",
            "vxlanMode": "Never",
            "natOutgoing": false,
            "nodeSelector": "!all()",
        },
    })
}

/// The labels of an object but those that we want: somebody has added them.
pub fn added_labels(object: &DynamicObject, wanted: &Value) -> Vec<String> {
    let wanted = &wanted["metadata"]["labels"];
    let labels = object.metadata.labels.iter().flatten();
    labels.map(|(key, _)| key.clone()).filter(|key| wanted.get(key).is_none()).collect()
}

/// The set that an object is. One that is not as we would have written it has a
/// label that no set is to have, so that it is written again.
pub fn read_set(storage: Storage, object: &DynamicObject) -> Option<Set> {
    let mut labels: Labels = object.metadata.labels.clone()?;
    let cluster: Arc<str> = labels.remove(OWNER)?.into();
    let texts = object.data.pointer("/spec/nets").and_then(Value::as_array);
    let nets: BTreeSet<Prefix> =
        texts.into_iter().flatten().filter_map(|text| text.as_str()?.parse().ok()).collect();
    let mut read = Set { cluster, labels: Arc::new(labels), nets };
    let name = object.metadata.name.as_deref().unwrap_or_default();
    if !is_as_written(object, &set(storage, name, &read)) {
        Arc::make_mut(&mut read.labels).insert(CHANGED.to_owned(), String::new());
    }
    Some(read)
}

/// The pool that an object is; `Err` if it is not as we would have written it.
pub fn read_pool(storage: Storage, object: &DynamicObject) -> Option<Result<Pool, ()>> {
    let owned = object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OWNER));
    if !owned {
        return None;
    }
    let read = || {
        let cidr = object.data.pointer("/spec/cidr")?.as_str()?.parse().ok()?;
        let owners = object.metadata.annotations.as_ref()?.get(OWNERS)?;
        let clusters = owners.split(',').map(Arc::from).collect();
        let read = Pool { cidr, clusters };
        let name = object.metadata.name.as_deref().unwrap_or_default();
        is_as_written(object, &pool(storage, name, &read)).then_some(read)
    };
    Some(read().ok_or(()))
}

/// Whether an object has what we write, and of what matters nothing else.
fn is_as_written(object: &DynamicObject, written: &Value) -> bool {
    let within = |wanted: &Value, present: &Value| {
        wanted
            .as_object()
            .is_none_or(|wanted| wanted.iter().all(|(key, value)| present.get(key) == Some(value)))
    };
    let annotations = json!(object.metadata.annotations);
    within(&written["metadata"]["annotations"], &annotations)
        && within(&written["spec"], object.data.get("spec").unwrap_or(&Value::Null))
}

/// Whether an object is one that we have written, whatever has become of it.
pub fn is_ours(object: &DynamicObject) -> bool {
    object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OWNER))
        || object.metadata.managed_fields.iter().flatten().any(|entry| {
            entry.manager.as_deref() == Some(super::api::MANAGER)
                && entry.operation.as_deref() == Some("Apply")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: &Value) -> DynamicObject {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn example() -> Set {
        Set {
            cluster: "db".into(),
            labels: Arc::new([("app".to_owned(), "pg".to_owned())].into()),
            nets: ["10.2.0.1/32", "10.2.0.2/32"].map(|net| net.parse().unwrap()).into(),
        }
    }

    #[test]
    fn a_set_is_read_as_it_is_written() {
        for storage in Storage::ALL {
            let written = set(storage, "tieline-db-0", &example());
            assert_eq!(read_set(storage, &object(&written)), Some(example()));
            assert_eq!(written["metadata"]["labels"]["tieline/remote-cluster"], "db");
        }
        let written = set(Storage::Crd, "tieline-db-0", &example());
        let metadata = &written["metadata"]["annotations"]["projectcalico.org/metadata"];
        let labels = r#"{"labels":{"app":"pg","tieline/remote-cluster":"db"}}"#;
        assert_eq!(metadata, labels);
    }

    #[test]
    fn what_others_have_changed_is_no_set_of_ours() {
        let mut changed = set(Storage::Crd, "s", &example());
        changed["metadata"]["annotations"]["projectcalico.org/metadata"] = "{}".into();
        assert_ne!(read_set(Storage::Crd, &object(&changed)), Some(example()));
        let mut more = set(Storage::V3, "s", &example());
        more["metadata"]["labels"]["team"] = "t".into();
        assert_ne!(read_set(Storage::V3, &object(&more)), Some(example()));
        let wanted = set(Storage::V3, "s", &example());
        assert_eq!(added_labels(&object(&more), &wanted), ["team"]);
        let mut foreign = set(Storage::V3, "s", &example());
        foreign["metadata"]["labels"] = json!({"app": "pg"});
        assert_eq!(read_set(Storage::V3, &object(&foreign)), None);
        assert!(!is_ours(&object(&foreign)));
    }

    #[test]
    fn a_pool_gives_out_nothing() {
        let example = Pool {
            cidr: "10.2.0.0/16".parse().unwrap(),
            clusters: ["a".into(), "b".into()].into(),
        };
        let written = pool(Storage::V3, "p", &example);
        assert_eq!(written["spec"]["disabled"], true);
        assert_eq!(written["spec"]["blockSize"], 26);
        assert_eq!(read_pool(Storage::V3, &object(&written)), Some(Ok(example.clone())));
        let mut enabled = written.clone();
        enabled["spec"]["disabled"] = false.into();
        assert_eq!(read_pool(Storage::V3, &object(&enabled)), Some(Err(())));
        let small = Pool { cidr: "10.2.0.0/28".parse().unwrap(), ..example };
        assert_eq!(pool(Storage::V3, "p", &small)["spec"]["blockSize"], 28);
    }

    #[test]
    fn a_cluster_with_a_long_name_owns_too() {
        assert_eq!(&*owner("db"), "db");
        let long = owner(&"c".repeat(200));
        assert!(is_value(&long), "{long}");
        assert_ne!(long, owner(&"c".repeat(201)));
    }
}
