//! Notifications for an attached user from outside the terminal: sleep warnings and wake progress.
//! None of these calls wakes a workspace.

use std::time::{Duration, SystemTime};

use futures_util::{
    StreamExt as _,
    stream::{self, LocalBoxStream},
};
use podling_proto::agent::v1::{SleepWarning, WatchActivityRequest, WatchActivityResponse};
use prost_types::Timestamp;
use tokio::time::sleep;
use tonic::Streaming;

use crate::{
    backoff::RetryBackoff,
    client::{Client, WorkspaceClient},
    next_transition::{brief, left},
    state_waiter::describe,
    workspace_watcher::{WorkspaceChange, WorkspaceWatcher},
};

/// Granularity of the countdown to sleep, in seconds. The last ten seconds are counted one by one.
const COUNTDOWN_STEP: u64 = 10;

#[derive(Debug, Clone, PartialEq)]
pub enum Notification {
    /// The workspace sleeps at this time unless it is used. `None` withdraws the warning.
    SleepsAt(Option<Timestamp>),
    /// State of a workspace that is waking, as text.
    Status(String),
}

/// Endless stream. Dropping it ends the watch behind it.
pub type NotificationStream = LocalBoxStream<'static, Notification>;

/// Activity watch of one workspace, reopened when it breaks.
struct ActivityWatch {
    workspace_client: WorkspaceClient,
    stream: Option<Streaming<WatchActivityResponse>>,
    backoff: RetryBackoff,
}

/// Returns a stream without notifications.
pub fn none() -> NotificationStream {
    stream::pending().boxed_local()
}

/// Returns the sleep warnings of a workspace. A broken connection is retried silently.
pub fn sleep_warnings(workspace_client: &WorkspaceClient) -> NotificationStream {
    let watch = ActivityWatch {
        workspace_client: workspace_client.without_waking(),
        stream: None,
        backoff: RetryBackoff::default(),
    };
    stream::unfold(watch, |mut watch| async move {
        let warning = watch.next().await;
        Some((Notification::SleepsAt(warning.and_then(|warning| warning.at)), watch))
    })
    .boxed_local()
}

/// Returns the states of a workspace (by id) that is waking.
pub fn wake_progress(client: &Client, id: &str) -> NotificationStream {
    let follow = WorkspaceWatcher::new(client.clone(), id.to_owned());
    stream::unfold(follow, |mut follow| async move {
        match follow.next().await {
            Ok(WorkspaceChange::Current(workspace)) => {
                Some((Notification::Status(describe(&workspace)), follow))
            }
            // The attempt to attach reports the reason.
            Ok(WorkspaceChange::Deleted) | Err(_) => None,
        }
    })
    .chain(stream::pending())
    .boxed_local()
}

/// Returns the text of a sleep warning.
pub fn warning_text(name: &str, at: Timestamp, now: SystemTime) -> String {
    let left = left(Some(at), now).unwrap_or_default();
    // A countdown by seconds distracts; only the last ten seconds are shown exactly.
    let left = match left.as_secs() {
        seconds @ COUNTDOWN_STEP.. => Duration::from_secs(seconds / COUNTDOWN_STEP * COUNTDOWN_STEP),
        _ => left,
    };
    let when = brief(left).map_or_else(|| "now".to_owned(), |left| format!("in {left}"));
    format!("{name} sleeps {when}; press any key to keep it awake")
}

impl ActivityWatch {
    async fn next(&mut self) -> Option<SleepWarning> {
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
                return answer.activity.unwrap_or_default().sleep_warning;
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
        let at = |seconds| Timestamp::from(now + Duration::from_secs(seconds));
        assert_eq!(warning_text("demo", at(119), now), "demo sleeps in 2m; press any key to keep it awake");
        assert_eq!(warning_text("demo", at(29), now), "demo sleeps in 20s; press any key to keep it awake");
        assert_eq!(warning_text("demo", at(9), now), "demo sleeps in 9s; press any key to keep it awake");
        assert_eq!(warning_text("demo", at(0), now), "demo sleeps now; press any key to keep it awake");
    }
}
