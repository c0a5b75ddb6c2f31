//! The steps of Calico's guide to federation, as they are typed there.
//!
//! In the remote cluster: a service account, what it may read, a token, and a
//! kubeconfig made of these. In the local cluster: a Secret with the kubeconfig,
//! leave to read it, and a RemoteClusterConfiguration.

use std::fs;

use super::{Federated, Member, manifest};
use crate::kube::access::guide_kubeconfig;

/// Where the Secrets lie: the guide leaves it to the reader.
pub const SECRETS: &str = "remote-clusters";
const ACCOUNT: &str = "tigera-federation-remote-cluster";

/// Joins `local` to `remote`, one way. `overlay` is `Enabled` or `Disabled`.
pub fn join(world: &Federated, local: &str, remote: &str, overlay: &str) {
    prepare_remote(world.member(remote));
    write_secret(world.member(local), world.member(remote));
    allow_secrets(world.member(local));
    write_configuration(world.member(local), remote, overlay);
}

/// "Create the service account and its rights in the remote cluster."
pub fn prepare_remote(remote: &Member) {
    remote.api.apply(&manifest("remote-access.yaml"));
}

/// "Create a Secret with the kubeconfig in the local cluster."
pub fn write_secret(local: &Member, remote: &Member) {
    let text = guide_kubeconfig(&remote.api, "kube-system", ACCOUNT);
    write_secret_with(local, remote.name, &text);
}

/// The same with any kubeconfig, over a Secret that may be there.
pub fn write_secret_with(local: &Member, remote: &str, kubeconfig: &str) {
    let path = local.api.dir().join(format!("kubeconfig-of-{remote}"));
    fs::write(&path, kubeconfig).unwrap();
    let file = format!("--from-file=kubeconfig={}", path.display());
    let create = [
        "create",
        "secret",
        "generic",
        &secret_name(remote),
        "-n",
        SECRETS,
        "--from-literal=datastoreType=kubernetes",
        &file,
    ];
    let there = local.api.kubectl(&["get", "namespace", SECRETS, "--ignore-not-found"]);
    if there.is_empty() {
        local.api.kubectl(&["create", "namespace", SECRETS]);
        local.api.kubectl(&create);
        return;
    }
    // `create` for one that is there: the way that kubectl's own help shows.
    let text = local.api.kubectl(&[&create[..], &["--dry-run=client", "-o", "yaml"]].concat());
    local.api.apply(&text);
}

/// "Create a Role and a RoleBinding that let it be read."
pub fn allow_secrets(local: &Member) {
    let args = ["-n", SECRETS, "apply", "-f", "-"];
    let role = manifest("secret-access.yaml");
    let output = local.api.kubectl_with(&local.api.admin(), &args, Some(&role));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// "Create a RemoteClusterConfiguration."
pub fn write_configuration(local: &Member, remote: &str, overlay: &str) {
    local.api.apply(&configuration(local, remote, overlay));
}

/// A RemoteClusterConfiguration as the guide has it.
pub fn configuration(local: &Member, remote: &str, overlay: &str) -> String {
    format!(
        "apiVersion: {}
kind: RemoteClusterConfiguration
metadata:
  name: {remote}
spec:
  clusterAccessSecret:
    name: {}
    namespace: {SECRETS}
    kind: Secret
  syncOptions:
    overlayRoutingMode: {overlay}
",
        local.rcc,
        secret_name(remote)
    )
}

/// "Switch to multi-cluster networking", or back: in one direction.
pub fn switch_overlay(local: &Member, remote: &str, overlay: &str) {
    let patch =
        format!("{{\"spec\":{{\"syncOptions\":{{\"overlayRoutingMode\":\"{overlay}\"}}}}}}");
    let plural = local.rcc_plural();
    local.api.kubectl(&["patch", &plural, remote, "--type=merge", "-p", &patch]);
}

/// Takes the RemoteClusterConfiguration away.
pub fn delete_configuration(local: &Member, remote: &str) {
    local.api.kubectl(&["delete", &local.rcc_plural(), remote]);
}

/// Name of the Secret for a remote.
pub fn secret_name(remote: &str) -> String {
    format!("{remote}-access")
}
