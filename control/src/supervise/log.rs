//! Structured logs whose level and form follow the configuration.

use tieline_config::{Log, LogFormat};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Changes level and form while the daemon runs.
pub(crate) struct LogControl(reload::Handle<BoxedLayer, Registry>);

/// Starts logging to standard error.
pub(crate) fn start(config: &Log) -> LogControl {
    let (layer, handle) = reload::Layer::new(layer(config));
    // Fails only if a subscriber is set already, as in a test: that one stays.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    LogControl(handle)
}

impl LogControl {
    /// Takes over a changed configuration.
    pub(crate) fn apply(&self, config: &Log) {
        // Fails only if the subscriber is gone: then there is nothing to change.
        let _ = self.0.reload(layer(config));
    }
}

fn layer(config: &Log) -> BoxedLayer {
    let filter = EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let base = fmt::layer().with_writer(std::io::stderr).with_target(false);
    match config.format {
        LogFormat::Text => base.with_filter(filter).boxed(),
        LogFormat::Json => base.json().with_filter(filter).boxed(),
    }
}
