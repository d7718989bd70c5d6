//! Failpoints for tests. At a failpoint the control plane kills itself, either before an action
//! starts, or after its result arrived and before it is recorded. Compiled into debug builds only.

use podling_core::decide::Action;

/// Name of the failpoint: `ACTION:before` or `ACTION:after`, such as `archive:after`.
const VARIABLE: &str = "PODLING_TEST_FAILPOINT";

/// Kills the process if the failpoint is set to this action and moment.
pub(super) fn hit(action: Action, moment: &str) {
    if std::env::var(VARIABLE).is_ok_and(|at| at == format!("{}:{moment}", name(action))) {
        tracing::error!(?action, moment, "failpoint reached; killing the process");
        // SIGKILL prevents unwinding and cleanup, as a crash does.
        let _dead = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

fn name(action: Action) -> &'static str {
    match action {
        Action::StartAgent(_) => "start-agent",
        Action::Prepare { .. } => "prepare",
        Action::Commit(_) => "commit",
        Action::Cancel(_) => "cancel",
        Action::Resize { .. } => "resize",
        Action::StopProcesses => "stop-processes",
        Action::Archive(_) => "archive",
        Action::Restore(_) => "restore",
        Action::RemoveStorage => "remove-storage",
        Action::ExpireArchive(_) => "expire-archive",
        Action::RemoveRecord => "remove-record",
    }
}
