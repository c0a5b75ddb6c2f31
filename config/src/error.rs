//! What can be wrong with a configuration file, all of it at once.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: {source}; name a readable file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file does not hold a valid configuration.
    #[error("{}", listed(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong with it, in the order of the file; never empty.
        problems: Vec<Problem>,
    },
    /// The node's name is not configured and can't be found out.
    #[error("the host name can't be read: {0}; set `node` in the configuration, or NODE_NAME")]
    HostName(io::Error),
    /// The node's name, as found out, can't be the name of a node.
    #[error("`{name}` ({origin}) can't be the name of a node; set `node` in the configuration")]
    NodeName {
        /// The name.
        name: String,
        /// Where it comes from.
        origin: &'static str,
    },
}

/// One thing that is wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where in the file, if it is about something that stands there.
    pub position: Option<Position>,
    /// Which key it is about; empty if the file can't be read that far.
    pub key: KeyPath,
    /// What is wrong.
    pub message: String,
    /// What to do about it; may be empty if the message says so.
    pub remedy: String,
}

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

/// The full name of a key: its sections and its own name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPath(pub Vec<String>);

impl KeyPath {
    /// From a name without quoted parts, such as `workers.idle`.
    pub(crate) fn new(dotted: &str) -> Self {
        Self(dotted.split('.').map(str::to_owned).collect())
    }

    /// A key of this section.
    pub(crate) fn with(mut self, name: &str) -> Self {
        self.0.push(name.to_owned());
        self
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.0.iter().enumerate() {
            let dot = if at == 0 { "" } else { "." };
            let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if !part.is_empty() && part.chars().all(bare) {
                write!(f, "{dot}{part}")?;
            } else {
                write!(f, "{dot}{part:?}")?;
            }
        }
        Ok(())
    }
}

impl Position {
    /// The place of a byte in a text; its end if the text is shorter.
    pub(crate) fn of(text: &str, byte: usize) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self { line: before.matches('\n').count() + 1, column: before[start..].chars().count() + 1 }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(position) = &self.position {
            write!(f, "{}:{}: ", position.line, position.column)?;
        }
        if !self.key.0.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// One problem a line, each begun by the file's name, as compilers do.
fn listed(path: &std::path::Path, problems: &[Problem]) -> String {
    let line = |problem: &Problem| {
        let gap = if problem.position.is_some() { "" } else { " " };
        format!("{}:{gap}{problem}", path.display())
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}
