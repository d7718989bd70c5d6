//! The control plane on this machine: `podling up` runs it in the foreground, and `podling down` puts
//! all workspaces to sleep and stops it.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use clap::Args;
use podling_control::{
    args,
    config::{self, ControlConfig, LogFormat, ProgramDefaults},
    log,
    run::run,
};
use podling_proto::{
    control::v1::{DownRequest, DownResponse},
    error::{self, Reason},
};
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    advice,
    backoff::is_retryable,
    client::{Client, Context},
    failure::{CommandFailure, error_chain},
    notice,
    output::{self, Tone, paint},
    signal::{self, TerminationSignals},
    target::{self, ControlPlaneTarget},
};

const EXAMPLES: &str = "\
Examples:
  podling up
  podling up --data ./state --listen 127.0.0.1:7500";

/// Run the control plane on this machine
///
/// Workspaces run as processes of this machine, or as pods with --backend kubernetes.
///
/// The first Ctrl-C puts idle workspaces to sleep, which takes a few seconds, and then stops the
/// control plane. Workspaces in use keep running, and the next `podling up` takes them over. A
/// second Ctrl-C stops the control plane at once. `podling down` puts all workspaces to sleep.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct UpArgs {
    #[command(flatten)]
    control: args::ControlArgs,
}

#[derive(Debug, Serialize)]
struct UpReadyJson<'a> {
    url: &'a str,
    pid: u32,
    data: &'a Path,
}

/// Prints a line to stderr, as the log is written. Ignores errors, because the terminal may be gone.
fn print_status(format: LogFormat, line: &str) {
    match format {
        LogFormat::Text => drop(writeln!(io::stderr(), "podling: {line}")),
        LogFormat::Json => log::info(line),
    }
}

impl UpArgs {
    /// Runs the control plane until a signal or `podling down` stops it. Returns the exit code.
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let mut signals = TerminationSignals::listen()?;
        let config = self.config(context)?;
        let format = config.log_format;
        log::init(format);
        let data = std::path::absolute(&config.data).unwrap_or_else(|_| config.data.clone());
        let shutdown = CancellationToken::new();
        let certificate = config.tls.as_ref().map(|files| files.certificate.clone());
        let running = run(config, shutdown.clone(), |ready| {
            if let Err(failure) = announce(&ready.url, &data, certificate.as_deref(), context, format) {
                print_status(format, &failure.describe());
            }
        });
        tokio::pin!(running);
        loop {
            tokio::select! {
                outcome = &mut running => {
                    return outcome.map(|()| 0).map_err(|error| CommandFailure::Other(error_chain(&error)));
                }
                name = signals.next() => {
                    if shutdown.is_cancelled() {
                        let stopped = "stopped at once; workspaces that have not fallen asleep keep running";
                        print_status(format, stopped);
                        return Ok(signal::exit_code(name));
                    }
                    shutdown.cancel();
                    print_status(
                        format,
                        "stopping; idle workspaces go to sleep, workspaces in use keep running. \
                         Press Ctrl-C again to stop at once",
                    );
                }
            }
        }
    }

    fn config(&self, context: &Context) -> Result<ControlConfig, CommandFailure> {
        let program =
            std::env::current_exe().map_err(CommandFailure::io("cannot find the path of this program"))?;
        let agent_command = vec![program.to_string_lossy().into_owned(), "agent".to_owned()];
        let env = |name: &str| std::env::var(name).ok();
        ControlConfig::load(
            context.global.data.as_deref(),
            &self.control,
            &env,
            ProgramDefaults { agent_command, sleep_idle_on_shutdown: true },
        )
        .map_err(|error| CommandFailure::Usage(error_chain(&error)))
    }
}

fn announce(
    url: &str,
    data: &Path,
    certificate: Option<&Path>,
    context: &Context,
    format: LogFormat,
) -> Result<(), CommandFailure> {
    if context.json() {
        return output::json(&UpReadyJson { url, pid: std::process::id(), data });
    }
    if format == LogFormat::Json {
        log::listening(url);
        return Ok(());
    }
    if let Some(certificate) = certificate {
        notice!(
            "Commands with this data directory trust the certificate {}. Elsewhere, pass --ca with the \
             certificate of its issuer",
            certificate.display()
        );
    }
    let needs_data_flag = needs_data_flag(data, &|name| std::env::var_os(name));
    output::print(&welcome(url, data, needs_data_flag, &program()))
}

/// Returns whether other commands in this environment would use another data directory without the
/// flag.
fn needs_data_flag(data: &Path, env: &dyn Fn(&str) -> Option<OsString>) -> bool {
    let text = |name: &str| env(name).and_then(|value| value.into_string().ok());
    let found = config::data_directory(None, &text).ok();
    found.and_then(|found| std::path::absolute(found).ok()).as_deref() != Some(data)
}

/// Returns the name by which this program was called, so that the printed commands work unchanged.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "podling".to_owned())
}

fn welcome(url: &str, data: &Path, needs_data_flag: bool, program: &str) -> String {
    let data = data.display();
    let option = if needs_data_flag { format!(" --data {data}") } else { String::new() };
    let mut text =
        format!("Podling control plane is ready at {}\nData directory: {data}\n\n", paint(url, Tone::Strong));
    text.push_str("In another terminal, try:\n\n");
    for command in ["create demo", "attach demo", "run demo -- uname -a"] {
        text.push_str(&format!("  {program}{option} {command}\n"));
    }
    text.push_str("\nPress Ctrl-C to stop. Idle workspaces go to sleep; workspaces in use keep running.\n");
    text
}

/// How long the control plane may take to exit once all workspaces are asleep.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between checks whether the control plane has exited.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Put all workspaces to sleep and stop the control plane
///
/// The processes of all workspaces end, and their files stay. Fails if a workspace is in use,
/// unless --force is given. `podling up` starts the control plane again.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// Also end the processes of workspaces that are in use
    #[arg(short, long)]
    force: bool,
}

impl DownArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let target = ControlPlaneTarget::find(&context.global)?;
        let client = Client::connect(&target).await?;
        let spinner = output::spinner("putting all workspaces to sleep");
        let outcome = match client.workspaces().down(DownRequest { force: self.force }).await {
            Ok(answer) => drain(answer.into_inner(), &spinner).await,
            Err(status) => Err(status),
        };
        let ended = outcome.map_err(busy_failure)?;
        if let Some(data) = &target.data {
            spinner.set_message("stopping the control plane");
            wait_until_stopped(data).await?;
        }
        spinner.finish_and_clear();
        if context.json() {
            output::json(&json!({ "ended": ended }))?;
        } else {
            let what = output::counted(ended.into(), "workspace", "workspaces");
            output::line(&format!(
                "stopped the control plane and {what}; all files are kept. Start again with: {}",
                advice::command("up")
            ))?;
        }
        Ok(0)
    }
}

/// Shows the progress until the stream ends. Returns the number of workspaces that were put to
/// sleep.
async fn drain(mut stream: Streaming<DownResponse>, spinner: &indicatif::ProgressBar) -> Result<u32, Status> {
    let mut total = 0;
    let mut remaining = u32::MAX;
    loop {
        match stream.message().await {
            Ok(Some(progress)) => {
                (total, remaining) = (progress.total, progress.remaining);
                spinner.set_message(format!("waiting until {remaining} of {total} workspaces are asleep"));
            }
            Ok(None) => return Ok(total),
            // The control plane stops when everything is asleep, which closes the connection.
            Err(status) if is_retryable(&status) && remaining == 0 => return Ok(total),
            Err(status) => return Err(status),
        }
    }
}

async fn wait_until_stopped(data: &Path) -> Result<(), CommandFailure> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    while target::running(data)?.is_some() {
        if Instant::now() >= deadline {
            let message = "all workspaces are asleep, but the control plane has not exited; see its output";
            return Err(CommandFailure::Unavailable(message.to_owned()));
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Converts a refusal because of workspaces in use to a failure that names them.
fn busy_failure(status: Status) -> CommandFailure {
    let is_busy = error::reason(&status) == Some(Reason::Busy);
    let Some(names) = error::detail(&status, "workspaces").filter(|_| is_busy) else { return status.into() };
    let message = format!(
        "these workspaces are in use, or not connected so that their activity is unknown: {names}; to end \
         their processes: {}",
        advice::command("down --force")
    );
    let details = status.details().to_vec().into();
    Status::with_details_and_metadata(status.code(), message, details, status.metadata().clone()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_flag_is_shown_if_environment_selects_another_directory() {
        let env = |name: &str| match name {
            "PODLING_DATA" => Some(OsString::from("/env")),
            "HOME" => Some(OsString::from("/home/a")),
            _ => None,
        };
        assert!(needs_data_flag(Path::new("/flag"), &env) && !needs_data_flag(Path::new("/env"), &env));
        let home = |name: &str| env(name).filter(|_| name == "HOME");
        assert!(!needs_data_flag(Path::new("/home/a/.local/share/podling"), &home));
    }

    #[test]
    fn start_message_commands_run_unchanged() {
        let usual =
            welcome("http://127.0.0.1:7411", Path::new("/home/a/.local/share/podling"), false, "podling");
        assert!(
            usual.contains("http://127.0.0.1:7411") && usual.contains("\n  podling create demo\n"),
            "{usual}"
        );
        let elsewhere = welcome("http://127.0.0.1:1", Path::new("/d"), true, "./target/release/podling");
        assert!(elsewhere.contains("  ./target/release/podling --data /d attach demo\n"), "{elsewhere}");
    }
}
