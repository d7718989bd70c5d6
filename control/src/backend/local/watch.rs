//! Waiting for the end of an agent, and putting it into words.

use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use serde::Deserialize;
use tokio::io::{Interest, unix::AsyncFd};

use std::os::fd::AsFd;

use super::{launch::read, layout::Places, process::Process};

/// What an agent leaves when it ends by itself.
#[derive(Deserialize)]
struct ExitRecord {
    reason: String,
    code: u8,
}

/// Waits for the end of a process, reaps it if it is our child, and says how it ended.
pub(super) async fn end_of(process: Process, places: &Places) -> String {
    let pidfd = process.into_pidfd();
    // Deprecated because a descriptor may be closed behind its back: this one is owned and closed by nobody else.
    #[allow(deprecated)]
    let watched = AsyncFd::with_interest(pidfd, Interest::READABLE);
    let pidfd = match watched {
        Ok(watched) => {
            let _ended = watched.readable().await;
            watched.into_inner()
        }
        Err(error) => return format!("it cannot be watched: {error}"),
    };
    // An adopted agent is not our child: then only its own record tells.
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    words(status.ok().flatten().as_ref(), places)
}

/// How an agent ended, for people.
pub(super) fn words(status: Option<&WaitIdStatus>, places: &Places) -> String {
    let record: Option<ExitRecord> = read(&places.exit_record);
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
