//! What an API server sends: pages of lists and lines of watches, to values;
//! pure.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::shape::Shape;

/// What a page of a list says of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Page {
    /// `metadata.resourceVersion`: where to go on from.
    pub resource_version: String,
    /// `metadata.continue`; empty on the last page.
    pub r#continue: String,
    /// `metadata.remainingItemCount`, when the server knows it.
    pub remaining_item_count: Option<u64>,
}

/// Reads a page and hands over its objects one by one, each trimmed, so that
/// only one of them is in memory at a time.
///
/// # Errors
/// When it is no JSON or no list.
pub fn page(
    bytes: &[u8],
    shape: &'static Shape,
    each: &mut dyn FnMut(Value),
) -> Result<Page, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let page = deserializer.deserialize_map(PageReader { shape, each })?;
    deserializer.end()?;
    Ok(page)
}

struct PageReader<'a> {
    shape: &'static Shape,
    each: &'a mut dyn FnMut(Value),
}

impl<'de> Visitor<'de> for PageReader<'_> {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Page, A::Error> {
        let mut page = Page::default();
        while let Some(key) = access.next_key::<Cow<'_, str>>()? {
            match &*key {
                "metadata" => page = access.next_value()?,
                "items" => {
                    access.next_value_seed(Items { shape: self.shape, each: &mut *self.each })?;
                }
                _ => {
                    access.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(page)
    }
}

struct Items<'a> {
    shape: &'static Shape,
    each: &'a mut dyn FnMut(Value),
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        while let Some(item) = access.next_element_seed(self.shape)? {
            (self.each)(item);
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A line of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// `ADDED` or `MODIFIED`: the object as it is now, trimmed.
    Put(Value),
    /// `DELETED`: the object as it was, trimmed.
    Gone(Value),
    /// `BOOKMARK`: nothing has happened up to this resource version.
    Bookmark(String),
    /// `ERROR`.
    Error(Status),
}

/// Kubernetes' `Status`: why a request is refused or a watch ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The HTTP status.
    pub code: u16,
    /// For people.
    pub message: String,
    /// For programs, in one word.
    pub reason: String,
}

impl Event {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is no JSON or no event.
    pub fn read(line: &[u8], shape: &'static Shape) -> Result<Self, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(line);
        let (kind, object) = deserializer.deserialize_map(EventReader(shape))?;
        Ok(match kind.as_str() {
            "ADDED" | "MODIFIED" => Self::Put(object),
            "DELETED" => Self::Gone(object),
            "BOOKMARK" => Self::Bookmark(version(&object).unwrap_or_default().to_owned()),
            _ => {
                #[derive(Deserialize)]
                struct Refusal {
                    object: Status,
                }
                Self::Error(serde_json::from_slice::<Refusal>(line)?.object)
            }
        })
    }
}

/// An object's resource version.
pub fn version(object: &Value) -> Option<&str> {
    object["metadata"]["resourceVersion"].as_str()
}

struct EventReader(&'static Shape);

impl<'de> Visitor<'de> for EventReader {
    type Value = (String, Value);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event of a watch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let (mut kind, mut object) = (String::new(), Value::Null);
        while let Some(key) = access.next_key::<Cow<'_, str>>()? {
            match &*key {
                "type" => kind = access.next_value()?,
                "object" => object = access.next_value_seed(self.0)?,
                _ => {
                    access.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok((kind, object))
    }
}

#[cfg(test)]
mod tests;
