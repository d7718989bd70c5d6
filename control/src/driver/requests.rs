//! Requests of callers. Each is accepted, or rejected with a reason. A request that is already
//! fulfilled is accepted and changes nothing.

use std::sync::Arc;

use podling_core::{
    decide::{shorten_backoff, undelete},
    id::WorkspaceId,
    observed::Observed,
    policy::PolicyOverrides,
    reason::SleepRequest,
    status::{Phase, Status},
    workspace::{DesiredState, Resources, Spec},
};
use podling_proto::agent::v1::ActivityLevel;
use ring::rand::{SecureRandom, SystemRandom};

use super::{
    Driver, DriverError, NewWorkspace,
    entry::{PendingReply, WorkspaceEntry},
    event::Reply,
};
use crate::{backend::Backend, clock, snapshot::WorkspaceView, store::WorkspaceRecord};

/// Most workspaces of one owner. Stops a script that creates workspaces in a loop.
pub const MAX_WORKSPACES_PER_OWNER: usize = 100;
/// Most workspaces of one control plane. Limits its memory (about 10 KiB for each workspace) and
/// the size of snapshots.
pub const MAX_WORKSPACES: usize = 10_000;

impl<B: Backend> Driver<B> {
    pub(super) fn create(&mut self, new: NewWorkspace, reply: Reply<(Arc<WorkspaceView>, bool)>) {
        let (id, created) = match self.find_or_create(new) {
            Ok(found) => found,
            // A caller that has gone away needs no answer.
            Err(refused) => return drop(reply.send(Err(refused))),
        };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.pending_replies.push(PendingReply::Created(reply, created));
        }
        self.advance(&id);
    }

    fn find_or_create(&mut self, new: NewWorkspace) -> Result<(WorkspaceId, bool), DriverError> {
        if self.shutting_down || self.draining_idle {
            return Err(DriverError::ShuttingDown);
        }
        let mine = || self.entries.values().filter(|entry| entry.record.spec.owner == new.owner);
        let repeated = |entry: &&WorkspaceEntry| {
            !new.request_id.is_empty() && entry.record.spec.request_id == new.request_id
        };
        if let Some(entry) = mine().find(repeated) {
            return Ok((entry.record.spec.id.clone(), false));
        }
        let has_name =
            |entry: &&WorkspaceEntry| entry.record.spec.name == new.name && !entry.record.is_gone();
        if let Some(entry) = mine().find(has_name) {
            let id = entry.record.spec.id.clone();
            return match (entry.record.spec.desired_state, new.reconnect) {
                (DesiredState::Deleted | DesiredState::Discarded, _) => {
                    Err(DriverError::Deleting { undelete: entry.check_undelete().is_ok(), id })
                }
                (DesiredState::Awake | DesiredState::Asleep, false) => {
                    Err(DriverError::NameTaken { name: new.name, id })
                }
                (DesiredState::Awake | DesiredState::Asleep, true) => {
                    self.request_wake(&id);
                    Ok((id, false))
                }
            };
        }
        if !self.fits_quota(new.resources) {
            return Err(DriverError::TooLarge);
        }
        if mine().count() >= MAX_WORKSPACES_PER_OWNER {
            return Err(DriverError::TooManyWorkspaces {
                limit: MAX_WORKSPACES_PER_OWNER,
                what: "of this owner",
            });
        }
        // While every store write fails, removals are queued in the writer. They count towards the
        // limit, so that the queue stays bounded.
        if self.entries.len().max(self.writer.pending()) >= MAX_WORKSPACES {
            return Err(DriverError::TooManyWorkspaces { limit: MAX_WORKSPACES, what: "in total" });
        }
        let (id, now) = (self.unused_id(), clock::now());
        let spec = Spec {
            id: id.clone(),
            name: new.name,
            owner: new.owner,
            template: new.template,
            command: new.command,
            env: new.env,
            policy: new.policy,
            resources: new.resources,
            storage_bytes: new.storage_bytes,
            desired_state: DesiredState::Awake,
            request_seq: 1,
            source: new.source,
            created: now,
            request_id: new.request_id,
        };
        tracing::info!(
            workspace = %id, name = %spec.name, owner = %spec.owner, template = spec.template,
            "workspace created"
        );
        let (spec, log) = (Arc::new(spec), Arc::default());
        let status = if spec.source.is_some() { Status::from_archive(now) } else { Status::new(now) };
        let record = WorkspaceRecord { spec, status, credential: None, log, generation: 0 };
        self.queue_changed = true;
        self.entries.insert(id.clone(), WorkspaceEntry::new(record, false, Observed::for_new_workspace()));
        Ok((id, true))
    }

    pub(super) fn delete(&mut self, id: &WorkspaceId, discard: bool, reply: Reply<Arc<WorkspaceView>>) {
        let Some(entry) = self.entries.get_mut(id) else {
            return drop(reply.send(Err(DriverError::NoWorkspace(id.clone()))));
        };
        let wanted = if discard { DesiredState::Discarded } else { DesiredState::Deleted };
        if entry.record.spec.desired_state != wanted
            && entry.record.spec.desired_state != DesiredState::Discarded
        {
            tracing::info!(workspace = %id, discard, "deletion requested");
            entry.set_desired_state(wanted);
        }
        // A caller may have repaired the files that could not be archived.
        let status = shorten_backoff(&entry.record.status, clock::now());
        entry.replace_status(status);
        entry.pending_replies.push(PendingReply::View(reply));
        self.advance(id);
    }

    /// Takes the deletion of a workspace back. The workspace stays as it is, asleep or awake.
    pub(super) fn undelete(&mut self, id: &WorkspaceId, reply: Reply<Arc<WorkspaceView>>) {
        let shuts_down = self.shutting_down || self.draining_idle;
        let Some(entry) = self.entries.get_mut(id) else {
            return drop(reply.send(Err(DriverError::NoWorkspace(id.clone()))));
        };
        if entry.record.spec.desired_state.is_gone() || entry.record.status.phase == Phase::Deleting {
            let refused = match entry.check_undelete() {
                Err(cause) => Some(DriverError::CannotUndelete { id: id.clone(), cause }),
                Ok(()) => shuts_down.then_some(DriverError::ShuttingDown),
            };
            if let Some(refused) = refused {
                return drop(reply.send(Err(refused)));
            }
            tracing::info!(workspace = %id, "deletion taken back");
            let mut status = undelete(&entry.record.status, clock::now());
            let is_asleep =
                matches!(status.phase, Phase::Asleep | Phase::Maintenance { .. } | Phase::Archived);
            if is_asleep {
                // The deletion counted as a request, which must not wake the workspace now.
                status.observed_request = entry.record.spec.request_seq;
            }
            entry.replace_status(status);
            // No request to wake: the workspace stays asleep if it is.
            let spec = Spec::clone(&entry.record.spec);
            entry.replace_spec(Spec { desired_state: DesiredState::Awake, ..spec });
        }
        entry.pending_replies.push(PendingReply::View(reply));
        self.advance(id);
    }

    pub(super) fn wake(&mut self, id: &WorkspaceId, reply: Reply<Arc<WorkspaceView>>) {
        if let Err(refused) = self.modifiable(id) {
            return drop(reply.send(Err(refused)));
        }
        self.request_wake(id);
        if let Some(entry) = self.entries.get_mut(id) {
            entry.pending_replies.push(PendingReply::View(reply));
        }
        self.advance(id);
    }

    /// Puts a workspace to sleep. Without `force`, fails if the workspace is in use or its activity
    /// is unknown.
    pub(super) fn sleep(&mut self, id: &WorkspaceId, force: bool, reply: Reply<Arc<WorkspaceView>>) {
        let refused = match self.modifiable(id) {
            Err(refused) => Some(refused),
            Ok(entry) if !force && in_use(entry) => {
                Some(DriverError::Busy(vec![entry.record.spec.name.clone()]))
            }
            Ok(_) => None,
        };
        if let Some(refused) = refused {
            return drop(reply.send(Err(refused)));
        }
        if let Some(entry) = self.entries.get_mut(id) {
            if entry.record.spec.desired_state != DesiredState::Asleep {
                tracing::info!(workspace = %id, force, "sleep requested");
                match entry.record.status.phase {
                    // Only the agent knows the current activity.
                    Phase::Awake | Phase::Preparing { .. } if !force => {
                        entry.observed.sleep_request = Some(SleepRequest::User)
                    }
                    _ => entry.set_desired_state(DesiredState::Asleep),
                }
            }
            entry.pending_replies.push(PendingReply::View(reply));
        }
        self.advance(id);
    }

    /// Restores a workspace of which only archives are left. A deleted workspace gets its name
    /// back, unless the owner has given the name to another workspace.
    pub(super) fn restore(&mut self, id: &WorkspaceId, reply: Reply<Arc<WorkspaceView>>) {
        let Some(entry) = self.entries.get_mut(id) else {
            return drop(reply.send(Err(DriverError::NoWorkspace(id.clone()))));
        };
        // A caller may see the deletion in the store before the driver learns that the write
        // succeeded.
        if entry.record.is_gone() && !entry.is_settled() {
            return entry.pending_replies.push(PendingReply::Restore(reply));
        }
        let record = entry.record.clone();
        let spec = &record.spec;
        let has_name = |other: &&WorkspaceEntry| {
            let theirs = &other.record.spec;
            theirs.id != *id
                && theirs.owner == spec.owner
                && theirs.name == spec.name
                && !other.record.is_gone()
        };
        let refused = if self.shutting_down || self.draining_idle {
            Some(DriverError::ShuttingDown)
        } else if spec.desired_state == DesiredState::Discarded
            || (spec.desired_state == DesiredState::Deleted && !record.is_gone())
        {
            Some(DriverError::Deleting { id: id.clone(), undelete: entry.check_undelete().is_ok() })
        } else if record.status.phase != Phase::Archived {
            Some(DriverError::NotArchived(id.clone()))
        } else {
            self.entries.values().find(has_name).map(|other| DriverError::NameTaken {
                name: spec.name.clone(),
                id: other.record.spec.id.clone(),
            })
        };
        if let Some(refused) = refused {
            return drop(reply.send(Err(refused)));
        }
        if let Some(entry) = self.entries.get_mut(id) {
            tracing::info!(workspace = %id, "restore requested");
            entry.set_desired_state(DesiredState::Awake);
            entry.deleted_in_store = false;
            entry.pending_replies.push(PendingReply::View(reply));
        }
        self.advance(id);
    }

    pub(super) fn set_policy(
        &mut self,
        id: &WorkspaceId,
        policy: &PolicyOverrides,
        reply: Reply<Arc<WorkspaceView>>,
    ) {
        if let Err(refused) = self.modifiable(id) {
            return drop(reply.send(Err(refused)));
        }
        if let Some(entry) = self.entries.get_mut(id) {
            let policy = entry.record.spec.policy.with(policy).with_limited_warning();
            if policy != entry.record.spec.policy {
                tracing::info!(workspace = %id, ?policy, "policy changed");
                entry.replace_spec(Spec { policy, ..Spec::clone(&entry.record.spec) });
            }
            entry.pending_replies.push(PendingReply::View(reply));
        }
        self.advance(id);
    }

    /// Changes the requested resources. A decrease takes effect at once. An increase may wait in
    /// the admission queue, and the workspace keeps its allocated resources meanwhile.
    pub(super) fn resize(
        &mut self,
        id: &WorkspaceId,
        resources: Resources,
        reply: Reply<Arc<WorkspaceView>>,
    ) {
        let refused = match self.modifiable(id) {
            Err(refused) => Some(refused),
            Ok(_) if !self.fits_quota(resources) => Some(DriverError::TooLarge),
            Ok(_) => None,
        };
        if let Some(refused) = refused {
            return drop(reply.send(Err(refused)));
        }
        if let Some(entry) = self.entries.get_mut(id) {
            if resources != entry.record.spec.resources {
                tracing::info!(workspace = %id, ?resources, "resize requested");
                entry.replace_spec(Spec { resources, ..Spec::clone(&entry.record.spec) });
                // The quota admitted the earlier resources, not the new ones.
                entry.observed.admitted = false;
                self.queue_changed = true;
            }
            entry.pending_replies.push(PendingReply::View(reply));
        }
        self.advance(id);
    }

    fn fits_quota(&self, resources: Resources) -> bool {
        self.quotas.owner.allows(resources) && self.quotas.total.allows(resources)
    }

    /// Returns the workspace. Fails if the workspace is being deleted or the control plane is
    /// stopping.
    fn modifiable(&self, id: &WorkspaceId) -> Result<&WorkspaceEntry, DriverError> {
        let entry = self.entries.get(id).ok_or_else(|| DriverError::NoWorkspace(id.clone()))?;
        if self.shutting_down || self.draining_idle {
            return Err(DriverError::ShuttingDown);
        }
        if entry.record.spec.desired_state.is_gone() || entry.record.status.phase == Phase::Deleting {
            return Err(DriverError::Deleting { id: id.clone(), undelete: entry.check_undelete().is_ok() });
        }
        Ok(entry)
    }

    /// Ends all processes, then the control plane. Without `force`, fails if a workspace is in use
    /// or its activity is unknown.
    pub(super) fn down(&mut self, force: bool, reply: Reply<()>) {
        let mut busy: Vec<_> =
            self.entries.values().filter(|entry| in_use(entry)).map(|e| e.record.spec.name.clone()).collect();
        if !force && !self.shutting_down && !busy.is_empty() {
            busy.sort();
            return drop(reply.send(Err(DriverError::Busy(busy))));
        }
        tracing::info!(force, "shutting down; ending the processes of all workspaces");
        self.shutting_down = true;
        for id in self.entries.keys().cloned().collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.observed.shutting_down = true;
            }
            self.advance(&id);
        }
        self.publish();
        drop(reply.send(Ok(())));
    }

    /// Requests a wake, unless the workspace is awake or already waking. Shortens the back-off to at
    /// most 1 s after the failure, because a caller waits.
    pub(super) fn request_wake(&mut self, id: &WorkspaceId) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.observed.sleep_request = None;
        let record = &entry.record;
        let answered = record.spec.request_seq <= record.status.observed_request;
        if record.spec.desired_state == DesiredState::Asleep
            || (answered && is_asleep_or_going(record.status.phase))
        {
            entry.set_desired_state(DesiredState::Awake);
        }
        let status = shorten_backoff(&entry.record.status, clock::now());
        entry.replace_status(status);
    }

    fn unused_id(&mut self) -> WorkspaceId {
        loop {
            let mut bits = [0; 8];
            // No id and no secret can be created without randomness. The kernel's source does not
            // fail once it is seeded.
            SystemRandom::new().fill(&mut bits).expect("the kernel's random source failed");
            let id = WorkspaceId::from_bits(u64::from_ne_bytes(bits));
            if self.issued_ids.insert(id.bits()) {
                return id;
            }
        }
    }
}

/// Returns whether a workspace in this phase wakes only for a new request.
fn is_asleep_or_going(phase: Phase) -> bool {
    match phase {
        Phase::Queued | Phase::Pending { .. } | Phase::Starting | Phase::Awake | Phase::Deleting => false,
        Phase::Preparing { .. }
        | Phase::Committing
        | Phase::FallingAsleep
        | Phase::Asleep
        | Phase::Maintenance { .. }
        | Phase::Archived => true,
    }
}

impl WorkspaceEntry {
    /// Sets the desired state as a new request.
    pub(super) fn set_desired_state(&mut self, desired_state: DesiredState) {
        let spec = Spec::clone(&self.record.spec);
        self.replace_spec(Spec { desired_state, request_seq: spec.request_seq + 1, ..spec });
    }

    fn replace_status(&mut self, status: Status) {
        if status != self.record.status {
            self.record = Arc::new(WorkspaceRecord { status, ..WorkspaceRecord::clone(&self.record) });
        }
    }

    fn replace_spec(&mut self, spec: Spec) {
        self.record =
            Arc::new(WorkspaceRecord { spec: Arc::new(spec), ..WorkspaceRecord::clone(&self.record) });
    }
}

/// Returns whether a stop could end work: the workspace is active or busy, or its agent is not
/// connected.
fn in_use(entry: &WorkspaceEntry) -> bool {
    let unknown = entry.observed.connected.is_none();
    let used = entry.activity.as_ref().is_some_and(|activity| match activity.level() {
        ActivityLevel::Active | ActivityLevel::Busy => true,
        ActivityLevel::Idle | ActivityLevel::Unspecified => false,
    });
    entry.record.status.phase == Phase::Awake
        && entry.record.spec.desired_state == DesiredState::Awake
        && (unknown || used)
}
