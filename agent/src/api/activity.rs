//! gRPC service `podling.agent.v1.Activity`.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{Stream, stream};
use podling_proto::{
    agent::v1::{self as wire, activity_server},
    error::WireError,
    v1::Reason,
};
use tokio::{sync::Semaphore, time::sleep};
use tonic::{Request, Response, Status};

use super::bad_field;
use crate::{
    activity::{
        ActivityMonitor, ActivitySnapshot,
        assessment::{ActivityEvidence, ActivitySignal},
        leases::{KeepAwakeLease, LeaseError, MAX_LEASES},
        notices::{CommandFailure, CommandFailureCause},
    },
    admission::Intent,
};

/// Activity watches at once. The next one fails with TOO_MANY_STREAMS.
const MAX_WATCHES: usize = 64;
/// Interval at which a watch repeats the state if nothing changes. Some proxies close streams that
/// are silent for 60 s.
const REPEAT_INTERVAL: Duration = Duration::from_secs(15);

#[derive(Debug, Clone)]
pub struct ActivityService {
    activity: ActivityMonitor,
    watches: Arc<Semaphore>,
}

impl ActivityService {
    pub fn new(activity: ActivityMonitor) -> Self {
        Self { activity, watches: Arc::new(Semaphore::new(MAX_WATCHES)) }
    }
}

#[tonic::async_trait]
impl activity_server::Activity for ActivityService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::WatchActivityResponse, Status>> + Send>>;

    async fn get(
        &self,
        _: Request<wire::GetActivityRequest>,
    ) -> Result<Response<wire::GetActivityResponse>, Status> {
        let activity = Some(activity_state(&self.activity.snapshot()));
        Ok(Response::new(wire::GetActivityResponse { activity }))
    }

    async fn watch(
        &self,
        _: Request<wire::WatchActivityRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let permit = self.watches.clone().try_acquire_owned().map_err(|_| {
            WireError::new(Reason::TooManyStreams, "too many activity watches are open; close one first")
                .with("limit", MAX_WATCHES)
                .with("what", "activity watches")
        })?;
        let mut revisions = self.activity.subscribe();
        // The first message is sent at once.
        revisions.mark_changed();
        let first = (self.activity.clone(), revisions, permit);
        let messages = stream::unfold(first, async |(activity, mut revisions, permit)| {
            tokio::select! {
                changed = revisions.changed() => changed.ok()?,
                () = sleep(REPEAT_INTERVAL) => {}
            }
            revisions.mark_unchanged();
            let state = Some(activity_state(&activity.snapshot()));
            Some((Ok(wire::WatchActivityResponse { activity: state }), (activity, revisions, permit)))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn keep_awake(
        &self,
        request: Request<wire::KeepAwakeRequest>,
    ) -> Result<Response<wire::KeepAwakeResponse>, Status> {
        let wire::KeepAwakeRequest { name, duration, reason } = request.into_inner();
        let duration = duration.and_then(|duration| Duration::try_from(duration).ok());
        let duration =
            duration.ok_or_else(|| bad_field("duration", "1 s to 24 h, or 0 to release the lease"))?;
        let lease = if duration.is_zero() {
            self.activity.release_lease(&name).map_err(lease_error)?;
            None
        } else {
            let taken = self.activity.keep_awake(&name, &reason, duration).await.map_err(lease_error)?;
            Some(lease(&taken, taken.taken))
        };
        Ok(Response::new(wire::KeepAwakeResponse { lease }))
    }
}

fn lease_error(error: LeaseError) -> WireError {
    let message = error.to_string();
    match error {
        LeaseError::BadField { field, allowed } => {
            WireError::new(Reason::BadField, message).with("field", field).with("allowed", allowed)
        }
        LeaseError::NotHeld(name) => WireError::new(Reason::LeaseNotFound, message).with("id", name),
        LeaseError::Rejected(rejection) => rejection.into(),
        LeaseError::TooMany => {
            WireError::new(Reason::TooManyLeases, message).with("limit", MAX_LEASES).with("what", "leases")
        }
    }
}

fn command_failure(failure: &CommandFailure) -> wire::CommandFailure {
    let kind = match failure.cause {
        CommandFailureCause::NotStarted(_) => wire::CommandFailureKind::NotStarted,
        CommandFailureCause::Ended(_) => wire::CommandFailureKind::Ended,
    };
    wire::CommandFailure {
        program: failure.program.clone(),
        kind: kind.into(),
        detail: failure.describe(),
        failures: failure.failures,
        output: failure.output.clone(),
    }
}

/// Converts a snapshot to its proto message.
pub fn activity_state(snapshot: &ActivitySnapshot) -> wire::ActivityState {
    let usage = &snapshot.usage;
    wire::ActivityState {
        level: snapshot.assessment.level.into(),
        evidence: snapshot.assessment.evidence.iter().map(evidence).collect(),
        counted_idle: Some(to_proto_duration(snapshot.counted_idle)),
        idle_timeout: Some(to_proto_duration(snapshot.idle_timeout)),
        leases: snapshot.leases.iter().map(|held| lease(held, snapshot.at)).collect(),
        usage: Some(wire::Usage {
            cpu_cores: usage.cpu_cores,
            memory_bytes: usage.memory_bytes,
            io_bytes_per_second: usage.io_bytes_per_second,
            processes: usage.processes,
            terminals: snapshot.terminals,
        }),
        at: Some(SystemTime::now().into()),
        sleep_warning: snapshot
            .warning
            .as_ref()
            .map(|warning| wire::SleepWarning { at: Some(warning.at.into()), cause: warning.cause.into() }),
        command_failure: snapshot.command_failure.as_deref().map(command_failure),
    }
}

fn evidence(evidence: &ActivityEvidence) -> wire::Evidence {
    let signal = match evidence.signal {
        ActivitySignal::Intent(Intent::Keystroke) => wire::Signal::Keystroke,
        ActivitySignal::Intent(Intent::ClientWrite | Intent::Restore) => wire::Signal::ClientWrite,
        ActivitySignal::Intent(Intent::ClientStart) => wire::Signal::ClientStart,
        ActivitySignal::ClientCall => wire::Signal::ClientCall,
        ActivitySignal::Cpu => wire::Signal::Cpu,
        ActivitySignal::Io => wire::Signal::Io,
        ActivitySignal::ForegroundJob => wire::Signal::ForegroundJob,
        ActivitySignal::Intent(Intent::Lease) | ActivitySignal::Lease => wire::Signal::Lease,
    };
    wire::Evidence {
        signal: signal.into(),
        detail: evidence.detail.clone(),
        age: Some(to_proto_duration(evidence.age)),
        holds_for: Some(to_proto_duration(evidence.holds_for)),
        capped: evidence.capped,
    }
}

fn lease(lease: &KeepAwakeLease, now: std::time::Instant) -> wire::Lease {
    wire::Lease {
        name: lease.name.clone(),
        reason: lease.reason.clone(),
        remaining: Some(to_proto_duration(lease.expires_at.saturating_duration_since(now))),
    }
}

fn to_proto_duration(duration: Duration) -> prost_types::Duration {
    // Fails only for durations beyond 292 billion years.
    duration.try_into().unwrap_or_default()
}
