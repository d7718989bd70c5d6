//! Builder for new and restored terminals. It holds the id, log, title and directory until the
//! program has started, or until a restored terminal is found to have ended.

use std::{
    sync::{Arc, Mutex},
    time::SystemTime,
};

use rustix::process::Pid;
use tokio::sync::{Notify, watch};

use super::{
    Terminal, TerminalExit, TerminalId, WindowSize,
    create::StartedProgram,
    journal::{JournalMetadata, RestartSpec, from_unix_nanos},
    pty::Pty,
    state::TerminalState,
};
use crate::{admission::AdmissionGate, byte_log::ByteLog, child::ExitStatus, claim::Claim};

/// A built terminal, with the PTY and the exit status that its task needs.
pub(super) struct OpenedTerminal {
    pub(super) terminal: Arc<Terminal>,
    /// `None` if the terminal has already ended.
    pub(super) pty: Option<Arc<Pty>>,
    pub(super) ended: watch::Receiver<Option<ExitStatus>>,
}

/// State of a terminal before its program starts.
#[derive(Debug)]
pub(super) struct TerminalBuilder {
    id: TerminalId,
    created: SystemTime,
    log: ByteLog,
    title: String,
    cwd: String,
}

/// Name, command line and size of a terminal.
#[derive(Debug)]
pub(super) struct TerminalSpec {
    pub(super) name: String,
    pub(super) argv: Vec<String>,
    pub(super) restart: Option<RestartSpec>,
    pub(super) request_id: String,
    pub(super) size: WindowSize,
}

impl TerminalBuilder {
    /// Creates a builder with a new id and an empty log.
    pub(super) fn new(claim: &Claim) -> Self {
        Self {
            id: TerminalId::random(),
            created: SystemTime::now(),
            log: ByteLog::new(claim.epoch, claim.policy.byte_log_bytes),
            title: String::new(),
            cwd: String::new(),
        }
    }

    pub(super) fn id(&self) -> &TerminalId {
        &self.id
    }

    /// Creates a builder with the id, title and directory from a journal. The log is empty, and its
    /// offsets start at 0 because the epoch is new.
    pub(super) fn from_journal(metadata: &JournalMetadata, claim: &Claim) -> Self {
        Self {
            id: TerminalId::new(&metadata.id),
            created: from_unix_nanos(metadata.created),
            title: metadata.title.clone(),
            cwd: metadata.cwd.clone(),
            ..Self::new(claim)
        }
    }

    /// Appends bytes to the log. They precede all output of the program.
    pub(super) fn push_output(&mut self, bytes: &[u8]) {
        self.log.push(bytes);
    }

    /// Returns the offset after the last byte in the log.
    pub(super) fn end_offset(&self) -> u64 {
        self.log.next()
    }

    /// Builds the terminal around its running program.
    pub(super) fn build_running(self, started: StartedProgram, gate: &Arc<AdmissionGate>) -> OpenedTerminal {
        let StartedProgram { pty, child, spec } = started;
        let pty = Arc::new(pty);
        let state = TerminalState { pty: Some(Arc::clone(&pty)), ..TerminalState::new(self.log, spec.size) };
        let terminal = new_terminal(self.id, self.created, Some(child.pid), spec, state, gate);
        set_title_and_cwd(&terminal, self.title, self.cwd);
        let program = terminal.argv.first().map_or("", String::as_str);
        tracing::info!(terminal = %terminal.id, pid = %child.pid, program, "terminal opened");
        OpenedTerminal { terminal, pty: Some(pty), ended: child.ended }
    }

    /// Builds a terminal that has already ended, without a program.
    pub(super) fn build_ended(
        self,
        spec: TerminalSpec,
        exit: TerminalExit,
        gate: &Arc<AdmissionGate>,
    ) -> OpenedTerminal {
        let state =
            TerminalState { exit: Some(exit), leader_gone: true, ..TerminalState::new(self.log, spec.size) };
        let terminal = new_terminal(self.id, self.created, None, spec, state, gate);
        set_title_and_cwd(&terminal, self.title, self.cwd);
        let (_, ended) = watch::channel(Some(exit.status));
        OpenedTerminal { terminal, pty: None, ended }
    }
}

fn new_terminal(
    id: TerminalId,
    created: SystemTime,
    pid: Option<Pid>,
    spec: TerminalSpec,
    state: TerminalState,
    gate: &Arc<AdmissionGate>,
) -> Arc<Terminal> {
    Arc::new(Terminal {
        id,
        name: spec.name,
        argv: spec.argv,
        restart: spec.restart,
        request_id: spec.request_id,
        created,
        pid,
        gate: Arc::clone(gate),
        state: Mutex::new(state),
        wake: Notify::new(),
        input_moved: Notify::new(),
        has_ended: Notify::new(),
    })
}

fn set_title_and_cwd(terminal: &Terminal, title: String, cwd: String) {
    let mut state = terminal.state();
    state.title.set(title, 0);
    state.cwd.set(cwd, 0);
}
