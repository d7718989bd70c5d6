//! Records a trace: what comes from outside, one thing after the other, and what each workspace has come to at every point of rest.
//! `tests/stories/replay.rs` lets the same happen to a real `podling up` and compares; `tests/src/trace.rs` reads the words.
//!
//! ```text
//! # for people
//! > what happens
//! = what a workspace has come to, if it is another thing than before; alone: all rest
//! ```
//!
//! Between two points of rest one workspace alone has something to do (and one that gets its room): what many do at once comes in no
//! certain order on a real machine. Times of policies are short or long: short ones are over at once on either side.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use podling_core::quota::{Quota, Quotas};

use super::{durable::Death, rng::Rng, world::World};

/// Turns of one trace.
const TURNS: usize = 12;
/// Looks at the simulated world while it comes to rest, and the time between two of them: half an hour.
const LOOKS: u32 = 3600;
const LOOK_EVERY_MILLIS: u64 = 500;

/// A trace while it is recorded.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) world: World,
    /// Its own, so that the world's is used by nothing that is recorded.
    pub(crate) dice: Rng,
    /// What was written: numbers of files by what the world calls their content.
    pub(crate) files: BTreeMap<u64, u64>,
    /// The backup store was away from them: how often that was tried, and with that their epochs, is a matter of time.
    pub(crate) blurred: BTreeSet<usize>,
    said: BTreeMap<usize, String>,
    lines: Vec<String>,
}

/// Where traces are kept for the replay.
pub(crate) fn traces() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/stories/traces")
}

/// The trace of this seed, or why there is none.
pub(crate) fn record(seed: u64) -> Result<String, String> {
    let mut dice = Rng::new(seed);
    let share = dice.per_mille(500);
    let mut world = World::new(seed);
    let quota = |is: bool, awake| Quota { awake: is.then_some(awake), cpu_millis: None, memory_bytes: None };
    world.quotas = Quotas { owner: quota(share, 1), total: quota(!share, 2) };
    let (files, said, blurred) = Default::default();
    let mut recording = Recording { world, dice, files, blurred, said, lines: Vec::new() };
    recording.lines.push(format!("# Recorded by `cargo xtask simulate --record {seed}`."));
    recording.happens(if share { "up --quota-awake 1" } else { "up --capacity-awake 2" });
    recording.begins();
    for _ in 0..TURNS {
        recording.turn();
        recording.law()?;
    }
    recording.finale();
    recording.law()?;
    recording.lines.push(String::new());
    Ok(recording.lines.join("\n"))
}

impl Recording {
    pub(crate) fn happens(&mut self, what: impl AsRef<str>) {
        self.lines.push(format!("> {}", what.as_ref()));
    }

    /// What would make the trace worth nothing.
    fn law(&mut self) -> Result<(), String> {
        // What was well for two minutes here has not been for so long there.
        let healthy = self.world.coverage.took("healthy");
        self.world.law(!healthy, || "it takes longer than a replay may: choose another seed".into());
        match self.world.broken.take() {
            Some(law) => Err(format!(
                "{}\n{}\n{law}",
                Vec::from(self.world.trace.clone()).join("\n"),
                self.lines.join("\n")
            )),
            None => Ok(()),
        }
    }

    /// Lets it come to rest. A control plane that dies as it was told comes back, and may be told to die again at one of these points.
    pub(crate) fn settles(&mut self, then: &[&'static str]) {
        for _ in 0..LOOKS {
            let dies_at = self.world.dies_at;
            self.world.round(LOOK_EVERY_MILLIS);
            if self.world.broken.is_some() {
                return;
            }
            if self.world.control.is_none() {
                let Some(death) = dies_at else { return };
                self.happens(format!("dies {}", words(death)));
                let again = self.dice.per_mille(300);
                let next = self.death(then).filter(|next| again && *next != death);
                self.comes_up(next);
            } else if self.world.rests() {
                return;
            }
        }
        self.world.law(false, || "it does not come to rest".into());
    }

    /// A point of rest: what is another thing now is written down.
    pub(crate) fn rests(&mut self, then: &[&'static str]) {
        self.settles(then);
        let before = self.lines.len();
        for w in 0..self.world.made {
            let now = self.seen_from_outside(w);
            if self.said.get(&w) != Some(&now) {
                self.lines.push(format!("= w{w} {now}"));
                self.said.insert(w, now);
            }
        }
        if self.lines.len() == before {
            self.lines.push("=".into());
        }
    }

    pub(crate) fn kill_control(&mut self) {
        self.world.kill_control();
        self.world.dies_at = None;
        self.happens("kill-control");
    }

    pub(crate) fn comes_up(&mut self, dies_at: Option<Death>) {
        self.world.dies_at = dies_at;
        self.world.start_control();
        match dies_at {
            Some(death) => self.happens(format!("up-again {}", words(death))),
            None => self.happens("up-again"),
        }
    }

    /// One of these, before or after.
    pub(crate) fn death(&mut self, actions: &[&'static str]) -> Option<Death> {
        let action = self.dice.pick(actions)?;
        Some(Death { action, after: self.dice.per_mille(500) })
    }

    /// A time of a policy is long, or about to be over.
    pub(crate) fn policy(&mut self, w: usize, which: &str, short: bool) {
        let Some(entry) = self.world.control.as_ref().and_then(|control| control.entries.get(&w)) else {
            return;
        };
        let mut spec = entry.record.spec.clone();
        let (long, words) = match which {
            "idle-timeout" => (3600, "1h"),
            "archive-after" => (24 * 3600, "1d"),
            _ => (30 * 24 * 3600, "30d"),
        };
        let policy = &mut spec.policy;
        let time = match which {
            "idle-timeout" => &mut policy.idle_timeout,
            "archive-after" => &mut policy.archive_after,
            _ => &mut policy.keep_archives,
        };
        *time = Duration::from_secs(if short { 1 } else { long });
        self.happens(format!("policy w{w} {which} {}", if short { "1s" } else { words }));
        self.world.wants(w, spec, false, false);
    }
}

fn words(death: Death) -> String {
    format!("{}:{}", death.action.to_lowercase(), if death.after { "after" } else { "before" })
}
