//! Hold: the place of somebody who was held at the door, and the one way to wait there.

use std::{sync::Arc, time::Instant};

use tokio::{sync::oneshot, time::sleep_until};

use super::{Intents, Refused};

/// The door did not let it pass.
#[derive(Debug)]
pub enum Closed {
    /// It may wait, and then ask again.
    Held(Hold),
    /// It may not.
    Refused(Refused),
}

/// Somebody who waits at the door. Dropping it is leaving.
#[derive(Debug)]
pub struct Hold {
    door: Arc<Intents>,
    id: u64,
    answer: oneshot::Receiver<Result<(), Refused>>,
    until: Instant,
}

/// Why something was not done, if the door may have been the reason.
#[derive(Debug)]
pub enum Unmet<E> {
    /// It was held, and nothing was done.
    Held(Hold),
    /// It failed.
    Failed(E),
}

impl Hold {
    pub(super) fn new(
        door: Arc<Intents>,
        id: u64,
        answer: oneshot::Receiver<Result<(), Refused>>,
        until: Instant,
    ) -> Self {
        Self { door, id, answer, until }
    }

    /// Waits until it is decided; a dropped wait goes on with the next one. After `Ok` it must ask again, for its act was not done.
    pub async fn over(&mut self) -> Result<(), Refused> {
        loop {
            tokio::select! {
                biased;
                // Without an answer the door itself is gone.
                answer = &mut self.answer => return answer.unwrap_or(Err(Refused::Preparing)),
                () = sleep_until(self.until.into()) => {
                    if let Some(until) = self.door.lapse() {
                        self.until = until;
                    }
                }
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.door.leave(self.id);
    }
}

impl<E> Unmet<E> {
    /// Tries until the door is open or shut.
    pub async fn until_met<T>(mut attempt: impl FnMut() -> Result<T, Self>) -> Result<T, E>
    where
        E: From<Refused>,
    {
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(Self::Failed(error)) => return Err(error),
                Err(Self::Held(mut hold)) => hold.over().await?,
            }
        }
    }
}

impl<E: From<Refused>> From<Closed> for Unmet<E> {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::Held(hold) => Self::Held(hold),
            Closed::Refused(refused) => Self::Failed(refused.into()),
        }
    }
}

impl<E> From<E> for Unmet<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}
