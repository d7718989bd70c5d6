//! Keeps one terminal attached until its program exits or the user detaches, across any number of
//! connections.
//!
//! After a broken connection, output resumes behind the last byte received, and input at the offset
//! that the agent expects. `sleep_overlay` handles a workspace that falls asleep.

mod sleep_overlay;

use std::{io, time::Duration};

use podling_proto::{
    agent::v1::{
        AttachOpen, AttachRequest, AttachResponse, Exit, Frame, From, FromOldest, FromScreen, InputKind,
        InputRejected, Position, Resize, Size, Started, attach_request::Request, attach_response::Response,
        frame, from,
    },
    control::v1::Workspace,
    error::{self, Reason},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};
use tonic::Status;

use self::sleep_overlay::SleepOverlay;
use super::{
    connection::{ConnectionEvent, TerminalConnection},
    keyboard::{ClassifiedInput, DetachKey, InputClass, InputClassifier},
    notifications::SessionNotices,
    outbox::{InputOutbox, StreamStart},
    screen::{self, RawMode, ScreenWriter},
};
use crate::{
    advice,
    backoff::is_retryable,
    client::{Client, request_id},
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
    /// Whether a new size was sent, and nothing was received since. It is lost if the stream failed
    /// to open.
    resize_unconfirmed: bool,
    /// Whether a stream has ever started. Before that, a missing terminal is a user's error. After
    /// that, it means that the agent was restarted.
    has_started: bool,
    leaving: Option<(AttachEnd, Instant)>,
    key: DetachKey,
    notices: SessionNotices,
    sleep_overlay: SleepOverlay,
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
        let (stdin, stdout) = (
            AsyncStdio::reading(io::stdin()).map_err(terminal_error())?,
            AsyncStdio::writing(io::stdout()).map_err(terminal_error())?,
        );
        let screen = ScreenWriter::new(stdout, RawMode::enter().map_err(terminal_error())?);
        let workspace_client = client.workspace_client_for(&workspace);
        let notices = SessionNotices::new(&workspace);
        Ok(Self {
            client,
            workspace,
            terminal_id,
            from_oldest,
            client_id: request_id(),
            stdin,
            screen,
            connection: TerminalConnection::new(workspace_client),
            outbox: InputOutbox::default(),
            classifier: InputClassifier::new(key.0),
            flush_at: Instant::now(),
            resend_at: None,
            acked: 0,
            // Attaching claims the terminal's size.
            resize: screen::size(),
            resize_unconfirmed: false,
            has_started: false,
            leaving: None,
            key,
            notices,
            sleep_overlay: SleepOverlay::Awake,
        })
    }

    /// Runs the session to its end.
    pub async fn run(mut self, mut signals: TerminationSignals) -> Result<AttachEnd, CommandFailure> {
        let terminal_error = || CommandFailure::io("cannot use this terminal");
        let mut resized = signal(SignalKind::window_change()).map_err(terminal_error())?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Some(end) = self.take_finished_end() {
                self.screen.draw_notice(None);
                return Ok(end);
            }
            self.screen.draw_notice(self.notice());
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
                seen = self.sleep_overlay.looked_up() => self.finish_lookup(seen)?,
                () = self.notices.next() => {}
                () = changed(&mut resized) => self.resize = screen::size(),
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
            (_, SleepOverlay::Asleep(_) | SleepOverlay::Waking(_)) => self.handle_input_asleep(&(kind, data)),
            (InputClass::User, _) => {
                self.notices.withdraw_warning();
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
        let times = [flush, self.resend_at, leave, notice_at, self.notices.changes_at()];
        times.into_iter().flatten().min().unwrap_or(far)
    }

    fn handle_timer(&mut self) {
        let now = Instant::now();
        if self.classifier.is_holding() && self.flush_at <= now {
            self.classifier.flush().into_iter().for_each(|piece| self.handle_input(piece));
        }
        self.resend_at.take_if(|at| *at <= now);
    }

    /// Returns the notice for the corner of the screen.
    fn notice(&self) -> Option<String> {
        let is_lost = self.connection.lost_since().is_some_and(|since| since.elapsed() >= NOTICE_DELAY);
        match self.sleep_overlay {
            SleepOverlay::Waking(_) => Some(self.notices.waking_text()),
            _ if is_lost => Some("connection lost, reconnecting …".to_owned()),
            _ => self.notices.text(&self.workspace.name),
        }
    }
}

impl std::fmt::Debug for AttachSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttachSession").field("terminal_id", &self.terminal_id).finish_non_exhaustive()
    }
}

async fn changed(size: &mut Signal) {
    if size.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Delay before input that the agent rejected for now is sent again.
const HOLD_RETRY: Duration = Duration::from_millis(250);

impl AttachSession {
    fn handle_event(&mut self, event: ConnectionEvent) -> Result<(), CommandFailure> {
        if matches!(event, ConnectionEvent::Response(_)) {
            self.resize_unconfirmed = false;
        }
        match event {
            ConnectionEvent::Retry => self.open(self.sleep_overlay.may_wake(self.has_started)),
            ConnectionEvent::Response(AttachResponse { response: Some(response) }) => match response {
                Response::Frame(frame) => self.handle_frame(frame),
                Response::InputAck(ack) => {
                    self.resend_at = None;
                    self.outbox.acknowledge(ack.epoch, ack.next_offset);
                }
                Response::InputRejected(rejected) => return self.handle_rejection(&rejected),
            },
            ConnectionEvent::Response(AttachResponse { response: None }) => {}
            ConnectionEvent::Ended(status) => return self.handle_end(status),
        }
        Ok(())
    }

    fn handle_end(&mut self, status: Status) -> Result<(), CommandFailure> {
        if std::mem::take(&mut self.resize_unconfirmed) {
            // The size is part of every open request, but only a resize claims it.
            self.resize = screen::size();
        }
        if self.leaving.is_none()
            && error::reason(&status) == Some(Reason::NotAwake)
            && !is_retryable(&status)
        {
            self.start_lookup(None);
            return Ok(());
        }
        if self.leaving.is_none() && !is_retryable(&status) {
            return Err(self.loss_failure(status));
        }
        self.outbox.pause();
        self.connection.retry();
        Ok(())
    }

    /// Returns the failure for a stream that ended and cannot be reopened.
    fn loss_failure(&self, status: Status) -> CommandFailure {
        if !self.has_started || error::reason(&status) != Some(Reason::TerminalNotFound) {
            return status.into();
        }
        if matches!(self.sleep_overlay, SleepOverlay::Waking(_)) {
            let name = &self.workspace.name;
            let message = format!("{name} is awake again, but this terminal was not restored");
            let attach = advice::command(format_args!("attach {name}"));
            return CommandFailure::NotFound(format!("{message}; open another with: {attach}"));
        }
        CommandFailure::Other(
            "this terminal no longer exists, because it was closed or the workspace's agent was \
             restarted; input that the agent had not received was dropped; attach again"
                .to_owned(),
        )
    }

    fn handle_frame(&mut self, frame: Frame) {
        let Frame { epoch, offset, frame: Some(inner), .. } = frame else { return };
        match inner {
            frame::Frame::Started(started) => self.handle_started(epoch, offset, &started),
            frame::Frame::Data(data) => self.screen.output(offset, data),
            frame::Frame::Gap(gap) => {
                self.screen
                    .message(&format!("{} bytes of output were lost", gap.to.saturating_sub(gap.from)));
                self.screen.seek(epoch, gap.to);
            }
            frame::Frame::Screen(screen) => self.screen.draw_screen(offset, screen),
            // The program may have ended because the workspace falls asleep. In that case the
            // terminal returns when the workspace wakes.
            frame::Frame::Exit(exit) => self.start_lookup(Some(exit)),
            // The program's own escape sequences have set these on the local terminal.
            frame::Frame::Title(_) | frame::Frame::Cwd(_) | frame::Frame::Foreground(_) => {}
            frame::Frame::Resized(_) | frame::Frame::Keepalive(_) => {}
        }
    }

    fn handle_started(&mut self, epoch: u64, offset: u64, started: &Started) {
        self.has_started = true;
        self.connection.mark_working();
        let begun = self.outbox.start_stream(epoch, started.input_offset);
        match std::mem::replace(&mut self.sleep_overlay, SleepOverlay::Awake) {
            SleepOverlay::Waking(dropped) => self.report_awake(dropped),
            _ => self.report_stream_start(begun),
        }
        self.notices.watch_activity(&self.client.workspace_client_for(&self.workspace));
        let earlier = self.screen.position();
        if earlier.is_some_and(|(known, _)| known != epoch) {
            // The log holds the output of earlier epochs; a screen snapshot replaces it.
            self.screen.reset_position();
            self.from_oldest = false;
            self.outbox.pause();
            self.open(false);
        } else if earlier.is_none() {
            self.screen.seek(epoch, offset);
            self.acked = offset;
        }
    }

    /// Reports input that was dropped when a stream started.
    fn report_stream_start(&mut self, begun: StreamStart) {
        match begun {
            StreamStart::SameEpoch => {}
            StreamStart::NewEpoch { dropped } => {
                let typed = if dropped > 0 { "; input typed for the earlier one was dropped" } else { "" };
                let message = format!("the workspace's agent was restarted; this is a new program{typed}");
                self.screen.message(&message);
            }
            StreamStart::ClientEvicted { dropped } => self.screen.message(&format!(
                "the agent no longer knows this client after the long interruption; \
                 the last {dropped} bytes typed may be missing"
            )),
        }
    }

    fn handle_rejection(&mut self, rejected: &InputRejected) -> Result<(), CommandFailure> {
        match error::from_name(&rejected.reason) {
            // The input is sent again from the expected offset. The pause gives the agent time to
            // accept it. While the workspace prepares to sleep, this repeats until the workspace
            // stays awake or falls asleep. If it falls asleep, the input is dropped, and the user
            // is notified.
            Some(Reason::InputGap | Reason::InputFull | Reason::Preparing) => {
                self.outbox.resend_from(rejected.expected_offset);
                self.resend_at = Some(Instant::now() + HOLD_RETRY);
            }
            Some(Reason::StaleEpoch | Reason::ClientEvicted) => {
                let begun = self.outbox.start_stream(rejected.epoch, rejected.expected_offset);
                self.report_stream_start(begun);
            }
            // The exit event follows.
            Some(Reason::Ended) => {}
            _ => {
                let message = format!("the terminal rejects input: {}", rejected.reason);
                return Err(CommandFailure::Refused(message));
            }
        }
        Ok(())
    }
}

/// Bytes of output that the agent sends without an acknowledgement. Enough for 10 MB/s at a round
/// trip of 100 ms, and little enough that Ctrl-C takes effect at once.
const CREDIT: u32 = 1024 * 1024;
/// Bytes of output after which an acknowledgement is sent: one eighth of the credit.
const ACK_EVERY: u64 = CREDIT as u64 / 8;

impl AttachSession {
    fn has_request(&self) -> bool {
        self.has_started
            && (self.resize.is_some()
                || self.ack_due()
                || (self.outbox.has_unsent() && self.resend_at.is_none()))
    }

    fn ack_due(&self) -> bool {
        self.screen.written() >= self.acked + ACK_EVERY
    }

    fn next_request(&mut self) -> AttachRequest {
        let request = if let Some(size) = self.resize.take() {
            self.resize_unconfirmed = true;
            Request::Resize(Resize { size: Some(size), take_ownership: true })
        } else if self.ack_due() {
            self.acked = self.screen.written();
            Request::Ack(self.acked)
        } else if let Some(input) = self.outbox.next_input() {
            Request::Input(input)
        } else {
            Request::Ack(self.screen.written())
        };
        AttachRequest { request: Some(request) }
    }

    /// Opens a stream at the current position. `wakes` allows it to wake the workspace, and is set
    /// only for an explicit request of the user.
    fn open(&mut self, wakes: bool) {
        let from = match self.screen.position() {
            Some((epoch, offset)) => from::From::Position(Position { epoch, offset }),
            None if self.from_oldest => from::From::Oldest(FromOldest {}),
            None => from::From::Screen(FromScreen {}),
        };
        let open = AttachOpen {
            terminal_id: self.terminal_id.clone(),
            from: Some(From { from: Some(from) }),
            client_id: self.client_id.clone(),
            size: screen::size(),
            credit_bytes: CREDIT,
            // As with ssh, a slow screen slows the program down and loses no output.
            lossless: true,
            read_only: false,
        };
        self.connection.open(open, wakes);
    }
}
