//! Requests of callers, and changes that were made in the store. Each request is accepted, or
//! rejected with a reason. A request that is already fulfilled is accepted and changes nothing.

use std::sync::Arc;

use podling_core::{
    id::WorkspaceId,
    observed::Observed,
    spec_change::SpecChange,
    status::{Phase, Status},
    workspace::{DesiredState, Spec},
};
use ring::rand::{SecureRandom, SystemRandom};

use super::{
    Driver, DriverError, NewWorkspace, PendingReply, Reply, WorkspaceEntry, handle::WorkspaceChange,
};
use crate::{backend::Backend, clock, snapshot::WorkspaceView, store::WorkspaceRecord};

/// Result of a call that creates a workspace.
struct CreateOutcome {
    id: WorkspaceId,
    /// `false` if the workspace existed.
    created: bool,
    /// Change of the spec that wakes an existing workspace.
    change: Option<SpecChange>,
}

/// Most workspaces of one owner. Stops a script that creates workspaces in a loop.
pub const MAX_WORKSPACES_PER_OWNER: usize = 100;
/// Most workspaces of one control plane. Limits its memory (about 10 KiB for each workspace) and
/// the size of snapshots.
pub const MAX_WORKSPACES: usize = 10_000;

impl<B: Backend> Driver<B> {
    pub(super) fn create(&mut self, new: NewWorkspace, reply: Reply<(Arc<WorkspaceView>, bool)>) {
        match self.find_or_create(new) {
            Ok(CreateOutcome { id, created, change }) => {
                self.fulfil(&id, change, PendingReply::Created(reply, created));
            }
            // A caller that has gone away needs no answer.
            Err(refused) => drop(reply.send(Err(refused))),
        }
    }

    /// Creates the workspace, unless an earlier call has.
    fn find_or_create(&mut self, new: NewWorkspace) -> Result<CreateOutcome, DriverError> {
        if self.shutting_down || self.draining_idle {
            return Err(DriverError::ShuttingDown);
        }
        let mine = || self.entries.values().filter(|entry| entry.record().spec.owner == new.owner);
        let repeated = |entry: &&WorkspaceEntry| {
            !new.request_id.is_empty() && entry.record().spec.request_id == new.request_id
        };
        if let Some(entry) = mine().find(repeated) {
            return Ok(CreateOutcome { id: entry.record().spec.id.clone(), created: false, change: None });
        }
        let has_name = |entry: &&WorkspaceEntry| entry.record().spec.name == new.name && entry.holds_name();
        if let Some(entry) = mine().find(has_name) {
            let id = entry.record().spec.id.clone();
            return match (entry.record().spec.desired_state, new.reconnect) {
                _ if entry.record().is_gone() => Err(DriverError::NameTaken { name: new.name, id }),
                (DesiredState::Deleted | DesiredState::Discarded, _) => {
                    Err(DriverError::Deleting { undelete: entry.check_undelete().is_ok(), id })
                }
                (DesiredState::Awake | DesiredState::Asleep, false) => {
                    Err(DriverError::NameTaken { name: new.name, id })
                }
                (DesiredState::Awake | DesiredState::Asleep, true) => {
                    // A new workspace that is not durable yet is desired awake.
                    let is_durable = entry.durable_record().is_some();
                    let entry = self.entries.get_mut(&id).filter(|_| is_durable);
                    let change = entry.and_then(WorkspaceEntry::request_wake);
                    Ok(CreateOutcome { id, created: false, change })
                }
            };
        }
        if !self.quotas.allow(new.resources) {
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
        Ok(CreateOutcome { id, created: true, change: None })
    }

    /// Changes a workspace, and answers once the change is durable.
    pub(super) fn change(
        &mut self,
        id: &WorkspaceId,
        change: WorkspaceChange,
        reply: Reply<Arc<WorkspaceView>>,
    ) {
        match self.check_change(id, change) {
            Ok(change) => self.fulfil(id, change, PendingReply::View(reply)),
            // A caller that has gone away needs no answer.
            Err(refused) => drop(reply.send(Err(refused))),
        }
    }

    /// Requests the change of the spec, if there is one, and answers once the result is durable.
    fn fulfil(&mut self, id: &WorkspaceId, change: Option<SpecChange>, reply: PendingReply) {
        match change {
            Some(change) => self.request_spec_change(id, change, reply),
            None => self.with_entry(id, |entry| entry.reply_when_durable(reply)),
        }
    }

    /// Returns the change of the spec that a request needs. Returns `None` if it needs none.
    fn check_change(
        &mut self,
        id: &WorkspaceId,
        change: WorkspaceChange,
    ) -> Result<Option<SpecChange>, DriverError> {
        Ok(match change {
            WorkspaceChange::Delete { discard } => self.entry(id)?.request_deletion(discard),
            WorkspaceChange::Undelete => Some(self.undelete_change(id)?),
            WorkspaceChange::Wake => self.modifiable(id)?.request_wake(),
            WorkspaceChange::Sleep { force } => {
                let entry = self.modifiable(id)?;
                if !force && entry.is_in_use() {
                    return Err(DriverError::Busy(vec![entry.record().spec.name.clone()]));
                }
                entry.request_sleep(force)
            }
            WorkspaceChange::Restore => {
                self.check_restore(id)?;
                Some(SpecChange::Restore)
            }
            WorkspaceChange::SetPolicy(policy) => {
                self.modifiable(id)?;
                Some(SpecChange::SetPolicy(policy))
            }
            WorkspaceChange::Resize(overrides) => {
                let quotas = self.quotas;
                self.modifiable(id)?;
                Some(SpecChange::Resize { overrides, quotas })
            }
        })
    }

    /// Returns the change of the spec that takes the deletion back. Fails if it cannot be taken back.
    fn undelete_change(&mut self, id: &WorkspaceId) -> Result<SpecChange, DriverError> {
        let is_stopping = self.is_stopping();
        let entry = self.entry(id)?;
        if is_being_deleted(entry) {
            entry.check_undelete().map_err(|cause| DriverError::CannotUndelete { id: id.clone(), cause })?;
        }
        if is_stopping {
            return Err(DriverError::ShuttingDown);
        }
        Ok(entry.request_undelete())
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
        let others =
            self.entries.values().filter(|other| other.record().spec.id != *id && other.holds_name());
        let mut others = others.map(WorkspaceEntry::record).filter(|other| other.spec.owner == spec.owner);
        match others.find(|other| other.spec.name == spec.name) {
            Some(other) => Err(DriverError::NameTaken { name: spec.name.clone(), id: other.spec.id.clone() }),
            None => self.entry(id),
        }
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
