//! How long decisions take: all workspaces of a full control plane, again and again. Nothing changes between two looks, as mostly.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use podling_core::{
    decide::decide,
    id::WorkspaceId,
    observed::{Observed, Processes, Used},
    policy::Policy,
    status::{Phase, Status},
    time::Timestamp,
    workspace::{DesiredState, Spec},
};

/// What one control plane may have.
const WORKSPACES: u64 = 10_000;
const SWEEPS: u32 = 50;
const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// Measures and prints.
pub(crate) fn run() {
    let all: Vec<_> = (0..WORKSPACES).map(one).collect();
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
    // `cargo xtask bench` reads the first word and the first behind the semicolon.
    let slowest = slowest.as_micros();
    println!(
        "{each} ns a decision; {slowest} µs the slowest of {SWEEPS} sweeps over {WORKSPACES} workspaces"
    );
}

/// Half are awake and idle, the others asleep, in the line, or archived.
fn one(n: u64) -> (Spec, Status, Observed) {
    let spec = Spec {
        id: WorkspaceId::from_bits(n),
        name: "demo".parse().expect("a name"),
        owner: "me".parse().expect("an owner"),
        template: "shell".into(),
        command: vec!["code-server".into()],
        env: [("LANG".into(), "C.UTF-8".into())].into(),
        policy: Policy::default(),
        resources: Default::default(),
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
        observed_request: 1,
        ..Status::new(NOW)
    };
    let observed = Observed {
        processes: if awake { Processes::Some([3].into()) } else { Processes::None },
        connected: awake.then_some(3),
        used: Used::No(Duration::from_secs(n % 800)),
        observed_time: Duration::from_secs(80_000),
        ..Observed::default()
    };
    (spec, status, observed)
}
