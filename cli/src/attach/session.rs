//! One terminal on our screen until it ends or is left, over as many links as it takes.
//!
//! A broken link costs nothing: output goes on at the byte behind the last one taken, input at the byte the agent expects.

use std::{io, time::Duration};

use podling_proto::{
    agent::v1::{
        AttachOpen, AttachRequest, AttachResponse, Exit, Frame, From, FromOldest, FromScreen, InputKind,
        InputRefused, Position, Resize, Size, attach_request::Request, attach_response::Response, frame,
        from,
    },
    error::{self, Reason},
    token,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};
use tonic::Status;

use super::{
    classify::{Classifier, Kind, Piece},
    display::Display,
    key::DetachKey,
    link::{Event, Link},
    outbox::{Begun, Outbox},
    raw::{self, Raw},
};
use crate::{
    backoff::is_broken_link,
    client::Inside,
    failure::Failure,
    run::feed::Signals,
    stdio::{READ_BYTES, Stdio},
};

/// Output under way without an ack: enough for 10 MB/s over 100 ms, little enough that Ctrl-C takes effect at once.
const CREDIT: u32 = 1024 * 1024;
/// How often acks are sent: eight of them per credit.
const ACK_EVERY: u64 = CREDIT as u64 / 8;
/// A sequence that has begun on stdin and does not go on within this was typed.
const SEQUENCE_TIMEOUT: Duration = Duration::from_millis(50);
/// A link that is back sooner than this is not worth a word.
const UNTOLD: Duration = Duration::from_secs(1);
/// How long to wait at detach until the last keystrokes are acknowledged.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Before input that was refused for now is sent again.
const HOLD_RETRY: Duration = Duration::from_millis(250);
/// Random bytes of a client id.
const CLIENT_ID_BYTES: usize = 12;

/// How a session ended.
#[derive(Debug)]
pub enum End {
    /// The program has.
    Exited(Exit),
    /// The person has left; it goes on.
    Detached {
        /// Bytes of input that nobody acknowledged: the link was broken.
        unsent: usize,
    },
    /// A signal has ended us; it goes on.
    Signal(&'static str),
}

/// A session.
#[derive(Debug)]
pub struct Session {
    terminal_id: String,
    fresh: bool,
    client_id: String,
    stdin: Stdio,
    display: Display,
    link: Link,
    outbox: Outbox,
    classifier: Classifier,
    /// When a sequence held back is taken as typed.
    flush_at: Instant,
    /// Input was refused for now: when it is sent again, unless the agent takes some before.
    resend_at: Option<Instant>,
    acked: u64,
    /// A size to be told.
    resize: Option<Size>,
    /// Whether a stream was ever open: what is an error at first may be a restart later.
    begun: bool,
    leaving: Option<(End, Instant)>,
}

impl Session {
    /// A session with this terminal; our own is in raw mode until it is over. A terminal that is `fresh` is shown from its first
    /// byte, another one by a picture.
    pub fn new(inside: Inside, terminal_id: String, fresh: bool, key: DetachKey) -> Result<Self, Failure> {
        let own = || Failure::io("cannot use this terminal");
        let (stdin, stdout) = (Stdio::stdin().map_err(own())?, Stdio::stdout().map_err(own())?);
        let display = Display::new(stdout, Raw::enter().map_err(own())?);
        Ok(Self {
            terminal_id,
            fresh,
            client_id: token::random(CLIENT_ID_BYTES),
            stdin,
            display,
            link: Link::new(inside),
            outbox: Outbox::default(),
            classifier: Classifier::new(key.0),
            flush_at: Instant::now(),
            resend_at: None,
            acked: 0,
            // Whoever comes looks at it from now on.
            resize: raw::size(),
            begun: false,
            leaving: None,
        })
    }

    /// To its end.
    pub async fn run(mut self, mut signals: Signals) -> Result<End, Failure> {
        let own = || Failure::io("cannot use this terminal");
        let mut resized = signal(SignalKind::window_change()).map_err(own())?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Some(end) = self.is_over() {
                self.display.notice(None);
                self.display.draw_notice(raw::size());
                return Ok(end);
            }
            self.display.draw_notice(raw::size());
            let reads = self.outbox.has_room() && self.leaving.is_none();
            let takes = self.display.has_room();
            let sends = self.sends();
            let wake_at = self.wake_at();
            let room = self.link.room();
            tokio::select! {
                biased;
                name = signals.next() => return Ok(End::Signal(name)),
                written = self.display.write() => written.map_err(own())?,
                count = self.stdin.read(&mut buffer), if reads => self.typed(&buffer[..count.map_err(own())?]),
                permit = room, if sends => { permit.send(self.request()); }
                event = self.link.next(), if takes => self.event(event)?,
                () = changed(&mut resized) => self.resize = raw::size(),
                () = sleep_until(wake_at) => self.woken(),
            }
        }
    }

    /// Whether there is nothing left to do.
    fn is_over(&mut self) -> Option<End> {
        let (end, deadline) = self.leaving.as_ref()?;
        let done = match end {
            // All of its output is to be seen first.
            End::Exited(_) => !self.display.is_behind(),
            End::Detached { .. } | End::Signal(_) => self.outbox.is_empty() || *deadline <= Instant::now(),
        };
        if !done {
            return None;
        }
        self.leaving.take().map(|(end, _)| match end {
            End::Detached { .. } => End::Detached { unsent: self.outbox.len() },
            end => end,
        })
    }

    fn leave(&mut self, end: End) {
        self.leaving.get_or_insert((end, Instant::now() + LEAVE_TIMEOUT));
    }

    // What a person does.

    fn typed(&mut self, data: &[u8]) {
        if data.is_empty() {
            // Our terminal is gone.
            return self.leave(End::Signal("HUP"));
        }
        for piece in self.classifier.feed(data) {
            self.take(piece);
        }
        self.flush_at = Instant::now() + SEQUENCE_TIMEOUT;
    }

    fn take(&mut self, (kind, data): Piece) {
        match kind {
            _ if self.leaving.is_some() => {}
            Kind::User => self.outbox.push(data, InputKind::User, 0),
            Kind::Reply => self.outbox.push(data, InputKind::Reply, self.display.written()),
            Kind::Detach => self.leave(End::Detached { unsent: 0 }),
        }
    }

    /// When something is due although nothing comes.
    fn wake_at(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let flush = self.classifier.holds().then_some(self.flush_at);
        let leave = self.leaving.as_ref().map(|(_, at)| *at);
        let untold = self.link.lost().map(|since| since + UNTOLD).filter(|at| *at > Instant::now());
        [flush, self.resend_at, leave, untold].into_iter().flatten().min().unwrap_or(far)
    }

    fn woken(&mut self) {
        let now = Instant::now();
        if self.classifier.holds() && self.flush_at <= now {
            self.classifier.flush().into_iter().for_each(|piece| self.take(piece));
        }
        self.resend_at.take_if(|at| *at <= now);
        self.tell_lost();
    }

    // What goes to the terminal.

    fn sends(&self) -> bool {
        self.begun
            && (self.resize.is_some()
                || self.ack_due()
                || (self.outbox.has_unsent() && self.resend_at.is_none()))
    }

    fn ack_due(&self) -> bool {
        self.display.written() >= self.acked + ACK_EVERY
    }

    fn request(&mut self) -> AttachRequest {
        let request = if let Some(size) = self.resize.take() {
            Request::Resize(Resize { size: Some(size), take: true })
        } else if self.ack_due() {
            self.acked = self.display.written();
            Request::Ack(self.acked)
        } else if let Some(input) = self.outbox.next_input() {
            Request::Input(input)
        } else {
            Request::Ack(self.display.written())
        };
        AttachRequest { request: Some(request) }
    }

    fn open(&self) -> AttachOpen {
        let from = match self.display.position() {
            Some((epoch, offset)) => from::From::Position(Position { epoch, offset }),
            None if self.fresh => from::From::Oldest(FromOldest {}),
            None => from::From::Screen(FromScreen {}),
        };
        AttachOpen {
            terminal_id: self.terminal_id.clone(),
            from: Some(From { from: Some(from) }),
            client_id: self.client_id.clone(),
            size: raw::size(),
            credit_bytes: CREDIT,
            // As with ssh: a slow screen slows the program down instead of losing what it prints.
            lossless: true,
            read_only: false,
        }
    }

    // What comes from it.

    fn event(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Retry => self.link.open(self.open()),
            Event::Opened => {}
            Event::Response(AttachResponse { response: Some(response) }) => match response {
                Response::Frame(frame) => self.frame(frame),
                Response::InputAck(ack) => {
                    self.resend_at = None;
                    self.outbox.acknowledge(ack.epoch, ack.next_offset);
                }
                Response::InputRefused(refused) => return self.refused(&refused),
            },
            Event::Response(AttachResponse { response: None }) => {}
            Event::Ended(status) => return self.ended(status),
        }
        Ok(())
    }

    fn ended(&mut self, status: Status) -> Result<(), Failure> {
        if self.leaving.is_some() {
            self.outbox.pause();
            self.link.retry();
            return Ok(());
        }
        if !is_broken_link(&status) {
            return Err(self.lost(status));
        }
        self.outbox.pause();
        self.link.retry();
        self.tell_lost();
        Ok(())
    }

    fn tell_lost(&mut self) {
        if self.link.lost().is_some_and(|since| since.elapsed() >= UNTOLD) {
            self.display.notice(Some("link lost, trying again …"));
        }
    }

    /// Why there is no terminal any more.
    fn lost(&self, status: Status) -> Failure {
        if self.begun && error::reason(&status) == Some(Reason::TerminalNotFound) {
            return Failure::Other(
                "the workspace's agent was started again: this terminal and what ran in it are gone, and nothing \
                 that was typed since went anywhere else"
                    .to_owned(),
            );
        }
        status.into()
    }

    fn frame(&mut self, frame: Frame) {
        let Frame { epoch, offset, frame: Some(inner), .. } = frame else { return };
        match inner {
            frame::Frame::Started(started) => {
                self.begun = true;
                self.link.works();
                self.display.notice(None);
                let earlier = self.display.position();
                let begun = self.outbox.begin(epoch, started.input_offset);
                self.say_begun(begun);
                if earlier.is_none_or(|(known, _)| known != epoch) {
                    self.display.seek(epoch, offset);
                    self.acked = offset;
                }
            }
            frame::Frame::Data(data) => self.display.output(offset, data),
            frame::Frame::Gap(gap) => {
                self.display.say(&format!("{} bytes of output are lost", gap.to.saturating_sub(gap.from)));
                self.display.seek(epoch, gap.to);
            }
            frame::Frame::Screen(screen) => self.display.picture(offset, screen, raw::size()),
            frame::Frame::Exit(exit) => self.leave(End::Exited(exit)),
            // The program's own sequences say these to our terminal.
            frame::Frame::Title(_) | frame::Frame::Cwd(_) | frame::Frame::Foreground(_) => {}
            frame::Frame::Resized(_) | frame::Frame::Keepalive(_) => {}
        }
    }

    /// Says what became of input that was under way, where it did not simply go on.
    fn say_begun(&mut self, begun: Begun) {
        match begun {
            Begun::Same => {}
            Begun::NewLife { dropped } => {
                let typed = if dropped > 0 { "; what was typed for the earlier one was dropped" } else { "" };
                let said = format!("the workspace's agent was started again, this is a new program{typed}");
                self.display.say(&said);
            }
            Begun::Forgotten { dropped } => self.display.say(&format!(
                "away for so long that the terminal forgot this window: the last {dropped} bytes typed may be missing"
            )),
        }
    }

    fn refused(&mut self, refused: &InputRefused) -> Result<(), Failure> {
        match refused.reason.as_str() {
            // It begins again from what is expected, but not at once: nothing has changed yet.
            "INPUT_HOLE" | "INPUT_FULL" | "PREPARING" => {
                self.outbox.expect(refused.expected_offset);
                self.resend_at = Some(Instant::now() + HOLD_RETRY);
            }
            "STALE_EPOCH" | "INPUT_FORGOTTEN" => {
                let begun = self.outbox.begin(refused.epoch, refused.expected_offset);
                self.say_begun(begun);
            }
            // Its exit is on its way.
            "ENDED" => {}
            other => return Err(Failure::Refused(format!("the terminal takes no input: {other}"))),
        }
        Ok(())
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
