//! What people at a terminal are told from outside of it: that the workspace will sleep, and how it comes back. None of it wakes
//! anything.

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
    backoff::Backoff,
    client::{Client, Inside},
    follow::{Change, Follow},
    journey::describe,
    upcoming::{brief, left},
};

/// Seconds in which the time that is left until sleep is told, but for the last ones.
const STEP: u64 = 10;

/// One piece of news.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// It sleeps at this time unless it is used; `None`: nobody says so any more.
    Sleeps(Option<Timestamp>),
    /// What it is doing.
    Doing(String),
}

/// Where news come from; dropped, nothing is asked any more.
pub type Source = LocalBoxStream<'static, News>;

/// A stream of activities, and the way to the next.
struct Watch {
    inside: Inside,
    stream: Option<Streaming<WatchActivityResponse>>,
    backoff: Backoff,
}

/// No news.
pub fn none() -> Source {
    stream::pending().boxed_local()
}

/// The warnings before sleep, as long as there is an agent; a link that breaks is no news.
pub fn warnings(inside: &Inside) -> Source {
    let watch = Watch { inside: inside.quiet(), stream: None, backoff: Backoff::default() };
    stream::unfold(watch, |mut watch| async move {
        let warning = watch.next().await;
        Some((News::Sleeps(warning.and_then(|warning| warning.at)), watch))
    })
    .boxed_local()
}

/// How the workspace with this id fares on its way back.
pub fn journey(client: &Client, id: &str) -> Source {
    let follow = Follow::new(client.clone(), id.to_owned());
    stream::unfold(follow, |mut follow| async move {
        match follow.next().await {
            Ok(Change::Now(workspace)) => Some((News::Doing(describe(&workspace)), follow)),
            // The attempt to attach says why.
            Ok(Change::Gone) | Err(_) => None,
        }
    })
    .chain(stream::pending())
    .boxed_local()
}

/// The warning for a corner of the screen.
pub fn warning(name: &str, at: Timestamp, now: SystemTime) -> String {
    let left = left(Some(at), now).unwrap_or_default();
    // Seconds that run by draw the eye; the last ones may.
    let left = match left.as_secs() {
        seconds @ STEP.. => Duration::from_secs(seconds / STEP * STEP),
        _ => left,
    };
    let when = brief(left).map_or_else(|| "now".to_owned(), |left| format!("in {left}"));
    format!("{name} sleeps {when}; any key keeps it awake")
}

impl Watch {
    async fn next(&mut self) -> Option<SleepWarning> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => match self.inside.activity().watch(WatchActivityRequest {}).await {
                    Ok(opened) => self.stream.insert(opened.into_inner()),
                    Err(_) => {
                        sleep(self.backoff.step()).await;
                        continue;
                    }
                },
            };
            if let Ok(Some(answer)) = stream.message().await {
                self.backoff.reset();
                return answer.activity.unwrap_or_default().sleep_warning;
            }
            self.stream = None;
            sleep(self.backoff.step()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_says_how_long_is_left_and_what_to_do() {
        let now = SystemTime::UNIX_EPOCH;
        let at = |seconds| Timestamp::from(now + Duration::from_secs(seconds));
        assert_eq!(warning("demo", at(119), now), "demo sleeps in 2m; any key keeps it awake");
        assert_eq!(warning("demo", at(29), now), "demo sleeps in 20s; any key keeps it awake");
        assert_eq!(warning("demo", at(9), now), "demo sleeps in 9s; any key keeps it awake");
        assert_eq!(warning("demo", at(0), now), "demo sleeps now; any key keeps it awake");
    }
}
