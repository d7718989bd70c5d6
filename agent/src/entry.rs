//! Entry points of the agent, from the command line to the exit code: the agent itself, and
//! `podling-agent install DIR`, which copies the agent into a directory, from where a container of
//! another image runs it. An init container runs this subcommand if the workspace's image has no
//! agent.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use podling_proto::{
    error::with_causes,
    log::{LogFormat, report_panics_as_json},
};
use tokio::runtime::Runtime;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    prelude::*,
    registry,
};

use crate::{
    args::AgentArgs,
    config::AgentConfig,
    init,
    run::run,
    shutdown::{ShutdownHandle, ShutdownRequest},
    state_file::ExitRecord,
    tasks::panic_message,
};

/// Exit code for an invalid command line or configuration value.
const EXIT_USAGE: u8 = 2;
/// Log filter: a level, or levels per module as in `warn,podling_agent::control_connection=debug`.
const LOG_FILTER_VARIABLE: &str = "PODLING_AGENT_LOG";
const LOG_FORMAT_VARIABLE: &str = "PODLING_AGENT_LOG_FORMAT";
/// Name of the program in errors.
const PROGRAM: &str = "podling-agent";
/// Exit code for an agent that could not start or failed.
const EXIT_FAILURE: u8 = 1;
/// Time that shutdown waits for blocking threads, such as a thread that uses a hung disk. The agent
/// then exits anyway.
const BLOCKING_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// File name of the copy.
const NAME: &str = "podling-agent";
/// Executable by every user, because the user of the other image is not known.
const MODE: u32 = 0o755;

/// Runs `podling-agent`: the agent itself, or its `install` subcommand.
pub fn program(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut words = words.into_iter().peekable();
    let name = words.next();
    match words.next_if(|word| word == "install") {
        Some(_) => install_main(name.into_iter().chain(words)),
        None => main_with(name.into_iter().chain(words)),
    }
}

/// Runs the agent with the command line `words`, whose first word is the program's name. Returns
/// when the agent has ended.
pub fn main_with(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<_> = words.into_iter().collect();
    let format = early_format(&words);
    let (args, matches) = match AgentArgs::parse_words(words) {
        Ok(read) => read,
        Err(error) if format == LogFormat::Json && error.use_stderr() => {
            format.report(PROGRAM, &error.render().to_string());
            return ExitCode::from(EXIT_USAGE);
        }
        // This includes --help and --version, which exit with 0.
        Err(error) => error.exit(),
    };
    start_log(args.log_format());
    if args.own_session()
        && let Err(error) = rustix::process::setsid()
    {
        tracing::warn!(%error, "failed to start a new session; the agent may end with the current one");
    }
    let config = match args.config(&matches) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, "failed to start agent");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let state = config.state.clone();
    run_recorded(&state, || run_agent(config))
}

/// Runs the agent and writes an exit record, even if it panics.
fn run_recorded(
    state: &Path,
    life: impl FnOnce() -> Result<ShutdownRequest, Box<dyn std::error::Error>>,
) -> ExitCode {
    // A panic that unwinds to here has dropped the runtime and all tasks. Only the record is left
    // to write.
    let ended = std::panic::catch_unwind(AssertUnwindSafe(life));
    let (reason, code) = match ended {
        Ok(Ok(request)) => (request.reason.to_string(), request.exit_code()),
        Ok(Err(error)) => (with_causes(error.as_ref()), EXIT_FAILURE),
        Err(panic) => (format!("panic: {}", panic_message(panic.as_ref())), EXIT_FAILURE),
    };
    record_end(state, &reason, code)
}

fn run_agent(config: AgentConfig) -> Result<ShutdownRequest, Box<dyn std::error::Error>> {
    let limits = init::become_init();
    // A single thread, which serves terminals faster than two threads by measurement.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let life = async {
        let shutdown = ShutdownHandle::default();
        let signals = init::handle_termination_signals(shutdown.clone());
        let running = run(config, limits, shutdown);
        tokio::select! {
            ended = running => Ok(ended?),
            // Without signal handling the agent could not be shut down in order.
            failed = signals => match failed? {},
        }
    };
    run_to_end(runtime, life)
}

fn run_to_end<T>(runtime: Runtime, life: impl Future<Output = T>) -> T {
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(life)));
    // Dropping the runtime would wait without limit, and delay the exit record.
    runtime.shutdown_timeout(BLOCKING_SHUTDOWN_TIMEOUT);
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn record_end(state: &Path, reason: &str, code: u8) -> ExitCode {
    if code == 0 {
        tracing::info!(reason, "agent ended");
    } else {
        tracing::error!(reason, "agent ended");
    }
    if let Err(error) = ExitRecord::write(state, reason, code) {
        tracing::error!(%error, "failed to write exit record");
    }
    ExitCode::from(code)
}

/// Returns the format that the command line or the environment requests, for errors that occur
/// before the command line is parsed.
fn early_format(words: &[OsString]) -> LogFormat {
    LogFormat::requested(words, std::env::var_os(LOG_FORMAT_VARIABLE).as_deref())
}

fn start_log(format: LogFormat) {
    let filter = std::env::var(LOG_FILTER_VARIABLE).ok().and_then(|filter| filter.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let log = fmt::layer().with_writer(io::stderr).with_ansi(false);
    // Keeps a subscriber that is already installed, such as the CLI's.
    let _started = match format {
        LogFormat::Text => registry().with(filter).with(log).try_init(),
        LogFormat::Json => {
            report_panics_as_json(PROGRAM);
            registry().with(filter).with(log.json()).try_init()
        }
    };
}

/// Copy this program into a directory, from where containers of other images run it
#[derive(Debug, Parser)]
#[command(name = "podling-agent install", version)]
struct InstallArgs {
    /// Existing directory to copy the program into
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Runs the subcommand; `words` are the program's name and the directory.
fn install_main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<_> = words.into_iter().collect();
    let format = early_format(&words);
    let directory = match InstallArgs::try_parse_from(words) {
        Ok(args) => args.directory,
        Err(error) if format == LogFormat::Json && error.use_stderr() => {
            format.report(PROGRAM, &error.render().to_string());
            return ExitCode::FAILURE;
        }
        Err(error) => error.exit(),
    };
    match install(&directory) {
        Ok(path) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let message = format!("cannot copy the agent to {}: {error}", directory.display());
            format.report(PROGRAM, &message);
            ExitCode::FAILURE
        }
    }
}

/// Copies the program atomically, even over a copy that is running. Idempotent. Does not read the
/// program into memory, of which an init container has little.
fn install(directory: &Path) -> io::Result<PathBuf> {
    let path = directory.join(NAME);
    let part = directory.join(format!(".{NAME}.{}", std::process::id()));
    let copied = copy(&part).and_then(|()| fs::rename(&part, &path));
    if copied.is_err() {
        // Fails if the file does not exist. It is deleted with the directory in any case.
        let _gone = fs::remove_file(&part);
    }
    copied.map(|()| path)
}

fn copy(to: &Path) -> io::Result<()> {
    // The path of the running program may name another file by now.
    let mut own = File::open("/proc/self/exe")?;
    let mut file = File::create(to)?;
    io::copy(&mut own, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{shutdown::ShutdownReason, state_file::EXIT_RECORD};

    fn record(
        life: impl FnOnce() -> Result<ShutdownRequest, Box<dyn std::error::Error>>,
    ) -> (ExitCode, ExitRecord) {
        let state = tempfile::tempdir().unwrap();
        let code = run_recorded(state.path(), life);
        let record = std::fs::read(state.path().join(EXIT_RECORD)).expect("there is a record");
        (code, serde_json::from_slice(&record).expect("JSON"))
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn panic_is_recorded_while_blocking_work_hangs() {
        let (done, hangs) = std::sync::mpsc::channel::<()>();
        let (code, record) = record(|| {
            run_to_end(runtime(), async move {
                let mut blocking = tokio::task::JoinSet::new();
                blocking.spawn_blocking(move || hangs.recv());
                tokio::task::yield_now().await;
                panic!("a fault of ours");
            })
        });
        drop(done);
        assert_eq!(code, ExitCode::from(EXIT_FAILURE));
        assert_eq!((record.reason.as_str(), record.code), ("panic: a fault of ours", EXIT_FAILURE));
    }

    #[test]
    fn shutdown_and_failed_start_are_recorded() {
        let (code, shutdown) =
            record(|| run_to_end(runtime(), async { Ok(ShutdownRequest::new(ShutdownReason::Drained)) }));
        assert_eq!((code, shutdown.code), (ExitCode::SUCCESS, 0));
        let (code, failed) = record(|| Err("cannot listen".into()));
        assert_eq!(code, ExitCode::from(EXIT_FAILURE));
        assert_eq!((failed.reason.as_str(), failed.code), ("cannot listen", EXIT_FAILURE));
    }

    #[test]
    fn install_is_atomic_executable_and_repeatable() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let path = install(directory.path()).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
            assert!(fs::read(&path).unwrap() == fs::read("/proc/self/exe").unwrap());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn install_does_not_create_missing_directory() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        assert_eq!(install(&missing).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!missing.exists());
    }
}
