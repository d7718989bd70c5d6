//! One terminal on our screen until it ends or is left, over as many links as it takes.
//!
//! A broken link costs nothing: output goes on at the byte behind the last one taken, input at the byte the agent expects. What
//! comes is in `incoming`, what goes in `outgoing`, sleep in `sleep_overlay`.

mod incoming;
mod outgoing;
mod sleep_overlay;

use std::{
    io,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt as _;
use podling_proto::{
    agent::v1::{Exit, InputKind, Size},
    control::v1::Workspace,
    token,
};
use prost_types::Timestamp;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

use self::sleep_overlay::{SleepOverlay, WorkspaceLookup};
use super::{
    classify::{ClassifiedInput, InputClass, InputClassifier},
    connection::TerminalConnection,
    display::ScreenWriter,
    key::DetachKey,
    notifications::{self, Notification},
    outbox::InputOutbox,
    raw::{self, RawMode},
};
use crate::{
    client::Client,
    failure::CommandFailure,
    run::input::TerminationSignals,
    stdio::{AsyncStdio, READ_BYTES},
};

/// A sequence that has begun on stdin and does not go on within this was typed.
const SEQUENCE_TIMEOUT: Duration = Duration::from_millis(50);
/// A link that is back sooner than this is not worth a word.
const NOTICE_DELAY: Duration = Duration::from_secs(1);
/// How long to wait at detach until the last keystrokes are acknowledged.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the time that is left until sleep is told anew.
const WARNING_INTERVAL: Duration = Duration::from_secs(5);
/// Random bytes of a client id.
const CLIENT_ID_BYTES: usize = 12;

/// How a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// The program has.
    Exited(Exit),
    /// The person has left; it goes on.
    Detached {
        /// Bytes of input that nobody acknowledged: the link was broken.
        unsent: usize,
    },
    /// The person has left a workspace that sleeps.
    LeftAsleep,
    /// A signal has ended us; it goes on.
    Signal(&'static str),
}

/// A session.
pub struct AttachSession {
    client: Client,
    workspace: Workspace,
    terminal_id: String,
    from_oldest: bool,
    client_id: String,
    stdin: AsyncStdio,
    screen: ScreenWriter,
    connection: TerminalConnection,
    outbox: InputOutbox,
    classifier: InputClassifier,
    /// When a sequence held back is taken as typed.
    flush_at: Instant,
    /// Input was refused for now: when it is sent again, unless the agent takes some before.
    resend_at: Option<Instant>,
    acked: u64,
    /// A size to be told.
    resize: Option<Size>,
    /// Whether a stream was ever open: what is an error at first may be a restart later.
    has_started: bool,
    leaving: Option<(SessionEnd, Instant)>,
    key: DetachKey,
    notifications: notifications::NotificationStream,
    /// When the workspace sleeps unless it is used.
    warning: Option<Timestamp>,
    /// How it fares on its way back.
    wake_status: String,
    sleep_overlay: SleepOverlay,
    lookup: WorkspaceLookup,
}

impl AttachSession {
    /// A session with this terminal; our own is in raw mode until it is over. A terminal that is `fresh` is shown from its first
    /// byte, another one by a picture.
    pub fn new(
        client: Client,
        workspace: Workspace,
        terminal_id: String,
        from_oldest: bool,
        key: DetachKey,
    ) -> Result<Self, CommandFailure> {
        let own = || CommandFailure::io("cannot use this terminal");
        let (stdin, stdout) = (AsyncStdio::stdin().map_err(own())?, AsyncStdio::stdout().map_err(own())?);
        let screen = ScreenWriter::new(stdout, RawMode::enter().map_err(own())?);
        let workspace_client = client.workspace_client_for(&workspace);
        Ok(Self {
            client,
            workspace,
            terminal_id,
            from_oldest,
            client_id: token::random(CLIENT_ID_BYTES),
            stdin,
            screen,
            connection: TerminalConnection::new(workspace_client),
            outbox: InputOutbox::default(),
            classifier: InputClassifier::new(key.0),
            flush_at: Instant::now(),
            resend_at: None,
            acked: 0,
            // Whoever comes looks at it from now on.
            resize: raw::size(),
            has_started: false,
            leaving: None,
            key,
            notifications: notifications::none(),
            warning: None,
            wake_status: String::new(),
            sleep_overlay: SleepOverlay::Awake,
            lookup: Box::pin(std::future::pending()),
        })
    }

    /// To its end.
    pub async fn run(mut self, mut signals: TerminationSignals) -> Result<SessionEnd, CommandFailure> {
        let own = || CommandFailure::io("cannot use this terminal");
        let mut resized = signal(SignalKind::window_change()).map_err(own())?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Some(end) = self.take_finished_end() {
                self.screen.set_notice(None);
                self.screen.draw_notice(raw::size());
                return Ok(end);
            }
            self.screen.set_notice(self.notice());
            self.screen.draw_notice(raw::size());
            let reads = self.outbox.has_capacity() && self.leaving.is_none();
            let takes = self.screen.has_capacity();
            let sends = self.has_request();
            let wake_at = self.wake_at();
            let room = self.connection.send_permit();
            tokio::select! {
                biased;
                name = signals.next() => return Ok(SessionEnd::Signal(name)),
                written = self.screen.write() => written.map_err(own())?,
                count = self.stdin.read(&mut buffer), if reads => self.handle_stdin(&buffer[..count.map_err(own())?]),
                permit = room, if sends => { permit.send(self.next_request()); }
                event = self.connection.next(), if takes => self.handle_event(event)?,
                seen = &mut self.lookup => self.finish_lookup(seen)?,
                Some(notification) = self.notifications.next() => self.handle_notification(notification),
                () = changed(&mut resized) => self.resize = raw::size(),
                () = sleep_until(wake_at) => self.handle_timer(),
            }
        }
    }

    /// Whether there is nothing left to do.
    fn take_finished_end(&mut self) -> Option<SessionEnd> {
        let (end, deadline) = self.leaving.as_ref()?;
        let done = match end {
            // All of its output is to be seen first.
            SessionEnd::Exited(_) => !self.screen.is_behind(),
            SessionEnd::Detached { .. } | SessionEnd::LeftAsleep | SessionEnd::Signal(_) => {
                self.outbox.is_empty() || *deadline <= Instant::now()
            }
        };
        if !done {
            return None;
        }
        self.leaving.take().map(|(end, _)| match end {
            SessionEnd::Detached { .. } => SessionEnd::Detached { unsent: self.outbox.len() },
            end => end,
        })
    }

    fn leave(&mut self, end: SessionEnd) {
        self.leaving.get_or_insert((end, Instant::now() + DETACH_TIMEOUT));
    }

    // What a person does.

    fn handle_stdin(&mut self, data: &[u8]) {
        if data.is_empty() {
            // Our terminal is gone.
            return self.leave(SessionEnd::Signal("HUP"));
        }
        for piece in self.classifier.feed(data) {
            self.handle_input(piece);
        }
        self.flush_at = Instant::now() + SEQUENCE_TIMEOUT;
    }

    fn handle_input(&mut self, (kind, data): ClassifiedInput) {
        match (kind, &self.sleep_overlay) {
            _ if self.leaving.is_some() => {}
            (_, SleepOverlay::Asleep | SleepOverlay::Waking(_)) => self.handle_input_asleep(&(kind, data)),
            (InputClass::User, _) => {
                // Whoever types uses it; the agent says so as well, a moment later.
                self.warning = None;
                self.outbox.push(data, InputKind::User, 0);
            }
            (InputClass::Reply, _) => self.outbox.push(data, InputKind::Reply, self.screen.written()),
            (InputClass::Detach, _) => self.leave(SessionEnd::Detached { unsent: 0 }),
        }
    }

    /// When something is due although nothing comes.
    fn wake_at(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let flush = self.classifier.is_holding().then_some(self.flush_at);
        let leave = self.leaving.as_ref().map(|(_, at)| *at);
        let notice_at =
            self.connection.lost_since().map(|since| since + NOTICE_DELAY).filter(|at| *at > Instant::now());
        let warn = self.warning.map(|_| Instant::now() + WARNING_INTERVAL);
        [flush, self.resend_at, leave, notice_at, warn].into_iter().flatten().min().unwrap_or(far)
    }

    fn handle_timer(&mut self) {
        let now = Instant::now();
        if self.classifier.is_holding() && self.flush_at <= now {
            self.classifier.flush().into_iter().for_each(|piece| self.handle_input(piece));
        }
        self.resend_at.take_if(|at| *at <= now);
    }

    fn handle_notification(&mut self, notification: Notification) {
        match notification {
            Notification::SleepsAt(at) => self.warning = at,
            Notification::Status(doing) => self.wake_status = doing,
        }
    }

    /// What is worth a corner of the screen.
    fn notice(&self) -> Option<String> {
        let is_lost = self.connection.lost_since().is_some_and(|since| since.elapsed() >= NOTICE_DELAY);
        match (&self.sleep_overlay, self.warning) {
            (SleepOverlay::Waking(_), _) => {
                Some(format!("waking … {}", self.wake_status).trim_end().to_owned())
            }
            _ if is_lost => Some("link lost, trying again …".to_owned()),
            (_, Some(at)) => Some(notifications::warning_text(&self.workspace.name, at, SystemTime::now())),
            _ => None,
        }
    }
}

impl std::fmt::Debug for AttachSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttachSession").field("sleep_overlay", &self.sleep_overlay).finish_non_exhaustive()
    }
}

async fn changed(size: &mut Signal) {
    if size.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Whether our own standard input is a terminal.
pub fn is_terminal() -> bool {
    use io::IsTerminal as _;
    io::stdin().is_terminal()
}
