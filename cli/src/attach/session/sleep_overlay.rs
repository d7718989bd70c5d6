//! The workspace falls asleep under a session: that is said, input meant for what ended goes nowhere, and only somebody's key wakes
//! it. Nothing that is repeated by itself does.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use podling_proto::{
    agent::v1::Exit,
    control::v1::{State, Workspace},
};
use tokio::time::timeout;

use super::{AttachEnd, AttachSession};
use crate::{
    attach::{
        classify::{ClassifiedInput, InputClass},
        key::DetachKey,
        notifications, raw,
    },
    client::Client,
    failure::CommandFailure,
    output::plain,
};

/// How long the control plane may take to say how the workspace is; after that the terminal's end is taken for what it seems.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// Leaves a terminal that sleeps, beside the detach key: nothing is there that it could interrupt.
const CTRL_C: u8 = 3;

/// What the control plane says of the workspace; `None`: nothing, in time.
pub(super) type WorkspaceLookup = LocalBoxFuture<'static, Option<Result<Workspace, CommandFailure>>>;

/// Whether the workspace sleeps under us.
#[derive(Debug)]
pub(super) enum SleepOverlay {
    /// It does not.
    Awake,
    /// Its terminal ended like this, or its stream did; why is being asked.
    Checking(Option<Exit>),
    /// It does.
    Asleep,
    /// Somebody pressed a key. So many bytes that were typed since were dropped.
    Waking(usize),
}

impl SleepOverlay {
    /// Whether somebody asks for the workspace just now, so that a stream may wake it: who attaches (nothing has started), and who
    /// presses a key. A link that broke asks for nothing.
    pub(super) fn may_wake(&self, has_started: bool) -> bool {
        match self {
            Self::Waking(_) => true,
            Self::Awake | Self::Checking(_) | Self::Asleep => !has_started,
        }
    }
}

/// What a key means to a workspace that sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyAction {
    Wake,
    Leave,
    Nothing,
}

/// Asks how the workspace is.
pub(super) fn look_up(client: &Client, id: &str) -> WorkspaceLookup {
    let (client, id) = (client.clone(), id.to_owned());
    Box::pin(async move { timeout(LOOK_TIMEOUT, client.find(&id)).await.ok() })
}

impl AttachSession {
    /// The stream or the terminal ended: the workspace may be asleep, and then it is only put by.
    pub(super) fn start_lookup(&mut self, exit: Option<Exit>) {
        self.outbox.pause();
        self.connection.park();
        self.sleep_overlay = SleepOverlay::Checking(exit);
        self.lookup = look_up(&self.client, &self.workspace.id);
    }

    /// The control plane has said how the workspace is, or has not.
    pub(super) fn finish_lookup(
        &mut self,
        seen: Option<Result<Workspace, CommandFailure>>,
    ) -> Result<(), CommandFailure> {
        self.lookup = Box::pin(std::future::pending());
        let SleepOverlay::Checking(exit) = std::mem::replace(&mut self.sleep_overlay, SleepOverlay::Awake)
        else {
            return Ok(());
        };
        match (seen, exit) {
            (Some(Ok(workspace)), _) if sleeps(&workspace) => self.fall_asleep(&workspace),
            (_, Some(exit)) => self.leave(AttachEnd::Exited(exit)),
            (Some(Err(failure)), None) => return Err(failure),
            // It is on its way up again, or nobody knows.
            (Some(Ok(_)) | None, None) => self.connection.retry(),
        }
        Ok(())
    }

    fn fall_asleep(&mut self, workspace: &Workspace) {
        let dropped = self.outbox.discard();
        self.resend_at = None;
        self.warning = None;
        self.notifications = notifications::none();
        self.sleep_overlay = SleepOverlay::Asleep;
        self.screen.message(&asleep_message(workspace, dropped, &self.key));
    }

    /// Takes what was typed at a workspace that sleeps or wakes: nothing of it is meant for the shell that is to come.
    pub(super) fn handle_input_asleep(&mut self, piece: &ClassifiedInput) {
        match (key_action(piece), &mut self.sleep_overlay) {
            (KeyAction::Leave, _) => self.leave(AttachEnd::LeftAsleep),
            (KeyAction::Wake, SleepOverlay::Waking(dropped)) => *dropped += piece.1.len(),
            (KeyAction::Wake, SleepOverlay::Asleep) => {
                self.sleep_overlay = SleepOverlay::Waking(0);
                self.notifications = notifications::wake_progress(&self.client, &self.workspace.id);
                // The shell before it is gone for good: what is left of it comes as a picture.
                self.screen.reset_position();
                self.from_oldest = false;
                self.open(true);
            }
            (KeyAction::Wake | KeyAction::Nothing, _) => {}
        }
    }

    /// The terminal is there again after somebody woke it.
    pub(super) fn report_awake(&mut self, dropped: usize) {
        let name = &self.workspace.name;
        let typed = match dropped {
            0 => String::new(),
            n => format!("; the {n} bytes typed meanwhile went nowhere"),
        };
        self.screen.message(&format!("{name} is awake again{typed}"));
        self.resize = raw::size();
    }
}

/// Whether it rests, or is about to, so that only somebody's wish brings it back.
fn sleeps(workspace: &Workspace) -> bool {
    match workspace.state() {
        State::FallingAsleep | State::Asleep | State::Archiving | State::Archived => !workspace.deleted,
        State::Unspecified
        | State::Queued
        | State::Starting
        | State::Awake
        | State::Deleting
        | State::Failed => false,
    }
}

fn key_action((kind, data): &ClassifiedInput) -> KeyAction {
    match kind {
        // An emulator's own words, also that its window has the focus, are nobody's wish.
        InputClass::Reply => KeyAction::Nothing,
        InputClass::Detach => KeyAction::Leave,
        InputClass::User if data.contains(&CTRL_C) => KeyAction::Leave,
        InputClass::User => KeyAction::Wake,
    }
}

fn asleep_message(workspace: &Workspace, dropped: usize, key: &DetachKey) -> String {
    let what = match workspace.state() {
        State::FallingAsleep => "falls asleep",
        State::Archiving | State::Archived => "fell asleep and is archived",
        _ => "fell asleep",
    };
    let typed = match dropped {
        0 => String::new(),
        n => format!(" The last {n} bytes typed were not taken and go nowhere."),
    };
    let leave = match key.0 {
        Some(_) => format!("{key} or Ctrl-C"),
        None => "Ctrl-C".to_owned(),
    };
    let why = workspace
        .reason
        .as_ref()
        .map(|reason| format!(": {}", plain(&podling_proto::text::state_reason(reason))));
    let why = why.unwrap_or_default();
    format!("{} {what}{why}.{typed} Press a key to wake it, {leave} to leave", workspace.name)
}

#[cfg(test)]
mod tests {
    use podling_proto::control::v1::{StateReason, StateReasonCode};

    use super::*;

    fn at(state: State) -> Workspace {
        let reason = Some(StateReason { code: StateReasonCode::Idle.into(), ..StateReason::default() });
        let name = "demo".to_owned();
        Workspace { name, reason, state: state.into(), ..Workspace::default() }
    }

    #[test]
    fn one_clear_line_says_that_it_sleeps_what_was_lost_and_what_to_do() {
        let key: DetachKey = "ctrl-]".parse().expect("a key");
        assert_eq!(
            asleep_message(&at(State::Asleep), 0, &key),
            "demo fell asleep: idle for its whole timeout. Press a key to wake it, Ctrl-] or Ctrl-C to leave"
        );
        let said = asleep_message(&at(State::FallingAsleep), 12, &DetachKey(None));
        assert_eq!(
            said,
            "demo falls asleep: idle for its whole timeout. The last 12 bytes typed were not taken and go nowhere. Press a key \
             to wake it, Ctrl-C to leave"
        );
    }

    #[test]
    fn what_is_tried_again_by_itself_wakes_nothing() {
        assert!(SleepOverlay::Awake.may_wake(false), "who attaches wakes it");
        assert!(
            !SleepOverlay::Awake.may_wake(true)
                && !SleepOverlay::Asleep.may_wake(true)
                && !SleepOverlay::Checking(None).may_wake(true)
        );
        assert!(SleepOverlay::Waking(0).may_wake(true), "and who presses a key");
    }

    #[test]
    fn only_a_key_wakes() {
        let piece = |kind, data: &[u8]| (kind, data.to_vec());
        assert_eq!(key_action(&piece(InputClass::User, b"l")), KeyAction::Wake);
        assert_eq!(key_action(&piece(InputClass::User, b"\x1b[A")), KeyAction::Wake);
        assert_eq!(
            key_action(&piece(InputClass::Reply, b"\x1b[I")),
            KeyAction::Nothing,
            "a window that gets the focus"
        );
        assert_eq!(key_action(&piece(InputClass::User, b"\x03")), KeyAction::Leave);
        assert_eq!(key_action(&piece(InputClass::Detach, b"\x1d")), KeyAction::Leave);
    }

    #[test]
    fn a_terminal_that_ends_in_a_workspace_that_serves_has_ended() {
        for state in [State::FallingAsleep, State::Asleep, State::Archiving, State::Archived] {
            assert!(sleeps(&at(state)), "{state:?}");
        }
        for state in [State::Awake, State::Queued, State::Starting, State::Failed, State::Deleting] {
            assert!(!sleeps(&at(state)), "{state:?}");
        }
        assert!(!sleeps(&Workspace { deleted: true, ..at(State::Archived) }), "there is nothing to wake");
    }
}
