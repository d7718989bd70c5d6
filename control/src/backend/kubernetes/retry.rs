//! What the API server answers when it does not do what was asked: which of it is_transient, and what is error_text of the rest.

use std::{future::Future, time::Duration};

use kube::Error;
use podling_core::{id::WorkspaceId, status::Waits, workspace::Epoch};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::backend::{BackendError, Observation};

/// Pause before a call is tried again, doubled each time up to the longest; a random half of it is left out, so that not everybody
/// comes back at once.
const MIN_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(4);

/// Something that one waits for, and need not be told to people: it is_transient by itself within moments.
pub(super) fn is_transient(error: &Error) -> bool {
    match error {
        // 409: something was changed between our look and our write.
        Error::Api(status) => matches!(status.code, 408 | 409 | 429 | 500..),
        Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => true,
        _ => false,
    }
}

pub(super) fn is_code(error: &Error, code: u16) -> bool {
    matches!(error, Error::Api(status) if status.code == code)
}

/// A quota of the namespace leaves no room; for people.
pub(super) fn quota_exceeded(error: &Error) -> Option<String> {
    match error {
        Error::Api(status) if status.code == 403 && status.message.contains("exceeded quota") => {
            let (_, quota) = status.message.split_once("exceeded quota: ")?;
            Some(format!("the quota of its namespace leaves no room: {quota}"))
        }
        _ => None,
    }
}

/// Tells the driver what a start or a resize waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitReporter<'a> {
    pub(super) to: &'a mpsc::Sender<Observation>,
    pub(super) workspace: &'a WorkspaceId,
    pub(super) epoch: Epoch,
}

impl WaitReporter<'_> {
    pub(super) async fn report(&self, why: String, for_room: bool) {
        let (workspace, epoch) = (self.workspace.clone(), self.epoch);
        let waits = Some(Waits { why, for_room });
        // Without a driver nobody needs to know.
        let _gone = self.to.send(Observation::Waits { workspace, epoch, waits }).await;
    }
}

/// Tries until it is done, or it is known that it never will be; only while it is for us to act (`may`).
pub(super) async fn retry_transient<T, F: Future<Output = Result<T, Error>>>(
    operation: &str,
    reporter: WaitReporter<'_>,
    may: impl Fn() -> bool,
    call: impl Fn() -> F,
) -> Result<T, BackendError> {
    let mut pause = MIN_BACKOFF;
    loop {
        // Where it is another's by now this ends with the process.
        if may() {
            let error = match call().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if let Some(why) = quota_exceeded(&error) {
                reporter.report(why, true).await;
            } else if is_transient(&error) {
                reporter
                    .report(format!("the cluster does not do it yet: {}", error_text(&error)), false)
                    .await;
            } else {
                return Err(backend_error(operation, &error));
            }
        }
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(MAX_BACKOFF);
    }
}

/// Goes on as long as it is wanted.
pub(super) async fn unless_cancelled<T>(
    operation: &str,
    cancellation: &CancellationToken,
    work: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    let unwanted = || Err(BackendError::new(operation, "it is not wanted any more"));
    cancellation.run_until_cancelled(work).await.unwrap_or_else(unwanted)
}

/// An error, for people.
pub(super) fn backend_error(operation: impl Into<String>, error: &Error) -> BackendError {
    BackendError::new(operation, error_text(error))
}

/// What the API server error_text, or what lies behind our not having heard it.
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
    fn what_passes_is_told_from_what_never_will() {
        for code in [408, 409, 429, 500, 503, 504] {
            assert!(is_transient(&api(code, "")), "{code}");
        }
        for code in [400, 401, 403, 404, 410, 422] {
            assert!(!is_transient(&api(code, "")), "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quota_is_waited_for_and_named() {
        let full = r#"pods "it" is forbidden: exceeded quota: team, requested: pods=1, used: pods=3, limited: pods=3"#;
        let (tries, workspace) = (Mutex::new(0), WorkspaceId::from_bits(7));
        let (to, mut heard) = mpsc::channel(8);
        let reporter = WaitReporter { to: &to, workspace: &workspace, epoch: 1 };
        let done = retry_transient(
            "creating it",
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
        assert!(told[0].for_room && told[0].why.contains("team, requested: pods=1"), "{told:?}");
        assert!(!told[3].for_room && told[3].why.contains("leader changed"), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_tried_while_it_is_not_for_us_and_that_is_no_failure() {
        let (tries, looks, workspace) = (Mutex::new(0), Mutex::new(0), WorkspaceId::from_bits(7));
        let (to, _heard) = mpsc::channel(8);
        let reporter = WaitReporter { to: &to, workspace: &workspace, epoch: 1 };
        let may = || {
            let mut looks = looks.lock().unwrap();
            *looks += 1;
            // The lease could not be renewed for some looks.
            !(2..=5).contains(&*looks)
        };
        let done = retry_transient("creating it", reporter, may, || async {
            let mut tries = tries.lock().unwrap();
            *tries += 1;
            if *tries == 1 { Err(api(503, "it is away")) } else { Ok(*tries) }
        });
        assert_eq!(done.await.unwrap(), 2);
        assert_eq!(*looks.lock().unwrap(), 6);
    }

    #[tokio::test]
    async fn what_is_forbidden_is_not_tried_again() {
        let forbidden = || async { Err::<(), _>(api(403, "violates PodSecurity \"restricted\"")) };
        let (workspace, (to, _heard)) = (WorkspaceId::from_bits(7), mpsc::channel(8));
        let reporter = WaitReporter { to: &to, workspace: &workspace, epoch: 1 };
        let refused = retry_transient("creating it", reporter, || true, forbidden).await;
        assert_eq!(refused.unwrap_err().to_string(), "creating it: violates PodSecurity \"restricted\"");
    }
}
