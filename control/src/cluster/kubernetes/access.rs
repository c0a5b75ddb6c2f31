//! How an API server is reached: kubeconfigs, Secrets, the fields of a
//! RemoteClusterConfiguration.
//!
//! Whoever may write a Secret says what this node connects to, but not more:
//! programs (`exec`, `auth-provider`) are run only if the node's configuration
//! allows it, and the node's files are not read for a Secret, for they would
//! be sent to a server of its choosing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::ByteString;
use kube::config::{
    AuthInfo, Cluster, ExecInteractiveMode, KubeConfigOptions, Kubeconfig, KubeconfigError,
};
use kube::{Config, config::LoadDataError};
use serde_json::Value;
use sha1::{Digest, Sha1};

use crate::state::{InlineAccess, ObjectName};

/// The largest kubeconfig or certificate that is read, in bytes: what a Secret
/// may hold.
const LARGEST: u64 = 1 << 20;

/// How an API server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// As a pod of the cluster.
    InCluster,
    /// By a kubeconfig file.
    Kubeconfig(PathBuf),
    /// By the fields of a RemoteClusterConfiguration.
    Inline(Arc<InlineAccess>),
    /// By a Secret of the cluster that is reached `through`.
    Secret {
        /// The Secret.
        name: ObjectName,
        /// Where it is.
        through: Box<Access>,
    },
}

/// Why it is not known how to reach a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct AccessError {
    /// The Secret, file or field.
    pub place: String,
    /// What is wrong with it, and the remedy.
    pub reason: String,
}

/// What kubeconfigs may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    /// Run programs.
    pub(super) programs: bool,
    /// Have the node's files read.
    pub(super) files: bool,
}

fn error(place: impl Into<String>, reason: impl Into<String>) -> AccessError {
    AccessError { place: place.into(), reason: reason.into() }
}

impl AccessError {
    fn under(self, place: &str) -> Self {
        Self { place: format!("{place}: {}", self.place), reason: self.reason }
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InCluster => f.write_str("this pod's service account"),
            Self::Kubeconfig(path) => write!(f, "kubeconfig {}", path.display()),
            Self::Inline(inline) => match (&inline.kubeconfig_inline, &inline.kubeconfig) {
                (Some(_), _) => f.write_str("spec.kubeconfigInline"),
                (None, Some(path)) => write!(f, "kubeconfig {path}"),
                (None, None) => f.write_str(inline.endpoint.as_deref().unwrap_or_default()),
            },
            Self::Secret { name, .. } => write!(f, "Secret {name}"),
        }
    }
}

impl Access {
    /// The way as it is now. Files are read again each time; that of a Secret
    /// is none of its own.
    pub(super) async fn load(&self, exec_plugins: bool) -> Result<Config, AccessError> {
        let allowed = Allowed { programs: exec_plugins, files: true };
        match self {
            Self::InCluster => Config::incluster().map_err(|cause| {
                let reason = format!(
                    "{cause}; run the daemon as a pod with a service account, or set \
                     datastore.kubeconfig"
                );
                error("this pod's service account", reason)
            }),
            Self::Kubeconfig(path) => {
                let place = format!("kubeconfig {}", path.display());
                let text = read(path).map_err(|reason| error(&*place, reason))?;
                let config = kubeconfig(&text, path.parent(), allowed).await;
                config.map_err(|error| error.under(&place))
            }
            Self::Inline(inline) => of_fields(inline, allowed).await,
            Self::Secret { name, .. } => {
                Err(error(format!("Secret {name}"), "is not read yet; wait a moment"))
            }
        }
    }
}

/// Of what a client reads once: the server, whom to trust and who we are.
/// Tokens in files of their own it reads again by itself.
pub(super) fn fingerprint(config: &Config) -> super::Fingerprint {
    let file = |path: &PathBuf| fs::read(path).unwrap_or_default();
    let named = |path: &String| fs::read(path).unwrap_or_default();
    let user = &config.auth_info;
    let mut hash = Sha1::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    add(config.cluster_url.to_string().as_bytes());
    config.root_cert.iter().flatten().for_each(|certificate| add(certificate));
    config.root_cert_file.iter().map(file).for_each(|bytes| add(&bytes));
    [&user.client_certificate, &user.client_key]
        .into_iter()
        .flatten()
        .map(named)
        .for_each(|it| add(&it));
    add(&serde_json::to_vec(user).unwrap_or_default());
    let proxy = config.proxy_url.as_ref().map(ToString::to_string);
    let name = &config.tls_server_name;
    add(format!("{proxy:?} {name:?} {}", config.accept_invalid_certs).as_bytes());
    hash.finalize().into()
}

/// A file of ours, as far as it is not too large.
fn read(path: &Path) -> Result<String, String> {
    let unreadable = |cause: std::io::Error| format!("can't be read ({cause}); correct the path");
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > LARGEST {
        return Err(format!("has {size} bytes, the limit is {LARGEST}; name another file"));
    }
    fs::read_to_string(path).map_err(unreadable)
}

/// What of a Secret says how to reach a cluster: `data`, as the API has it.
pub(super) async fn of_secret(
    name: &ObjectName,
    data: &Value,
    exec_plugins: bool,
) -> Result<Config, AccessError> {
    let secret = format!("Secret {name}");
    let data: BTreeMap<String, ByteString> = if data.is_null() {
        BTreeMap::new()
    } else {
        serde_json::from_value(data.clone())
            .map_err(|_| error(&*secret, "holds no valid base64; create it again"))?
    };
    let text = |key: &str| match data.get(key) {
        None => Ok(None),
        Some(ByteString(bytes)) => match std::str::from_utf8(bytes) {
            Ok(text) if text.trim().is_empty() => Ok(None),
            Ok(text) => Ok(Some(text)),
            Err(_) => {
                Err(error(format!("{secret}: key {key}"), "is no text; create the Secret again"))
            }
        },
    };
    let key = |key: &str| format!("{secret}: key {key}");
    match text("datastoreType")?.map(str::trim) {
        Some("kubernetes") => {}
        Some("etcdv3") => return Err(error(key("datastoreType"), ETCD)),
        Some(other) => {
            let reason = format!("is {other:?}; write kubernetes");
            return Err(error(key("datastoreType"), reason));
        }
        None => return Err(error(key("datastoreType"), "is missing; set it to kubernetes")),
    }
    let missing = "is missing; put the remote cluster's kubeconfig there";
    let text = text("kubeconfig")?.ok_or_else(|| error(key("kubeconfig"), missing))?;
    let allowed = Allowed { programs: exec_plugins, files: false };
    kubeconfig(text, None, allowed).await.map_err(|error| error.under(&key("kubeconfig")))
}

/// Why clusters in etcd are not read.
pub(crate) const ETCD: &str = "is etcdv3, which Tieline does not read; give access to the \
                               cluster's Kubernetes API instead and set it to kubernetes";

async fn of_fields(inline: &InlineAccess, allowed: Allowed) -> Result<Config, AccessError> {
    if let Some(text) = &inline.kubeconfig_inline {
        let config = kubeconfig(&text.0, None, allowed).await;
        return config.map_err(|error| error.under("spec.kubeconfigInline"));
    }
    if let Some(path) = &inline.kubeconfig {
        let place = format!("spec.kubeconfig: {path}");
        let text = read(Path::new(path)).map_err(|reason| error(&*place, reason))?;
        let config = kubeconfig(&text, Path::new(path).parent(), allowed).await;
        return config.map_err(|error| error.under(&place));
    }
    let missing = "is missing; set it, spec.kubeconfigInline or spec.kubeconfig";
    let url = inline.endpoint.as_deref().ok_or_else(|| error("spec.k8sAPIEndpoint", missing))?;
    let mut config = Config::new(server("spec.k8sAPIEndpoint", url)?);
    for (field, path) in [
        ("spec.k8sCAFile", &inline.ca_file),
        ("spec.k8sCertFile", &inline.cert_file),
        ("spec.k8sKeyFile", &inline.key_file),
    ] {
        if let Some(path) = path {
            read(Path::new(path)).map_err(|reason| error(format!("{field}: {path}"), reason))?;
        }
    }
    config.root_cert_file = inline.ca_file.as_ref().map(PathBuf::from);
    config.accept_invalid_certs = inline.insecure;
    config.auth_info.client_certificate.clone_from(&inline.cert_file);
    config.auth_info.client_key.clone_from(&inline.key_file);
    config.auth_info.token = inline.token.as_ref().map(|token| token.0.trim().to_owned().into());
    Ok(config)
}

fn server(place: &str, url: &str) -> Result<hyper::Uri, AccessError> {
    let example = "write a URL such as https://10.0.0.1:6443";
    let parsed: hyper::Uri = url
        .parse()
        .map_err(|cause| error(place, format!("{url:?} is no URL ({cause}); {example}")))?;
    match parsed.scheme_str() {
        Some("https") if parsed.host().is_some() => Ok(parsed),
        Some("http") => {
            Err(error(place, "is http, which would tell everyone the credentials; use https"))
        }
        _ => Err(error(place, format!("{url:?} is no URL of an API server; {example}"))),
    }
}

/// Reads a kubeconfig; relative paths in it are relative to `base`.
async fn kubeconfig(
    text: &str,
    base: Option<&Path>,
    allowed: Allowed,
) -> Result<Config, AccessError> {
    // Its text holds secrets: errors must not show it.
    let options = serde_saphyr::options! { with_snippet: false };
    let mut config: Kubeconfig =
        serde_saphyr::from_str_with_options(text, options).map_err(|cause| {
            let words = cause.without_snippet().to_string();
            let words = words.lines().next().unwrap_or_default().to_owned();
            error("text", format!("is no kubeconfig ({words}); write it again"))
        })?;
    let context = config.current_context.clone().unwrap_or_default();
    if context.is_empty() {
        return Err(error("current-context", "is missing; name one of the contexts"));
    }
    let named = config.contexts.iter().find(|named| named.name == context);
    let Some(chosen) = named.and_then(|named| named.context.clone()) else {
        let reason = format!("there is no context {context:?}; name one that there is");
        return Err(error("current-context", reason));
    };
    let name = &chosen.cluster;
    let found = config.clusters.iter_mut().find(|named| named.name == *name);
    let Some(cluster) = found.and_then(|named| named.cluster.as_mut()) else {
        let reason = format!("there is no cluster {name:?}; name one that there is");
        return Err(error(format!("contexts[{context}].context.cluster"), reason));
    };
    let name = name.clone();
    let cluster_at = |field: &str| format!("clusters[{name}].cluster.{field}");
    let url = cluster.server.as_deref().filter(|url| !url.is_empty());
    let url = url.ok_or_else(|| error(cluster_at("server"), "is missing; set it"))?;
    server(&cluster_at("server"), url)?;
    files_of_cluster(cluster, base, allowed, &cluster_at)?;
    let user = chosen.user.clone().unwrap_or_default();
    let found = config.auth_infos.iter_mut().find(|named| named.name == user);
    let Some(info) = found.and_then(|named| named.auth_info.as_mut()) else {
        let reason = format!("there is no user {user:?}; name one that there is");
        return Err(error(format!("contexts[{context}].context.user"), reason));
    };
    let user_at = |field: &str| format!("users[{user}].user.{field}");
    check_user(info, base, allowed, &user_at)?;
    let options = KubeConfigOptions::default();
    let loaded = Config::from_custom_kubeconfig(config, &options);
    let config = loaded.await.map_err(|cause| unloadable(cause, &cluster_at))?;
    if let Some(proxy) = &config.proxy_url {
        let known = matches!(proxy.scheme_str(), Some("http" | "https" | "socks5"));
        if !known || proxy.host().is_none_or(str::is_empty) {
            // It may hold a password, so it is not repeated.
            let reason = "is no URL of a proxy; write one such as http://10.0.0.1:3128, https or \
                          socks5";
            return Err(error(cluster_at("proxy-url"), reason));
        }
    }
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        let reason = "holds no certificate; put one there, base64 of PEM";
        return Err(error(cluster_at("certificate-authority-data"), reason));
    }
    Ok(config)
}

/// Makes paths absolute, or refuses them.
fn file(
    path: &mut Option<String>,
    base: Option<&Path>,
    allowed: Allowed,
    place: String,
    instead: &str,
) -> Result<(), AccessError> {
    let Some(text) = path.as_mut().filter(|text| !text.is_empty()) else { return Ok(()) };
    if !allowed.files {
        let reason = format!("names a file of the node, which is not read for a Secret; {instead}");
        return Err(error(place, reason));
    }
    if let Some(base) = base {
        *text = base.join(&*text).display().to_string();
    }
    read(Path::new(text)).map_err(|reason| error(place, format!("{text} {reason}")))?;
    Ok(())
}

fn files_of_cluster(
    cluster: &mut Cluster,
    base: Option<&Path>,
    allowed: Allowed,
    at: &impl Fn(&str) -> String,
) -> Result<(), AccessError> {
    if cluster.certificate_authority_data.is_some() {
        return Ok(());
    }
    let instead = "use certificate-authority-data";
    let place = at("certificate-authority");
    file(&mut cluster.certificate_authority, base, allowed, place, instead)
}

fn check_user(
    user: &mut AuthInfo,
    base: Option<&Path>,
    allowed: Allowed,
    at: &impl Fn(&str) -> String,
) -> Result<(), AccessError> {
    let programs = [("exec", user.exec.is_some()), ("auth-provider", user.auth_provider.is_some())];
    if let Some((field, _)) = programs.iter().find(|(_, is)| *is && !allowed.programs) {
        let reason = "runs a program on this node to get credentials, which is off; use a service \
                      account's token, or set datastore.exec-plugins";
        return Err(error(at(field), reason));
    }
    if let Some(exec) = &mut user.exec {
        if exec.command.as_deref().unwrap_or_default().is_empty() {
            return Err(error(at("exec.command"), "is missing; name the program"));
        }
        if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
            let reason = "is Always, but there is nobody to ask; use a program that needs nobody, \
                          and write Never";
            return Err(error(at("exec.interactiveMode"), reason));
        }
        exec.interactive_mode = Some(ExecInteractiveMode::Never);
    }
    let instead = "put its content into the field of the same name with -data";
    if user.client_certificate_data.is_none() {
        let place = at("client-certificate");
        file(&mut user.client_certificate, base, allowed, place, instead)?;
    }
    if user.client_key_data.is_none() {
        file(&mut user.client_key, base, allowed, at("client-key"), instead)?;
    }
    if user.token.is_none() {
        let instead = "put its content into token";
        file(&mut user.token_file, base, allowed, at("tokenFile"), instead)?;
    }
    let certificate = user.client_certificate_data.is_some() || user.client_certificate.is_some();
    let key = user.client_key_data.is_some() || user.client_key.is_some();
    match (certificate, key) {
        (true, false) => {
            Err(error(at("client-key-data"), "is missing beside the certificate; set it"))
        }
        (false, true) => {
            Err(error(at("client-certificate-data"), "is missing beside the key; set it"))
        }
        _ => Ok(()),
    }
}

fn unloadable(cause: KubeconfigError, at: &impl Fn(&str) -> String) -> AccessError {
    let authority = at("certificate-authority-data");
    match cause {
        KubeconfigError::LoadCertificateAuthority(LoadDataError::DecodeBase64(_)) => {
            error(authority, "is no base64; put the certificate there, base64 of PEM")
        }
        KubeconfigError::LoadCertificateAuthority(cause) => error(authority, cause.to_string()),
        KubeconfigError::ParseCertificates(_) => {
            error(authority, "is no certificate; put one there, base64 of PEM")
        }
        KubeconfigError::ParseProxyUrl(cause) => {
            error(at("proxy-url"), format!("is no URL ({cause}); correct it"))
        }
        cause => error("text", cause.to_string()),
    }
}

#[cfg(test)]
mod tests;
