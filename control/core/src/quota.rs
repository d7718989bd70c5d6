//! Room: how many workspaces may be awake at once, for one owner and altogether, and who is next when one goes to sleep.
//!
//! First come, first served. Who waits only because its owner's share is used up keeps that owner's others waiting, and nobody else's;
//! who waits for room of the whole keeps all waiting: else small workspaces would overtake a large one for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{Owner, WorkspaceId},
    mutant::{self, Mutant},
    status::{Phase, Status},
    workspace::{Resources, Spec},
};

/// A bound; what is `None` is not bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Workspaces awake at once.
    pub awake: Option<u64>,
    /// Thousandths of a core, together.
    pub cpu_millis: Option<u64>,
    /// Bytes of memory, together.
    pub memory_bytes: Option<u64>,
}

/// The quotas of one control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Of each owner.
    pub owner: Quota,
    /// Of all together.
    pub total: Quota,
}

/// Somebody who has room or waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimant<'a> {
    /// Which workspace.
    pub id: &'a WorkspaceId,
    /// Whose.
    pub owner: &'a Owner,
    /// What it has.
    pub has: Option<Resources>,
    /// What it waits for, in place of that, and since when ([`Status::queued`]), as witnessed: a clock that is set back lets nobody
    /// overtake.
    pub waits: Option<(Duration, Resources)>,
}

impl<'a> Claimant<'a> {
    /// As its record has it. What was decided may be taken back to what is `durable`; `ends` says that it is being deleted, and
    /// something of it still runs. `None`: it neither has room nor wants any.
    pub fn of(spec: &'a Spec, status: &Status, durable: Option<&Status>, ends: bool) -> Option<Self> {
        let given =
            |status: &Status| status.phase.takes_room().then(|| status.given.unwrap_or(spec.resources));
        let decided = given(status).or_else(|| ends.then(|| status.given.unwrap_or(spec.resources)));
        let has = match (decided, durable.and_then(given)) {
            (Some(one), Some(other)) => Some(one.most(other)),
            (one, other) => one.or(other),
        };
        let waits = match status.phase {
            // Who has not joined the line yet comes last.
            Phase::Queued if has.is_none() => Some(status.queued.unwrap_or(Duration::MAX)),
            phase if phase.takes_room() && status.given.is_some_and(|given| given != spec.resources) => {
                status.queued
            }
            _ => None,
        };
        let waits = waits.map(|since| (since, spec.resources));
        (has.is_some() || waits.is_some()).then_some(Self { id: &spec.id, owner: &spec.owner, has, waits })
    }
}

/// Who waits, and where in the line: 1 is next. Whoever is not in it has room, or may have it.
pub type Line = BTreeMap<WorkspaceId, usize>;

#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    awake: u64,
    cpu_millis: u64,
    memory_bytes: u64,
}

/// The line as it stands. Those who wait and are not in the line fit, all together.
pub fn line<'a>(claimants: impl IntoIterator<Item = Claimant<'a>>, quotas: &Quotas) -> Line {
    let mut total = Taken::default();
    let mut owners: BTreeMap<&Owner, Taken> = BTreeMap::new();
    let mut waiting = Vec::new();
    for claimant in claimants {
        if let Some(has) = claimant.has {
            total.add(has);
            owners.entry(claimant.owner).or_default().add(has);
        }
        if let Some((since, resources)) = claimant.waits {
            waiting.push((since, resources, claimant));
        }
    }
    waiting.sort_by_key(|(since, _, claimant)| (*since, claimant.id));
    if mutant::is(Mutant::ServesLastFirst) {
        waiting.reverse();
    }
    let mut line = Line::new();
    let mut whole_is_full = false;
    let mut full_shares = BTreeSet::new();
    for (_, resources, claimant) in waiting {
        let own = owners.entry(claimant.owner).or_default();
        let (own_rest, rest) = (own.without(claimant.has), total.without(claimant.has));
        // One that never fits (the quota was made smaller) keeps nobody waiting.
        let never_fits = !quotas.total.allows(resources) || !quotas.owner.allows(resources);
        if !never_fits && !own_rest.fits(resources, &quotas.owner) {
            full_shares.insert(claimant.owner);
        }
        let share_is_full = full_shares.contains(claimant.owner);
        whole_is_full |= !share_is_full && !never_fits && !rest.fits(resources, &quotas.total);
        if share_is_full || never_fits || whole_is_full {
            line.insert(claimant.id.clone(), line.len() + 1);
        } else {
            (*own, total) = (own_rest, rest);
            own.add(resources);
            total.add(resources);
        }
    }
    line
}

impl Quota {
    /// Whether it could ever have room for this.
    pub fn allows(&self, resources: Resources) -> bool {
        Taken::default().fits(resources, self)
    }
}

impl Taken {
    fn add(&mut self, resources: Resources) {
        self.awake += 1;
        self.cpu_millis = self.cpu_millis.saturating_add(resources.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(resources.memory_bytes);
    }

    fn without(mut self, resources: Option<Resources>) -> Self {
        if let Some(resources) = resources {
            self.awake = self.awake.saturating_sub(1);
            self.cpu_millis = self.cpu_millis.saturating_sub(resources.cpu_millis);
            self.memory_bytes = self.memory_bytes.saturating_sub(resources.memory_bytes);
        }
        self
    }

    fn fits(mut self, resources: Resources, quota: &Quota) -> bool {
        self.add(resources);
        let within = |taken: u64, most: Option<u64>| most.is_none_or(|most| taken <= most);
        let within = |taken, most| within(taken, most) || mutant::is(Mutant::GivesRoomToAll);
        within(self.awake, quota.awake)
            && within(self.cpu_millis, quota.cpu_millis)
            && within(self.memory_bytes, quota.memory_bytes)
    }
}
