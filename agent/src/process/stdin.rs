//! Writes of clients to stdin. A queue, which is pure, passes them to the pipe exactly once and in
//! order.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::{Process, ProcessError};
use crate::{
    admission::{AdmitError, Attempt, Intent},
    util::wait_until,
};

/// Queued bytes at which further writes wait for the process to read. One message (1 MiB) may
/// exceed it.
const QUEUE_BYTES: u64 = 1024 * 1024;

/// Result of a write to stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StdinProgress {
    /// Offset up to which all bytes are in the pipe.
    pub next: u64,
    /// True if stdin is closed. Bytes from `next` on do not reach the process.
    pub closed: bool,
}

/// Result of a call of [`StdinQueue::offer`].
#[derive(Debug)]
struct StdinOffer {
    /// True if bytes or the end of stdin were queued.
    accepted: bool,
    /// The answer to the client; `None` while the write has to wait.
    progress: Option<StdinProgress>,
}

#[derive(Debug, Default)]
pub(super) struct StdinQueue {
    /// Offset after the last queued byte.
    accepted: u64,
    /// Offset after the last byte in the pipe.
    written: u64,
    queue: VecDeque<Bytes>,
    end: StdinEnd,
    closed: bool,
    /// Bytes in the pipe when they were last counted. `None` while they are unknown.
    unread: Option<u64>,
    /// A client waits until the process has read the pipe.
    read_awaited: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum StdinEnd {
    #[default]
    Open,
    /// Requested by a client, and due once the queue is empty.
    Requested,
    Closed,
}

impl StdinQueue {
    /// Returns the offset of the next expected byte.
    pub(super) fn next(&self) -> u64 {
        self.accepted
    }

    /// Queues the part of `data` that is new, and the end of stdin if `end` is set. Calls `admit`
    /// before it changes anything. The caller repeats the call until it returns `progress`.
    fn offer(
        &mut self,
        offset: u64,
        data: &Bytes,
        end: bool,
        admit: impl FnOnce() -> Result<(), AdmitError>,
    ) -> Result<StdinOffer, Attempt<ProcessError>> {
        let goal = offset.saturating_add(data.len() as u64);
        if offset > self.accepted {
            return Err(ProcessError::InputGap { expected: self.accepted }.into());
        }
        if self.closed || (self.end != StdinEnd::Open && goal > self.accepted) {
            // Stdin is closed, or a client ended it at an earlier offset. These bytes cannot reach
            // the process.
            let progress = StdinProgress { next: self.written, closed: true };
            return Ok(StdinOffer { accepted: false, progress: Some(progress) });
        }
        let ends = end && self.end == StdinEnd::Open && goal >= self.accepted;
        if goal > self.accepted || ends {
            if self.accepted - self.written >= QUEUE_BYTES {
                return Ok(StdinOffer { accepted: false, progress: None });
            }
            admit()?;
            let known = usize::try_from(self.accepted - offset).unwrap_or(usize::MAX).min(data.len());
            if known < data.len() {
                self.queue.push_back(data.slice(known..));
                self.accepted = goal;
            }
            if ends {
                self.end = StdinEnd::Requested;
            }
            return Ok(StdinOffer { accepted: true, progress: None });
        }
        let ended = !end || goal < self.accepted || self.end == StdinEnd::Closed;
        let done = self.written >= goal && ended;
        let progress = done.then_some(StdinProgress { next: self.written, closed: false });
        Ok(StdinOffer { accepted: false, progress })
    }

    /// Returns the next bytes for the pipe.
    pub(super) fn front(&self) -> Option<Bytes> {
        self.queue.front().cloned()
    }

    /// Records that `bytes` more are in the pipe.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
        self.unread = None;
        if let Some(front) = self.queue.front_mut() {
            front.advance(bytes);
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    /// Returns the offset after the last byte that was read from the pipe, as of the last count.
    pub(super) fn read(&self) -> Option<u64> {
        self.unread.map(|unread| self.written.saturating_sub(unread))
    }

    /// Records how many bytes are in the pipe.
    pub(super) fn count_unread(&mut self, unread: Option<u64>) {
        self.unread = unread;
        self.read_awaited = false;
    }

    /// Returns whether all bytes before `offset` are read, or `None` while that is not known. The
    /// pipe then has to be counted.
    fn is_read(&mut self, offset: u64) -> Option<bool> {
        if self.closed || self.end == StdinEnd::Closed {
            return Some(!self.closed);
        }
        let is_read = self.read().is_some_and(|read| read >= offset);
        self.read_awaited = !is_read;
        is_read.then_some(true)
    }

    /// Returns whether the bytes in the pipe have to be counted for a client.
    pub(super) fn is_read_awaited(&self) -> bool {
        self.read_awaited
    }

    /// Returns whether a client ended stdin and all bytes are in the pipe. The pipe then has to be
    /// closed.
    pub(super) fn is_at_end(&self) -> bool {
        self.queue.is_empty() && self.end == StdinEnd::Requested && !self.closed
    }

    /// Records that the pipe was closed on a client's request.
    pub(super) fn finish(&mut self) {
        self.end = StdinEnd::Closed;
    }

    /// Records that the process no longer reads its stdin, and drops the queue.
    pub(super) fn close(&mut self) {
        self.closed |= self.end != StdinEnd::Closed;
        self.queue.clear();
    }
}

impl Process {
    /// Writes to stdin, and closes it after `data` if `end` is set. Returns once the bytes are in
    /// the pipe, or once stdin is closed.
    pub(super) async fn write(
        &self,
        epoch: u64,
        offset: u64,
        data: Bytes,
        end: bool,
    ) -> Result<StdinProgress, ProcessError> {
        if epoch != self.info.epoch {
            return Err(ProcessError::StaleEpoch { epoch: self.info.epoch });
        }
        loop {
            let offered = || self.offer_stdin(offset, &data, end).transpose();
            match wait_until(&self.stdin_progress, offered).await {
                Ok(progress) => return Ok(progress),
                Err(Attempt::Failed(error)) => return Err(error),
                Err(Attempt::Held(mut hold)) => hold.decision().await?,
            }
        }
    }

    /// Waits until all bytes of stdin before `offset` are read from the pipe, or until stdin is
    /// closed. Returns whether the process has closed its stdin or has ended.
    pub(super) async fn wait_until_stdin_read(&self, offset: u64) -> bool {
        wait_until(&self.stdin_progress, || {
            let mut state = self.state();
            let is_read = state.stdin.as_mut().map_or(Some(true), |stdin| stdin.is_read(offset));
            let ended = state.leader_ended();
            drop(state);
            if is_read.is_none() && !ended {
                self.task_wakeup.notify_one();
                return None;
            }
            Some(is_read != Some(true))
        })
        .await
    }

    fn offer_stdin(
        &self,
        offset: u64,
        data: &Bytes,
        end: bool,
    ) -> Result<Option<StdinProgress>, Attempt<ProcessError>> {
        let mut state = self.state();
        let over = state.leader_ended();
        let stdin = state.stdin.as_mut().ok_or(ProcessError::BadField {
            field: "process_id",
            allowed: "the id of a process started with stdin",
        })?;
        if over {
            stdin.close();
        }
        let offered =
            stdin.offer(offset, data, end, || self.gate.try_admit(Intent::Keystroke, data.len()))?;
        drop(state);
        if offered.accepted {
            self.task_wakeup.notify_one();
        }
        Ok(offered.progress)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offer(
        stdin: &mut StdinQueue,
        offset: u64,
        data: &'static [u8],
        end: bool,
    ) -> Result<StdinOffer, Attempt<ProcessError>> {
        stdin.offer(offset, &Bytes::from_static(data), end, || Ok(()))
    }

    fn drain(stdin: &mut StdinQueue) -> Vec<u8> {
        let mut pipe = Vec::new();
        while let Some(front) = stdin.front() {
            let bytes = front.len().min(3);
            pipe.extend_from_slice(&front[..bytes]);
            stdin.wrote(bytes);
        }
        pipe
    }

    #[test]
    fn write_is_answered_once_in_pipe() {
        let mut stdin = StdinQueue::default();
        assert!(offer(&mut stdin, 0, b"hello", false).unwrap().progress.is_none());
        assert!(matches!(
            offer(&mut stdin, 6, b"x", false),
            Err(Attempt::Failed(ProcessError::InputGap { expected: 5 }))
        ));
        assert!(matches!(
            offer(&mut stdin, u64::MAX, b"x", false),
            Err(Attempt::Failed(ProcessError::InputGap { expected: 5 }))
        ));
        assert!(offer(&mut stdin, 0, b"hello", false).unwrap().progress.is_none(), "a repeat waits as well");
        assert_eq!(drain(&mut stdin), b"hello");
        let again = offer(&mut stdin, 0, b"hello", false).unwrap();
        assert_eq!(again.progress, Some(StdinProgress { next: 5, closed: false }));
        assert!(!again.accepted);
        assert!(offer(&mut stdin, 3, b"lo!", true).unwrap().accepted);
        assert_eq!(drain(&mut stdin), b"!");
        assert!(stdin.is_at_end());
        stdin.finish();
        let end = offer(&mut stdin, 3, b"lo!", true).unwrap().progress;
        assert_eq!(end, Some(StdinProgress { next: 6, closed: false }));
        let behind = offer(&mut stdin, 6, b"more", false).unwrap().progress;
        assert_eq!(behind, Some(StdinProgress { next: 6, closed: true }));
    }

    #[test]
    fn waiting_write_learns_of_closed_stdin() {
        let mut stdin = StdinQueue::default();
        assert!(offer(&mut stdin, 0, b"never read", true).unwrap().progress.is_none());
        stdin.wrote(2);
        stdin.close();
        assert!(!stdin.is_at_end(), "the pipe is closed already");
        // The end of the process closes stdin once more.
        stdin.close();
        let progress = offer(&mut stdin, 0, b"never read", true).unwrap().progress;
        assert_eq!(progress, Some(StdinProgress { next: 2, closed: true }));
    }

    #[test]
    fn unread_input_is_counted_from_the_pipe() {
        let mut stdin = StdinQueue::default();
        assert!(offer(&mut stdin, 0, b"hello", false).unwrap().accepted);
        assert_eq!(drain(&mut stdin), b"hello");
        assert_eq!((stdin.read(), stdin.is_read(5)), (None, None));
        assert!(stdin.is_read_awaited());
        stdin.count_unread(Some(2));
        assert!(!stdin.is_read_awaited());
        assert_eq!((stdin.read(), stdin.is_read(3), stdin.is_read(5)), (Some(3), Some(true), None));
        stdin.count_unread(Some(0));
        assert_eq!(stdin.is_read(5), Some(true));
        stdin.close();
        assert_eq!((stdin.is_read(5), stdin.read()), (Some(false), Some(5)));
    }

    proptest! {
        #[test]
        fn repeated_input_arrives_once(
            sends in prop::collection::vec((0usize..40, 0usize..20), 0..60),
        ) {
            let text: Vec<u8> = (0..64).collect();
            let (mut stdin, mut pipe) = (StdinQueue::default(), Vec::new());
            for (offset, len) in sends {
                let end = (offset + len).min(text.len());
                let data = Bytes::copy_from_slice(&text[offset..end]);
                match stdin.offer(offset as u64, &data, false, || Ok(())) {
                    Ok(_) => {}
                    Err(Attempt::Failed(ProcessError::InputGap { expected })) => {
                        prop_assert!(expected < offset as u64);
                    }
                    Err(other) => panic!("{other:?}"),
                }
                if len % 3 == 0 {
                    pipe.extend(drain(&mut stdin));
                }
            }
            pipe.extend(drain(&mut stdin));
            prop_assert_eq!(&pipe[..], &text[..pipe.len()]);
            prop_assert_eq!(stdin.next(), pipe.len() as u64);
        }
    }
}
