//! Real Kubernetes clusters, as far as their API goes: etcd, kube-apiserver with
//! RBAC and kube-controller-manager, without kubelets and schedulers.
//!
//! ```text
//! program   tests/kube, built once: all components in one program
//! cluster   ApiCluster: servers, what goes wrong with them, kubectl
//! calico    CustomResourceDefinitions of Calico's kinds, in both API groups
//! access    kubeconfigs of service accounts, and their rights narrowed
//! nodes     a lab's nodes and pods as objects
//! ```
//!
//! A cluster lives in a network namespace of its own, alone or on a lab's
//! underlay, where nodes reach it. All of it ends with its [`tieline_lab::Lab`].
//! Functions panic when something fails that a test relies on. Nothing here
//! knows of Tieline. Start reading at [`ApiCluster`].

pub mod access;
pub mod calico;
mod cluster;
pub mod nodes;
mod program;

pub use cluster::ApiCluster;
pub use program::program;
