//! Renders a workspace for users: its state, resources, progress and next step. Pure.

use std::time::{Duration, SystemTime};

use indicatif::HumanBytes;
use podling_proto::{
    control::v1::{AgentConnection, Progress, Resources, State, Workspace, progress::Stage},
    text,
};

use crate::{
    duration::{from_wire, left, when},
    output::{Tone, plain},
};

/// Returns the public name of a state, as JSON and tables show it: "falling-asleep".
pub fn state(state: State) -> String {
    match state {
        State::Unspecified => "unknown".to_owned(),
        state => text::word(state.as_str_name(), "STATE_"),
    }
}

/// Renders a state as the predicate of a sentence: "is falling asleep".
pub fn state_clause(of: State) -> String {
    match of {
        State::Unspecified => "is in a state that this client does not know".to_owned(),
        State::Archiving => "is being archived".to_owned(),
        State::Deleting => "is being deleted".to_owned(),
        State::Failed => "has failed".to_owned(),
        of => format!("is {}", state(of).replace('-', " ")),
    }
}

/// Returns the colour of a state; `None` for states that need no attention.
pub fn state_tone(state: State) -> Option<Tone> {
    match state {
        State::Awake => Some(Tone::Good),
        State::Failed => Some(Tone::Bad),
        State::Queued | State::Starting | State::FallingAsleep | State::Archiving | State::Deleting => {
            Some(Tone::Notice)
        }
        State::Unspecified | State::Asleep | State::Archived => None,
    }
}

/// Renders the state, the queue position and the reason in one line: "demo is asleep: idle for the
/// whole idle timeout".
pub fn describe(workspace: &Workspace) -> String {
    let mut line = format!("{} {}", workspace.name, state_clause(workspace.state()));
    if let Some(position) = queue_position(workspace) {
        line.push_str(&format!(", {position}"));
    }
    if workspace.reason.is_some() {
        line.push_str(&format!(": {}", reason(workspace)));
    }
    line
}

/// Renders the reason for the state of a workspace. Empty if there is none.
pub fn reason(workspace: &Workspace) -> String {
    workspace.reason.as_ref().map(|reason| plain(&text::state_reason(reason))).unwrap_or_default()
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
    if activity.level().in_use() != Some(false) {
        return None;
    }
    let reported_at = SystemTime::try_from(activity.at?).ok()?;
    let since = now.duration_since(reported_at).unwrap_or_default();
    let missing = from_wire(activity.idle_timeout)?.saturating_sub(from_wire(activity.counted_idle)?);
    Some(missing.saturating_sub(since))
}

/// Returns the idle time of an awake workspace as of its last heartbeat. `None` while the workspace
/// is in use or its agent is not connected.
pub fn idle_time(workspace: &Workspace) -> Option<Duration> {
    let activity = workspace.activity.as_ref().filter(|_| workspace.state() == State::Awake)?;
    let is_idle =
        workspace.connection() == AgentConnection::Connected && activity.level().in_use() == Some(false);
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
pub fn next_step(workspace: &Workspace, now: SystemTime) -> Option<String> {
    if workspace.state() == State::Queued && workspace.queue_position > 0 {
        return Some(format!("position {}", workspace.queue_position));
    }
    let next = workspace
        .next
        .as_ref()
        .and_then(|next| Some((text::next_step_verb(next.step()), left(next.at, now)?)));
    let (what, left) = sleeps_in(workspace, now).map(|left| ("sleeps", left)).or(next)?;
    Some(format!("{what} {}", when(left)).trim_start().to_owned())
}

/// Renders the resources that the workspace has and those that it waits for, as a clause without
/// its subject: "has 1 core and 1.00 GiB".
pub fn describe_resources(workspace: &Workspace) -> String {
    let requested = workspace.requested.unwrap_or_default();
    if let Some(actual) = pending_resize(workspace) {
        let why = workspace.waiting.as_ref().map(text::state_reason);
        let why = why.map(|why| format!(": {}", plain(&why))).unwrap_or_default();
        return format!("has {}, and not yet {}{why}", amount(&actual), amount(&requested));
    }
    match &workspace.allocated {
        None if workspace.state() == State::Queued => {
            format!("waits until its owner's quota and the total capacity allow {}", amount(&requested))
        }
        None => format!("gets {} when it is awake", amount(&requested)),
        Some(allocated) if *allocated == requested => format!("has {}", amount(allocated)),
        Some(allocated) => {
            let position =
                queue_position(workspace).map(|position| format!(", {position}")).unwrap_or_default();
            format!("has {} and waits for {}{position}", amount(allocated), amount(&requested))
        }
    }
}

/// Returns the actual resources of an awake workspace whose resize is not done. `None` if it is done,
/// or waits in the admission queue.
pub fn pending_resize(workspace: &Workspace) -> Option<Resources> {
    let is_admitted = workspace.state() == State::Awake && workspace.allocated == workspace.requested;
    workspace.actual.filter(|actual| is_admitted && Some(*actual) != workspace.requested)
}

fn amount(resources: &Resources) -> String {
    let cores = resources.cpu_millis as f64 / 1000.0;
    let word = if resources.cpu_millis == 1000 { "core" } else { "cores" };
    format!("{cores} {word} and {}", HumanBytes(resources.memory_bytes))
}

/// Renders the stage, the entries and the bytes: "archiving, 7 entries, 2.00 KiB of 4.00 KiB".
pub fn describe_progress(progress: &Progress) -> String {
    let done = HumanBytes(progress.bytes);
    match progress.total_bytes {
        0 => format!("{}, {done} so far", describe_stage(progress)),
        total => format!("{}, {done} of {}", describe_stage(progress), HumanBytes(total)),
    }
}

/// Renders the stage and the entries: "archiving, 7 of 9 entries".
pub fn describe_stage(progress: &Progress) -> String {
    let what = match progress.stage() {
        Stage::Unspecified => "working",
        Stage::Archiving => "archiving",
        Stage::Proving => "verifying the archive",
        Stage::Downloading => "downloading the archive",
        Stage::Extracting => "extracting",
    };
    match (progress.entries, progress.total_entries) {
        (0, _) => what.to_owned(),
        (entries, 0) => format!("{what}, {entries} entries"),
        (entries, total) => format!("{what}, {entries} of {total} entries"),
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::{
        agent::v1::{ActivityLevel, ActivityState, SleepWarning},
        control::v1::{NextStep, StateReason, StateReasonCode, next_step::Step},
    };

    use super::*;
    use crate::duration::to_wire;

    #[test]
    fn queued_workspace_shows_its_position() {
        let code = StateReasonCode::Unspecified.into();
        let detail = "a request asked it to wake".to_owned();
        let queued = Workspace {
            state: State::Queued.into(),
            name: "demo".to_owned(),
            reason: Some(StateReason { code, detail, ..StateReason::default() }),
            queue_position: 2,
            ..Workspace::default()
        };
        assert_eq!(
            describe(&queued),
            "demo is queued, 2nd in the admission queue: a request asked it to wake"
        );
    }

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
        assert_eq!(next_step(&workspace, time(1_010)).as_deref(), Some("sleeps in 14m"));
        assert_eq!(idle_time(&workspace), Some(Duration::from_secs(60)));
        let warning = SleepWarning { at: Some(time(1_100).into()), cause: 0 };
        workspace.activity.as_mut().expect("activity").sleep_warning = Some(warning);
        assert_eq!(
            next_step(&workspace, time(1_010)).as_deref(),
            Some("sleeps in 2m"),
            "the warning takes precedence"
        );
        workspace.set_connection(AgentConnection::Unknown);
        assert_eq!(
            (next_step(&workspace, time(1_010)), idle_time(&workspace)),
            (None, None),
            "a silent agent has no known next step"
        );
    }

    #[test]
    fn workspace_in_use_has_no_next_step() {
        let mut workspace = idle_workspace();
        workspace.activity.as_mut().expect("activity").level = ActivityLevel::Busy.into();
        assert_eq!((next_step(&workspace, time(1_010)), idle_time(&workspace)), (None, None));
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
            next_step(&workspace, time(0)).expect("a next step")
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

    #[test]
    fn description_shows_allocated_and_requested_resources() {
        let resources = |cpu_millis| Some(Resources { cpu_millis, memory_bytes: 1 << 30 });
        let mut workspace = Workspace { requested: resources(1500), ..Workspace::default() };
        assert_eq!(describe_resources(&workspace), "gets 1.5 cores and 1.00 GiB when it is awake");
        workspace.allocated = resources(1500);
        assert_eq!(describe_resources(&workspace), "has 1.5 cores and 1.00 GiB");
        workspace.set_state(State::Awake);
        workspace.actual = resources(1000);
        assert_eq!(
            describe_resources(&workspace),
            "has 1 core and 1.00 GiB, and not yet 1.5 cores and 1.00 GiB"
        );
        (workspace.allocated, workspace.queue_position) = (resources(1000), 2);
        assert_eq!(
            describe_resources(&workspace),
            "has 1 core and 1.00 GiB and waits for 1.5 cores and 1.00 GiB, 2nd in the admission queue"
        );
    }

    #[test]
    fn progress_omits_unknown_totals() {
        let mut progress = Progress { stage: Stage::Archiving.into(), bytes: 2048, ..Progress::default() };
        assert_eq!(describe_progress(&progress), "archiving, 2.00 KiB so far");
        (progress.entries, progress.total_bytes) = (7, 4096);
        assert_eq!(describe_progress(&progress), "archiving, 7 entries, 2.00 KiB of 4.00 KiB");
        progress.set_stage(Stage::Extracting);
        progress.total_entries = 9;
        assert_eq!(describe_progress(&progress), "extracting, 7 of 9 entries, 2.00 KiB of 4.00 KiB");
    }
}
