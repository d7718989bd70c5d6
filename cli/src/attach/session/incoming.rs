//! Handles responses on an Attach stream: output, acknowledgements, refusals and the stream's end.

use std::time::Duration;

use podling_proto::{
    agent::v1::{AttachResponse, Frame, InputRejected, Started, attach_response::Response, frame},
    error::{self, Reason},
};
use tokio::time::Instant;
use tonic::Status;

use super::{AttachSession, sleep_overlay::SleepOverlay};
use crate::{
    attach::{connection::ConnectionEvent, notifications, outbox::StreamStart, raw},
    backoff::is_retryable,
    failure::CommandFailure,
};

/// Delay before input that the agent rejected for now is sent again.
const HOLD_RETRY: Duration = Duration::from_millis(250);

impl AttachSession {
    pub(super) fn handle_event(&mut self, event: ConnectionEvent) -> Result<(), CommandFailure> {
        match event {
            ConnectionEvent::Retry => self.open(self.sleep_overlay.may_wake(self.has_started)),
            ConnectionEvent::Opened => {}
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
            return CommandFailure::NotFound(format!("{message}; open another with: podling attach {name}"));
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
            frame::Frame::Screen(screen) => self.screen.draw_screen(offset, screen, raw::size()),
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
            SleepOverlay::Awake | SleepOverlay::Checking(_) | SleepOverlay::Asleep => {
                self.report_stream_start(begun)
            }
        }
        self.wake_status.clear();
        self.notifications = notifications::activity(&self.client.workspace_client_for(&self.workspace));
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
