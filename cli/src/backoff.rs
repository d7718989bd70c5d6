//! Decides which failed calls are retried, and after which delay. Delays double up to a bound and
//! are jittered.

use std::time::Duration;

use podling_proto::error::Reason;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay. Short because a user is waiting.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// How long a call is retried after its first retryable failure. Measured from that failure,
/// because a silent connection is only noticed after 15 s.
const RETRY_WINDOW: Duration = Duration::from_secs(15);

/// Sequence of delays before retries.
#[derive(Debug)]
pub struct RetryBackoff {
    next: Duration,
}

impl Default for RetryBackoff {
    fn default() -> Self {
        Self { next: FIRST_DELAY }
    }
}

impl RetryBackoff {
    /// Begins the sequence again after a success.
    pub fn reset(&mut self) {
        self.next = FIRST_DELAY;
    }

    /// Returns the next delay, a random time between half of the current step and the whole step.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(MAX_DELAY);
        step / 2 + (step / 2).mul_f64(fastrand::f64())
    }
}

/// Makes an idempotent call. Retries it for up to 15 s after its first retryable failure.
pub async fn retry_call<T>(
    mut call: impl AsyncFnMut() -> Result<tonic::Response<T>, Status>,
) -> Result<T, Status> {
    let mut deadline = None;
    let mut backoff = RetryBackoff::default();
    loop {
        match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            // The gateway has held the call for the longest time that it holds one. A retry would
            // be held for as long again.
            Err(status) if podling_proto::error::reason(&status) == Some(Reason::WakeTimeout) => {
                return Err(status);
            }
            Err(status)
                if is_retryable(&status)
                    && Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + RETRY_WINDOW) =>
            {
                sleep(backoff.next_delay()).await;
            }
            Err(status) => return Err(status),
        }
    }
}

/// Returns whether the status is temporary: the connection broke, the other side was not ready, or
/// the workspace is starting. Returns false for a refusal.
pub fn is_retryable(status: &Status) -> bool {
    match podling_proto::error::reason(status) {
        // The agent is restarting and can soon report on its terminals and processes.
        Some(Reason::NotAwake) => {
            podling_proto::error::detail(status, "state").as_deref() == Some("starting")
        }
        Some(reason) => podling_proto::error::code(reason) == Code::Unavailable,
        None => matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::Aborted
        ),
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::error::WireError;

    use super::*;

    #[test]
    fn delay_grows_to_limit_and_resets_after_success() {
        let mut backoff = RetryBackoff::default();
        let waits: Vec<_> = (0..20).map(|_| backoff.next_delay()).collect();
        assert!(waits[0] <= FIRST_DELAY && waits[0] >= FIRST_DELAY / 2);
        assert!(waits.iter().all(|wait| *wait <= MAX_DELAY));
        assert!(waits[19] >= MAX_DELAY / 2);
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST_DELAY);
    }

    #[tokio::test]
    async fn call_is_retried_after_disconnect_but_not_after_refusal() {
        let starting = WireError::new(Reason::NotAwake, "starting").with("state", "starting");
        for cut in [Status::unknown("h2"), Status::cancelled("h2"), starting.into()] {
            let mut answers = vec![Ok(tonic::Response::new("done")), Err(cut)];
            let answer = retry_call(|| std::future::ready(answers.pop().expect("another answer"))).await;
            assert_eq!(answer.expect("second attempt"), "done");
        }
        for reason in [Reason::TokenExpired, Reason::WakeTimeout] {
            let mut tries = 0;
            let refused = retry_call(|| {
                tries += 1;
                std::future::ready(Err::<tonic::Response<()>, _>(WireError::new(reason, "no").into()))
            });
            assert!(refused.await.is_err());
            assert_eq!(tries, 1, "{reason:?}");
        }
    }

    #[test]
    fn only_temporary_errors_are_retryable() {
        let refused = Status::from(WireError::new(Reason::TerminalNotFound, "gone"));
        assert!(!is_retryable(&refused));
        let down = Status::from(WireError::new(Reason::AgentUnreachable, "down"));
        assert!(is_retryable(&down));
        let internal = Status::from(WireError::new(Reason::Internal, "a fault"));
        assert!(!is_retryable(&internal), "an internal error is permanent");
        let starting = Status::from(WireError::new(Reason::NotAwake, "starting").with("state", "starting"));
        assert!(is_retryable(&starting), "a starting agent is available soon");
        let asleep = Status::from(WireError::new(Reason::NotAwake, "asleep").with("state", "asleep"));
        assert!(!is_retryable(&asleep));
        assert!(is_retryable(&Status::unknown("h2 protocol error")));
    }
}
