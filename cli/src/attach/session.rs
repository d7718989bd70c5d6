//! Keeps one terminal attached until its program exits or the user detaches, across any number of
//! connections.
//!
//! After a broken connection, output resumes behind the last byte received, and input at the offset
//! that the agent expects. `incoming` handles responses, `outgoing` builds requests, and
//! `sleep_overlay` handles a workspace that falls asleep.

mod incoming;
mod outgoing;
mod sleep_overlay;

use std::{
    io,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt as _;
use podling_proto::{
    agent::v1::{Exit, InputKind, Size, SleepWarning},
    control::v1::Workspace,
    token,
};
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
    signal::TerminationSignals,
    stdio::{AsyncStdio, READ_BYTES},
};

/// Time after which an incomplete escape sequence on stdin counts as typed.
const SEQUENCE_TIMEOUT: Duration = Duration::from_millis(50);
/// How long a connection is lost before the user is notified.
const NOTICE_DELAY: Duration = Duration::from_secs(1);
/// How long detaching waits until the agent has acknowledged the last keystrokes.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval at which the countdown to sleep is redrawn.
const WARNING_INTERVAL: Duration = Duration::from_secs(5);
/// How long the failure of the workspace's command is shown.
const COMMAND_FAILURE_SHOWN: Duration = Duration::from_secs(10);
/// Number of random bytes in a client id.
const CLIENT_ID_BYTES: usize = 12;

#[derive(Debug)]
pub enum AttachEnd {
    /// The program in the terminal has exited.
    Exited(Exit),
    /// The user detached. The program continues.
    Detached {
        /// Bytes of input without an acknowledgement, because the connection was broken.
        unsent: usize,
    },
    /// The user left while the workspace was asleep.
    LeftAsleep,
    /// A signal (name without SIG) ends the client. The program continues.
    Signal(&'static str),
}

/// State of an attached terminal. One task owns it.
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
    /// When an incomplete sequence on stdin counts as typed.
    flush_at: Instant,
    /// When input that the agent rejected for now is sent again. `None` once the agent accepts
    /// input.
    resend_at: Option<Instant>,
    acked: u64,
    /// New size of the local terminal that was not sent to the agent yet.
    resize: Option<Size>,
    /// Whether a stream has ever started. Before that, a missing terminal is a user's error. After
    /// that, it means that the agent was restarted.
    has_started: bool,
    leaving: Option<(AttachEnd, Instant)>,
    key: DetachKey,
    notifications: notifications::NotificationStream,
    /// When and why the workspace falls asleep.
    warning: Option<SleepWarning>,
    /// The last failure of the workspace's command, and the time until which it is shown.
    command_failure: Option<(String, Instant)>,
    /// State of the waking workspace, as text.
    wake_status: String,
    sleep_overlay: SleepOverlay,
    lookup: WorkspaceLookup,
}

impl AttachSession {
    /// Creates a session and puts the local terminal into raw mode until the session ends.
    /// `from_oldest` shows the terminal from its first byte instead of a screen snapshot.
    pub fn new(
        client: Client,
        workspace: Workspace,
        terminal_id: String,
        from_oldest: bool,
        key: DetachKey,
    ) -> Result<Self, CommandFailure> {
        let terminal_error = || CommandFailure::io("cannot use this terminal");
        let (stdin, stdout) =
            (AsyncStdio::stdin().map_err(terminal_error())?, AsyncStdio::stdout().map_err(terminal_error())?);
        let screen = ScreenWriter::new(stdout, RawMode::enter().map_err(terminal_error())?);
        let workspace_client = client.workspace_client_for(&workspace);
        // The caller has shown this failure already.
        let command_failure = workspace
            .activity
            .as_ref()
            .and_then(|activity| Some((notifications::command_failure(activity)?, Instant::now())));
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
            // Attaching claims the terminal's size.
            resize: raw::size(),
            has_started: false,
            leaving: None,
            key,
            notifications: notifications::none(),
            warning: None,
            command_failure,
            wake_status: String::new(),
            sleep_overlay: SleepOverlay::Awake,
            lookup: Box::pin(std::future::pending()),
        })
    }

    /// Runs the session to its end.
    pub async fn run(mut self, mut signals: TerminationSignals) -> Result<AttachEnd, CommandFailure> {
        let terminal_error = || CommandFailure::io("cannot use this terminal");
        let mut resized = signal(SignalKind::window_change()).map_err(terminal_error())?;
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
            let send_permit = self.connection.send_permit();
            tokio::select! {
                biased;
                name = signals.next() => return Ok(AttachEnd::Signal(name)),
                written = self.screen.write() => written.map_err(terminal_error())?,
                count = self.stdin.read(&mut buffer), if reads => {
                    self.handle_stdin(&buffer[..count.map_err(terminal_error())?]);
                }
                permit = send_permit, if sends => { permit.send(self.next_request()); }
                event = self.connection.next(), if takes => self.handle_event(event)?,
                seen = &mut self.lookup => self.finish_lookup(seen)?,
                Some(notification) = self.notifications.next() => self.handle_notification(notification),
                () = changed(&mut resized) => self.resize = raw::size(),
                () = sleep_until(wake_at) => self.handle_timer(),
            }
        }
    }

    /// Returns how the session ended, once its last output is written or its last input is
    /// acknowledged.
    fn take_finished_end(&mut self) -> Option<AttachEnd> {
        let (end, deadline) = self.leaving.as_ref()?;
        let done = match end {
            // All output is shown before the session ends.
            AttachEnd::Exited(_) => !self.screen.is_behind(),
            AttachEnd::Detached { .. } | AttachEnd::LeftAsleep | AttachEnd::Signal(_) => {
                self.outbox.is_empty() || *deadline <= Instant::now()
            }
        };
        if !done {
            return None;
        }
        self.leaving.take().map(|(end, _)| match end {
            AttachEnd::Detached { .. } => AttachEnd::Detached { unsent: self.outbox.len() },
            end => end,
        })
    }

    fn leave(&mut self, end: AttachEnd) {
        self.leaving.get_or_insert((end, Instant::now() + DETACH_TIMEOUT));
    }

    // Input.

    fn handle_stdin(&mut self, data: &[u8]) {
        if data.is_empty() {
            // The local terminal is gone.
            return self.leave(AttachEnd::Signal("HUP"));
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
                // Typing keeps the workspace awake, so the warning is withdrawn before the agent
                // does so.
                self.warning = None;
                self.outbox.push(data, InputKind::User, 0);
            }
            (InputClass::Reply, _) => self.outbox.push(data, InputKind::Reply, self.screen.written()),
            (InputClass::Detach, _) => self.leave(AttachEnd::Detached { unsent: 0 }),
        }
    }

    /// Returns when the next timer is due.
    fn wake_at(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let flush = self.classifier.is_holding().then_some(self.flush_at);
        let leave = self.leaving.as_ref().map(|(_, at)| *at);
        let notice_at =
            self.connection.lost_since().map(|since| since + NOTICE_DELAY).filter(|at| *at > Instant::now());
        let warn = self.warning.as_ref().map(|_| Instant::now() + WARNING_INTERVAL);
        let failure =
            self.command_failure.as_ref().map(|(_, until)| *until).filter(|until| *until > Instant::now());
        [flush, self.resend_at, leave, notice_at, warn, failure].into_iter().flatten().min().unwrap_or(far)
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
            Notification::Activity { sleep_warning, command_failure } => {
                self.warning = sleep_warning;
                match command_failure {
                    Some(failure)
                        if self.command_failure.as_ref().is_some_and(|(known, _)| *known == failure) => {}
                    failure => {
                        let until = Instant::now() + COMMAND_FAILURE_SHOWN;
                        self.command_failure = failure.map(|failure| (failure, until));
                    }
                }
            }
            Notification::Status(doing) => self.wake_status = doing,
        }
    }

    /// Returns the notice for the corner of the screen.
    fn notice(&self) -> Option<String> {
        let is_lost = self.connection.lost_since().is_some_and(|since| since.elapsed() >= NOTICE_DELAY);
        match (&self.sleep_overlay, &self.warning) {
            (SleepOverlay::Waking(_), _) => {
                Some(format!("waking … {}", self.wake_status).trim_end().to_owned())
            }
            _ if is_lost => Some("connection lost, reconnecting …".to_owned()),
            (_, Some(warning)) => {
                Some(notifications::warning_text(&self.workspace.name, warning, SystemTime::now()))
            }
            _ => {
                let shown = self.command_failure.as_ref().filter(|(_, until)| *until > Instant::now());
                shown.map(|(failure, _)| failure.clone())
            }
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

/// Returns whether standard input is a terminal.
pub fn is_terminal() -> bool {
    use io::IsTerminal as _;
    io::stdin().is_terminal()
}
