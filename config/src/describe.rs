//! What the description of the keys is good for: naming them, comparing two
//! configurations, and writing the commented reference.

use std::fmt::Write;

use crate::schema::Config;
use crate::section::{Entry, Key, Reload, Section};

/// One key that has another value now.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The key's full name, such as `workers.idle`.
    pub key: String,
    /// Whether the change takes effect at once; otherwise at the next start.
    pub live: bool,
    /// The old value, in TOML; `None` if it was not set.
    pub old: Option<String>,
    /// The new value, in TOML; `None` if it is not set.
    pub new: Option<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(unset)".to_owned());
        let when = if self.live { "" } else { ", at the next start" };
        write!(f, "{}: {} -> {}{when}", self.key, shown(&self.old), shown(&self.new))
    }
}

impl Config {
    /// Every key of the schema, in its order, with the value that it has here.
    pub fn keys(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        collect(self, "", &mut keys);
        keys
    }

    /// What `new` changes, in the order of the schema.
    pub fn diff(&self, new: &Self) -> Vec<Change> {
        let pairs = self.keys().into_iter().zip(new.keys());
        let text = |value: Option<toml::Value>| value.map(|value| value.to_string());
        pairs
            .filter(|(old, new)| old.value != new.value)
            .map(|(old, new)| Change {
                key: old.path,
                live: old.reload == Reload::Live,
                old: text(old.value),
                new: text(new.value),
            })
            .collect()
    }

    /// This configuration with the live keys of `new`: what is in force after
    /// a reload, until the daemon is started again.
    #[must_use]
    pub fn with_live_of(&self, new: &Self) -> Self {
        let mut config = self.clone();
        config.take_live(new);
        config
    }

    /// A configuration file that sets every key to its default, with its
    /// documentation; keys without a fixed default are commented out.
    pub fn reference() -> String {
        let mut text = String::from(
            "# Every key of Tieline's configuration, with its default. A key that is commented\n\
             # out has no fixed default, and shows an example instead. \"Live\" keys take effect\n\
             # when the file is changed, all others when the daemon is started again.\n",
        );
        write_section(&Self::default(), "", &mut text);
        text
    }
}

fn collect(section: &dyn Section, prefix: &str, keys: &mut Vec<Key>) {
    section.visit(&mut |entry| match entry {
        Entry::Key(key) => keys.push(Key { path: format!("{prefix}{}", key.path), ..key }),
        Entry::Section(field, inner) => {
            collect(inner, &format!("{prefix}{}.", crate::section::kebab(field)), keys);
        }
    });
}

fn write_section(section: &dyn Section, path: &str, text: &mut String) {
    section.visit(&mut |entry| match entry {
        Entry::Key(key) => write_key(&key, text),
        Entry::Section(field, inner) => {
            let dot = if path.is_empty() { "" } else { "." };
            let path = format!("{path}{dot}{}", crate::section::kebab(field));
            text.push('\n');
            write_lines(inner.about(), text);
            let _ = writeln!(text, "[{path}]");
            write_section(inner, &path, text);
        }
    });
}

fn write_key(key: &Key, text: &mut String) {
    text.push('\n');
    write_lines(key.doc, text);
    if key.reload == Reload::Live {
        text.push_str("# Live.\n");
    }
    let _ = match (&key.value, key.example) {
        (Some(value), _) => writeln!(text, "{} = {value}", key.path),
        (None, example) => writeln!(text, "# {} = {}", key.path, example.unwrap_or_default()),
    };
}

fn write_lines(lines: &[&str], text: &mut String) {
    for line in lines {
        let _ = writeln!(text, "#{line}");
    }
}
