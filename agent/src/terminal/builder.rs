//! Birth: how a terminal begins, new or as one that was kept: its id, its log and what is known before its program says anything.

use std::{
    sync::{Arc, Mutex},
    time::SystemTime,
};

use rustix::process::Pid;
use tokio::sync::{Notify, watch};

use super::{
    Exit, Size, Terminal, TerminalId,
    create::Started,
    journal::{Again, Facts, time},
    pty::Pty,
    state::State,
};
use crate::{admission::AdmissionGate, byte_log::ByteLog, child::ExitStatus, claim::Claim};

/// A terminal as its task takes it on.
pub(super) struct Opened {
    pub(super) terminal: Arc<Terminal>,
    /// `None`: it has ended.
    pub(super) pty: Option<Arc<Pty>>,
    pub(super) ended: watch::Receiver<Option<ExitStatus>>,
}

/// What is there before the program.
#[derive(Debug)]
pub(super) struct Birth {
    id: TerminalId,
    created: SystemTime,
    log: ByteLog,
    title: String,
    cwd: String,
}

/// What a terminal is called and started with.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) name: String,
    pub(super) argv: Vec<String>,
    pub(super) again: Option<Again>,
    pub(super) request_id: String,
    pub(super) size: Size,
}

impl Birth {
    /// Of one that never was.
    pub(super) fn new(claim: &Claim) -> Self {
        Self {
            id: TerminalId::random(),
            created: SystemTime::now(),
            log: ByteLog::new(claim.epoch, claim.policy.ring_bytes),
            title: String::new(),
            cwd: String::new(),
        }
    }

    /// Of one that was kept; positions begin anew, for it is another epoch.
    pub(super) fn again(facts: &Facts, claim: &Claim) -> Self {
        Self {
            id: TerminalId::new(&facts.id),
            created: time(facts.created),
            title: facts.title.clone(),
            cwd: facts.cwd.clone(),
            ..Self::new(claim)
        }
    }

    /// Printed before anything else is.
    pub(super) fn print(&mut self, bytes: &[u8]) {
        self.log.push(bytes);
    }

    /// How much has been printed.
    pub(super) fn printed(&self) -> u64 {
        self.log.next()
    }

    /// With its program.
    pub(super) fn live(self, started: Started, gate: &Arc<AdmissionGate>) -> Opened {
        let Started { pty, child, called } = started;
        let pty = Arc::new(pty);
        let state = State { pty: Some(Arc::clone(&pty)), ..State::new(self.log, called.size) };
        let terminal = terminal(self.id, self.created, Some(child.pid), called, state, gate);
        set(&terminal, self.title, self.cwd);
        let program = terminal.argv.first().map_or("", String::as_str);
        tracing::info!(terminal = %terminal.id, pid = %child.pid, program, "opened a terminal");
        Opened { terminal, pty: Some(pty), ended: child.ended }
    }

    /// Without one: it has ended.
    pub(super) fn ended(self, called: Called, exit: Exit, gate: &Arc<AdmissionGate>) -> Opened {
        let state = State { exit: Some(exit), leader_gone: true, ..State::new(self.log, called.size) };
        let terminal = terminal(self.id, self.created, None, called, state, gate);
        set(&terminal, self.title, self.cwd);
        let (_, ended) = watch::channel(Some(exit.how));
        Opened { terminal, pty: None, ended }
    }
}

fn terminal(
    id: TerminalId,
    created: SystemTime,
    pid: Option<Pid>,
    called: Called,
    state: State,
    gate: &Arc<AdmissionGate>,
) -> Arc<Terminal> {
    Arc::new(Terminal {
        id,
        name: called.name,
        argv: called.argv,
        again: called.again,
        request_id: called.request_id,
        created,
        pid,
        gate: Arc::clone(gate),
        state: Mutex::new(state),
        wake: Notify::new(),
        input_moved: Notify::new(),
        has_ended: Notify::new(),
    })
}

fn set(terminal: &Terminal, title: String, cwd: String) {
    let mut state = terminal.state();
    state.title.set(title, 0);
    state.cwd.set(cwd, 0);
}
