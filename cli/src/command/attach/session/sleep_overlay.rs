//! Handles a workspace that falls asleep during a session. The session notifies the user, discards
//! input for the ended programs, and wakes the workspace only when the user presses a key.
//! Automatic retries never wake the workspace.

use std::{future::pending, mem, time::Duration};

use futures_util::future::LocalBoxFuture;
use podling_proto::{
    agent::v1::Exit,
    control::v1::{State, Workspace},
};
use tokio::time::timeout;

use super::{AttachEnd, AttachSession};
use crate::{
    advice,
    client::Client,
    command::attach::{
        keyboard::{ClassifiedInput, DetachKey, InputClass, KeyEvent},
        screen,
    },
    failure::{CommandFailure, NOT_FOUND},
    output::plain,
    workspace_watcher::WorkspaceWatcher,
};

/// Longest wait for the control plane to report the workspace's state. After that the end of the
/// terminal counts as an ordinary exit.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Ctrl-C leaves the session while the workspace is asleep, because there is no program to
/// interrupt.
const CTRL_C: u8 = 3;

/// Pending lookup of the workspace. Yields `None` if the control plane does not answer in time.
type WorkspaceLookup = LocalBoxFuture<'static, Option<Result<Workspace, CommandFailure>>>;

/// Whether the workspace of this session is asleep.
pub(super) enum SleepOverlay {
    Awake,
    /// The workspace is being looked up, because the terminal ended with this exit, or because the
    /// stream ended (`None`).
    Checking(Option<Exit>, WorkspaceLookup),
    /// The workspace is asleep. The lookup yields it once it is deleted.
    Asleep(WorkspaceLookup),
    /// A key press requested a wake. Holds the number of bytes typed and discarded since.
    Waking(usize),
}

impl SleepOverlay {
    /// Returns whether a new stream may wake the workspace. The first stream may, and a stream
    /// after a key press. An automatic reconnect may not.
    pub(super) fn may_wake(&self, has_started: bool) -> bool {
        matches!(self, Self::Waking(_)) || !has_started
    }

    /// Waits for the lookup, after which [`AttachSession::finish_lookup`] must be called. Cancel-safe.
    pub(super) async fn looked_up(&mut self) -> Option<Result<Workspace, CommandFailure>> {
        match self {
            Self::Checking(_, lookup) | Self::Asleep(lookup) => lookup.await,
            Self::Awake | Self::Waking(_) => pending().await,
        }
    }
}

/// Effect of input on a sleeping session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyAction {
    Wake,
    Leave,
    Nothing,
}

/// Starts a lookup of the workspace.
fn look_up(client: &Client, id: &str) -> WorkspaceLookup {
    let (client, id) = (client.clone(), id.to_owned());
    Box::pin(async move { timeout(LOOKUP_TIMEOUT, client.find(&id)).await.ok() })
}

/// Waits until the workspace is being deleted or was deleted, and looks it up then.
fn look_up_deletion(client: &Client, id: &str) -> WorkspaceLookup {
    let watcher = WorkspaceWatcher::new(client.clone(), id.to_owned());
    Box::pin(async move { Some(watcher.until(is_deletion).await) })
}

impl AttachSession {
    /// Looks up the workspace after the stream or the terminal ended, because the workspace may be
    /// asleep.
    pub(super) fn start_lookup(&mut self, exit: Option<Exit>) {
        self.outbox.pause();
        self.connection.park();
        self.sleep_overlay = SleepOverlay::Checking(exit, look_up(&self.client, &self.workspace.id));
    }

    /// Continues after the lookup: shows that the workspace is asleep, ends the session, or
    /// reconnects.
    pub(super) fn finish_lookup(
        &mut self,
        seen: Option<Result<Workspace, CommandFailure>>,
    ) -> Result<(), CommandFailure> {
        // No key wakes such a workspace, so there is nothing to wait for.
        if let Some(Ok(workspace)) = &seen
            && is_deletion(workspace)
        {
            return Err(deletion_failure(workspace));
        }
        let SleepOverlay::Checking(exit, _) = mem::replace(&mut self.sleep_overlay, SleepOverlay::Awake)
        else {
            if matches!(seen, Some(Err(failure)) if failure.exit_code() == NOT_FOUND) {
                return Err(CommandFailure::Unavailable(format!("{} was deleted", self.workspace.name)));
            }
            // The deletion is then noticed when a key wakes the workspace.
            self.sleep_overlay = SleepOverlay::Asleep(Box::pin(pending()));
            return Ok(());
        };
        match (seen, exit) {
            (Some(Ok(workspace)), _) if sleeps(&workspace) => self.fall_asleep(&workspace),
            (_, Some(exit)) => self.leave(AttachEnd::Exited(exit)),
            (Some(Err(failure)), None) => return Err(failure),
            // The workspace is starting, or its state is unknown.
            (Some(Ok(_)) | None, None) => self.connection.retry(),
        }
        Ok(())
    }

    fn fall_asleep(&mut self, workspace: &Workspace) {
        let dropped = self.outbox.discard();
        self.resend_at = None;
        self.notices.stop();
        self.sleep_overlay = SleepOverlay::Asleep(look_up_deletion(&self.client, &self.workspace.id));
        self.screen.message(&asleep_message(workspace, dropped, &self.key));
    }

    /// Handles input while the workspace is asleep or wakes. No such input reaches the next shell.
    pub(super) fn handle_input_asleep(&mut self, piece: &ClassifiedInput) {
        match (key_action(piece), &mut self.sleep_overlay) {
            (KeyAction::Leave, _) => self.leave(AttachEnd::LeftAsleep),
            (KeyAction::Wake, SleepOverlay::Waking(dropped)) => *dropped += piece.1.len(),
            (KeyAction::Wake, SleepOverlay::Asleep(_)) => {
                self.sleep_overlay = SleepOverlay::Waking(0);
                self.notices.watch_wake(&self.client, &self.workspace.id);
                // The old shell has ended, and the new stream begins with a screen snapshot.
                self.screen.reset_position();
                self.from_oldest = false;
                self.open(true);
            }
            (KeyAction::Wake | KeyAction::Nothing, _) => {}
        }
    }

    /// Notifies the user that the terminal is back after a wake. `dropped` is the number of bytes
    /// that were typed meanwhile and discarded.
    pub(super) fn report_awake(&mut self, dropped: usize) {
        let name = &self.workspace.name;
        let typed = match dropped {
            0 => String::new(),
            n => format!("; the {n} bytes typed meanwhile were discarded"),
        };
        self.screen.message(&format!("{name} is awake again{typed}"));
        self.resize = screen::size();
    }
}

/// Returns whether the workspace is being deleted or was deleted.
fn is_deletion(workspace: &Workspace) -> bool {
    workspace.deleting || workspace.deleted
}

/// Returns whether the workspace is asleep or falling asleep, so that only a request wakes it.
fn sleeps(workspace: &Workspace) -> bool {
    match workspace.state() {
        State::FallingAsleep | State::Asleep | State::Archiving | State::Archived => true,
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
        // An emulator's automatic reply, such as a focus report, is not a user's request.
        InputClass::Reply => KeyAction::Nothing,
        InputClass::Detach => KeyAction::Leave,
        InputClass::User => {
            let event = |action: fn(&KeyEvent) -> bool| reported_key(data).as_ref().is_some_and(action);
            if data.contains(&CTRL_C) || event(|key| key.is_control(CTRL_C)) {
                KeyAction::Leave
            } else if event(KeyEvent::is_incidental) {
                KeyAction::Nothing
            } else {
                KeyAction::Wake
            }
        }
    }
}

/// Returns the key that a keyboard protocol reports by this sequence. `None` for other input, also
/// for several keys at once.
fn reported_key(data: &[u8]) -> Option<KeyEvent> {
    let (last, body) = data.strip_prefix(b"\x1b[")?.split_last()?;
    KeyEvent::decode(body, *last)
}

/// Returns the failure that ends the session of a workspace that is being deleted, or was deleted.
fn deletion_failure(workspace: &Workspace) -> CommandFailure {
    let name = &workspace.name;
    CommandFailure::Unavailable(match workspace.deleted {
        true => format!(
            "{name} was deleted; its archive can be restored with: {}",
            advice::command(format_args!("restore {name}"))
        ),
        false => format!(
            "{name} is being deleted, which ended this terminal; take the deletion back with: {}",
            advice::command(format_args!("undelete {name}"))
        ),
    })
}

fn asleep_message(workspace: &Workspace, dropped: usize, key: &DetachKey) -> String {
    let what = match workspace.state() {
        State::FallingAsleep => "is falling asleep",
        State::Archiving | State::Archived => "fell asleep and is archived",
        _ => "fell asleep",
    };
    let typed = match dropped {
        0 => String::new(),
        n => format!(" The last {n} bytes typed were discarded."),
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
    fn asleep_message_names_reason_lost_input_and_keys() {
        let key: DetachKey = "ctrl-]".parse().expect("a key");
        assert_eq!(
            asleep_message(&at(State::Asleep), 0, &key),
            "demo fell asleep: idle for the whole idle timeout. \
             Press a key to wake it, Ctrl-] or Ctrl-C to leave"
        );
        let said = asleep_message(&at(State::FallingAsleep), 12, &DetachKey(None));
        assert_eq!(
            said,
            "demo is falling asleep: idle for the whole idle timeout. \
             The last 12 bytes typed were discarded. Press a key to wake it, Ctrl-C to leave"
        );
    }

    #[test]
    fn automatic_retry_never_wakes() {
        assert!(SleepOverlay::Awake.may_wake(false), "the first attach wakes the workspace");
        assert!(
            !SleepOverlay::Awake.may_wake(true)
                && !SleepOverlay::Asleep(Box::pin(pending())).may_wake(true)
                && !SleepOverlay::Checking(None, Box::pin(pending())).may_wake(true)
        );
        assert!(SleepOverlay::Waking(0).may_wake(true), "a key press wakes the workspace");
    }

    #[test]
    fn only_a_key_press_wakes() {
        let piece = |kind, data: &[u8]| (kind, data.to_vec());
        assert_eq!(key_action(&piece(InputClass::User, b"l")), KeyAction::Wake);
        assert_eq!(key_action(&piece(InputClass::User, b"\x1b[A")), KeyAction::Wake);
        assert_eq!(
            key_action(&piece(InputClass::Reply, b"\x1b[I")),
            KeyAction::Nothing,
            "a focus report of the window"
        );
        assert_eq!(key_action(&piece(InputClass::User, b"\x03")), KeyAction::Leave);
        assert_eq!(key_action(&piece(InputClass::Detach, b"\x1d")), KeyAction::Leave);
        assert_eq!(key_action(&piece(InputClass::User, b"\x1b[99;133u")), KeyAction::Leave, "Ctrl-C");
        assert_eq!(key_action(&piece(InputClass::User, b"\x1b[97;129u")), KeyAction::Wake);
        assert_eq!(key_action(&piece(InputClass::User, b"\x1b[97;1:3u")), KeyAction::Nothing, "a release");
        assert_eq!(
            key_action(&piece(InputClass::User, b"\x1b[57442;5u")),
            KeyAction::Nothing,
            "Control alone"
        );
    }

    #[test]
    fn terminal_end_counts_as_sleep_only_in_sleeping_workspace() {
        for state in [State::FallingAsleep, State::Asleep, State::Archiving, State::Archived] {
            assert!(sleeps(&at(state)), "{state:?}");
        }
        for state in [State::Awake, State::Queued, State::Starting, State::Failed, State::Deleting] {
            assert!(!sleeps(&at(state)), "{state:?}");
        }
        let said = deletion_failure(&Workspace { deleting: true, ..at(State::FallingAsleep) }).to_string();
        assert!(
            said.starts_with("demo is being deleted") && said.ends_with("podling undelete demo"),
            "{said}"
        );
    }
}
