//! Create: what somebody asks to open, whether it may be, and how it begins. Must not know the other terminals.

use std::{
    sync::{Arc, Mutex},
    time::SystemTime,
};

use tokio::sync::{Notify, watch};

use super::{
    Size, Terminal, TerminalError, TerminalId,
    pty::{Pair, Pty},
    state::State,
};
use crate::{
    byte_log::ByteLog,
    child::{Children, Ended},
    claim::Claim,
    intent::Intents,
    spawn::{Launcher, Program, shown, spawn_failed},
};

/// Longest name, in characters.
const NAME_CHARS: usize = 100;
/// Longest request id, in bytes.
const REQUEST_ID_BYTES: usize = 64;
/// What a program may expect of the terminal if nobody says otherwise.
const TERM: &str = "xterm-256color";

/// What to open.
#[derive(Debug, Clone, Default)]
pub struct Create {
    /// Program, environment and folder; an empty `argv` is the workspace's shell as a login shell.
    pub program: Program,
    /// Of the window.
    pub size: Size,
    /// For people; empty: the program's name.
    pub name: String,
    /// Chosen by the client so that it may ask again; may be empty.
    pub request_id: String,
}

/// A terminal whose program was started, and what its task owns.
pub(super) struct Opened {
    pub(super) terminal: Arc<Terminal>,
    pub(super) pty: Arc<Pty>,
    pub(super) ended: watch::Receiver<Option<Ended>>,
}

impl Create {
    /// Whether what it says about itself is allowed.
    pub(super) fn check(&self) -> Result<(), TerminalError> {
        if self.name.chars().count() > NAME_CHARS {
            return Err(TerminalError::BadField { field: "name", allowed: "at most 100 characters" });
        }
        if self.request_id.len() > REQUEST_ID_BYTES {
            return Err(TerminalError::BadField { field: "request_id", allowed: "at most 64 characters" });
        }
        Ok(())
    }

    /// Starts the program on a PTY of its own. Blocks for the time of a fork.
    pub(super) fn open(
        mut self,
        launcher: &Launcher,
        children: &Children,
        intents: &Arc<Intents>,
        claim: &Claim,
    ) -> Result<Opened, TerminalError> {
        let login = self.program.argv.is_empty();
        if login {
            self.program.argv = vec![launcher.shell(), "-l".into()];
        }
        if !claim.env.contains_key("TERM") {
            self.program.env.entry("TERM".into()).or_insert_with(|| TERM.into());
        }
        let command = launcher.command(&self.program)?;
        let program = self.program.argv[0].clone();
        let pair = Pair::open(self.size)?;
        let (pty, child) = pair.spawn(command, children).map_err(|e| spawn_failed(&program, e))?;
        let pty = Arc::new(pty);
        let name = if self.name.is_empty() {
            program.rsplit('/').next().unwrap_or_default().chars().take(NAME_CHARS).collect()
        } else {
            self.name
        };
        let log = ByteLog::new(claim.epoch, claim.policy.ring_bytes);
        let terminal = Arc::new(Terminal {
            id: TerminalId::random(),
            name,
            argv: shown(&self.program.argv),
            request_id: self.request_id,
            created: SystemTime::now(),
            pid: child.pid,
            intents: Arc::clone(intents),
            state: Mutex::new(State { pty: Some(Arc::clone(&pty)), ..State::new(log, self.size) }),
            wake: Notify::new(),
            input_moved: Notify::new(),
            has_ended: Notify::new(),
        });
        tracing::info!(terminal = %terminal.id, pid = %terminal.pid, program, "opened a terminal");
        Ok(Opened { terminal, pty, ended: child.ended })
    }
}
