//! The program `podling-control`: the control plane.

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use podling_control::{
    args::ControlArgs,
    config::{ControlConfig, LogFormat, ProgramDefaults},
    log,
    run::run,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const PROGRAM: &str = "podling-control";
/// Exit code for an invalid command line.
const EXIT_USAGE: u8 = 2;

/// Run Podling's control plane, which schedules workspaces, monitors their agents, and is the
/// gateway to them
#[derive(Debug, Parser)]
#[command(name = "podling-control", version)]
struct ControlCli {
    /// Data directory [env: PODLING_DATA] [default: $XDG_DATA_HOME/podling or
    /// ~/.local/share/podling]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    args: ControlArgs,
}

fn main() -> ExitCode {
    let mut format = log::early_format(PROGRAM);
    let cli = match ControlCli::try_parse() {
        Ok(cli) => cli,
        Err(error) if format == LogFormat::Json && error.use_stderr() => {
            format.report(PROGRAM, &error.render().to_string());
            return ExitCode::from(EXIT_USAGE);
        }
        // This includes --help and --version, which exit with 0.
        Err(error) => error.exit(),
    };
    match start(&cli, &mut format) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            format.report(PROGRAM, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the control plane. Sets `format` to that of the configuration as soon as it is known.
fn start(cli: &ControlCli, format: &mut LogFormat) -> anyhow::Result<()> {
    let defaults = ProgramDefaults { agent_command: vec![agent_beside_us()], sleep_idle_on_shutdown: false };
    let env = |name: &str| env::var(name).ok();
    let config = ControlConfig::load(cli.data.as_deref(), &cli.args, &env, defaults)?;
    *format = config.log_format;
    log::init(config.log_format);
    let announced = *format;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let ended = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let shutdown_requested = shutdown.clone();
        let running = run(config, shutdown, |ready| log::announce(announced, PROGRAM, &ready.url));
        tokio::pin!(running);
        loop {
            tokio::select! {
                ended = &mut running => return Ok(ended?),
                _ = interrupt.recv() => shutdown_requested.cancel(),
                _ = terminate.recv() => shutdown_requested.cancel(),
            }
        }
    });
    // All required work is done. Threads that still block, such as in a scan of /proc, are
    // abandoned.
    runtime.shutdown_background();
    ended
}

/// Returns the path of `podling-agent` beside this program, or its bare name, which PATH resolves.
fn agent_beside_us() -> String {
    let beside = env::current_exe().ok().map(|us| us.with_file_name("podling-agent"));
    beside
        .filter(|agent| agent.is_file())
        .map_or_else(|| "podling-agent".to_owned(), |agent| agent.display().to_string())
}
