//! Classifies errors of the API server, retries calls after transient errors, and renders other
//! errors as text.

use std::{future::Future, time::Duration};

use kube::Error;
use podling_core::{
    id::WorkspaceId,
    reason::{Wait, WaitReason},
    workspace::Epoch,
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::backend::{BackendError, Observation};

/// Bounds of the pause between attempts, which doubles each time. The pause is shortened by a
/// random part of at most a half, so that clients do not all retry at the same time.
const MIN_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(4);

/// Returns whether a retry of the call may succeed without any change by a user.
pub(super) fn is_transient(error: &Error) -> bool {
    match error {
        // 409: another client changed the object between our read and our write.
        Error::Api(status) => matches!(status.code, 408 | 409 | 429 | 500..),
        Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// Returns a message if the error means that a ResourceQuota of the namespace is exhausted.
pub(super) fn quota_exceeded(error: &Error) -> Option<String> {
    match error {
        Error::Api(status) if status.code == 403 && status.message.contains("exceeded quota") => {
            let (_, quota) = status.message.split_once("exceeded quota: ")?;
            Some(format!("the ResourceQuota of its namespace is exhausted: {quota}"))
        }
        _ => None,
    }
}

/// Reports to the driver what a start or a resize waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitReporter<'a> {
    pub(super) to: &'a mpsc::Sender<Observation>,
    pub(super) workspace: &'a WorkspaceId,
    pub(super) epoch: Epoch,
}

impl WaitReporter<'_> {
    pub(super) async fn report(&self, reason: WaitReason, detail: String) {
        self.set(Some(Wait { reason, detail })).await;
    }

    /// Reports this wait, or that the start or resize no longer waits.
    pub(super) async fn set(&self, waits: Option<Wait>) {
        let (workspace, epoch) = (self.workspace.clone(), self.epoch);
        // Sending fails only after the driver has ended.
        let _gone = self.to.send(Observation::Waits { workspace, epoch, waits }).await;
    }
}

/// Retries `call` until it succeeds or fails permanently, and reports what each retry waits for.
/// Makes no call while `may` returns false.
pub(super) async fn retry_transient<T, F: Future<Output = Result<T, Error>>>(
    operation: &str,
    reporter: WaitReporter<'_>,
    may: impl Fn() -> bool,
    call: impl Fn() -> F,
) -> Result<T, BackendError> {
    let mut pause = MIN_BACKOFF;
    loop {
        // A process that lost the leadership waits here until it regains it or ends.
        if may() {
            let error = match call().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if let Some(why) = quota_exceeded(&error) {
                reporter.report(WaitReason::QuotaExceeded, why).await;
            } else if is_transient(&error) {
                reporter.report(WaitReason::ApiServerUnavailable, error_text(&error)).await;
            } else {
                return Err(backend_error(operation, &error));
            }
        }
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(MAX_BACKOFF);
    }
}

/// Runs `work`. Drops it and fails if the operation is cancelled first.
pub(super) async fn unless_cancelled<T>(
    operation: &str,
    cancellation: &CancellationToken,
    work: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    let unwanted = || Err(BackendError::new(operation, "the operation was cancelled"));
    cancellation.run_until_cancelled(work).await.unwrap_or_else(unwanted)
}

/// Converts an error of the API server.
pub(super) fn backend_error(operation: impl Into<String>, error: &Error) -> BackendError {
    BackendError::new(operation, error_text(error))
}

/// Returns the message of the API server, or the chain of causes if there was no response.
pub(super) fn error_text(error: &Error) -> String {
    match error {
        Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        _ => {
            let source: &dyn std::error::Error = error;
            let causes = std::iter::successors(Some(source), |cause| cause.source());
            causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use kube::core::Status;

    use super::*;

    fn api(code: u16, message: &str) -> Error {
        Error::Api(Box::new(Status { code, message: message.into(), ..Status::default() }))
    }

    #[test]
    fn only_transient_codes_are_retried() {
        for code in [408, 409, 429, 500, 503, 504] {
            assert!(is_transient(&api(code, "")), "{code}");
        }
        for code in [400, 401, 403, 404, 410, 422] {
            assert!(!is_transient(&api(code, "")), "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn exhausted_quota_is_reported_and_retried() {
        let full = "pods \"it\" is forbidden: exceeded quota: team, requested: pods=1, \
                    used: pods=3, limited: pods=3";
        let (tries, workspace) = (Mutex::new(0), WorkspaceId::from_bits(7));
        let (to, mut heard) = mpsc::channel(8);
        let reporter = WaitReporter { to: &to, workspace: &workspace, epoch: 1 };
        let done = retry_transient(
            "create it",
            reporter,
            || true,
            || async {
                let mut tries = tries.lock().unwrap();
                *tries += 1;
                match *tries {
                    1..=3 => Err(api(403, full)),
                    4 => Err(api(500, "etcdserver: leader changed")),
                    _ => Ok(*tries),
                }
            },
        );
        assert_eq!(done.await.unwrap(), 5);
        let mut told = Vec::new();
        while let Ok(Observation::Waits { waits: Some(waits), .. }) = heard.try_recv() {
            told.push(waits);
        }
        assert_eq!(told.len(), 4);
        assert_eq!(told[0].reason, WaitReason::QuotaExceeded);
        assert!(told[0].detail.contains("team, requested: pods=1"), "{told:?}");
        assert_eq!(told[3].reason, WaitReason::ApiServerUnavailable);
        assert!(told[3].detail.contains("leader changed"), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_pause_without_leadership_and_do_not_fail() {
        let (tries, looks, workspace) = (Mutex::new(0), Mutex::new(0), WorkspaceId::from_bits(7));
        let (to, _heard) = mpsc::channel(8);
        let reporter = WaitReporter { to: &to, workspace: &workspace, epoch: 1 };
        let may = || {
            let mut looks = looks.lock().unwrap();
            *looks += 1;
            // Renewals of the lease fail for a while.
            !(2..=5).contains(&*looks)
        };
        let done = retry_transient("create it", reporter, may, || async {
            let mut tries = tries.lock().unwrap();
            *tries += 1;
            if *tries == 1 { Err(api(503, "it is away")) } else { Ok(*tries) }
        });
        assert_eq!(done.await.unwrap(), 2);
        assert_eq!(*looks.lock().unwrap(), 6);
    }

    #[tokio::test]
    async fn forbidden_call_is_not_retried() {
        let forbidden = || async { Err::<(), _>(api(403, "violates PodSecurity \"restricted\"")) };
        let (workspace, (to, _heard)) = (WorkspaceId::from_bits(7), mpsc::channel(8));
        let reporter = WaitReporter { to: &to, workspace: &workspace, epoch: 1 };
        let refused = retry_transient("create it", reporter, || true, forbidden).await;
        assert_eq!(refused.unwrap_err().to_string(), "cannot create it: violates PodSecurity \"restricted\"");
    }
}
