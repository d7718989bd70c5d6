//! Tasks of connections and streams. One tracker owns all of them, so that a shutdown can wait for
//! the last.

use std::future::Future;

use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

/// The executor that hyper spawns its tasks on.
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
