//! Structured logs whose level and form follow the configuration.

use std::io::IsTerminal;

use tieline_config::schema::{Format, Log};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Changes level and form while the daemon runs.
pub(super) struct LogControl(reload::Handle<BoxedLayer, Registry>);

/// Starts logging to standard error.
pub(super) fn start(config: &Log) -> LogControl {
    let (layer, handle) = reload::Layer::new(layer(config));
    // Fails only if a subscriber is set already: that one stays.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    LogControl(handle)
}

impl LogControl {
    /// Takes over a changed configuration.
    pub(super) fn apply(&self, config: &Log) {
        // Fails only if the subscriber is gone: then there is nothing to change.
        let _ = self.0.reload(layer(config));
    }
}

fn layer(config: &Log) -> BoxedLayer {
    let level: LevelFilter = config.level.name().parse().unwrap_or(LevelFilter::INFO);
    let colors = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let base = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(colors);
    match config.format {
        Format::Text => base.with_filter(level).boxed(),
        Format::Json => base.json().with_filter(level).boxed(),
    }
}
