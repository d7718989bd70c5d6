//! Requests that the gate holds until it decides, and operations that wait for the decision.

use std::{sync::Arc, time::Instant};

use tokio::{sync::oneshot, time::sleep_until};

use super::{AdmissionGate, Rejection};

/// Reason why a request was not admitted immediately.
#[derive(Debug)]
pub enum AdmitError {
    /// The gate holds the request. The caller waits for the decision, then tries again.
    Held(HeldRequest),
    /// The gate will not admit the request.
    Rejected(Rejection),
}

/// A request in the gate's queue. Dropping it removes it from the queue.
#[derive(Debug)]
pub struct HeldRequest {
    gate: Arc<AdmissionGate>,
    id: u64,
    answer: oneshot::Receiver<Result<(), Rejection>>,
    until: Instant,
}

/// Failure of an operation that the gate may have held.
#[derive(Debug)]
pub enum Attempt<E> {
    /// The gate holds the request, and the operation did nothing.
    Held(HeldRequest),
    Failed(E),
}

impl HeldRequest {
    pub(super) fn new(
        gate: Arc<AdmissionGate>,
        id: u64,
        answer: oneshot::Receiver<Result<(), Rejection>>,
        until: Instant,
    ) -> Self {
        Self { gate, id, answer, until }
    }

    /// Waits for the gate's decision. Cancel-safe. After `Ok` the caller must try its operation
    /// again, because the held attempt did nothing.
    pub async fn decision(&mut self) -> Result<(), Rejection> {
        loop {
            tokio::select! {
                biased;
                // The gate drops a sender only after it has sent the answer.
                answer = &mut self.answer => return answer.unwrap_or(Err(Rejection::Preparing)),
                () = sleep_until(self.until.into()) => {
                    if let Some(until) = self.gate.expire_hold() {
                        self.until = until;
                    }
                }
            }
        }
    }
}

impl Drop for HeldRequest {
    fn drop(&mut self) {
        self.gate.abandon(self.id);
    }
}

impl<E> Attempt<E> {
    /// Repeats `attempt` until the gate admits or rejects it.
    pub async fn retry_while_held<T>(mut attempt: impl FnMut() -> Result<T, Self>) -> Result<T, E>
    where
        E: From<Rejection>,
    {
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(Self::Failed(error)) => return Err(error),
                Err(Self::Held(mut hold)) => hold.decision().await?,
            }
        }
    }
}

impl<E: From<Rejection>> From<AdmitError> for Attempt<E> {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Held(hold) => Self::Held(hold),
            AdmitError::Rejected(rejection) => Self::Failed(rejection.into()),
        }
    }
}

impl<E> From<E> for Attempt<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}
