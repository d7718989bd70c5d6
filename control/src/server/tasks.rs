//! ConnectionTasks of connections and streams: all belong to one tracker, so that a shutdown can wait for the last of them.

use std::future::Future;

use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

/// Where hyper starts its tasks.
#[derive(Debug, Clone, Default)]
pub struct ConnectionTasks(pub TaskTracker);

impl<F> Executor<F> for ConnectionTasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}
