//! How others than the admin reach a cluster: with the rights that are shipped.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::ApiCluster;

/// Filling a token Secret takes well under a second normally.
const PATIENCE: Duration = Duration::from_secs(30);

/// The token and authority that Kubernetes puts into a Secret of type
/// `kubernetes.io/service-account-token`, the first as text, the second as in
/// the Secret: base64 of PEM. Waits until both are there.
pub fn token_secret(cluster: &ApiCluster, namespace: &str, name: &str) -> (String, String) {
    let begun = Instant::now();
    let template = "go-template={{with .data}}{{with .token}}{{. | base64decode}}{{end}} \
                    {{with index . \"ca.crt\"}}{{.}}{{end}}{{end}}";
    let args = ["-n", namespace, "get", "secret", name, "--ignore-not-found", "-o", template];
    loop {
        let got = cluster.kubectl(&args);
        if let Some((token, ca)) = got.trim().split_once(' ') {
            return (token.to_owned(), ca.to_owned());
        }
        assert!(begun.elapsed() < PATIENCE, "the Secret {namespace}/{name} is not filled");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A kubeconfig as Calico's guide has it, of a service account's token Secret.
pub fn guide_kubeconfig(cluster: &ApiCluster, namespace: &str, secret: &str) -> String {
    let (token, ca) = token_secret(cluster, namespace, secret);
    let url = cluster.url();
    format!(
        "apiVersion: v1
kind: Config
users:
- name: tigera-federation-remote-cluster
  user:
    token: {token}
clusters:
- name: tigera-federation-remote-cluster
  cluster:
    certificate-authority-data: {ca}
    server: {url}
contexts:
- name: tigera-federation-remote-cluster-ctx
  context:
    cluster: tigera-federation-remote-cluster
    user: tigera-federation-remote-cluster
current-context: tigera-federation-remote-cluster-ctx
"
    )
}

/// Where [`account_kubeconfig`] puts its file.
pub fn account_path(cluster: &ApiCluster, namespace: &str, account: &str) -> PathBuf {
    cluster.dir().join(format!("account-{namespace}-{account}")).join("kubeconfig")
}

/// A kubeconfig file of a service account, with a token that lives for hours.
pub fn account_kubeconfig(cluster: &ApiCluster, namespace: &str, account: &str) -> PathBuf {
    let token = cluster.kubectl(&["-n", namespace, "create", "token", account, "--duration=8h"]);
    let path = account_path(cluster, namespace, account);
    let folder = path.parent().unwrap();
    fs::create_dir_all(folder).unwrap();
    let (token, url) = (token.trim(), cluster.url());
    // As kubelet gives them to a pod.
    fs::write(folder.join("token"), token).unwrap();
    fs::write(folder.join("ca.crt"), cluster.ca()).unwrap();
    fs::write(folder.join("namespace"), namespace).unwrap();
    let ca = folder.join("ca.crt");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {account}\n\
         clusters: [{{name: c, cluster: {{server: '{url}', certificate-authority: '{}'}}}}]\n\
         users: [{{name: {account}, user: {{token: {token}}}}}]\n\
         contexts: [{{name: {account}, context: {{cluster: c, user: {account}}}}}]\n",
        ca.display()
    );
    fs::write(&path, text).unwrap();
    path
}

/// A ClusterRole or another object as it is now; [`restore`] puts it back.
pub fn keep(cluster: &ApiCluster, kind: &str, name: &str) -> Value {
    let mut object = cluster.get(&[kind, name]);
    for field in ["resourceVersion", "uid", "creationTimestamp", "managedFields"] {
        object["metadata"].as_object_mut().unwrap().remove(field);
    }
    object
}

/// Puts back what [`keep`] has kept, whether it is still there or not.
pub fn restore(cluster: &ApiCluster, object: &Value) {
    cluster.apply(&object.to_string());
}

/// Takes a resource out of all rules of a ClusterRole.
pub fn narrow(cluster: &ApiCluster, role: &str, resource: &str) {
    let mut object = keep(cluster, "clusterrole", role);
    let rules = object["rules"].as_array_mut().unwrap();
    for rule in rules.iter_mut() {
        let resources = rule["resources"].as_array_mut().unwrap();
        resources.retain(|name| name != resource);
    }
    rules.retain(|rule| rule["resources"].as_array().is_some_and(|all| !all.is_empty()));
    cluster.apply(&object.to_string());
}
