//! Reading fields of an object, with errors that name the field.

use std::fmt;
use std::net::IpAddr;

use serde_json::Value;
use tieline_dataplane::addr::Prefix;

use crate::policy::api::ApiError;
use crate::state::Labels;

/// Why a field can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// Path of the field, as in `spec.ports[0].port`.
    pub field: String,
    /// What is wrong with it, and the remedy.
    pub reason: String,
}

impl From<ApiError> for FieldError {
    fn from(error: ApiError) -> Self {
        Self { field: error.field, reason: error.reason }
    }
}

/// A value within an object, and where it is. Fields are named by dotted path;
/// a missing field and `null` are the same.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    value: &'a Value,
    base: String,
}

impl<'a> Reader<'a> {
    pub(super) fn new(value: &'a Value) -> Self {
        Self { value, base: String::new() }
    }

    /// The path of a field of this value.
    pub(super) fn path(&self, field: &str) -> String {
        match (self.base.is_empty(), field.is_empty()) {
            (true, _) => field.to_owned(),
            (false, true) => self.base.clone(),
            (false, false) => format!("{}.{field}", self.base),
        }
    }

    pub(super) fn error(&self, field: &str, reason: impl fmt::Display) -> FieldError {
        FieldError { field: self.path(field), reason: reason.to_string() }
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        let found = field.split('.').try_fold(self.value, |value, key| value.get(key));
        found.filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<&'a str>, FieldError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                Err(self.error(field, format!("is {}; write text, in quotes", sort(other))))
            }
        }
    }

    /// A text that must be there and not empty.
    pub(super) fn required(&self, field: &str) -> Result<&'a str, FieldError> {
        let text = self.text(field)?.filter(|text| !text.is_empty());
        text.ok_or_else(|| self.error(field, "is missing; set it"))
    }

    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>, FieldError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => {
                Err(self.error(field, format!("is {}; write true or false", sort(other))))
            }
        }
    }

    /// A whole number from `min` to `max`.
    pub(super) fn number(
        &self,
        field: &str,
        min: u32,
        max: u32,
    ) -> Result<Option<u32>, FieldError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        match number.filter(|number| (min..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(self
                    .error(field, format!("is {value}; write a whole number from {min} to {max}")))
            }
        }
    }

    /// The values of a list; none when it is missing.
    pub(super) fn list(&self, field: &str) -> Result<&'a [Value], FieldError> {
        match self.get(field) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(self.error(field, format!("is {}; write a list", sort(other)))),
        }
    }

    /// The elements of a list, each with its own path.
    pub(super) fn items(&self, field: &str) -> Result<Vec<Reader<'a>>, FieldError> {
        let items = self.list(field)?;
        let path = self.path(field);
        let item = |(index, value)| Reader { value, base: format!("{path}[{index}]") };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// A map of texts, such as labels.
    pub(super) fn map(&self, field: &str) -> Result<Labels, FieldError> {
        let Some(value) = self.get(field) else { return Ok(Labels::new()) };
        let Some(map) = value.as_object() else {
            return Err(self.error(field, format!("is {}; write a map", sort(value))));
        };
        let mut labels = Labels::new();
        for (key, value) in map {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => {
                    let path = format!("{field}.{key}");
                    return Err(
                        self.error(&path, format!("is {}; write text, in quotes", sort(other)))
                    );
                }
            };
            labels.insert(key.clone(), text);
        }
        Ok(labels)
    }

    /// The address in a field; it may be missing.
    pub(super) fn address(&self, field: &str) -> Result<Option<IpAddr>, FieldError> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        address(text).map(Some).map_err(|reason| self.error(field, reason))
    }

    /// The prefix in a field; it must be there.
    pub(super) fn prefix(&self, field: &str) -> Result<Prefix, FieldError> {
        let text = self.required(field)?;
        prefix(text).map_err(|reason| self.error(field, reason))
    }
}

/// A unicast address. IPv4 addresses in IPv6's mapped form are refused: the
/// tables hold IPv4 that way, and the two families must not be confused.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    let addr: IpAddr = text
        .parse()
        .map_err(|_| format!("{text:?} is no address; write one such as 10.0.0.5 or fd00::5"))?;
    if addr.to_canonical() != addr {
        return Err(format!("{text:?} is an IPv4 address in IPv6 form; write it as IPv4"));
    }
    let broadcast = addr == IpAddr::from([255, 255, 255, 255]);
    if addr.is_unspecified() || addr.is_multicast() || addr.is_loopback() || broadcast {
        return Err(format!("{text:?} can't be the address of one machine; correct it"));
    }
    Ok(addr)
}

/// A prefix; see [`address`] for what is refused.
pub(super) fn prefix(text: &str) -> Result<Prefix, String> {
    let prefix: Prefix = text.parse().map_err(|error| format!("{error}; correct it"))?;
    if text.contains(':') && prefix.is_v4() {
        return Err(format!("{text:?} is IPv4 in IPv6 form; write it as IPv4"));
    }
    Ok(prefix)
}

/// What a value is, for error messages.
fn sort(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}
