//! Where clusters are read from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::kubernetes::access::ETCD;
use crate::cluster::kubernetes::{Access, Options};
use crate::cluster::{FilesSource, KubernetesSource, Source};
use crate::state::{ClusterId, RemoteAccess, RemoteClusterConfiguration};

/// Where all clusters are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datastore {
    /// Directories of manifests.
    Files {
        /// The local cluster's.
        local: PathBuf,
        /// Remote clusters', by RemoteClusterConfiguration name.
        remotes: BTreeMap<String, PathBuf>,
    },
    /// API servers.
    Kubernetes {
        /// How the local cluster's is reached.
        access: Access,
        /// How all are read.
        options: Options,
    },
}

/// Where one cluster is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A directory of manifests.
    Directory(PathBuf),
    /// An API server.
    Api(Access),
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Api(access) => access.fmt(f),
        }
    }
}

impl Datastore {
    /// At the start, remote clusters are waited for this long, so that routes
    /// which the kernel still has from before are not taken away and put back.
    pub(super) fn start(&self) -> Duration {
        match self {
            Self::Files { .. } => Duration::from_secs(1),
            Self::Kubernetes { .. } => Duration::from_secs(5),
        }
    }

    /// The way to the local cluster.
    pub(super) fn local(&self) -> Way {
        match self {
            Self::Files { local, .. } => Way::Directory(local.clone()),
            Self::Kubernetes { access, .. } => Way::Api(access.clone()),
        }
    }

    /// The way to a remote cluster, or what is missing for it.
    pub(super) fn remote(
        &self,
        name: &str,
        configuration: &RemoteClusterConfiguration,
    ) -> Result<Way, String> {
        match self {
            Self::Files { remotes, .. } => {
                let directory = remotes.get(name).cloned().map(Way::Directory);
                directory.ok_or_else(|| {
                    format!(
                        "the configuration names no directory for it; add {name} to the remotes"
                    )
                })
            }
            Self::Kubernetes { access, .. } => match &configuration.access {
                RemoteAccess::Secret(secret) => Ok(Way::Api(Access::Secret {
                    name: secret.clone(),
                    through: Box::new(access.clone()),
                })),
                RemoteAccess::Inline(inline) => Ok(Way::Api(Access::Inline(inline.clone()))),
                RemoteAccess::Etcd => Err(format!("spec.datastoreType {ETCD}")),
                RemoteAccess::Unsaid => Err("it does not say how to reach the cluster; set \
                                             spec.clusterAccessSecret"
                    .to_owned()),
            },
        }
    }

    /// A source for a cluster.
    pub(super) fn open(&self, cluster: &ClusterId, way: &Way) -> Box<dyn Source> {
        let options = match self {
            Self::Files { .. } => Options::default(),
            Self::Kubernetes { options, .. } => options.clone(),
        };
        match way {
            Way::Directory(path) => Box::new(FilesSource::new(cluster.clone(), path)),
            Way::Api(access) => {
                Box::new(KubernetesSource::new(cluster.clone(), access.clone(), options))
            }
        }
    }
}
