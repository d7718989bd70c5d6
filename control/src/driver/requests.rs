//! Requests of callers, and changes that were made in the store. Each request is accepted, or
//! rejected with a reason. A request that is already fulfilled is accepted and changes nothing.

use std::sync::Arc;

use podling_core::{
    id::WorkspaceId,
    observed::Observed,
    status::{Phase, Status},
    workspace::{DesiredState, Resources, Spec},
};
use ring::rand::{SecureRandom, SystemRandom};

use super::{
    Driver, DriverError, NewWorkspace, PendingReply, Reply, WorkspaceEntry, handle::WorkspaceChange,
};
use crate::{backend::Backend, clock, snapshot::WorkspaceView, store::WorkspaceRecord};

/// Most workspaces of one owner. Stops a script that creates workspaces in a loop.
pub const MAX_WORKSPACES_PER_OWNER: usize = 100;
/// Most workspaces of one control plane. Limits its memory (about 10 KiB for each workspace) and
/// the size of snapshots.
pub const MAX_WORKSPACES: usize = 10_000;

impl<B: Backend> Driver<B> {
    pub(super) fn create(&mut self, new: NewWorkspace, reply: Reply<(Arc<WorkspaceView>, bool)>) {
        match self.find_or_create(new) {
            Ok((id, created)) => {
                self.with_entry(&id, |entry| {
                    entry.reply_when_durable(PendingReply::Created(reply, created));
                });
            }
            // A caller that has gone away needs no answer.
            Err(refused) => drop(reply.send(Err(refused))),
        }
    }

    fn find_or_create(&mut self, new: NewWorkspace) -> Result<(WorkspaceId, bool), DriverError> {
        if self.shutting_down || self.draining_idle {
            return Err(DriverError::ShuttingDown);
        }
        let mine = || self.entries.values().filter(|entry| entry.record().spec.owner == new.owner);
        let repeated = |entry: &&WorkspaceEntry| {
            !new.request_id.is_empty() && entry.record().spec.request_id == new.request_id
        };
        if let Some(entry) = mine().find(repeated) {
            return Ok((entry.record().spec.id.clone(), false));
        }
        let has_name =
            |entry: &&WorkspaceEntry| entry.record().spec.name == new.name && !entry.record().is_gone();
        if let Some(entry) = mine().find(has_name) {
            let id = entry.record().spec.id.clone();
            return match (entry.record().spec.desired_state, new.reconnect) {
                (DesiredState::Deleted | DesiredState::Discarded, _) => {
                    Err(DriverError::Deleting { undelete: entry.check_undelete().is_ok(), id })
                }
                (DesiredState::Awake | DesiredState::Asleep, false) => {
                    Err(DriverError::NameTaken { name: new.name, id })
                }
                (DesiredState::Awake | DesiredState::Asleep, true) => {
                    if let Some(entry) = self.entries.get_mut(&id) {
                        entry.request_wake();
                    }
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
        self.entries.insert(id.clone(), WorkspaceEntry::new(record, false, Observed::for_new_workspace()));
        Ok((id, true))
    }

    /// Changes a workspace, and answers once the change is durable.
    pub(super) fn change(
        &mut self,
        id: &WorkspaceId,
        change: WorkspaceChange,
        reply: Reply<Arc<WorkspaceView>>,
    ) {
        // A caller may see the deletion in the store before the driver learns that the write
        // succeeded.
        let is_unsettled = |entry: &&mut WorkspaceEntry| entry.record().is_gone() && !entry.is_settled();
        if matches!(change, WorkspaceChange::Restore)
            && let Some(entry) = self.entries.get_mut(id).filter(is_unsettled)
        {
            return entry.restore_when_durable(reply);
        }
        match self.apply_change(id, change) {
            Ok(()) => self.with_entry(id, |entry| entry.reply_when_durable(PendingReply::View(reply))),
            // A caller that has gone away needs no answer.
            Err(refused) => drop(reply.send(Err(refused))),
        }
    }

    fn apply_change(&mut self, id: &WorkspaceId, change: WorkspaceChange) -> Result<(), DriverError> {
        match change {
            WorkspaceChange::Delete { discard } => self.entry(id)?.delete(discard),
            WorkspaceChange::Undelete => self.undelete(id)?,
            WorkspaceChange::Wake => self.modifiable(id)?.request_wake(),
            WorkspaceChange::Sleep { force } => {
                let entry = self.modifiable(id)?;
                if !force && entry.is_in_use() {
                    return Err(DriverError::Busy(vec![entry.record().spec.name.clone()]));
                }
                entry.request_sleep(force);
            }
            WorkspaceChange::Restore => self.check_restore(id)?.request_restore(),
            WorkspaceChange::SetPolicy(policy) => self.modifiable(id)?.set_policy(&policy),
            WorkspaceChange::Resize(resources) => {
                let fits = self.fits_quota(resources);
                let entry = self.modifiable(id)?;
                if !fits {
                    return Err(DriverError::TooLarge);
                }
                entry.resize(resources);
            }
        }
        Ok(())
    }

    fn undelete(&mut self, id: &WorkspaceId) -> Result<(), DriverError> {
        let is_stopping = self.is_stopping();
        let entry = self.entry(id)?;
        if is_being_deleted(entry) {
            entry.check_undelete().map_err(|cause| DriverError::CannotUndelete { id: id.clone(), cause })?;
            if is_stopping {
                return Err(DriverError::ShuttingDown);
            }
            entry.undelete();
        }
        Ok(())
    }

    /// Returns the workspace if only archives of it are left. A deleted workspace gets its name back,
    /// unless the owner has given the name to another workspace.
    fn check_restore(&mut self, id: &WorkspaceId) -> Result<&mut WorkspaceEntry, DriverError> {
        let is_stopping = self.is_stopping();
        let entry = self.entry(id)?;
        let (record, undelete) = (entry.record().clone(), entry.check_undelete().is_ok());
        let spec = &record.spec;
        if is_stopping {
            return Err(DriverError::ShuttingDown);
        }
        if spec.desired_state == DesiredState::Discarded
            || (spec.desired_state == DesiredState::Deleted && !record.is_gone())
        {
            return Err(DriverError::Deleting { id: id.clone(), undelete });
        }
        if record.status.phase != Phase::Archived {
            return Err(DriverError::NotArchived(id.clone()));
        }
        let others = self.entries.values().map(WorkspaceEntry::record).filter(|other| other.spec.id != *id);
        let mut others = others.filter(|other| other.spec.owner == spec.owner && !other.is_gone());
        match others.find(|other| other.spec.name == spec.name) {
            Some(other) => Err(DriverError::NameTaken { name: spec.name.clone(), id: other.spec.id.clone() }),
            None => self.entry(id),
        }
    }

    fn fits_quota(&self, resources: Resources) -> bool {
        self.quotas.owner.allows(resources) && self.quotas.total.allows(resources)
    }

    /// Returns whether the control plane is about to stop.
    fn is_stopping(&self) -> bool {
        self.shutting_down || self.draining_idle
    }

    fn entry(&mut self, id: &WorkspaceId) -> Result<&mut WorkspaceEntry, DriverError> {
        self.entries.get_mut(id).ok_or_else(|| DriverError::NoWorkspace(id.clone()))
    }

    /// Returns the workspace. Fails if the workspace is being deleted or the control plane is
    /// stopping.
    fn modifiable(&mut self, id: &WorkspaceId) -> Result<&mut WorkspaceEntry, DriverError> {
        let is_stopping = self.is_stopping();
        let entry = self.entry(id)?;
        if is_stopping {
            return Err(DriverError::ShuttingDown);
        }
        if is_being_deleted(entry) {
            return Err(DriverError::Deleting { id: id.clone(), undelete: entry.check_undelete().is_ok() });
        }
        Ok(entry)
    }

    /// Adds a workspace that was created in the store, or that has become readable again.
    pub(super) fn add_stored(&mut self, record: WorkspaceRecord) {
        let id = record.spec.id.clone();
        if self.entries.contains_key(&id) {
            return;
        }
        if self.entries.len() >= MAX_WORKSPACES {
            tracing::error!(
                workspace = %id, limit = MAX_WORKSPACES, "workspace limit reached; ignoring workspace"
            );
            return;
        }
        tracing::info!(
            workspace = %id, name = %record.spec.name, owner = %record.spec.owner,
            "workspace found in the store"
        );
        let mut entry = WorkspaceEntry::new(record, true, Observed::default());
        let running: Vec<_> =
            self.unknown_agents.extract_if(.., |instance| instance.workspace == id).collect();
        match running.is_empty() {
            true => entry.expect_leftovers(),
            false => entry.set_instances(running.iter()),
        }
        self.issued_ids.insert(id.bits());
        self.entries.insert(id.clone(), entry);
        self.advance(&id);
    }

    // === The end of the control plane ===

    /// Ends all processes, then the control plane. Without `force`, fails if a workspace is in use
    /// or its activity is unknown.
    pub(super) fn down(&mut self, force: bool, reply: Reply<()>) {
        let busy = self.entries.values().filter(|entry| entry.is_in_use());
        let mut busy: Vec<_> = busy.map(|entry| entry.record().spec.name.clone()).collect();
        if !force && !self.shutting_down && !busy.is_empty() {
            busy.sort();
            return drop(reply.send(Err(DriverError::Busy(busy))));
        }
        tracing::info!(force, "shutting down; ending the processes of all workspaces");
        self.shutting_down = true;
        self.entries.values_mut().for_each(WorkspaceEntry::shut_down);
        self.advance_all();
        self.publish();
        drop(reply.send(Ok(())));
    }

    /// Cancels `shutdown` once every process has ended after [`super::DriverHandle::down`].
    pub(super) fn finish_if_down(&mut self) {
        if self.shutting_down
            && self.writer.is_idle()
            && self.entries.values().all(WorkspaceEntry::allows_shutdown)
        {
            self.publish();
            tracing::info!("all workspaces are asleep");
            self.shutdown.cancel();
        }
    }

    /// Puts idle workspaces to sleep in two phases, before the control plane stops. `reply` is
    /// answered once they are asleep. From now on, new workspaces and wakes are rejected.
    ///
    /// Unlike [`super::DriverHandle::down`], this ends no workspace that is in use. An agent that
    /// declines continues to run, and the next control plane adopts it.
    pub(super) fn drain_idle(&mut self, reply: Reply<()>) {
        tracing::info!("stopping; putting idle workspaces to sleep and leaving the others running");
        self.draining_idle = true;
        self.drain_reply = Some(reply);
        self.entries.values_mut().for_each(WorkspaceEntry::sleep_if_idle);
        self.advance_all();
    }

    /// Answers the drain once no workspace is falling asleep. Ends it early if its caller has gone
    /// away.
    pub(super) fn finish_idle_drain(&mut self) {
        let is_over = |reply: &mut Reply<()>| {
            reply.is_closed() || !self.entries.values().any(WorkspaceEntry::is_falling_asleep)
        };
        if let Some(reply) = self.drain_reply.take_if(is_over) {
            // An agent that was not asked yet continues to run. The control plane ends soon, and
            // could not complete its sleep.
            self.entries.values_mut().for_each(WorkspaceEntry::cancel_sleep_request);
            // A caller that has gone away needs no answer.
            drop(reply.send(Ok(())));
        }
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

/// Returns whether a deletion of the workspace was requested or has begun.
fn is_being_deleted(entry: &WorkspaceEntry) -> bool {
    let record = entry.record();
    record.spec.desired_state.is_gone() || record.status.phase == Phase::Deleting
}
