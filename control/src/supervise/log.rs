//! Structured logs whose level and form follow the configuration.

use std::io::IsTerminal;

use tieline_config::schema::{Format, Log};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// The level is a layer below the form and not a filter of it: a form with a
/// filter can't take the place of another, the new filter would panic.
type Levels = Layered<reload::Layer<LevelFilter, Registry>, Registry>;
type Form = Box<dyn Layer<Levels> + Send + Sync>;

/// Changes level and form while the daemon runs.
pub(super) struct LogControl {
    level: reload::Handle<LevelFilter, Registry>,
    form: reload::Handle<Form, Levels>,
}

/// Starts logging to standard error.
pub(super) fn start(config: &Log) -> LogControl {
    let (subscriber, control) = make(config);
    // Fails only if a subscriber is set already: that one stays.
    let _ = subscriber.try_init();
    control
}

fn make(config: &Log) -> (Layered<reload::Layer<Form, Levels>, Levels>, LogControl) {
    let (levels, level) = reload::Layer::new(level(config));
    let (forms, form) = reload::Layer::new(form(config));
    (tracing_subscriber::registry().with(levels).with(forms), LogControl { level, form })
}

impl LogControl {
    /// Takes over a changed configuration.
    pub(super) fn apply(&self, config: &Log) {
        // Fails only if the subscriber is gone: then there is nothing to change.
        let _ = self.level.reload(level(config));
        let _ = self.form.reload(form(config));
    }
}

fn level(config: &Log) -> LevelFilter {
    config.level.name().parse().unwrap_or(LevelFilter::INFO)
}

fn form(config: &Log) -> Form {
    let colors = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let base = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(colors);
    match config.format {
        Format::Text => base.boxed(),
        Format::Json => base.json().boxed(),
    }
}

#[cfg(test)]
mod tests {
    use tieline_config::schema::Level;
    use tracing::{debug, enabled, info};

    use super::*;

    #[test]
    fn level_and_form_change_while_it_is_in_use() {
        let log = |level, format| Log { level, format };
        let (subscriber, control) = make(&log(Level::Info, Format::Text));
        tracing::subscriber::with_default(subscriber, || {
            info!("as text");
            assert!(enabled!(tracing::Level::INFO) && !enabled!(tracing::Level::DEBUG));
            control.apply(&log(Level::Debug, Format::Json));
            debug!("as JSON");
            assert!(enabled!(tracing::Level::DEBUG));
            control.apply(&log(Level::Warn, Format::Text));
            info!("not at all");
            assert!(!enabled!(tracing::Level::INFO));
        });
    }
}
