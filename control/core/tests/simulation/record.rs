//! Records a trace: outside events, and the state of each workspace at every quiescent point.
//! `tests/stories/replay.rs` repeats the events with a real `podling up` and compares the states.
//! `tests/src/trace.rs` parses traces.
//!
//! ```text
//! # comment
//! > event
//! = workspace and its state, if that changed; alone: quiescent without a change
//! ```
//!
//! Between two quiescent points, one event changes one workspace. Another workspace changes only if
//! it is admitted to the quota that was released. Further concurrent changes would have no fixed
//! order on a real machine. Policy durations are either long, or so short that they expire at once
//! in both runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use podling_core::{
    policy::PolicyOverrides,
    quota::{Quota, Quotas},
    spec_change::SpecChange,
};

use super::{persistence::Failpoint, rng::Rng, simulation::Simulation};

/// Number of random operations in one trace.
const OPERATIONS: usize = 12;
/// Longest time until the simulation is quiescent: half an hour, in rounds of
/// [`QUIET_ROUND_MILLIS`].
const QUIET_ROUNDS: u32 = 3600;
const QUIET_ROUND_MILLIS: u64 = 500;

/// A trace that is being recorded.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) sim: Simulation,
    /// Generator that draws the operations. The simulation has its own, so that its draws do not
    /// change them.
    pub(crate) rng: Rng,
    /// Number of each written file, by the content of the storage after it was written.
    pub(crate) files: BTreeMap<u64, u64>,
    /// Workspaces for which the backup store failed. The number of retries depends on timing, and
    /// so does the epoch.
    pub(crate) epoch_uncertain: BTreeSet<usize>,
    last_recorded: BTreeMap<usize, String>,
    lines: Vec<String>,
}

/// Returns the directory from which the replay reads traces.
pub(crate) fn traces() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/stories/traces")
}

/// Returns the trace of this seed, or the reason why it cannot be replayed.
pub(crate) fn record(seed: u64) -> Result<String, String> {
    let mut rng = Rng::new(seed);
    let with_owner_quota = rng.per_mille(500);
    let mut sim = Simulation::new(seed, None);
    let quota = |limited: bool, awake| Quota {
        awake: limited.then_some(awake),
        cpu_millis: None,
        memory_bytes: None,
    };
    sim.quotas = Quotas { owner: quota(with_owner_quota, 1), total: quota(!with_owner_quota, 2) };
    let (files, last_recorded, epoch_uncertain) = Default::default();
    let mut recording = Recording { sim, rng, files, epoch_uncertain, last_recorded, lines: Vec::new() };
    recording.lines.push(format!("# Recorded by `cargo xtask simulate --record {seed}`."));
    recording.record_event(if with_owner_quota { "up --quota-awake 1" } else { "up --capacity-awake 2" });
    recording.create_first();
    for _ in 0..OPERATIONS {
        recording.run_operation();
        recording.check()?;
    }
    recording.archive_all();
    recording.check()?;
    recording.lines.push(String::new());
    Ok(recording.lines.join("\n"))
}

impl Recording {
    pub(crate) fn record_event(&mut self, event: impl AsRef<str>) {
        self.lines.push(format!("> {}", event.as_ref()));
    }

    /// Fails if a law is broken, or if the trace cannot be replayed.
    fn check(&mut self) -> Result<(), String> {
        // A replay takes less time than the simulation. Failures that are cleared here after two
        // minutes would not be cleared there.
        let healthy = self.sim.coverage.has_followed("healthy");
        self.sim.check(!healthy, || "the trace takes too long for a replay: choose another seed".into());
        match self.sim.broken_law.take() {
            Some(law) => Err(format!(
                "{}\n{}\n{law}",
                Vec::from(self.sim.log_lines.clone()).join("\n"),
                self.lines.join("\n")
            )),
            None => Ok(()),
        }
    }

    /// Runs until the simulation is quiescent. A control plane that crashes at its failpoint is
    /// started again, sometimes with another failpoint at one of `next_actions`.
    pub(crate) fn run_until_quiescent(&mut self, next_actions: &[&'static str]) {
        for _ in 0..QUIET_ROUNDS {
            let failpoint = self.sim.failpoint;
            self.sim.quiet_round(QUIET_ROUND_MILLIS);
            if self.sim.broken_law.is_some() {
                return;
            }
            if self.sim.control.is_none() {
                let Some(hit) = failpoint else { return };
                self.record_event(format!("crashes {}", trace_word(hit)));
                let again = self.rng.per_mille(300);
                let next = self.pick_failpoint(next_actions).filter(|next| again && *next != hit);
                self.restart_control(next);
            } else if self.sim.is_quiescent() {
                return;
            }
        }
        self.sim.check(false, || "the simulation does not become quiescent".into());
    }

    /// Runs until the simulation is quiescent, then records the states that changed.
    pub(crate) fn record_quiescent(&mut self, next_actions: &[&'static str]) {
        self.run_until_quiescent(next_actions);
        let before = self.lines.len();
        for w in 0..self.sim.created {
            let now = self.describe(w);
            if self.last_recorded.get(&w) != Some(&now) {
                self.lines.push(format!("= w{w} {now}"));
                self.last_recorded.insert(w, now);
            }
        }
        if self.lines.len() == before {
            self.lines.push("=".into());
        }
    }

    pub(crate) fn kill_control(&mut self) {
        self.sim.kill_control();
        self.sim.failpoint = None;
        self.record_event("kill-control");
    }

    pub(crate) fn restart_control(&mut self, failpoint: Option<Failpoint>) {
        self.sim.failpoint = failpoint;
        self.sim.start_control();
        match failpoint {
            Some(failpoint) => self.record_event(format!("restart {}", trace_word(failpoint))),
            None => self.record_event("restart"),
        }
    }

    /// Draws a failpoint before or after one of these actions.
    pub(crate) fn pick_failpoint(&mut self, actions: &[&'static str]) -> Option<Failpoint> {
        let action = self.rng.pick(actions)?;
        Some(Failpoint { action, after: self.rng.per_mille(500) })
    }

    /// Sets a policy duration to its long value, or to a short one that expires at once.
    pub(crate) fn set_policy(&mut self, w: usize, which: &str, short: bool) {
        if !self.sim.control.as_ref().is_some_and(|control| control.entries.contains_key(&w)) {
            return;
        }
        let (long, long_text) = match which {
            "idle-timeout" => (3600, "1h"),
            "archive-after" => (24 * 3600, "1d"),
            _ => (30 * 24 * 3600, "30d"),
        };
        let mut own = PolicyOverrides::default();
        let time = match which {
            "idle-timeout" => &mut own.idle_timeout,
            "archive-after" => &mut own.archive_after,
            _ => &mut own.keep_archives,
        };
        *time = Some(Duration::from_secs(if short { 1 } else { long }));
        self.record_event(format!("policy w{w} {which} {}", if short { "1s" } else { long_text }));
        self.sim.request_spec_change(w, SpecChange::SetPolicy(Box::new(own)));
        self.sim.settle_specs();
    }
}

fn trace_word(failpoint: Failpoint) -> String {
    let mut action = String::new();
    for letter in failpoint.action.chars() {
        if letter.is_uppercase() && !action.is_empty() {
            action.push('-');
        }
        action.push(letter.to_ascii_lowercase());
    }
    format!("{action}:{}", if failpoint.after { "after" } else { "before" })
}
