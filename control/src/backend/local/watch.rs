//! Waits for the end of an agent process and describes it.

use std::{os::fd::AsFd, time::Duration};

use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use serde::Deserialize;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::{layout::WorkspacePaths, process::ProcessHandle, record::read};

/// Pause after an agent could not be watched, because of too little memory or too many watches.
const WATCH_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Record that an agent writes when it exits by itself.
#[derive(Deserialize)]
struct AgentExitRecord {
    reason: String,
    code: u8,
}

/// Waits for the end of a process, reaps it if it is a child, and returns how it ended.
pub(super) async fn wait_end(process: ProcessHandle, paths: &WorkspacePaths) -> String {
    let mut pidfd = process.into_pidfd();
    let pidfd = loop {
        // Deprecated because a descriptor may be closed while it is registered. This one is owned
        // here and not closed elsewhere.
        #[allow(deprecated)]
        let watched = AsyncFd::try_with_interest(pidfd, Interest::READABLE);
        let (kept, error) = match watched {
            Ok(watched) => match watched.readable().await.map(|_| ()) {
                Ok(()) => break watched.into_inner(),
                Err(error) => (watched.into_inner(), error),
            },
            Err(error) => error.into_parts(),
        };
        // The failure to watch an agent says nothing about its end.
        tracing::warn!(%error, "failed to watch agent, retrying");
        pidfd = kept;
        sleep(WATCH_RETRY_DELAY).await;
    };
    // An adopted agent is not a child, so only its exit record tells how it ended.
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    describe_end(status.ok().flatten().as_ref(), paths)
}

/// Describes how an agent ended.
pub(super) fn describe_end(status: Option<&WaitIdStatus>, paths: &WorkspacePaths) -> String {
    // Without a readable record the wait status has to do.
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
