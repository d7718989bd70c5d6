//! Computes the next step that the control plane takes by itself, and when. Pure.

use std::time::{Duration, SystemTime};

use podling_proto::{
    agent::v1::ActivityLevel,
    control::v1::{AgentConnection, State, Workspace},
    text,
};
use prost_types::Timestamp;

use crate::duration::{from_wire, show};

/// Returns the time until `at`, and zero once it has passed. `None` if `at` is absent or invalid.
pub fn left(at: Option<Timestamp>, now: SystemTime) -> Option<Duration> {
    let at = SystemTime::try_from(at?).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// Renders the time since `at` in whole seconds: "1h 5m". Renders "-" if `at` is absent or invalid.
pub fn since(at: Option<Timestamp>, now: SystemTime) -> String {
    let elapsed = at.and_then(|at| SystemTime::try_from(at).ok()).map(|at| now.duration_since(at));
    match elapsed {
        Some(elapsed) => show(Duration::from_secs(elapsed.unwrap_or_default().as_secs())),
        None => "-".to_owned(),
    }
}

/// Returns the time until an awake workspace falls asleep: the time that its users were warned of,
/// or else the idle time that is missing since the last heartbeat. `None` while the workspace is in
/// use without a warning, or while its agent is not connected.
pub fn sleeps_in(workspace: &Workspace, now: SystemTime) -> Option<Duration> {
    let activity = workspace.activity.as_ref().filter(|_| workspace.state() == State::Awake)?;
    if workspace.connection() != AgentConnection::Connected {
        return None;
    }
    if let Some(warning) = &activity.sleep_warning {
        return left(warning.at, now);
    }
    if activity.level() != ActivityLevel::Idle {
        return None;
    }
    let reported_at = SystemTime::try_from(activity.at?).ok()?;
    let since = now.duration_since(reported_at).unwrap_or_default();
    let missing = from_wire(activity.idle_timeout)?.saturating_sub(from_wire(activity.counted_idle)?);
    Some(missing.saturating_sub(since))
}

/// Returns the idle time of an awake workspace as of its last heartbeat. `None` while the workspace
/// is in use or its agent is not connected.
pub fn idle(workspace: &Workspace) -> Option<Duration> {
    let activity = workspace.activity.as_ref().filter(|_| workspace.state() == State::Awake)?;
    let is_idle =
        workspace.connection() == AgentConnection::Connected && activity.level() == ActivityLevel::Idle;
    from_wire(activity.counted_idle.filter(|_| is_idle))
}

/// Renders the position in the admission queue: "2nd in the admission queue". `None` if the
/// workspace is not queued.
pub fn queue_position(workspace: &Workspace) -> Option<String> {
    let position = workspace.queue_position;
    let ending = match (position % 10, position % 100) {
        (1, n) if n != 11 => "st",
        (2, n) if n != 12 => "nd",
        (3, n) if n != 13 => "rd",
        _ => "th",
    };
    (position > 0).then(|| format!("{position}{ending} in the admission queue"))
}

/// Renders the next step for the column NEXT of `podling ls`: "sleeps in 14m". `None` if no step is
/// planned.
pub fn short(workspace: &Workspace, now: SystemTime) -> Option<String> {
    if workspace.state() == State::Queued && workspace.queue_position > 0 {
        return Some(format!("position {}", workspace.queue_position));
    }
    let next = workspace
        .next
        .as_ref()
        .and_then(|next| Some((text::next_step_verb(next.step()), left(next.at, now)?)));
    let (what, left) = sleeps_in(workspace, now).map(|left| ("sleeps", left)).or(next)?;
    Some(match brief(left) {
        None => format!("{what} now").trim_start().to_owned(),
        Some(left) => format!("{what} in {left}").trim_start().to_owned(),
    })
}

/// Renders a duration, rounded to the nearest minute if it is a minute or longer. `None` if it is
/// shorter than a second.
pub fn brief(left: Duration) -> Option<String> {
    match left.as_secs() {
        0 => None,
        seconds @ ..60 => Some(show(Duration::from_secs(seconds))),
        seconds => Some(show(Duration::from_secs((seconds + 30) / 60 * 60))),
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::{
        agent::v1::{ActivityState, SleepWarning},
        control::v1::{NextStep, next_step::Step},
    };

    use super::*;
    use crate::duration::to_wire;

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn idle_workspace() -> Workspace {
        let activity = ActivityState {
            level: ActivityLevel::Idle.into(),
            counted_idle: Some(to_wire(Duration::from_secs(60))),
            idle_timeout: Some(to_wire(Duration::from_secs(900))),
            at: Some(time(1_000).into()),
            ..ActivityState::default()
        };
        Workspace {
            state: State::Awake.into(),
            connection: AgentConnection::Connected.into(),
            activity: Some(activity),
            ..Workspace::default()
        }
    }

    #[test]
    fn idle_workspace_sleeps_once_its_idle_time_is_over() {
        let mut workspace = idle_workspace();
        assert_eq!(short(&workspace, time(1_010)).as_deref(), Some("sleeps in 14m"));
        assert_eq!(idle(&workspace), Some(Duration::from_secs(60)));
        let warning = SleepWarning { at: Some(time(1_100).into()), cause: 0 };
        workspace.activity.as_mut().expect("activity").sleep_warning = Some(warning);
        assert_eq!(
            short(&workspace, time(1_010)).as_deref(),
            Some("sleeps in 2m"),
            "the warning takes precedence"
        );
        workspace.set_connection(AgentConnection::Unknown);
        assert_eq!(
            (short(&workspace, time(1_010)), idle(&workspace)),
            (None, None),
            "a silent agent has no known next step"
        );
    }

    #[test]
    fn workspace_in_use_has_no_next_step() {
        let mut workspace = idle_workspace();
        workspace.activity.as_mut().expect("activity").level = ActivityLevel::Busy.into();
        assert_eq!((short(&workspace, time(1_010)), idle(&workspace)), (None, None));
    }

    #[test]
    fn column_shows_the_next_step_in_few_words() {
        let next = |state: State, step: Step, seconds| {
            let workspace = Workspace {
                state: state.into(),
                next: Some(NextStep {
                    step: step.into(),
                    at: Some(time(seconds).into()),
                    ..NextStep::default()
                }),
                ..Workspace::default()
            };
            short(&workspace, time(0)).expect("a next step")
        };
        assert_eq!(next(State::Asleep, Step::Archive, 82_920), "archives in 23h 2m");
        assert_eq!(next(State::Failed, Step::RestartAgent, 0), "retries now");
        assert_eq!(
            next(State::Asleep, Step::Unspecified, 80),
            "in 1m",
            "a step that this version does not know"
        );
    }

    #[test]
    fn queue_position_is_an_ordinal() {
        let position =
            |position| queue_position(&Workspace { queue_position: position, ..Workspace::default() });
        let said: Vec<_> = [0, 1, 2, 3, 4, 11, 12, 21, 112].into_iter().map(position).collect();
        let said: Vec<_> = said.iter().map(|text| text.as_deref().unwrap_or("-")).collect();
        let queue = |text: &str| format!("{text} in the admission queue");
        assert_eq!(said[0], "-");
        assert_eq!(said[1..], ["1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "112th"].map(queue));
    }
}
