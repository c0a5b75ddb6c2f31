//! How a section of the schema is written down once.
//!
//! [`section!`] takes a list of keys, each with its documentation, when a
//! change of it takes effect, its type and its default, and makes of it the
//! struct, its `Default`, its reader and writer, and a description of its keys
//! ([`Section`]). A key can't be added without saying all of that, and
//! whatever needs to know the keys (comparison, the commented reference, the
//! remedies in error messages) asks the description.

/// When a changed key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// At once, when the file has been read.
    Live,
    /// When the daemon is started again.
    Restart,
}

/// One key of the schema, with the value that it has in some configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Its full name, such as `workers.idle`.
    pub path: String,
    /// What it means, with unit and range; a line of text per element.
    pub doc: &'static [&'static str],
    /// When a change of it takes effect.
    pub reload: Reload,
    /// Its value; `None` if it is not set and has no fixed default.
    pub value: Option<toml::Value>,
    /// A value to show where there is no default to show, in TOML.
    pub example: Option<&'static str>,
}

/// What [`Section::visit`] comes across.
pub(crate) enum Entry<'a> {
    /// A key, named without the sections that it is in.
    Key(Key),
    /// A section within the section.
    Section(&'static str, &'a dyn Section),
}

/// A section of the schema.
pub(crate) trait Section {
    /// What the section is about; a line of text per element.
    fn about(&self) -> &'static [&'static str];

    /// Shows every key and section, in the order of the schema.
    fn visit(&self, visit: &mut dyn FnMut(Entry<'_>));

    /// Takes over the values of the keys that are live.
    fn take_live(&mut self, from: &Self)
    where
        Self: Sized;
}

/// The name of a field as it is written in the file.
pub(crate) fn kebab(field: &'static str) -> String {
    field.replace('_', "-")
}

/// `None` for what is not set: an absent option, an empty list or map.
pub(crate) fn value<T: serde::Serialize>(field: &T) -> Option<toml::Value> {
    let value = toml::Value::try_from(field).ok()?;
    let empty = value.as_array().is_some_and(Vec::is_empty)
        || value.as_table().is_some_and(toml::Table::is_empty);
    (!empty).then_some(value)
}

/// Declares one section: see the module's documentation.
///
/// ```text
/// section! {
///     /// What the section is about.
///     Name {
///         /// What the key means, with unit and range.
///         live | restart | section   field: Type = default [=> "example in TOML"],
///     }
/// }
/// ```
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $name:ident { $(
            $(#[doc = $doc:literal])*
            $kind:ident $field:ident: $type:ty = $default:expr $(=> $example:literal)?,
        )* }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $name { $(
            $(#[doc = $doc])*
            pub $field: $type,
        )* }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::section::Section for $name {
            fn about(&self) -> &'static [&'static str] {
                &[$($about),*]
            }

            fn visit(&self, visit: &mut dyn FnMut($crate::section::Entry<'_>)) {
                $( section!(@visit $kind self visit $field [$($doc)*] [$($example)?]); )*
            }

            fn take_live(&mut self, from: &Self) {
                $( section!(@take $kind self from $field); )*
            }
        }
    };

    (@visit section $self:ident $visit:ident $field:ident $doc:tt $example:tt) => {
        $visit($crate::section::Entry::Section(stringify!($field), &$self.$field))
    };
    (@visit live $self:ident $visit:ident $field:ident $doc:tt $example:tt) => {
        section!(@key Live $self $visit $field $doc $example)
    };
    (@visit restart $self:ident $visit:ident $field:ident $doc:tt $example:tt) => {
        section!(@key Restart $self $visit $field $doc $example)
    };
    (@key $reload:ident $self:ident $visit:ident $field:ident [$($doc:literal)*] [$($example:literal)?]) => {
        $visit($crate::section::Entry::Key($crate::section::Key {
            path: $crate::section::kebab(stringify!($field)),
            doc: &[$($doc),*],
            reload: $crate::section::Reload::$reload,
            value: $crate::section::value(&$self.$field),
            example: None $(.or(Some($example)))?,
        }))
    };

    (@take section $self:ident $from:ident $field:ident) => {
        $self.$field.take_live(&$from.$field)
    };
    (@take live $self:ident $from:ident $field:ident) => {
        $self.$field.clone_from(&$from.$field)
    };
    (@take restart $self:ident $from:ident $field:ident) => {
        let _ = $from;
    };
}

pub(crate) use section;
