//! Tests of terminals with real PTYs and real programs.

mod exits;
mod input;
mod reading;
mod restore;
mod screens;
mod signals;
mod sleep;
mod stress;

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use rustix::process::Pid;
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::*;
use crate::{
    admission::AdmissionGate,
    child::{Children, OrphanPolicy},
    claim::AgentPolicy,
    spawn::{Launcher, Program},
    test_workspace::{ClaimedWorkspace, claim},
};

/// Longer than any step of these tests takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// Terminals of a claimed agent in a temporary directory.
struct TerminalFixture {
    terminals: Terminals,
    workspace: ClaimedWorkspace,
}

impl TerminalFixture {
    fn new() -> Self {
        Self::with(AgentPolicy::default())
    }

    fn with(policy: AgentPolicy) -> Self {
        let workspace = ClaimedWorkspace::new(Some(claim(policy)));
        let (children, gate) = (workspace.children.clone(), workspace.gate.clone());
        Self { terminals: Terminals::new(None, workspace.launcher(), children, gate), workspace }
    }

    fn open(&self, argv: &[&str]) -> TerminalInfo {
        self.try_open(argv).expect("a terminal")
    }

    fn try_open(&self, argv: &[&str]) -> Result<TerminalInfo, TerminalError> {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let program = Program { argv, ..Program::default() };
        expect_ready(self.terminals.create(CreateTerminal { program, ..CreateTerminal::default() }))
    }

    /// Starts a shell without line editing that runs a script.
    fn script(&self, script: &str) -> TerminalInfo {
        self.open(&["sh", "-c", script])
    }

    fn attach(&self, id: &TerminalId, client: &str, from: ViewerStart) -> Attachment {
        self.terminals.attach(&attach(id, client, from)).expect("an attachment")
    }

    async fn exit(&self, id: &TerminalId) -> TerminalExit {
        eventually(|| self.terminals.get(id).expect("kept").exit).await
    }
}

fn attach(id: &TerminalId, client: &str, from: ViewerStart) -> ViewerOptions {
    ViewerOptions {
        terminal: id.clone(),
        from,
        client: Some(ClientId::new(client).expect("valid")),
        size: None,
        credit: 0,
        lossless: false,
        read_only: false,
    }
}

fn user(offset: u64, data: &[u8]) -> TerminalInput<'_> {
    TerminalInput { epoch: 7, offset, data, kind: InputKind::User }
}

/// Completes a future that need not wait, because the admission gate is open.
fn expect_ready<T>(done: impl Future<Output = T>) -> T {
    done.now_or_never().expect("the admission gate is open")
}

/// Returns the living processes of a session whose leader is gone.
fn session(terminal: &TerminalInfo) -> Vec<Pid> {
    session::requests::session_members(terminal.pid.expect("a leader"), true)
}

/// Waits until a condition holds. Panics after `DEADLINE`.
async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, look).await.expect("in time")
}

/// Waits for the next event. Panics after `DEADLINE`.
async fn next(attachment: &mut Attachment) -> Option<AttachmentEvent> {
    timeout(DEADLINE, attachment.next()).await.expect("an event in time")
}

async fn next_frame(attachment: &mut Attachment) -> Option<Frame> {
    loop {
        match next(attachment).await? {
            AttachmentEvent::Frame(frame) => return Some(frame),
            AttachmentEvent::Ack { .. } | AttachmentEvent::Rejected(_) => {}
        }
    }
}

/// Output that a viewer received. Checks that frames arrive in order and offsets have no gap.
#[derive(Default)]
struct ReceivedOutput {
    bytes: Vec<u8>,
    at: u64,
    gaps: u64,
    exit: Option<TerminalExit>,
}

impl ReceivedOutput {
    fn take(&mut self, frame: Frame) {
        match frame.kind {
            FrameKind::Started { .. } => {
                if self.bytes.is_empty() {
                    self.at = frame.offset;
                }
            }
            FrameKind::Data(bytes) => {
                assert_eq!(frame.offset, self.at, "output has no gap and no repeat");
                self.at += bytes.len() as u64;
                self.bytes.extend(bytes);
            }
            FrameKind::Gap { from, to } => {
                assert_eq!(from, self.at);
                self.gaps += to - from;
                self.at = to;
            }
            FrameKind::Screen(snapshot) => {
                assert_eq!(frame.offset, snapshot.offset);
                self.at = frame.offset;
            }
            FrameKind::Exit(exit) => {
                assert_eq!(exit.final_offset, self.at, "exit comes after the last byte");
                self.exit = Some(exit);
            }
            _ => assert!(frame.offset >= self.at, "frames come in order"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Reads until the terminal has ended.
async fn read_all(mut attachment: Attachment) -> ReceivedOutput {
    let mut log = ReceivedOutput::default();
    while let Some(frame) = next_frame(&mut attachment).await {
        log.take(frame);
    }
    log
}

/// Reads until the output contains `text`.
async fn read_until(attachment: &mut Attachment, log: &mut ReceivedOutput, text: &str) {
    while !log.text().contains(text) {
        let frame = next_frame(attachment).await.unwrap_or_else(|| panic!("{text:?} in {:?}", log.text()));
        log.take(frame);
    }
}
