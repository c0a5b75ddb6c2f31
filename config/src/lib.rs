//! Tieline's configuration: one TOML file per node.
//!
//! ```text
//! schema    every key: meaning, unit, default, live or restart
//! section   how the schema is written down, once
//! parse     text -> Config, or all that is wrong with the text
//! check     what must hold beyond types
//! describe  comparison of configurations, the commented reference
//! watch     tells when files or directories have other content
//! ```
//!
//! Promises: an unknown key, a wrong type and a senseless value are all
//! refused, all at once, each with its place, its key and its remedy; a key
//! that is left out has the default that its documentation says. Must not
//! know: what the daemon does with the values. Start reading at [`schema`].
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

mod check;
pub mod cpus;
mod describe;
mod error;
mod parse;
pub mod schema;
mod section;
pub mod watch;

pub use describe::Change;
pub use error::{ConfigError, KeyPath, Position, Problem};
pub use schema::Config;
pub use section::{Key, Reload};
pub use watch::Watch;

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// If it can't be read, or is not valid: then with all that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = std::fs::read_to_string(path);
        let text = read.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Reads and validates a text; `path` is what errors call it.
    ///
    /// # Errors
    /// If it is not valid: with all that is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        parse::parse(text)
            .map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
    }

    /// Checks a configuration that was not read from a file.
    ///
    /// # Errors
    /// All values that make no sense.
    pub fn validate(&self) -> Result<(), Vec<Problem>> {
        let problems = self.problems();
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// The name of this node: configured, else from the environment variable
    /// `NODE_NAME`, else the host name in lower case, as the kubelet does.
    ///
    /// # Errors
    /// If it is not configured, and what is found can't be a node's name.
    pub fn node_name(&self) -> Result<String, ConfigError> {
        let environment = std::env::var("NODE_NAME").ok();
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname");
        self.node_name_from(environment, host)
    }

    fn node_name_from(
        &self,
        environment: Option<String>,
        host: impl FnOnce() -> io::Result<String>,
    ) -> Result<String, ConfigError> {
        if let Some(node) = &self.node {
            return Ok(node.clone());
        }
        let (name, origin) = match environment.filter(|name| !name.is_empty()) {
            Some(name) => (name, "from NODE_NAME"),
            None => {
                let host = host().map_err(ConfigError::HostName)?;
                (host.trim().to_lowercase(), "the host name")
            }
        };
        if check::is_subdomain(&name) {
            Ok(name)
        } else {
            Err(ConfigError::NodeName { name, origin })
        }
    }
}

#[cfg(test)]
mod tests;
