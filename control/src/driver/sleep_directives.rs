//! The steps of the two-phase sleep: said to the agent over its stream, and answered there. And what is said without an answer:
//! warnings, and a claim whose content has changed.

use std::{sync::Arc, time::Duration};

use podling_core::{
    decide::Action,
    observed::{Achieved, Failure},
    reason::{DeclineReason, SleepCause},
    time::Timestamp,
};

use super::{ClaimContent, DirectiveAnswer, DirectiveId, SleepStep, ToAgent, entry::WorkspaceEntry};
use crate::clock;

/// For an agent to look at its activity. It needs milliseconds.
const PREPARE_LIMIT: Duration = Duration::from_secs(15);
/// For an agent to end everything (HUP, TERM, KILL within some seconds) and to save it.
const COMMIT_LIMIT: Duration = Duration::from_secs(45);
/// How much the time of a warning may move before people are told again: idle time is counted at each beat.
const WARNING_SLACK: Duration = Duration::from_secs(5);

/// A step that waits for its answer.
#[derive(Debug)]
pub(super) struct PendingDirective {
    directive: DirectiveId,
    action: Action,
    /// How long, as far as the driver witnessed it.
    waited: Duration,
}

impl WorkspaceEntry {
    /// Asks the agent. Nobody hears: that is known at once.
    pub(super) fn send_directive(&mut self, directive: DirectiveId, action: Action) {
        let step = match action {
            Action::Prepare { urgency, .. } => SleepStep::Prepare(urgency),
            Action::Commit(_) => SleepStep::Commit,
            Action::Cancel(_) => SleepStep::Cancel,
            Action::Start(_)
            | Action::Resize { .. }
            | Action::Stop
            | Action::Archive(_)
            | Action::Restore(_)
            | Action::Remove
            | Action::Expire(_)
            | Action::Forget => return,
        };
        self.in_flight = Some(action);
        self.observed.ordered(action);
        self.pending_directive = Some(PendingDirective { directive, action, waited: Duration::ZERO });
        if !self.agent.as_ref().is_some_and(|agent| agent.can("sleep")) {
            let detail = "the agent lacks the capability \"sleep\"".into();
            self.finish_directive(Err(Failure::Declined { reason: DeclineReason::Unspecified, detail }));
        } else if !self.send(ToAgent::Sleep(directive, step)) {
            self.finish_directive(Err(Failure::Failed("the agent is not connected".into())));
        }
    }

    /// An answer: it counts if it is to what was pending_directive last, and from the stream that was pending_directive.
    pub(super) fn directive_answered(&mut self, answer: DirectiveAnswer) {
        let expected = self
            .pending_directive
            .as_ref()
            .is_some_and(|pending_directive| pending_directive.directive == answer.directive);
        if !expected || self.claimed_connection() != Some(answer.connection) {
            return;
        }
        if let Some(activity) = answer.activity {
            self.take_activity(activity);
        }
        self.finish_directive(answer.result);
    }

    /// The step is over, one way or the other.
    pub(super) fn finish_directive(&mut self, result: Result<(), Failure>) {
        let Some(pending_directive) = self.pending_directive.take() else { return };
        #[cfg(debug_assertions)]
        super::failpoint::hit(pending_directive.action, "after");
        self.in_flight = None;
        if let Err(failure) = &result {
            tracing::info!(workspace = %self.record.spec.id, action = ?pending_directive.action, ?failure, "sleep step failed");
        }
        self.observed.done(pending_directive.action, result.map(|()| Achieved::Done), clock::now());
    }

    /// Something else is wanted now: what comes of the step is of no interest any more.
    pub(super) fn abandon_directive(&mut self) {
        if self.pending_directive.take().is_some() {
            self.in_flight = None;
        }
    }

    /// So much time was witnessed. Whether a step is given up by it.
    pub(super) fn age_directive(&mut self, gap: Duration) -> bool {
        let Some(pending_directive) = &mut self.pending_directive else { return false };
        pending_directive.waited = pending_directive.waited.saturating_add(gap);
        let limit = match pending_directive.action {
            Action::Commit(_) => COMMIT_LIMIT,
            _ => PREPARE_LIMIT,
        };
        let over = pending_directive.waited >= limit;
        if over {
            self.finish_directive(Err(Failure::Failed(format!("the agent did not answer within {limit:?}"))));
        }
        over
    }

    /// Tells people when their workspace sleeps, if they have not been told so.
    pub(super) fn send_warning(&mut self, warning: Option<(Timestamp, SleepCause)>) {
        let moved = |told: Timestamp, at: Timestamp| told.since(at).max(at.since(told)) > WARNING_SLACK;
        let news = match (self.warned_for, warning) {
            (None, None) => false,
            (Some(told), Some((at, _))) => moved(told, at),
            (None, Some(_)) | (Some(_), None) => true,
        };
        if news && self.send(ToAgent::Warn(warning)) {
            self.warned_for = warning.map(|(at, _)| at);
        }
    }

    /// Tells the agent what it is to serve if that has changed since it was claimed.
    pub(super) fn resend_claim(&mut self) {
        // Not before it is durable.
        let spec = self.record.spec.clone();
        if !self.is_settled() || self.claimed_spec.as_ref().is_none_or(|told| told.policy == spec.policy) {
            return;
        }
        let claim = self.claim_content();
        if self.send(ToAgent::Claim(claim)) {
            self.claimed_spec = Some(spec);
        }
    }

    /// What the agent of the present epoch is to serve.
    pub(super) fn claim_content(&self) -> ClaimContent {
        let maintenance = self.wants_maintenance();
        ClaimContent { spec: Arc::clone(&self.record.spec), epoch: self.epoch(), maintenance }
    }
}
