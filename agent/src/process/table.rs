//! Table of all processes, running and retained ended ones, with the limits on both.

use std::{sync::Arc, time::Instant};

use super::{Process, ProcessError, ProcessId};

/// Limit on retained ended processes. Beyond it the process that ended first is removed. Later
/// requests for it report that it does not exist.
pub(super) const MAX_ENDED: usize = 128;
/// Limit on the output of all retained ended processes together, in bytes. Beyond it the process
/// that ended first loses all its output. Its exit is retained, and a watcher gets a gap.
pub(super) const MAX_ENDED_BYTES: u64 = 32 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct ProcessTable {
    processes: Vec<Arc<Process>>,
    /// The agent is shutting down, so no process may be added.
    pub(super) shutting_down: bool,
}

impl ProcessTable {
    pub(super) fn all(&self) -> &[Arc<Process>] {
        &self.processes
    }

    pub(super) fn running(&self) -> usize {
        self.processes.iter().filter(|process| !process.is_finished()).count()
    }

    pub(super) fn find(&self, id: &ProcessId) -> Option<Arc<Process>> {
        self.processes.iter().find(|process| process.id == *id).cloned()
    }

    /// Finds the process that an earlier call with this request id started.
    pub(super) fn by_request_id(&self, request_id: &str) -> Option<Arc<Process>> {
        let same = |process: &&Arc<Process>| !request_id.is_empty() && process.request_id == request_id;
        self.processes.iter().find(same).cloned()
    }

    /// Fails if `limit` processes are running or watched. A watched process counts after its end
    /// too, because its output cannot be discarded.
    pub(super) fn check_limit(&self, limit: usize) -> Result<(), ProcessError> {
        let taken = |process: &&Arc<Process>| !process.is_finished() || process.state().is_watched();
        if self.processes.iter().filter(taken).count() >= limit {
            return Err(ProcessError::TooManyProcesses { limit });
        }
        Ok(())
    }

    pub(super) fn add(&mut self, process: Arc<Process>) {
        self.processes.push(process);
    }

    /// Removes ended processes, and discards their output, until both limits hold. Watched
    /// processes are left alone.
    pub(super) fn enforce_bounds(&mut self) {
        let mut retained: Vec<(Instant, Arc<Process>)> =
            self.processes.iter().filter_map(|p| Some((retained_since(p)?, p.clone()))).collect();
        retained.sort_by_key(|(ended, _)| *ended);
        let too_many = retained.len().saturating_sub(MAX_ENDED);
        for (_, process) in retained.drain(..too_many) {
            self.remove(&process);
        }
        let mut held: u64 = retained.iter().map(|(_, process)| process.state().held_bytes()).sum();
        for (_, process) in retained {
            if held <= MAX_ENDED_BYTES {
                break;
            }
            let mut state = process.state();
            held -= state.held_bytes();
            state.discard_output();
        }
    }

    pub(super) fn remove(&mut self, process: &Arc<Process>) {
        self.processes.retain(|other| !Arc::ptr_eq(other, process));
        process.removed.cancel();
    }
}

/// Returns the time at which the process ended. `None` if it runs or has watchers.
fn retained_since(process: &Process) -> Option<Instant> {
    let state = process.state();
    state.finished_at.filter(|_| !state.is_watched())
}
