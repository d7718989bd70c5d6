//! What happens to a workspace next by itself, and when, in few words. Pure.

use std::time::{Duration, SystemTime};

use podling_proto::{
    agent::v1::ActivityLevel,
    control::v1::{AgentConnection, State, Workspace},
};
use prost_types::Timestamp;

use crate::duration::{from_wire, show};

/// The control plane's words for what comes, and ours where there is little room. Of words that are not here only the time is told.
const SHORT: &[(&str, &str)] = &[
    ("it falls asleep unless it is used", "sleeps"),
    ("it has been awake for as long as it may", "sleeps"),
    ("it is warned of its sleep", "is warned"),
    ("its storage is archived and let go", "archived"),
    ("its oldest archive is removed", "archive ends"),
    ("it is restored from its archive", "restored"),
    ("its agent is started again", "tried again"),
    ("what went wrong is tried again", "tried again"),
    ("a silent agent is started anew", "restarted"),
    ("an agent that does not say hello is given up", "given up"),
    ("it counts as healthy", "is healthy"),
];

/// How long until then; none left when it has passed.
pub fn left(at: Option<Timestamp>, now: SystemTime) -> Option<Duration> {
    let at = SystemTime::try_from(at?).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// How long ago it was.
pub fn since(at: Option<Timestamp>, now: SystemTime) -> String {
    let elapsed = at.and_then(|at| SystemTime::try_from(at).ok()).map(|at| now.duration_since(at));
    match elapsed {
        Some(elapsed) => show(Duration::from_secs(elapsed.unwrap_or_default().as_secs())),
        None => "-".to_owned(),
    }
}

/// When it falls asleep if nobody uses it: as people were warned, else by its last heartbeat. Nothing while it is used or nobody
/// hears it.
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
    let heard = SystemTime::try_from(activity.at?).ok()?;
    let since = now.duration_since(heard).unwrap_or_default();
    let missing = from_wire(activity.idle_timeout)?.saturating_sub(from_wire(activity.counted_idle)?);
    Some(missing.saturating_sub(since))
}

/// Idle time that counts; nothing while it is used or nobody hears it.
pub fn idle(workspace: &Workspace) -> Option<Duration> {
    let activity = workspace.activity.as_ref().filter(|_| workspace.state() == State::Awake)?;
    let is_idle =
        workspace.connection() == AgentConnection::Connected && activity.level() == ActivityLevel::Idle;
    from_wire(activity.counted_idle.filter(|_| is_idle))
}

/// Its place in the line of those who wait for room.
pub fn place(workspace: &Workspace) -> Option<String> {
    let place = workspace.queue_position;
    let ending = match (place % 10, place % 100) {
        (1, n) if n != 11 => "st",
        (2, n) if n != 12 => "nd",
        (3, n) if n != 13 => "rd",
        _ => "th",
    };
    (place > 0).then(|| format!("{place}{ending} in line"))
}

/// For a column.
pub fn short(workspace: &Workspace, now: SystemTime) -> Option<String> {
    if let Some(place) = place(workspace).filter(|_| workspace.state() == State::Queued) {
        return Some(place);
    }
    let reason = workspace.next_transition_reason.as_str();
    let next = left(workspace.next_transition, now).map(|left| {
        let known = SHORT.iter().find(|(words, _)| *words == reason);
        (known.map_or("", |(_, short)| short), left)
    });
    let (what, left) = sleeps_in(workspace, now).map(|left| ("sleeps", left)).or(next)?;
    Some(match brief(left) {
        None => format!("{what} now").trim_start().to_owned(),
        Some(left) => format!("{what} in {left}").trim_start().to_owned(),
    })
}

/// A duration as short as it can be said: from a minute on to the nearest minute. None: less than a second.
pub fn brief(left: Duration) -> Option<String> {
    match left.as_secs() {
        0 => None,
        seconds @ ..60 => Some(show(Duration::from_secs(seconds))),
        seconds => Some(show(Duration::from_secs((seconds + 30) / 60 * 60))),
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::agent::v1::{ActivityState, SleepWarning};

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
    fn an_idle_one_sleeps_when_its_idle_time_is_over() {
        let mut workspace = idle_workspace();
        assert_eq!(short(&workspace, time(1_010)).as_deref(), Some("sleeps in 14m"));
        assert_eq!(idle(&workspace), Some(Duration::from_secs(60)));
        let warning = SleepWarning { at: Some(time(1_100).into()), reason: String::new() };
        workspace.activity.as_mut().expect("activity").sleep_warning = Some(warning);
        assert_eq!(short(&workspace, time(1_010)).as_deref(), Some("sleeps in 2m"), "as was said");
        workspace.set_connection(AgentConnection::Unknown);
        assert_eq!((short(&workspace, time(1_010)), idle(&workspace)), (None, None), "nobody knows");
    }

    #[test]
    fn one_in_use_has_no_end() {
        let mut workspace = idle_workspace();
        workspace.activity.as_mut().expect("activity").level = ActivityLevel::Busy.into();
        assert_eq!((short(&workspace, time(1_010)), idle(&workspace)), (None, None));
    }

    #[test]
    fn the_control_planes_next_step_is_told_in_few_words() {
        let next = |state: State, reason: &str, seconds| {
            let workspace = Workspace {
                state: state.into(),
                next_transition: Some(time(seconds).into()),
                next_transition_reason: reason.to_owned(),
                ..Workspace::default()
            };
            short(&workspace, time(0)).expect("a next step")
        };
        assert_eq!(next(State::Asleep, "its storage is archived and let go", 82_920), "archived in 23h 2m");
        assert_eq!(next(State::Failed, "its agent is started again", 0), "tried again now");
        assert_eq!(next(State::Asleep, "words of a later version", 80), "in 1m");
    }

    #[test]
    fn a_place_in_line_is_said_as_people_say_it() {
        let place = |queue_position| place(&Workspace { queue_position, ..Workspace::default() });
        let said: Vec<_> = [0, 1, 2, 3, 4, 11, 12, 21, 112].into_iter().map(place).collect();
        let said: Vec<_> = said.iter().map(|place| place.as_deref().unwrap_or("-")).collect();
        let line = |text: &str| format!("{text} in line");
        assert_eq!(said[0], "-");
        assert_eq!(said[1..], ["1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "112th"].map(line));
    }
}
