//! The workspace falls asleep under a session: that is said, input meant for what ended goes nowhere, and only somebody's key wakes
//! it. Nothing that is repeated by itself does.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use podling_proto::{
    agent::v1::Exit,
    control::v1::{State, Workspace},
};
use tokio::time::timeout;

use super::{End, Session};
use crate::{
    attach::{
        classify::{Kind, Piece},
        key::DetachKey,
        news, raw,
    },
    client::Client,
    failure::Failure,
    output::plain,
};

/// How long the control plane may take to say how the workspace is; after that the terminal's end is taken for what it seems.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// Leaves a terminal that sleeps, beside the detach key: nothing is there that it could interrupt.
const CTRL_C: u8 = 3;

/// What the control plane says of the workspace; `None`: nothing, in time.
pub(super) type Look = LocalBoxFuture<'static, Option<Result<Workspace, Failure>>>;

/// Whether the workspace sleeps under us.
#[derive(Debug)]
pub(super) enum Slumber {
    /// It does not.
    Up,
    /// Its terminal ended like this, or its stream did; why is being asked.
    Looking(Option<Exit>),
    /// It does.
    Asleep,
    /// Somebody pressed a key. So many bytes that were typed since were dropped.
    Waking(usize),
}

impl Slumber {
    /// Whether somebody asks for the workspace just now, so that a stream may wake it: who attaches (nothing has `begun`), and who
    /// presses a key. A link that broke asks for nothing.
    pub(super) fn asks(&self, begun: bool) -> bool {
        match self {
            Self::Waking(_) => true,
            Self::Up | Self::Looking(_) | Self::Asleep => !begun,
        }
    }
}

/// What a key means to a workspace that sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    Wake,
    Leave,
    Nothing,
}

/// Asks how the workspace is.
pub(super) fn look(client: &Client, id: &str) -> Look {
    let (client, id) = (client.clone(), id.to_owned());
    Box::pin(async move { timeout(LOOK_TIMEOUT, client.find(&id)).await.ok() })
}

impl Session {
    /// The stream or the terminal ended: the workspace may be asleep, and then it is only put by.
    pub(super) fn look(&mut self, exit: Option<Exit>) {
        self.outbox.pause();
        self.link.park();
        self.slumber = Slumber::Looking(exit);
        self.looking = look(&self.client, &self.workspace.id);
    }

    /// The control plane has said how the workspace is, or has not.
    pub(super) fn looked(&mut self, seen: Option<Result<Workspace, Failure>>) -> Result<(), Failure> {
        self.looking = Box::pin(std::future::pending());
        let Slumber::Looking(exit) = std::mem::replace(&mut self.slumber, Slumber::Up) else { return Ok(()) };
        match (seen, exit) {
            (Some(Ok(workspace)), _) if sleeps(&workspace) => self.fall_asleep(&workspace),
            (_, Some(exit)) => self.leave(End::Exited(exit)),
            (Some(Err(failure)), None) => return Err(failure),
            // It is on its way up again, or nobody knows.
            (Some(Ok(_)) | None, None) => self.link.retry(),
        }
        Ok(())
    }

    fn fall_asleep(&mut self, workspace: &Workspace) {
        let dropped = self.outbox.discard();
        self.resend_at = None;
        self.warning = None;
        self.news = news::none();
        self.slumber = Slumber::Asleep;
        self.display.say(&said_asleep(workspace, dropped, &self.key));
    }

    /// Takes what was typed at a workspace that sleeps or wakes: nothing of it is meant for the shell that is to come.
    pub(super) fn take_asleep(&mut self, piece: &Piece) {
        match (meant(piece), &mut self.slumber) {
            (Meant::Leave, _) => self.leave(End::LeftAsleep),
            (Meant::Wake, Slumber::Waking(dropped)) => *dropped += piece.1.len(),
            (Meant::Wake, Slumber::Asleep) => {
                self.slumber = Slumber::Waking(0);
                self.news = news::journey(&self.client, &self.workspace.id);
                // The shell before it is gone for good: what is left of it comes as a picture.
                self.display.forget();
                self.fresh = false;
                self.open(true);
            }
            (Meant::Wake | Meant::Nothing, _) => {}
        }
    }

    /// The terminal is there again after somebody woke it.
    pub(super) fn woke(&mut self, dropped: usize) {
        let name = &self.workspace.name;
        let typed = match dropped {
            0 => String::new(),
            n => format!("; the {n} bytes typed meanwhile went nowhere"),
        };
        self.display.say(&format!("{name} is awake again{typed}"));
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

fn meant((kind, data): &Piece) -> Meant {
    match kind {
        // An emulator's own words, also that its window has the focus, are nobody's wish.
        Kind::Reply => Meant::Nothing,
        Kind::Detach => Meant::Leave,
        Kind::User if data.contains(&CTRL_C) => Meant::Leave,
        Kind::User => Meant::Wake,
    }
}

fn said_asleep(workspace: &Workspace, dropped: usize, key: &DetachKey) -> String {
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
    let why = match plain(&workspace.reason) {
        why if why.is_empty() => String::new(),
        why => format!(": {why}"),
    };
    format!("{} {what}{why}.{typed} Press a key to wake it, {leave} to leave", workspace.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(state: State) -> Workspace {
        let (name, reason) = ("demo".to_owned(), "it is not used".to_owned());
        Workspace { name, reason, state: state.into(), ..Workspace::default() }
    }

    #[test]
    fn one_clear_line_says_that_it_sleeps_what_was_lost_and_what_to_do() {
        let key: DetachKey = "ctrl-]".parse().expect("a key");
        assert_eq!(
            said_asleep(&at(State::Asleep), 0, &key),
            "demo fell asleep: it is not used. Press a key to wake it, Ctrl-] or Ctrl-C to leave"
        );
        let said = said_asleep(&at(State::FallingAsleep), 12, &DetachKey(None));
        assert_eq!(
            said,
            "demo falls asleep: it is not used. The last 12 bytes typed were not taken and go nowhere. Press a key \
             to wake it, Ctrl-C to leave"
        );
    }

    #[test]
    fn what_is_tried_again_by_itself_wakes_nothing() {
        assert!(Slumber::Up.asks(false), "who attaches wakes it");
        assert!(!Slumber::Up.asks(true) && !Slumber::Asleep.asks(true) && !Slumber::Looking(None).asks(true));
        assert!(Slumber::Waking(0).asks(true), "and who presses a key");
    }

    #[test]
    fn only_a_key_wakes() {
        let piece = |kind, data: &[u8]| (kind, data.to_vec());
        assert_eq!(meant(&piece(Kind::User, b"l")), Meant::Wake);
        assert_eq!(meant(&piece(Kind::User, b"\x1b[A")), Meant::Wake);
        assert_eq!(meant(&piece(Kind::Reply, b"\x1b[I")), Meant::Nothing, "a window that gets the focus");
        assert_eq!(meant(&piece(Kind::User, b"\x03")), Meant::Leave);
        assert_eq!(meant(&piece(Kind::Detach, b"\x1d")), Meant::Leave);
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
