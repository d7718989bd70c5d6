//! Waits until an agent process has ended, and describes how it ended.

use std::{os::fd::AsFd, time::Duration};

use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use serde::Deserialize;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::{layout::WorkspacePaths, process::ProcessHandle, record::read};

/// Pause before an agent is watched again after an error, such as a lack of memory.
const WATCH_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The record that an agent writes when it exits by itself.
#[derive(Deserialize)]
struct AgentExitRecord {
    reason: String,
    code: u8,
}

/// Waits until the agent process has ended, and reaps it if it is a child. Returns how it ended, as
/// English text.
pub(super) async fn wait_end(process: ProcessHandle, paths: &WorkspacePaths) -> String {
    let mut pidfd = process.into_pidfd();
    let pidfd = loop {
        // Deprecated because other code may close the descriptor while it is registered. This
        // function owns it.
        #[allow(deprecated)]
        let watched = AsyncFd::try_with_interest(pidfd, Interest::READABLE);
        let (kept, error) = match watched {
            Ok(watched) => match watched.readable().await.map(|_| ()) {
                Ok(()) => break watched.into_inner(),
                Err(error) => (watched.into_inner(), error),
            },
            Err(error) => error.into_parts(),
        };
        // This error does not mean that the agent has ended.
        tracing::warn!(%error, "failed to watch agent; retrying");
        pidfd = kept;
        sleep(WATCH_RETRY_DELAY).await;
    };
    // An adopted agent is not a child, so only its exit record says how it ended.
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    describe_end(status.ok().flatten().as_ref(), paths)
}

/// Describes how an agent ended, as English text. `status` is the wait status; `None` for an agent
/// that is not a child.
pub(super) fn describe_end(status: Option<&WaitIdStatus>, paths: &WorkspacePaths) -> String {
    // A record that cannot be read counts as missing.
    let record: Option<AgentExitRecord> = read(&paths.exit_record).ok().flatten();
    let signal = status.and_then(|status| status.terminating_signal());
    let code = status.and_then(WaitIdStatus::exit_status);
    match (signal, code, record) {
        (Some(signal), ..) => format!("killed by {}", signal_name(signal)),
        (None, Some(code), Some(record)) => format!("{} (exit code {code})", record.reason),
        (None, None, Some(record)) => format!("{} (exit code {})", record.reason, record.code),
        (None, Some(code), None) => format!("exit code {code}; see its log"),
        (None, None, None) => "killed".into(),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}
