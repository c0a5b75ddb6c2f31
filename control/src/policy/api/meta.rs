//! Names, namespaces and labels, and how the two storage groups spell them.

use serde_json::Value;

use super::fields::{Object, Result, quoted, string};
use super::{ApiError, CALICO_STORAGE, PolicyKind};
use crate::state::{Labels, ObjectName};

/// Where `crd.projectcalico.org/v1` keeps an object's real metadata, as JSON.
const ANNOTATION: &str = "projectcalico.org/metadata";

/// Longest name of an object, in bytes.
const MAX_NAME: usize = 253;

/// Longest part of a name between dots, in bytes.
const MAX_LABEL: usize = 63;

/// What counts of an object's metadata.
pub(super) struct Meta {
    /// The name that users see.
    pub(super) object: ObjectName,
    /// The labels that users see.
    pub(super) labels: Labels,
}

pub(super) fn read(kind: PolicyKind, value: &Value) -> Result<Meta> {
    let object = Object::open(value)?;
    let storage = check_kind(kind, object)?;
    let meta = object.required("metadata", |metadata| {
        let metadata = Object::open(metadata)?;
        let stored = if storage { stored_metadata(metadata)? } else { None };
        let stored = stored.as_ref().map(Object::open).transpose()?;
        let name = visible_name(kind, value, metadata, stored)?;
        check_name(kind, &name).map_err(|reason| ApiError::of("name", reason))?;
        Ok(Meta {
            object: ObjectName { namespace: namespace(kind, metadata)?, name },
            labels: labels(metadata, stored)?,
        })
    })?;
    Ok(meta)
}

/// Whether the object is stored as `crd.projectcalico.org/v1` does. Items of
/// lists may lack both fields; the annotation then tells.
fn check_kind(kind: PolicyKind, object: Object<'_>) -> Result<bool> {
    let mismatch = |wanted: &str, text: &str| {
        ApiError::new(format!("{} where {wanted} is read", quoted(text)))
    };
    let storage = object.optional("apiVersion", |value| {
        let version = string(value)?;
        if kind.api_versions().contains(&version) {
            return Ok(version == CALICO_STORAGE);
        }
        Err(mismatch(&kind.api_versions().join(" or "), version))
    })?;
    object.optional("kind", |value| {
        let text = string(value)?;
        if text == kind.kind() { Ok(()) } else { Err(mismatch(kind.kind(), text)) }
    })?;
    Ok(storage.unwrap_or(kind.api_versions().contains(&CALICO_STORAGE)))
}

fn stored_metadata(metadata: Object<'_>) -> Result<Option<Value>> {
    let annotations = metadata.texts("annotations")?;
    let Some((_, text)) = annotations.iter().find(|(key, _)| *key == ANNOTATION) else {
        return Ok(None);
    };
    serde_json::from_str(text).map(Some).map_err(|error| {
        ApiError::of(
            &format!("annotations[{ANNOTATION:?}]"),
            format!("not the JSON that Calico writes: {error}; write the object again"),
        )
    })
}

/// Policies may be stored under another name than the user's: the annotation
/// then has it; older versions only put `default.` before those of that tier.
fn visible_name(
    kind: PolicyKind,
    object: &Value,
    metadata: Object<'_>,
    stored: Option<Object<'_>>,
) -> Result<String> {
    let name = metadata.required("name", string)?;
    let renamed = matches!(
        kind,
        PolicyKind::NetworkPolicy
            | PolicyKind::GlobalNetworkPolicy
            | PolicyKind::StagedNetworkPolicy
            | PolicyKind::StagedGlobalNetworkPolicy
    );
    if !renamed {
        return Ok(name.to_owned());
    }
    if let Some(stored) = stored {
        let at = |error: ApiError| error.under(&format!("annotations[{ANNOTATION:?}]"));
        match stored.optional("name", string).map_err(at)? {
            Some(stored) if !stored.is_empty() => return Ok(stored.to_owned()),
            _ => {}
        }
    }
    let is_storage = object["apiVersion"] == CALICO_STORAGE;
    let tier = object["spec"]["tier"].as_str().unwrap_or_default();
    if is_storage && matches!(tier, "" | "default") {
        return Ok(name.strip_prefix("default.").unwrap_or(name).to_owned());
    }
    Ok(name.to_owned())
}

/// `kubectl` and `calicoctl` put an object without a namespace into `default`.
fn namespace(kind: PolicyKind, metadata: Object<'_>) -> Result<String> {
    let namespace = metadata.optional("namespace", string)?.unwrap_or_default();
    if !kind.namespaced() {
        return if namespace.is_empty() {
            Ok(String::new())
        } else {
            Err(ApiError::of(
                "namespace",
                format!("a {kind} has no namespace; remove it, or use the namespaced kind"),
            ))
        };
    }
    if namespace.is_empty() {
        return Ok("default".to_owned());
    }
    if is_label(namespace) {
        return Ok(namespace.to_owned());
    }
    let reason = format!("{} is no name of a namespace", quoted(namespace));
    Err(ApiError::of("namespace", reason))
}

/// Labels are kept in the annotation by most versions, beside it by others;
/// readers of Calico see both.
fn labels(metadata: Object<'_>, stored: Option<Object<'_>>) -> Result<Labels> {
    let mut labels: Labels = owned(metadata.texts("labels")?);
    if let Some(stored) = stored {
        let at = |error: ApiError| error.under(&format!("annotations[{ANNOTATION:?}]"));
        labels.extend(owned(stored.texts("labels").map_err(at)?));
    }
    Ok(labels)
}

fn owned(texts: Vec<(&str, &str)>) -> Labels {
    texts.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn check_name(kind: PolicyKind, name: &str) -> std::result::Result<(), String> {
    if name.len() > MAX_NAME {
        return Err(format!("{} is longer than {MAX_NAME} characters", quoted(name)));
    }
    if !is_subdomain(name) {
        return Err(format!(
            "{} is no name; use lower case letters, digits, '-' and '.' between them",
            quoted(name)
        ));
    }
    let dots = name.matches('.').count();
    match kind {
        PolicyKind::Tier if dots > 0 => {
            Err(format!("{} has a dot, which names of tiers can't have", quoted(name)))
        }
        PolicyKind::Tier if name.len() > MAX_LABEL => {
            Err(format!("{} is longer than {MAX_LABEL} characters", quoted(name)))
        }
        PolicyKind::NetworkPolicy | PolicyKind::StagedNetworkPolicy
            if name.starts_with("knp.default.") || name.starts_with("ossg.default.") =>
        {
            Ok(())
        }
        PolicyKind::NetworkPolicy
        | PolicyKind::StagedNetworkPolicy
        | PolicyKind::GlobalNetworkPolicy
        | PolicyKind::StagedGlobalNetworkPolicy
            if dots > 1 =>
        {
            Err(format!("{} has more than one dot; rename the policy", quoted(name)))
        }
        _ => Ok(()),
    }
}

/// Whether a text is a DNS label: lower case letters, digits, '-' inside.
pub(super) fn is_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && is_word(text)
}

/// Whether a text is DNS labels with dots between them.
pub(super) fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_NAME && text.split('.').all(is_word)
}

fn is_word(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether a text may be the key of a Kubernetes label.
pub(super) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
}

/// Whether a text may be the value of a Kubernetes label.
pub(super) fn is_label_value(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= MAX_LABEL
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}
