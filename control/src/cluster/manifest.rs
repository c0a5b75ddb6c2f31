//! Reading a file of manifests: YAML or JSON, one document or many, lists
//! unfolded.
//!
//! [`read`] fails only when the file as a whole is unreadable. An object that
//! is broken comes out as [`Item::Broken`] beside the good ones, with as much
//! of its name as could be read, so that the caller can keep its last good
//! version.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Scope;
use super::field::FieldError;
use super::object::{Converted, Kind, convert, written_name};
use crate::state::ObjectName;

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 64 << 20;
/// How deep values may be nested.
const MAX_DEPTH: usize = 64;
/// How deep lists may hold lists.
const MAX_LIST_DEPTH: usize = 4;

/// Why a whole file can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MAX_FILE_BYTES`].
    #[error("has {bytes} bytes, the limit is {MAX_FILE_BYTES}; split the file")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// Not UTF-8.
    #[error("is no text from byte {at} on; write it as UTF-8")]
    NotText {
        /// How many bytes are good.
        at: usize,
    },
    /// Neither YAML nor JSON.
    #[error("is no valid YAML or JSON: {reason}; correct it there")]
    Syntax {
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A pipe, a device or the like.
    #[error("is no regular file; move it elsewhere")]
    NoFile,
    /// It can't be read from disk.
    #[error("can't be read: {reason}; check its permissions")]
    Unreadable {
        /// The system's words.
        reason: String,
    },
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// Objects that count, in the file's order.
    pub items: Vec<Item>,
    /// Objects of kinds that nothing reads: `apiVersion kind` and how many.
    pub ignored: BTreeMap<String, usize>,
}

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A sound one.
    Good {
        /// Number of its document, from 1; empty ones are not counted.
        document: usize,
        /// Its kind.
        kind: Kind,
        /// Its name as written.
        written: ObjectName,
        /// What has become of it.
        converted: Converted,
    },
    /// A broken one.
    Broken {
        /// Number of its document, from 1; empty ones are not counted.
        document: usize,
        /// `apiVersion kind` as written, as far as known.
        label: String,
        /// Its kind, when it could be read.
        kind: Option<Kind>,
        /// Its name as written, when it could be read.
        written: Option<ObjectName>,
        /// What is wrong.
        error: FieldError,
    },
}

/// Reads a file.
///
/// # Errors
/// When it is too large, no text, or no YAML or JSON.
pub fn read(bytes: &[u8], scope: Scope) -> Result<Manifest, ManifestError> {
    let mut manifest = Manifest::default();
    for (index, value) in documents(bytes)?.iter().enumerate() {
        manifest.add(index + 1, value, None, 0, scope);
    }
    Ok(manifest)
}

fn documents(bytes: &[u8]) -> Result<Vec<Value>, ManifestError> {
    if bytes.len() > MAX_FILE_BYTES {
        return Err(ManifestError::TooLarge { bytes: bytes.len() as u64 });
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ManifestError::NotText { at: error.valid_up_to() })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // JSON is YAML, but its own reader is several times faster.
    if text.trim_start().starts_with('{') {
        let values: Result<Vec<Value>, _> =
            serde_json::Deserializer::from_str(text).into_iter().collect();
        if let Ok(values) = values {
            return Ok(values);
        }
    }
    serde_saphyr::from_multiple_with_options(text, options(text.len())).map_err(|error| {
        let words = error.without_snippet().to_string();
        ManifestError::Syntax { reason: words.lines().next().unwrap_or_default().to_owned() }
    })
}

/// A file within the size limit may hold as many nodes and documents as fit
/// into it; what is limited is what grows out of proportion.
fn options(bytes: usize) -> serde_saphyr::Options {
    let events = bytes.max(1 << 20);
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_events: events,
            max_nodes: events,
            max_documents: events,
        },
        with_snippet: false,
        // A namespace may be called `y`, a label's value may be `no`.
        strict_booleans: true,
    }
}

impl Manifest {
    /// Adds a document, or an object of a list, whose kind then follows from
    /// the list's when it has none of its own.
    fn add(
        &mut self,
        document: usize,
        value: &Value,
        inherited: Option<(&str, &str)>,
        depth: usize,
        scope: Scope,
    ) {
        if value.is_null() {
            return;
        }
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let Some((api_version, kind)) = text("apiVersion").zip(text("kind")).or(inherited) else {
            let field = if text("apiVersion").is_some() { "kind" } else { "apiVersion" };
            let reason = if value.is_object() {
                "is missing; a manifest needs apiVersion and kind"
            } else {
                "is missing; a manifest is a map with apiVersion and kind"
            };
            let error = FieldError { field: field.into(), reason: reason.into() };
            self.broken(document, "object", None, None, error);
            return;
        };
        let label = format!("{api_version} {kind}");
        if let Some(items) = value.get("items").and_then(Value::as_array)
            && let Some(of) = kind.strip_suffix("List")
        {
            if depth == MAX_LIST_DEPTH {
                let reason = format!("holds lists more than {MAX_LIST_DEPTH} deep; unfold them");
                let error = FieldError { field: "items".into(), reason };
                self.broken(document, &label, None, None, error);
                return;
            }
            let inherited = (!of.is_empty()).then_some((api_version, of));
            for item in items {
                self.add(document, item, inherited, depth + 1, scope);
            }
            return;
        }
        match Kind::of(api_version, kind) {
            // An empty list of pods is no pod.
            None if kind.ends_with("List") && value.get("items").is_some_and(Value::is_null) => {}
            None => *self.ignored.entry(label).or_default() += 1,
            Some(Kind::Policy(_)) if scope == Scope::Remote => {}
            Some(kind) => self.object(document, kind, label, value),
        }
    }

    fn object(&mut self, document: usize, kind: Kind, label: String, value: &Value) {
        let named = written_name(kind, value);
        match (named, convert(kind, value)) {
            (Ok(written), Ok(converted)) => {
                self.items.push(Item::Good { document, kind, written, converted });
            }
            (Ok(written), Err(error)) => {
                self.broken(document, &label, Some(kind), Some(written), error);
            }
            (Err(error), _) => self.broken(document, &label, Some(kind), None, error),
        }
    }

    fn broken(
        &mut self,
        document: usize,
        label: &str,
        kind: Option<Kind>,
        written: Option<ObjectName>,
        error: FieldError,
    ) {
        let label = label.to_owned();
        self.items.push(Item::Broken { document, label, kind, written, error });
    }
}

#[cfg(test)]
mod tests;
