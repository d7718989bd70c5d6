//! Supervises the agent's long-lived tasks.
//!
//! The agent hosts the user's shells, so a failed task must not end the agent. A task that fails or
//! panics is restarted, and the restart is counted in a metric.

use std::{any::Any, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use podling_proto::error::with_causes;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{metrics::AgentMetrics, util::DoublingBackoff};

/// Delay before the first restart. It doubles with each restart, up to [`MAX_RESTART_DELAY`].
const MIN_RESTART_DELAY: Duration = Duration::from_millis(100);
/// Maximum delay before a restart.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(30);
/// A task that ran this long resets the delay.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Owns the agent's long-lived tasks. Dropping it aborts them.
#[derive(Debug)]
pub struct TaskSupervisor {
    set: JoinSet<()>,
    token: CancellationToken,
    metrics: AgentMetrics,
}

/// Runs the background tasks that hyper needs for a connection, until its token is cancelled.
#[derive(Debug, Clone)]
pub struct ConnectionExecutor {
    tracker: TaskTracker,
    lifetime: CancellationToken,
}

// === impl TaskSupervisor ===

impl TaskSupervisor {
    pub fn new(metrics: AgentMetrics) -> Self {
        Self { set: JoinSet::new(), token: CancellationToken::new(), metrics }
    }

    /// Runs `task` until it returns `Ok` or the token is cancelled. Restarts it after an error or a
    /// panic. Each run gets a clone of `subject`.
    pub fn supervise<S, F, T, E>(&mut self, name: &'static str, subject: S, task: fn(S) -> F)
    where
        S: Clone + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let (token, metrics) = (self.token.clone(), self.metrics.clone());
        let supervised = async move {
            let mut backoff = DoublingBackoff::new(MIN_RESTART_DELAY, MAX_RESTART_DELAY);
            loop {
                let started = Instant::now();
                // Shared state is behind locks that ignore poisoning, so a restart is as safe as a
                // first start.
                let failure = match AssertUnwindSafe(task(subject.clone())).catch_unwind().await {
                    Ok(Ok(_)) => return,
                    Ok(Err(error)) => with_causes(&error),
                    Err(panic) => format!("panic: {}", panic_message(panic.as_ref())),
                };
                if started.elapsed() >= HEALTHY_AFTER {
                    backoff.reset();
                }
                let delay = backoff.next();
                tracing::error!(task = name, %failure, ?delay, "task failed; restarting it");
                metrics.task_restarted(name);
                sleep(delay).await;
            }
        };
        self.set.spawn(async move {
            token.run_until_cancelled(supervised).await;
        });
    }

    /// Cancels all tasks and waits for them.
    pub async fn end(mut self) {
        self.token.cancel();
        while self.set.join_next().await.is_some() {}
    }
}

// === impl ConnectionExecutor ===

impl ConnectionExecutor {
    /// Creates an executor whose tasks end when `lifetime` is cancelled.
    pub fn new(lifetime: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), lifetime }
    }
}

impl<F> hyper::rt::Executor<F> for ConnectionExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.tracker.spawn(self.lifetime.clone().run_until_cancelled_owned(future));
    }
}

/// Returns the message of a panic, or "no message" if the payload is not a string.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use tokio::{sync::Notify, time::timeout};

    use super::*;

    #[tokio::test]
    async fn failed_task_is_restarted_and_counted() {
        let metrics = AgentMetrics::new();
        let mut tasks = TaskSupervisor::new(metrics.clone());
        let (runs, well) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        tasks.supervise("fragile", (runs.clone(), well.clone()), |(runs, well)| async move {
            match runs.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("first failure"),
                1 => Err(io::Error::other("second failure")),
                _ => {
                    well.notify_one();
                    std::future::pending::<io::Result<()>>().await
                }
            }
        });
        timeout(Duration::from_secs(10), well.notified()).await.expect("the task is restarted");
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        assert!(metrics.encode().contains("task_restarts_total{task=\"fragile\"} 2"), "{}", metrics.encode());
        timeout(Duration::from_secs(10), tasks.end()).await.expect("ends when cancelled");
    }
}
