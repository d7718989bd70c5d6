//! One workspace in the driver's memory: its record, observations, sessions and pending work.
//!
//! All changes of a workspace pass through this module. It knows no other workspace, and neither the
//! store nor the executor: [`WorkspaceEntry::decide`] returns what the driver has to do.

mod actions;
mod changes;
mod sessions;

use std::{sync::Arc, time::Duration};

use podling_core::{
    decide::{Action, Decision, decide},
    observed::{Failure, Observed, RunningAgents, UseState},
    quota::{QuotaRequest, larger},
    reason::NextStep,
    status::{MaintenanceStage, MaintenanceTask, Phase, Status},
    time::Timestamp,
    workspace::{AgentConnection, DesiredState, Epoch, Resources},
};
use podling_proto::{error::with_causes, token};
use tokio::time::Instant;

pub(crate) use self::actions::BegunAction;
use self::sessions::AgentSessions;
pub use self::sessions::MAX_AGENT_SESSIONS;
use super::{
    DriverError,
    error::CannotUndeleteCause,
    handle::Reply,
    index::{IndexedFacts, QuotaFacts},
};
use crate::{
    backend::Instance,
    clock,
    progress::{TransferProgress, TransferStage},
    reasons,
    snapshot::{Fingerprint, WorkspaceView},
    store::{CredentialDigest, LOG_ENTRIES, LogEntry, StoreError, WorkspaceRecord},
};

/// Number of random bytes in an agent's secret.
const SECRET_BYTES: usize = 32;
/// Shortest delay before the next decision for a workspace. Deadlines have whole milliseconds.
/// Without this delay, the driver would spin during the last fraction of a millisecond.
const MIN_DELAY: Duration = Duration::from_millis(10);

/// The driver's memory of one workspace.
#[derive(Debug)]
pub(crate) struct WorkspaceEntry {
    /// The latest decision. It is durable once `durable` is the same `Arc`.
    record: Arc<WorkspaceRecord>,
    /// The record in the store. `None` before the first successful write.
    durable: Option<Arc<WorkspaceRecord>>,
    /// The record that the writer was given last.
    submitted: Option<Arc<WorkspaceRecord>>,
    /// The largest reservation of the records that were submitted since the last submitted one was
    /// durable. Each of them may become durable.
    submitted_reservation: Option<Resources>,
    /// Version of the last observed spec. That spec is durable, whether or not `record` is.
    spec_version: u64,
    /// Whether the store may hold a later spec, because a write conflicted or a change of the spec
    /// failed. The driver then reads the spec.
    must_read_spec: bool,
    own_spec_change: OwnSpecChange,
    /// Number of requests to restore or undelete in progress. Each reserves the name of the workspace.
    name_reservations: usize,
    /// Number of requests to wake in progress. Each has withdrawn the earlier request to sleep.
    wakes_in_progress: usize,
    /// Whether the workspace was deleted in the store. Such a deletion cannot be taken back.
    deleted_in_store: bool,
    observed: Observed,
    in_flight: Option<Action>,
    /// Progress of the action in flight, if any was reported.
    progress: Option<TransferProgress>,
    /// Position in the admission queue; 1 is next.
    queue_position: Option<usize>,
    /// Epoch and secret of the next start. Moved into the request when the start begins.
    secret: Option<(Epoch, String)>,
    /// Running agents of all epochs.
    instances: Vec<Instance>,
    sessions: AgentSessions,
    /// The next step and its wall-clock time, for display.
    next: Option<(Timestamp, NextStep)>,
    /// When the next decision is due, on the monotonic clock.
    scheduled_at: Option<Instant>,
    /// Replies that are sent once the record is durable. Without a deadline, the request is only in the
    /// record, and a failed write rejects it. With a deadline, the request is stored in the spec, and is
    /// answered at the deadline at the latest.
    pending_replies: Vec<(Option<Instant>, PendingReply)>,
    /// The view in the published snapshot.
    view: Option<Arc<WorkspaceView>>,
}

/// Whether the driver may request a change of the spec for itself.
#[derive(Debug, Clone, Copy)]
enum OwnSpecChange {
    /// A change is requested, and its result has not been received.
    InFlight,
    /// A change may be requested from this time on.
    NotBefore(Instant),
}

/// A reply that is sent once the workspace's record is durable.
#[derive(Debug)]
pub(crate) enum PendingReply {
    /// The flag says whether the workspace was created.
    Created(Reply<(Arc<WorkspaceView>, bool)>, bool),
    View(Reply<Arc<WorkspaceView>>),
}

/// The state of the control plane that a decision depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecisionContext {
    pub(crate) observed_time: Duration,
    /// Whether no further archive may start.
    pub(crate) archive_slots_full: bool,
}

/// What the driver has to do after a decision.
#[derive(Debug)]
pub(crate) struct DecidedEffects {
    /// The action in flight is not wanted any more, and can be cancelled.
    pub(crate) cancel: bool,
    /// The record to write. No action begins before it is durable.
    pub(crate) write: Option<Arc<WorkspaceRecord>>,
    /// The action to begin.
    pub(crate) begin: Option<Action>,
}

impl PendingReply {
    /// Sends an error. A caller that has gone away needs no answer.
    pub(crate) fn reject(self, error: DriverError) {
        match self {
            Self::Created(reply, _) => drop(reply.send(Err(error))),
            Self::View(reply) => drop(reply.send(Err(error))),
        }
    }
}

impl WorkspaceEntry {
    /// Creates the entry of a new workspace, or of a record from the store, which is `durable`.
    pub(crate) fn new(record: WorkspaceRecord, durable: bool, observed: Observed) -> Self {
        let record = Arc::new(record);
        Self {
            durable: durable.then(|| record.clone()),
            record,
            submitted: None,
            submitted_reservation: None,
            spec_version: 0,
            must_read_spec: false,
            own_spec_change: OwnSpecChange::NotBefore(Instant::now()),
            name_reservations: 0,
            wakes_in_progress: 0,
            deleted_in_store: false,
            observed,
            in_flight: None,
            progress: None,
            queue_position: None,
            secret: None,
            instances: Vec::new(),
            sessions: AgentSessions::default(),
            next: None,
            scheduled_at: None,
            pending_replies: Vec::new(),
            view: None,
        }
    }

    /// Returns the latest decided record, which may not be durable yet.
    pub(crate) fn record(&self) -> &Arc<WorkspaceRecord> {
        &self.record
    }

    /// Returns the epoch of the last decided start.
    fn epoch(&self) -> Epoch {
        self.record.status.epoch
    }

    /// Returns whether the latest decision is durable.
    pub(crate) fn is_settled(&self) -> bool {
        self.durable.as_ref().is_some_and(|durable| Arc::ptr_eq(durable, &self.record))
    }

    /// Returns whether the control plane may exit: the record is durable and no process of the
    /// workspace runs.
    pub(crate) fn allows_shutdown(&self) -> bool {
        self.is_settled()
            && self.observed.processes == RunningAgents::None
            && matches!(self.record.status.phase, Phase::Asleep | Phase::Archived | Phase::Deleting)
    }

    /// Returns whether a step of the sleep, its cancellation, or a write is in flight.
    pub(crate) fn is_falling_asleep(&self) -> bool {
        let in_sleep_phase = matches!(
            self.record.status.phase,
            Phase::Preparing { .. } | Phase::Committing | Phase::FallingAsleep
        );
        let sleep_action = matches!(
            self.in_flight,
            Some(Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_) | Action::StopProcesses)
        );
        in_sleep_phase || sleep_action || !self.is_settled()
    }

    /// Returns whether a stop could end work: the workspace is active or busy, or its agent is not
    /// connected.
    pub(crate) fn is_in_use(&self) -> bool {
        let unknown = self.observed.connected.is_none();
        let used = self.observed.used == UseState::Yes;
        self.record.status.phase == Phase::Awake
            && self.record.spec.desired_state == DesiredState::Awake
            && (unknown || used)
    }

    /// Returns why the deletion of the workspace cannot be taken back, if it cannot.
    pub(crate) fn check_undelete(&self) -> Result<(), CannotUndeleteCause> {
        let is_discarded = self.record.spec.desired_state == DesiredState::Discarded;
        match self.record.status.phase {
            _ if is_discarded => Err(CannotUndeleteCause::Discarded),
            Phase::Deleting => Err(CannotUndeleteCause::Deleted),
            _ if self.record.is_gone() => Err(CannotUndeleteCause::Deleted),
            _ if self.deleted_in_store => Err(CannotUndeleteCause::Kubernetes),
            _ => Ok(()),
        }
    }

    /// Returns the workspace's request to the admission queue, or `None` if the workspace neither
    /// holds quota nor waits for it.
    pub(crate) fn quota_request(&self) -> Option<QuotaRequest<'_>> {
        let (spec, status) = (&self.record.spec, &self.record.status);
        let stopping = status.phase == Phase::Deleting && self.observed.processes != RunningAgents::None;
        let durable = self.durable.as_ref();
        let durable = durable.and_then(|durable| QuotaRequest::reservation(&durable.spec, &durable.status));
        QuotaRequest::of(spec, status, larger(durable, self.submitted_reservation), stopping)
    }

    /// Sets the position in the admission queue. A waiting workspace without a position is admitted.
    /// Returns whether the workspace must be advanced.
    pub(crate) fn set_queue_position(&mut self, position: Option<usize>) -> bool {
        let waits = self.quota_request().is_some_and(|request| request.requested.is_some());
        let admitted = waits && position.is_none();
        let changed = self.queue_position != position || (waits && admitted != self.observed.admitted);
        (self.queue_position, self.observed.admitted) = (position, admitted);
        changed
    }

    /// Returns the facts by which the driver finds this workspace.
    pub(crate) fn facts(&self) -> IndexedFacts {
        let phase = self.record.status.phase;
        IndexedFacts {
            scheduled_at: self.scheduled_at,
            holds_archive_slot: matches!(phase, Phase::Maintenance { task: MaintenanceTask::Archive, .. }),
            waits_for_archive_slot: phase == Phase::Asleep && self.observed.archive_slots_full,
            is_answerable: self.pending_replies.iter().any(|(until, _)| self.is_answerable(*until)),
            quota: self.quota_request().map(|QuotaRequest { held, requested, .. }| QuotaFacts {
                held,
                requested,
                is_admitted: requested.is_some() && self.observed.admitted,
            }),
        }
    }

    // === Decisions ===

    /// Decides, records the decision, and sends the agent what follows from it.
    pub(crate) fn decide(&mut self, context: DecisionContext) -> DecidedEffects {
        let now = clock::now();
        self.observed.observed_time = context.observed_time;
        self.observed.archive_slots_full = context.archive_slots_full;
        let (action, next, warning) = loop {
            let (spec, status) = (&self.record.spec, &self.record.status);
            let Decision { status, action, next, warning } = decide(spec, status, &self.observed, now);
            self.record_decision(status, now);
            // The decision may want an agent that is waiting for its claim. If that agent is claimed
            // now, decide again.
            if !self.match_sessions() {
                break (action, next, warning);
            }
        };
        self.send_warning(warning);
        self.resend_claim();
        let mut cancel = false;
        if action != self.in_flight {
            // The directive in flight belongs to an earlier decision.
            self.abandon_directive();
            cancel = match self.in_flight {
                Some(
                    Action::Archive(_)
                    | Action::Restore(_)
                    | Action::ExpireArchive(_)
                    | Action::Resize { .. },
                ) => true,
                // A start that continued would block the new action.
                Some(Action::StartAgent(_)) => action.is_some(),
                _ => false,
            };
        }
        self.next = next;
        let retry_at = match self.own_spec_change {
            OwnSpecChange::NotBefore(at) => Some(at),
            OwnSpecChange::InFlight => None,
        };
        let due = next.map(|(at, _)| Instant::now() + at.since(now).max(MIN_DELAY));
        let deadlines = self.pending_replies.iter().filter_map(|(until, _)| *until).chain(retry_at);
        self.scheduled_at = deadlines.filter(|at| *at > Instant::now()).chain(due).min();
        let begin = action.filter(|_| self.is_settled() && self.in_flight.is_none());
        DecidedEffects { cancel, write: self.submit_unwritten(), begin }
    }

    /// Marks the record as submitted to the writer. Returns it, unless it is durable or was submitted
    /// before.
    fn submit_unwritten(&mut self) -> Option<Arc<WorkspaceRecord>> {
        let is_submitted =
            self.submitted.as_ref().is_some_and(|submitted| Arc::ptr_eq(submitted, &self.record));
        // A queued removal of the record must not be replaced by this write.
        if self.is_settled() || is_submitted || self.in_flight == Some(Action::RemoveRecord) {
            return None;
        }
        let reservation = QuotaRequest::reservation(&self.record.spec, &self.record.status);
        self.submitted_reservation = larger(self.submitted_reservation, reservation);
        self.submitted = Some(self.record.clone());
        self.submitted.clone()
    }

    /// Records the decided status. A new start gets a new secret.
    fn record_decision(&mut self, status: Status, now: Timestamp) {
        if status == self.record.status {
            return;
        }
        if status.phase != self.record.status.phase || status.reason != self.record.status.reason {
            tracing::info!(
                workspace = %self.record.spec.id, state = ?status.state(), epoch = status.epoch,
                reason = %reasons::camel_case(&status.reason),
                detail = %reasons::message(&status.reason), "workspace changed state"
            );
        }
        let mut record = WorkspaceRecord { status, ..WorkspaceRecord::clone(&self.record) };
        append_log(&mut record, now);
        if matches!(
            record.status.phase,
            Phase::Starting | Phase::Maintenance { stage: MaintenanceStage::Starting, .. }
        ) && record.status.epoch != self.record.status.epoch
        {
            let (epoch, secret) = (record.status.epoch, token::random(SECRET_BYTES));
            record.credential = Some(CredentialDigest { epoch, digest: Fingerprint::of(secret.as_bytes()) });
            self.secret = Some((epoch, secret));
        }
        self.record = Arc::new(record);
    }

    // === Durability ===

    /// Records that this record is durable.
    pub(crate) fn committed(&mut self, record: Arc<WorkspaceRecord>) {
        if self.submitted.as_ref().is_some_and(|submitted| Arc::ptr_eq(submitted, &record)) {
            self.submitted_reservation = None;
        }
        self.durable = Some(record);
    }

    /// Rolls the status back to the durable one after a failed write, and rejects the requests that
    /// are not durable. The spec stays, because the store owns it. A cleared `observed_request` stays
    /// cleared, because the `Asleep` or `Deleted` that cleared it is not reported again. Returns `false`
    /// if there is no durable record.
    pub(crate) fn roll_back(&mut self, error: &StoreError) -> bool {
        for (_, reply) in self.pending_replies.extract_if(.., |(until, _)| until.is_none()) {
            reply.reject(DriverError::not_saved(error));
        }
        // The other writer may have changed the spec too.
        self.must_read_spec |= matches!(error, StoreError::Conflict { .. });
        let Some(mut durable) = self.durable_record() else { return false };
        if self.record.status.observed_request.is_none() && durable.status.observed_request.is_some() {
            Arc::make_mut(&mut durable).status.observed_request = None;
        }
        (self.record, self.submitted, self.submitted_reservation) = (durable, None, None);
        true
    }

    /// Records that the removal of the record failed.
    pub(crate) fn removal_failed(&mut self, error: &StoreError) {
        self.in_flight = None;
        let failure = Failure::Failed(with_causes(error));
        self.observed.done(Action::RemoveRecord, Err(failure), clock::now());
    }

    /// Sends this reply once the record is durable. A failed write rejects it.
    pub(crate) fn reply_when_durable(&mut self, reply: PendingReply) {
        self.pending_replies.push((None, reply));
    }

    /// Rejects all pending requests with this error.
    pub(crate) fn reject_pending(&mut self, error: &DriverError) {
        self.pending_replies.drain(..).for_each(|(_, reply)| reply.reject(error.clone()));
    }

    /// Answers the pending requests with the current view, if they may be answered.
    pub(crate) fn answer_pending(&mut self) {
        let Some(view) = self.view.clone() else { return };
        let pending = std::mem::take(&mut self.pending_replies);
        let (answered, waiting): (Vec<_>, _) =
            pending.into_iter().partition(|(until, _)| self.is_answerable(*until));
        self.pending_replies = waiting;
        for (_, pending) in answered {
            // A caller that has gone away needs no answer.
            match pending {
                PendingReply::Created(reply, created) => drop(reply.send(Ok((view.clone(), created)))),
                PendingReply::View(reply) => drop(reply.send(Ok(view.clone()))),
            }
        }
    }

    /// Returns whether a pending reply with this deadline may be sent.
    fn is_answerable(&self, deadline: Option<Instant>) -> bool {
        self.is_settled() || deadline.is_some_and(|at| at <= Instant::now())
    }

    // === The published view ===

    /// Returns the view in the published snapshot. `None` before the first record is durable.
    pub(crate) fn view(&self) -> Option<&Arc<WorkspaceView>> {
        self.view.as_ref()
    }

    /// Rebuilds the view. If it has changed, it gets this version. Returns whether it has.
    pub(crate) fn refresh_view(&mut self, version: u64) -> bool {
        let current = self.view.as_ref().map_or(0, |view| view.version);
        let Some(view) = self.build_view(current).filter(|view| self.view.as_deref() != Some(view)) else {
            return false;
        };
        self.view = Some(Arc::new(WorkspaceView { version, ..view }));
        true
    }

    /// Builds the view of the durable record, the last observed spec and the last observations.
    fn build_view(&self, version: u64) -> Option<WorkspaceView> {
        let record = self.durable.as_ref()?;
        let connected = self.observed.connected == Some(record.status.epoch);
        Some(WorkspaceView {
            spec: self.record.spec.clone(),
            state: record.status.state(),
            reason: record.status.reason.clone(),
            since: record.status.since,
            connection: if connected { AgentConnection::Connected } else { AgentConnection::Unknown },
            activity: self.sessions.activity().cloned(),
            agent: self.sessions.agent().cloned(),
            next: self.next,
            restarts: record.status.failures,
            allocated: record.status.allocated.filter(|_| record.status.phase.holds_quota()),
            actual: self.observed.actual.filter(|(of, _)| *of == self.epoch()).map(|(_, has)| has),
            waits: record.status.waits.clone(),
            storage: record.status.storage,
            queue_position: self.queue_position,
            progress: self.progress.filter(|_| {
                matches!(record.status.phase, Phase::Maintenance { stage: MaintenanceStage::Running, .. })
            }),
            archives: record.status.archives.clone(),
            log: record.log.clone(),
            credential: record.credential.map(|credential| credential.digest),
            undelete: self.check_undelete().is_ok(),
            version,
        })
    }

    /// Records the progress of an action. Progress is only displayed; no decision depends on it.
    pub(crate) fn record_progress(&mut self, action: Action, mut progress: TransferProgress) {
        if self.in_flight != Some(action) {
            return;
        }
        if progress.stage == TransferStage::Extracting {
            // The number is unknown if the files come from the archive of another workspace.
            progress.total_entries = self.record.status.archive().map(|archive| archive.entries);
        }
        self.progress = Some(progress);
    }
}

/// Appends the record's state to its log, unless neither state nor reason has changed.
fn append_log(record: &mut WorkspaceRecord, now: Timestamp) {
    let entry = LogEntry { at: now, state: record.status.state(), reason: record.status.reason.clone() };
    let is_repeated = |last: &LogEntry| last.state == entry.state && last.reason == entry.reason;
    if record.log.back().is_some_and(is_repeated) {
        return;
    }
    let log = Arc::make_mut(&mut record.log);
    log.push_back(entry);
    while log.len() > LOG_ENTRIES {
        log.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use podling_core::workspace::{DesiredSpec, DesiredState};

    use super::*;
    use crate::{samples, store::StoredSpec};

    #[test]
    fn write_in_flight_holds_its_quota_after_a_later_decision() {
        let spec = Arc::new(samples::spec(1, "demo"));
        let record = |phase| {
            let status = Status { phase, ..Status::new(Timestamp::default()) };
            WorkspaceRecord {
                spec: spec.clone(),
                status,
                credential: None,
                log: Arc::default(),
                generation: 1,
            }
        };
        let observed = Observed { processes: RunningAgents::None, ..Observed::default() };
        let mut entry = WorkspaceEntry::new(record(Phase::Asleep), true, observed);
        let held = |entry: &WorkspaceEntry| entry.quota_request().and_then(|request| request.held);
        entry.record = Arc::new(record(Phase::Starting));
        let starting = entry.submit_unwritten().expect("a write");
        entry.record = Arc::new(record(Phase::Deleting));
        let deleting = entry.submit_unwritten().expect("a write");
        assert_eq!(held(&entry), Some(spec.resources), "the first write may succeed");
        entry.committed(starting);
        assert_eq!(held(&entry), Some(spec.resources), "the first write is durable");
        entry.committed(deleting);
        assert_eq!(held(&entry), None);
    }

    #[test]
    fn rollback_keeps_the_observed_spec_and_undoes_the_status() {
        let status = Status { queued_at: Some(Duration::ZERO), ..Status::new(Timestamp::default()) };
        let spec = Arc::new(samples::spec(1, "demo"));
        let record = WorkspaceRecord { spec, status, credential: None, log: Arc::default(), generation: 1 };
        let mut entry = WorkspaceEntry::new(record.clone(), true, Observed::default());
        assert!(entry.set_queue_position(None), "the queue admits the present resources");
        let before = entry.facts();
        let resources = Resources { cpu_millis: 3000, ..Resources::default() };
        let desired = DesiredSpec { resources, ..record.spec.desired() };
        let stored = StoredSpec { desired, generation: 2, version: 2, deleted_in_store: false };
        entry.observe_spec(&stored);
        assert_ne!(entry.facts().quota, before.quota, "the queue must be recomputed");
        entry.record = Arc::new(WorkspaceRecord {
            status: Status { failures: 7, ..record.status.clone() },
            ..WorkspaceRecord::clone(&entry.record)
        });
        assert!(entry.roll_back(&StoreError::Conflict { name: "demo".into() }));
        assert_eq!((entry.record.spec.resources, entry.record.generation), (resources, 2));
        assert_eq!(entry.record.status, record.status);
        assert!(!entry.is_settled(), "the status does not reflect the spec yet");
        entry.observe_spec(&StoredSpec { version: 1, desired: record.spec.desired(), ..stored });
        assert_eq!(entry.record.spec.resources, resources, "the late report is older");
    }

    #[test]
    fn rollback_keeps_that_a_later_awake_is_a_request() {
        let status = Status { observed_request: Some(1), ..Status::new(Timestamp::default()) };
        let spec = Arc::new(samples::spec(1, "demo"));
        let record = WorkspaceRecord { spec, status, credential: None, log: Arc::default(), generation: 1 };
        let mut entry = WorkspaceEntry::new(record.clone(), true, Observed::default());
        let context = DecisionContext { observed_time: Duration::ZERO, archive_slots_full: false };
        for (generation, desired_state) in [(2_i64, DesiredState::Asleep), (3, DesiredState::Awake)] {
            let desired = DesiredSpec { desired_state, ..record.spec.desired() };
            let version = generation.unsigned_abs();
            entry.observe_spec(&StoredSpec { desired, generation, version, deleted_in_store: false });
            entry.decide(context);
        }
        assert!(entry.roll_back(&StoreError::NotLeader));
        assert!(entry.record.spec.is_wake_requested(&entry.record.status), "kubectl has set Awake again");
    }
}
