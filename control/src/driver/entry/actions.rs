//! The action in flight: its inputs, its start and its result. Also the agents that run, because
//! actions start and end them.

use std::{collections::BTreeSet, time::Duration};

use podling_core::{
    archive::{Archive, ArchiveKey},
    decide::Action,
    observed::{ActionSuccess, AgentEnd, Failure, RunningAgents},
    reason::Wait,
    status::Phase,
    time::Timestamp,
    workspace::{Epoch, Resources},
};
use tokio_util::sync::CancellationToken;

use super::WorkspaceEntry;
use crate::{
    archiver::ArchivedCopy,
    backend::{Instance, ResizePlan, StartPlan, StartPurpose},
    backup_store::StoreKey,
    clock,
    driver::DirectiveId,
    executor::{ActionOutput, ActionRequest, ActionResult, failpoint},
};

/// Time that an agent has to end its processes before a stop. The backend waits longer before it
/// kills the agent.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// How an action began.
#[derive(Debug)]
pub(crate) enum BegunAction {
    /// The executor has to perform this request.
    Request(ActionRequest),
    /// The agent was sent a directive.
    Directive,
    /// The record has to be removed from the store, as of this time.
    RemoveRecord(Timestamp),
    /// The action failed at once. The next decision knows why.
    Failed,
}

impl WorkspaceEntry {
    /// Begins an action. `directive` identifies the message to the agent, if the action needs one.
    pub(crate) fn begin(&mut self, action: Action, directive: DirectiveId) -> BegunAction {
        failpoint(action, "before");
        let request = match action {
            Action::StartAgent(epoch) => self.start_request(epoch),
            Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_) => {
                self.send_directive(directive, action);
                // The directive may have failed immediately.
                return match self.in_flight {
                    Some(_) => BegunAction::Directive,
                    None => BegunAction::Failed,
                };
            }
            Action::Resize { epoch, resources } => {
                let (workspace, cancellation) = (self.record.spec.id.clone(), CancellationToken::new());
                Ok(ActionRequest::Resize(ResizePlan { workspace, epoch, resources, cancellation }))
            }
            Action::StopProcesses => {
                self.drain(DRAIN_GRACE);
                Ok(ActionRequest::StopProcesses(self.record.spec.id.clone(), self.epoch()))
            }
            Action::RemoveStorage => {
                let deleting = self.record.status.phase == Phase::Deleting;
                let known = self.recorded_archives().filter(|_| deleting);
                Ok(ActionRequest::RemoveStorage { workspace: self.record.spec.id.clone(), known })
            }
            Action::Archive(_) => self.archive_request(),
            Action::Restore(epoch) => self.restore_request(epoch),
            Action::ExpireArchive(generation) => self.expire_request(generation),
            Action::RemoveRecord => {
                self.in_flight = Some(action);
                return BegunAction::RemoveRecord(clock::now());
            }
        };
        match request {
            Err(problem) => self.fail(action, problem),
            Ok(request) => {
                tracing::debug!(workspace = %self.record.spec.id, ?action, "action started");
                self.in_flight = Some(action);
                self.progress = None;
                self.observed.action_started(action);
                BegunAction::Request(request)
            }
        }
    }

    /// Records that an action failed before it began.
    pub(crate) fn fail(&mut self, action: Action, problem: String) -> BegunAction {
        self.observed.done(action, Err(Failure::Failed(problem)), clock::now());
        BegunAction::Failed
    }

    /// Records the result of the action in flight. `observed_time` dates an archive.
    pub(crate) fn finish(&mut self, finished: &ActionResult, observed_time: Duration) {
        failpoint(finished.action, "after");
        self.in_flight = None;
        self.progress = None;
        if let Err(error) = &finished.result {
            tracing::warn!(
                workspace = %finished.workspace, action = ?finished.action, error, "action failed"
            );
        }
        let now = clock::now();
        let result = match &finished.result {
            Ok(ActionOutput::Archived(copy, generation)) => {
                Ok(ActionSuccess::Archived(Box::new(archive(copy, *generation, now, observed_time))))
            }
            Ok(ActionOutput::Started(_) | ActionOutput::Ended) => Ok(ActionSuccess::Done),
            Err(error) => Err(Failure::Failed(error.clone())),
        };
        self.observed.done(finished.action, result, now);
        if let Ok(ActionOutput::Started(instance)) = &finished.result {
            self.add_instance(instance.clone());
        }
        if self.observed.processes == RunningAgents::None {
            self.instances.clear();
            self.clear_agent();
        }
    }

    fn start_request(&mut self, epoch: Epoch) -> Result<ActionRequest, String> {
        // The control plane that decided this start may have ended before it requested the start. Then
        // its secret is lost. As with every start whose result is unknown, the epoch is used up.
        let secret = self.secret.take().filter(|(of, _)| *of == epoch);
        let (_, secret) = secret.ok_or("the control plane ended before it requested the start")?;
        let (spec, cancellation) = (self.record.spec.clone(), CancellationToken::new());
        let (workspace, resources) = (spec.id.clone(), self.start_resources());
        let purpose = StartPurpose::of(self.record.status.phase);
        let expects_files = self.record.status.storage && purpose != StartPurpose::Restore;
        let plan =
            StartPlan { workspace, epoch, purpose, expects_files, secret, spec, resources, cancellation };
        Ok(ActionRequest::StartAgent(plan))
    }

    /// Returns the resources of the agent that is started in this phase. An agent in maintenance mode
    /// runs no programs, so it gets at most the default resources. It can then be started where the
    /// workspace itself finds no place.
    fn start_resources(&self) -> Resources {
        let (spec, status) = (&self.record.spec, &self.record.status);
        match status.phase {
            Phase::Maintenance { .. } => spec.resources.min(Resources::default()),
            _ => status.allocated.unwrap_or(spec.resources),
        }
    }

    fn archive_request(&self) -> Result<ActionRequest, String> {
        let (spec, status) = (self.record.spec.clone(), &self.record.status);
        let known =
            self.recorded_archives().ok_or("the record holds an archive key that cannot be parsed")?;
        let agent = self.sessions.agent().cloned().ok_or(NO_AGENT)?;
        let (epoch, generation) = (status.epoch, status.storage_generation);
        Ok(ActionRequest::Archive { epoch, generation, spec, agent, known })
    }

    fn restore_request(&self, epoch: Epoch) -> Result<ActionRequest, String> {
        let (spec, status) = (self.record.spec.clone(), &self.record.status);
        let key = status.archive().map(|archive| &archive.key).or(spec.source.as_ref());
        let key = store_key(key.ok_or("the workspace has no archive")?)?;
        Ok(ActionRequest::Restore {
            epoch,
            key,
            agent: self.sessions.agent().cloned().ok_or(NO_AGENT)?,
            spec,
        })
    }

    fn expire_request(&self, generation: u64) -> Result<ActionRequest, String> {
        let key = self.archive_key(generation).ok_or("the archive is not in the workspace's record")?;
        let workspace = self.record.spec.id.clone();
        Ok(ActionRequest::ExpireArchive { workspace, generation, key: store_key(key)? })
    }

    /// Returns the key of the archive of this storage generation.
    pub(crate) fn archive_key(&self, generation: u64) -> Option<&ArchiveKey> {
        let archives = &self.record.status.archives;
        Some(&archives.iter().find(|archive| archive.generation == generation)?.key)
    }

    /// Returns whether the workspace has yet to be restored from this archive.
    pub(crate) fn needs_archive(&self, key: &ArchiveKey) -> bool {
        let (spec, status) = (&self.record.spec, &self.record.status);
        spec.source.as_ref() == Some(key) && status.storage_generation == 0 && !spec.desired_state.is_gone()
    }

    /// Returns the keys of the recorded archives. Returns `None` if a key cannot be parsed. Then it
    /// is unknown which stored archives are recorded, so none may be removed as unrecorded.
    fn recorded_archives(&self) -> Option<Vec<StoreKey>> {
        self.record.status.archives.iter().map(|archive| archive.key.0.parse().ok()).collect()
    }

    // === Running agents ===

    /// Returns the running agent of the current epoch.
    pub(super) fn instance(&self) -> Option<&Instance> {
        let epoch = self.epoch();
        self.instances.iter().find(|instance| instance.epoch == epoch)
    }

    /// Records a running agent, unless it is known already or has ended.
    fn add_instance(&mut self, instance: Instance) {
        // The end of an agent may be reported before its start.
        let ended = |ended: &AgentEnd| ended.epoch == instance.epoch;
        let known = self.instances.iter().any(|known| known.id == instance.id);
        if !self.observed.ended.as_ref().is_some_and(ended) && !known {
            self.observed.actual = instance.resources.map(|has| (instance.epoch, has));
            self.instances.push(instance);
        }
    }

    /// Applies the backend's list of the running agents, unless they are known. They are known for
    /// workspaces that were created after the start of the control plane.
    pub(crate) fn set_instances<'a>(&mut self, running: impl Iterator<Item = &'a Instance> + Clone) {
        if self.observed.processes != RunningAgents::Unseen {
            return;
        }
        let epoch = self.epoch();
        self.observed.apply_first_list(running.clone().map(|instance| instance.epoch).collect(), epoch);
        self.instances.clear();
        for instance in running {
            if self.observed.processes.is_running(instance.epoch) {
                self.add_instance(instance.clone());
            }
        }
    }

    /// Records that no agent is known, but processes of an earlier workspace with this id may run.
    /// They are stopped before a start.
    pub(crate) fn expect_leftovers(&mut self) {
        self.observed.processes = RunningAgents::Some(BTreeSet::new());
    }

    pub(crate) fn instance_ended(&mut self, instance: &Instance, detail: String) {
        self.instances.retain(|other| other.id != instance.id);
        self.observed.agent_ended(instance.epoch, detail);
        self.clear_agent();
    }

    /// Records what the start or resize in flight waits for.
    pub(crate) fn set_waits(&mut self, epoch: Epoch, waits: Option<Wait>) {
        if let Some(Action::StartAgent(of) | Action::Resize { epoch: of, .. }) = self.in_flight
            && of == epoch
        {
            self.observed.waits = waits;
        }
    }

    /// Records the problem of a container beside the agent of this epoch.
    pub(crate) fn set_container_problem(&mut self, epoch: Epoch, problem: Option<String>) {
        if epoch == self.epoch() {
            self.observed.container_problem = problem;
        }
    }

    /// Removes the claimed agent unless it is the running agent of the current epoch.
    fn clear_agent(&mut self) {
        if self.instance().is_none() {
            self.sessions.forget_agent();
        }
    }
}

const NO_AGENT: &str = "the workspace's agent has not connected";

fn store_key(key: &ArchiveKey) -> Result<StoreKey, String> {
    key.0.parse::<StoreKey>().map_err(|error| error.to_string())
}

/// Builds the entry of an archive for the workspace's status.
fn archive(copy: &ArchivedCopy, generation: u64, at: Timestamp, observed_time: Duration) -> Archive {
    Archive {
        key: ArchiveKey(copy.key.to_string()),
        generation,
        at,
        observed_time,
        entries: copy.proof.entries,
        left_out: copy.proof.left_out,
        bytes: copy.proof.bytes,
        archive_bytes: copy.proof.archive_bytes,
    }
}
