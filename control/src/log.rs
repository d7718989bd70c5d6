//! Logging to stderr, as text or JSON. With JSON, no other line is written to stderr or stdout.

use std::{env::args_os, io::IsTerminal};

use podling_proto::log::report_panics_as_json;
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::{config::LogFormat, terminal_features};

/// Environment variable with the log filter, in the syntax of `tracing`, such as "debug" or
/// "podling_control::gateway=debug". Without it, or with an invalid filter, the level is `info`.
const FILTER_VARIABLE: &str = "PODLING_LOG";

/// Environment variable with the format of the log.
const FORMAT_VARIABLE: &str = "PODLING_LOG_FORMAT";

/// Returns the format that the command line or the environment requests, for errors that occur
/// before the configuration is known. With JSON, `program` reports its panics as JSON from then on.
pub fn early_format(program: &'static str) -> LogFormat {
    let format = LogFormat::requested(args_os().skip(1), std::env::var_os(FORMAT_VARIABLE).as_deref());
    if format == LogFormat::Json {
        report_panics_as_json(program);
    }
    format
}

/// Logs a message of the program that embeds the control plane.
pub fn info(message: &str) {
    tracing::info!("{message}");
}

/// Logs that the control plane listens at `url`.
pub fn listening(url: &str) {
    tracing::info!(url, "listening");
}

/// Says that `program` listens at `url`: on stdout, or as a line of a JSON log.
pub fn announce(format: LogFormat, program: &str, url: &str) {
    match format {
        LogFormat::Text => println!("{program} listens at {url}"),
        LogFormat::Json => listening(url),
    }
}

/// Starts logging to stderr. The program calls it once; without the call nothing is logged.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal() && terminal_features::allows_colours();
    let lines = fmt::layer().with_ansi(colours).with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    // Fails only if a subscriber is set already. That subscriber stays.
    let _first = match format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => {
            report_panics_as_json("podling-control");
            registry.with(lines.json()).try_init()
        }
    };
}
