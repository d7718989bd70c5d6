//! Notifies an attached user of what happens outside the terminal: sleep warnings, failures of the
//! workspace's command and the progress of a wake. The calls of this module never wake a workspace.

use std::time::{Duration, SystemTime};

use futures_util::{
    StreamExt as _,
    stream::{self, LocalBoxStream},
};
use podling_proto::agent::v1::{
    ActivityState, SleepCause, SleepWarning, WatchActivityRequest, WatchActivityResponse,
};
use tokio::time::sleep;
use tonic::Streaming;

use crate::{
    backoff::RetryBackoff,
    client::{Client, WorkspaceClient},
    duration::{brief, left},
    output,
    workspace_text::describe,
    workspace_watcher::{WorkspaceChange, WorkspaceWatcher},
};

/// Step of the countdown to sleep, in seconds. The last ten seconds are counted one by one.
const COUNTDOWN_STEP: u64 = 10;

#[derive(Debug, Clone, PartialEq)]
pub enum Notification {
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

/// Stream of notifications that never ends. Dropping it closes the watch that feeds it.
pub type NotificationStream = LocalBoxStream<'static, Notification>;

/// Watch of one workspace's activity across any number of connections.
struct ActivityWatch {
    workspace_client: WorkspaceClient,
    stream: Option<Streaming<WatchActivityResponse>>,
    backoff: RetryBackoff,
}

/// Returns a stream without notifications.
pub fn none() -> NotificationStream {
    stream::pending().boxed_local()
}

/// Returns the sleep warnings of a workspace, and the failures of its command. Reopens a broken
/// connection without a notification.
pub fn activity(workspace_client: &WorkspaceClient) -> NotificationStream {
    let watch = ActivityWatch {
        workspace_client: workspace_client.without_waking(),
        stream: None,
        backoff: RetryBackoff::default(),
    };
    stream::unfold(watch, |mut watch| async move {
        let activity = watch.next().await;
        let notification = Notification::Activity {
            command_failure: command_failure(&activity),
            sleep_warning: activity.sleep_warning.filter(|warning| warning.at.is_some()),
        };
        Some((notification, watch))
    })
    .boxed_local()
}

/// Returns the states that a waking workspace passes through. `id` is the workspace's id.
pub fn wake_progress(client: &Client, id: &str) -> NotificationStream {
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
pub fn warning_text(name: &str, warning: &SleepWarning, now: SystemTime) -> String {
    let left = left(warning.at, now).unwrap_or_default();
    // A countdown in seconds distracts, so only the last ten seconds are counted one by one.
    let left = match left.as_secs() {
        seconds @ COUNTDOWN_STEP.. => Duration::from_secs(seconds / COUNTDOWN_STEP * COUNTDOWN_STEP),
        _ => left,
    };
    let when = brief(left).map_or_else(|| "now".to_owned(), |left| format!("in {left}"));
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

impl ActivityWatch {
    async fn next(&mut self) -> ActivityState {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => match self.workspace_client.activity().watch(WatchActivityRequest {}).await {
                    Ok(opened) => self.stream.insert(opened.into_inner()),
                    Err(_) => {
                        sleep(self.backoff.next_delay()).await;
                        continue;
                    }
                },
            };
            if let Ok(Some(answer)) = stream.message().await {
                self.backoff.reset();
                return answer.activity.unwrap_or_default();
            }
            self.stream = None;
            sleep(self.backoff.next_delay()).await;
        }
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
