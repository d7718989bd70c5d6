//! Notifies an attached user of what happens outside the terminal: sleep warnings, failures of the
//! workspace's command and the progress of a wake. The calls of this module never wake a workspace.

use std::time::{Duration, SystemTime};

use futures_util::{
    StreamExt as _,
    stream::{self, LocalBoxStream},
};
use podling_proto::{
    agent::v1::{ActivityState, SleepCause, SleepWarning, WatchActivityRequest},
    control::v1::Workspace,
};
use tokio::time::Instant;

use crate::{
    backoff::ResumedStream,
    client::{Client, WorkspaceClient},
    duration::{left, when},
    output,
    workspace_text::describe,
    workspace_watcher::{WorkspaceChange, WorkspaceWatcher},
};

/// Step of the countdown to sleep, in seconds. The last ten seconds are counted one by one.
const COUNTDOWN_STEP: u64 = 10;

/// Interval at which the countdown to sleep is redrawn.
const WARNING_INTERVAL: Duration = Duration::from_secs(5);
/// How long the failure of the workspace's command is shown.
const COMMAND_FAILURE_SHOWN: Duration = Duration::from_secs(10);

/// The notifications of one session, and the notice about them that the screen shows.
pub struct SessionNotices {
    /// Never ends. Dropping it closes the watch that feeds it.
    stream: LocalBoxStream<'static, Notification>,
    /// When and why the workspace falls asleep.
    warning: Option<SleepWarning>,
    /// The last failure of the workspace's command, and the time until which it is shown.
    command_failure: Option<(String, Instant)>,
    /// State of the waking workspace, as text.
    wake_status: String,
}

enum Notification {
    /// The agent reported its activity.
    Activity {
        /// The workspace falls asleep at the time in the warning. `None` withdraws the warning.
        sleep_warning: Option<SleepWarning>,
        /// How the workspace's command fails; `None` if it does not.
        command_failure: Option<String>,
    },
    /// State of a workspace that is waking, as text.
    Status(String),
}

impl SessionNotices {
    /// Starts without a watch. The caller has shown the failure of the workspace's command already.
    pub fn new(workspace: &Workspace) -> Self {
        let failure = workspace.activity.as_ref().and_then(command_failure);
        Self {
            stream: stream::pending().boxed_local(),
            warning: None,
            command_failure: failure.map(|failure| (failure, Instant::now())),
            wake_status: String::new(),
        }
    }

    /// Watches the activity of an awake workspace.
    pub fn watch_activity(&mut self, workspace_client: &WorkspaceClient) {
        self.wake_status.clear();
        self.stream = activity(workspace_client);
    }

    /// Watches the states that a waking workspace passes through. `id` is the workspace's id.
    pub fn watch_wake(&mut self, client: &Client, id: &str) {
        self.stream = wake_progress(client, id);
    }

    /// Stops the watch of a workspace that sleeps, and withdraws the warning.
    pub fn stop(&mut self) {
        self.warning = None;
        self.stream = stream::pending().boxed_local();
    }

    /// Withdraws the warning before the agent does so, because the workspace is used.
    pub fn withdraw_warning(&mut self) {
        self.warning = None;
    }

    /// Waits for the next notification and records it. Cancel-safe.
    pub async fn next(&mut self) {
        match self.stream.next().await {
            Some(Notification::Activity { sleep_warning, command_failure }) => {
                self.warning = sleep_warning;
                let known = self.command_failure.as_ref().map(|(known, _)| known);
                if command_failure.is_none() || known != command_failure.as_ref() {
                    let until = Instant::now() + COMMAND_FAILURE_SHOWN;
                    self.command_failure = command_failure.map(|failure| (failure, until));
                }
            }
            Some(Notification::Status(doing)) => self.wake_status = doing,
            None => std::future::pending().await,
        }
    }

    /// Returns when the notice changes without a notification.
    pub fn changes_at(&self) -> Option<Instant> {
        let warning = self.warning.as_ref().map(|_| Instant::now() + WARNING_INTERVAL);
        let failure = self.command_failure.as_ref().map(|(_, until)| *until);
        warning.into_iter().chain(failure.filter(|until| *until > Instant::now())).min()
    }

    /// Renders the notice for a waking workspace.
    pub fn waking_text(&self) -> String {
        format!("waking … {}", self.wake_status).trim_end().to_owned()
    }

    /// Renders the notice for the workspace with this name: a warning, or else a failure of its
    /// command.
    pub fn text(&self, name: &str) -> Option<String> {
        match (&self.warning, &self.command_failure) {
            (Some(warning), _) => Some(warning_text(name, warning, SystemTime::now())),
            (None, Some((failure, until))) if *until > Instant::now() => Some(failure.clone()),
            (None, _) => None,
        }
    }
}

/// Returns the sleep warnings of a workspace, and the failures of its command. Reopens a broken
/// connection without a notification.
fn activity(workspace_client: &WorkspaceClient) -> LocalBoxStream<'static, Notification> {
    let watch = (workspace_client.without_waking(), ResumedStream::default());
    stream::unfold(watch, |(client, mut stream)| async move {
        loop {
            let open = async || client.activity().watch(WatchActivityRequest {}).await;
            if let Ok(Some(answer)) = stream.next(open).await {
                let activity = answer.activity.unwrap_or_default();
                let notification = Notification::Activity {
                    command_failure: command_failure(&activity),
                    sleep_warning: activity.sleep_warning.filter(|warning| warning.at.is_some()),
                };
                return Some((notification, (client, stream)));
            }
            stream.back_off().await;
        }
    })
    .boxed_local()
}

/// Returns the states that a waking workspace passes through. `id` is the workspace's id.
fn wake_progress(client: &Client, id: &str) -> LocalBoxStream<'static, Notification> {
    let follow = WorkspaceWatcher::new(client.clone(), id.to_owned());
    stream::unfold(follow, |mut follow| async move {
        match follow.next().await {
            Ok(WorkspaceChange::Current(workspace)) => {
                Some((Notification::Status(describe(&workspace)), follow))
            }
            // The attempt to attach reports the reason, so no notification is needed.
            Ok(WorkspaceChange::Deleted) | Err(_) => None,
            Ok(WorkspaceChange::Disconnected) => {
                Some((Notification::Status("the control plane does not answer".to_owned()), follow))
            }
        }
    })
    .chain(stream::pending())
    .boxed_local()
}

/// Renders how the workspace's command fails. `None` if it does not fail.
pub fn command_failure(activity: &ActivityState) -> Option<String> {
    let failure = activity.command_failure.as_ref()?;
    Some(format!("the workspace's command fails: {}", output::plain(&failure.detail)))
}

/// Renders a sleep warning for the workspace with this name. Only a sleep for idleness depends on a
/// key.
fn warning_text(name: &str, warning: &SleepWarning, now: SystemTime) -> String {
    let left = left(warning.at, now).unwrap_or_default();
    // A countdown in seconds distracts, so only the last ten seconds are counted one by one.
    let left = match left.as_secs() {
        seconds @ COUNTDOWN_STEP.. => Duration::from_secs(seconds / COUNTDOWN_STEP * COUNTDOWN_STEP),
        _ => left,
    };
    let when = when(left);
    match warning.cause() {
        SleepCause::Unspecified | SleepCause::Idle => {
            format!("{name} falls asleep {when}; press any key to keep it awake")
        }
        SleepCause::Requested => format!("{name} falls asleep {when}, as requested"),
        SleepCause::MaxAwake => format!("{name} falls asleep {when}, after its longest time awake"),
        SleepCause::Deleted => format!("{name} is being deleted; its programs end {when}"),
        SleepCause::Shutdown => format!("{name} is stopped {when} by a shutdown"),
    }
}

impl std::fmt::Debug for SessionNotices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionNotices").field("warning", &self.warning).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_warning_shows_time_left() {
        let now = SystemTime::UNIX_EPOCH;
        let of = |seconds, cause: SleepCause| SleepWarning {
            at: Some((now + Duration::from_secs(seconds)).into()),
            cause: cause.into(),
        };
        let at = |seconds| of(seconds, SleepCause::Idle);
        assert_eq!(
            warning_text("demo", &of(9, SleepCause::Deleted), now),
            "demo is being deleted; its programs end in 9s",
            "no key keeps it awake"
        );
        assert_eq!(
            warning_text("demo", &at(119), now),
            "demo falls asleep in 2m; press any key to keep it awake"
        );
        assert_eq!(
            warning_text("demo", &at(29), now),
            "demo falls asleep in 20s; press any key to keep it awake"
        );
        assert_eq!(
            warning_text("demo", &at(9), now),
            "demo falls asleep in 9s; press any key to keep it awake"
        );
        assert_eq!(
            warning_text("demo", &at(0), now),
            "demo falls asleep now; press any key to keep it awake"
        );
    }
}
