//! Tracks how much of a command's stdout and stderr was written locally. Drops output that a new
//! connection repeats, and counts output that is missing. Pure.

use bytes::{Buf as _, Bytes};

/// Offsets in stdout and stderr of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputPositions {
    /// Epoch of the two logs.
    pub epoch: u64,
    /// Bytes of stdout that were written or are lost.
    pub stdout: u64,
    /// Bytes of stderr that were written or are lost.
    pub stderr: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    Stdout,
    Stderr,
}

/// Output that is to be written, without the part that was written before.
#[derive(Debug, PartialEq, Eq)]
pub struct NewOutput {
    /// Number of bytes missing before `data`.
    pub missing: u64,
    /// Bytes to write; may be empty.
    pub data: Bytes,
}

impl OutputPositions {
    /// Starts both offsets at zero.
    pub fn new(epoch: u64) -> Self {
        Self { epoch, stdout: 0, stderr: 0 }
    }

    /// Adds output that begins at `offset`. Returns the part of it that is to be written.
    pub fn take(&mut self, kind: OutputKind, offset: u64, mut data: Bytes) -> NewOutput {
        let position = self.position(kind);
        let missing = offset.saturating_sub(*position);
        let repeated = usize::try_from(position.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        data.advance(repeated);
        *position += missing + data.len() as u64;
        NewOutput { missing, data }
    }

    /// Skips the output before `to`, which is no longer available. Returns the number of bytes
    /// skipped.
    pub fn gap(&mut self, kind: OutputKind, to: u64) -> u64 {
        let position = self.position(kind);
        let missing = to.saturating_sub(*position);
        *position += missing;
        missing
    }

    fn position(&mut self, kind: OutputKind) -> &mut u64 {
        match kind {
            OutputKind::Stdout => &mut self.stdout,
            OutputKind::Stderr => &mut self.stderr,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stdout_and_stderr_have_separate_offsets() {
        let mut positions = OutputPositions::new(1);
        assert_eq!(positions.take(OutputKind::Stdout, 0, Bytes::from("out")).data, "out");
        assert_eq!(positions.take(OutputKind::Stderr, 0, Bytes::from("e")).data, "e");
        assert_eq!(positions, OutputPositions { epoch: 1, stdout: 3, stderr: 1 });
    }

    #[test]
    fn missing_output_is_counted_once() {
        let mut positions = OutputPositions::new(1);
        assert_eq!(positions.gap(OutputKind::Stdout, 10), 10);
        assert_eq!(positions.gap(OutputKind::Stdout, 10), 0);
        assert_eq!(
            positions.take(OutputKind::Stdout, 12, Bytes::from("x")),
            NewOutput { missing: 2, data: Bytes::from("x") }
        );
    }

    proptest! {
        #[test]
        fn output_is_written_once_across_disconnects(
            log in prop::collection::vec(any::<u8>(), 0..300),
            // Per connection: bytes repeated, bytes carried, and chunk size.
            connections in prop::collection::vec((0_usize..50, 0_usize..100, 1_usize..40), 0..12)
        ) {
            let mut positions = OutputPositions::new(1);
            let mut passed_on = Vec::new();
            for (back, carries, piece) in connections.into_iter().chain([(0, log.len(), 7)]) {
                let from = passed_on.len().saturating_sub(back);
                let to = (from + carries).min(log.len());
                let mut offset = from;
                for data in log[from..to].chunks(piece) {
                    let bytes = Bytes::copy_from_slice(data);
                    let output = positions.take(OutputKind::Stdout, offset as u64, bytes);
                    prop_assert_eq!(output.missing, 0);
                    passed_on.extend_from_slice(&output.data);
                    offset += data.len();
                }
            }
            prop_assert_eq!(passed_on, log);
        }
    }
}
