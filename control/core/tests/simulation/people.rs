//! People: they make, wake, put away, delete, change and use workspaces.

use std::{rc::Rc, time::Duration};

use podling_core::{
    archive::ArchiveKey,
    decide::{Action, shorten_backoff},
    id::WorkspaceId,
    observed::{Observed, Used},
    policy::Policy,
    status::{MaintenanceStage, Phase, Status},
    workspace::{DesiredState, Resources, Spec},
};

use super::{
    control::{Entry, Record},
    real::{Real, Storage},
    world::World,
};

/// Workspaces at once.
const MOST: usize = 9;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl World {
    /// Somebody asks for something.
    pub(crate) fn request(&mut self) {
        let all = self.living();
        if self.acting().is_none_or(|control| control.shutting_down) {
            return;
        }
        if all.len() < MOST && (all.is_empty() || self.rng.per_mille(250)) {
            return self.create();
        }
        let Some(w) = self.somewhere(&all) else { return };
        let which = self.rng.below(100);
        let now = self.now();
        let Some(entry) = self.acting().and_then(|control| control.entries.get_mut(&w)) else { return };
        let phase = entry.phase();
        if entry.flight.as_ref().is_some_and(|flight| flight.action == Action::Forget) {
            // A record that is being removed is not changed any more.
            return;
        }
        let mut spec = entry.record.spec.clone();
        let (mut called, mut uncalled) = (false, false);
        match which {
            0..55 if !spec.desired_state.is_gone() || which < 4 => {
                if spec.desired_state == DesiredState::Discarded || phase == Phase::Deleting {
                    return;
                }
                spec.desired_state = DesiredState::Awake;
                spec.request_seq += 1;
                called = true;
                entry.observed.sleep_request = None;
                let status = shorten_backoff(&entry.record.status, now);
                entry.record = Rc::new(Record { spec: entry.record.spec.clone(), status });
            }
            // Unless it is used: its agent has the last word.
            55..65 if matches!(phase, Phase::Awake | Phase::Preparing { .. }) => {
                if spec.desired_state != DesiredState::Awake || entry.observed.used == Used::Yes {
                    return;
                }
                entry.observed.sleep_request = Some(podling_core::reason::SleepRequest::User);
                if let Some(real) = self.real.get_mut(&w) {
                    real.ghost.put_away = true;
                }
                return self.advance(w);
            }
            55..75 if !spec.desired_state.is_gone() => {
                spec.desired_state = DesiredState::Asleep;
                spec.request_seq += 1;
                uncalled = true;
            }
            75..85 if spec.desired_state != DesiredState::Discarded => {
                spec.desired_state = DesiredState::Deleted;
                uncalled = true;
            }
            85..89 => {
                spec.desired_state = DesiredState::Discarded;
                uncalled = true;
            }
            89..94 if phase != Phase::Deleting => {
                spec.resources.cpu_millis = 1 + self.rng.below(3);
            }
            94..100 => spec.policy = policy(which),
            _ => return,
        }
        self.wants(w, spec, called, uncalled);
    }

    /// Its spec is another by a request, for which somebody waits (`called`), or after which nobody waits any more (`uncalled`).
    pub(crate) fn wants(&mut self, w: usize, spec: Spec, called: bool, uncalled: bool) {
        let Some(entry) = self.acting().and_then(|control| control.entries.get_mut(&w)) else { return };
        let repolicied = entry.record.spec.policy != spec.policy;
        entry.change(spec);
        entry.asked |= called;
        if uncalled {
            entry.asked = false;
        }
        let wanted = entry.record.spec.desired_state;
        if let Some(real) = self.real.get_mut(&w) {
            real.ghost.requested_at &= !uncalled;
            real.ghost.discarded |= wanted == DesiredState::Discarded;
            real.present |= called;
        }
        if repolicied {
            self.claim_again(w);
        }
        self.note(|| format!("w{w} is wanted {wanted:?}"));
        self.advance(w);
    }

    /// Anywhere; often where something is under way just now, for there the races are.
    fn somewhere(&mut self, all: &[usize]) -> Option<usize> {
        let under_way = |entry: &Entry| {
            matches!(entry.phase(), Phase::Preparing { .. } | Phase::Committing | Phase::FallingAsleep)
                || matches!(
                    entry.phase(),
                    Phase::Maintenance { task: _, stage: MaintenanceStage::Starting }
                        | Phase::Maintenance { task: _, stage: MaintenanceStage::Running }
                        | Phase::Deleting
                )
        };
        let control = self.control.as_ref().filter(|_| self.rng.per_mille(600));
        let racing: Vec<usize> = control
            .iter()
            .flat_map(|control| control.entries.iter())
            .filter(|(w, entry)| under_way(entry) && all.contains(w))
            .map(|(w, _)| *w)
            .collect();
        if racing.is_empty() { self.rng.pick(all) } else { self.rng.pick(&racing) }
    }

    fn create(&mut self) {
        let w = self.made;
        let owners = ["ann", "bob", "cy"];
        let owner = self.rng.pick(&owners).unwrap_or("ann");
        // Of what is listed: that is in a record.
        let records = self.store.records.values();
        let keys: Vec<ArchiveKey> = records
            .flat_map(|record| record.status.archives.iter().map(|archive| archive.key.clone()))
            .collect();
        let source = (w.is_multiple_of(3) && !keys.is_empty()).then(|| {
            let which = self.rng.below(keys.len() as u64);
            keys[which as usize].clone()
        });
        let policy = policy(self.rng.below(6));
        let cpu_millis = 1 + self.rng.below(3);
        self.make(owner, source, policy, Resources { cpu_millis, memory_bytes: 1 });
    }

    /// A workspace is made; which.
    pub(crate) fn make(
        &mut self,
        owner: &str,
        source: Option<ArchiveKey>,
        policy: Policy,
        resources: Resources,
    ) -> usize {
        let (w, now) = (self.made, self.now());
        self.made += 1;
        let status = if source.is_some() { Status::from_archive(now) } else { Status::new(now) };
        let spec = Spec {
            id: WorkspaceId::from_bits(w as u64),
            name: format!("w{w}").parse().expect("a name"),
            owner: owner.parse().expect("an owner"),
            template: "shell".into(),
            command: Vec::new(),
            env: Default::default(),
            policy,
            resources,
            desired_state: DesiredState::Awake,
            request_seq: u64::from(source.is_some()),
            source,
            created: now,
            request_id: String::new(),
        };
        let watched = self.watched;
        let real = Real::new();
        self.note(|| format!("w{w} is made by {owner}, from {:?}", spec.source));
        self.real.insert(w, real);
        let record = Rc::new(Record { spec, status });
        if let Some(control) = &mut self.control {
            let mut entry = Entry::new(record, false, Observed::of_new());
            entry.heard = watched;
            entry.asked = true;
            control.entries.insert(w, entry);
        }
        self.advance(w);
        w
    }

    /// Somebody who is there types, or programs work or write.
    pub(crate) fn work(&mut self) {
        let Some(w) = self.somewhere(&self.living()) else { return };
        let (clock, what) = (self.clock, self.rng.below(20));
        let Some(real) = self.real.get_mut(&w) else { return };
        if what == 0 {
            real.present = !real.present;
        }
        let wrote = match real.agents.values_mut().find(|agent| !agent.maintenance) {
            Some(agent) if real.present => {
                let typed = agent.typed(clock);
                if typed && what == 1 {
                    agent.busy = clock + 40_000;
                }
                typed
            }
            Some(agent) => agent.busy > clock && agent.stuck <= clock && !agent.committed,
            None => real.orphans && real.latest != 0,
        };
        if let (true, Storage::Whole(_)) = (wrote, real.storage) {
            self.contents += 1;
            real.storage = Storage::Whole(self.contents);
            real.latest = self.contents;
        }
    }
}

/// Short ones: what takes days takes minutes here.
fn policy(which: u64) -> Policy {
    Policy {
        idle_timeout: seconds(45 + 15 * (which % 3)),
        archive_after: seconds(120 + 60 * (which % 4)),
        keep_archives: seconds(400 + 300 * (which % 3)),
        max_awake: which.is_multiple_of(5).then(|| seconds(400)),
        ..Policy::default()
    }
}
