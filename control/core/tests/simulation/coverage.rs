//! Coverage of a run: orders, results and crashes for each action and phase, and the transitions of
//! the drawing in `decide.rs`.

use std::{collections::BTreeMap, fmt};

use podling_core::{
    decide::Action,
    reason::StateReason,
    status::{MaintenanceStage, Phase, Status, Urgency},
};

/// The names of all actions.
const ACTIONS: [&str; 11] = [
    "StartAgent",
    "Prepare",
    "Commit",
    "Cancel",
    "Resize",
    "StopProcesses",
    "Archive",
    "Restore",
    "RemoveStorage",
    "ExpireArchive",
    "RemoveRecord",
];
/// The names of all transitions of the drawing in `decide.rs`.
const TRANSITIONS: [&str; 44] = [
    "admit",
    "start",
    "open_storage",
    "start_failed",
    "hello",
    "agent_ended",
    "agent_silent",
    "requested_again",
    "healthy",
    "resized",
    "stop_restarting",
    "enqueue",
    "stop_now: Queued",
    "stop_now: Pending",
    "stop_now: Starting",
    "stop_awake: Awake",
    "stop_awake: Preparing",
    "fall_asleep: idle",
    "fall_asleep: requested",
    "fall_asleep: forced",
    "cancel_sleep",
    "prepared",
    "ready",
    "give_up",
    "declined",
    "stopped",
    "wake: Asleep",
    "wake: Maintenance(Starting)",
    "wake: Maintenance(Running)",
    "cancel_sleep: not forced",
    "cancel_archive: Starting",
    "cancel_archive: Running",
    "release_storage",
    "archive_due",
    "maintenance_started: Archive",
    "maintenance_started: Restore",
    "archived",
    "retry_later: Archive",
    "retry_later: Restore",
    "restore",
    "restored",
    "nothing_left",
    "discard",
    "sync_archives",
];

/// A transition that a decision followed.
#[derive(Debug, Clone)]
pub(crate) struct FollowedTransition {
    pub(crate) from: Phase,
    pub(crate) to: Phase,
    /// The reason after the transition.
    pub(crate) reason: StateReason,
    /// Whether only the quota reservation or the queue position changed, and the phase did not.
    pub(crate) resized: bool,
    /// Whether the workspace acted on a request and stayed in its phase.
    pub(crate) requested_again: bool,
}

impl FollowedTransition {
    pub(crate) fn new(from: &Status, to: &Status) -> Self {
        let resized =
            from.phase == to.phase && (from.allocated, from.queued_at) != (to.allocated, to.queued_at);
        let requested_again = from.phase == to.phase && from.observed_request != to.observed_request;
        Self { from: from.phase, to: to.phase, reason: to.reason.clone(), resized, requested_again }
    }
}

#[derive(Debug, Default, Clone)]
struct ActionCounts {
    ordered: u64,
    done: u64,
    failed: u64,
    /// Crashes of the control plane: before the action happened, between the action and the receipt
    /// of its result, and between the receipt and the next durable status.
    crashed: [u64; 3],
}

/// Counts of orders, results, crashes and transitions.
#[derive(Debug, Default, Clone)]
pub(crate) struct Coverage {
    points: BTreeMap<(&'static str, &'static str), ActionCounts>,
    transitions: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub(crate) fn ordered(&mut self, action: Action, phase: Phase) {
        self.at(action, phase).ordered += 1;
    }

    pub(crate) fn completed(&mut self, action: Action, phase: Phase, ok: bool) {
        let point = self.at(action, phase);
        *(if ok { &mut point.done } else { &mut point.failed }) += 1;
    }

    pub(crate) fn crashed(&mut self, action: Action, phase: Phase, happened: bool, reported: bool) {
        self.at(action, phase).crashed[usize::from(happened) + usize::from(reported)] += 1;
    }

    pub(crate) fn transition(&mut self, followed: &FollowedTransition) {
        *self.transitions.entry(transition_name(followed)).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (key, point) in &other.points {
            let sum = self.points.entry(*key).or_default();
            sum.ordered += point.ordered;
            sum.done += point.done;
            sum.failed += point.failed;
            for (sum, n) in sum.crashed.iter_mut().zip(point.crashed) {
                *sum += n;
            }
        }
        for (transition, n) in &other.transitions {
            *self.transitions.entry(transition).or_default() += n;
        }
    }

    /// Returns whether this transition was followed.
    pub(crate) fn has_followed(&self, transition: &str) -> bool {
        self.transitions.contains_key(transition)
    }

    /// Lists actions that were never done, actions without a crash before or after them, and
    /// transitions that were never followed.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for action in ACTIONS {
            let points =
                || self.points.iter().filter(|((name, _), _)| *name == action).map(|(_, point)| point);
            if points().all(|point| point.done == 0) {
                missing.push(format!("{action} was never done"));
            }
            // One write both removes the record and completes `RemoveRecord`. No crash is possible
            // in between.
            let crashes = if action == "RemoveRecord" { 1 } else { 2 };
            for (i, when) in ["before", "after"].iter().enumerate().take(crashes) {
                let after = |point: &ActionCounts| {
                    if i == 0 { point.crashed[0] } else { point.crashed[1] + point.crashed[2] }
                };
                if points().all(|point| after(point) == 0) {
                    missing.push(format!("no crash {when} {action}"));
                }
            }
        }
        let never = TRANSITIONS.iter().filter(|transition| !self.transitions.contains_key(**transition));
        missing.extend(never.map(|transition| format!("transition {transition} was never followed")));
        missing
    }

    fn at(&mut self, action: Action, phase: Phase) -> &mut ActionCounts {
        self.points.entry((action_name(action), phase_name(phase))).or_default()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<13} {:<30} {:>9} {:>9} {:>8}  crashed before  after  unsaved",
            "action", "in phase", "ordered", "done", "failed"
        )?;
        for ((action, phase), point) in &self.points {
            let ActionCounts { ordered, done, failed, crashed: [before, after, unsaved] } = point;
            writeln!(
                f,
                "{action:<13} {phase:<30} {ordered:>9} {done:>9} {failed:>8}  \
                 {before:>14} {after:>6} {unsaved:>8}"
            )?;
        }
        let transitions: Vec<String> =
            self.transitions.iter().map(|(transition, n)| format!("{transition} {n}")).collect();
        write!(f, "transitions: {}", transitions.join(", "))
    }
}

pub(crate) fn action_name(action: Action) -> &'static str {
    match action {
        Action::StartAgent(_) => "StartAgent",
        Action::Prepare { .. } => "Prepare",
        Action::Commit(_) => "Commit",
        Action::Cancel(_) => "Cancel",
        Action::Resize { .. } => "Resize",
        Action::StopProcesses => "StopProcesses",
        Action::Archive(_) => "Archive",
        Action::Restore(_) => "Restore",
        Action::RemoveStorage => "RemoveStorage",
        Action::ExpireArchive(_) => "ExpireArchive",
        Action::RemoveRecord => "RemoveRecord",
    }
}

fn phase_name(phase: Phase) -> &'static str {
    use podling_core::status::MaintenanceTask::{Archive, Restore};
    match phase {
        Phase::Queued => "Queued",
        Phase::Pending { .. } => "Pending",
        Phase::Starting => "Starting",
        Phase::Awake => "Awake",
        Phase::Preparing { .. } => "Preparing",
        Phase::Committing => "Committing",
        Phase::FallingAsleep => "FallingAsleep",
        Phase::Asleep => "Asleep",
        Phase::Maintenance { task: Archive, stage: MaintenanceStage::Starting } => {
            "Maintenance(Archive, Starting)"
        }
        Phase::Maintenance { task: Restore, stage: MaintenanceStage::Starting } => {
            "Maintenance(Restore, Starting)"
        }
        Phase::Maintenance { task: Archive, stage: MaintenanceStage::Running } => {
            "Maintenance(Archive, Running)"
        }
        Phase::Maintenance { task: Restore, stage: MaintenanceStage::Running } => {
            "Maintenance(Restore, Running)"
        }
        Phase::Archived => "Archived",
        Phase::Deleting => "Deleting",
    }
}

/// Returns the name that the drawing gives to a transition. The reason distinguishes transitions
/// between the same phases.
fn transition_name(followed: &FollowedTransition) -> &'static str {
    use podling_core::status::MaintenanceTask::{Archive, Restore};
    let running = MaintenanceStage::Running;
    match (followed.from, followed.to, &followed.reason) {
        (Phase::Queued, Phase::Queued, _) => "enqueue",
        _ if followed.resized => "resized",
        (Phase::Awake, Phase::Awake, _) if followed.requested_again => "requested_again",
        (Phase::Awake, Phase::Awake, _) => "healthy",
        (Phase::Archived, Phase::Deleting, StateReason::ArchivesExpired | StateReason::NothingStored) => {
            "nothing_left"
        }
        (Phase::Starting, Phase::Starting, _) => "open_storage",
        (from, to, _) if from == to => "sync_archives",
        (_, Phase::Deleting, _) => "discard",
        (Phase::Queued, Phase::Pending { .. }, _) => "admit",
        (Phase::Pending { .. }, Phase::Starting, _) => "start",
        (Phase::Starting, Phase::Pending { .. }, _) => "start_failed",
        (Phase::Starting, Phase::Awake, _) => "hello",
        (Phase::Awake, Phase::Pending { .. }, StateReason::AgentSilent { .. }) => "agent_silent",
        (_, Phase::Pending { .. }, _) => "agent_ended",
        (_, Phase::FallingAsleep, StateReason::AgentLostUnused { .. }) => "stop_restarting",
        (Phase::Queued, ..) => "stop_now: Queued",
        (Phase::Pending { .. }, ..) => "stop_now: Pending",
        (Phase::Starting, ..) => "stop_now: Starting",
        (Phase::Awake, Phase::FallingAsleep, _) => "stop_awake: Awake",
        (Phase::Preparing { .. }, Phase::FallingAsleep, _) => "stop_awake: Preparing",
        (Phase::Awake, Phase::Preparing { urgency: Urgency::Forced, .. }, _) => "fall_asleep: forced",
        (Phase::Awake, Phase::Preparing { urgency: Urgency::Requested, .. }, _) => "fall_asleep: requested",
        (Phase::Awake, ..) => "fall_asleep: idle",
        (
            Phase::Preparing { .. },
            Phase::Awake,
            StateReason::DeletionCancelled | StateReason::AgentConnected,
        ) => "cancel_sleep: not forced",
        (Phase::Preparing { .. }, Phase::Awake, _) => "cancel_sleep",
        (Phase::Preparing { .. }, ..) => "prepared",
        (Phase::Committing, Phase::Awake, _) => "declined",
        (
            Phase::Committing,
            _,
            StateReason::AgentEndedFallingAsleep
            | StateReason::AgentSilentFallingAsleep
            | StateReason::AgentNotStopping,
        ) => "give_up",
        (Phase::Committing, ..) => "ready",
        (Phase::FallingAsleep, ..) => "stopped",
        (Phase::Asleep, Phase::Queued, _) => "wake: Asleep",
        (Phase::Asleep, Phase::Archived, _) => "release_storage",
        (Phase::Asleep, ..) => "archive_due",
        (Phase::Maintenance { task: Archive, stage }, Phase::Queued, _) if stage == running => {
            "wake: Maintenance(Running)"
        }
        (Phase::Maintenance { task: Archive, .. }, Phase::Queued, _) => "wake: Maintenance(Starting)",
        (Phase::Maintenance { task: Archive, .. }, Phase::Maintenance { .. }, _) => {
            "maintenance_started: Archive"
        }
        (Phase::Maintenance { task: Restore, .. }, Phase::Maintenance { .. }, _) => {
            "maintenance_started: Restore"
        }
        (Phase::Maintenance { task: Archive, stage }, _, StateReason::Archived { .. })
            if stage == running =>
        {
            "archived"
        }
        (
            Phase::Maintenance { task: Archive, stage },
            _,
            StateReason::DeletionCancelled | StateReason::ArchiveNotDue,
        ) if followed.to == Phase::Asleep => match stage {
            MaintenanceStage::Starting => "cancel_archive: Starting",
            MaintenanceStage::Running => "cancel_archive: Running",
        },
        (Phase::Maintenance { task: Archive, .. }, ..) => "retry_later: Archive",
        (Phase::Maintenance { task: Restore, stage }, Phase::Queued, _) if stage == running => "restored",
        (Phase::Maintenance { task: Restore, .. }, ..) => "retry_later: Restore",
        (Phase::Archived, ..) => "restore",
        (Phase::Deleting, ..) => "a transition out of Deleting, which must not exist",
    }
}
