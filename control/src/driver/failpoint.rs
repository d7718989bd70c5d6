//! Where a test lets the control plane die: as by kill -9, before an order is given (what stands behind it is durable) or when its
//! outcome has come and nothing of it is. Compiled into debug builds only.

use podling_core::decide::Action;

/// `ACTION:before` or `ACTION:after`, such as `archive:after`.
const VARIABLE: &str = "PODLING_TEST_DIE_AT";

/// Dies here if it is told to.
pub(super) fn hit(action: Action, moment: &str) {
    if std::env::var(VARIABLE).is_ok_and(|at| at == format!("{}:{moment}", name(action))) {
        tracing::error!(?action, moment, "dies, as a test told it to");
        // No unwinding, no farewell. (SIGKILL, so that it is what a machine would do.)
        let _dead = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

fn name(action: Action) -> &'static str {
    match action {
        Action::Start(_) => "start",
        Action::Prepare { .. } => "prepare",
        Action::Commit(_) => "commit",
        Action::Cancel(_) => "cancel",
        Action::Resize { .. } => "resize",
        Action::Stop => "stop",
        Action::Archive(_) => "archive",
        Action::Restore(_) => "restore",
        Action::Remove => "remove",
        Action::Expire(_) => "expire",
        Action::Forget => "forget",
    }
}
