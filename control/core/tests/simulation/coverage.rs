//! What a run has covered: crash points × actions × states, and the arrows of the drawing.

use std::{collections::BTreeMap, fmt};

use podling_core::{
    decide::Action,
    mutant::Taken,
    status::{Phase, Urgency},
};

/// Every action there is.
const ACTIONS: [&str; 11] = [
    "Start", "Prepare", "Commit", "Cancel", "Resize", "Stop", "Archive", "Restore", "Remove", "Expire",
    "Forget",
];
/// Every arrow of the drawing in `decide.rs`.
const ARROWS: [&str; 39] = [
    "admit",
    "start",
    "start_failed",
    "hello",
    "died",
    "silent",
    "healthy",
    "resized",
    "worn_out",
    "lined_up",
    "end_now: Queued",
    "end_now: Pending",
    "end_now: Starting",
    "end_now: Awake",
    "end_now: Preparing",
    "fall_asleep: idle",
    "fall_asleep: asked",
    "fall_asleep: forced",
    "reprieve",
    "prepared",
    "ready",
    "give_up",
    "declined",
    "rest",
    "wake: Asleep",
    "wake: Opening",
    "wake: Working",
    "let_go",
    "archive_due",
    "opened: Archive",
    "opened: Restore",
    "kept",
    "put_off: Archive",
    "put_off: Restore",
    "restore",
    "restored",
    "nothing_left",
    "discard",
    "noted",
];

#[derive(Debug, Default, Clone)]
struct Point {
    ordered: u64,
    done: u64,
    failed: u64,
    /// The control plane died: before it happened, before that was told, before what followed was durable.
    died: [u64; 3],
}

/// Counts.
#[derive(Debug, Default, Clone)]
pub(crate) struct Coverage {
    points: BTreeMap<(&'static str, &'static str), Point>,
    arrows: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub(crate) fn ordered(&mut self, action: Action, phase: Phase) {
        self.at(action, phase).ordered += 1;
    }

    pub(crate) fn came_back(&mut self, action: Action, phase: Phase, ok: bool) {
        let point = self.at(action, phase);
        *(if ok { &mut point.done } else { &mut point.failed }) += 1;
    }

    pub(crate) fn crashed(&mut self, action: Action, phase: Phase, happened: bool, told: bool) {
        self.at(action, phase).died[usize::from(happened) + usize::from(told)] += 1;
    }

    pub(crate) fn arrow(&mut self, taken: &Taken) {
        *self.arrows.entry(arrow(taken)).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (key, point) in &other.points {
            let sum = self.points.entry(*key).or_default();
            sum.ordered += point.ordered;
            sum.done += point.done;
            sum.failed += point.failed;
            for (sum, n) in sum.died.iter_mut().zip(point.died) {
                *sum += n;
            }
        }
        for (arrow, n) in &other.arrows {
            *self.arrows.entry(arrow).or_default() += n;
        }
    }

    /// Whether this arrow was taken.
    pub(crate) fn took(&self, arrow: &str) -> bool {
        self.arrows.contains_key(arrow)
    }

    /// What was never seen: actions, deaths around an action, arrows.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for action in ACTIONS {
            let points =
                || self.points.iter().filter(|((name, _), _)| *name == action).map(|(_, point)| point);
            if points().all(|point| point.done == 0) {
                missing.push(format!("{action} was never done"));
            }
            // A record is forgotten by one write: there is no moment between.
            let crashes = if action == "Forget" { 1 } else { 2 };
            for (i, when) in ["before", "after"].iter().enumerate().take(crashes) {
                let after =
                    |point: &Point| if i == 0 { point.died[0] } else { point.died[1] + point.died[2] };
                if points().all(|point| after(point) == 0) {
                    missing.push(format!("no death {when} {action}"));
                }
            }
        }
        let never = ARROWS.iter().filter(|arrow| !self.arrows.contains_key(**arrow));
        missing.extend(never.map(|arrow| format!("arrow {arrow} was never taken")));
        missing
    }

    fn at(&mut self, action: Action, phase: Phase) -> &mut Point {
        self.points.entry((name(action), state(phase))).or_default()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<9} {:<17} {:>9} {:>9} {:>8}   died before  after  unsaved",
            "action", "in state", "ordered", "done", "failed"
        )?;
        for ((action, state), point) in &self.points {
            let Point { ordered, done, failed, died: [before, after, unsaved] } = point;
            writeln!(
                f,
                "{action:<9} {state:<17} {ordered:>9} {done:>9} {failed:>8}   {before:>11} {after:>6} {unsaved:>8}"
            )?;
        }
        let arrows: Vec<String> = self.arrows.iter().map(|(arrow, n)| format!("{arrow} {n}")).collect();
        write!(f, "arrows: {}", arrows.join(", "))
    }
}

pub(crate) fn name(action: Action) -> &'static str {
    match action {
        Action::Start(_) => "Start",
        Action::Prepare { .. } => "Prepare",
        Action::Commit(_) => "Commit",
        Action::Cancel(_) => "Cancel",
        Action::Resize { .. } => "Resize",
        Action::Stop => "Stop",
        Action::Archive(_) => "Archive",
        Action::Restore(_) => "Restore",
        Action::Remove => "Remove",
        Action::Expire(_) => "Expire",
        Action::Forget => "Forget",
    }
}

fn state(phase: Phase) -> &'static str {
    use podling_core::status::Task::{Archive, Restore};
    match phase {
        Phase::Queued => "Queued",
        Phase::Pending { .. } => "Pending",
        Phase::Starting => "Starting",
        Phase::Awake => "Awake",
        Phase::Preparing { .. } => "Preparing",
        Phase::Committing => "Committing",
        Phase::FallingAsleep => "FallingAsleep",
        Phase::Asleep => "Asleep",
        Phase::Opening(Archive) => "Opening(Archive)",
        Phase::Opening(Restore) => "Opening(Restore)",
        Phase::Working(Archive) => "Working(Archive)",
        Phase::Working(Restore) => "Working(Restore)",
        Phase::Archived => "Archived",
        Phase::Deleting => "Deleting",
    }
}

/// Its name in the drawing: what it joins says so, and where two join the same, the reason does.
fn arrow(taken: &Taken) -> &'static str {
    use podling_core::status::Task::{Archive, Restore};
    let because = |words: &str| taken.reason.contains(words);
    match (taken.from, taken.to) {
        (Phase::Queued, Phase::Queued) => "lined_up",
        _ if taken.resized => "resized",
        (Phase::Awake, Phase::Awake) => "healthy",
        (Phase::Archived, Phase::Deleting) if because("nothing of it is left") => "nothing_left",
        (from, to) if from == to => "noted",
        (_, Phase::Deleting) => "discard",
        (Phase::Queued, Phase::Pending { .. }) => "admit",
        (Phase::Pending { .. }, Phase::Starting) => "start",
        (Phase::Starting, Phase::Pending { .. }) => "start_failed",
        (Phase::Starting, Phase::Awake) => "hello",
        (Phase::Awake, Phase::Pending { .. }) if because("silent") => "silent",
        (_, Phase::Pending { .. }) => "died",
        (_, Phase::FallingAsleep) if because("nobody has used it") => "worn_out",
        (Phase::Queued, _) => "end_now: Queued",
        (Phase::Pending { .. }, _) => "end_now: Pending",
        (Phase::Starting, _) => "end_now: Starting",
        (Phase::Awake, Phase::FallingAsleep) => "end_now: Awake",
        (Phase::Preparing { .. }, Phase::FallingAsleep) => "end_now: Preparing",
        (Phase::Awake, Phase::Preparing { urgency: Urgency::Forced, .. }) => "fall_asleep: forced",
        (Phase::Awake, Phase::Preparing { urgency: Urgency::Asked, .. }) => "fall_asleep: asked",
        (Phase::Awake, _) => "fall_asleep: idle",
        (Phase::Preparing { .. }, Phase::Awake) => "reprieve",
        (Phase::Preparing { .. }, _) => "prepared",
        (Phase::Committing, Phase::Awake) => "declined",
        (Phase::Committing, _) if because("its agent") => "give_up",
        (Phase::Committing, _) => "ready",
        (Phase::FallingAsleep, _) => "rest",
        (Phase::Asleep, Phase::Queued) => "wake: Asleep",
        (Phase::Asleep, Phase::Archived) => "let_go",
        (Phase::Asleep, _) => "archive_due",
        (Phase::Opening(_), Phase::Queued) => "wake: Opening",
        (Phase::Opening(Archive), Phase::Working(_)) => "opened: Archive",
        (Phase::Opening(Restore), Phase::Working(_)) => "opened: Restore",
        (Phase::Working(Archive), Phase::Queued) => "wake: Working",
        (Phase::Working(Archive), _) if because("archived as") => "kept",
        (Phase::Opening(Archive) | Phase::Working(Archive), _) => "put_off: Archive",
        (Phase::Working(Restore), Phase::Queued) => "restored",
        (Phase::Opening(Restore) | Phase::Working(Restore), _) => "put_off: Restore",
        (Phase::Archived, _) => "restore",
        (Phase::Deleting, _) => "out of Deleting, which has no way out",
    }
}
