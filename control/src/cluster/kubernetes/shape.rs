//! JSON read only as far as it is used.
//!
//! A pod as the API serves it has some ten kilobytes, of which a few hundred
//! bytes count. A [`Shape`] names the fields that do; everything else is
//! skipped while it is read and never takes memory.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Which part of a value is read. What has another type than expected is read
/// whole, so that it is refused with the same words wherever it came from.
#[derive(Debug)]
pub enum Shape {
    /// All of it.
    All,
    /// These fields of a map.
    Fields(&'static [(&'static str, Shape)]),
    /// This of each element of a list.
    Each(&'static Shape),
}

impl<'de> DeserializeSeed<'de> for &'static Shape {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Shape::All => Value::deserialize(deserializer),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for &'static Shape {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<Cow<'_, str>>()? {
            let shape = match self {
                Shape::Fields(fields) => fields.iter().find(|(name, _)| *name == key),
                _ => Some(&("", Shape::All)),
            };
            match shape {
                Some((_, shape)) => {
                    let value = access.next_value_seed(shape)?;
                    map.insert(key.into_owned(), value);
                }
                None => {
                    access.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let shape = match self {
            Shape::Each(shape) => shape,
            _ => &Shape::All,
        };
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(shape)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
}
