//! Decides which failed calls are retried, and after which delay. Delays double up to a bound and
//! are jittered.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use podling_proto::error::Reason;
use tokio::time::{Instant, sleep};
use tonic::{Code, Response, Status, Streaming};

/// Steps of the delays. A delay is a random time between a step and its double, so at most 3 s. That
/// is short because a user is waiting.
const STEPS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(50))
    .with_max_delay(Duration::from_millis(1_500))
    .without_max_times()
    .with_jitter();
/// How long a call is retried after its first retryable failure. Measured from that failure,
/// because a silent connection is only noticed after 15 s.
const RETRY_WINDOW: Duration = Duration::from_secs(15);

/// Endless sequence of delays before retries.
#[derive(Debug)]
pub struct RetryBackoff(ExponentialBackoff);

impl Default for RetryBackoff {
    fn default() -> Self {
        Self(STEPS.build())
    }
}

impl RetryBackoff {
    /// Begins the sequence again after a success.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    pub fn next_delay(&mut self) -> Duration {
        self.0.next().unwrap_or_default()
    }
}

/// A server stream that is opened again after a failure.
#[derive(Debug)]
pub struct ResumedStream<T> {
    stream: Option<Streaming<T>>,
    backoff: RetryBackoff,
}

impl<T> Default for ResumedStream<T> {
    fn default() -> Self {
        Self { stream: None, backoff: RetryBackoff::default() }
    }
}

impl<T> ResumedStream<T> {
    /// Returns the next message, or `None` at the end of the stream. Opens a stream if there is none.
    pub async fn next(
        &mut self,
        open: impl AsyncFnOnce() -> Result<Response<Streaming<T>>, Status>,
    ) -> Result<Option<T>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(open().await?.into_inner()),
        };
        let message = stream.message().await?;
        if message.is_some() {
            self.backoff.reset();
        }
        Ok(message)
    }

    /// Closes the stream after a failure, and waits before the next one.
    pub async fn back_off(&mut self) {
        self.stream = None;
        sleep(self.backoff.next_delay()).await;
    }
}

/// Makes an idempotent call. Retries it for up to 15 s after its first retryable failure.
pub async fn retry_call<T>(mut call: impl AsyncFnMut() -> Result<Response<T>, Status>) -> Result<T, Status> {
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
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(3));
        assert!(waits[0] <= first && waits[0] >= first / 2);
        assert!(waits.iter().all(|wait| *wait <= longest));
        assert!(waits[19] >= longest / 2);
        backoff.reset();
        assert!(backoff.next_delay() <= first);
    }

    #[tokio::test]
    async fn call_is_retried_after_disconnect_but_not_after_refusal() {
        let starting = WireError::new(Reason::NotAwake, "starting").with("state", "starting");
        for cut in [Status::unknown("h2"), Status::cancelled("h2"), starting.into()] {
            let mut answers = vec![Ok(Response::new("done")), Err(cut)];
            let answer = retry_call(|| std::future::ready(answers.pop().expect("another answer"))).await;
            assert_eq!(answer.expect("second attempt"), "done");
        }
        for reason in [Reason::TokenExpired, Reason::WakeTimeout] {
            let mut tries = 0;
            let refused = retry_call(|| {
                tries += 1;
                std::future::ready(Err::<Response<()>, _>(WireError::new(reason, "no").into()))
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
