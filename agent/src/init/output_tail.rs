//! Passes the output of the workspace's command on to the agent's own output, and retains its last
//! lines. They are shown when the command fails.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::unix::pipe::Receiver,
    time::timeout,
};
use tokio_util::task::TaskTracker;

use crate::{child::Child, util::lock};

/// Lines that are retained. Older ones are dropped.
const MAX_LINES: usize = 20;
/// Longest line that is retained, in characters. The rest is cut off.
const MAX_LINE_CHARS: usize = 200;
/// Time that the last output may take to arrive after the command has ended. Background processes
/// of the command can keep its output open for longer.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);
/// Bytes that are read at once.
const READ_BYTES: usize = 16 * 1024;

/// The last lines of one run of the command. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct OutputTail(Arc<Mutex<TailLines>>);

/// The end of one stream of text, as lines without control characters.
#[derive(Debug, Default)]
struct TailLines {
    complete: VecDeque<String>,
    /// The present line of stdout and of stderr.
    open: [OpenLine; 2],
}

#[derive(Debug, Default)]
struct OpenLine {
    bytes: Vec<u8>,
    escape: EscapeState,
}

/// Position in an escape sequence, which is left out of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum EscapeState {
    #[default]
    Text,
    /// After ESC, and intermediate bytes if there are any.
    Escape,
    /// After `ESC [`, up to the final byte.
    Control,
    /// In a string such as a title, up to BEL or ESC.
    String,
}

/// The tasks that read the output of one run. Dropping this leaves them running until all processes
/// of that run have closed their output, so that no process fails because its output is closed.
#[derive(Debug)]
pub(super) struct OutputReaders(TaskTracker);

impl OutputTail {
    /// Begins to read the child's stdout and stderr, which must be pipes.
    pub(super) fn read_from(&self, child: &mut Child) -> io::Result<OutputReaders> {
        let readers = TaskTracker::new();
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(self.clone().pass_on(pipe(stdout)?, tokio::io::stdout(), 0));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(self.clone().pass_on(pipe(stderr)?, tokio::io::stderr(), 1));
        }
        readers.close();
        Ok(OutputReaders(readers))
    }

    async fn pass_on(self, mut pipe: Receiver, mut to: impl AsyncWrite + Unpin, stream: usize) {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            lock(&self.0).push(stream, &buffer[..count]);
            // The agent's own output may be closed. The command must not notice.
            if to.write_all(&buffer[..count]).await.is_ok() {
                let _closed = to.flush().await;
            }
        }
    }

    /// Returns the last lines, oldest first.
    pub(super) fn last_lines(&self) -> Vec<String> {
        lock(&self.0).last_lines()
    }
}

impl OutputReaders {
    /// Waits until all output has been read, for at most [`DRAIN_TIMEOUT`].
    pub(super) async fn drained(self) {
        let _background = timeout(DRAIN_TIMEOUT, self.0.wait()).await;
    }
}

impl TailLines {
    fn push(&mut self, stream: usize, bytes: &[u8]) {
        for &byte in bytes {
            let open = &mut self.open[stream];
            match (open.escape, byte) {
                (_, 0x1b) => open.escape = EscapeState::Escape,
                (EscapeState::Escape, b'[') => open.escape = EscapeState::Control,
                (EscapeState::Escape, b']' | b'P' | b'X' | b'^' | b'_') => open.escape = EscapeState::String,
                (EscapeState::Escape, 0x20..=0x2f) | (EscapeState::Control, 0x20..=0x3f) => {}
                (EscapeState::String, 0x07) | (EscapeState::Escape | EscapeState::Control, 0x20..) => {
                    open.escape = EscapeState::Text;
                }
                (EscapeState::String, _) => {}
                (_, b'\n') => {
                    open.escape = EscapeState::Text;
                    let line = std::mem::take(open).text();
                    self.complete.extend(line);
                    if self.complete.len() > MAX_LINES {
                        self.complete.pop_front();
                    }
                }
                (_, byte) => open.push(byte),
            }
        }
    }

    fn last_lines(&self) -> Vec<String> {
        let open = self.open.iter().filter_map(OpenLine::text);
        let mut lines: Vec<_> = self.complete.iter().cloned().chain(open).collect();
        lines.drain(..lines.len().saturating_sub(MAX_LINES));
        lines
    }
}

impl OpenLine {
    fn push(&mut self, byte: u8) {
        // A carriage return is retained, because only the next byte shows whether it ends the line.
        if self.bytes.last() == Some(&b'\r') && byte != b'\r' {
            self.bytes.clear();
        }
        if self.bytes.len() < MAX_LINE_CHARS * 4 {
            self.bytes.push(byte);
        }
    }

    /// Returns the line without control characters, or `None` if it is blank.
    fn text(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.bytes);
        let text: String = text
            .chars()
            .map(|c| if c == '\t' { ' ' } else { c })
            .filter(|c| !c.is_control())
            .take(MAX_LINE_CHARS)
            .collect();
        Some(text.trim_end().to_owned()).filter(|text| !text.is_empty())
    }
}

fn pipe(end: impl Into<OwnedFd>) -> io::Result<Receiver> {
    Receiver::from_owned_fd(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(pieces: &[(usize, &str)]) -> Vec<String> {
        let mut lines = TailLines::default();
        pieces.iter().for_each(|(stream, text)| lines.push(*stream, text.as_bytes()));
        lines.last_lines()
    }

    #[test]
    fn tail_has_the_last_lines_as_plain_text() {
        assert_eq!(
            tail(&[(0, "one\ntw"), (1, "\x1b[31mbad\x1b[0m\r\n"), (0, "o\n\n"), (0, "unfinished")]),
            ["one", "bad", "two", "unfinished"]
        );
        assert_eq!(tail(&[(0, "10 %\r50 %\r100 %\n")]), ["100 %"], "a progress bar");
        assert_eq!(tail(&[(0, "\x1b]0;title\x07x\x1b]0;a\x1b\\y\x1b(Bz\n")]), ["xyz"], "a title is no text");
        let many: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let lines = tail(&[(0, &many)]);
        assert_eq!((lines.len(), lines[0].as_str(), lines[19].as_str()), (20, "line 80", "line 99"));
        let long = tail(&[(0, &"ä".repeat(100_000))]);
        assert_eq!(long[0].chars().count(), MAX_LINE_CHARS);
    }
}
