//! What comes over a session's link: output, acknowledgements, refusals, and its end.

use std::time::Duration;

use podling_proto::{
    agent::v1::{AttachResponse, Frame, InputRefused, Started, attach_response::Response, frame},
    error::{self, Reason},
};
use tokio::time::Instant;
use tonic::Status;

use super::{Session, slumber::Slumber};
use crate::{
    attach::{link::Event, news, outbox::Begun, raw},
    backoff::is_broken_link,
    failure::Failure,
};

/// Before input that was refused for now is sent again.
const HOLD_RETRY: Duration = Duration::from_millis(250);

impl Session {
    pub(super) fn event(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Retry => self.open(self.slumber.asks(self.begun)),
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
        if self.leaving.is_none()
            && error::reason(&status) == Some(Reason::NotAwake)
            && !is_broken_link(&status)
        {
            self.look(None);
            return Ok(());
        }
        if self.leaving.is_none() && !is_broken_link(&status) {
            return Err(self.lost(status));
        }
        self.outbox.pause();
        self.link.retry();
        Ok(())
    }

    /// Why there is no terminal any more.
    fn lost(&self, status: Status) -> Failure {
        if !self.begun || error::reason(&status) != Some(Reason::TerminalNotFound) {
            return status.into();
        }
        if matches!(self.slumber, Slumber::Waking(_)) {
            let name = &self.workspace.name;
            let words = format!("{name} is awake again, but this terminal did not come back with it");
            return Failure::NotFound(format!("{words}; open another with: podling attach {name}"));
        }
        Failure::Other(
            "the workspace's agent was started again: this terminal and what ran in it are gone, and nothing that \
             was typed since went anywhere else"
                .to_owned(),
        )
    }

    fn frame(&mut self, frame: Frame) {
        let Frame { epoch, offset, frame: Some(inner), .. } = frame else { return };
        match inner {
            frame::Frame::Started(started) => self.started(epoch, offset, &started),
            frame::Frame::Data(data) => self.display.output(offset, data),
            frame::Frame::Gap(gap) => {
                self.display.say(&format!("{} bytes of output are lost", gap.to.saturating_sub(gap.from)));
                self.display.seek(epoch, gap.to);
            }
            frame::Frame::Screen(screen) => self.display.picture(offset, screen, raw::size()),
            // Falling asleep ends it as well; then it is there again after waking.
            frame::Frame::Exit(exit) => self.look(Some(exit)),
            // The program's own sequences say these to our terminal.
            frame::Frame::Title(_) | frame::Frame::Cwd(_) | frame::Frame::Foreground(_) => {}
            frame::Frame::Resized(_) | frame::Frame::Keepalive(_) => {}
        }
    }

    fn started(&mut self, epoch: u64, offset: u64, started: &Started) {
        self.begun = true;
        self.link.works();
        let begun = self.outbox.begin(epoch, started.input_offset);
        match std::mem::replace(&mut self.slumber, Slumber::Up) {
            Slumber::Waking(dropped) => self.woke(dropped),
            Slumber::Up | Slumber::Looking(_) | Slumber::Asleep => self.say_begun(begun),
        }
        self.doing.clear();
        self.news = news::warnings(&self.client.inside_of(&self.workspace));
        let earlier = self.display.position();
        if earlier.is_some_and(|(known, _)| known != epoch) {
            // All that it kept of its earlier lives would come again; a picture of it is enough.
            self.display.forget();
            self.fresh = false;
            self.outbox.pause();
            self.open(false);
        } else if earlier.is_none() {
            self.display.seek(epoch, offset);
            self.acked = offset;
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
            // It begins again from what is expected, but not at once: nothing has changed yet. While the workspace prepares to
            // sleep that goes on until it stays awake after all, or sleeps: then it is dropped, and that is said.
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
