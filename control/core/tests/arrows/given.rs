//! What the tables are written with.

use std::{collections::BTreeSet, time::Duration};

use podling_core::{
    archive::{Archive, ArchiveKey},
    decide::{Action, decide},
    id::WorkspaceId,
    observed::{Door, Ended, Failure, Observed, Processes, Trouble, Used},
    policy::Policy,
    status::{Phase, Status, Task, Urgency},
    time::Timestamp,
    workspace::{Resources, Spec, Wanted},
};

pub(crate) const NOW: Timestamp = Timestamp(1_000_000_000);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);
/// What control planes have watched until now: a hundred days.
pub(crate) const WITNESSED: Duration = Duration::from_secs(100 * 24 * 60 * 60);
/// Of `Policy::default()`.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

pub(crate) fn spec(wanted: Wanted) -> Spec {
    Spec {
        id: WorkspaceId::from_bits(7),
        name: "demo".parse().expect("a name"),
        owner: "me".parse().expect("an owner"),
        template: "shell".into(),
        command: Vec::new(),
        env: Default::default(),
        policy: Policy::default(),
        resources: Default::default(),
        wanted,
        asked: 1,
        source: None,
        created: NOW,
        request_id: String::new(),
    }
}

/// Somebody has asked for it once more.
pub(crate) fn called(wanted: Wanted) -> Spec {
    Spec { asked: 2, ..spec(wanted) }
}

/// Of a workspace whose third agent is (or was) the present one, which wrote to its storage, and which has answered what was asked.
pub(crate) fn status(phase: Phase) -> Status {
    let long_ago = WITNESSED - 20 * HOUR;
    Status {
        phase,
        epoch: 3,
        storage_generation: 3,
        storage: true,
        answered: 1,
        woken: long_ago,
        called: long_ago,
        rested: WITNESSED - HOUR,
        ..Status::new(NOW)
    }
}

pub(crate) fn archive(generation: u64, age: Duration) -> Archive {
    Archive {
        key: ArchiveKey(format!("archive-{generation}")),
        generation,
        at: NOW,
        witnessed: WITNESSED - age,
        entries: 1,
        bytes: 1,
        archive_bytes: 1,
    }
}

/// With archives of these generations, just made.
pub(crate) fn archived(status: Status, generations: &[u64]) -> Status {
    Status { archives: generations.iter().map(|g| archive(*g, Duration::ZERO)).collect(), ..status }
}

pub(crate) fn pending(after: Duration) -> Phase {
    Phase::Pending { not_before: NOW.plus(after) }
}

pub(crate) const IDLY: Phase = Phase::Preparing { urgency: Urgency::Idle, declined: 0 };
pub(crate) const ASKED: Phase = Phase::Preparing { urgency: Urgency::Asked, declined: 0 };
pub(crate) const BY_FORCE: Phase = Phase::Preparing { urgency: Urgency::Forced, declined: 0 };
pub(crate) const ARCHIVING: Phase = Phase::Working(Task::Archive);
pub(crate) const RESTORING: Phase = Phase::Working(Task::Restore);

pub(crate) fn agents(epochs: &[u64]) -> Processes {
    Processes::Some(epochs.iter().copied().collect::<BTreeSet<_>>())
}

pub(crate) fn seen(processes: Processes) -> Observed {
    let allotted = Some((3, Resources::default()));
    Observed { processes, allotted, witnessed: WITNESSED, ..Observed::default() }
}

pub(crate) fn ended(observed: Observed, epoch: u64) -> Observed {
    Observed { ended: Some(Ended { epoch, how: "killed by SIGKILL".into() }), ..observed }
}

pub(crate) fn connected(observed: Observed) -> Observed {
    Observed { connected: Some(3), ..observed }
}

/// The third agent serves it.
pub(crate) fn served() -> Observed {
    connected(seen(agents(&[3])))
}

pub(crate) fn idle(counted: Duration) -> Observed {
    Observed { used: Used::No(counted), ..served() }
}

/// The third agent has told of use.
pub(crate) fn used(observed: Observed) -> Observed {
    Observed { used_by: Some(3), ..observed }
}

pub(crate) fn door(observed: Observed, door: Door) -> Observed {
    Observed { door, ..observed }
}

pub(crate) fn silent(observed: Observed, silence: Duration) -> Observed {
    Observed { silence, ..observed }
}

pub(crate) fn standby(observed: Observed) -> Observed {
    Observed { standby: true, ..observed }
}

pub(crate) fn room(observed: Observed) -> Observed {
    Observed { room: true, ..observed }
}

pub(crate) fn failed(observed: Observed, action: Action, failures: u32) -> Observed {
    trouble(observed, action, failures, Failure::Failed("it went wrong".into()))
}

pub(crate) fn declined(observed: Observed, action: Action, failures: u32) -> Observed {
    trouble(observed, action, failures, Failure::Declined("somebody types".into()))
}

fn trouble(observed: Observed, action: Action, failures: u32, failure: Failure) -> Observed {
    Observed { trouble: Some(Trouble { action, failures, at: NOW, failure }), ..observed }
}

pub(crate) fn prepare(urgency: Urgency) -> Action {
    Action::Prepare { epoch: 3, urgency }
}

/// What comes of it: the phase, the epoch, and the order.
pub(crate) type Outcome = (Phase, u64, Option<Action>);

pub(crate) fn follows(spec: &Spec, status: &Status, observed: &Observed) -> Outcome {
    let decision = decide(spec, status, observed, NOW);
    (decision.status.phase, decision.status.epoch, decision.action)
}

#[track_caller]
pub(crate) fn table(wanted: Wanted, rows: &[(&str, Phase, Observed, Outcome)]) {
    for (what, phase, observed, expected) in rows {
        assert_eq!(follows(&spec(wanted), &status(*phase), observed), *expected, "{what}");
    }
}

/// As `table`, with each row's own spec and status.
#[track_caller]
pub(crate) fn cases(rows: &[(&str, Spec, Status, Observed, Outcome)]) {
    for (what, spec, status, observed, expected) in rows {
        assert_eq!(follows(spec, status, observed), *expected, "{what}");
    }
}
