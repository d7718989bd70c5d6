//! Measures how long decisions take. A sweep decides once for each workspace of a full control
//! plane. Nothing changes between two sweeps, as in the usual case.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use podling_core::{
    decide::decide,
    id::WorkspaceId,
    observed::{Observed, RunningAgents, UseState},
    policy::Policy,
    status::{Phase, Status},
    time::Timestamp,
    workspace::{DesiredState, Spec},
};

/// Number of workspaces: the limit of one control plane.
const WORKSPACES: u64 = 10_000;
const SWEEPS: u32 = 50;
const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// Prints the mean time of a decision and the time of the slowest sweep.
pub(crate) fn run() {
    let all: Vec<_> = (0..WORKSPACES).map(workspace).collect();
    let mut slowest = Duration::ZERO;
    let begun = Instant::now();
    for _ in 0..SWEEPS {
        let sweep = Instant::now();
        for (spec, status, observed) in &all {
            black_box(decide(black_box(spec), black_box(status), black_box(observed), NOW));
        }
        slowest = slowest.max(sweep.elapsed());
    }
    let each = begun.elapsed().as_nanos() / u128::from(SWEEPS) / u128::from(WORKSPACES);
    // `cargo xtask bench` parses the first word and the first word after the semicolon.
    let slowest = slowest.as_micros();
    println!(
        "{each} ns a decision; {slowest} µs the slowest of {SWEEPS} sweeps over {WORKSPACES} workspaces"
    );
}

/// Builds the workspace with index `n`. Half of the workspaces are awake and idle. The others are
/// asleep, queued or archived.
fn workspace(n: u64) -> (Spec, Status, Observed) {
    let spec = Spec {
        id: WorkspaceId::from_bits(n),
        name: "demo".parse().expect("valid name"),
        owner: "me".parse().expect("valid owner"),
        template: "shell".into(),
        command: vec!["code-server".into()],
        env: [("LANG".into(), "C.UTF-8".into())].into(),
        policy: Policy::default(),
        resources: Default::default(),
        storage_bytes: None,
        desired_state: DesiredState::Awake,
        request_seq: 1,
        source: None,
        created: NOW,
        request_id: format!("request-{n}"),
    };
    let phase = [Phase::Awake, Phase::Asleep, Phase::Awake, Phase::Queued, Phase::Awake, Phase::Archived]
        [n as usize % 6];
    let awake = phase == Phase::Awake;
    let status = Status {
        phase,
        epoch: 3,
        storage_generation: 3,
        storage: true,
        observed_request: Some(1),
        ..Status::new(NOW)
    };
    let observed = Observed {
        processes: if awake { RunningAgents::Some([3].into()) } else { RunningAgents::None },
        connected: awake.then_some(3),
        used: UseState::No(Duration::from_secs(n % 800)),
        observed_time: Duration::from_secs(80_000),
        ..Observed::default()
    };
    (spec, status, observed)
}
