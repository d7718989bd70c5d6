//! Directives of the two-phase sleep, which the agent answers on its stream. Also messages that it
//! does not answer: warnings, and claims whose content has changed.

use std::{sync::Arc, time::Duration};

use podling_core::{
    decide::Action,
    observed::{ActionSuccess, Failure},
    reason::{DeclineReason, SleepCause},
    time::Timestamp,
};

use super::{AgentDirective, ClaimContent, DirectiveAnswer, DirectiveId, SleepStep, entry::WorkspaceEntry};
use crate::clock;

/// Time that an agent has to answer a prepare or cancel. Agents need milliseconds.
const PREPARE_LIMIT: Duration = Duration::from_secs(15);
/// Time that an agent has to answer a commit. The agent ends all programs (HUP, TERM and KILL take
/// some seconds) and saves the terminals.
const COMMIT_LIMIT: Duration = Duration::from_secs(45);
/// Largest change of the announced sleep time for which no new warning is sent. Each heartbeat
/// changes the time slightly.
const WARNING_SLACK: Duration = Duration::from_secs(5);

/// A sleep directive that the agent has not answered yet.
#[derive(Debug)]
pub(super) struct PendingDirective {
    directive: DirectiveId,
    action: Action,
    /// Observed time since it was sent.
    waited: Duration,
}

impl WorkspaceEntry {
    /// Sends a sleep directive to the agent. The directive fails at once if no agent is connected.
    pub(super) fn send_directive(&mut self, directive: DirectiveId, action: Action) {
        let step = match action {
            Action::Prepare { urgency, .. } => SleepStep::Prepare(urgency),
            Action::Commit(_) => SleepStep::Commit,
            Action::Cancel(_) => SleepStep::Cancel,
            Action::StartAgent(_)
            | Action::Resize { .. }
            | Action::StopProcesses
            | Action::Archive(_)
            | Action::Restore(_)
            | Action::RemoveStorage
            | Action::ExpireArchive(_)
            | Action::RemoveRecord => return,
        };
        self.in_flight = Some(action);
        self.observed.action_started(action);
        self.pending_directive = Some(PendingDirective { directive, action, waited: Duration::ZERO });
        if !self.agent.as_ref().is_some_and(|agent| agent.can("sleep")) {
            let detail = "the agent lacks the capability \"sleep\"".into();
            self.finish_directive(Err(Failure::Declined { reason: DeclineReason::Unspecified, detail }));
        } else if !self.send(AgentDirective::Sleep(directive, step, self.record.status.reason.sleep_cause()))
        {
            self.finish_directive(Err(Failure::Failed("the agent is not connected".into())));
        }
    }

    /// Handles an answer. Ignores it unless it answers the pending directive and comes from the
    /// claimed session.
    pub(super) fn directive_answered(&mut self, answer: DirectiveAnswer) {
        let is_pending =
            self.pending_directive.as_ref().is_some_and(|pending| pending.directive == answer.directive);
        if !is_pending || self.claimed_connection() != Some(answer.connection) {
            return;
        }
        if let Some(activity) = answer.activity {
            self.take_activity(activity);
        }
        self.finish_directive(answer.result);
    }

    /// Records the result of the pending directive.
    pub(super) fn finish_directive(&mut self, result: Result<(), Failure>) {
        let Some(pending) = self.pending_directive.take() else { return };
        #[cfg(debug_assertions)]
        super::failpoint::hit(pending.action, "after");
        self.in_flight = None;
        if let Err(failure) = &result {
            tracing::info!(
                workspace = %self.record.spec.id, action = ?pending.action, ?failure, "sleep directive failed"
            );
        }
        self.observed.done(pending.action, result.map(|()| ActionSuccess::Done), clock::now());
    }

    /// Drops the pending directive after the decision has changed. Its answer is then ignored.
    pub(super) fn abandon_directive(&mut self) {
        if self.pending_directive.take().is_some() {
            self.in_flight = None;
        }
    }

    /// Adds observed time to the pending directive. Returns whether the directive timed out.
    pub(super) fn age_directive(&mut self, gap: Duration) -> bool {
        let Some(pending) = &mut self.pending_directive else { return false };
        pending.waited = pending.waited.saturating_add(gap);
        let limit = match pending.action {
            Action::Commit(_) => COMMIT_LIMIT,
            _ => PREPARE_LIMIT,
        };
        let timed_out = pending.waited >= limit;
        if timed_out {
            self.finish_directive(Err(Failure::Failed(format!("the agent did not answer within {limit:?}"))));
        }
        timed_out
    }

    /// Sends the agent the time of its next sleep, if the time has changed by more than
    /// [`WARNING_SLACK`].
    pub(super) fn send_warning(&mut self, warning: Option<(Timestamp, SleepCause)>) {
        let moved = |sent: Timestamp, at: Timestamp| sent.since(at).max(at.since(sent)) > WARNING_SLACK;
        let changed = match (self.warned_for, warning) {
            (None, None) => false,
            (Some(sent), Some((at, _))) => moved(sent, at),
            (None, Some(_)) | (Some(_), None) => true,
        };
        if changed && self.send(AgentDirective::Warn(warning)) {
            self.warned_for = warning.map(|(at, _)| at);
        }
    }

    /// Sends the claim again if the policy has changed since the last claim.
    pub(super) fn resend_claim(&mut self) {
        // A policy is sent only once it is durable.
        let spec = self.record.spec.clone();
        if !self.is_settled()
            || self.claimed_spec.as_ref().is_none_or(|claimed| claimed.policy == spec.policy)
        {
            return;
        }
        let claim = self.claim_content();
        if self.send(AgentDirective::Claim(claim)) {
            self.claimed_spec = Some(spec);
        }
    }

    /// Returns the claim for the agent of the current epoch.
    pub(super) fn claim_content(&self) -> ClaimContent {
        let maintenance = self.wants_maintenance();
        ClaimContent { spec: Arc::clone(&self.record.spec), epoch: self.epoch(), maintenance }
    }
}
