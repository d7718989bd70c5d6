//! What people ask of the driver: do, it is so already, or a refusal with its reason.

use std::sync::Arc;

use podling_core::{
    decide::hurry,
    id::WorkspaceId,
    observed::Observed,
    status::{Phase, Status},
    workspace::{Spec, Wanted},
};
use podling_proto::agent::v1::Verdict;
use ring::rand::{SecureRandom, SystemRandom};

use super::{
    Driver, DriverError, NewWorkspace, clock,
    entry::{Entry, Waiting},
    event::Reply,
};
use crate::{backend::Backend, snapshot::WorkspaceView, store::Record};

/// Workspaces of one owner: a script that creates in a loop is stopped before it takes the machine.
pub const MAX_WORKSPACES_PER_OWNER: usize = 100;
/// Workspaces of one control plane: what its memory (some 10 KiB each) and its snapshots are made for.
pub const MAX_WORKSPACES: usize = 10_000;

impl<B: Backend> Driver<B> {
    pub(super) fn create(&mut self, new: NewWorkspace, reply: Reply<(Arc<WorkspaceView>, bool)>) {
        let (id, created) = match self.find_or_make(new) {
            Ok(found) => found,
            // Who has gone away needs no answer.
            Err(refused) => return drop(reply.send(Err(refused))),
        };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.waiting.push(Waiting::Created(reply, created));
        }
        self.advance(&id);
    }

    fn find_or_make(&mut self, new: NewWorkspace) -> Result<(WorkspaceId, bool), DriverError> {
        if self.standby {
            return Err(DriverError::ShuttingDown);
        }
        let mine = || self.entries.values().filter(|entry| entry.record.spec.owner == new.owner);
        let repeated =
            |entry: &&Entry| !new.request_id.is_empty() && entry.record.spec.request_id == new.request_id;
        if let Some(entry) = mine().find(repeated) {
            return Ok((entry.record.spec.id.clone(), false));
        }
        if let Some(entry) = mine().find(|entry| entry.record.spec.name == new.name) {
            let id = entry.record.spec.id.clone();
            return match (entry.record.spec.wanted, new.reconnect) {
                (Wanted::Deleted, _) => Err(DriverError::Deleting(id)),
                (Wanted::Awake, false) => Err(DriverError::NameTaken { name: new.name, id }),
                (Wanted::Awake, true) => {
                    self.hurry(&id);
                    Ok((id, false))
                }
            };
        }
        if mine().count() >= MAX_WORKSPACES_PER_OWNER {
            return Err(DriverError::TooManyWorkspaces {
                limit: MAX_WORKSPACES_PER_OWNER,
                what: "of this owner",
            });
        }
        // While the store takes nothing, what is to be forgotten again piles up there: it is bounded with the rest.
        if self.entries.len().max(self.writer.waiting()) >= MAX_WORKSPACES {
            return Err(DriverError::TooManyWorkspaces { limit: MAX_WORKSPACES, what: "here" });
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
            wanted: Wanted::Awake,
            created: now,
            request_id: new.request_id,
        };
        tracing::info!(workspace = %id, name = %spec.name, owner = %spec.owner, template = spec.template, "created");
        let record = Record { spec: Arc::new(spec), status: Status::new(now), credential: None };
        self.entries.insert(id.clone(), Entry::new(record, false, Observed::of_new()));
        Ok((id, true))
    }

    pub(super) fn delete(&mut self, id: &WorkspaceId, reply: Reply<Arc<WorkspaceView>>) {
        let Some(entry) = self.entries.get_mut(id) else {
            return drop(reply.send(Err(DriverError::NoWorkspace(id.clone()))));
        };
        if entry.record.spec.wanted != Wanted::Deleted {
            tracing::info!(workspace = %id, "is to be deleted");
            let spec = Spec { wanted: Wanted::Deleted, ..Spec::clone(&entry.record.spec) };
            entry.record = Arc::new(Record { spec: Arc::new(spec), ..Record::clone(&entry.record) });
        }
        entry.waiting.push(Waiting::View(reply));
        self.advance(id);
    }

    pub(super) fn wake(&mut self, id: &WorkspaceId, reply: Reply<Arc<WorkspaceView>>) {
        let refused = match self.entries.get(id) {
            None => Some(DriverError::NoWorkspace(id.clone())),
            Some(_) if self.standby => Some(DriverError::ShuttingDown),
            Some(entry) if entry.record.spec.wanted == Wanted::Deleted => {
                Some(DriverError::Deleting(id.clone()))
            }
            Some(_) => None,
        };
        if let Some(refused) = refused {
            return drop(reply.send(Err(refused)));
        }
        self.hurry(id);
        if let Some(entry) = self.entries.get_mut(id) {
            entry.waiting.push(Waiting::View(reply));
        }
        self.advance(id);
    }

    /// Going down is denied only for work that somebody may miss.
    pub(super) fn down(&mut self, force: bool, reply: Reply<()>) {
        let mut busy: Vec<_> =
            self.entries.values().filter(|entry| in_use(entry)).map(|e| e.record.spec.name.clone()).collect();
        if !force && !self.standby && !busy.is_empty() {
            busy.sort();
            return drop(reply.send(Err(DriverError::Busy(busy))));
        }
        tracing::info!(force, "going down: all workspaces' processes are ended");
        self.standby = true;
        for id in self.entries.keys().cloned().collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.observed.standby = true;
            }
            self.advance(&id);
        }
        self.publish();
        drop(reply.send(Ok(())));
    }

    fn hurry(&mut self, id: &WorkspaceId) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let status = hurry(&entry.record.status, clock::now());
        if status != entry.record.status {
            entry.record = Arc::new(Record { status, ..Record::clone(&entry.record) });
        }
    }

    fn unused_id(&mut self) -> WorkspaceId {
        loop {
            let mut bits = [0; 8];
            // Without randomness nothing here is safe; the kernel's source does not fail once it is seeded.
            SystemRandom::new().fill(&mut bits).expect("the system has no randomness");
            let id = WorkspaceId::from_bits(u64::from_ne_bytes(bits));
            if self.used.insert(id.bits()) {
                return id;
            }
        }
    }
}

/// Whether somebody may miss what runs: it is used, or nobody knows.
fn in_use(entry: &Entry) -> bool {
    let unknown = entry.observed.connected.is_none();
    let used = entry.activity.as_ref().is_some_and(|activity| match activity.verdict() {
        Verdict::Active | Verdict::Busy => true,
        Verdict::Idle | Verdict::Unspecified => false,
    });
    entry.record.status.phase == Phase::Awake
        && entry.record.spec.wanted == Wanted::Awake
        && (unknown || used)
}
