//! Waiting for the end of an agent, and putting it into words.

use std::{os::fd::AsFd, time::Duration};

use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use serde::Deserialize;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::{layout::WorkspacePaths, process::ProcessHandle, record::read};

/// Pause after an agent could not be watched (no memory left, too many watches).
const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// What an agent leaves when it ends by itself.
#[derive(Deserialize)]
struct AgentExitRecord {
    reason: String,
    code: u8,
}

/// Waits for the end of a process, reaps it if it is our child, and says how it ended.
pub(super) async fn end_of(process: ProcessHandle, paths: &WorkspacePaths) -> String {
    let mut pidfd = process.into_pidfd();
    let pidfd = loop {
        // Deprecated because a descriptor may be closed behind its back: this one is owned and closed by nobody else.
        #[allow(deprecated)]
        let watched = AsyncFd::try_with_interest(pidfd, Interest::READABLE);
        let (kept, error) = match watched {
            Ok(watched) => match watched.readable().await.map(|_| ()) {
                Ok(()) => break watched.into_inner(),
                Err(error) => (watched.into_inner(), error),
            },
            Err(error) => error.into_parts(),
        };
        // That it cannot be watched is no sign of its end.
        tracing::warn!(%error, "an agent cannot be watched");
        pidfd = kept;
        sleep(WATCH_AGAIN).await;
    };
    // An adopted agent is not our child: then only its own record tells.
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    words(status.ok().flatten().as_ref(), paths)
}

/// How an agent ended, for people.
pub(super) fn words(status: Option<&WaitIdStatus>, paths: &WorkspacePaths) -> String {
    // If it cannot be read, the rest must do.
    let record: Option<AgentExitRecord> = read(&paths.exit_record).ok().flatten();
    let signal = status.and_then(|status| status.terminating_signal());
    let code = status.and_then(WaitIdStatus::exit_status);
    match (signal, code, record) {
        (Some(signal), ..) => format!("killed by {}", signal_name(signal)),
        (None, Some(code), Some(record)) => format!("{} (exit code {code})", record.reason),
        (None, None, Some(record)) => format!("{} (exit code {})", record.reason, record.code),
        (None, Some(code), None) => format!("exit code {code}; its log may say more"),
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
