//! Quotas bound the workspaces that are awake at once, per owner and in total. Workspaces beyond a
//! quota wait in the admission queue.
//!
//! The queue is first come, first served. A workspace that waits for its owner's quota blocks later
//! workspaces of that owner only. A workspace that waits for the total quota blocks all later ones;
//! otherwise small workspaces would overtake a large one for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{Owner, WorkspaceId},
    status::{Phase, Status},
    workspace::{Resources, Spec},
};

/// Upper bounds on resources in use. `None` is unbounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Number of workspaces that are awake at once.
    pub awake: Option<u64>,
    /// Sum of CPU, in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Sum of memory, in bytes.
    pub memory_bytes: Option<u64>,
}

/// The quotas that one control plane enforces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Applies to each owner separately.
    pub owner: Quota,
    /// Applies to all workspaces together.
    pub total: Quota,
}

/// A workspace that holds quota, or waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaRequest<'a> {
    pub id: &'a WorkspaceId,
    pub owner: &'a Owner,
    /// Resources that the workspace holds.
    pub held: Option<Resources>,
    /// Observed time at which the workspace joined the queue ([`Status::queued_at`]), and the
    /// resources that it waits for in place of `held`. A clock that is set back changes no
    /// position, because the queue is ordered by observed time.
    pub requested: Option<(Duration, Resources)>,
}

impl<'a> QuotaRequest<'a> {
    /// Returns the resources that a workspace with this status reserves.
    pub fn reservation(spec: &Spec, status: &Status) -> Option<Resources> {
        status.phase.holds_quota().then(|| status.allocated.unwrap_or(spec.resources))
    }

    /// Returns the quota request of a workspace, or `None` if it neither holds quota nor waits for
    /// it. `stored` is the largest reservation of the records that are durable or being written: a
    /// write may succeed after a later decision, and `status` may still be rolled back. `is_stopping`
    /// is set while a workspace that is being deleted still has processes.
    pub fn of(spec: &'a Spec, status: &Status, stored: Option<Resources>, is_stopping: bool) -> Option<Self> {
        let decided = Self::reservation(spec, status)
            .or_else(|| is_stopping.then(|| status.allocated.unwrap_or(spec.resources)));
        let held = larger(decided, stored);
        let requested = match status.phase {
            // A workspace that has not joined the queue yet comes last.
            Phase::Queued if held.is_none() => Some(status.queued_at.unwrap_or(Duration::MAX)),
            phase
                if phase.holds_quota()
                    && status.allocated.is_some_and(|allocated| allocated != spec.resources) =>
            {
                status.queued_at
            }
            _ => None,
        };
        let requested = requested.map(|since| (since, spec.resources));
        (held.is_some() || requested.is_some()).then_some(Self {
            id: &spec.id,
            owner: &spec.owner,
            held,
            requested,
        })
    }
}

/// Returns the larger value of each resource of two reservations.
pub fn larger(one: Option<Resources>, other: Option<Resources>) -> Option<Resources> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.max(other)),
        (one, other) => one.or(other),
    }
}

/// Queue position of each waiting workspace; 1 is next. A waiting workspace without a position is
/// admitted.
pub type AdmissionQueue = BTreeMap<WorkspaceId, usize>;

#[derive(Debug, Clone, Copy, Default)]
struct QuotaUsage {
    awake: u64,
    cpu_millis: u64,
    memory_bytes: u64,
}

/// Computes the admission queue. All waiting workspaces that it omits fit the quotas together.
pub fn admission_queue<'a>(
    requests: impl IntoIterator<Item = QuotaRequest<'a>>,
    quotas: &Quotas,
) -> AdmissionQueue {
    let mut total = QuotaUsage::default();
    let mut owners: BTreeMap<&Owner, QuotaUsage> = BTreeMap::new();
    let mut waiting = Vec::new();
    for request in requests {
        if let Some(held) = request.held {
            total.add(held);
            owners.entry(request.owner).or_default().add(held);
        }
        if let Some((since, resources)) = request.requested {
            waiting.push((since, resources, request));
        }
    }
    waiting.sort_by_key(|(since, _, request)| (*since, request.id));
    let mut queue = AdmissionQueue::new();
    let mut total_is_full = false;
    let mut full_owners = BTreeSet::new();
    for (_, resources, request) in waiting {
        let own = owners.entry(request.owner).or_default();
        let (own_without, total_without) = (own.without(request.held), total.without(request.held));
        // A request that can never fit, because the quota was lowered, does not block others.
        let never_fits = !quotas.total.allows(resources) || !quotas.owner.allows(resources);
        if !never_fits && !own_without.fits(resources, &quotas.owner) {
            full_owners.insert(request.owner);
        }
        let owner_is_full = full_owners.contains(request.owner);
        total_is_full |= !owner_is_full && !never_fits && !total_without.fits(resources, &quotas.total);
        if owner_is_full || never_fits || total_is_full {
            queue.insert(request.id.clone(), queue.len() + 1);
        } else {
            (*own, total) = (own_without, total_without);
            // The workspace holds the larger resources until its decision is durable.
            let reserved = request.held.map_or(resources, |held| held.max(resources));
            own.add(reserved);
            total.add(reserved);
        }
    }
    queue
}

impl Quota {
    /// Returns whether `resources` fit while no other workspace holds quota.
    pub fn allows(&self, resources: Resources) -> bool {
        QuotaUsage::default().fits(resources, self)
    }
}

impl Quotas {
    /// Returns whether `resources` fit while no other workspace holds quota.
    pub fn allow(&self, resources: Resources) -> bool {
        self.owner.allows(resources) && self.total.allows(resources)
    }
}

impl QuotaUsage {
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
        let within = |used: u64, most: Option<u64>| most.is_none_or(|most| used <= most);
        within(self.awake, quota.awake)
            && within(self.cpu_millis, quota.cpu_millis)
            && within(self.memory_bytes, quota.memory_bytes)
    }
}
