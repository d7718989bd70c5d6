//! Logging to stderr, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::config::LogFormat;

/// Environment variable with the log filter, in the syntax of `tracing`, such as "debug" or
/// "podling_control::gateway=debug". Without it, or with an invalid filter, the level is `info`.
const FILTER_VARIABLE: &str = "PODLING_LOG";

/// Starts logging to stderr. The program calls it once; without the call nothing is logged.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = std::io::stderr().is_terminal() && !no_color;
    let lines = fmt::layer().with_ansi(colours).with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    // Fails only if a subscriber is set already. That subscriber stays.
    let _first = match format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json()).try_init(),
    };
}
