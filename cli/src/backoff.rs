//! How long to wait before trying again: doubling, jittered, bounded.

use std::{future::Future, time::Duration};

use podling_proto::error::Reason;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

/// Before the first repeat.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait between two tries: somebody watches.
const LONGEST: Duration = Duration::from_secs(3);
/// How long a single call is repeated after the first time that the link broke or the other side was not ready. Counted from
/// there, because a link that has gone silent is only noticed after 15 s.
const PATIENCE: Duration = Duration::from_secs(15);

/// The waits between tries.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// It worked: the next failure is a first one again.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    /// How long to wait now: between half and all of the present step.
    pub fn step(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(LONGEST);
        step / 2 + (step / 2).mul_f64(fastrand::f64())
    }
}

/// Makes a call that may be repeated without harm, again and again as long as the link breaks or the answer is "not now", for a
/// while.
pub async fn patiently<T, F, Fut>(mut call: F) -> Result<T, Status>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut deadline = None;
    let mut backoff = Backoff::default();
    loop {
        match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            // It has been held for as long as a call is held: once more would take as long again.
            Err(status) if podling_proto::error::reason(&status) == Some(Reason::WakeTimeout) => {
                return Err(status);
            }
            Err(status)
                if is_broken_link(&status)
                    && Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + PATIENCE) =>
            {
                sleep(backoff.step()).await;
            }
            Err(status) => return Err(status),
        }
    }
}

/// Whether a stream ended because the link broke rather than because the other side had something against it.
pub fn is_broken_link(status: &Status) -> bool {
    match podling_proto::error::reason(status) {
        // Its agent is being started again: soon it can say what has become of the terminal or process.
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
    fn waits_grow_to_a_bound_and_start_over_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..20).map(|_| backoff.step()).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2);
        assert!(waits.iter().all(|wait| *wait <= LONGEST));
        assert!(waits[19] >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.step() <= FIRST);
    }

    #[tokio::test]
    async fn a_call_is_made_again_when_the_link_broke_under_it_and_not_when_it_was_refused() {
        let starting = WireError::new(Reason::NotAwake, "starting").with("state", "starting");
        for cut in [Status::unknown("h2"), Status::cancelled("h2"), starting.into()] {
            let mut answers = vec![Ok(tonic::Response::new("done")), Err(cut)];
            let answer = patiently(|| std::future::ready(answers.pop().expect("an answer"))).await;
            assert_eq!(answer.expect("the second try"), "done");
        }
        for reason in [Reason::TokenExpired, Reason::WakeTimeout] {
            let mut tries = 0;
            let refused = patiently(|| {
                tries += 1;
                std::future::ready(Err::<tonic::Response<()>, _>(WireError::new(reason, "no").into()))
            });
            assert!(refused.await.is_err());
            assert_eq!(tries, 1, "{reason:?}");
        }
    }

    #[test]
    fn a_refusal_is_no_broken_link() {
        let refused = Status::from(WireError::new(Reason::TerminalNotFound, "gone"));
        assert!(!is_broken_link(&refused));
        let down = Status::from(WireError::new(Reason::AgentUnreachable, "down"));
        assert!(is_broken_link(&down));
        let internal = Status::from(WireError::new(Reason::Internal, "a fault"));
        assert!(!is_broken_link(&internal), "a fault that has a name will not go away by asking again");
        let starting = Status::from(WireError::new(Reason::NotAwake, "starting").with("state", "starting"));
        assert!(is_broken_link(&starting), "after its agent was killed it is back soon");
        let asleep = Status::from(WireError::new(Reason::NotAwake, "asleep").with("state", "asleep"));
        assert!(!is_broken_link(&asleep));
        assert!(is_broken_link(&Status::unknown("h2 protocol error")));
    }
}
