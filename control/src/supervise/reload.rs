//! The configuration file while the daemon runs.
//!
//! A changed file is taken over whole or not at all. Keys that can't change
//! while packets flow are named in `status` until the daemon is restarted.

use std::path::{Path, PathBuf};

use tieline_config::{Config, Watch};
use tieline_dataplane::flow::Timeouts;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::admin::status::ConfigStatus;
use crate::federation::{FederationConfig, StalePolicy};
