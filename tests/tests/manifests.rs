//! What is deployed hangs together: the manifests, the configuration within
//! them, and the image.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tieline_config::Config;
use tieline_config::schema::DatastoreKind;

fn config_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config")
}

fn read(manifests: &str) -> Vec<Value> {
    let text = fs::read_to_string(config_folder().join("manifests").join(manifests)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

/// The objects of the files datastore's manifests.
fn objects() -> Vec<Value> {
    read("files.yaml")
}

fn object(kind: &str) -> Value {
    let mut found: Vec<Value> =
        objects().into_iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "objects of kind {kind}");
    found.remove(0)
}

fn pod() -> Value {
    object("DaemonSet")["spec"]["template"]["spec"].clone()
}

fn container() -> Value {
    let pod = pod();
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    containers[0].clone()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

fn deployed_config() -> Config {
    let map = object("ConfigMap");
    let data = map["data"].as_object().unwrap();
    let names: Vec<&String> = data.keys().collect();
    assert_eq!(names, ["config.toml"]);
    Config::parse(data["config.toml"].as_str().unwrap(), Path::new("config.toml")).unwrap()
}

/// Where volumes are mounted, by the volume's name.
fn mounts() -> Vec<(String, PathBuf)> {
    let container = container();
    let mounts = container["volumeMounts"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    mounts.map(|mount| (text(&mount["name"]), text(&mount["mountPath"]).into())).collect()
}

#[test]
fn objects_are_in_one_namespace_and_name_each_other_rightly() {
    for object in objects() {
        let namespace = if object["kind"] == "Namespace" {
            &object["metadata"]["name"]
        } else {
            &object["metadata"]["namespace"]
        };
        assert_eq!(namespace, "tieline-system", "{}", object["kind"]);
    }
    assert_eq!(pod()["serviceAccountName"], object("ServiceAccount")["metadata"]["name"]);
    let daemon_set = object("DaemonSet");
    assert_eq!(
        daemon_set["spec"]["selector"]["matchLabels"],
        daemon_set["spec"]["template"]["metadata"]["labels"]
    );
}

#[test]
fn every_mount_has_its_volume_and_none_lies_in_another() {
    let pod = pod();
    let volumes: Vec<&str> = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| volume["name"].as_str().unwrap())
        .collect();
    let mounts = mounts();
    assert_eq!(mounts.iter().map(|(name, _)| name).collect::<Vec<_>>(), volumes);
    for (name, path) in &mounts {
        for (other, outer) in &mounts {
            assert!(name == other || !path.starts_with(outer), "{name} lies in {other}");
        }
    }
    // A file that is mounted by subPath never changes.
    let container = container();
    let list = container["volumeMounts"].as_array().unwrap();
    assert!(list.iter().all(|mount| mount["subPath"].is_null()));
}

#[test]
fn the_daemon_finds_what_it_is_told_to_read() {
    let config = deployed_config();
    let mounts = mounts();
    let mounted = |path: &Path| mounts.iter().any(|(_, mount)| mount == path);
    assert!(mounted(&config.datastore.path));
    assert_eq!(config.datastore.remotes.keys().collect::<Vec<_>>(), ["db"]);
    assert!(config.datastore.remotes.values().all(|path| mounted(path)));
    assert!(mounted(config.admin.socket.parent().unwrap()));

    let container = container();
    let args = strings(&container["args"]);
    assert_eq!(args[..2], ["run", "--config"]);
    let file = Path::new(args[2]);
    assert!(mounted(file.parent().unwrap()));
    assert_eq!(file.file_name().unwrap(), "config.toml");
}

/// All nodes share the file, so it must not name one; and the pod's host name
/// need not be the node's.
#[test]
fn the_node_is_named_by_the_environment() {
    assert_eq!(deployed_config().node, None);
    let container = container();
    let env = container["env"].as_array().unwrap();
    let name = env.iter().find(|variable| variable["name"] == "NODE_NAME").unwrap();
    assert_eq!(name["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");
}

#[test]
fn the_probe_asks_the_socket_that_is_served() {
    let container = container();
    let command = strings(&container["readinessProbe"]["exec"]["command"]);
    assert_eq!(command[..3], ["tieline", "status", "--socket"]);
    assert_eq!(Path::new(command[3]), deployed_config().admin.socket);
    assert_eq!(pod()["hostNetwork"], true);
    assert_eq!(container["securityContext"]["privileged"], true);
}

#[test]
fn the_image_is_of_this_version_and_starts_as_the_manifest_does() {
    let container = container();
    let image = container["image"].as_str().unwrap();
    assert_eq!(image, format!("tieline:{}", env!("CARGO_PKG_VERSION")));
    let containerfile = fs::read_to_string(config_folder().join("image/Containerfile")).unwrap();
    assert!(containerfile.contains(&format!("-t {image} ")));
    let args = serde_json::to_string(&container["args"]).unwrap().replace(',', ", ");
    assert!(containerfile.contains(&format!("CMD {args}\n")), "{args}");
    let toolchain = format!("rust:{}-", env!("CARGO_PKG_RUST_VERSION"));
    assert!(containerfile.contains(&toolchain), "{toolchain}");
}

/// The daemon runs alike with either datastore, but for where clusters are read
/// from. Rights are tried out on a real API server: `kube_manifests.rs`.
#[test]
fn with_the_kubernetes_datastore_only_what_is_read_differs() {
    let kubernetes = read("kubernetes.yaml");
    let find = |kind: &str| kubernetes.iter().find(|object| object["kind"] == kind).unwrap();
    let mut expected = object("DaemonSet");
    let pod = &mut expected["spec"]["template"]["spec"];
    let other = |item: &Value| !item["name"].as_str().unwrap().starts_with("cluster-");
    pod["volumes"].as_array_mut().unwrap().retain(other);
    pod["containers"][0]["volumeMounts"].as_array_mut().unwrap().retain(other);
    assert_eq!(find("DaemonSet"), &expected);
    assert_eq!(find("Namespace"), &object("Namespace"));
    let config = find("ConfigMap")["data"]["config.toml"].as_str().unwrap();
    let config = Config::parse(config, Path::new("config.toml")).unwrap();
    assert_eq!(config.datastore.kind, DatastoreKind::Kubernetes);
    assert_eq!(config.admin.socket, deployed_config().admin.socket);
    // None: the pod's own account.
    assert_eq!(config.datastore.kubeconfig, None);

    // Its account is the one that has the rights, whatever namespace they are for.
    let account = serde_json::json!({
        "kind": "ServiceAccount", "name": find("ServiceAccount")["metadata"]["name"],
        "namespace": find("Namespace")["metadata"]["name"],
    });
    let all = kubernetes.iter().cloned().chain(read("secret-access.yaml"));
    let bindings: Vec<Value> =
        all.filter(|object| object["kind"].as_str().unwrap().ends_with("Binding")).collect();
    assert_eq!(bindings.len(), 4);
    for binding in bindings {
        assert_eq!(binding["subjects"], serde_json::json!([account]), "{binding}");
        assert_eq!(binding["roleRef"]["name"], binding["metadata"]["name"]);
    }
}
