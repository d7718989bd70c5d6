//! What the tables are written with.

use std::{collections::BTreeSet, time::Duration};

use podling_core::{
    decide::{Action, decide},
    id::WorkspaceId,
    observed::{Ended, Observed, Processes},
    policy::Policy,
    status::{Phase, Status},
    time::Timestamp,
    workspace::{Spec, Wanted},
};

pub(crate) const NOW: Timestamp = Timestamp(1_000_000_000);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn spec(wanted: Wanted) -> Spec {
    Spec {
        id: WorkspaceId::from_bits(7),
        name: "demo".parse().expect("a name"),
        owner: "me".parse().expect("an owner"),
        template: "shell".into(),
        command: Vec::new(),
        env: Default::default(),
        policy: Policy::default(),
        wanted,
        created: NOW,
        request_id: String::new(),
    }
}

/// Of a workspace whose third agent is (or was) the present one.
pub(crate) fn status(phase: Phase) -> Status {
    Status { phase, epoch: 3, storage_generation: 3, ..Status::new(NOW) }
}

pub(crate) fn pending(after: Duration) -> Phase {
    Phase::Pending { not_before: NOW.plus(after) }
}

pub(crate) fn agents(epochs: &[u64]) -> Processes {
    Processes::Some(epochs.iter().copied().collect::<BTreeSet<_>>())
}

pub(crate) fn seen(processes: Processes) -> Observed {
    Observed { processes, ..Observed::default() }
}

pub(crate) fn ended(observed: Observed, epoch: u64) -> Observed {
    Observed { ended: Some(Ended { epoch, how: "killed by SIGKILL".into() }), ..observed }
}

pub(crate) fn connected(observed: Observed) -> Observed {
    Observed { connected: Some(3), ..observed }
}

pub(crate) fn silent(observed: Observed, silence: Duration) -> Observed {
    Observed { silence, ..observed }
}

pub(crate) fn standby(observed: Observed) -> Observed {
    Observed { standby: true, ..observed }
}

/// What comes of it: the phase, the epoch, and the order.
pub(crate) type Outcome = (Phase, u64, Option<Action>);

pub(crate) fn follows(wanted: Wanted, status: &Status, observed: &Observed) -> Outcome {
    let decision = decide(&spec(wanted), status, observed, NOW);
    (decision.status.phase, decision.status.epoch, decision.action)
}

#[track_caller]
pub(crate) fn table(wanted: Wanted, rows: &[(&str, Phase, Observed, Outcome)]) {
    for (what, phase, observed, expected) in rows {
        assert_eq!(follows(wanted, &status(*phase), observed), *expected, "{what}");
    }
}
