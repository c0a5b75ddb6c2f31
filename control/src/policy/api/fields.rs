//! Reading JSON objects so that an error knows its path.
//!
//! A reader of a value reports what is wrong with it without a path; each
//! object and list on the way out puts its own step before it. A good object
//! costs nothing for that.

use std::borrow::Cow;

use serde_json::{Map, Value};
use tieline_dataplane::addr::{Addr, Prefix};

use super::ApiError;
use crate::policy::selector::Selector;

pub(super) type Result<T> = std::result::Result<T, ApiError>;

/// Longest selector that admission lets through, in characters.
const MAX_SELECTOR: usize = 1024;

/// Most of a value that a message repeats, in bytes.
const MAX_QUOTED: usize = 60;

impl ApiError {
    /// Something wrong with the value that is being read.
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { field: String::new(), reason: reason.into() }
    }

    /// Something wrong with a field of the object that is being read.
    pub(super) fn of(field: &str, reason: impl Into<String>) -> Self {
        Self { field: field.to_owned(), reason: reason.into() }
    }

    /// The same, seen from one step further out.
    pub(super) fn under(mut self, step: &str) -> Self {
        let dot = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        self.field = format!("{step}{dot}{}", self.field);
        self
    }
}

/// Part of a text, fit for a message.
pub(super) fn quoted(text: &str) -> String {
    let end = (0..=MAX_QUOTED.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    let start = &text[..end.unwrap_or(0)];
    if start.len() < text.len() { format!("{start:?}...") } else { format!("{start:?}") }
}

/// A value for a message.
pub(super) fn describe(value: &Value) -> Cow<'static, str> {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => format!("{value}").into(),
        Value::Number(value) => format!("the number {value}").into(),
        Value::String(value) => format!("the text {}", quoted(value)).into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

fn wrong_type(wanted: &str, value: &Value) -> ApiError {
    ApiError::new(format!("must be {wanted}, is {}", describe(value)))
}

/// A JSON object.
#[derive(Clone, Copy)]
pub(super) struct Object<'a>(&'a Map<String, Value>);

impl<'a> Object<'a> {
    /// An object in which only the fields that are asked for count.
    pub(super) fn open(value: &'a Value) -> Result<Self> {
        value.as_object().map(Self).ok_or_else(|| wrong_type("an object", value))
    }

    /// An object that may have no other fields than these.
    pub(super) fn closed(value: &'a Value, known: &[&str]) -> Result<Self> {
        let object = Self::open(value)?;
        match object.0.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(object),
            Some(unknown) => {
                let field = if unknown.len() > MAX_QUOTED { "" } else { unknown };
                let known = known.join(", ");
                Err(ApiError::of(
                    field,
                    format!(
                        "unknown field {}: without it the object would mean something else; \
                         correct or remove it (known here: {known})",
                        quoted(unknown)
                    ),
                ))
            }
        }
    }

    /// Whether the field is there and not null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| !value.is_null())
    }

    /// Number of fields that are there and not null.
    pub(super) fn count(&self) -> usize {
        self.0.values().filter(|value| !value.is_null()).count()
    }

    /// A field that may be absent or null.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        read: impl FnOnce(&'a Value) -> Result<T>,
    ) -> Result<Option<T>> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).map_err(|error| error.under(key)),
        }
    }

    /// A field that must be there.
    pub(super) fn required<T>(
        &self,
        key: &str,
        read: impl FnOnce(&'a Value) -> Result<T>,
    ) -> Result<T> {
        self.optional(key, read)?.ok_or_else(|| ApiError::of(key, "is missing; write it"))
    }

    /// A list of at most `max` entries; empty when absent or null.
    pub(super) fn list<T>(
        &self,
        key: &str,
        max: usize,
        read: impl FnMut(&'a Value) -> Result<T>,
    ) -> Result<Vec<T>> {
        Ok(self.optional(key, |value| list(value, max, read))?.unwrap_or_default())
    }

    /// A boolean; false when absent.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        let read =
            |value: &Value| value.as_bool().ok_or_else(|| wrong_type("true or false", value));
        Ok(self.optional(key, read)?.unwrap_or_default())
    }

    /// A selector in which `global()` has no meaning; `None` when absent or
    /// empty.
    pub(super) fn selector(&self, key: &str) -> Result<Option<Selector>> {
        self.any_selector(key, |selector| {
            if selector.mentions_global() {
                return Err(ApiError::new(
                    "global() may only stand alone in a rule's namespaceSelector; remove it here",
                ));
            }
            Ok(())
        })
    }

    /// A rule's namespaceSelector.
    pub(super) fn namespace_selector(&self, key: &str) -> Result<Option<Selector>> {
        self.any_selector(key, |selector| {
            if selector.mentions_global() && !selector.is_global() {
                return Err(ApiError::new(
                    "global() can't be combined with other conditions; write global() alone, \
                     or two rules",
                ));
            }
            Ok(())
        })
    }

    fn any_selector(
        &self,
        key: &str,
        check: impl FnOnce(&Selector) -> Result<()>,
    ) -> Result<Option<Selector>> {
        let read = |value: &Value| {
            let text = string(value)?;
            if text.is_empty() {
                return Ok(None);
            }
            let characters = text.chars().count();
            if characters > MAX_SELECTOR {
                return Err(ApiError::new(format!(
                    "a selector of {characters} characters; at most {MAX_SELECTOR} are admitted"
                )));
            }
            let selector = Selector::parse(text)
                .map_err(|error| ApiError::new(format!("not a selector: {error}")))?;
            check(&selector)?;
            Ok(Some(selector))
        };
        Ok(self.optional(key, read)?.flatten())
    }

    /// A map of texts; empty when absent.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<(&'a str, &'a str)>> {
        let read = |value: &'a Value| {
            let object = Self::open(value)?;
            object
                .0
                .iter()
                .map(|(key, value)| match string(value) {
                    Ok(value) => Ok((key.as_str(), value)),
                    Err(error) => Err(error.under(&format!("[{}]", quoted(key)))),
                })
                .collect()
        };
        Ok(self.optional(key, read)?.unwrap_or_default())
    }
}

/// A list of at most `max` entries.
pub(super) fn list<'a, T>(
    value: &'a Value,
    max: usize,
    mut read: impl FnMut(&'a Value) -> Result<T>,
) -> Result<Vec<T>> {
    let entries = value.as_array().ok_or_else(|| wrong_type("a list", value))?;
    if entries.len() > max {
        return Err(ApiError::new(format!(
            "{} entries; at most {max} are admitted, split the object",
            entries.len()
        )));
    }
    entries
        .iter()
        .enumerate()
        .map(|(place, entry)| read(entry).map_err(|error| error.under(&format!("[{place}]"))))
        .collect()
}

pub(super) fn string(value: &Value) -> Result<&str> {
    value.as_str().ok_or_else(|| wrong_type("a text", value))
}

/// A whole number within bounds.
pub(super) fn integer(value: &Value, min: i64, max: i64) -> Result<i64> {
    let number = value.as_i64().ok_or_else(|| wrong_type("a whole number", value))?;
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(ApiError::new(format!("{number} is outside {min} to {max}")))
    }
}

/// A place in an order; any number.
pub(super) fn order(value: &Value) -> Result<f64> {
    value.as_f64().ok_or_else(|| wrong_type("a number", value))
}

/// One of a few words.
pub(super) fn choice<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T> {
    let text = string(value)?;
    words.iter().find(|(word, _)| *word == text).map(|&(_, meaning)| meaning).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        ApiError::new(format!("{} is not one of {}", quoted(text), words.join(", ")))
    })
}

/// An address or prefix that may have host bits set; they are cleared.
pub(super) fn loose_net(value: &Value) -> Result<Prefix> {
    net(value).map(|(_, net)| net)
}

/// A prefix that must have a length and may have host bits set; they are
/// cleared.
pub(super) fn cidr(value: &Value) -> Result<Prefix> {
    let text = string(value)?;
    if !text.contains('/') {
        return Err(ApiError::new(format!(
            "{} is no CIDR; write the prefix length, as in 10.0.0.1/32",
            quoted(text)
        )));
    }
    loose_net(value)
}

/// An address or a prefix without host bits.
pub(super) fn strict_net(value: &Value) -> Result<Prefix> {
    let (addr, net) = net(value)?;
    if net.addr() == addr {
        return Ok(net);
    }
    Err(ApiError::new(format!("host bits are set in {addr}/{}; write {net}", net.len())))
}

fn net(value: &Value) -> Result<(Addr, Prefix)> {
    let text = string(value)?;
    let error = || {
        ApiError::new(format!(
            "{} is no address or CIDR; write one such as 10.0.0.0/8 or fd00::/64",
            quoted(text)
        ))
    };
    let (addr, len) = match text.split_once('/') {
        Some((addr, len)) => (addr, Some(len)),
        None => (text, None),
    };
    let ip: std::net::IpAddr = addr.parse().map_err(|_| error())?;
    if ip.is_ipv6() && Addr::from(ip).is_v4() {
        return Err(ApiError::new(format!("{} is IPv4 in IPv6; write it as IPv4", quoted(text))));
    }
    let len = match len {
        None => 8 * if ip.is_ipv4() { 4 } else { 16 },
        // The standard library's parser would take a sign.
        Some(len) if len.bytes().all(|b| b.is_ascii_digit()) => len.parse().map_err(|_| error())?,
        Some(_) => return Err(error()),
    };
    let net = Prefix::new(ip, len).ok_or_else(error)?;
    Ok((Addr::from(ip), net))
}
