//! HeldRequest: the place of somebody who was held at the gate, and the one way to wait there.

use std::{sync::Arc, time::Instant};

use tokio::{sync::oneshot, time::sleep_until};

use super::{AdmissionGate, Rejection};

/// The gate did not let it pass.
#[derive(Debug)]
pub enum AdmitError {
    /// It may wait, and then ask again.
    Held(HeldRequest),
    /// It may not.
    Rejected(Rejection),
}

/// Somebody who waits at the gate. Dropping it is leaving.
#[derive(Debug)]
pub struct HeldRequest {
    gate: Arc<AdmissionGate>,
    id: u64,
    answer: oneshot::Receiver<Result<(), Rejection>>,
    until: Instant,
}

/// Why something was not done, if the gate may have been the reason.
#[derive(Debug)]
pub enum Attempt<E> {
    /// It was held, and nothing was done.
    Held(HeldRequest),
    /// It failed.
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

    /// Waits until it is decided; a dropped wait goes on with the next one. After `Ok` it must ask again, for its act was not done.
    pub async fn decision(&mut self) -> Result<(), Rejection> {
        loop {
            tokio::select! {
                biased;
                // Without an answer the gate itself is gone.
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
    /// Tries until the gate is open or shut.
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
    fn from(closed: AdmitError) -> Self {
        match closed {
            AdmitError::Held(hold) => Self::Held(hold),
            AdmitError::Rejected(refused) => Self::Failed(refused.into()),
        }
    }
}

impl<E> From<E> for Attempt<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}
