//! One terminal on our screen until it ends or is left, over as many links as it takes.
//!
//! A broken link costs nothing: output goes on at the byte behind the last one taken, input at the byte the agent expects. What
//! comes is in `incoming`, what goes in `outgoing`, sleep in `slumber`.

mod incoming;
mod outgoing;
mod slumber;

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

use self::slumber::{Look, Slumber};
use super::{
    classify::{Classifier, Kind, Piece},
    display::Display,
    key::DetachKey,
    link::Link,
    news::{self, News},
    outbox::Outbox,
    raw::{self, Raw},
};
use crate::{
    client::Client,
    failure::Failure,
    run::feed::Signals,
    stdio::{READ_BYTES, Stdio},
};

/// A sequence that has begun on stdin and does not go on within this was typed.
const SEQUENCE_TIMEOUT: Duration = Duration::from_millis(50);
/// A link that is back sooner than this is not worth a word.
const UNTOLD: Duration = Duration::from_secs(1);
/// How long to wait at detach until the last keystrokes are acknowledged.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the time that is left until sleep is told anew.
const WARN_EVERY: Duration = Duration::from_secs(5);
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
    /// The person has left a workspace that sleeps.
    LeftAsleep,
    /// A signal has ended us; it goes on.
    Signal(&'static str),
}

/// A session.
pub struct Session {
    client: Client,
    workspace: Workspace,
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
    key: DetachKey,
    news: news::Source,
    /// When the workspace sleeps unless it is used.
    warning: Option<Timestamp>,
    /// How it fares on its way back.
    doing: String,
    slumber: Slumber,
    looking: Look,
}

impl Session {
    /// A session with this terminal; our own is in raw mode until it is over. A terminal that is `fresh` is shown from its first
    /// byte, another one by a picture.
    pub fn new(
        client: Client,
        workspace: Workspace,
        terminal_id: String,
        fresh: bool,
        key: DetachKey,
    ) -> Result<Self, Failure> {
        let own = || Failure::io("cannot use this terminal");
        let (stdin, stdout) = (Stdio::stdin().map_err(own())?, Stdio::stdout().map_err(own())?);
        let display = Display::new(stdout, Raw::enter().map_err(own())?);
        let inside = client.inside_of(&workspace);
        Ok(Self {
            client,
            workspace,
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
            key,
            news: news::none(),
            warning: None,
            doing: String::new(),
            slumber: Slumber::Up,
            looking: Box::pin(std::future::pending()),
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
            self.display.notice(self.notice());
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
                seen = &mut self.looking => self.looked(seen)?,
                Some(news) = self.news.next() => self.hear(news),
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
            End::Detached { .. } | End::LeftAsleep | End::Signal(_) => {
                self.outbox.is_empty() || *deadline <= Instant::now()
            }
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
        match (kind, &self.slumber) {
            _ if self.leaving.is_some() => {}
            (_, Slumber::Asleep | Slumber::Waking(_)) => self.take_asleep(&(kind, data)),
            (Kind::User, _) => {
                // Whoever types uses it; the agent says so as well, a moment later.
                self.warning = None;
                self.outbox.push(data, InputKind::User, 0);
            }
            (Kind::Reply, _) => self.outbox.push(data, InputKind::Reply, self.display.written()),
            (Kind::Detach, _) => self.leave(End::Detached { unsent: 0 }),
        }
    }

    /// When something is due although nothing comes.
    fn wake_at(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let flush = self.classifier.holds().then_some(self.flush_at);
        let leave = self.leaving.as_ref().map(|(_, at)| *at);
        let untold = self.link.lost().map(|since| since + UNTOLD).filter(|at| *at > Instant::now());
        let warn = self.warning.map(|_| Instant::now() + WARN_EVERY);
        [flush, self.resend_at, leave, untold, warn].into_iter().flatten().min().unwrap_or(far)
    }

    fn woken(&mut self) {
        let now = Instant::now();
        if self.classifier.holds() && self.flush_at <= now {
            self.classifier.flush().into_iter().for_each(|piece| self.take(piece));
        }
        self.resend_at.take_if(|at| *at <= now);
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Sleeps(at) => self.warning = at,
            News::Doing(doing) => self.doing = doing,
        }
    }

    /// What is worth a corner of the screen.
    fn notice(&self) -> Option<String> {
        let is_lost = self.link.lost().is_some_and(|since| since.elapsed() >= UNTOLD);
        match (&self.slumber, self.warning) {
            (Slumber::Waking(_), _) => Some(format!("waking … {}", self.doing).trim_end().to_owned()),
            _ if is_lost => Some("link lost, trying again …".to_owned()),
            (_, Some(at)) => Some(news::warning(&self.workspace.name, at, SystemTime::now())),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("slumber", &self.slumber).finish_non_exhaustive()
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
